"""An order is made ready while its intent is being committed. It leaves after the commit, or never."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import ccxt.async_support as ccxt_async
import pytest

from lockguard import LeaseLost, LockGuard, ResourceBusy, StaleToken, detached
from lockguard.errors import LossReason
from lockguard.testing import FakeClock
from lockguard_asyncpg import CommitUnknown, PostgresFence, install
from lockguard_ccxt import GuardedExchange
from lockguard_ccxt import _prepared as prepared
from lockguard_ccxt._by_url import point_at
from lockguard_lab.exchange import LocalExchange, Operation, connect
from lockguard_lab.servers import FaultProxy, PostgresServer
from lockguard_positions import (
    AtomicPositionManager,
    ExchangeUnreadable,
    Opened,
    OpenResult,
    PositionStatus,
    migrate,
)
from lockguard_positions import _fenced_writes as writes_module
from lockguard_positions import _rows as rows

APT = "APT/USDT:USDT"


@dataclass
class Stage:
    manager: AtomicPositionManager
    guard: LockGuard
    exchange: LocalExchange
    client: Any
    guarded: GuardedExchange
    other: asyncpg.Connection[Any]

    def opening(self, quantity: str = "10") -> asyncio.Task[OpenResult]:
        price = self.exchange.price(APT)
        return asyncio.create_task(
            self.manager.open_position_atomic("s", APT, "binance", "long", quantity, price, "2"),
            name="opening",
        )

    @property
    def orders(self) -> int:
        record = self.exchange.record()
        return len(record.entries(APT)) + len(record.open_stops(APT))


@pytest.fixture
async def stage(redis_url: str, database_url: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=2, max_size=5))
        other = await asyncpg.connect(database_url)
        stack.push_async_callback(other.close)
        await install(other)
        await migrate(other)
        guard = LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=timedelta(seconds=5))
        await stack.enter_async_context(guard)
        exchange = await stack.enter_async_context(LocalExchange())
        client = connect(exchange.url)
        stack.push_async_callback(client.close)
        guarded = GuardedExchange(client)
        await guarded.load()
        yield Stage(AtomicPositionManager(guard, pool, [guarded]), guard, exchange, client, guarded, other)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(8):
        while not condition():
            await asyncio.sleep(0.01)


def ready(step: str) -> list[asyncio.Task[Any]]:
    """The calls of a step's orders that have begun: they have the client order id for a name."""
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(f"lg{step}-")]


async def lock_rows(conn: asyncpg.Connection[Any]) -> None:
    """Nobody's write to a row commits until this transaction ends."""
    await conn.execute("begin; lock table monitoring.positions in exclusive mode")


async def test_an_order_that_was_made_ready_does_not_leave_before_its_intent_is_committed(
    stage: Stage,
) -> None:
    await lock_rows(stage.other)
    opening = stage.opening()
    await until(lambda: bool(ready("e")))
    await until_blocked(stage.other)
    await asyncio.sleep(0.1)  # more than an order takes
    assert (stage.orders, len(ready("e"))) == (0, 1)
    await stage.other.execute("rollback")
    result = await opening
    assert isinstance(result, Opened)
    assert (stage.orders, ready("e")) == (2, [])
    assert result.position.status is PositionStatus.ACTIVE


async def test_an_open_that_is_cancelled_before_its_commit_orders_nothing_then_or_later(stage: Stage) -> None:
    await lock_rows(stage.other)
    opening = stage.opening()
    await until(lambda: bool(ready("e")))
    opening.cancel()
    with suppress(asyncio.CancelledError):
        await opening
    await stage.other.execute("rollback")
    assert (stage.orders, ready("e")) == (0, [])
    await stage.manager.recover("binance")
    assert stage.orders == 0


async def test_an_order_that_was_made_ready_does_not_leave_when_postgres_refuses_its_intent(
    stage: Stage,
) -> None:
    await lock_rows(stage.other)
    opening = stage.opening()
    await until(lambda: bool(ready("e")))
    await until_blocked(stage.other)
    await stage.other.execute("select lockguard.break_('binance:APTUSDT', 'the test', 1000)")
    await stage.other.execute("commit")
    with pytest.raises((StaleToken, LeaseLost)):
        await opening
    assert (stage.orders, ready("e")) == (0, [])


