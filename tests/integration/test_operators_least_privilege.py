"""The rights that the page gives to people in Postgres are enough for their commands, and for no more."""

from __future__ import annotations

import json
import re
import secrets
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard import LockGuard, QuorumUnavailable
from lockguard_asyncpg import PostgresFence, install
from lockguard_lab.servers import RedisServer, find_redis, find_system_redis, find_valkey
from lockguard_positions._schema import migrate
from tests.integration.fence_leases import APT, SOON, grant_of
from tests.integration.test_bot_least_privilege import with_user
from tests.integration.test_cli import lockguard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SERVERS = {"Valkey": find_valkey(), "Redis": find_redis(), "Debian": find_system_redis()}
"""``None``: not on this machine."""

PAGE = (Path(__file__).parents[2] / "docs/howto/least-privilege.md").read_text(encoding="utf-8")
WRITES = (
    "update monitoring.positions set symbol = symbol",
    "insert into monitoring.signals select * from monitoring.signals",
    "delete from monitoring.position_intents",
    "select * from lockguard.fence",
    "select * from lockguard.refusal",
    "select lockguard.seal('r', 7, gen_random_uuid(), 'h', 'o', 1000)",
    "select lockguard.check('r', 7, gen_random_uuid())",
    "select lockguard.note_refusal('r', 7, 8, 'LG001', '', '', '', 1, 0, 0)",
    "select lockguard.maintenance('x')",
    "select lockguard.prune()",
    "select lockguard.allow('x')",
    "create table lockguard.mine (x int)",
)
BREAKS = (
    "select lockguard.break_('r', 'x', 1000)",
    "select lockguard.break_grant('r', 0, gen_random_uuid(), 'x', 1000)",
    "select lockguard.close('r', 7, gen_random_uuid(), 1000)",
    "select lockguard.evict('r', null)",
)


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await migrate(conn)
    yield conn
    await conn.close()


@pytest.fixture
async def role(owner: asyncpg.Connection[Any]) -> AsyncIterator[str]:
    name = f"person_{secrets.token_hex(6)}"
    await owner.execute(f"create role {name} login password 'secret'")
    yield name
    await owner.execute(f"drop owned by {name}; drop role {name}")


async def given(owner: asyncpg.Connection[Any], who: str, role: str) -> None:
    """Paste what the page gives to ``who``."""
    statements = re.findall(rf"^grant .*? to {who};", PAGE, re.MULTILINE)
    assert len(statements) == 4
    for statement in statements:
        await owner.execute(statement.replace(f" to {who};", f" to {role};"))


async def refused(url: str, statements: tuple[str, ...]) -> None:
    conn = await asyncpg.connect(url)
    try:
        for statement in statements:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await conn.execute(statement)
    finally:
        await conn.close()


async def looks(redis_url: str, url: str) -> None:
    """What who looks on types, as the role of the URL."""
    options = {"LOCKGUARD_REDIS_URL": redis_url, "LOCKGUARD_DATABASE_URL": url}
    code, out, err = await lockguard("history", APT, "--json", **options)
    assert (code, err) == (0, "")
    assert "sealed" in [line["event"] for line in json.loads(out)["lines"]]
    code, out, err = await lockguard("fence", "status", "--json", **options)
    assert (code, err) == (0, "")
    assert [one["resource"] for one in json.loads(out)["resources"]] == [APT]
    code, out, err = await lockguard("fence", "check", **options)
    assert (code, err) == (0, "")
    conn = await asyncpg.connect(url)
    try:
        for table in ("positions", "position_intents", "signals", "signal_attempts"):
            await conn.fetch(f"select * from monitoring.{table}")
        await conn.fetch("select * from lockguard.at_the_gate($1)", APT)
    finally:
        await conn.close()


