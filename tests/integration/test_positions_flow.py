"""The flow on real servers and the original ccxt: each hazard ends well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from lockguard import LeaseLost, LockGuard, ResourceBusy, StaleToken
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import PostgresFence, install
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_lab.exchange import Execution, Fault, FaultKind, LocalExchange, Operation, connect
from lockguard_positions import (
    Alert,
    AlreadyOpen,
    AtomicPositionManager,
    ExchangeUnreadable,
    Moved,
    NotOpened,
    Opened,
    OpenResult,
    Pace,
    PositionEvent,
    PositionStatus,
    SyncAction,
    migrate,
)

APT = "APT/USDT:USDT"
MS = timedelta(milliseconds=1)
PACE = Pace(settle=2000 * MS, poll=20 * MS, stop_deadline=1000 * MS, retry_pause=20 * MS, grace=0 * MS)


class Watch:
    """Everything that the manager told."""

    def __init__(self) -> None:
        self.events: list[PositionEvent] = []

    def on(self, event: PositionEvent) -> None:
        self.events.append(event)

    @property
    def path(self) -> list[str]:
        return [event.position.status.value for event in self.events if isinstance(event, Moved)]

    @property
    def alerts(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Alert)]


@dataclass
class Bot:
    manager: AtomicPositionManager
    guard: LockGuard
    pool: asyncpg.Pool[Any]
    exchange: LocalExchange
    client: Any
    watch: Watch

    async def open(self, symbol: str = APT, side: str = "long", quantity: str = "10") -> OpenResult:
        price = self.exchange.price(symbol)
        return await self.manager.open_position_atomic("s", symbol, "binance", side, quantity, price, "2")

    async def sync(self) -> dict[str, SyncAction]:
        report = await self.manager.sync_exchange_positions("binance")
        return {outcome.symbol: outcome.action for outcome in report.outcomes}

    async def rows(self, symbol: str = "APTUSDT") -> list[asyncpg.Record]:
        return await self.pool.fetch(
            "select * from monitoring.positions where symbol = $1 order by id", symbol
        )

    def fault(self, kind: FaultKind, operation: Operation, **more: Any) -> None:
        self.exchange.inject(Fault(kind, operation, **more))

    def is_sound(self, symbol: str = APT) -> bool:
        """A position with one stop, or neither."""
        record = self.exchange.record()
        stops = record.open_stops(symbol)
        return len(stops) == (1 if record.position(symbol) else 0)


async def make_bot(stack: AsyncExitStack, redis_url: str, database_url: str, exchange: LocalExchange) -> Bot:
    pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=10))
    guard = await stack.enter_async_context(
        LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=timedelta(seconds=3))
    )
    client = connect(exchange.url, config={"options": {"recvWindow": 1000}})
    stack.push_async_callback(client.close)
    guarded = GuardedExchange(client, patience=Patience(needed=100 * MS, search=300 * MS, poll=20 * MS))
    await guarded.load()
    # The client keeps ccxt's own timeout: with a shorter one, a machine that is merely slow loses answers.
    watch = Watch()
    manager = AtomicPositionManager(guard, pool, [guarded], pace=PACE, observers=[watch])
    return Bot(manager, guard, pool, exchange, client, watch)


@pytest.fixture
async def two_bots(redis_url: str, database_url: str) -> AsyncIterator[tuple[Bot, Bot]]:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await migrate(conn)
    await conn.close()
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        yield (
            await make_bot(stack, redis_url, database_url, exchange),
            await make_bot(stack, redis_url, database_url, exchange),
        )


@pytest.fixture
def bot(two_bots: tuple[Bot, Bot]) -> Bot:
    return two_bots[0]


# --- open ---


async def test_an_open_leaves_one_position_one_stop_and_one_row(bot: Bot) -> None:
    result = await bot.open()
    assert isinstance(result, Opened)
    assert bot.watch.path == ["pending_entry", "entry_placed", "pending_sl", "active"]
    (row,) = await bot.rows()
    record = bot.exchange.record()
    (entry,), (stop,) = record.entries(APT), record.open_stops(APT)
    assert (row["status"], row["entry_client_id"], row["stop_client_id"]) == (
        "active",
        entry.client_id,
        stop.client_id,
    )
    assert (stop.trigger, stop.qty, stop.reduce_only) == (Decimal("8.33"), Decimal(10), True)
    assert row["token"] == await bot.pool.fetchval("select token from lockguard.status('binance:APTUSDT')")


async def test_a_short_position_has_its_stop_above(bot: Bot) -> None:
    assert isinstance(await bot.open(side="sell"), Opened)
    record = bot.exchange.record()
    assert record.position(APT) == Decimal(-10)
    assert record.open_stops(APT)[0].trigger == Decimal("8.67")


async def test_a_second_open_returns_the_first_ones_row_and_orders_nothing(bot: Bot) -> None:
    first = await bot.open()
    again = await bot.open("APTUSDT", side="short")
    assert isinstance(first, Opened)
    assert isinstance(again, AlreadyOpen)
    assert again.position.id == first.position.id
    assert len(bot.exchange.record().orders) == 1


async def test_two_bots_that_open_at_once_make_one_position(two_bots: tuple[Bot, Bot]) -> None:
    one, two = two_bots
    results = await asyncio.gather(one.open(), two.open("APTUSDT"))
    assert sorted(type(result).__name__ for result in results) == ["AlreadyOpen", "Opened"]
    assert len(one.exchange.record().entries(APT)) == 1
    assert len(await one.rows()) == 1


async def test_whoever_finds_a_symbol_busy_is_told_by_whom(two_bots: tuple[Bot, Bot]) -> None:
    one, two = two_bots
    async with one.guard.hold("binance:APTUSDT", operation="open long"):
        with pytest.raises(ResourceBusy) as caught:
            await two.manager.open_position_atomic(
                "s", APT, "binance", "long", "10", "8.5", "2", wait=timedelta(0)
            )
        assert caught.value.operation == "open long"
        assert await two.sync() == {}
    assert await one.rows() == []


async def test_twenty_five_opens_at_once_all_succeed(bot: Bot) -> None:
    symbols = bot.exchange.symbols[:25]
    quantities = {s: str(round(Decimal(2000) / bot.exchange.price(s))) for s in symbols}
    quantities = {s: q if q != "0" else "0.1" for s, q in quantities.items()}
    results = await asyncio.gather(*(bot.open(s, quantity=quantities[s]) for s in symbols))
    assert [type(result).__name__ for result in results] == ["Opened"] * 25
    assert bot.exchange.record().without_stop() == ()


@pytest.mark.parametrize(
    ("symbol", "quantity", "told"),
    [
        (APT, "0.01", "below the smallest"),
        (APT, "0.5", "smallest order"),
        (APT, "99999999", "above the largest"),
    ],
)
async def test_what_the_exchange_would_not_take_is_refused_before_any_order(
    bot: Bot, symbol: str, quantity: str, told: str
) -> None:
    result = await bot.open(symbol, quantity=quantity)
    assert isinstance(result, NotOpened)
    assert told in result.reason
    assert not result.in_doubt
    (row,) = await bot.rows()
    assert row["status"] == "failed"
    assert told in row["error_details"]
    assert bot.exchange.record().orders == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"symbol": "NOPE/USDT:USDT"}, "NOPE"),
        ({"side": "up"}, "'up'"),
        ({"quantity": "-1"}, "quantity=-1"),
        ({"exchange": "kraken"}, "'kraken'"),
        ({"stop_loss_percent": "100"}, "stop_loss_percent=100"),
        ({"symbol": None}, "symbol is None"),
        ({"side": None}, "side is None"),
        ({"exchange": None}, "exchange is None"),
        ({"signal": 7}, "signal is an int"),
        ({"signal": "a\0b"}, "signal='a"),
    ],
)
async def test_an_argument_that_cannot_work_is_named_and_nothing_is_written(
    bot: Bot, change: dict[str, Any], told: str
) -> None:
    arguments = {
        "signal": "s",
        "symbol": APT,
        "exchange": "binance",
        "side": "long",
        "quantity": "10",
        "entry_price": "8.5",
        "stop_loss_percent": "2",
    }
    with pytest.raises(ConfigurationError, match=told):
        await bot.manager.open_position_atomic(**{**arguments, **change})
    assert await bot.pool.fetchval("select count(*) from monitoring.positions") == 0


@pytest.mark.parametrize("reason", [None, 7])
async def test_a_close_whose_reason_is_no_text_is_refused_by_name(bot: Bot, reason: Any) -> None:
    """``None`` was taken for the reason of an exit begun before, and the person's word went unheard."""
    assert isinstance(await bot.open(), Opened)
    with pytest.raises(ConfigurationError, match=r"^reason is"):
        await bot.manager.close_position(APT, "binance", reason=reason)


