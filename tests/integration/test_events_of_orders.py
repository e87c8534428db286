"""Orders and positions tell what became of them, and how much of the lease was left."""

from __future__ import annotations

from lockguard_ccxt import GuardedExchange, OrderAnswered, OrderResult, Patience, Refusal
from lockguard_lab.exchange import Execution, FaultKind, Operation
from lockguard_positions import (
    AtomicPositionManager,
    DoubtResolved,
    IntentOutcome,
    Looked,
    Moved,
    NotOpened,
    Opened,
    PositionStatus,
)
from tests.integration.test_positions_flow import APT, MS, PACE, Bot, bot, two_bots

__all__ = ["bot", "two_bots"]


def told(bot: Bot, kind: type) -> list:
    return [event for event in bot.watch.events if isinstance(event, kind)]


async def test_each_order_tells_the_margin_at_which_it_left(bot: Bot) -> None:
    assert isinstance(await bot.open(), Opened)
    orders = told(bot, OrderAnswered)
    assert [(order.step, order.result) for order in orders] == [
        ("entry", OrderResult.EXECUTED),
        ("stop", OrderResult.EXECUTED),
    ]
    for order in orders:
        assert order.resource == "binance:APTUSDT"
        assert 0 < order.margin_ms <= 3_000  # the ttl
        assert order.took_ms > 0
    await bot.manager.close_position(APT, "binance")
    assert [order.step for order in told(bot, OrderAnswered)[2:]] == ["close", "cancel"]


async def test_a_refused_order_tells_its_reason(bot: Bot) -> None:
    bot.fault(FaultKind.REJECTED, Operation.CREATE_ORDER, code=-2019, message="Margin is insufficient.")
    assert isinstance(await bot.open(), NotOpened)
    (order,) = told(bot, OrderAnswered)
    assert (order.result, order.refusal) == (OrderResult.REFUSED, Refusal.FUNDS)


async def test_a_lost_answer_whose_order_is_found_is_told_as_found(bot: Bot) -> None:
    bot.fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, execution=Execution.FIRST)
    assert isinstance(await bot.open(), Opened)
    assert told(bot, OrderAnswered)[0].result is OrderResult.FOUND
    assert told(bot, DoubtResolved) == []


async def test_an_order_in_doubt_is_told_as_unknown_and_then_how_it_was_resolved(bot: Bot) -> None:
    bot.fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, execution=Execution.LATE, hold_ms=600)
    assert isinstance(await bot.open(), NotOpened)
    (order,) = told(bot, OrderAnswered)
    assert order.result is OrderResult.UNKNOWN
    for _ in range(100):
        await bot.manager.recover("binance")
        if told(bot, DoubtResolved):
            break
    (resolved,) = [one for one in told(bot, DoubtResolved) if one.step == "entry"]
    assert resolved.outcome is IntentOutcome.EXECUTED
    assert resolved.client_id == order.client_id
    assert resolved.after_ms > 0


async def test_a_position_tells_how_long_it_was_without_a_stop_once_it_has_one(bot: Bot) -> None:
    bot.fault(FaultKind.DELAY, Operation.CREATE_ALGO, hold_ms=300)
    assert isinstance(await bot.open(), Opened)
    spans = {event.position.status: event.without_stop_ms for event in told(bot, Moved)}
    assert spans.pop(PositionStatus.ACTIVE) >= 300
    assert set(spans.values()) == {None}


async def test_a_pass_tells_what_it_read_and_did(bot: Bot) -> None:
    await bot.open()
    await bot.sync()
    (looked,) = told(bot, Looked)
    assert (looked.exchange, looked.kind) == ("binance", "pass")
    assert [row.symbol for row in looked.rows] == ["APTUSDT"]
    assert len(looked.outcomes) == 1
    assert looked.took_ms > 0
    await bot.manager.recover("binance")
    assert [(event.kind, event.rows) for event in told(bot, Looked)[1:]] == [("recovery", None)]


async def test_a_listener_of_orders_that_fails_loses_no_answer(bot: Bot, caplog) -> None:
    guarded = GuardedExchange(bot.client, patience=Patience(needed=100 * MS))

    def fails(event: OrderAnswered) -> None:
        raise OSError("disk full")

    guarded.on_order(fails)
    manager = AtomicPositionManager(bot.guard, bot.pool, [guarded], pace=PACE, observers=[])
    price = bot.exchange.price(APT)
    result = await manager.open_position_atomic("s", APT, "binance", "long", "10", price, "2")
    assert isinstance(result, Opened)
    assert "a listener of orders failed; it stays" in caplog.text
