"""No order reduces a position that this table did not open, unless a person said so.

The oracle is the exchange's own record of orders, which knows a program's from those of the test's own hand.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from lockguard.errors import ConfigurationError
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_lab.exchange import Execution, Fault, FaultKind, Operation, Origin, Side
from lockguard_positions import (
    AlreadyOpen,
    AtomicPositionManager,
    NotOpened,
    Opened,
    Pace,
    PositionStatus,
    SyncAction,
    diagnose,
)
from tests.integration.test_positions_flow import APT, PACE, Bot, bot, two_bots

__all__ = ["bot", "two_bots"]

MS = timedelta(milliseconds=1)
OLD_INTENTS = "update monitoring.position_intents set recorded_at = recorded_at - interval '1 minute'"


def sold(bot: Bot) -> list[Any]:
    """The orders of the program that made a position smaller, or tried to."""
    orders = bot.exchange.record().orders
    return [order for order in orders if order.origin is Origin.API and order.reduce_only]


async def passes(bot: Bot, times: int = 3) -> None:
    """As a bot does, again and again."""
    for _ in range(times):
        await bot.manager.recover("binance")
        await bot.manager.sync_exchange_positions("binance")


def by_hand(bot: Bot, quantity: str = "10", side: Side = Side.BUY, *, reduce_only: bool = False) -> None:
    bot.exchange.trade_by_hand(APT, side, Decimal(quantity), reduce_only=reduce_only)


# --- adoption ---


async def test_a_position_in_loss_beside_its_own_stop_is_not_sold_but_its_stop_taken_over(bot: Bot) -> None:
    by_hand(bot)
    stop = bot.exchange.stop_by_hand(APT, Side.SELL, Decimal("7.2"))
    bot.exchange.set_price(APT, Decimal("8.2"))  # 3.5 % down; a stop of ours would be 2 % from the entry
    assert await bot.sync() == {"APTUSDT": SyncAction.ADOPTED}
    await passes(bot)
    (row,) = await bot.rows()
    assert (row["status"], row["stop_order_id"], row["stop_price"]) == (
        "active",
        str(stop.id),
        Decimal("7.2"),
    )
    record = bot.exchange.record()
    assert (sold(bot), record.position(APT), len(record.open_stops(APT))) == ([], 10, 1)
    assert bot.watch.alerts == []


async def test_a_position_beyond_where_its_stop_would_be_is_told_of_and_nothing_more(bot: Bot) -> None:
    by_hand(bot)
    bot.exchange.set_price(APT, Decimal("8.2"))
    assert await bot.sync() == {"APTUSDT": SyncAction.UNPROTECTED}
    await passes(bot)
    assert (sold(bot), bot.exchange.record().algo_orders) == ([], ())
    assert any("the price is beyond the stop already at 8.33" in alert for alert in bot.watch.alerts)
    bot.exchange.set_price(APT, Decimal("8.4"))
    assert await bot.sync() == {"APTUSDT": SyncAction.RECOVERED}
    assert bot.is_sound()


async def test_a_stop_that_the_exchange_itself_refuses_as_too_late_sells_nothing(bot: Bot) -> None:
    """The price passes the stop between the look at it and the order."""
    by_hand(bot)
    bot.fault(
        FaultKind.REJECTED, Operation.CREATE_ALGO, code=-2021, message="Order would immediately trigger."
    )
    assert await bot.sync() == {"APTUSDT": SyncAction.UNPROTECTED}
    assert sold(bot) == []
    assert await bot.sync() == {"APTUSDT": SyncAction.RECOVERED}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ([("7.2", None), ("8.0", "10")], "8.0"),
        ([("7.2", "10"), ("8.1", "4")], "7.2"),
        ([("8.1", "4")], "8.1"),
    ],
    ids=[
        "the one that is reached first",
        "one that covers all of it before a nearer one",
        "a part is a stop",
    ],
)
async def test_of_several_stops_the_one_that_protects_is_taken_over(
    bot: Bot, given: list[tuple[str, str | None]], taken: str
) -> None:
    by_hand(bot)
    for trigger, quantity in given:
        bot.exchange.stop_by_hand(
            APT, Side.SELL, Decimal(trigger), qty=None if quantity is None else Decimal(quantity)
        )
    await bot.sync()
    (row,) = await bot.rows()
    assert (row["status"], row["stop_price"]) == ("active", Decimal(taken))
    assert len(bot.exchange.record().open_stops(APT)) == len(given)


async def test_a_take_profit_and_a_conditional_entry_are_no_stops(bot: Bot) -> None:
    by_hand(bot)
    bot.exchange.stop_by_hand(APT, Side.SELL, Decimal("9.9"), qty=Decimal(10), take_profit=True)
    bot.exchange.stop_by_hand(APT, Side.SELL, Decimal("8.1"), qty=Decimal(10), reduce_only=False)
    assert await bot.sync() == {"APTUSDT": SyncAction.ADOPTED}
    (row,) = await bot.rows()
    assert row["stop_price"] == Decimal("8.33")
    assert len(bot.exchange.record().open_stops(APT)) == 3


@pytest.mark.parametrize(("adopt", "alerts"), [("off", 0), ("alert", 1)])
async def test_adopt_off_and_alert_write_no_row_and_order_nothing(bot: Bot, adopt: str, alerts: int) -> None:
    manager = another_manager(bot, adopt=adopt)
    by_hand(bot)
    report = await manager.sync_exchange_positions("binance")
    assert [outcome.action for outcome in report.outcomes] == [SyncAction.LEFT_ALONE]
    assert report.settled
    assert (await bot.rows(), bot.exchange.record().algo_orders) == ([], ())
    assert len([one for one in bot.watch.alerts if "has no row" in one]) == alerts
    result = await manager.open_position_atomic("s", APT, "binance", "long", "10", "8.5", "2")
    assert isinstance(result, NotOpened)
    assert await manager.close_position(APT, "binance") is None
    assert len(bot.exchange.record().orders) == 1


def another_manager(bot: Bot, *, pace: Pace = PACE, adopt: str = "stop") -> AtomicPositionManager:
    guarded = GuardedExchange(bot.client, patience=Patience(needed=100 * MS, search=300 * MS, poll=20 * MS))
    return AtomicPositionManager(
        bot.guard, bot.pool, [guarded], pace=pace, adopt=adopt, observers=[bot.watch]
    )


def test_another_word_for_adopt_is_refused(bot: Bot) -> None:
    with pytest.raises(ConfigurationError, match="adopt='yes' is not known; write 'off', 'alert', 'stop'"):
        another_manager(bot, adopt="yes")


async def test_an_explicit_close_is_a_persons_word_also_for_a_position_that_has_no_stop(bot: Bot) -> None:
    by_hand(bot)
    bot.exchange.set_price(APT, Decimal("8.2"))
    assert await bot.sync() == {"APTUSDT": SyncAction.UNPROTECTED}
    closed = await bot.manager.close_position(APT, "binance", reason="signal 7")
    assert closed is not None
    assert (closed.status, closed.exit_reason) == (PositionStatus.CLOSED, "signal 7")
    assert bot.exchange.record().position(APT) == 0


@pytest.mark.parametrize(
    ("trades", "left"),
    [
        ([("sell", 10, True)], 0),  # closed by hand
        ([("sell", 6, True)], 0),  # reduced by hand: what is left of it goes
        ([("buy", 15, False)], 15),  # enlarged by hand: what the row says goes
        ([("sell", 10, True), ("sell", 25, False)], -25),  # closed, and opened the other way
        ([("sell", 35, False)], -25),  # turned round
        ([("sell", 10, True), ("buy", 25, False)], 15),  # closed, and opened anew: nobody can tell it apart
    ],
)
async def test_a_close_reduces_no_more_than_the_row_says_and_nothing_on_the_other_side(
    bot: Bot, trades: list[tuple[str, int, bool]], left: int
) -> None:
    """Whatever a person did since the last look, with whom the account is shared."""
    await bot.open()
    for side, quantity, reduce_only in trades:
        by_hand(bot, str(quantity), Side(side.upper()), reduce_only=reduce_only)
    closed = await bot.manager.close_position(APT, "binance", reason="signal 7")
    assert closed is not None
    assert closed.status is PositionStatus.CLOSED
    record = bot.exchange.record()
    assert record.position(APT) == left
    assert sum(order.executed for order in sold(bot)) <= 10
    assert record.open_stops(APT) == ()


# --- a person's hand on our position ---


async def grows(bot: Bot) -> None:
    by_hand(bot, "5")


async def shrinks(bot: Bot) -> None:
    by_hand(bot, "4", Side.SELL, reduce_only=True)


async def is_swapped(bot: Bot) -> None:
    by_hand(bot, "10", Side.SELL, reduce_only=True)
    bot.exchange.set_price(APT, Decimal("8.45"))
    by_hand(bot, "10")


async def is_opened_anew(bot: Bot) -> None:
    """For the same price: side, amount and average price are what they were."""
    by_hand(bot, "10", Side.SELL, reduce_only=True)
    by_hand(bot, "10")


async def is_opened_anew_a_tick_away(bot: Bot) -> None:
    by_hand(bot, "10", Side.SELL, reduce_only=True)
    bot.exchange.set_price(APT, Decimal("8.5008"))
    by_hand(bot, "10")


async def is_turned(bot: Bot) -> None:
    by_hand(bot, "25", Side.SELL)


@pytest.mark.parametrize(
    "change", [grows, shrinks, is_swapped, is_opened_anew, is_opened_anew_a_tick_away, is_turned]
)
async def test_a_position_that_a_person_had_a_hand_in_is_not_sold_when_its_stop_cannot_be_placed(
    bot: Bot, change: Any
) -> None:
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    await change(bot)
    bot.exchange.cancel_by_hand(stop.id)
    bot.exchange.set_price(APT, Decimal("8.1"))
    held = bot.exchange.record().position(APT)
    await passes(bot, 4)
    assert (sold(bot), bot.exchange.record().position(APT)) == ([], held)
    assert bot.watch.alerts


@pytest.mark.parametrize("quantity", ["10", "25"])
async def test_what_a_person_opened_while_the_first_stop_was_refused_for_a_moment_is_not_sold(
    bot: Bot, quantity: str
) -> None:
    """They see a position without a stop, close it and open their own; then the price passes the stop."""
    bot.fault(FaultKind.OVERLOADED, Operation.CREATE_ALGO, times=1000)

    async def trade() -> None:
        async with asyncio.timeout(10):
            while not bot.exchange.record().entries(APT):
                await asyncio.sleep(0.005)
        by_hand(bot, "10", Side.SELL, reduce_only=True)
        by_hand(bot, quantity)
        bot.exchange.set_price(APT, Decimal("8.2"))
        bot.exchange.clear_faults()

    result, _ = await asyncio.gather(bot.open(), trade())
    assert isinstance(result, NotOpened)
    await passes(bot)
    assert (sold(bot), bot.exchange.record().position(APT)) == ([], Decimal(quantity))
    assert (await bot.rows())[0]["status"] == "pending_sl"
    assert any("it is not closed without a person's word" in alert for alert in bot.watch.alerts)


async def test_a_stop_that_the_band_of_the_moment_refuses_is_tried_again_and_nothing_is_sold(
    bot: Bot,
) -> None:
    moment = "The counterparty's best price does not meet the PERCENT_PRICE filter limit."
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ALGO, code=-4131, message=moment, times=2)
    assert isinstance(await bot.open(), Opened)
    assert (sold(bot), bot.is_sound()) == ([], True)


async def test_our_own_position_whose_stop_can_never_be_placed_is_closed_by_its_own_amount(bot: Bot) -> None:
    """The other side of the law: what this table opened, and nobody touched, does not stay without a stop."""
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.cancel_by_hand(stop.id)
    bot.exchange.set_price(APT, Decimal("8.1"))
    await bot.sync()
    assert bot.exchange.record().position(APT) == 0
    assert (await bot.rows())[0]["exit_reason"] == "the price is beyond the stop already"


async def test_the_last_look_before_an_exit_that_nobody_asked_for_is_at_what_is_held(bot: Bot) -> None:
    """The account's fills are read before it, as a person may trade while they are."""
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.cancel_by_hand(stop.id)
    bot.exchange.set_price(APT, Decimal("8.1"))
    seen = len(bot.exchange.record().requests)
    await bot.sync()
    asked = [request.operation for request in bot.exchange.record().requests[seen:]]
    (last,) = [number for number, one in enumerate(asked) if one is Operation.CREATE_ORDER]
    assert Operation.TRADES in asked[:last]
    assert asked[last - 1] is Operation.POSITIONS
    assert bot.exchange.record().position(APT) == 0


