"""``lockguard break`` ends the grant that the operator saw and no other; ``lockguard ask`` asks a holder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import asyncpg
import pytest
import redis

from lockguard import ConfigurationError, LeaseLost, LockGuard, StaleToken
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Resource, Token, new_grant_id
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg import PostgresFence, fenced_transaction, install
from lockguard_lab.child_process import signal_child
from lockguard_lab.servers import IndependentRedis, RedisServer
from tests.integration.fence_leases import APT, SOON, grant_of, lease_of
from tests.integration.test_cli import lockguard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lockguard import Lease


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=6) as pool:
        async with pool.acquire() as conn:
            await install(conn)
        yield pool


# In the fence


async def _row(pool: asyncpg.Pool[Any]) -> tuple[int, bool]:
    row = await pool.fetchrow("select token, is_open from lockguard.status($1)", APT)
    return (row["token"], row["is_open"])


async def test_the_fence_breaks_the_grant_that_is_in_force_and_repeats_its_answer(
    pool: asyncpg.Pool[Any],
) -> None:
    fence, seen = PostgresFence(pool), grant_of(7)
    await fence.seal(seen, within=SOON)
    token = await fence.break_grant(seen, reason="stuck", within=SOON)
    assert not isinstance(token, Outrun)
    assert await _row(pool) == (token, False)
    # As after a lost reply.
    assert await fence.break_grant(seen, reason="stuck", within=SOON) == token
    assert await pool.fetchval("select count(*) from lockguard.audit") == 1
    with pytest.raises(Exception, match="stale token"):
        async with fenced_transaction(pool, lease_of(seen)):
            pass


@pytest.mark.parametrize("token", [7, 0])
async def test_the_fence_leaves_a_newer_grant_alone_and_waits_for_none_of_its_writers(
    pool: asyncpg.Pool[Any], token: int
) -> None:
    fence, seen, newer = PostgresFence(pool, grace=timedelta(milliseconds=50)), grant_of(7), grant_of(8)
    await fence.seal(seen, within=SOON)
    await fence.seal(newer, within=SOON)
    expected = Grant(seen.resource, seen.id, Token(token), "", "", 0)
    async with fenced_transaction(pool, lease_of(newer)) as conn:
        assert await fence.break_grant(expected, reason="stuck", within=SOON) == Outrun(Token(8))
        await asyncio.sleep(0.3)  # six times the grace: its session would have been ended
        await conn.execute("select 1")
    assert await _row(pool) == (8, True)
    assert await pool.fetchval("select count(*) from lockguard.audit") == 0


async def test_the_fence_shuts_out_a_grant_that_has_not_sealed_yet(pool: asyncpg.Pool[Any]) -> None:
    fence = PostgresFence(pool)
    now_us = int(SYSTEM_CLOCK.wall() * 1e6)
    seen = grant_of(now_us + 60_000_000)  # of a Redis whose clock is ahead
    await fence.seal(grant_of(now_us - 1), within=SOON)
    token = await fence.break_grant(seen, reason="stuck", within=SOON)
    assert not isinstance(token, Outrun)
    assert token > seen.token
    assert await fence.seal(seen, within=SOON) == Outrun(token)
    successor = grant_of(token + 1)
    assert await fence.seal(successor, within=SOON) == Sealed(successor.token)


async def test_a_break_of_one_grant_ends_the_session_that_keeps_it_waiting(pool: asyncpg.Pool[Any]) -> None:
    fence, seen = PostgresFence(pool, grace=timedelta(milliseconds=50)), grant_of(7)
    await fence.seal(seen, within=SOON)
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        async with pool.acquire() as conn:
            await conn.execute("begin")
            await conn.execute("select lockguard.check($1, 7, $2)", APT, seen.id)
            assert not isinstance(await fence.break_grant(seen, reason="stuck", within=SOON), Outrun)
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await conn.execute("select 1")


class _Older:
    """A fence of the user's own, from before grants could be compared."""

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed:
        return Sealed(grant.token)

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        pass

    async def break_(self, resource: str, *, reason: str, within: timedelta) -> Token:
        return Token(1)


