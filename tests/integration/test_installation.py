"""What an installation's servers tell an operator, with one of them down too; real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import redis

from lockguard import ChangedHands, LeaseLost, LockGuard
from lockguard._cli.servers import Servers
from lockguard._records import FenceStanding
from lockguard.ports import Inspection
from lockguard_asyncpg import PostgresFence, install
from lockguard_lab.servers import PostgresServer, RedisServer
from lockguard_ops import _exporter_catalog as the
from lockguard_ops import _installation
from lockguard_ops._figures import Figures
from lockguard_ops._installation import Installation
from lockguard_ops._top._lines import faults
from lockguard_ops._top._seen import Seen
from lockguard_ops._top._writing import Writing
from lockguard_ops._web._seen import Seen as WebSeen
from lockguard_ops._web._seen import View
from lockguard_positions._schema import migrate

APT, ETH = "binance:APTUSDT", "binance:ETHUSDT"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    """To a database with the fence and the positions' tables."""
    async with asyncpg.create_pool(database_url, min_size=1) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
        yield pool


@pytest.fixture
async def bot(redis_url: str, pool: asyncpg.Pool[Any]) -> AsyncIterator[LockGuard]:
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool), observers=[]) as guard:
        yield guard


@pytest.fixture
def servers(redis_url: str, database_url: str) -> Servers:
    return Servers.read([redis_url], database_url)


async def test_it_tells_locks_and_their_fences(bot: LockGuard, servers: Servers) -> None:
    async with Installation(servers) as installation, bot.hold(ETH, operation="sync"):
        async with bot.hold(APT, operation="open long") as lease:
            told = await installation.snapshot()
            assert (told.redis_fault, told.database_fault) == ("", "")
            assert [view.lock.resource for view in told.locks] == [ETH, APT]  # the oldest first
            apt = told.locks[1]
            assert (apt.lock.operation, apt.lock.token) == ("open long", lease.token)
            assert (apt.fence, apt.fence_token) == (FenceStanding.OPEN, lease.token)
            assert [v.lock.resource for v in (await installation.snapshot("*ETH*")).locks] == [ETH]
        assert (await installation.show(APT)).fence is FenceStanding.CLOSED
        assert [view.lock.resource for view in (await installation.snapshot()).locks] == [ETH]


async def test_a_break_ends_the_holder_and_its_fence(bot: LockGuard, servers: Servers) -> None:
    async with Installation(servers) as installation:
        with pytest.raises(LeaseLost, match="broken"):
            async with bot.hold(APT, operation="open long"):
                seen = (await installation.snapshot()).locks[0].lock.grant
                assert (await installation.break_(APT, grant=seen, reason="it hangs")).grant == seen
                await asyncio.Event().wait()
        shown = await installation.show(APT)
        assert (shown.lock.held, shown.fence) == (False, FenceStanding.CLOSED)
        assert await installation.ask(APT, grant=seen, reason="free already") is False
        story = [line.event for line in await installation.story(APT)]
        assert [event for event in story if event in ("granted", "broken", "break")] == [
            "granted",
            "break",
            "broken",
        ]


async def test_a_lock_that_changed_hands_is_not_broken(bot: LockGuard, servers: Servers) -> None:
    async with Installation(servers) as installation:
        async with bot.hold(APT):
            seen = (await installation.snapshot()).locks[0].lock.grant
        async with bot.hold(APT) as second:
            with pytest.raises(ChangedHands):
                await installation.break_(APT, grant=seen, reason="it hangs")
            assert (await installation.show(APT)).lock.token == second.token


