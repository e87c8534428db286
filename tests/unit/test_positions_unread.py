"""What is decided while an exchange takes orders, and does not answer what it is asked about them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from ccxt.async_support import binanceusdm
from ccxt.base import errors as ccxt

from lockguard_ccxt import Executed, GuardedExchange, OrderState, Refusal
from lockguard_ccxt._placing import Patience
from lockguard_positions import Moved, PositionStatus
from lockguard_positions._account import never_had
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._flow import Flow
from lockguard_positions._venue import Venue
from tests.unit.positions_in_memory import MARKET, MS, PACE, Desk, held, order, position, refused

HOUR_MS = 3_600_000


def ordered(desk: Desk) -> list[str]:
    return [what for what in desk.venue.ordered() if what != "write"]


def failing(desk: Desk, name: str, *, times: int) -> None:
    """Have the exchange fail to answer one kind of question, so many times."""
    listed, left = getattr(desk.venue, name), [times]

    async def fails(*given: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise ExchangeUnreadable("it does not answer")
        return await listed(*given)

    setattr(desk.venue, name, fails)


@pytest.mark.parametrize("unread", ["fills_since", "holding"])
async def test_a_new_position_whose_owner_cannot_be_read_for_a_moment_has_its_stop_tried_again_and_is_closed(
    unread: str,
) -> None:
    """The market has passed the stop, and its exchange is at its limit: that is when reads fail."""
    desk = Desk(pace=replace(PACE, stop_deadline=timedelta(seconds=5)))
    desk.venue.holdings = [held()]
    desk.venue.answers = [Executed(order("e1", side="buy", state=OrderState.CLOSED, filled=Decimal(10)))]
    desk.venue.answers += [refused(Refusal.WOULD_TRIGGER)] * 3
    failing(desk, unread, times=2)
    row = await desk.open()
    assert row.status is PositionStatus.ROLLED_BACK
    assert ordered(desk) == ["enter", "stop", "stop", "stop", "close"]


async def test_a_new_position_whose_owner_cannot_be_read_is_left_at_the_stop_deadline_with_an_alert() -> None:
    desk = Desk()
    desk.venue.holdings = [held()]
    desk.venue.answers = [Executed(order("e1", side="buy", state=OrderState.CLOSED, filled=Decimal(10)))]
    desk.venue.answers += [refused(Refusal.WOULD_TRIGGER)] * 1_000
    failing(desk, "fills_since", times=1_000)
    row = await desk.open()
    assert (row.status, row.exit_reason) == (PositionStatus.PENDING_SL, None)
    assert ordered(desk).count("stop") > 1
    assert "close" not in ordered(desk)
    assert "it has no stop: the price is beyond the stop already" in desk.alerts[-1]


class Still:
    """A clock that stands still."""

    def now(self) -> float:
        return 100.0


async def test_the_time_of_a_row_that_ended_without_a_stop_is_not_that_of_the_next_entry() -> None:
    """Both are driven under one lease: the open settles what an earlier holder left, and then enters."""
    desk = Desk(position("entry_placed", age_ms=HOUR_MS))
    desk.flow = Flow(replace(desk.scope, clock=Still()))
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY)]
    before = await desk.flow.resume(desk.row)
    assert not before.status.open
    entered = order("e1", side="buy", reduce_only=False)
    desk.venue.answers = [Executed(entered)]
    waits: list[float] = []

    async def done(market: Any, intent: Any, placed: Any, filling: Any) -> Any:
        waits.append(filling())
        return replace(entered, state=OrderState.CLOSED, filled=Decimal(10), average=Decimal(100))

    desk.venue.done = done  # type: ignore[method-assign]
    row = await desk.open()
    assert row.status is PositionStatus.ACTIVE
    assert waits == [PACE.stop_deadline.total_seconds() / 2]
    spans = [event.without_stop_ms for event in desk.events if isinstance(event, Moved)]
    assert [span for span in spans if span is not None] == [0]


@pytest.mark.parametrize("then", ["no answer", "no such order"])
async def test_an_exchange_that_fails_is_not_taken_for_one_that_has_never_had_an_order(then: str) -> None:
    """A young row's orders are looked for patiently, and all of these looks may fail."""
    client = binanceusdm()
    answers: Any = ccxt.RequestTimeout("x") if then == "no answer" else ccxt.OrderNotFound("x")

    async def fetch_order(*_: Any) -> Any:
        raise answers

    client.fetch_order = fetch_order
    patience = Patience(needed=MS, search=5 * MS, poll=MS)
    guarded = GuardedExchange(client, patience=patience)
    young = position(age_ms=0)
    try:
        if then == "no such order":
            assert await guarded.find_order(MARKET, "lge-1", patiently=True) is None
            assert await never_had(Venue(guarded, PACE), MARKET, young)
            return
        with pytest.raises(ccxt.RequestTimeout):
            await guarded.find_order(MARKET, "lge-1", patiently=True)
        with pytest.raises(ExchangeUnreadable, match="the exchange did not answer"):
            await never_had(Venue(guarded, PACE), MARKET, young)
    finally:
        await client.close()
