"""What several tests of the flow's decisions ask of their desk."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from lockguard_ccxt import Executed, OrderState, Step
from tests.unit.positions_in_memory import (
    DOUBT_MS,
    Desk,
    held,
    order,
    own_stop,
)

NO_ORDER: list[str] = []


def orders(desk: Desk) -> list[str]:
    """What was ordered or cancelled."""
    return [what for what in desk.venue.ordered() if what != "write"]


def none_may_arrive_now(desk: Desk) -> None:
    """So much time has passed that no copy of a stop without an answer can still arrive."""
    desk.store.unanswered = [replace(one, age_ms=DOUBT_MS) for one in desk.store.unanswered]
    desk.store.doubts = [one for one in desk.store.doubts if one.step is not Step.STOP]


def entered(desk: Desk, *after: Any) -> None:
    """The entry fills all of it, and the next orders are answered with ``after``."""
    filled = order("e1", side="buy", state=OrderState.CLOSED, filled=Decimal(10))
    desk.venue.answers = [Executed(filled), *after]


async def asked(desk: Desk) -> Any:
    """A person closes the position."""
    return await desk.flow.drive(await desk.flow.intend_close(desk.row, "exit", asked=True))


def fired(desk: Desk) -> None:
    desk.venue.waiting, desk.venue.holdings = [], [held()]  # the list still shows what has ended
    desk.venue.orders["lgs-1"] = own_stop(state=OrderState.CLOSED, filled=Decimal(10))


FIRED_IN_PART = {"state": OrderState.CLOSED, "filled": Decimal(4)}


class NoQuote:
    """A price that was requested, and no read that was made ready."""

    held = None