async def test_a_stop_that_a_person_moved_is_taken_over(bot: Bot) -> None:
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.cancel_by_hand(stop.id)
    theirs = bot.exchange.stop_by_hand(APT, Side.SELL, Decimal("8.1"))
    assert await bot.sync() == {"APTUSDT": SyncAction.STOP_TAKEN_OVER}
    (row,) = await bot.rows()
    assert (row["stop_order_id"], row["stop_price"]) == (str(theirs.id), Decimal("8.1"))
    assert len(bot.exchange.record().open_stops(APT)) == 1
    assert await bot.sync() == {"APTUSDT": SyncAction.IN_STEP}


async def test_a_part_that_no_stop_covers_is_a_condition_that_lasts_until_all_of_it_is_covered(
    bot: Bot,
) -> None:
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.cancel_by_hand(stop.id)
    bot.exchange.stop_by_hand(APT, Side.SELL, Decimal("7.5"), qty=Decimal(1))
    assert await bot.sync() == {"APTUSDT": SyncAction.STOP_TAKEN_OVER}
    for _ in range(2):
        assert await bot.sync() == {"APTUSDT": SyncAction.UNPROTECTED}
    told = "its stops cover only a part of it: 1.0 of 10.0"
    assert told in bot.watch.alerts
    assert not [one for one in bot.watch.alerts if "waits beside" in one]
    findings = (await diagnose(bot.pool, [GuardedExchange(bot.client)], pace=PACE)).findings
    assert [(one.kind.value, one.details) for one in findings] == [
        ("without_stop", "its stops cover only 1.0 of 10.0")
    ]
    bot.exchange.stop_by_hand(APT, Side.SELL, Decimal("7.4"), qty=Decimal(9))
    assert await bot.sync() == {"APTUSDT": SyncAction.IN_STEP}
    assert f"over: {told}" in bot.watch.alerts
    assert (await diagnose(bot.pool, [GuardedExchange(bot.client)], pace=PACE)).findings == ()