async def test_a_fence_that_cannot_compare_is_told_and_is_broken_without_a_grant(redis_url: str) -> None:
    async with LockGuard.from_url(redis_url, fence=_Older(), observers=[]) as guard:
        with pytest.raises(ConfigurationError, match="_Older cannot compare grants"):
            await guard.break_(APT, reason="x", grant=new_grant_id())
        with pytest.raises(ConfigurationError, match="no grant's id"):
            await guard.break_(APT, reason="x", grant="<script>")
        assert (await guard.break_(APT, reason="x")).grant == ""


class _SealsLate(PostgresFence):
    """Seals once the fence was broken, as a process that was paused between Redis and Postgres."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        super().__init__(pool)
        self.may_seal = asyncio.Event()

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        await self.may_seal.wait()
        return await super().seal(grant, within=within)


class _BreaksSlowly(PostgresFence):
    """Lets ``meanwhile`` happen between the fence and Redis, as where the operator is paused there."""

    def __init__(self, pool: asyncpg.Pool[Any], meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__(pool)
        self._meanwhile = meanwhile

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        token = await super().break_(resource, reason=reason, within=within)
        await self._meanwhile()
        return token

    async def break_grant(self, grant: Grant, *, reason: str, within: timedelta) -> Token | Outrun:
        answer = await super().break_grant(grant, reason=reason, within=within)
        await self._meanwhile()
        return answer


@pytest.mark.parametrize("lost", ["", "its token with it"])
@pytest.mark.parametrize("compared", [False, True], ids=["whoever has it", "the grant that was seen"])
async def test_a_break_shuts_out_who_sealed_while_it_was_under_way_though_the_lock_has_run_out(
    pool: asyncpg.Pool[Any], redis_url: str, compared: bool, lost: str
) -> None:
    leases: asyncio.Queue[Lease] = asyncio.Queue()
    accepted: list[Lease] = []
    may_write, fence = asyncio.Event(), _SealsLate(pool)
    client = redis.Redis.from_url(redis_url)
    lock = f"lockguard:{{{APT}}}"

    async def hold(guard: LockGuard) -> None:
        async with guard.hold(APT) as lease:
            leases.put_nowait(lease)
            await may_write.wait()
            async with fenced_transaction(pool, lease):
                accepted.append(lease)

    async def seals_and_loses_its_lock() -> None:
        if not fence.may_seal.is_set():
            fence.may_seal.set()
            await leases.get()
            client.delete(lock)
            if lost:
                client.delete(f"{lock}:token")

    async with (
        LockGuard.from_url(redis_url, fence=fence, observers=[]) as holder,
        LockGuard.from_url(
            redis_url, fence=_BreaksSlowly(pool, seals_and_loses_its_lock), observers=[]
        ) as operator,
    ):
        holding = asyncio.create_task(hold(holder))
        while not (grant := client.hget(lock, "grant")):
            await asyncio.sleep(0.01)
        expected = {"grant": str(grant, "ascii")} if compared else {}
        await asyncio.wait_for(operator.break_(APT, reason="stuck", **expected), 10)
        may_write.set()
        with pytest.raises((LeaseLost, StaleToken)):
            await asyncio.wait_for(holding, 10)
        assert not accepted
        async with asyncio.timeout(10), holder.hold(APT) as successor, fenced_transaction(pool, successor):
            pass


async def test_a_break_that_nobody_got_into_is_one_row_of_the_audit_and_one_line_of_the_history(
    pool: asyncpg.Pool[Any], redis_url: str
) -> None:
    delay = timedelta(seconds=30)
    async with LockGuard.from_url(
        redis_url, fence=PostgresFence(pool), lock_delay=delay, observers=[]
    ) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(APT, at_least=2 * delay):
                await guard.break_(APT, reason="stuck")
                await asyncio.Event().wait()
        assert await pool.fetchval("select count(*) from lockguard.audit where action = 'break'") == 1
        await guard.break_(APT, reason="again")  # only the lock delay is left, and goes on
        assert [one.event for one in await guard.history(APT)] == ["broken", "granted"]


# From the command line


class Typed:
    """A command at a terminal."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._arguments, self._environment, self._text = arguments, environment, ""

    async def __aenter__(self) -> Self:
        self._ours, theirs = pty.openpty()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "lockguard", *self._arguments),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "COLUMNS": "300", **self._environment},
        )
        os.close(theirs)
        return self

    async def __aexit__(self, *_: object) -> None:
        signal_child(self._process, signal.SIGKILL)
        await self._process.wait()
        os.close(self._ours)

    async def until(self, what: str) -> str:
        """All that it has written, once that contains ``what``."""
        while what not in self._text:
            self._text += (await asyncio.to_thread(os.read, self._ours, 4096)).decode()
        return self._text

    async def end(self, answer: str) -> tuple[int, str]:
        """Type the answer; gives exit code and what it wrote after the question."""
        before = len(self._text)
        os.write(self._ours, answer.encode())
        with contextlib.suppress(OSError):  # its end
            while part := await asyncio.to_thread(os.read, self._ours, 4096):
                self._text += part.decode()
        return await self._process.wait(), " ".join(self._text[before:].split())