async def test_an_order_that_waited_for_long_is_made_anew_as_its_time_is_in_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(prepared, "SYSTEM_CLOCK", clock)
    made: list[str] = []
    keep = stage.client.set_last_request

    def kept(request: Any) -> None:
        made.append(str(request["url"]).partition("?")[0].rpartition("/")[2])
        keep(request)

    monkeypatch.setattr(stage.client, "set_last_request", kept)  # called with what was signed
    await lock_rows(stage.other)
    opening = stage.opening()
    await until(lambda: "order" in made)
    clock.advance(timedelta(seconds=0.6))
    await stage.other.execute("rollback")
    assert isinstance(await opening, Opened)
    assert (made.count("order"), len(stage.exchange.record().entries(APT))) == (2, 1)


async def test_an_order_that_the_table_keeps_in_fewer_digits_is_made_anew_from_the_table(
    stage: Stage,
) -> None:
    await stage.other.execute("alter table monitoring.positions alter column quantity type numeric(20, 0)")
    result = await stage.opening("10.4")
    assert isinstance(result, Opened)
    (entry,) = stage.exchange.record().entries(APT)
    assert (entry.qty, result.position.quantity) == (Decimal(10), Decimal(10))


class Paper(ccxt_async.binanceusdm):  # type: ignore[misc]
    """A paper account, as people make them: its orders never reach ``fetch``."""


@pytest.mark.parametrize(
    ("owner", "call"),
    [
        (Paper, "create_order"),
        ("the object", "create_order"),
        ("the object", "fapiPrivatePostOrder"),
        (ccxt_async.binanceusdm, "create_order"),
        (ccxt_async.binance, "create_order"),
        (ccxt_async.binanceusdm, "fapiPrivatePostOrder"),
        (GuardedExchange, "place_entry"),
    ],
)
async def test_what_sends_by_other_ways_than_fetch_is_not_begun_before_the_commit(
    stage: Stage, database_url: str, monkeypatch: pytest.MonkeyPatch, owner: Any, call: str
) -> None:
    asked: list[str] = []
    replaced: Any = stage.client if owner == "the object" else owner

    @functools.wraps(getattr(replaced, call))
    async def on_paper(*_: Any, **__: Any) -> Any:
        asked.append(call)
        raise ccxt_async.InsufficientFunds("no paper left")

    monkeypatch.setattr(replaced, call, on_paper, raising=False)
    client = stage.client
    if owner is Paper:
        client = Paper({"apiKey": client.apiKey, "secret": client.secret, "enableRateLimit": False})
        point_at(client, stage.exchange.url)
    async with asyncpg.create_pool(database_url, min_size=1, max_size=3) as pool:
        exchange = GuardedExchange(client)
        await exchange.load()
        stage.manager = AtomicPositionManager(stage.guard, pool, [exchange])
        await lock_rows(stage.other)
        opening = stage.opening()
        await until_blocked(stage.other)
        assert asked == []
        await stage.other.execute("rollback")
        with suppress(ExchangeUnreadable):
            await opening
    assert asked == [call]
    if owner is Paper:
        await client.close()


async def until_blocked(conn: asyncpg.Connection[Any]) -> None:
    """Until somebody waits for a lock that this connection has."""
    async with asyncio.timeout(8):
        while not await conn.fetchval(
            "select count(*) from pg_stat_activity where pg_backend_pid() = any(pg_blocking_pids(pid))"
        ):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("owner", "call"),
    [
        ("the object", "fapiPrivateV3GetPositionRisk"),
        (ccxt_async.binanceusdm, "fetch_positions"),
        (GuardedExchange, "holding"),
    ],
)
async def test_what_answers_by_other_ways_than_fetch_is_not_asked_what_is_held_before_the_lease(
    stage: Stage, redis_url: str, monkeypatch: pytest.MonkeyPatch, owner: Any, call: str
) -> None:
    asked: list[str] = []
    replaced: Any = stage.client if owner == "the object" else owner

    @functools.wraps(getattr(replaced, call))
    async def nothing(*_: Any, **__: Any) -> Any:
        asked.append(call)
        return None if call == "holding" else []

    monkeypatch.setattr(replaced, call, nothing, raising=False)
    async with LockGuard.from_url(redis_url) as other:
        async with other.hold("binance:APTUSDT"):
            with detached():
                opening = stage.opening()
            await until(
                lambda: any(r.operation is Operation.TICKER for r in stage.exchange.record().requests)
            )
            await asyncio.sleep(0.1)  # more than the question takes to be made
            assert asked == []
        assert isinstance(await opening, Opened)
    assert asked[0] == call