async def test_what_a_person_adds_is_told_as_without_a_stop_and_not_only_as_another_amount(bot: Bot) -> None:
    await bot.open()
    by_hand(bot)
    bare, differs = (
        "its stops cover only a part of it: 10.0 of 20.0",
        "the row says 10.0, the exchange holds 20.0",
    )
    for _ in range(2):
        report = await bot.manager.sync_exchange_positions("binance")
        assert [(one.action, one.details) for one in report.outcomes] == [
            (SyncAction.UNPROTECTED, f"{bare}; {differs}")
        ]
    assert {bare, differs} <= set(bot.watch.alerts)
    findings = (await diagnose(bot.pool, [GuardedExchange(bot.client)], pace=PACE)).findings
    assert [(one.kind.value, one.details, one.orders) for one in findings] == [
        ("without_stop", "its stops cover only 10.0 of 20.0", ()),
        ("mismatch", "the row says long 10.0, the exchange holds long 20.0", ()),
    ]
    assert sold(bot) == []
    bot.exchange.stop_by_hand(APT, Side.SELL, Decimal("7.4"), qty=Decimal(10))
    assert await bot.sync() == {"APTUSDT": SyncAction.MISMATCH}
    assert f"over: {bare}" in bot.watch.alerts
    findings = (await diagnose(bot.pool, [GuardedExchange(bot.client)], pace=PACE)).findings
    assert [one.kind.value for one in findings] == ["mismatch"]


