"""Two namespaces on one Redis: what an ACL, the commands and the fence make of them."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import json
import logging
import re
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import redis

from lockguard import LeaseLost, LockGuard, StaleToken
from lockguard._cli.servers import Servers
from lockguard._nodes.functions import source
from lockguard_asyncpg import PostgresFence, fenced_transaction, install
from lockguard_lab.servers import RedisServer
from lockguard_ops._web._command import _places
from tests.integration.test_cli import lockguard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

APT = "binance:APTUSDT"
MINE, OTHERS = "bot-a", "bot-b"
PAGE = (Path(__file__).parents[2] / "docs/howto/least-privilege.md").read_text(encoding="utf-8")


def rules(namespace: str) -> str:
    """What the page gives a bot, as it says to write it for a namespace."""
    found = re.search(r"ACL SETUSER bot (on >SECRET.*?)```", PAGE, re.DOTALL)
    assert found is not None
    given = " ".join(found[1].split()).replace("SECRET", "secret")
    assert given.count("lockguard:") == 2
    return given.replace("lockguard:", f"{namespace}:")


async def test_a_user_of_one_namespace_needs_its_keys_only_and_cannot_touch_another_s() -> None:
    users = [f"{name} {rules(name)} +scan +lrange +info" for name in (MINE, OTHERS)]
    # The second in the narrower form of the page.
    users[1] = users[1].replace(f"~{OTHERS}:*", f"~{OTHERS}:{{* ~{OTHERS}:member")
    assert "`~prod:{* ~prod:member`" in PAGE
    with RedisServer(acl=users) as server:
        async with AsyncExitStack() as stack:
            mine, others = [
                await stack.enter_async_context(
                    LockGuard.from_url(server.url_for(name, "secret"), namespace=name)
                )
                for name in (MINE, OTHERS)
            ]
            async with mine.hold(APT), others.hold(APT):
                assert [found.resource async for found in mine.list()] == [APT]
                assert await mine.history(APT)
            with pytest.raises(LeaseLost):
                async with mine.hold(APT):
                    await mine.break_(APT, reason="why not")
                    await asyncio.Event().wait()
        url = server.url_for(MINE, "secret")
        assert await lockguard("ls", "--redis", url, "--namespace", MINE) == (
            *(0, "no lock that matches '*' is held, waited for or kept closed\n"),
            "",
        )
        code, out, err = await lockguard(
            *("doctor", "--json", "--watch", "0s"), LOCKGUARD_REDIS_URL=url, LOCKGUARD_NAMESPACE=MINE
        )
        amiss = [x["code"] for x in json.loads(out)["findings"] if x["severity"] == "error"]
        assert (amiss, code, err) == ([], 0, "")
        log: Any = server.command("ACL", "LOG")
        refused = [entry for entry in log if entry[entry.index("reason") + 1] in ("key", "channel")]
        assert refused == []
        code, out, _ = await lockguard(
            "doctor", "--json", "--watch", "0s", "--redis", url, "--namespace", OTHERS
        )
        (found,) = [x for x in json.loads(out)["findings"] if x["code"] == "redis.rights"]
        assert (code, found["severity"]) == (1, "error")
        assert f"~{OTHERS}:*" in found["remedy"]
        assert f"&{OTHERS}:inbox:*" in found["remedy"]


async def test_every_command_looks_at_the_namespace_that_it_is_told(redis_url: str) -> None:
    async with LockGuard.from_url(redis_url, namespace=MINE) as mine, LockGuard.from_url(redis_url) as other:
        async with mine.hold(APT) as lease, other.hold(APT, operation="of the other"):
            for words, environ in (
                (["--namespace", MINE], {}),
                ([], {"LOCKGUARD_NAMESPACE": MINE}),
                (["--namespace", MINE], {"LOCKGUARD_NAMESPACE": OTHERS}),
            ):
                code, out, err = await lockguard(
                    *("ls", "--json", *words), LOCKGUARD_REDIS_URL=redis_url, **environ
                )
                assert (code, err) == (0, "")
                assert [json.loads(line)["grant"] for line in out.splitlines()] == [lease.grant.id]
            options = {"LOCKGUARD_REDIS_URL": redis_url, "LOCKGUARD_NAMESPACE": MINE}
            code, out, _ = await lockguard("show", APT, "--json", **options)
            assert lease.grant.id in out
            code, out, _ = await lockguard("history", APT, "--json", **options)
            assert {line["grant"] for line in json.loads(out)["lines"]} == {lease.grant.id}
            code, out, _ = await lockguard("show", APT, "--json", **options | {"LOCKGUARD_NAMESPACE": OTHERS})
            assert lease.grant.id not in out
        async with other.hold(APT) as kept:
            with pytest.raises(LeaseLost):
                async with mine.hold(APT):
                    words = ("break", APT, "--reason", "mine only", "--no-fence", "--yes")
                    breaking = asyncio.create_task(lockguard(*words, **options))
                    await asyncio.Event().wait()  # until it is cut, maybe before the command has ended
            code, _, err = await breaking
            assert (code, err) == (0, "")
            await kept.confirm()


async def test_a_malformed_namespace_is_told_in_one_line_that_does_not_show_it(redis_url: str) -> None:
    for words, environ, named in (
        (["--namespace", "a{b"], {}, "--namespace"),
        ([], {"LOCKGUARD_NAMESPACE": "redis://:hunter2@h"}, "LOCKGUARD_NAMESPACE"),
    ):
        code, out, err = await lockguard("ls", *words, LOCKGUARD_REDIS_URL=redis_url, **environ)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert named in err
        assert "hunter2" not in err


async def test_the_functions_serve_every_namespace(redis_url: str) -> None:
    client: Any
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.function_load(source(), replace=True)
        async with (
            LockGuard.from_url(redis_url, namespace=MINE) as mine,
            LockGuard.from_url(redis_url) as other,
        ):
            async with mine.hold(APT) as lease, other.hold("okx:WIFUSDT"):
                _, *lines = client.execute_command("FCALL_RO", "lockguard_ls", 0, 0, "*", 200, MINE)
                assert [json.loads(line)["grant"] for line in lines] == [lease.grant.id]
                _, *lines = client.execute_command("FCALL_RO", "lockguard_ls", 0, 0)
                assert [json.loads(line)["resource"] for line in lines] == ["okx:WIFUSDT"]
                told = client.execute_command("FCALL_RO", "lockguard_show", 1, f"{MINE}:{{{APT}}}")
                assert dict(zip(told[::2], told[1::2], strict=True))["grant"] == lease.grant.id
                with pytest.raises(redis.ResponseError, match="letters, digits"):
                    client.execute_command("FCALL_RO", "lockguard_ls", 0, 0, "*", 200, "[a-z]*")


# --- the fence ---


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(database_url, min_size=2, max_size=8) as made:
        async with made.acquire() as conn:
            await install(conn)
            await conn.execute("create table trades (holder text)")
        yield made


async def _write(pool: asyncpg.Pool[Any], text: str) -> None:
    async with fenced_transaction(pool) as conn:
        await conn.execute("insert into trades values ($1)", text)


async def _once(guard: LockGuard, pool: asyncpg.Pool[Any]) -> None:
    async with guard.hold(APT):
        await _write(pool, "newer")  # never refused: its token is the higher one


async def test_two_namespaces_with_one_fence_never_both_write_and_neither_is_kept_out(
    redis_url: str, pool: asyncpg.Pool[Any]
) -> None:
    fence = PostgresFence(pool)
    async with AsyncExitStack() as stack:
        guards = [
            await stack.enter_async_context(LockGuard.from_url(redis_url, fence=fence, namespace=name))
            for name in (MINE, OTHERS, MINE, OTHERS)
        ]
        for older, newer in itertools.pairwise(guards):
            with pytest.raises(StaleToken):
                async with older.hold(APT):
                    await _write(pool, "older")
                    # As in another process: it has no part in this task's leases.
                    await asyncio.create_task(_once(newer, pool), context=contextvars.Context())
                    await _write(pool, "stale")
        assert await pool.fetchval("select count(*) from trades where holder = 'newer'") == 3
        assert await pool.fetchval("select count(*) from trades where holder = 'stale'") == 0


async def test_one_namespace_with_two_fences_is_told_once(
    redis_url: str, pool: asyncpg.Pool[Any], caplog: pytest.LogCaptureFixture, database_url: str
) -> None:
    other_url = database_url.rpartition("/")[0] + "/other_fence"
    await pool.execute("create database other_fence")
    async with asyncpg.create_pool(other_url, min_size=1, max_size=4) as other:
        async with other.acquire() as conn:
            await install(conn)
        async with AsyncExitStack() as stack:
            guards = [
                await stack.enter_async_context(
                    LockGuard.from_url(redis_url, fence=PostgresFence(each), namespace=name)
                )
                for each, name in ((pool, MINE), (other, MINE), (other, OTHERS))
            ]
            first, second, apart = guards
            with caplog.at_level(logging.WARNING, "lockguard"):
                async with first.hold(APT):
                    pass
                async with apart.hold(APT):
                    pass
                assert [r for r in caplog.records if "namespace" in r.getMessage()] == []
                for guard in (second, first, second, first):
                    async with guard.hold(APT, wait=timedelta(seconds=5)):
                        pass
        told = [
            r.getMessage() for r in caplog.records if "guards of one namespace share one" in r.getMessage()
        ]
        assert len(told) == 2  # once for each direction
        assert all("\n" not in line and APT in line for line in told)


async def test_who_looks_in_another_namespace_is_told_whom_the_fence_lets_write(
    redis_url: str, pool: asyncpg.Pool[Any], database_url: str
) -> None:
    named = ("--redis", redis_url, "--database", database_url)
    guard = LockGuard.from_url(redis_url, namespace=MINE, fence=PostgresFence(pool), name="one")
    async with guard, guard.hold(APT) as lease:
        code, out, _ = await lockguard("show", APT, *named)
        assert code == 4
        assert re.search(rf"^fence +open, token {lease.token}, to one@", out, re.MULTILINE)
        code, out, _ = await lockguard("show", APT, *named, "--namespace", MINE)
        assert code == 0
        assert re.search(rf"^fence +open, token {lease.token} *$", out, re.MULTILINE)
        code, out, _ = await lockguard("break", APT, "--reason", "x", "--yes", *named)
        told = out.splitlines()
        assert (code, told[0]) == (0, f"{APT} was free in Redis: there was no lock to break")
        assert told[1].startswith("The fence accepted what one@")
        assert told[1].endswith(
            "wrote: it was left open, or is of a lock in another namespace or on other servers"
        )


async def test_a_user_of_another_namespace_is_told_which_channel_it_lacks() -> None:
    with RedisServer(acl=[f"bot {rules(MINE)} +scan"]) as server:
        named = ("ls", "--redis", server.url_for("bot", "secret"))
        code, _, err = await lockguard(*named)
        assert code != 0
        assert "the channel lockguard:inbox:*; or name the namespace that it has rights to" in err
        assert len(err.splitlines()) == 1
        assert (await lockguard(*named, "--namespace", MINE))[0] == 0


def test_the_page_tells_which_namespace_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCKGUARD_DATABASE_URL", raising=False)
    url = "redis://bot:hunter2@db1:6379/0"
    assert _places(Servers.read([url], None, MINE)) == ["db1:6379/0", f"namespace {MINE}"]
    assert _places(Servers.read([url], None, "lockguard")) == ["db1:6379/0"]
