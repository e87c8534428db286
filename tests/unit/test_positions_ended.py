"""A position that has ended: what a person opens meanwhile, rows beside others, a market that is gone."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from lockguard_ccxt import OrderState, Refusal, Step
from lockguard_positions import Adopt, SyncAction
from lockguard_positions._duplicates import Duplicates, divide
from lockguard_positions._model import Intent, IntentOutcome
from lockguard_positions._status import PositionStatus
from tests.unit.positions_in_memory import (
    DOUBT_MS,
    LONG,
    MARKET,
    SHORT,
    Desk,
    held,
    managed,
    order,
    own_stop,
    position,
    refused,
)
from tests.unit.positions_told import NO_ORDER, fired, none_may_arrive_now, orders


def gone(desk: Desk) -> None:
    desk.venue.holdings = [None]


def turned(desk: Desk) -> None:
    desk.venue.holdings = [held(side="sell")]


def refused_as(refusal: Refusal) -> Any:
    def ended(desk: Desk) -> None:
        desk.venue.holdings, desk.venue.answers = [None], [refused(refusal)]
        desk.doubt(Step.STOP, trigger="98")

    return ended


def executed_at_once(desk: Desk) -> None:
    desk.venue.holdings = [None]
    intent = desk.doubt(Step.STOP, trigger="98")
    desk.venue.orders[intent.client_id] = order(intent.client_id, trigger="98", state=OrderState.CLOSED)


ENDED: dict[str, tuple[str, Any]] = {
    "gone": ("active", gone),
    "turned": ("active", turned),
    "fired": ("active", fired),
    "its stop refused for want of it": ("pending_sl", refused_as(Refusal.REDUCE_ONLY)),
    "its stop refused as too late": ("pending_sl", refused_as(Refusal.WOULD_TRIGGER)),
    "its stop executed at once": ("pending_sl", executed_at_once),
    "gone before its stop": ("entry_placed", gone),
}


@pytest.mark.parametrize("why_open", ["a copy of its stop may arrive", "its stop waits", "its holder dies"])
@pytest.mark.parametrize("end", ENDED)
async def test_nothing_is_ordered_for_what_a_person_opens_while_the_row_of_an_ended_position_waits(
    end: str, why_open: str
) -> None:
    """A stop at the old price would sell what this table did not open."""
    status, ends = ENDED[end]
    desk = Desk(position(status, stop_order_id="s1", stop_client_id="lgs-1"), adopt=Adopt.OFF)
    desk.venue.waiting = [own_stop()]
    ends(desk)
    if why_open == "a copy of its stop may arrive" or status != "active":
        copy = Intent(90, 7, Step.STOP, "lgs-90", "sell", Decimal(10), Decimal(98), age_ms=3000)
        desk.store.unanswered = [copy]
    cancel: Any = desk.venue.cancel
    if why_open == "its stop waits":
        desk.venue.cancels["s1"] = refused(Refusal.AUTHENTICATION)
    if why_open == "its holder dies":

        async def dies(stop: Any) -> Any:
            await cancel(stop)
            raise ConnectionError

        desk.venue.cancel = dies  # type: ignore[method-assign]
        with pytest.raises(ConnectionError):
            await desk.reconciler.reconcile()
        desk.venue.cancel = cancel  # type: ignore[method-assign]
    else:
        assert (await desk.reconciler.reconcile()).action is SyncAction.IN_DOUBT
    assert desk.row.status.open

    desk.venue.holdings, desk.venue.last_price = [held("25", price="110")], Decimal(110)
    desk.venue.orders.setdefault("lgs-1", own_stop(state=OrderState.CANCELED))
    tried = desk.venue.ordered().count("stop")
    await desk.reconciler.reconcile()
    none_may_arrive_now(desk)
    desk.venue.cancels.clear()
    await desk.reconciler.reconcile()
    assert desk.row.status is PositionStatus.CLOSED
    assert desk.venue.ordered().count("stop") == tried
    assert "close" not in desk.venue.ordered()
    assert desk.venue.waiting == []


def test_of_several_rows_one_is_kept_that_is_stopped_or_else_the_oldest() -> None:
    rows = [
        position("pending_sl", id=1),
        position(id=2, stop_order_id="s2", stop_client_id="x2"),
        position(id=3),
    ]
    divided = divide(rows, None, [own_stop()])
    assert divided is not None
    assert divided.keep.id == 3
    same = [position(id=5, stop_order_id="a"), position(id=4, stop_order_id="b")]
    divided = divide(same, None, [])
    assert divided is not None
    assert divided.keep.id == 4


def test_only_rows_that_make_up_the_rest_are_closed_and_nothing_where_it_does_not_add_up() -> None:
    def row(number: int, amount: str, side: Any = LONG) -> Any:
        return position(id=number, quantity=Decimal(amount), side=side)

    rows = [row(1, "10"), row(2, "4"), row(3, "10", SHORT), row(4, "7")]
    divided = divide(rows, held("14"), [])
    assert divided is not None
    assert ([one.id for one in divided.close], [one.id for one in divided.end]) == ([2], [3, 4])
    larger_first = divide([row(1, "10"), row(2, "7"), row(3, "4")], held("14"), [])
    assert larger_first is not None
    assert [one.id for one in larger_first.close] == [3]
    assert divide(rows, held("15"), []) is None
    assert divide([row(1, "10"), row(2, "4", SHORT)], held("14"), []) is None
    assert divide(rows, held("3"), []) is None


async def test_rows_are_not_divided_while_an_entry_may_still_arrive() -> None:
    desk = Desk(position())
    desk.doubt(Step.ENTRY, age_ms=DOUBT_MS - 1)

    async def both(*_: object) -> Any:
        return (position(id=1), position(id=2))

    desk.store.all_open_of = both  # type: ignore[attr-defined]
    done = await Duplicates(desk.scope, desk.flow).settle()
    assert [one.action for one in done] == [SyncAction.IN_DOUBT]


async def test_a_stop_that_two_rows_share_stays_with_the_one_that_is_kept() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop(client_id="")]
    desk.venue.holdings = [held()]
    desk.store.stops = set()

    async def both(*_: object) -> Any:
        return (position(id=1, stop_client_id=None), position(id=2, stop_client_id=None))

    desk.store.all_open_of = both  # type: ignore[attr-defined]
    done = await Duplicates(desk.scope, desk.flow).settle()
    assert [one.action for one in done] == [SyncAction.ENDED]
    assert orders(desk) == NO_ORDER
    assert MARKET.name == "APTUSDT"


def delisted(desk: Desk) -> Any:
    """A manager whose exchange lists the desk's market no longer."""
    manager, _ = managed(desk)
    inside: Any = desk.venue
    inside.gone = lambda symbol: True
    inside.name_of = lambda symbol: symbol
    return manager