async def test_a_stop_that_is_taken_over_is_not_told_as_one_beside_the_position_s_own(bot: Bot) -> None:
    """A careful person would cancel it, and it is the only one."""
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.cancel_by_hand(stop.id)
    bot.exchange.stop_by_hand(APT, Side.SELL, Decimal("8.1"), qty=Decimal(10))
    assert await bot.sync() == {"APTUSDT": SyncAction.STOP_TAKEN_OVER}
    assert await bot.sync() == {"APTUSDT": SyncAction.IN_STEP}
    assert bot.watch.alerts == []


async def test_a_stop_whose_limit_is_above_its_trigger_is_no_stop(bot: Bot) -> None:
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.cancel_by_hand(stop.id)
    params = {"triggerPrice": "8.4", "reduceOnly": True}
    await bot.client.create_order("APT/USDT:USDT", "STOP", "sell", 10, "9.5", params)
    assert await bot.sync() == {"APTUSDT": SyncAction.STOP_PLACED}
    assert await bot.sync() == {"APTUSDT": SyncAction.IN_STEP}
    (row,) = await bot.rows()
    assert row["stop_price"] == Decimal("8.33")


async def test_a_position_that_was_turned_round_by_hand_is_another_one(bot: Bot) -> None:
    await bot.open()
    by_hand(bot, "25", Side.SELL)
    assert await bot.sync() == {"APTUSDT": SyncAction.CLOSED}
    assert await bot.sync() == {"APTUSDT": SyncAction.ADOPTED}
    old, new = await bot.rows()
    assert (old["status"], old["exit_reason"]) == ("closed", "turned round on the exchange")
    assert (new["side"], new["quantity"]) == ("short", Decimal(15))
    assert (sold(bot), bot.is_sound()) == ([], True)


