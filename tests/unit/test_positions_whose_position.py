"""Whose a position is before the flow sells it, and whose stop is which."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from lockguard.testing import FakeClock
from lockguard_ccxt import Executed, Fill, OrderState, Refusal, Step
from lockguard_positions import SyncAction
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._flow import Flow
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import covers, is_own, only_follows, short_by, standing_stop
from tests.unit.positions_in_memory import (
    DOUBT_MS,
    LONG,
    LOST,
    PACE,
    SHORT,
    Desk,
    held,
    order,
    own_stop,
    position,
    refused,
)
from tests.unit.positions_told import FIRED_IN_PART, NO_ORDER, entered, none_may_arrive_now, orders


@pytest.mark.parametrize(
    ("shown", "row", "sells"),
    [
        (held(), {}, True),
        (held(price="100.01"), {}, True),
        (held("9"), {}, False),
        (held(price="105"), {}, False),
        (held(side="sell"), {}, False),
        (held(price=None), {}, False),
        (held(), {"entry_order_id": None}, False),
    ],
)
async def test_only_what_this_row_s_own_order_entered_is_sold_when_no_stop_can_be_placed(
    shown: Any, row: dict[str, Any], sells: bool
) -> None:
    desk = Desk(position("pending_sl", **row))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.holdings = [shown]
    desk.venue.answers = [refused(Refusal.WOULD_TRIGGER)]
    await desk.flow.resume(desk.row)
    assert ("close" in orders(desk)) is sells
    assert bool(desk.alerts)


def fills(*traded: tuple[str, str, str]) -> tuple[Fill, ...]:
    """The fills of the row's entry, ten bought, and of other orders after it: id, side, amount."""
    entry: Any = ("e1", "buy", "10")
    found: list[Any] = [entry, *traded]
    return tuple(Fill(name, side, Decimal(amount), at) for at, (name, side, amount) in enumerate(found))


CLOSED_AND_OPENED_ANEW = fills(("p1", "sell", "10"), ("p2", "buy", "10"))


