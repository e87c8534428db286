"""The way out: what an exit does, refused, lost or filled in part, and what becomes of its stop."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from lockguard.errors import LeaseNotHeld
from lockguard_ccxt import Executed, OrderState, Refusal, Step
from lockguard_positions import SyncAction
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._model import IntentOutcome
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import is_own
from tests.unit.positions_in_memory import (
    DOUBT_MS,
    LONG,
    LOST,
    SHORT,
    Desk,
    held,
    order,
    own_stop,
    position,
    refused,
)
from tests.unit.positions_told import asked, none_may_arrive_now, orders


async def test_a_close_reduces_on_the_other_side_and_then_cancels_the_stop() -> None:
    for side, other in ((LONG, "sell"), (SHORT, "buy")):
        desk = Desk(position(side=side))
        desk.venue.waiting = [own_stop(side=other)]
        row = await asked(desk)
        assert (row.status, row.exit_price) == (PositionStatus.CLOSED, Decimal(99))
        assert orders(desk) == ["close", "cancel"]
        assert desk.venue.intent("close").side == other


@pytest.mark.parametrize(
    ("shown", "ends"),
    [(None, True), (held(side="sell"), True), (held(), False)],
    ids=["flat", "turned", "held"],
)
async def test_an_exit_refused_as_nothing_to_reduce_is_judged_by_what_is_held(shown: Any, ends: bool) -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [shown]
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY), refused(Refusal.REDUCE_ONLY)]
    row = await asked(desk)
    assert row.status.open is not ends
    if not ends:  # its stop was in the way; it was cancelled for the exit, and stands again
        assert orders(desk) == ["close", "cancel", "close", "stop", "cancel"]
        assert [one.trigger for one in desk.venue.waiting] == [Decimal(98)]


async def test_an_exit_in_doubt_after_its_stop_was_cancelled_raises_an_alert() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY), LOST]
    assert (await asked(desk)).status.open
    assert any("may have no stop" in alert for alert in desk.alerts)


async def test_an_exit_whose_stop_was_cancelled_for_it_does_not_wait_for_the_database() -> None:
    """A database that went down in between would leave the position with neither a stop nor an exit."""
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY), Executed(order("x"))]
    await asked(desk)
    done = [what for what, _ in desk.venue.sent]
    without_stop = done[done.index("cancel") :]
    assert without_stop[:2] == ["cancel", "close"]
    assert desk.store.renewed


@pytest.mark.parametrize("shown", [held(), None], ids=["held", "flat"])
async def test_an_exit_in_doubt_after_its_stop_was_cancelled_puts_the_stop_back_at_once(shown: Any) -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held(), shown]
    desk.venue.answers = [refused(Refusal.CROWDED), LOST]
    row = await asked(desk)
    assert (row.status, desk.row.exit_reason) == (PositionStatus.ACTIVE, "exit")
    assert [one.trigger for one in desk.venue.waiting] == ([] if shown is None else [Decimal(98)])
    assert orders(desk)[:4] == ["close", "cancel", "close"] + ([] if shown is None else ["stop"])
    assert len(desk.store.gone) == (shown is None)


def crowded(exit_: Any) -> list[Any]:
    """The answers to an exit that has its stop in the way, and to the one that is sent without it."""
    return [refused(Refusal.CROWDED), exit_]


BARE = {
    "the cancel is lost": [refused(Refusal.CROWDED)],
    "an older stop stays": [refused(Refusal.CROWDED)],
    "refused": crowded(refused(Refusal.AUTHENTICATION)),
    "lost": crowded(LOST),
    "expired": crowded(Executed(order("x", state=OrderState.EXPIRED))),
    "still open": crowded(Executed(order("x", filled=Decimal(4)))),
    "in part, and the rest refused": [
        *crowded(Executed(order("x", state=OrderState.CANCELED, filled=Decimal(4)))),
        refused(Refusal.AUTHENTICATION),
    ],
    "in part, and the rest lost": [
        *crowded(Executed(order("x", state=OrderState.CANCELED, filled=Decimal(4)))),
        LOST,
    ],
}


@pytest.mark.parametrize("listed", [False, True], ids=["", "the list still shows it"])
@pytest.mark.parametrize("end", BARE)
async def test_a_stop_that_made_room_for_an_exit_stands_again_however_the_exit_ends(
    end: str, listed: bool
) -> None:
    desk = Desk(position())
    old = order("lgs-0", id="s0", trigger="97")
    desk.venue.waiting = [own_stop(), old] if end == "an older stop stays" else [own_stop()]
    desk.venue.orders["lgs-1"] = own_stop()
    desk.venue.holdings = [held(), held("6") if "part" in end or end == "still open" else held()]
    desk.venue.answers = list(BARE[end])
    desk.store.stops.add("lgs-0")
    cancel = desk.venue.cancel

    async def cancelled(stop: Any) -> Any:
        if stop.id == "s0":
            return refused(Refusal.AUTHENTICATION)
        answer = await cancel(stop)
        if stop.id == "s1":
            desk.venue.orders["lgs-1"] = own_stop(state=OrderState.CANCELED)
            desk.venue.waiting += [own_stop()] if listed else []
        return LOST if end == "the cancel is lost" else answer

    desk.venue.cancel = cancelled  # type: ignore[method-assign]
    assert (await asked(desk)).status is PositionStatus.ACTIVE
    standing = [one for one in desk.venue.waiting if one.client_id not in ("lgs-0", "lgs-1")]
    assert [one.trigger for one in standing] == [Decimal(98)]
    assert is_own(desk.row, standing[0])
    assert not any(intent.void for what, intent in desk.venue.sent if what == "close")
    assert desk.store.gone == []  # what the exit itself has filled was not taken away by anybody else


@pytest.mark.parametrize(
    "error", [ExchangeUnreadable("no answer"), LeaseNotHeld("gone", resource="r"), OSError(), None]
)
@pytest.mark.parametrize("at", ["cancel", "close", "stop"])
async def test_whatever_fails_after_a_stop_made_room_for_an_exit_is_told(
    at: str, error: Exception | None
) -> None:
    """By the table an active row has its stop: nobody would look for it until the next pass."""
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    desk.venue.answers = crowded(refused(Refusal.AUTHENTICATION))
    real = getattr(desk.venue, at)

    async def failing(*args: Any) -> Any:
        if at == "close" and "cancel" not in orders(desk):
            return await real(*args)
        raise error or asyncio.CancelledError

    setattr(desk.venue, at, failing)
    with pytest.raises(type(error) if error else asyncio.CancelledError):
        await asked(desk)
    assert any("without a stop" in alert for alert in desk.alerts)


async def test_a_position_that_is_not_shown_while_its_stop_may_be_missing_is_told() -> None:
    desk = Desk(position(age_ms=1_000))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held(), None]
    desk.venue.answers = crowded(Executed(order("x", state=OrderState.EXPIRED)))
    assert (await asked(desk)).status is PositionStatus.ACTIVE
    assert any("may have no stop" in alert for alert in desk.alerts)


@pytest.mark.parametrize("refusal", [Refusal.CROWDED, Refusal.REDUCE_ONLY])
@pytest.mark.parametrize("earlier", [False, True], ids=["fresh", "of an earlier holder"])
@pytest.mark.parametrize(
    ("age_ms", "fired", "reason"),
    [
        (9_999, None, None),
        (10_000, None, "exit"),
        (0, {"filled": 10}, "stop"),
        (9_999, {"filled": 4}, None),
        (10_000, {"filled": 4}, "exit"),
        (60_000, {"filled": 4, "filling": True}, None),
    ],
)
async def test_an_empty_list_that_may_lag_ends_no_row_whose_exit_was_refused(
    age_ms: int, fired: dict[str, Any] | None, reason: str | None, earlier: bool, refusal: Refusal
) -> None:
    ends = reason is not None
    desk = Desk(position(age_ms=age_ms, exit_reason="exit" if earlier else None))
    desk.venue.waiting = [own_stop()]
    desk.venue.answers = [refused(refusal)]
    real = desk.venue.close

    async def close(*args: Any) -> Any:
        desk.venue.holdings = [None]
        if fired is not None:
            facts: dict[str, Any] = fired | {"filled": Decimal(fired["filled"])}
            desk.venue.orders["lgs-1"] = own_stop(state=OrderState.CLOSED, **facts)
        return await real(*args)

    desk.venue.close = close  # type: ignore[method-assign]
    desk.venue.holdings = [held()]
    if earlier:
        desk.doubt(Step.CLOSE, asked=True, age_ms=DOUBT_MS)
        await desk.flow.resume(desk.row)
    else:
        await asked(desk)
    assert desk.row.status.open is not ends
    assert desk.store.gone[-1][1] is ends
    if ends:
        assert desk.row.exit_reason == (reason if earlier else "exit")
    else:
        assert orders(desk) == ["close"]  # its stop stands
        assert desk.alerts


@pytest.mark.parametrize("was_refused", [True, False])
async def test_a_row_waits_for_an_exit_whose_answer_was_lost_though_one_before_was_refused(
    was_refused: bool,
) -> None:
    """The row would end while the exit may still arrive, which would reduce what is opened next."""
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    intent = desk.doubt(Step.CLOSE, asked=True, refused=was_refused, age_ms=DOUBT_MS)
    real = desk.venue.close

    async def close(*args: Any) -> Any:
        await real(*args)
        desk.venue.waiting, desk.venue.holdings = [], [None]
        desk.venue.orders["lgs-1"] = own_stop(state=OrderState.CLOSED, filled=Decimal(10))
        return LOST

    desk.venue.close = close  # type: ignore[method-assign]
    await desk.flow.resume(desk.row)
    assert desk.store.gone == [(intent.client_id, True)]
    await desk.flow.resume(desk.row)
    assert desk.row.status.open
    desk.store.doubts = [replace(one, age_ms=DOUBT_MS) for one in desk.store.doubts]
    await desk.flow.resume(desk.row)
    assert (desk.row.status, desk.row.exit_reason) == (PositionStatus.CLOSED, "stop")
    assert orders(desk).count("close") == 1


@pytest.mark.parametrize("refusal", [Refusal.REDUCE_ONLY, Refusal.INVALID, Refusal.UNFILLED])
@pytest.mark.parametrize("shown", [held(), None], ids=["held", "flat"])
async def test_an_exit_of_which_another_copy_may_arrive_was_not_refused(shown: Any, refusal: Refusal) -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [shown]
    desk.venue.answers = [replace(refused(refusal), copied=True)]
    assert (await asked(desk)).status is PositionStatus.ACTIVE
    assert [was_refused for _, was_refused in desk.store.renewed] == [False]
    assert orders(desk) == ["close"]


async def test_an_exit_of_an_earlier_holder_that_is_refused_cancels_no_stop() -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    desk.doubt(Step.CLOSE, asked=True, age_ms=DOUBT_MS)
    desk.venue.answers = [refused(Refusal.CROWDED)] * 3
    await desk.flow.resume(desk.row)
    assert orders(desk) == ["close"]
    assert desk.venue.waiting


async def test_an_exit_that_is_still_open_leaves_the_row_open() -> None:
    desk = Desk(position())
    desk.venue.becomes = order("x", side="sell", filled=Decimal(3))
    assert (await asked(desk)).status.open
    assert any("still open" in alert for alert in desk.alerts)


async def test_an_exit_that_ended_partly_filled_closes_the_rest() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    parts = [order("x", state=OrderState.CANCELED, filled=Decimal(4)), None]

    async def done(market: Any, intent: Any, placed: Any, filling: Any = None) -> Any:
        return (parts.pop(0) if parts else None) or placed

    desk.venue.done = done  # type: ignore[method-assign]
    row = await asked(desk)
    assert row.status is PositionStatus.CLOSED
    assert [intent.amount for what, intent in desk.venue.sent if what == "close"] == [Decimal(10), Decimal(6)]


async def test_an_exit_that_nobody_asked_for_is_not_repeated_when_it_is_refused() -> None:
    desk = Desk()
    desk.venue.holdings = [held()]
    desk.venue.answers = [Executed(order("e1", side="buy", state=OrderState.CLOSED, filled=Decimal(10)))]
    desk.venue.answers += [refused(Refusal.WOULD_TRIGGER), refused(Refusal.AUTHENTICATION)]
    await desk.open()
    assert desk.row.status.open
    assert desk.row.exit_reason is None
    assert desk.store.settled[-1][1] is IntentOutcome.REFUSED


@pytest.mark.parametrize("by_person", [True, False])
@pytest.mark.parametrize(
    "shown", [held(), held("4"), held(price="90"), None], ids=["same", "part", "other", "flat"]
)
async def test_an_exit_of_before_closes_only_what_a_person_asked_for_and_is_as_it_was(
    by_person: bool, shown: Any
) -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [shown]
    desk.doubt(Step.CLOSE, asked=by_person, age_ms=DOUBT_MS)
    await desk.flow.resume(desk.row)
    as_it_was = shown is not None and shown.amount == 10 and shown.entry_price == 100
    assert ("close" in orders(desk)) is (by_person and as_it_was)


@pytest.mark.parametrize("by_person", [True, False])
async def test_an_exit_of_an_earlier_holder_is_neither_sent_again_nor_given_up_while_it_may_arrive(
    by_person: bool,
) -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.holdings = [held()]
    desk.doubt(Step.CLOSE, asked=by_person, age_ms=DOUBT_MS - 1)
    row = await desk.flow.resume(desk.row)
    assert (row.status, row.exit_reason) == (PositionStatus.ACTIVE, "exit")
    assert desk.store.settled == []
    assert orders(desk)[:1] == ["stop"]  # the earlier holder may have cancelled it for the exit
    assert "close" not in orders(desk)
    assert any("its order may still arrive" in alert for alert in desk.alerts)


@pytest.mark.parametrize("by_person", [True, False])
@pytest.mark.parametrize(
    ("shown", "filled", "young", "ends"),
    [
        (None, None, False, True),
        (None, None, True, False),
        (None, "10", True, True),
        (held(side="sell"), None, False, True),
        (held("9"), None, False, False),
        (held(), "10", False, True),
        (held(), "4", False, False),
    ],
    ids=[
        "flat",
        "not listed yet",
        "stopped",
        "turned",
        "less",
        "stopped and opened again",
        "stopped in part",
    ],
)
async def test_an_exit_is_never_sent_again_once_less_was_seen_than_it_was_to_close(
    shown: Any, filled: str | None, young: bool, ends: bool, by_person: bool
) -> None:
    desk = Desk(position(exit_reason="exit", age_ms=1_000 if young else 60_000))
    desk.venue.waiting = [own_stop()] if filled is None else []
    if filled is not None:
        desk.venue.orders["lgs-1"] = own_stop(state=OrderState.CLOSED, filled=Decimal(filled))
    desk.venue.holdings = [shown]
    intent = desk.doubt(Step.CLOSE, asked=by_person)
    await desk.flow.resume(desk.row)
    assert (desk.row.status.open, desk.row.unsettled) == (True, True)
    assert desk.store.gone == [(intent.client_id, ends)]
    # A person opens the same again before the exit can no longer arrive; the next holder comes after that.
    desk.venue.orders.clear()
    desk.venue.holdings = [held()]
    desk.store.row = replace(desk.row, age_ms=60_000)
    desk.store.doubts = [replace(one, age_ms=DOUBT_MS) for one in desk.store.doubts]
    await desk.flow.resume(desk.row)
    assert "close" not in orders(desk)
    assert desk.store.settled == [(intent.client_id, IntentOutcome.ABSENT)]
    assert (desk.row.status.open, desk.row.unsettled) == (not ends, False)
    assert bool(desk.venue.waiting) is not ends


async def test_what_was_seen_of_an_exit_is_written_before_anything_else_is_done() -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [None, held()]
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY)]
    desk.venue.cancels["s1"] = refused(Refusal.AUTHENTICATION)  # so its row cannot end yet
    await asked(desk)
    assert [what for what, _ in desk.venue.sent if what != "find"][-2:] == ["write", "cancel"]
    assert [ended for _, ended in desk.store.gone] == [True]


async def test_the_rest_of_an_exit_of_before_is_not_sent_to_what_was_opened_since() -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [None]
    intent = desk.doubt(Step.CLOSE, asked=True)
    part = order(intent.client_id, state=OrderState.CANCELED, filled=Decimal(4), average=Decimal(97))
    desk.venue.orders[intent.client_id] = part
    await desk.flow.resume(desk.row)
    assert "close" not in orders(desk)
    assert desk.row.status is PositionStatus.CLOSED


async def test_an_exit_that_was_refused_is_sent_again_however_young_it_is() -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    desk.doubt(Step.CLOSE, asked=True, refused=True)
    row = await desk.flow.resume(desk.row)
    assert (row.status, orders(desk)) == (PositionStatus.CLOSED, ["close", "cancel"])


@pytest.mark.parametrize(
    ("answer", "was_refused"),
    [(refused(Refusal.AUTHENTICATION), True), (LOST, False)],
    ids=["refused", "lost"],
)
async def test_the_age_of_an_exit_is_that_of_its_latest_order(answer: Any, was_refused: bool) -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    intent = desk.doubt(Step.CLOSE, asked=True, age_ms=DOUBT_MS)
    desk.venue.answers = [answer]
    await desk.flow.resume(desk.row)
    assert desk.store.renewed == [(intent.client_id, False), (intent.client_id, was_refused)]
    sent = [what for what, _ in desk.venue.sent]
    assert sent.index("write") < sent.index("close")


async def test_an_exit_of_an_earlier_holder_that_was_sent_is_followed_and_not_sent_again() -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.holdings = [held()]
    intent = desk.doubt(Step.CLOSE)
    sent = order(intent.client_id, state=OrderState.CLOSED, filled=Decimal(10), average=Decimal(97))
    desk.venue.orders[intent.client_id] = sent
    row = await desk.flow.resume(desk.row)
    assert (row.status, row.exit_price) == (PositionStatus.CLOSED, Decimal(97))
    assert "close" not in orders(desk)


async def test_a_position_whose_earlier_exit_took_its_stop_away_gets_it_back() -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.holdings = [held()]
    desk.doubt(Step.CLOSE, asked=True, age_ms=DOUBT_MS)
    desk.venue.answers = [refused(Refusal.AUTHENTICATION)]
    await desk.flow.resume(desk.row)
    assert orders(desk)[:2] == ["close", "stop"]
    assert [one.trigger for one in desk.venue.waiting] == [Decimal(98)]


async def test_a_row_ends_only_when_its_stops_are_certainly_gone() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.cancels["s1"] = refused(Refusal.AUTHENTICATION)
    row = await asked(desk)
    assert row.status.open
    assert any("may still be waiting" in alert for alert in desk.alerts)

    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.cancels["s1"] = refused(Refusal.AUTHENTICATION)
    assert (await desk.reconciler.reconcile()).action is SyncAction.IN_DOUBT
    assert desk.row.status.open
    desk.venue.cancels["s1"] = refused(Refusal.NOT_FOUND)
    assert (await desk.reconciler.reconcile()).action is SyncAction.ENDED
    assert (desk.row.status, desk.row.exit_reason) == (PositionStatus.CLOSED, "not on the exchange any more")


async def test_the_row_of_a_stop_that_was_taken_over_in_doubt_waits_for_another_copy_of_it() -> None:
    """Its holder has put it back in several copies and died; the exit for that is given up."""
    desk = Desk(position())
    desk.doubt(Step.CLOSE, age_ms=DOUBT_MS)
    stop = desk.doubt(Step.STOP, trigger="98")
    desk.venue.waiting, desk.venue.holdings = [order(stop.client_id, trigger="98")], [held()]
    assert (await desk.reconciler.reconcile()).action is SyncAction.RECOVERED
    assert desk.row.stop_client_id == stop.client_id
    desk.venue.holdings = [None]
    assert (await desk.reconciler.reconcile()).action is SyncAction.IN_DOUBT
    none_may_arrive_now(desk)
    assert (await desk.reconciler.reconcile()).action is SyncAction.ENDED