@pytest.mark.parametrize("reason", ["", "line\nline", "a\0b", "\ud800", "x" * 10_000])
async def test_a_close_is_carried_out_whatever_its_reason_says(bot: Bot, reason: str) -> None:
    """It may be an error's text. Postgres takes no zero byte."""
    assert isinstance(await bot.open(), Opened)
    row = await bot.manager.close_position(APT, "binance", reason=reason)
    assert row is not None
    assert row.status is PositionStatus.CLOSED


# --- answers that are lost, orders that are refused ---


def lose_patience_with_orders(bot: Bot) -> None:
    """Have the client give up on an order that is not answered soon; a slow read fails for no such reason."""
    create, patient = bot.client.create_order, bot.client.timeout

    async def impatient(*args: Any, **kwargs: Any) -> Any:
        bot.client.timeout = 500  # ms
        try:
            return await create(*args, **kwargs)
        finally:
            bot.client.timeout = patient

    bot.client.create_order = impatient


@pytest.mark.parametrize(
    "kind",
    [FaultKind.DISCONNECT, FaultKind.TRUNCATED, FaultKind.UNAVAILABLE, FaultKind.TIMEOUT, FaultKind.HANG],
)
@pytest.mark.parametrize("operation", [Operation.CREATE_ORDER, Operation.CREATE_ALGO])
async def test_an_order_whose_answer_was_lost_is_found_and_not_repeated(
    bot: Bot, kind: FaultKind, operation: Operation
) -> None:
    if kind is FaultKind.HANG:
        lose_patience_with_orders(bot)
    bot.fault(kind, operation, execution=Execution.FIRST, hold_ms=60_000)
    assert isinstance(await bot.open(), Opened)
    record = bot.exchange.record()
    assert len(record.entries(APT)) == 1
    assert len(record.open_stops(APT)) == 1