async def test_what_a_person_opens_while_a_row_waits_for_its_stop_to_be_gone_gets_none_of_its(
    bot: Bot,
) -> None:
    """That the position has ended is in the table before its stop is cancelled."""
    manager = another_manager(bot, adopt="off")
    assert isinstance(await bot.open(), Opened)
    bot.fault(FaultKind.REJECTED, Operation.CANCEL_ALGO, code=-2015, message="Invalid API-key.", times=1000)
    by_hand(bot, "10", Side.SELL, reduce_only=True)
    (outcome,) = (await manager.sync_exchange_positions("binance")).outcomes
    assert outcome.action is SyncAction.IN_DOUBT
    by_hand(bot, "25")
    bot.exchange.clear_faults()
    for _ in range(3):
        await manager.recover("binance")
        await manager.sync_exchange_positions("binance")
    (row,) = await bot.rows()
    assert (row["status"], row["exit_reason"]) == ("closed", "not on the exchange any more")
    record = bot.exchange.record()
    assert (record.position(APT), record.open_stops(APT), len(record.algo_orders)) == (25, (), 1)
    assert sold(bot) == []


async def test_an_entry_that_was_never_placed_does_not_claim_what_a_person_opened_meanwhile(bot: Bot) -> None:
    bot.fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER)
    assert isinstance(await bot.open(), NotOpened)
    by_hand(bot, "3")
    bot.exchange.set_price(APT, Decimal("8.2"))
    await bot.pool.execute(OLD_INTENTS)
    await passes(bot, 3)
    assert (sold(bot), bot.exchange.record().position(APT)) == ([], 3)


# --- stops of somebody else ---


async def test_a_left_over_stop_of_a_person_is_told_of_once_and_left_alone(bot: Bot) -> None:
    by_hand(bot)
    stop = bot.exchange.stop_by_hand(APT, Side.SELL, Decimal("8.0"), qty=Decimal(10))
    by_hand(bot, "10", Side.SELL, reduce_only=True)
    await passes(bot)
    told = "a reduce-only order waits without a position: it would cut the next one short"
    assert [one for one in bot.watch.alerts if "without a position" in one] == [
        f"{told}: {stop.client_id} (sell 10.0 at 8.0)"
    ]
    assert stop in bot.exchange.record().open_stops(APT)