@pytest.mark.parametrize("committed", [True, False])
async def test_an_order_whose_intent_was_only_found_to_be_committed_is_placed_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The row, the fill, active: each loses its answer, done or not. What was made ready is dropped."""
    send, lost = writes_module.fenced_fetchrow, []

    async def losing(target: Any, text: str, *args: Any, **more: Any) -> Any:
        if text in lost:
            return await send(target, text, *args, **more)
        lost.append(text)
        if committed:
            await send(target, text, *args, **more)
        raise CommitUnknown(resource="binance:APTUSDT", token=1, sequence=1)

    async def resolved(*_: Any, **__: Any) -> bool:
        return committed

    monkeypatch.setattr(writes_module, "fenced_fetchrow", losing)
    monkeypatch.setattr(writes_module, "resolve", resolved)
    assert isinstance(await stage.opening(), Opened)
    record = stage.exchange.record()
    assert (len(lost), len(record.entries(APT)), len(record.open_stops(APT))) == (3, 1, 1)
    assert (ready("e"), ready("s")) == ([], [])


async def test_what_is_held_is_asked_under_the_lease_though_the_question_was_made_ready_before(
    stage: Stage, redis_url: str
) -> None:
    def asked() -> list[Operation]:
        return [request.operation for request in stage.exchange.record().requests]

    before = len(asked())
    async with LockGuard.from_url(redis_url) as other:
        async with other.hold("binance:APTUSDT"):
            with detached():
                opening = stage.opening()
            await until(lambda: Operation.TICKER in asked()[before:])
            assert Operation.POSITIONS not in asked()[before:]
        assert isinstance(await opening, Opened)
    assert asked()[before:].count(Operation.POSITIONS) == 1


async def test_an_open_that_gets_no_lease_leaves_no_question_behind(stage: Stage, redis_url: str) -> None:
    async with LockGuard.from_url(redis_url) as other, other.hold("binance:APTUSDT"):
        with detached(), pytest.raises(ResourceBusy):
            await stage.manager.open_position_atomic(
                "s", APT, "binance", "long", "10", "8.5", "2", wait=timedelta(0)
            )
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith(("price of", "what is held"))]


async def test_the_lease_is_looked_at_when_the_order_leaves_and_not_only_when_it_was_made_ready(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = GuardedExchange(stage.client)
    async with stage.guard.hold("binance:APTUSDT") as lease:
        early = exchange.prepare(
            lambda: exchange.place_entry(APT, "buy", Decimal(10), intent=1), name="lge-of the test"
        )
        assert early is not None
        made: list[str] = []
        sign = type(stage.client).sign

        def signed(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
            made.append(path)
            return sign(self, path, *args, **kwargs)

        monkeypatch.setattr(type(stage.client), "sign", signed)
        await until(lambda: "order" in made)

        def ended(*_: Any) -> None:
            raise LeaseLost("it ended", resource="binance:APTUSDT", token=1, reason=LossReason.EXPIRED)

        with monkeypatch.context() as patched:
            patched.setattr(type(lease), "ensure", ended)
            await early.send()
            with pytest.raises(LeaseLost):
                await early.outcome()
    assert stage.orders == 0


@pytest.mark.parametrize("moment", ["the row", "the fill", "the exit"])
async def test_an_answer_of_postgres_that_never_comes_keeps_no_position_from_its_stop_or_its_end(
    stage: Stage,
    postgres_server: PostgresServer,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """The pool is as asyncpg makes it, without a timeout of its own: so it waits for ever by itself."""
    monkeypatch.setattr(rows, "STATEMENT_S", 0.5)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(postgres_server.port))
        pool = await asyncpg.create_pool(proxy.url_for(database_url), min_size=1, max_size=4)
        stack.callback(pool.terminate)
        stage.manager = AtomicPositionManager(stage.guard, pool, [stage.guarded])
        if moment == "the exit":
            assert isinstance(await stage.opening(), Opened)
            doing: asyncio.Task[Any] = asyncio.create_task(stage.manager.close_position(APT, "binance"))
            stage.exchange.set_latency(timedelta(milliseconds=200))  # the stop's end is on its way to the bot
            await until(lambda: not stage.exchange.record().open_stops(APT))
        else:
            doing = stage.opening()
            while not ready("e" if moment == "the row" else "s"):
                await asyncio.sleep(0)
        proxy.forget()  # as a NAT does: what is open now is silent for good, and new connections work
        async with asyncio.timeout(9):
            await doing
    record = stage.exchange.record()
    standing = moment != "the exit"
    assert (len(record.entries(APT)), len(record.open_stops(APT))) == (1, 1 if standing else 0)
    statuses = await stage.other.fetch("select status from monitoring.positions")
    assert [row["status"] for row in statuses] == ["active" if standing else "closed"]