async def test_an_entry_that_was_never_carried_out_stays_in_doubt_until_it_is_certain(bot: Bot) -> None:
    bot.fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER)
    result = await bot.open()
    assert isinstance(result, NotOpened)
    assert result.in_doubt
    assert isinstance(await bot.open(), AlreadyOpen)
    async with asyncio.timeout(10):
        while (await bot.sync()).get("APTUSDT") is not SyncAction.ENDED:
            await asyncio.sleep(0.1)
    (row,) = await bot.rows()
    assert row["status"] == "canceled"
    assert isinstance(await bot.open(), Opened)


async def test_an_entry_that_arrives_late_is_found_and_gets_its_stop(bot: Bot) -> None:
    bot.fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, execution=Execution.LATE, hold_ms=600)
    result = await bot.open()
    assert isinstance(result, NotOpened)
    async with asyncio.timeout(10):
        while not bot.exchange.record().entries(APT):
            await asyncio.sleep(0.02)
    assert await bot.sync() == {"APTUSDT": SyncAction.RECOVERED}
    assert len(bot.exchange.record().entries(APT)) == 1
    assert bot.is_sound()


@pytest.mark.parametrize("kind", [FaultKind.RATE_LIMITED, FaultKind.OVERLOADED, FaultKind.CLOCK])
async def test_a_refusal_that_passes_is_waited_out(bot: Bot, kind: FaultKind) -> None:
    bot.fault(kind, Operation.CREATE_ORDER, times=2)
    bot.fault(kind, Operation.CREATE_ALGO, times=2)
    assert isinstance(await bot.open(), Opened)
    assert len(bot.exchange.record().entries(APT)) == 1


async def test_a_refused_entry_leaves_a_failed_row_and_no_position(bot: Bot) -> None:
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ORDER, code=-2019, message="Margin is insufficient.")
    result = await bot.open()
    assert isinstance(result, NotOpened)
    assert "Margin" in result.reason
    assert result.position is not None
    assert result.position.status is PositionStatus.FAILED


async def test_a_stop_that_would_trigger_at_once_closes_the_position(bot: Bot) -> None:
    bot.fault(
        FaultKind.REJECTED, Operation.CREATE_ALGO, code=-2021, message="Order would immediately trigger."
    )
    result = await bot.open()
    assert isinstance(result, NotOpened)
    (row,) = await bot.rows()
    assert row["status"] == "rolled_back"
    assert row["exit_reason"] == "the price is beyond the stop already"
    assert bot.exchange.record().position(APT) == 0


