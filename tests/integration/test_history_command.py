"""``lockguard history`` tells the story of one symbol from Redis, the fence and the refused writes."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard import LeaseLost, LockGuard, StaleToken
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Lease
from lockguard_asyncpg import PostgresFence, fenced_execute, install
from lockguard_asyncpg._records import open_records
from lockguard_lab.servers import RedisServer
from tests.integration.fence_leases import APT
from tests.integration.test_cli import lockguard
from tests.integration.test_fence_refusal_records import recorded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOSTILE = "open [/x] <script>\x1b[31m\u20ac"
NOWHERE = "postgresql://u:secret@127.0.0.1:1/x"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=6) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int)")
        yield pool


async def lived_through(redis_url: str, database_url: str, pool: asyncpg.Pool[Any]) -> None:
    """A grant that is broken, whose late write is refused; one whose key goes; and one that is released."""
    async with PostgresFence(pool) as fence, LockGuard.from_url(redis_url, fence=fence) as guard:
        breaking = None
        with pytest.raises(LeaseLost):
            async with guard.hold(APT, operation=HOSTILE) as lease:
                late = Lease(lease.grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
                options = ("--reason", "hangs", "--redis", redis_url, "--database", database_url, "--yes")
                breaking = asyncio.create_task(lockguard("break", APT, *options))
                await asyncio.Event().wait()
        code, _, err = await breaking
        assert code == 0, err
        with pytest.raises(StaleToken):
            await fenced_execute(pool, "insert into note values (1)", lease=late)
        async with open_records(database_url) as records:
            await recorded(records)
        with pytest.raises(LeaseLost):
            async with guard.hold(APT, operation="gone"):
                await guard._core.locks.nodes[0].break_(APT, reason="", token=0)  # type: ignore[arg-type]
                await asyncio.Event().wait()
        async with guard.hold(APT, operation="close"):
            pass


async def test_it_tells_grants_breaks_and_refused_writes_in_their_order(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any]
) -> None:
    await lived_through(redis_url, database_url, pool)
    options = ("history", APT, "--redis", redis_url, "--database", database_url)
    code, out, err = await lockguard(*options, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["missing"] == []
    assert abs(told["postgres_ahead_s"]) < 1
    events = [(line["source"], line["event"]) for line in told["lines"]]
    order = [
        ("redis", "granted"),
        ("fence", "break"),
        ("redis", "broken"),
        ("fence", "refused"),
        ("redis", "granted"),
        ("redis", "broken"),
        ("redis", "granted"),
        ("redis", "released"),
    ]
    assert [each for each in events if each in set(order)] == order
    (refused,) = [line for line in told["lines"] if line["event"] == "refused"]
    assert refused["token"] == told["lines"][0]["token"]
    assert "superseded" in refused["reason"]
    code, out, err = await lockguard(*options, "--limit", "2")
    assert (code, err) == (0, "")
    assert "broken" not in out
    assert f"now: {APT} is free; the fence is closed at token {told['lines'][-1]['token']}" in out


async def test_it_is_read_on_a_narrow_latin_1_terminal_without_colour(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any]
) -> None:
    await lived_through(redis_url, database_url, pool)
    options = ("history", APT, "--redis", redis_url, "--database", database_url)
    code, out, err = await lockguard(
        *options, NO_COLOR="1", COLUMNS="60", PYTHONUTF8="0", PYTHONIOENCODING="latin-1", LC_ALL="C"
    )
    assert (code, err) == (0, "")
    assert "open [/x] <script>\\x1b[31m" in out
    assert "\x1b" not in out


async def test_the_clocks_differ_and_the_offset_is_told(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any], conn: asyncpg.Connection[Any]
) -> None:
    await lived_through(redis_url, database_url, pool)
    # A server whose clock is ten seconds ahead, as this database's functions see it.
    name = await conn.fetchval("select current_database()")
    await conn.execute(
        """
        create schema ahead;
        create function ahead.clock_timestamp() returns timestamptz language sql volatile
          as $$ select pg_catalog.clock_timestamp() + interval '10 s' $$
        """
    )
    await conn.execute(f"alter database {name} set search_path = ahead, pg_catalog, public")
    await conn.execute("set session_replication_role = replica")
    await conn.execute("update lockguard.audit set at = at + interval '10 s'")
    await conn.execute(
        "update lockguard.refusal set at = at + interval '10 s', first_at = first_at + interval '10 s'"
    )
    options = ("history", APT, "--redis", redis_url, "--database", database_url)
    code, out, err = await lockguard(*options)
    assert (code, err) == (0, "")
    told = re.match(r"Postgres's clock is (\d+\.\d) s ahead of Redis's; times are on Redis's\n", out)
    assert told, out
    assert abs(float(told[1]) - 10) < 0.5  # the clocks are read one after the other
    assert out.index("granted to") < out.index("broken in the fence") < out.index("was refused")
    assert out.index("was refused") < out.index("(gone)")


async def test_without_redis_the_fence_tells_its_part_and_the_rest_is_said_to_be_missing(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any]
) -> None:
    await lived_through(redis_url, database_url, pool)
    with RedisServer() as server:
        dead = server.url
    code, out, err = await lockguard("history", APT, "--redis", dead, "--database", database_url)
    assert (code, err.count("\n")) == (3, 1)
    assert err.startswith("lockguard: what Redis knows is missing: ")
    assert "was refused" in out
    assert "broken in the fence by role" in out
    assert "granted to" not in out


async def test_without_postgres_redis_tells_its_part_and_no_password_is_shown(redis_url: str) -> None:
    async with LockGuard.from_url(redis_url) as guard, guard.hold(APT, operation="open"):
        code, out, err = await lockguard("history", APT, "--redis", redis_url, "--database", NOWHERE)
        assert (code, err.count("\n")) == (3, 1)
        assert "what Postgres knows is missing" in err
        assert "secret" not in err + out
        assert "granted to" in out
        code, out, err = await lockguard("history", APT, "--redis", redis_url)
        assert (code, err) == (0, "")
        assert "granted to" in out
    with RedisServer() as server:
        dead = server.url
    code, out, err = await lockguard("history", APT, "--redis", dead, "--database", NOWHERE)
    assert (code, out, err.count("\n")) == (1, "", 1)


async def test_a_database_without_the_fence_or_the_right_to_read_it_hides_nothing_that_redis_tells(
    redis_url: str, database_url: str, conn: asyncpg.Connection[Any]
) -> None:
    options = ("history", APT, "--redis", redis_url, "--database")
    async with LockGuard.from_url(redis_url) as guard, guard.hold(APT, operation="open"):
        code, out, err = await lockguard(*options, database_url)
        assert (code, "granted to" in out, err.count("\n")) == (3, True, 1)
        assert "what Postgres knows is missing: " in err
        await install(conn)
        role = "without_any_right"
        await conn.execute(f"create role {role} login password 'x'")
        try:
            code, out, err = await lockguard(*options, re.sub("//[^@]*@", f"//{role}:x@", database_url))
        finally:
            await conn.execute(f"drop role {role}")
        assert (code, "granted to" in out, err.count("\n")) == (3, True, 1)
        assert "one that only looks gets lockguard_viewer" in err


async def test_what_is_unknown_and_what_is_long_ago_is_said(redis_url: str) -> None:
    code, out, err = await lockguard("history", "no:such", "--redis", redis_url, "--since", "2h")
    assert (code, out, err) == (0, "nothing is known of no:such in Redis\n", "")
    code, _, err = await lockguard("history", APT, "--redis", redis_url, "--since", "yesterday")
    assert (code, err.count("\n")) == (2, 1)
    async with LockGuard.from_url(redis_url) as guard:
        async with guard.hold(APT):
            pass
        code, out, _ = await lockguard("history", APT, "--redis", redis_url, "--since", "1h")
        assert (code, "granted to" in out) == (0, True)
        code, out, _ = await lockguard("history", APT, "--redis", redis_url, "--since", "0s")
        assert (code, "granted to" in out) == (0, False)