async def test_it_tells_positions_and_how_long_they_have_no_stop(
    servers: Servers, pool: asyncpg.Pool[Any]
) -> None:
    async def row(status: str, symbol: str, **facts: Any) -> int:
        names = "".join(f", {name}" for name in facts)
        values = "".join(f", ${number}" for number in range(3, len(facts) + 3))
        found: int = await pool.fetchval(
            "insert into monitoring.positions (exchange, symbol, side, quantity, status"
            f"{names}) values ('binance', $1, 'long', 1, $2{values}) returning id",
            *(symbol, status, *facts.values()),
        )
        return found

    async def stop(position: int, symbol: str, number: int, age: timedelta, outcome: str | None) -> None:
        await pool.execute(
            "insert into monitoring.position_intents (exchange, symbol, number, position_id, step, client_id,"
            " side, amount, token, recorded_at, settled_at, outcome) values ('binance', $1, $2, $3, 'stop',"
            " 'x', 'sell', 1, 1, $4, case when $5::text is not null then now() end, $5)",
            *(symbol, number, position, now - age, outcome),
        )

    now = datetime.now(UTC)
    hour, minute = timedelta(hours=1), timedelta(minutes=1)
    await row("pending_entry", "A")
    bare = await row("entry_placed", "B", opened_at=now - minute)
    once = await row("pending_entry", "C")
    await pool.execute(
        "update monitoring.positions set status = 'pending_sl', opened_at = $1 where id = $2",
        now - hour,
        once,
    )
    await stop(once, "C", 1, hour, "executed")
    await stop(once, "C", 2, 2 * minute, None)
    await pool.execute("update monitoring.positions set current_price = 2")  # a tick is no news of a stop
    async with Installation(servers) as installation:
        told = await installation.snapshot()
    assert told.positions is not None
    assert {p.symbol: p.status for p in told.without_stop} == {
        "A": "pending_entry",
        "B": "entry_placed",
        "C": "pending_sl",
    }
    since = {p.symbol: p.since for p in told.positions}
    assert since["B"] == now - minute, bare
    assert since["C"] == now - 2 * minute


async def test_what_one_server_says_is_told_while_the_other_is_down(
    database_url: str, pool: asyncpg.Pool[Any]
) -> None:
    with RedisServer() as redis:
        async with (
            LockGuard.from_url(redis.url, fence=PostgresFence(pool), observers=[]) as bot,
            Installation(Servers.read([redis.url], database_url)) as installation,
        ):
            async with bot.hold(APT):
                pass
            await asyncio.to_thread(redis.kill)
            told = await installation.snapshot()
            assert told.locks == ()
            assert "connect" in told.redis_fault.lower()
            assert (told.positions, told.database_fault) == ((), "")
            await asyncio.to_thread(redis.restart)
            while (told := await installation.snapshot()).redis_fault:
                await asyncio.sleep(0.05)


async def test_locks_are_told_while_the_database_is_down(redis_url: str) -> None:
    with PostgresServer() as postgres:
        url = postgres.create_database("trading")
        async with LockGuard.from_url(redis_url, observers=[]) as bot, bot.hold(APT):
            async with Installation(Servers.read([redis_url], url)) as installation:
                told = await installation.snapshot()
                assert "schema" in told.database_fault or "lockguard" in told.database_fault
                await asyncio.to_thread(postgres.kill)
                told = await installation.snapshot()
    assert [view.lock.resource for view in told.locks] == [APT]
    assert told.database_fault
    assert postgres.password not in told.database_fault


async def test_without_a_database_there_is_no_fault(redis_url: str) -> None:
    async with Installation(Servers.read([redis_url])) as installation:
        told = await installation.snapshot()
    assert (told.locks, told.refusals, told.positions, told.database_fault) == ((), (), None, "")


async def test_a_database_that_hangs_is_told_in_time_and_read_again_when_it_goes_on(redis_url: str) -> None:
    with PostgresServer() as server:
        async with asyncpg.create_pool(server.url, min_size=1) as pool:
            async with pool.acquire() as conn:
                await install(conn)
            async with (
                LockGuard.from_url(redis_url, fence=PostgresFence(pool), observers=[]) as bot,
                Installation(Servers.read([redis_url], server.url)) as installation,
                bot.hold(APT),
            ):
                assert (await installation.snapshot()).database_fault == ""
                server.pause()
                told = await asyncio.wait_for(installation.snapshot(), 20)
                assert [view.lock.resource for view in told.locks] == [APT]
                assert told.database_fault == "no answer within 5 s"
                story = await asyncio.wait_for(installation.story(APT), 20)
                assert [line.event for line in story] == ["granted"]
                server.resume()
                told = await installation.snapshot()
                assert (told.database_fault, told.locks[0].fence) == ("", FenceStanding.OPEN)