async def test_a_stop_that_cannot_be_placed_for_now_is_an_alert_at_its_deadline_and_never_a_sale(
    bot: Bot,
) -> None:
    bot.fault(FaultKind.UNAVAILABLE, Operation.CREATE_ALGO, times=1000)
    result = await bot.open()
    assert isinstance(result, NotOpened)
    assert [alert for alert in bot.watch.alerts if "without a stop" in alert] == [
        "without a stop for longer than 1 s"
    ]
    assert bot.exchange.record().position(APT) == 10
    bot.exchange.clear_faults()
    assert await bot.sync() == {"APTUSDT": SyncAction.RECOVERED}
    assert bot.is_sound()
    assert [order for order in bot.exchange.record().orders if order.reduce_only] == []


async def test_a_stop_that_arrives_while_nothing_can_be_read_is_found_and_not_placed_twice(bot: Bot) -> None:
    bot.fault(FaultKind.UNAVAILABLE, Operation.CREATE_ALGO, times=1000, execution=Execution.FIRST)
    bot.fault(FaultKind.UNAVAILABLE, Operation.GET_ALGO, times=1000)
    bot.fault(FaultKind.UNAVAILABLE, Operation.OPEN_ALGOS, times=1000)
    with pytest.raises(ExchangeUnreadable):
        await bot.open()
    assert any("it may be without a stop" in alert for alert in bot.watch.alerts)
    assert bot.exchange.record().open_stops(APT)
    bot.exchange.clear_faults()
    async with asyncio.timeout(10):
        while (await bot.sync()).get("APTUSDT") not in {None, SyncAction.ENDED, SyncAction.IN_STEP}:
            await asyncio.sleep(0.05)
    assert bot.is_sound()


async def test_a_position_that_vanishes_before_its_stop_is_not_turned_round(bot: Bot) -> None:
    bot.fault(FaultKind.DELAY, Operation.CREATE_ALGO, hold_ms=300)
    opening = asyncio.create_task(bot.open())
    async with asyncio.timeout(5):
        while not bot.exchange.record().position(APT):
            await asyncio.sleep(0.005)
    await bot.client.create_order(APT, "market", "sell", 10, None, {"reduceOnly": True})
    result = await opening
    assert isinstance(result, NotOpened)
    assert bot.exchange.record().position(APT) == 0
    assert (await bot.rows())[0]["status"] in {"closed", "rolled_back"}


async def test_a_fill_that_the_positions_show_late_is_no_reason_to_close(bot: Bot) -> None:
    bot.exchange.set_visibility(positions=timedelta(seconds=4))
    assert isinstance(await bot.open(), Opened)
    assert bot.exchange.record().position(APT) == Decimal(10)


# --- keeping in step ---


async def test_a_failed_read_is_never_flat(bot: Bot) -> None:
    await bot.open()
    bot.fault(FaultKind.UNAVAILABLE, Operation.POSITIONS, times=3)
    with pytest.raises(ExchangeUnreadable):
        await bot.sync()
    assert (await bot.rows())[0]["status"] == "active"


async def test_a_position_without_a_row_gets_a_row_and_a_stop(bot: Bot) -> None:
    await bot.client.create_order(APT, "market", "sell", 10)
    assert await bot.sync() == {"APTUSDT": SyncAction.ADOPTED}
    (row,) = await bot.rows()
    assert (row["status"], row["side"], row["signal_id"]) == ("active", "short", None)
    assert bot.is_sound()
    assert await bot.sync() == {"APTUSDT": SyncAction.IN_STEP}


async def test_a_busy_symbol_is_skipped_and_reported_not_taken_for_absent(two_bots: tuple[Bot, Bot]) -> None:
    one, two = two_bots
    await one.client.create_order(APT, "market", "buy", 10)
    async with one.guard.hold("binance:APTUSDT", operation="open long"):
        report = await two.manager.sync_exchange_positions("binance")
    (skipped,) = report.skipped
    assert skipped.symbol == "APTUSDT"
    assert "open long" in skipped.details
    assert not report.settled
    assert await two.rows() == []


async def test_a_triggered_stop_closes_the_row_with_its_price(bot: Bot) -> None:
    await bot.open()
    bot.exchange.set_price(APT, Decimal("8.2"))
    assert await bot.sync() == {"APTUSDT": SyncAction.CLOSED}
    (row,) = await bot.rows()
    assert (row["status"], row["exit_reason"], row["exit_price"]) == ("closed", "stop", Decimal("8.2"))


async def test_a_position_closed_by_hand_takes_its_stop_along(bot: Bot) -> None:
    await bot.open()
    await bot.client.create_order(APT, "market", "sell", 10, None, {"reduceOnly": True})
    assert await bot.sync() == {"APTUSDT": SyncAction.CLOSED}
    assert bot.exchange.record().orphan_stops() == ()