@pytest.mark.parametrize(
    ("since", "sells"),
    [
        (fills(), True),
        (fills(("e1", "buy", "1")), True),
        (fills(("x1", "sell", "3")), True),
        (CLOSED_AND_OPENED_ANEW, False),
        (fills(("p1", "sell", "4"), ("p2", "buy", "4")), False),
        (fills(("p1", "sell", "20"), ("p2", "buy", "20")), False),
        (None, False),
    ],
    ids=[
        "alone",
        "in parts",
        "less its own stop",
        "opened anew",
        "a part exchanged",
        "turned round twice",
        "not shown",
    ],
)
async def test_what_a_person_opened_at_the_same_price_as_the_entry_is_not_the_entry_s(
    since: Any, sells: bool
) -> None:
    """Side, amount and price are those of the entry; only the account's fills tell the two apart."""
    desk = Desk(position("pending_sl"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.holdings, desk.venue.fills = [held()], since
    desk.venue.answers = [refused(Refusal.WOULD_TRIGGER)]
    await desk.flow.resume(desk.row)
    assert ("close" in orders(desk)) is sells
    assert any("not closed without a person's word" in told for told in desk.alerts) is not sells


@pytest.mark.parametrize(
    ("last", "sure"),
    [(fills(), True), (CLOSED_AND_OPENED_ANEW, False), (None, False), (LOST, False)],
    ids=["alone", "opened anew meanwhile", "not shown", "not answered"],
)
@pytest.mark.parametrize("slow", [1, 9], ids=["for a moment", "all the time"])
async def test_a_proof_that_took_longer_than_it_counts_is_read_behind_what_is_held_before_the_exit(
    last: Any, slow: int, *, sure: bool
) -> None:
    """A person may have traded since its first read. A slow exchange alone keeps no position open."""
    desk = Desk(position("pending_sl"))
    owner, clock = desk.flow._exits.owner, FakeClock()
    owner._scope = replace(desk.scope, clock=clock)
    desk.venue.holdings, desk.venue.fills = [held()], fills()
    reads = 0

    async def slowly(*_: Any) -> Any:
        nonlocal reads
        reads += 1
        clock.advance((1100 if reads <= slow else 100) * timedelta(milliseconds=1))
        found = fills() if reads == 1 else last
        if found is LOST:
            raise ExchangeUnreadable("the exchange did not answer")
        return found

    desk.venue.fills_since = slowly  # type: ignore[method-assign]
    assert await owner.is_sure(desk.row) is sure
    assert reads == 2


@pytest.mark.parametrize(
    ("row", "price", "since", "sells"),
    [
        ({}, "100", fills(), True),
        ({}, "100.01", fills(), True),
        ({}, "100", None, True),
        ({}, "100", fills(("x1", "sell", "4"), ("p2", "buy", "4")), True),
        ({}, "100", CLOSED_AND_OPENED_ANEW, False),
        ({"entry_order_id": None}, "100", None, True),
        ({"entry_order_id": None}, "100.01", None, False),
    ],
)
async def test_an_exit_that_was_asked_for_is_not_continued_for_a_position_opened_since(
    row: dict[str, Any], price: str, since: Any, sells: bool
) -> None:
    desk = Desk(position(exit_reason="exit", **row))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings, desk.venue.fills = [held(price=price)], since
    desk.doubt(Step.CLOSE, asked=True, age_ms=DOUBT_MS)
    await desk.flow.resume(desk.row)
    assert ("close" in orders(desk)) is sells


@pytest.mark.parametrize(("age_ms", "ends"), [(9_999, False), (10_000, True)])
async def test_what_a_list_does_not_show_has_ended_only_after_the_grace(age_ms: int, ends: bool) -> None:
    desk = Desk(position("pending_sl", age_ms=age_ms))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.answers = [refused(Refusal.WOULD_TRIGGER)] * 2
    row = await desk.flow.resume(desk.row)
    assert row.status.open  # the earlier holder may have sent another copy
    none_may_arrive_now(desk)
    row = await desk.flow.resume(row)
    assert row.status.open is not ends
    assert orders(desk) == ["stop"] * (1 if ends else 2)  # none is tried for what was seen to have ended


async def test_a_position_that_would_be_stopped_at_once_is_closed_and_rolled_back() -> None:
    desk = Desk()
    desk.venue.holdings = [held()]
    desk.venue.answers = [Executed(order("e1", side="buy", state=OrderState.CLOSED, filled=Decimal(10)))]
    desk.venue.answers += [refused(Refusal.WOULD_TRIGGER)]
    row = await desk.open()
    assert row.status is PositionStatus.ROLLED_BACK
    assert orders(desk) == ["enter", "stop", "close"]


class Wait:
    """A clock that a test moves, and what a person does meanwhile."""

    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> float:
        return self.at


BY_A_PERSON = (
    Fill("e1", "buy", Decimal(10), 0),
    Fill("p1", "sell", Decimal(10), 600),
    Fill("p2", "buy", Decimal(25), 800),
)


@pytest.mark.parametrize("refusal", [Refusal.WOULD_TRIGGER, Refusal.INVALID])
@pytest.mark.parametrize("shown", [held("25"), held()], ids=["another amount", "the same amount"])
async def test_what_a_person_opened_while_the_first_stop_was_refused_is_not_sold(
    shown: Any, refusal: Refusal
) -> None:
    """The entry's own call, and the lease under which it was sent, say nothing about what came after it."""
    desk = Desk()
    desk.venue.holdings, desk.venue.fills = [shown], BY_A_PERSON
    entered(desk, refused(Refusal.OVERLOADED), refused(refusal))
    row = await desk.open()
    assert row.status is PositionStatus.PENDING_SL
    assert orders(desk) == ["enter", "stop", "stop"]
    assert "it is not closed without a person's word" in desk.alerts[-1]


@pytest.mark.parametrize(
    ("lists", "fills"),
    [([None, None, held()], True), ([held()], False)],
    ids=["the position", "the fills"],
)
async def test_a_position_that_lists_do_not_show_yet_gets_its_stop_tried_again_before_it_is_closed(
    lists: list[Any], fills: bool
) -> None:
    desk = Desk(pace=replace(PACE, grace=timedelta(minutes=2)))
    desk.venue.holdings = lists
    entered(desk, *[refused(Refusal.WOULD_TRIGGER)] * 3)
    if not fills:
        listed, looks = desk.venue.fills, iter([None, None])

        async def lagging(*_: Any) -> Any:
            return next(looks, listed)

        desk.venue.fills_since = lagging  # type: ignore[method-assign]
    row = await desk.open()
    assert row.status is PositionStatus.ROLLED_BACK
    assert orders(desk) == ["enter", "stop", "stop", "stop", "close"]


@pytest.mark.parametrize("waited_s", [0.0, 0.9, 1.1])
@pytest.mark.parametrize("person", [True, False], ids=["a person traded", "nobody traded"])
async def test_what_an_exit_has_left_is_sold_only_on_a_proof_of_the_last_second(
    waited_s: float, person: bool
) -> None:
    """While a part of the exit waits in the book, a person may close the rest and open one of their own."""
    desk, clock = Desk(), Wait()
    desk.flow = Flow(replace(desk.scope, clock=clock))
    desk.venue.holdings = [held()]
    part = order("x", state=OrderState.CANCELED, filled=Decimal(4), average=Decimal(99))
    entered(desk, refused(Refusal.WOULD_TRIGGER), Executed(replace(part, state=OrderState.OPEN)))

    async def done(market: Any, intent: Any, placed: Any, *_: Any, **__: Any) -> Any:
        if placed.id != "x":
            return placed
        clock.at += waited_s
        desk.venue.holdings = [held("6")]
        desk.venue.fills = BY_A_PERSON if person else desk.venue.fills
        return part

    desk.venue.done = done  # type: ignore[method-assign]
    row = await desk.open()
    sold = not (person and waited_s > 1)
    assert row.status is (PositionStatus.ROLLED_BACK if sold else PositionStatus.PENDING_SL)
    assert orders(desk).count("close") == (2 if sold else 1)


@pytest.mark.parametrize("person", [True, False], ids=["a person traded", "nobody traded"])
async def test_a_refused_exit_is_sent_again_with_room_made_for_it_only_on_a_proof_of_the_last_second(
    person: bool,
) -> None:
    desk, clock = Desk(), Wait()
    desk.flow = Flow(replace(desk.scope, clock=clock))
    desk.venue.holdings = [held()]
    entered(desk, refused(Refusal.WOULD_TRIGGER), refused(Refusal.CROWDED))
    listed = desk.venue.open_orders

    async def slow(market: Any) -> Any:
        clock.at += 1.1
        desk.venue.fills = BY_A_PERSON if person else desk.venue.fills
        return await listed(market)

    desk.venue.open_orders = slow  # type: ignore[method-assign]
    await desk.open()
    assert orders(desk).count("close") == (1 if person else 2)


async def test_an_exit_that_nobody_asked_for_does_not_leave_while_it_cannot_be_read_whose_it_is() -> None:
    desk, clock = Desk(), Wait()
    desk.flow = Flow(replace(desk.scope, clock=clock))
    desk.venue.holdings = [held()]
    entered(desk, refused(Refusal.WOULD_TRIGGER))
    written = desk.store.expect_close

    async def slow(*args: Any, **kwargs: Any) -> Any:
        clock.at += 1.1
        desk.venue.unreadable = True
        return await written(*args, **kwargs)

    desk.store.expect_close = slow  # type: ignore[method-assign]
    await desk.open()
    assert (desk.row.status, desk.row.exit_reason) == (PositionStatus.PENDING_SL, None)
    assert "close" not in orders(desk)


async def test_a_duplicate_is_closed_and_the_other_row_left_alone() -> None:
    desk = Desk()
    desk.venue.holdings = [held()]
    desk.venue.answers = [Executed(order("e1", side="buy", state=OrderState.CLOSED, filled=Decimal(10)))]
    desk.store.duplicate = True
    row = await desk.open()
    assert row.status is PositionStatus.ROLLED_BACK
    assert orders(desk) == ["enter", "stop", "close", "cancel"]


def test_a_stop_is_the_row_s_by_id_or_by_a_name_that_both_have() -> None:
    row = position()
    assert is_own(row, own_stop())
    assert is_own(row, own_stop(id="other"))
    assert is_own(row, own_stop(client_id=""))
    assert not is_own(position(stop_client_id=None), order("x", client_id="", trigger="98"))
    assert not is_own(row, order("x", trigger="98"))


@pytest.mark.parametrize(
    ("side", "trigger", "follows"),
    [
        ("sell", "97", True),
        ("sell", "98", True),
        ("sell", "99", False),
        ("buy", "97", False),
        ("buy", "99", True),
    ],
)
def test_a_stop_of_the_position_follows_the_row_s_own_if_the_price_comes_to_it_later(
    side: str, trigger: str, follows: bool
) -> None:
    row = position(side=LONG if side == "sell" else SHORT, stop_price=Decimal(98))
    assert only_follows(row, order("x", side=side, trigger=trigger, closes_all=True)) is follows
    assert not only_follows(row, order("x", side=side, trigger=trigger))


def test_the_stop_that_protects_best_is_one_that_covers_all_and_is_reached_first() -> None:
    whole, near = order("whole", trigger="95"), order("near", trigger="96")
    part = order("part", trigger="97", amount=Decimal(9))
    not_stops = [
        order("opens", trigger="97", reduce_only=False),
        order("profit", trigger="120", takes_profit=True),
        order("other side", trigger="97", side="buy"),
        order("ended", trigger="97", state=OrderState.CANCELED),
    ]
    found = standing_stop([whole, part, near, *not_stops], "sell", Decimal(10))
    assert found is not None
    assert found.id == "near"
    assert standing_stop(not_stops, "sell", Decimal(10)) is None
    partly = standing_stop([part, *not_stops], "sell", Decimal(10))
    assert partly is not None
    assert partly.id == "part"
    short = standing_stop(
        [order("far", side="buy", trigger="110"), order("near", side="buy", trigger="104")],
        "buy",
        Decimal(10),
    )
    assert short is not None
    assert short.id == "near"
    assert not covers(order("x", trigger="98", amount=Decimal("9.9")), Decimal(10))
    assert covers(order("x", trigger="98", amount=Decimal(1), closes_all=True), Decimal(10))


@pytest.mark.parametrize(
    ("stops", "rest"),
    [
        ([own_stop()], 0),
        ([own_stop(amount=Decimal(1))], 9),
        ([own_stop(amount=Decimal(4)), order("x", trigger="97", amount=Decimal(6))], 0),
        ([order("x", trigger="1", amount=Decimal(0), closes_all=True)], 0),
        ([own_stop(amount=Decimal(0), closes_all=True)], 0),
        ([own_stop(reduce_only=False)], 0),
        ([order("opens", trigger="97", reduce_only=False)], 10),
        ([order("other side", trigger="103", side="buy")], 10),
        ([own_stop(takes_profit=True)], 10),
        ([own_stop(state=OrderState.CANCELED)], 10),
        ([own_stop(amount=Decimal(30))], 0),
    ],
)
def test_what_no_stop_covers_is_counted_over_all_that_protect(stops: Any, rest: int) -> None:
    assert short_by(stops, "sell", Decimal(10), position()) == rest
    assert short_by(stops, "buy", Decimal(10), position()) == 10 - sum(
        stop.amount for stop in stops if stop.side == "buy"
    )


async def test_a_position_whose_stop_covers_a_part_of_it_is_unprotected_in_every_pass() -> None:
    desk = Desk(position())
    desk.venue.holdings, desk.venue.waiting = [held()], [own_stop(amount=Decimal(1))]
    told = "its stops cover only a part of it: 1 of 10"
    for _ in range(2):
        outcome = await desk.reconciler.reconcile()
        assert (outcome.action, outcome.details) == (SyncAction.UNPROTECTED, told)
    assert desk.alerts == [told] * 2
    desk.venue.waiting.append(order("a person's", trigger="97", amount=Decimal(9)))
    assert (await desk.reconciler.reconcile()).action is SyncAction.IN_STEP
    desk.venue.waiting = [own_stop(amount=Decimal("9.95"))]  # rounded down to a step of 0.1
    assert (await desk.reconciler.reconcile()).action is SyncAction.IN_STEP


@pytest.mark.parametrize(
    ("shown", "stops", "bare", "differs"),
    [
        ("20", [own_stop()], "10 of 20", True),
        ("20", [own_stop(amount=Decimal(1))], "1 of 20", True),
        ("20", [own_stop(), order("a person's", trigger="97", amount=Decimal(4))], "14 of 20", True),
        ("20", [own_stop(), order("a person's", trigger="97", amount=Decimal(10))], "", True),
        ("20", [own_stop(closes_all=True)], "", True),
        ("10.05", [own_stop()], "", True),  # a stop is in whole steps
        ("10", [own_stop(amount=Decimal(9))], "9 of 10", False),
        ("4", [own_stop(amount=Decimal(4))], "", True),
        ("4", [own_stop(amount=Decimal(1))], "1 of 4", True),
    ],
)
async def test_what_is_held_without_a_stop_is_told_beside_all_else_that_is_wrong(
    shown: str, stops: Any, bare: str, differs: bool
) -> None:
    desk = Desk(position())
    desk.venue.holdings, desk.venue.waiting = [held(shown)], stops
    outcome = await desk.reconciler.reconcile()
    bare = bare and f"its stops cover only a part of it: {bare}"
    mismatch = f"the row says 10, the exchange holds {shown}" if differs else ""
    told = [one for one in (bare, mismatch) if one]
    assert sorted(desk.alerts) == sorted(told)
    assert outcome.details == "; ".join(told)
    assert outcome.action is (SyncAction.UNPROTECTED if bare else SyncAction.MISMATCH)
    assert orders(desk) == NO_ORDER


@pytest.mark.parametrize("listed", [True, False])
async def test_a_stop_moved_just_now_covers_the_row_s_part_of_what_is_held(listed: bool) -> None:
    desk = Desk(position())
    desk.venue.holdings = [held("20")]
    intent = desk.doubt(Step.STOP, trigger="99", age_ms=DOUBT_MS)
    moved = order(intent.client_id, trigger="99")
    desk.venue.orders[intent.client_id] = moved
    desk.venue.waiting = [moved] if listed else []
    outcome = await desk.reconciler.reconcile()
    assert desk.row.stop_client_id == intent.client_id
    assert (outcome.action, outcome.details) == (
        SyncAction.UNPROTECTED,
        "its stops cover only a part of it: 10 of 20; the row says 10, the exchange holds 20",
    )


async def test_more_than_the_row_says_is_told_also_where_no_stop_can_be_placed() -> None:
    desk = Desk(position())
    desk.venue.holdings, desk.venue.answers = [held("20")], [refused(Refusal.AUTHENTICATION)]
    outcome = await desk.reconciler.reconcile()
    assert outcome.action is SyncAction.UNPROTECTED
    assert outcome.details.startswith("without a stop: ")
    assert outcome.details.endswith("; the row says 10, the exchange holds 20")
    assert any(told.startswith("it has no stop") for told in desk.alerts)
    assert "the row says 10, the exchange holds 20" in desk.alerts
    assert orders(desk) == ["stop"]


async def test_only_the_row_s_stops_are_cancelled_also_one_that_is_not_listed_yet() -> None:
    desk = Desk(position())
    desk.venue.waiting = [order("person", trigger="97")]
    assert await desk.flow.sweeper.sweep(desk.row)
    assert [what for what in desk.venue.sent if what[0] == "cancel"] == [("cancel", "s1")]


async def test_a_stop_that_could_not_be_cancelled_is_not_gone_whatever_the_others_are() -> None:
    desk = Desk(position())
    desk.store.stops.add("lgs-2")
    desk.venue.waiting = [order("lgs-2", trigger="97"), own_stop()]
    desk.venue.cancels["lgs-2"] = LOST
    assert not await desk.flow.sweeper.sweep(desk.row)


async def test_a_stop_that_a_person_moved_before_it_was_taken_back_is_told() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.cancels["s1"] = Executed(own_stop("90", state=OrderState.CANCELED))
    assert await desk.flow.sweeper.sweep(desk.row)
    assert "at 98 when it was read and at 90 by then" in desk.alerts[0]


async def test_a_stop_that_the_entry_carried_goes_if_it_fires_first_and_a_person_s_stays() -> None:
    desk = Desk(position())
    desk.store.attached = Decimal(99)
    along = order("along", client_id="", trigger="99", attached=True, closes_all=True)
    moved = order("moved", client_id="", trigger="98.5", attached=True, closes_all=True)
    other_side = order("other", client_id="", trigger="99", attached=True, side="buy")
    desk.venue.waiting = [own_stop(), along, moved, other_side]
    await desk.flow.sweeper.sweep_old(desk.row)
    assert [what for what in desk.venue.sent if what[0] == "cancel"] == [("cancel", "along")]


@pytest.mark.parametrize(("age_ms", "settled"), [(DOUBT_MS - 1, 0), (DOUBT_MS, 1)])
async def test_a_stop_in_doubt_of_an_ended_position_is_absent_only_when_it_cannot_come_any_more(
    age_ms: int, settled: int
) -> None:
    desk = Desk(position())
    intent = desk.doubt(Step.STOP, trigger="98", age_ms=age_ms)
    await desk.flow.sweeper.sweep_loose(position("closed"), [intent])
    assert len(desk.store.settled) == settled


@pytest.mark.parametrize("taken", [True, False])
async def test_what_is_left_of_a_stop_in_doubt_of_an_ended_position_is_taken_back(taken: bool) -> None:
    desk = Desk(position())
    intent = desk.doubt(Step.STOP, trigger="98")
    desk.venue.orders[intent.client_id] = order("lgs-41", trigger="98", **FIRED_IN_PART, filling=True)
    desk.venue.cancels = {} if taken else {"lgs-41": refused(Refusal.OVERLOADED)}
    await desk.flow.sweeper.sweep_loose(position("closed"), [intent])
    assert ("cancel", "lgs-41") in desk.venue.sent
    assert len(desk.store.settled) == taken
