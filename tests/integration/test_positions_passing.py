"""A refusal that passes is never answered by a sale, whatever it is and whenever it comes.

The oracle is the exchange's own record of orders.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from lockguard import LockGuard
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import PostgresFence
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_ccxt import GuardedExchange, Patience, Refusal
from lockguard_ccxt._classify import REFUSED_BY_CODE
from lockguard_lab.exchange import Execution, Fault, FaultKind, Operation, PositionSide, Side, connect
from lockguard_lab.servers import FaultProxy
from lockguard_positions import (
    AtomicPositionManager,
    ExchangeUnreadable,
    NotOpened,
    Opened,
    Pace,
    PositionStatus,
    SyncAction,
)
from tests.integration.test_positions_flow import APT, Bot, bot, two_bots
from tests.integration.test_positions_not_ours import OLD_INTENTS, by_hand, passes, sold

__all__ = ["bot", "two_bots"]

MS = timedelta(milliseconds=1)
FIRST = Execution.FIRST
CREATE, CANCEL = Operation.CREATE_ALGO, Operation.CANCEL_ALGO
ABOUT_THE_ORDER = {Refusal.WOULD_TRIGGER, Refusal.INVALID}
NOT_ASKED_HERE = {Refusal.REDUCE_ONLY}  # nothing to reduce: then there is nothing to sell either
AT_ONCE = 8
"""Of the symbols of one batch, as in a pass. All of them at once keep the event loop of a slow machine so
busy that leases end before they are renewed, and answers come after the client has given up on them."""


def quick(bot: Bot, *, overdue: timedelta = timedelta(seconds=30)) -> AtomicPositionManager:
    patience = Patience(needed=100 * MS, search=100 * MS, poll=20 * MS)
    guarded = GuardedExchange(bot.client, patience=patience)
    pace = Pace(
        settle=500 * MS,
        poll=20 * MS,
        stop_deadline=200 * MS,
        retry_pause=10 * MS,
        attempts=2,
        grace=0 * MS,
        overdue=overdue,
    )
    return AtomicPositionManager(bot.guard, bot.pool, [guarded], pace=pace, observers=[bot.watch])


async def test_of_every_known_code_only_those_about_the_order_itself_lead_to_an_exit(bot: Bot) -> None:
    """Each code refuses the stops of one symbol, for good; then the bot passes over them again and again."""
    manager = quick(bot)
    codes = [(code, kind) for code, kind in REFUSED_BY_CODE.items() if kind not in NOT_ASKED_HERE]
    codes += [("-9999", Refusal.UNRECOGNISED), ("-1", Refusal.UNRECOGNISED), ("99999", Refusal.UNRECOGNISED)]
    symbols = [symbol for symbol in bot.exchange.symbols if symbol.endswith("/USDT:USDT")]
    wrong: dict[str, str] = {}
    slots = asyncio.Semaphore(AT_ONCE)
    for at in range(0, len(codes), len(symbols)):
        batch = list(zip(codes[at : at + len(symbols)], symbols, strict=False))
        bot.exchange.reset()
        await bot.pool.execute("truncate monitoring.positions cascade")
        for (code, _), symbol in batch:
            plain = symbol.partition(":")[0].replace("/", "")
            refused = Fault(
                FaultKind.REJECTED, Operation.CREATE_ALGO, symbol=plain, code=int(code), times=10_000
            )
            bot.exchange.inject(refused)
        await asyncio.gather(*(open_some(bot, manager, symbol, slots) for _, symbol in batch))
        await manager.recover("binance")
        record = bot.exchange.record()
        for (code, kind), symbol in batch:
            closed = record.position(symbol) == 0
            if closed != (kind in ABOUT_THE_ORDER):
                wrong[f"{code} {kind.value}"] = "sold" if closed else "left without a stop"
    assert wrong == {}


async def open_some(bot: Bot, manager: AtomicPositionManager, symbol: str, slots: asyncio.Semaphore) -> None:
    """Open, again if a busy machine was too slow for an entry: what was never entered cannot be kept."""
    price = bot.exchange.price(symbol)
    quantity = max(round(Decimal(2000) / price), 1)
    for _ in range(5):
        async with slots:
            opened = await manager.open_position_atomic(
                "s", symbol, "binance", "long", str(quantity), price, "2"
            )
        if bot.exchange.record().entries(symbol):
            return
    raise AssertionError(f"{symbol} was not entered: {opened}")


# --- a key that may not trade for a while ---


@pytest.mark.parametrize("code", [-2015, -2014])
async def test_positions_that_are_found_while_the_key_is_denied_get_their_stops_when_it_works_again(
    bot: Bot, code: int
) -> None:
    manager = quick(bot)
    by_hand(bot)
    bot.exchange.deny(code)
    for _ in range(3):
        await manager.recover("binance")
        report = await manager.sync_exchange_positions("binance")
        assert [outcome.action for outcome in report.outcomes] == [SyncAction.UNPROTECTED], report.outcomes
    assert any(str(code) in alert for alert in bot.watch.alerts)
    bot.exchange.allow()
    await manager.recover("binance")
    assert (sold(bot), bot.exchange.record().position(APT)) == ([], 10)
    assert bot.is_sound()


async def test_a_key_that_is_denied_between_entry_and_stop_leaves_the_position_and_then_protects_it(
    bot: Bot,
) -> None:
    manager = quick(bot)
    bot.exchange.deny(operations={Operation.CREATE_ALGO})
    result = await manager.open_position_atomic("s", APT, "binance", "long", "10", "8.5", "2")
    assert isinstance(result, NotOpened)
    assert result.in_doubt
    bot.exchange.allow()
    await manager.recover("binance")
    assert (sold(bot), bot.is_sound(), bot.exchange.record().position(APT)) == ([], True, 10)


async def test_an_exit_that_the_key_may_not_send_is_judged_again_and_becomes_a_stop(bot: Bot) -> None:
    """The price has passed the stop, the exit is refused; when the key works again the price is back."""
    manager = quick(bot)
    bot.fault(
        FaultKind.REJECTED, Operation.CREATE_ALGO, code=-2021, message="Order would immediately trigger."
    )
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ORDER, skip=1, times=5, code=-2015, message="denied")
    await manager.open_position_atomic("s", APT, "binance", "long", "10", "8.5", "2")
    assert bot.exchange.record().position(APT) == 10
    bot.exchange.clear_faults()
    await manager.recover("binance")
    assert (sold(bot), bot.is_sound()) == ([], True)
    assert (await bot.rows())[0]["exit_reason"] is None


async def test_an_exit_that_a_person_asked_for_is_carried_out_when_the_key_works_again(bot: Bot) -> None:
    manager = quick(bot)
    await bot.open()
    bot.exchange.deny()
    closed = await manager.close_position(APT, "binance", reason="signal 9")
    assert closed is not None
    assert closed.status.open
    bot.exchange.allow()
    await manager.recover("binance")
    (row,) = await bot.rows()
    assert (row["status"], row["exit_reason"]) == (PositionStatus.CLOSED.value, "signal 9")
    assert bot.exchange.record().position(APT) == 0


async def test_the_last_look_before_an_exit_is_carried_on_with_is_at_what_is_held(bot: Bot) -> None:
    """Whatever is asked in between may take its time, and a person trades meanwhile."""
    manager = quick(bot)
    await bot.open()
    bot.exchange.deny(operations={Operation.CREATE_ORDER})
    await manager.close_position(APT, "binance")
    bot.exchange.allow()
    seen = len(bot.exchange.record().requests)
    await manager.recover("binance")
    asked = [request.operation for request in bot.exchange.record().requests[seen:]]
    assert asked[asked.index(Operation.CREATE_ORDER) - 1] is Operation.POSITIONS
    assert (len(sold(bot)), bot.exchange.record().position(APT)) == (1, 0)


# --- bans ---


async def test_while_a_ban_lasts_nothing_is_sent_and_it_is_an_alert(bot: Bot) -> None:
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.cancel_by_hand(stop.id)
    bot.exchange.ban(timedelta(seconds=60))
    for _ in range(3):
        with pytest.raises(ExchangeUnreadable):
            await bot.sync()
    with pytest.raises(ExchangeUnreadable):
        await bot.open("ETH/USDT:USDT", quantity="1")
    assert len(bot.exchange.record().banned_requests()) == 1
    assert any("the exchange takes no calls for" in alert for alert in bot.watch.alerts)


async def test_a_ban_between_entry_and_stop_is_waited_out_and_the_stop_placed(bot: Bot) -> None:
    """All calls keep to it, also those of another guard around the same ccxt object."""
    bot.fault(FaultKind.DELAY, Operation.CREATE_ORDER, hold_ms=400, execution=FIRST)
    opening = asyncio.create_task(bot.open())
    async with asyncio.timeout(5):
        while not bot.exchange.record().position(APT):
            await asyncio.sleep(0.005)
    bot.exchange.ban(timedelta(milliseconds=1400))
    assert isinstance(await opening, Opened)
    assert len(bot.exchange.record().banned_requests()) <= 2
    assert (sold(bot), bot.is_sound()) == ([], True)


async def test_a_429_that_says_how_long_to_wait_is_kept_to(bot: Bot) -> None:
    bot.exchange.ban(timedelta(seconds=30), status=429)
    for _ in range(3):
        with pytest.raises(ExchangeUnreadable, match="calls are closed"):
            await bot.manager.sync_exchange_positions("binance")
    assert len(bot.exchange.record().banned_requests()) == 1


# --- clocks ---


async def test_a_clock_that_drifts_is_measured_anew_and_the_missing_stop_is_placed(bot: Bot) -> None:
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.cancel_by_hand(stop.id)
    bot.exchange.set_clock_offset(timedelta(seconds=30))
    assert await bot.sync() == {"APTUSDT": SyncAction.STOP_PLACED}
    assert (sold(bot), bot.is_sound()) == ([], True)
    times = [r for r in bot.exchange.record().requests if r.operation is Operation.TIME]
    assert len(times) == 1


# --- maintenance ---


async def test_maintenance_in_the_middle_of_an_open_sells_nothing(bot: Bot) -> None:
    manager = quick(bot)
    bot.fault(FaultKind.DELAY, Operation.CREATE_ORDER, hold_ms=300, execution=FIRST)
    opening = asyncio.create_task(manager.open_position_atomic("s", APT, "binance", "long", "10", "8.5", "2"))
    async with asyncio.timeout(5):
        while not bot.exchange.record().position(APT):
            await asyncio.sleep(0.005)
    bot.exchange.set_maintenance(True)
    with suppress(ExchangeUnreadable):
        assert isinstance(await opening, NotOpened)
    with pytest.raises(ExchangeUnreadable):
        await manager.sync_exchange_positions("binance")
    bot.exchange.set_maintenance(False)
    await passes(bot, 2)
    assert (sold(bot), bot.is_sound(), bot.exchange.record().position(APT)) == ([], True, 10)


# --- what cannot be read or decided for long is an alert ---


async def test_an_exchange_that_cannot_be_read_for_long_is_an_alert_while_positions_are_open(
    bot: Bot,
) -> None:
    manager = quick(bot, overdue=500 * MS)
    await bot.open()
    await manager.sync_exchange_positions("binance")
    bot.exchange.set_maintenance(True)
    async with asyncio.timeout(8):
        while not any("not read or decided" in alert for alert in bot.watch.alerts):
            with pytest.raises(ExchangeUnreadable):
                await manager.sync_exchange_positions("binance")
    assert any("with 1 open positions: the exchange did not answer" in alert for alert in bot.watch.alerts)


async def test_a_pass_that_hangs_is_an_alert_before_it_comes_back(bot: Bot) -> None:
    manager = quick(bot, overdue=200 * MS)
    await bot.open()
    bot.fault(FaultKind.HANG, Operation.POSITIONS, hold_ms=2_500, times=1)
    passing = asyncio.create_task(manager.sync_exchange_positions("binance"))
    async with asyncio.timeout(8):
        while not any("it has not come to its end" in alert for alert in bot.watch.alerts):
            await asyncio.sleep(0.02)
    assert not passing.done()
    await passing


async def test_a_symbol_that_stays_undecided_for_long_is_an_alert(bot: Bot) -> None:
    manager = quick(bot, overdue=300 * MS)
    by_hand(bot)
    bot.exchange.deny()
    async with asyncio.timeout(8):
        while not any(
            "not read or decided for longer than 0.3 s: unprotected" in a for a in bot.watch.alerts
        ):
            await manager.sync_exchange_positions("binance")


@pytest.mark.parametrize("which", ["redis", "postgres"])
async def test_servers_that_are_away_for_long_are_an_alert_though_everything_is_in_step(
    bot: Bot, which: str, redis_url: str, database_url: str
) -> None:
    await bot.open()
    url = redis_url if which == "redis" else database_url
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(urlsplit(url).port or 0))
        redis = proxy.url_for(redis_url) if which == "redis" else redis_url
        database = proxy.url_for(database_url) if which == "postgres" else database_url
        pool = await stack.enter_async_context(asyncpg.create_pool(database, min_size=1, max_size=4))
        fence = PostgresFence(bot.pool)
        guard = await stack.enter_async_context(LockGuard.from_url(redis, fence=fence))
        pace = Pace(grace=0 * MS, overdue=700 * MS)
        manager = AtomicPositionManager(
            guard, pool, [GuardedExchange(bot.client)], pace=pace, observers=[bot.watch]
        )
        report = await manager.sync_exchange_positions("binance")
        assert [outcome.action for outcome in report.outcomes] == [SyncAction.IN_STEP]
        proxy.refuse()
        proxy.reset()
        async with asyncio.timeout(15):
            while not any("not read or decided" in alert for alert in bot.watch.alerts):
                with suppress(*DATABASE_ERRORS):
                    report = await manager.sync_exchange_positions("binance")
                    assert not report.settled
                await asyncio.sleep(0.02)
        await proxy.start()


async def test_nothing_open_and_nothing_read_is_no_alert(bot: Bot) -> None:
    manager = quick(bot, overdue=timedelta(seconds=1))
    await manager.sync_exchange_positions("binance")
    bot.exchange.set_maintenance(True)
    with pytest.raises(ExchangeUnreadable):
        await manager.sync_exchange_positions("binance")
    trouble = manager._telling._overdue._troubles["binance pass"]
    async with asyncio.timeout(8):
        while trouble.timer is not None:  # until it has fired
            await asyncio.sleep(0.02)
    assert bot.watch.alerts == []


# --- moving a stop ---


async def test_a_stop_is_moved_without_a_moment_without_one(bot: Bot) -> None:
    await bot.open()
    (old,) = bot.exchange.record().open_stops(APT)
    outcome = await bot.manager.move_stop("APTUSDT", "binance", "8.4")
    assert (outcome.action, outcome.details) == (SyncAction.STOP_MOVED, "to 8.4")
    record = bot.exchange.record()
    (new,) = record.open_stops(APT)
    (row,) = await bot.rows()
    assert (new.trigger, row["stop_client_id"], row["stop_price"]) == (
        Decimal("8.4"),
        new.client_id,
        Decimal("8.4"),
    )
    done = [(r.operation, r.client_id) for r in record.requests if r.operation in {CREATE, CANCEL}]
    assert done[-2][0] is CREATE  # first the new one, then the old one
    assert done[-1][0] is CANCEL
    assert old.id != new.id
    assert await bot.sync() == {"APTUSDT": SyncAction.IN_STEP}


async def test_a_stop_that_would_trigger_is_not_moved_and_the_old_one_stands(bot: Bot) -> None:
    await bot.open()
    before = bot.exchange.record().open_stops(APT)
    outcome = await bot.manager.move_stop(APT, "binance", "8.6")
    assert outcome.action is SyncAction.STOP_KEPT
    assert "8.6" in outcome.details
    assert bot.exchange.record().open_stops(APT) == before
    assert sold(bot) == []


@pytest.mark.parametrize("operation", [Operation.CREATE_ALGO, Operation.CANCEL_ALGO])
@pytest.mark.parametrize("kind", [FaultKind.DISCONNECT, FaultKind.UNAVAILABLE, FaultKind.TRUNCATED])
@pytest.mark.parametrize("executed", [True, False])
async def test_a_move_whose_answers_are_lost_ends_with_one_stop(
    bot: Bot, kind: FaultKind, operation: Operation, executed: bool
) -> None:
    await bot.open()
    execution = {"execution": FIRST} if executed else {}
    bot.fault(kind, operation, times=3, **execution)
    await bot.manager.move_stop(APT, "binance", "8.4")
    bot.exchange.clear_faults()
    async with asyncio.timeout(8):
        while (await bot.sync())["APTUSDT"] is not SyncAction.IN_STEP:
            await asyncio.sleep(0.05)
    (stop,) = bot.exchange.record().open_stops(APT)
    (row,) = await bot.rows()
    assert (row["stop_client_id"], row["stop_price"]) == (stop.client_id, stop.trigger)
    assert row["status"] == "active"


async def test_a_moved_stop_that_goes_missing_is_placed_where_it_was_moved_to(bot: Bot) -> None:
    await bot.open()
    await bot.manager.move_stop(APT, "binance", "8.45")
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.cancel_by_hand(stop.id)
    assert await bot.sync() == {"APTUSDT": SyncAction.STOP_PLACED}
    assert bot.exchange.record().open_stops(APT)[0].trigger == Decimal("8.45")


@pytest.mark.parametrize("price", ["0", "-1", "many", "1e15", "1e999999999"])
async def test_a_price_that_is_none_moves_nothing(bot: Bot, price: str) -> None:
    with pytest.raises(ConfigurationError, match="price"):
        await bot.manager.move_stop(APT, "binance", price)
    with pytest.raises(ConfigurationError, match="has no open position"):
        await bot.manager.move_stop(APT, "binance", "8.4")


# --- accounts that this cannot work with, and ccxt's own defaults ---


async def test_an_account_in_hedge_mode_is_refused_when_its_markets_are_loaded(bot: Bot) -> None:
    bot.exchange.set_hedge_mode(True)
    with pytest.raises(ConfigurationError, match="the account binance is in hedge mode"):
        await GuardedExchange(bot.client).load()


async def test_an_account_that_is_switched_to_hedge_mode_while_the_bot_runs_is_not_touched(bot: Bot) -> None:
    bot.exchange.set_hedge_mode(True)
    bot.exchange.trade_by_hand(APT, Side.BUY, Decimal(10), position_side=PositionSide.LONG)
    bot.exchange.trade_by_hand(APT, Side.SELL, Decimal(4), position_side=PositionSide.SHORT)
    orders = bot.exchange.record().orders
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="in hedge mode"):
            await bot.manager.sync_exchange_positions("binance")
    assert bot.exchange.record().orders == orders
    assert (bot.exchange.record().algo_orders, await bot.rows()) == ((), [])


async def test_binance_with_its_spot_default_finds_the_stops_of_contracts(bot: Bot) -> None:
    """``ccxt.binance`` asks for orders of spot unless it is told otherwise."""
    await bot.open()
    client = connect(bot.exchange.url, exchange_id="binance")
    try:
        guarded = GuardedExchange(client)
        await guarded.load()
        manager = AtomicPositionManager(bot.guard, bot.pool, [guarded], observers=[bot.watch])
        report = await manager.sync_exchange_positions("binance")
    finally:
        await client.close()
    assert [outcome.action for outcome in report.outcomes] == [SyncAction.IN_STEP]


async def test_an_entry_that_was_tried_for_long_and_arrives_late_is_not_called_absent(bot: Bot) -> None:
    """It was refused for a while; the time for which it may arrive counts from its last sending."""
    create, tries = bot.client.create_order, 0

    async def paused(*args: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 2:
            await bot.pool.execute(OLD_INTENTS)  # as after all the pauses that an exchange asks for
        return await create(*args)

    bot.client.create_order = paused
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ORDER, code=-1015, message="Too many new orders.")
    late = {"execution": Execution.LATE, "hold_ms": 900}
    bot.fault(FaultKind.UNAVAILABLE, Operation.CREATE_ORDER, **late)
    assert isinstance(await bot.open(), NotOpened)
    bot.client.create_order = create
    async with asyncio.timeout(10):
        while not bot.exchange.record().position(APT):
            await bot.manager.recover("binance")
    await passes(bot)
    (row,) = await bot.rows()
    assert (tries, row["status"], row["signal_id"], bot.is_sound()) == (2, "active", "s", True)


async def end_behind_a_later_try(bot: Bot, order: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    """A holder ends behind the second try of an order, which arrives late; the first was refused long before.

    Returns a list of all that is sent, which grows with what later holders send.
    """
    create = bot.client.create_order
    sent: list[Any] = []

    async def paused(*args: Any) -> Any:
        sent.append(args)
        try:
            return await create(*args)
        except Exception:
            if len(sent) == 1:
                await bot.pool.execute(OLD_INTENTS)  # as after all the pauses that an exchange asks for
            else:
                holder.cancel()
            raise

    bot.client.create_order = paused
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ORDER, code=-1015, message="Too many new orders.")
    late = {"execution": Execution.LATE, "hold_ms": 900}
    bot.fault(FaultKind.UNAVAILABLE, Operation.CREATE_ORDER, **late)
    holder = asyncio.ensure_future(order())
    with suppress(asyncio.CancelledError):
        await holder
    assert (holder.cancelled(), len(sent)) == (True, 2)
    return sent


async def test_an_entry_whose_holder_ends_behind_a_later_try_is_not_called_absent(bot: Bot) -> None:
    await end_behind_a_later_try(bot, bot.open)
    async with asyncio.timeout(10):
        while not bot.exchange.record().position(APT):
            await bot.manager.recover("binance")
    await passes(bot)
    (row,) = await bot.rows()
    assert (len(bot.exchange.record().entries(APT)), row["status"]) == (1, "active")
    assert (row["signal_id"], bot.is_sound()) == ("s", True)


async def test_an_exit_whose_holder_ends_behind_a_later_try_is_not_sent_beside_it(bot: Bot) -> None:
    """The late one would reduce what has been opened since."""
    await bot.open()
    sent = await end_behind_a_later_try(bot, lambda: bot.manager.close_position(APT, "binance"))
    async with asyncio.timeout(10):
        while (await bot.rows())[0]["status"] == "active":
            await bot.manager.recover("binance")
    assert (len(sent), len(sold(bot)), bot.exchange.record().position(APT)) == (2, 1, 0)


async def test_an_exit_that_could_not_be_sent_is_in_doubt_in_every_pass_and_never_recovered(bot: Bot) -> None:
    """Its stop stands, but whoever counts what is settled must not count this."""
    await bot.open()
    bot.exchange.deny(-2015, operations=[Operation.CREATE_ORDER])
    await bot.manager.close_position(APT, "binance")
    for look in (bot.manager.recover, bot.manager.sync_exchange_positions):
        report = await look("binance")
        assert [outcome.action for outcome in report.outcomes] == [SyncAction.IN_DOUBT]
        assert not report.settled
    bot.exchange.allow()
    assert (await bot.manager.recover("binance")).settled
    assert bot.exchange.record().position(APT) == 0


# --- an exit in vain and the stop ---


@pytest.mark.parametrize("code", [-2015, -1021, -1003, -1008, -2019, -4118, -2022, -9999])
async def test_an_exit_that_is_refused_leaves_the_position_with_its_stop(bot: Bot, code: int) -> None:
    await bot.open()
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ORDER, code=code, message="refused", times=1000)
    closed = await quick(bot).close_position(APT, "binance")
    assert closed is not None
    assert closed.status.open
    assert (bot.exchange.record().position(APT), bot.is_sound()) == (10, True)
    assert any("could not be closed" in alert for alert in bot.watch.alerts)
    touched = len(bot.exchange.record().algo_orders)
    await passes(bot)
    assert (len(bot.exchange.record().algo_orders), bot.is_sound()) == (touched, True)
    (row,) = await bot.rows()
    (stop,) = bot.exchange.record().open_stops(APT)
    assert (row["stop_client_id"], row["stop_price"]) == (stop.client_id, stop.trigger)
    bot.exchange.clear_faults()
    await passes(bot)
    assert ((await bot.rows())[0]["status"], bot.exchange.record().position(APT)) == ("closed", 0)
    assert bot.is_sound()


@pytest.mark.parametrize("kind", [FaultKind.DISCONNECT, FaultKind.UNAVAILABLE, FaultKind.TIMEOUT])
async def test_an_exit_that_is_never_carried_out_leaves_the_position_with_its_stop(
    bot: Bot, kind: FaultKind
) -> None:
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.fault(kind, Operation.CREATE_ORDER, execution=Execution.NEVER, times=1000)
    await bot.manager.close_position(APT, "binance")
    assert (bot.exchange.record().position(APT), bot.exchange.record().open_stops(APT)) == (10, (stop,))
    bot.exchange.set_price(APT, Decimal("8.2"))  # and it does its work
    bot.exchange.clear_faults()
    await bot.pool.execute(OLD_INTENTS)
    await passes(bot)
    assert ((await bot.rows())[0]["status"], bot.exchange.record().position(APT)) == ("closed", 0)
    assert bot.is_sound()


@pytest.mark.parametrize("code", [-4118, -2022])
async def test_an_exit_that_the_stop_stands_in_the_way_of_takes_it_back_first(bot: Bot, code: int) -> None:
    """An exchange may count orders that wait and only reduce against the position."""
    await bot.open()
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ORDER, code=code, message="in the way", times=1)
    closed = await bot.manager.close_position(APT, "binance")
    assert closed is not None
    assert closed.status is PositionStatus.CLOSED
    assert (bot.exchange.record().position(APT), bot.is_sound()) == (0, True)


async def test_a_position_whose_stop_is_gone_for_an_exit_without_an_answer_is_told(bot: Bot) -> None:
    await bot.open()
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ORDER, code=-4118, message="in the way", times=1)
    bot.fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, execution=Execution.NEVER, times=20)
    await quick(bot).close_position(APT, "binance")
    assert any("may have no stop until the next look" in alert for alert in bot.watch.alerts)


async def test_a_stop_that_fires_before_the_exit_is_an_exit_and_turns_nothing_round(
    bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both only reduce, so they may meet; the row ends, and no order of it stays behind."""
    await bot.open()
    close = GuardedExchange.close_position

    async def fires_first(self: GuardedExchange, *args: Any, **kwargs: Any) -> Any:
        bot.exchange.set_price(APT, Decimal("8.2"))
        return await close(self, *args, **kwargs)

    monkeypatch.setattr(GuardedExchange, "close_position", fires_first)
    closed = await bot.manager.close_position(APT, "binance")
    assert closed is not None
    assert closed.status is PositionStatus.CLOSED
    assert (bot.exchange.record().position(APT), bot.is_sound()) == (0, True)