def unanswered_stop(desk: Desk, age_ms: int) -> None:
    desk.store.unanswered.append(desk.doubt(Step.STOP, age_ms=age_ms, trigger="98"))


LATE: dict[str, tuple[str, Any]] = {
    "its entry": ("pending_entry", lambda desk, age_ms: desk.doubt(Step.ENTRY, age_ms=age_ms)),
    "a stop of it": ("pending_sl", unanswered_stop),
    "its exit": ("active", lambda desk, age_ms: desk.doubt(Step.CLOSE, age_ms=age_ms, asked=True)),
}


@pytest.mark.parametrize("what", LATE)
async def test_what_may_still_arrive_stays_in_doubt_though_its_market_is_gone(what: str) -> None:
    """The contract may be back meanwhile: an entry would be without a stop, a stop cut the next one short."""
    status, doubt = LATE[what]
    desk = Desk(position(status))
    doubt(desk, DOUBT_MS - 1)
    left = await delisted(desk).close_position("APTUSDT", "binance", reason="by hand")
    assert (left.status.value, desk.store.settled) == (status, [])
    assert f"its market is gone, and {what} may still arrive" in left.error_details

    desk = Desk(position(status))
    doubt(desk, DOUBT_MS)
    ended = await delisted(desk).close_position("APTUSDT", "binance", reason="by hand")
    assert (ended.status.open, [outcome for _, outcome in desk.store.settled]) == (
        False,
        [IntentOutcome.ABSENT],
    )
    assert orders(desk) == NO_ORDER


async def test_another_copy_of_a_stop_that_stands_keeps_its_row_open_though_its_market_is_gone() -> None:
    desk = Desk(position())
    copy = desk.doubt(Step.STOP, trigger="98")
    desk.store.unanswered, desk.store.doubts = [copy], []
    left = await delisted(desk).close_position("APTUSDT", "binance")
    assert left.status is PositionStatus.ACTIVE
    none_may_arrive_now(desk)
    ended = await delisted(desk).close_position("APTUSDT", "binance")
    assert ended.status is PositionStatus.CLOSED


async def test_a_stop_of_an_ended_row_stays_in_doubt_though_its_market_is_gone() -> None:
    desk = Desk(position("closed"))
    stop = desk.doubt(Step.STOP, age_ms=DOUBT_MS - 1, trigger="98")
    desk.store.loose = [stop]
    assert await delisted(desk).close_position("APTUSDT", "binance") is None
    assert desk.store.settled == []
    desk.store.loose = [replace(stop, age_ms=DOUBT_MS)]
    assert await delisted(desk).close_position("APTUSDT", "binance") is None
    assert desk.store.settled == [(stop.client_id, IntentOutcome.ABSENT)]


@pytest.mark.parametrize("gone", [True, False])
async def test_a_move_refused_as_its_position_was_stopped_out_meanwhile_keeps_no_stop(gone: bool) -> None:
    desk = Desk(position())
    desk.venue.holdings = [None if gone else held()]
    desk.venue.orders["lgs-1"] = own_stop(state=OrderState.CLOSED, filled=Decimal(10)) if gone else own_stop()
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY if gone else Refusal.WOULD_TRIGGER)]
    outcome = await desk.reconciler.move_stop(Decimal(99))
    assert outcome.action is (SyncAction.CLOSED if gone else SyncAction.STOP_KEPT)
    assert desk.row.status is (PositionStatus.CLOSED if gone else PositionStatus.ACTIVE)