async def test_a_lock_that_changes_hands_while_the_operator_reads_is_not_broken(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any]
) -> None:
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
        arguments = ("break", APT, "--reason", "stuck", "--redis", redis_url, "--database", database_url)
        async with Typed(*arguments) as typed:
            async with guard.hold(APT, operation="open [/x]"):
                question = await typed.until("Break it?")
            assert "(open [/x])" in question
            async with guard.hold(APT, operation="close") as lease:
                code, told = await typed.end("y\n")
                assert code == 1
                assert f"has changed hands and was not broken: {lease.grant.holder} holds it now" in told
                await lease.confirm()
                assert await PostgresFence(pool).confirm(lease.grant, within=SOON)


async def test_a_lock_that_is_taken_while_the_operator_reads_that_it_is_free_is_not_broken(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any]
) -> None:
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
        arguments = ("break", APT, "--reason", "stuck", "--redis", redis_url, "--database", database_url)
        async with Typed(*arguments) as typed:
            await typed.until("is free in Redis; what an earlier holder still writes would be refused. Break")
            async with guard.hold(APT) as lease:
                code, told = await typed.end("y\n")
                assert (code, "has changed hands" in told) == (1, True)
                await lease.confirm()


async def test_a_script_names_the_grant_and_is_not_asked(redis_url: str) -> None:
    options = ("break", APT, "--reason", "x", "--no-fence", "--redis", redis_url)
    async with LockGuard.from_url(redis_url) as guard:
        async with guard.hold(APT) as lease:
            code, out, err = await lockguard(*options, "--grant", new_grant_id())
            assert (code, out) == (1, "")
            assert f"{lease.grant.holder} holds it now, with grant {lease.grant.id}" in err
            await lease.confirm()
        with pytest.raises(LeaseLost):
            async with guard.hold(APT) as lease:
                breaking = asyncio.create_task(lockguard(*options, "--grant", lease.grant.id))
                await asyncio.Event().wait()
        code, out, err = await breaking
        assert (code, err) == (0, "")
        assert f"{APT} was broken; {lease.grant.holder} held it in Redis\nIt is free now" in out
        (line,) = [one for one in await guard.history(APT) if one.event == "broken"]
        assert "@" in line.reason
        assert line.reason.endswith(": x")
    code, _, err = await lockguard(*options, "--grant", "nonsense")
    assert (code, err.count("\n")) == (2, 1)
    assert "32 hexadecimal digits" in err


async def test_without_redis_the_grant_that_the_fence_knows_is_broken_and_no_newer_one(
    database_url: str, pool: asyncpg.Pool[Any]
) -> None:
    with RedisServer() as server:
        url = server.url
    fence, seen = PostgresFence(pool), grant_of(7, holder="vm:12/stuck")
    await fence.seal(seen, within=SOON)
    options = ("break", APT, "--reason", "x", "--redis", url, "--database", database_url)
    code, out, err = await lockguard(*options, "--grant", new_grant_id())
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "was not broken: the fence knows another grant by now, with token 7" in err
    assert await _row(pool) == (7, True)
    async with Typed(*options) as typed:
        question = await typed.until("Break it?")
        assert "The fence accepts what vm:12/stuck (open) writes" in question
        code, told = await typed.end("y\n")
    assert (code, "was broken in the fence only" in told) == (1, True)
    assert not (await _row(pool))[1]