async def test_an_open_beside_a_stop_that_was_left_over_is_told_of_with_its_position(bot: Bot) -> None:
    by_hand(bot, "10")
    bot.exchange.stop_by_hand(APT, Side.SELL, Decimal(8), qty=Decimal(5))
    by_hand(bot, "10", Side.SELL, reduce_only=True)
    await bot.sync()
    await bot.manager.open_position_atomic("s", APT, "binance", "long", "10", "8.5", "2")
    (told,) = [a for a in bot.watch.alerts if a.startswith("opened though a reduce-only order waits")]
    assert "(sell 5.0 at 8.0)" in told


async def test_a_second_stop_beside_our_own_is_told_of_and_left_alone(bot: Bot) -> None:
    await bot.open()
    bot.exchange.stop_by_hand(APT, Side.SELL, Decimal("8.4"), qty=Decimal(10))
    await passes(bot)
    assert len([one for one in bot.watch.alerts if "beside the position's own stop" in one]) == 1
    assert len(bot.exchange.record().open_stops(APT)) == 2


# --- a signal after a stop that has fired ---


@pytest.mark.parametrize("grace_ms", [0, 10_000])
async def test_a_signal_after_a_fired_stop_opens_anew(bot: Bot, grace_ms: int) -> None:
    pace = Pace(settle=2000 * MS, poll=20 * MS, stop_deadline=1000 * MS, grace=grace_ms * MS)
    manager = another_manager(bot, pace=pace)
    first = await manager.open_position_atomic("a", APT, "binance", "long", "10", "8.5", "2")
    assert isinstance(first, Opened)
    bot.exchange.set_price(APT, Decimal("8.2"))
    again = await manager.open_position_atomic("b", APT, "binance", "long", "10", "8.2", "2")
    assert isinstance(again, Opened)
    assert [row["status"] for row in await bot.rows()] == ["closed", "active"]
    assert len(bot.exchange.record().entries(APT)) == 2
    assert bot.is_sound()


@pytest.mark.parametrize("execution", [Execution.FIRST, Execution.NEVER])
@pytest.mark.parametrize("fired", [True, False])
async def test_a_signal_after_a_position_that_ended_in_the_middle_of_a_move_opens(
    bot: Bot, execution: Execution, fired: bool
) -> None:
    """Who moved its stop has died, and the new one may stand or not: that is no word about what is held."""
    assert isinstance(await bot.open(), Opened)
    asked = len(bot.exchange.record().requests)
    bot.fault(FaultKind.HANG, Operation.CREATE_ALGO, execution=execution, hold_ms=60_000)
    moving = asyncio.create_task(bot.manager.move_stop(APT, "binance", "8.2"))
    async with asyncio.timeout(5):
        while len(bot.exchange.record().requests) == asked:
            await asyncio.sleep(0.002)
    moving.cancel()
    await asyncio.gather(moving, return_exceptions=True)
    bot.exchange.clear_faults()
    if fired:
        bot.exchange.set_price(APT, Decimal("8.1"))
        bot.exchange.set_price(APT, Decimal("8.5"))
    else:
        by_hand(bot, "10", Side.SELL, reduce_only=True)
    again = await bot.open()
    async with asyncio.timeout(10):
        while isinstance(again, NotOpened):  # a late answer may bring the new stop still
            assert again.passing, again
            await asyncio.sleep(0.1)
            again = await bot.open()
    assert isinstance(again, Opened)
    assert [row["status"] for row in await bot.rows()] == ["closed", "active"]
    assert len(bot.exchange.record().entries(APT)) == 2
    assert bot.is_sound()