async def test_it_ends_while_its_database_hangs(redis_url: str) -> None:
    with PostgresServer() as server:
        async with asyncio.timeout(20):
            async with Installation(Servers.read([redis_url], server.url)) as installation:
                await installation.snapshot()
                server.pause()
        server.resume()


async def test_it_breaks_the_grant_that_was_seen_and_no_other(bot: LockGuard, servers: Servers) -> None:
    async with Installation(servers) as installation:
        async with bot.hold(APT):
            seen = (await installation.show(APT)).lock.grant
        with pytest.raises(LeaseLost):
            async with bot.hold(APT) as lease:
                with pytest.raises(ChangedHands):
                    await installation.break_(APT, grant=seen, reason="it hangs")
                now = await installation.show(APT)
                assert (now.fence, lease.token) == (FenceStanding.OPEN, now.lock.token)
                await lease.confirm()
                broken = await installation.break_(APT, grant=now.lock.grant, reason="it hangs")
                assert broken.grant == now.lock.grant
                assert (await installation.show(APT)).lock.held is False
                await lease.confirm()


async def test_it_asks_the_holder_for_a_hand_over(bot: LockGuard, servers: Servers) -> None:
    async with Installation(servers) as installation:
        assert not await installation.ask(APT, grant="", reason="maintenance")
        async with bot.hold(APT) as lease:
            assert await installation.ask(APT, grant=lease.grant.id, reason="maintenance")
            assert (await installation.show(APT)).lock.wanted == "maintenance"


async def test_many_locks_may_take_longer_to_read_than_a_server_to_answer(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_installation, "_WITHIN_S", 0.5)
    async with Installation(Servers.read([redis_url])) as installation:
        lock = (await installation.show(APT)).lock

        async def list_slowly(_: LockGuard, pattern: str) -> AsyncIterator[Inspection]:
            for _ in range(6):
                await asyncio.sleep(0.2)  # a slow server
                yield lock

        monkeypatch.setattr(LockGuard, "list", list_slowly)
        told = await installation.snapshot()
        assert (len(told.locks), told.redis_fault) == (6, "")


async def test_the_url_of_a_bot_behind_a_pooler_is_read_as_the_bot_reads_it(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any]
) -> None:
    url = f"{database_url}?statement_cache_size=0"
    async with Installation(Servers.read([redis_url], url)) as installation:
        assert (await installation.snapshot()).database_fault == ""


async def test_a_key_that_another_program_wrote_hides_no_other_lock(
    bot: LockGuard, servers: Servers, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"lockguard:{{{ETH}}}", "a text")
    async with Installation(servers) as installation, bot.hold(APT, operation="[/x]"):
        told = await installation.snapshot()
        figures = await Figures(installation).read()
    assert [view.lock.resource for view in told.locks] == [APT]
    assert told.redis_fault == ""
    assert ETH in told.unread
    assert ETH in faults(Seen().after(told), Writing("utf-8"), now=told.at).plain
    assert WebSeen.of(told, None).told(View())["unread"] == told.unread
    assert figures.values[the.UP] == {(): 1.0}
    assert (the.FENCES_LEFT_OPEN in figures.values, list(figures.troubles)) == (False, ["locks"])


async def test_locks_of_nearly_the_same_age_keep_their_places(bot: LockGuard, servers: Servers) -> None:
    names = [f"binance:{number:03}" for number in range(60)]
    async with Installation(servers) as installation, AsyncExitStack() as stack:
        for name in reversed(names):
            await stack.enter_async_context(bot.hold(name))
        orders = {
            tuple(view.lock.acquired_at_ms for view in (await installation.snapshot()).locks)
            for _ in range(5)
        }
    assert len(orders) == 1
    (order,) = orders
    assert order == tuple(sorted(order))
    assert len(order) == len(names)