async def test_a_holder_that_dies_between_the_exit_and_its_stop_leaves_no_stop_behind(bot: Bot) -> None:
    await bot.open()
    bot.fault(FaultKind.HANG, Operation.CANCEL_ALGO, execution=Execution.NEVER, hold_ms=60_000)
    closing = asyncio.create_task(bot.manager.close_position(APT, "binance"))
    async with asyncio.timeout(5):
        while bot.exchange.record().position(APT):
            await asyncio.sleep(0.002)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    bot.exchange.clear_faults()
    assert (await bot.rows())[0]["status"] == "active"
    assert isinstance(await bot.open(), Opened)  # by whoever comes next
    assert (bot.exchange.record().position(APT), bot.is_sound()) == (10, True)


@pytest.mark.parametrize("code", [-4118, -2022])
async def test_a_holder_that_dies_with_the_stop_taken_back_for_its_exit_leaves_no_position_bare(
    bot: Bot, code: int
) -> None:
    """The exit goes on being refused: whoever comes next puts the stop back, once."""
    await bot.open()
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ORDER, code=code, message="refused", times=1000)
    put_back = Operation.CREATE_ALGO
    bot.fault(FaultKind.HANG, put_back, execution=Execution.NEVER, hold_ms=60_000)
    closing = asyncio.create_task(quick(bot).close_position(APT, "binance"))
    async with asyncio.timeout(5):
        while bot.exchange.record().open_stops(APT):
            await asyncio.sleep(0.002)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    bot.exchange.clear_faults()
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ORDER, code=code, message="refused", times=1000)
    await passes(bot)
    assert (bot.exchange.record().position(APT), bot.is_sound()) == (10, True)
    (stop,) = bot.exchange.record().open_stops(APT)
    assert (await bot.rows())[0]["stop_price"] == stop.trigger