async def test_a_missing_stop_is_placed_anew(bot: Bot) -> None:
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    await bot.client.cancel_order(str(stop.id), APT, {"trigger": True})
    assert await bot.sync() == {"APTUSDT": SyncAction.STOP_PLACED}
    (new,) = bot.exchange.record().open_stops(APT)
    assert new.client_id != stop.client_id
    assert (await bot.rows())[0]["stop_client_id"] == new.client_id


async def test_a_stop_and_an_exit_do_not_fire_both(bot: Bot) -> None:
    await bot.open()
    closed = await bot.manager.close_position(APT, "binance", reason="signal")
    assert closed is not None
    assert (closed.status, closed.exit_reason) == (PositionStatus.CLOSED, "signal")
    bot.exchange.set_price(APT, Decimal(5))
    record = bot.exchange.record()
    assert (record.position(APT), record.orphan_stops()) == (0, ())
    assert await bot.manager.close_position(APT, "binance") is None


async def test_what_is_left_of_a_stop_that_fired_does_not_reduce_the_next_position(bot: Bot) -> None:
    await bot.open()
    bot.fault(FaultKind.RESTS, Operation.TRIGGER, share=Decimal("0.4"))
    bot.exchange.set_price(APT, Decimal("8.2"))
    assert bot.exchange.record().position(APT) == 6
    closed = await bot.manager.close_position(APT, "binance", reason="signal")
    assert closed is not None
    assert closed.status is PositionStatus.CLOSED
    assert isinstance(await bot.open(), Opened)
    bot.exchange.release(APT)
    assert bot.exchange.record().position(APT) == 10


async def test_a_stop_that_the_lists_do_not_show_yet_is_taken_back_all_the_same(bot: Bot) -> None:
    bot.exchange.set_visibility(orders=timedelta(seconds=5))
    assert isinstance(await bot.open(), Opened)
    await bot.manager.close_position(APT, "binance")
    record = bot.exchange.record()
    assert (record.position(APT), record.orphan_stops()) == (0, ())


async def test_a_stop_that_a_move_left_behind_lagging_lists_goes_with_its_position(bot: Bot) -> None:
    """No list shows the new stop, so that the move leaves the old one, nor the old one at the close."""
    bot.client.options["recvWindow"] = 30_000  # ms, of which the time for late orders is made up
    await bot.open()
    bot.exchange.set_visibility(orders=timedelta(seconds=60))
    assert (await bot.manager.move_stop(APT, "binance", "8.2")).action is SyncAction.STOP_MOVED
    assert len(bot.exchange.record().open_stops(APT)) == 2
    row = await bot.manager.close_position(APT, "binance")
    assert row is not None
    assert row.status is PositionStatus.CLOSED
    assert bot.exchange.record().open_stops(APT) == ()


async def test_an_exit_whose_answer_is_lost_closes_once(bot: Bot) -> None:
    await bot.open()
    bot.fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, execution=Execution.FIRST)
    closed = await bot.manager.close_position(APT, "binance")
    assert closed is not None
    assert closed.status is PositionStatus.CLOSED
    assert bot.exchange.record().position(APT) == 0


# --- the fence ---


async def test_a_write_after_the_lease_was_broken_is_refused_and_stops_the_flow(bot: Bot) -> None:
    bot.fault(FaultKind.DELAY, Operation.CREATE_ORDER, execution=Execution.FIRST, hold_ms=400)
    opening = asyncio.create_task(bot.open())
    async with asyncio.timeout(5):
        while not bot.exchange.record().position(APT):
            await asyncio.sleep(0.005)
    await bot.guard.break_("binance:APTUSDT", reason="test")
    with pytest.raises((LeaseLost, StaleToken)):
        await opening
    assert bot.exchange.record().algo_orders == ()
    assert (await bot.rows())[0]["status"] == "pending_entry"
    assert await bot.sync() == {"APTUSDT": SyncAction.RECOVERED}
    assert bot.is_sound()


async def test_ticks_need_no_lease_and_change_no_state(bot: Bot) -> None:
    result = await bot.open()
    assert isinstance(result, Opened)
    assert await bot.manager.store.tick(result.position.id, Decimal("8.7"))
    (row,) = await bot.rows()
    assert (row["current_price"], row["unrealized_pnl"]) == (Decimal("8.7"), Decimal("2.00"))
    assert row["token"] == result.position.token
    assert not await bot.manager.store.tick(0, Decimal(1))