async def test_a_viewer_sees_all_of_it_and_changes_nothing(
    redis_url: str, database_url: str, owner: asyncpg.Connection[Any], role: str
) -> None:
    await given(owner, "watcher", role)
    url = with_user(database_url, role, "secret")
    async with asyncpg.create_pool(database_url, min_size=0, max_size=2) as pool:
        await PostgresFence(pool).seal(grant_of(7), within=SOON)
    await looks(redis_url, url)
    await refused(url, WRITES + BREAKS)
    options = ("--reason", "x", "--yes", "--redis", redis_url, "--database", url)
    code, out, err = await lockguard("break", APT, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert await owner.fetchval("select is_open from lockguard.status($1)", APT)


async def test_an_operator_sees_it_too_and_breaks_and_takes_no_lease(
    redis_url: str, database_url: str, owner: asyncpg.Connection[Any], role: str
) -> None:
    await given(owner, "operator", role)
    url = with_user(database_url, role, "secret")
    async with asyncpg.create_pool(database_url, min_size=0, max_size=2) as pool:
        await PostgresFence(pool).seal(grant_of(7), within=SOON)
    await looks(redis_url, url)
    await refused(url, WRITES)
    options = ("--reason", "stuck", "--yes", "--redis", redis_url, "--database", url)
    code, _, err = await lockguard("break", APT, *options)
    assert (code, err) == (0, "")
    assert not await owner.fetchval("select is_open from lockguard.status($1)", APT)
    audit = await owner.fetchrow("select actor, reason from lockguard.audit where action = 'break'")
    assert audit is not None
    assert audit["actor"] == role
    assert audit["reason"].endswith(": stuck")
    async with LockGuard.from_url(redis_url) as guard:
        assert not (await guard.inspect(APT)).held


@pytest.fixture(params=[name for name, binary in SERVERS.items() if binary])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server with the users of the page."""
    with RedisServer(binary=SERVERS[request.param]) as started:
        for name in ("bot", "operator", "viewer"):
            rules = re.search(rf"^ACL SETUSER {name} (on .*)$", PAGE, re.MULTILINE)
            assert rules is not None
            started.command("ACL", "SETUSER", name, *rules[1].split())
        yield started


async def test_who_lacks_a_right_in_redis_is_told_so_in_one_line_with_what_to_do(server: RedisServer) -> None:
    async def told(user: str, *command: str) -> str:
        url = f"redis://{user}:SECRET@127.0.0.1:{server.port}"
        code, out, err = await lockguard(*command, "--redis", url)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert f"127.0.0.1:{server.port}: " in err
        assert "when they answer" not in err
        return err

    async with LockGuard.from_url(server.url) as guard, guard.hold(APT):
        operator = "give it the rights of an operator in this namespace, see docs/howto/least-privilege.md"
        by_force = ("break", APT, "--reason", "x", "--yes", "--no-fence")
        assert "break: the user of the URL lacks a right: " in (err := await told("viewer", *by_force))
        assert operator in err
        asked = ("ask", APT, "--reason", "x")
        assert "ask: the user of the URL lacks a right: " in (err := await told("viewer", *asked))
        assert operator in err
        assert "SCAN: the user of the URL lacks a right: " in (err := await told("bot", "ls"))
        assert "give it the rights of a viewer" in err
    server.command("ACL", "SETUSER", "bot", "-hset")
    bot = LockGuard.from_url(f"redis://bot:SECRET@127.0.0.1:{server.port}", wait=timedelta(0))
    async with bot:
        with pytest.raises(QuorumUnavailable, match=r"acquire: the user .*; give it the rights of a bot"):
            async with bot.hold("other"):
                pass


async def test_an_owner_without_createrole_gives_them_by_name(
    database_url: str, owner: asyncpg.Connection[Any], role: str
) -> None:
    code, out, err = await lockguard("fence", "install", "--viewer", role, "--url", database_url)
    assert (code, err) == (0, "")
    assert f"{role} may see the fence, its audit and its refusals" in out
    await refused(with_user(database_url, role, "secret"), WRITES[3:] + BREAKS)
    code, out, err = await lockguard("fence", "install", "--operator", role, "--url", database_url)
    assert (code, err) == (0, "")
    assert f"{role} may see the fence, and break a lock" in out
    code, _, err = await lockguard("fence", "install", "--viewer", "no_such", "--url", database_url)
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no role 'no_such'" in err


def test_the_page_lists_each_function_that_a_role_may_execute(owner_functions: dict[str, set[str]]) -> None:
    for role, functions in owner_functions.items():
        assert [name for name in functions if f"`{name}`" not in PAGE] == [], role


@pytest.fixture
async def owner_functions(owner: asyncpg.Connection[Any]) -> dict[str, set[str]]:
    query = """
        select p.proname from pg_proc p where p.pronamespace = 'lockguard'::regnamespace
         and has_function_privilege($1, p.oid, 'execute')
    """
    return {
        role: {row[0] for row in await owner.fetch(query, role)}
        for role in ("lockguard_app", "lockguard_viewer", "lockguard_operator")
    }