async def test_a_move_that_is_found_out_between_two_looks_hides_no_position_that_has_ended(
    bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window of a new stop in doubt passes while the open looks: finishing the move is no look."""
    assert isinstance(await bot.open(), Opened)
    await leave_a_move(bot)
    by_hand(bot, "10", Side.SELL, reduce_only=True)
    holding = GuardedExchange.holding
    looks = 0

    async def late(self: GuardedExchange, symbol: str) -> Any:
        nonlocal looks
        looks += 1
        if looks > 1:  # the first is under way before it is known that something was half done
            await bot.pool.execute(OLD_INTENTS)
        return await holding(self, symbol)

    monkeypatch.setattr(GuardedExchange, "holding", late)
    assert isinstance(await bot.open(), Opened)
    assert [row["status"] for row in await bot.rows()] == ["closed", "active"]
    assert len(bot.exchange.record().entries(APT)) == 2
    assert bot.is_sound()


async def leave_a_move(bot: Bot) -> None:
    """As a holder does that dies right before it sends the new stop."""
    row = await bot.manager.store.open_of("binance", "APTUSDT")
    assert row is not None
    async with bot.guard.hold("binance:APTUSDT") as lease:
        await bot.manager.store.expect_move(lease, row, Decimal("8.2"))


async def test_a_position_that_ended_before_its_stop_could_be_placed_is_not_open_already(bot: Bot) -> None:
    """Its row waits for a stop that is refused for now, and by that alone it could tell for as long."""
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ALGO, code=-2015, message="Invalid API-key.", times=1000)
    first = await bot.open()
    assert isinstance(first, NotOpened)
    assert first.in_doubt
    again = await bot.open()
    assert isinstance(again, AlreadyOpen)
    by_hand(bot, "10", Side.SELL, reduce_only=True)
    again = await bot.open()
    assert isinstance(again, NotOpened)
    assert again.passing
    bot.exchange.clear_faults()
    assert isinstance(await bot.open(), Opened)
    assert bot.is_sound()


async def test_a_signal_that_meets_a_position_that_ends_while_it_is_adopted_is_tried_again(
    bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person closes it between the look and its stop: then there was nothing open, and nothing is."""
    by_hand(bot)
    adopt = bot.manager.store.adopt

    async def closed_meanwhile(*args: Any) -> Any:
        by_hand(bot, "10", Side.SELL, reduce_only=True)
        return await adopt(*args)

    monkeypatch.setattr(bot.manager.store, "adopt", closed_meanwhile)
    met = await bot.open()
    assert isinstance(met, NotOpened)
    assert met.passing
    assert isinstance(await bot.open(), Opened)
    assert (sold(bot), bot.is_sound()) == ([], True)


async def test_a_signal_after_a_close_by_hand_within_the_grace_waits_for_certainty_and_opens(
    bot: Bot,
) -> None:
    pace = Pace(settle=2000 * MS, poll=20 * MS, stop_deadline=1000 * MS, grace=1500 * MS)
    manager = another_manager(bot, pace=pace)
    await manager.open_position_atomic("a", APT, "binance", "long", "10", "8.5", "2")
    by_hand(bot, "10", Side.SELL, reduce_only=True)
    again = await manager.open_position_atomic("b", APT, "binance", "long", "10", "8.5", "2")
    assert isinstance(again, Opened)
    assert bot.is_sound()


async def test_a_second_signal_while_the_lists_lag_is_no_reason_to_open_twice(bot: Bot) -> None:
    pace = Pace(settle=2000 * MS, poll=20 * MS, stop_deadline=1000 * MS, grace=5000 * MS)
    manager = another_manager(bot, pace=pace)
    bot.exchange.set_visibility(positions=timedelta(seconds=1))
    await manager.open_position_atomic("a", APT, "binance", "long", "10", "8.5", "2")
    again = await manager.open_position_atomic("b", APT, "binance", "long", "10", "8.5", "2")
    assert isinstance(again, AlreadyOpen)
    assert len(bot.exchange.record().entries(APT)) == 1


# --- orders that end otherwise than in full ---


async def test_the_part_of_an_entry_that_is_filled_has_its_stop_though_the_rest_may_take_long(
    bot: Bot,
) -> None:
    pace = Pace(settle=timedelta(hours=1), poll=20 * MS, stop_deadline=2000 * MS, grace=0 * MS)
    bot.fault(FaultKind.RESTS, Operation.CREATE_ORDER, share=Decimal("0.3"))
    async with asyncio.timeout(20):
        result = await another_manager(bot, pace=pace).open_position_atomic(
            "a", APT, "binance", "long", "10", "8.5", "2"
        )
    assert isinstance(result, Opened)
    record = bot.exchange.record()
    assert [(order.status.value, order.executed) for order in record.orders] == [("CANCELED", 3)]
    assert [(stop.qty, record.position(APT)) for stop in record.open_stops(APT)] == [(3, 3)]
    assert (await bot.rows())[0]["quantity"] == 3


async def test_a_market_entry_that_stays_in_the_book_is_taken_back_and_the_symbol_is_free(bot: Bot) -> None:
    bot.fault(FaultKind.RESTS, Operation.CREATE_ORDER)
    result = await bot.open()
    assert isinstance(result, NotOpened)
    assert not result.in_doubt
    record = bot.exchange.record()
    assert [order.status.value for order in record.orders] == ["CANCELED"]
    assert isinstance(await bot.open(), Opened)


async def test_an_exit_that_was_filled_in_part_is_carried_on_with_until_all_is_closed(bot: Bot) -> None:
    await bot.open()
    bot.exchange.inject(Fault(FaultKind.EXPIRES, Operation.CREATE_ORDER, share=Decimal("0.4")))
    closed = await bot.manager.close_position(APT, "binance")
    assert closed is not None
    assert closed.status is PositionStatus.CLOSED
    assert bot.exchange.record().position(APT) == 0


async def test_an_exit_of_which_nothing_was_filled_does_not_end_the_row(bot: Bot) -> None:
    await bot.open()
    bot.exchange.inject(Fault(FaultKind.EXPIRES, Operation.CREATE_ORDER, share=Decimal(0)))
    closed = await bot.manager.close_position(APT, "binance")
    assert closed is not None
    assert closed.status.open
    assert any("could not be closed" in alert for alert in bot.watch.alerts)
    await bot.manager.recover("binance")
    assert (await bot.rows())[0]["status"] == "closed"
    assert bot.exchange.record().position(APT) == 0


# --- what proves that a position is ours ---


async def test_the_fills_since_an_entry_are_not_known_while_they_are_not_shown_or_cut_off(
    bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand(bot, "3", Side.SELL)
    guarded, before = GuardedExchange(bot.client), await bot.client.fetch_time()
    while await bot.client.fetch_time() == before:
        pass  # fills of one millisecond have no order
    by_hand(bot, "13")
    entry = str(bot.exchange.record().orders[-1].id)
    assert [(f.order_id, f.side, f.amount) for f in await guarded.fills_since(APT, entry) or ()] == [
        (entry, "buy", Decimal(13))
    ]
    bot.exchange.set_visibility(trades=timedelta(minutes=1))
    assert await guarded.fills_since(APT, entry) is None
    bot.exchange.set_visibility()
    ask = bot.client.fetch_my_trades

    async def full(*args: Any) -> Any:
        return (await ask(*args)) * 1000

    monkeypatch.setattr(bot.client, "fetch_my_trades", full)
    assert await guarded.fills_since(APT, entry) is None


async def test_a_position_is_not_sold_while_its_fills_are_not_shown(bot: Bot) -> None:
    """They may name a person: no proof that it is ours is a reason to alert, and to look again."""
    await bot.open()
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.cancel_by_hand(stop.id)
    bot.exchange.set_price(APT, Decimal("8.1"))
    bot.exchange.set_visibility(trades=timedelta(minutes=1))
    assert await bot.sync() == {"APTUSDT": SyncAction.UNPROTECTED}
    bot.fault(FaultKind.DISCONNECT, Operation.TRADES, times=50)
    assert await bot.sync() == {"APTUSDT": SyncAction.UNREADABLE}
    assert (sold(bot), bot.exchange.record().position(APT)) == ([], 10)
    bot.exchange.clear_faults()
    bot.exchange.set_visibility()
    assert await bot.sync() == {"APTUSDT": SyncAction.ENDED}
    assert bot.exchange.record().position(APT) == 0
