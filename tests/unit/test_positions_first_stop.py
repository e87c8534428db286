"""Which stop a row takes over, places or asks for again, and which rows end for want of a position."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from lockguard_ccxt import Executed, OrderState, Refusal, Step
from lockguard_positions import Adopt, SyncAction
from lockguard_positions._model import Progress
from lockguard_positions._status import PositionStatus
from tests.unit.positions_in_memory import (
    DOUBT_MS,
    GRACE_MS,
    LONG,
    LOST,
    SHORT,
    Desk,
    held,
    order,
    position,
    refused,
)
from tests.unit.positions_told import NO_ORDER, asked, none_may_arrive_now, orders


@pytest.mark.parametrize("status", ["entry_placed", "pending_sl"])
async def test_a_stop_that_stands_is_taken_over_and_no_second_one_placed(status: str) -> None:
    desk = Desk(position(status))
    desk.venue.waiting = [order("person", trigger="97")]
    row = await desk.flow.resume(desk.row)
    assert (row.status, row.stop_order_id, row.stop_price) == (PositionStatus.ACTIVE, "person", Decimal(97))
    assert orders(desk) == NO_ORDER


async def test_a_stop_that_covers_a_part_is_taken_over_with_an_alert() -> None:
    desk = Desk(position("entry_placed"))
    desk.venue.waiting = [order("half", trigger="97", amount=Decimal(5))]
    assert (await desk.flow.resume(desk.row)).stop_order_id == "half"
    assert desk.alerts[0] == "its stops cover only a part of it: 5 of 10"


@pytest.mark.parametrize(
    ("side", "price", "beyond"),
    [
        (LONG, "97", True),
        (LONG, "98", True),
        (LONG, "99", False),
        (SHORT, "103", True),
        (SHORT, "101", False),
    ],
)
async def test_no_stop_is_sent_beyond_the_price_for_what_this_table_did_not_open(
    side: Any, price: str, beyond: bool
) -> None:
    desk = Desk(position("entry_placed", side=side, entry_order_id=None))
    desk.venue.last_price = Decimal(price)
    row = await desk.flow.resume(desk.row)
    assert orders(desk) == ([] if beyond else ["stop"])
    assert row.status is (PositionStatus.ENTRY_PLACED if beyond else PositionStatus.ACTIVE)
    assert bool(desk.alerts) is beyond


@pytest.mark.parametrize(
    "refusal", [Refusal.AUTHENTICATION, Refusal.LIMIT, Refusal.UNRECOGNISED, Refusal.RATE_LIMITED]
)
async def test_a_stop_refused_for_what_passes_leads_to_an_alert_and_never_to_an_exit(
    refusal: Refusal,
) -> None:
    desk = Desk()
    desk.venue.answers = [Executed(order("e", side="buy", state=OrderState.CLOSED, filled=Decimal(10)))]
    desk.venue.answers += [refused(refusal)] * 200
    row = await desk.open()
    assert row.status is PositionStatus.PENDING_SL
    assert "close" not in orders(desk)
    assert "it has no stop" in desk.alerts[-1]
    assert desk.row.error_details is not None


async def test_each_holder_tries_to_place_a_stop_for_a_bounded_time() -> None:
    desk = Desk(position("pending_sl"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.holdings = [held()]
    desk.venue.answers = [refused(Refusal.RATE_LIMITED)] * 190
    await desk.flow.resume(desk.row)
    assert 0 < len(orders(desk)) < 100
    assert "it has no stop" in desk.alerts[-1]


async def test_nothing_is_asked_again_while_the_exchange_said_to_wait() -> None:
    desk = Desk(position("pending_sl"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.answers = [refused(Refusal.RATE_LIMITED)] * 5
    desk.venue.closed = True
    await desk.flow.resume(desk.row)
    assert orders(desk) == ["stop"]


async def test_a_stop_whose_answer_was_lost_is_asked_for_again_by_its_own_name() -> None:
    desk = Desk()
    desk.venue.answers = [Executed(order("e", side="buy", state=OrderState.CLOSED, filled=Decimal(10))), LOST]
    row = await desk.open()
    assert row.status is PositionStatus.ACTIVE
    first, second = (intent for what, intent in desk.venue.sent if what == "stop")
    assert first.client_id == second.client_id
    assert second.sent_before


@pytest.mark.parametrize(
    ("state", "status", "sent"),
    [(OrderState.CLOSED, "closed", []), (OrderState.CANCELED, "active", ["stop"])],
)
async def test_a_stop_that_ended_before_the_row_had_it_is_not_one_that_stands(
    state: OrderState, status: str, sent: list[str]
) -> None:
    desk = Desk(position("pending_sl", stop_client_id="lgs-41"))
    intent = desk.doubt(Step.STOP, trigger="98")
    filled = Decimal(10 if status == "closed" else 0)
    desk.venue.orders[intent.client_id] = order(
        intent.client_id, trigger="98", state=state, filled=filled, average=Decimal(97)
    )
    desk.venue.holdings = [held() if status == "active" else None]
    row = await desk.flow.resume(desk.row)
    if status == "closed":
        assert row.status is PositionStatus.PENDING_SL  # the earlier holder may have sent another copy
        none_may_arrive_now(desk)
        await desk.reconciler.reconcile()
        row = desk.row
    assert row.status.value == status
    assert [what for what in orders(desk) if what != "cancel"] == sent
    if status == "closed":
        assert (row.exit_reason, row.exit_price) == ("stop", Decimal(97))


@pytest.mark.parametrize("end", ["exit", "fired", "fired at once", "by hand", "gone", "late move"])
async def test_no_row_ends_while_a_copy_of_its_stop_may_still_arrive(end: str) -> None:
    """Binance takes the id again once its order has ended: the copy would cut the next position short."""
    desk = Desk()
    entered = Executed(order("e", side="buy", state=OrderState.CLOSED, filled=Decimal(10)))
    at_once = OrderState.CLOSED if end == "fired at once" else OrderState.OPEN
    stop: Any = Executed(order("lgs-101", trigger="98", state=at_once), copied=end != "late move")
    if end == "gone":
        stop = replace(refused(Refusal.REDUCE_ONLY), copied=True)
    desk.venue.answers = [entered, stop]
    row = await desk.open()
    desk.venue.holdings = [None]
    desk.store.row = replace(row, age_ms=60_000)
    match end:
        case "exit":
            desk.venue.holdings = [held()]
            await desk.flow.drive(await desk.flow.intend_close(row, "exit", asked=True))
        case "late move":
            desk.store.unanswered = [replace(desk.venue.intent("stop"), age_ms=DOUBT_MS - 1)]
            await desk.reconciler.reconcile()
        case _:
            fired = order("lgs-101", trigger="98", state=OrderState.CLOSED)
            desk.venue.orders = {} if end in ("by hand", "gone") else {"lgs-101": fired}
            await desk.reconciler.reconcile()
    assert desk.row.status.open
    assert desk.store.copied == ([] if end == "late move" else ["lgs-101"])
    none_may_arrive_now(desk)
    if end == "exit":
        await desk.flow.drive(Progress(desk.row, desk.venue.intent("close")))
    else:
        await desk.reconciler.reconcile()
    assert not desk.row.status.open


REST = {"state": OrderState.OPEN, "filled": Decimal(4)}


@pytest.mark.parametrize("what", ["an earlier stop's", "its stop's", "its entry's"])
@pytest.mark.parametrize(
    "end", ["exit", "stop fired", "first stop fired", "vanished", "turned", "refused for want of a position"]
)
async def test_no_row_ends_while_what_is_left_of_an_order_of_it_may_be_filled(what: str, end: str) -> None:
    """It would reduce, or add to, what is opened next."""
    first = end in ("first stop fired", "refused for want of a position")
    desk = Desk(position("pending_sl", stop_client_id="lgs-41") if first else position())
    name = {"an earlier stop's": "lgs-0", "its stop's": desk.row.stop_client_id, "its entry's": "lge-1"}[what]
    assert name is not None
    side = "buy" if name == "lge-1" else "sell"
    rest = order(name, id="77", side=side, reduce_only=side == "sell", **REST)
    desk.store.stops.add("lgs-0")
    desk.venue.waiting, desk.venue.cancels = [rest], {"77": refused(Refusal.OVERLOADED)}
    fired = order("", trigger="98", state=OrderState.CLOSED, filled=Decimal(10), average=Decimal(97))
    match end:
        case "exit":
            await asked(desk)
        case "first stop fired" | "refused for want of a position":
            desk.doubt(Step.STOP, trigger="98")
            first_stop = replace(fired, client_id="lgs-41")
            by_then = refused(Refusal.REDUCE_ONLY) if end.startswith("refused") else Executed(first_stop)
            desk.venue.answers = [by_then]
            await desk.flow.resume(desk.row)
            none_may_arrive_now(desk)
            await desk.reconciler.reconcile()
        case _:
            desk.venue.holdings = [held(side="sell") if end == "turned" else None]
            if end == "stop fired":
                desk.venue.orders["lgs-1"] = replace(fired, client_id="lgs-1", id="s1")
            await desk.reconciler.reconcile()
    assert desk.row.status.open
    assert ("cancel", "77") in desk.venue.sent
    desk.venue.cancels = {}
    if end == "exit":
        await desk.flow.drive(Progress(desk.row, desk.venue.intent("close")))
    else:
        await desk.reconciler.reconcile()
    assert desk.venue.waiting == []
    assert not desk.row.status.open
    assert desk.venue.ordered().count("close") == (2 if end == "exit" else 0)


async def test_an_exit_that_is_still_open_when_it_is_found_at_last_ends_no_row() -> None:
    desk = Desk(position())
    intent = replace(desk.doubt(Step.CLOSE, asked=True), sent_before=True, void=True, ended=True)
    late = order(intent.client_id, state=OrderState.OPEN)
    looks: list[Any] = [None, late]  # the exchange's reads lag

    async def find(market: Any, wanted: Any, *, patiently: bool = False) -> Any:
        return looks.pop(0) if len(looks) > 1 else looks[0]

    desk.venue.find = find  # type: ignore[method-assign]
    await desk.flow.drive(Progress(desk.row, replace(intent, age_ms=DOUBT_MS)))
    assert desk.row.status.open


@pytest.mark.parametrize(("shown", "ends"), [(None, True), (held(side="sell"), True), (held(), False)])
async def test_a_stop_refused_for_want_of_a_position_ends_the_row_unless_one_is_shown(
    shown: Any, ends: bool
) -> None:
    desk = Desk(position("pending_sl"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.holdings = [shown]
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY)] * 100
    row = await desk.flow.resume(desk.row)
    assert row.status.open  # the earlier holder may have sent another copy
    none_may_arrive_now(desk)
    row = await desk.flow.resume(row)
    assert row.status.open is not ends


@pytest.mark.parametrize(("shown", "ends"), [(None, True), (held(side="sell"), True), (held(), False)])
async def test_a_stop_of_which_no_copy_may_arrive_and_that_has_no_position_ends_the_row_at_once(
    shown: Any, ends: bool
) -> None:
    desk = Desk(position("entry_placed"))
    desk.venue.holdings = [shown]
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY)] * 1000
    await desk.flow.resume(desk.row)
    assert desk.row.status.open is not ends
    assert (orders(desk) == ["stop"]) is ends


@pytest.mark.parametrize("who", ["the holder that entered it", "a successor"])
@pytest.mark.parametrize("ends", [False, True], ids=["it was a lag", "it is gone"])
async def test_a_stop_refused_for_want_of_a_position_is_tried_again_while_the_list_may_lag(
    who: str, ends: bool
) -> None:
    """Right after a fill an exchange may not know of the position yet; its row ended, and it had no stop."""
    desk = Desk(position("pending_sl", age_ms=0), adopt=Adopt.OFF)
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY)] * 1000
    if who == "a successor":
        desk.doubt(Step.STOP, trigger="98")
        await desk.flow.resume(desk.row)
    else:
        entered = desk.store.record_entry

        async def just_now(*args: Any, **facts: Any) -> Progress:
            progress = await entered(*args, **facts)
            desk.store.row = replace(progress.position, age_ms=0)
            return replace(progress, position=desk.row)

        desk.store.record_entry = just_now  # type: ignore[method-assign]
        filled = order("e", side="buy", state=OrderState.CLOSED, filled=Decimal(10), average=Decimal(100))
        desk.venue.answers.insert(0, Executed(filled))
        await desk.open()
    assert desk.row.status.open
    assert orders(desk).count("stop") > 1
    assert "it has no stop" in desk.alerts[-1]
    desk.store.row = replace(desk.row, age_ms=GRACE_MS - 1)
    assert (await desk.reconciler.reconcile()).action is SyncAction.UNPROTECTED
    if ends:
        none_may_arrive_now(desk)
        desk.store.row = replace(desk.row, age_ms=GRACE_MS)
        await desk.reconciler.reconcile()
        assert not desk.row.status.open
    else:
        desk.venue.answers = []
        await desk.reconciler.reconcile()
        assert desk.row.status is PositionStatus.ACTIVE
        assert len(desk.venue.waiting) == 1
    assert "close" not in orders(desk)