async def test_a_quorum_with_one_server_dead_is_broken_and_said_to_be_free_only_by_a_majority() -> None:
    with IndependentRedis(3) as servers:
        urls = servers.urls
        options = ("break", APT, "--reason", "x", "--no-fence", "--yes")
        async with LockGuard.from_urls(urls) as guard:
            breaking = None
            with pytest.raises(LeaseLost):
                async with guard.hold(APT):
                    servers.servers[0].kill()
                    breaking = asyncio.create_task(lockguard(*options, LOCKGUARD_REDIS_URL=" ".join(urls)))
                    await asyncio.Event().wait()
            code, out, err = await breaking
            assert (code, err) == (0, ""), err
            assert "It is free now" in out
            async with guard.hold(APT, wait=timedelta(seconds=5)) as lease:
                servers.servers[1].kill()
                code, out, err = await lockguard(*options, LOCKGUARD_REDIS_URL=" ".join(urls))
                assert (code, out) == (1, "")
                assert "free" not in err
                with contextlib.suppress(LeaseLost):
                    lease.ensure()


async def test_a_holder_is_asked_and_the_command_tells_that_it_ended(redis_url: str) -> None:
    options = ("ask", APT, "--reason", "deploy", "--redis", redis_url)
    async with LockGuard.from_url(redis_url, ttl=timedelta(seconds=1)) as guard:
        code, out, err = await lockguard(*options, "--wait", "5s")
        assert (code, out, err) == (0, f"{APT} is free: there is no holder to ask\n", "")
        async with guard.hold(APT, operation="open long") as lease:
            for _ in range(2):
                code, out, _ = await lockguard(*options)
                assert code == 0
                assert out.startswith(f"{lease.grant.holder} (open long) was asked to hand {APT} over")
            asked = [one for one in await guard.history(APT) if one.event == "asked"]
            assert [one.reason.partition(": ")[2] for one in asked] == ["deploy"]
            code, out, err = await lockguard(*options, "--wait", "0s")
            assert (code, err) == (1, f"lockguard: {APT} is still held by {lease.grant.holder} after 0 s\n")
        async with guard.hold(APT) as lease:
            waiting = asyncio.create_task(lockguard(*options, "--wait", "30s"))
            while not lease.wanted:
                await asyncio.sleep(0.02)
        code, out, err = await waiting
        assert (code, err) == (0, "")
        assert f"{APT} was freed after " in out


@pytest.mark.parametrize("broken", [True, False])
async def test_a_lease_that_its_holder_did_not_release_is_no_hand_over(
    redis_url: str, *, broken: bool
) -> None:
    options = ("ask", APT, "--reason", "deploy", "--redis", redis_url, "--wait", "30s")
    async with LockGuard.from_url(redis_url, ttl=timedelta(seconds=1)) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(APT) as lease:
                waiting = asyncio.create_task(lockguard(*options))
                while not lease.wanted:
                    await asyncio.sleep(0.02)
                if broken:
                    await guard.break_(APT, reason="hangs")
                else:
                    with redis.Redis.from_url(redis_url) as client:
                        client.delete(f"lockguard:{{{APT}}}")
                await asyncio.Event().wait()
        code, out, err = await waiting
    assert (code, err) == (0, "")
    told = (
        "was broken after" if broken else "was not released: the lease expired, or its key was deleted, after"
    )
    assert f"{APT} {told} " in out
    assert "freed" not in out


async def test_a_break_of_what_is_free_does_not_say_that_it_broke_a_lock(redis_url: str) -> None:
    code, out, _ = await lockguard("break", APT, "--reason", "x", "--no-fence", "--yes", "--redis", redis_url)
    assert (code, out.splitlines()[0]) == (0, f"{APT} was free in Redis: there was no lock to break")
