"""The API key of another account under a label: what that does not hold has not ended."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from lockguard_ccxt import Refusal, Step
from lockguard_positions import Adopt, PositionStatus, SyncAction
from lockguard_positions._account import never_had
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._own_rows import OwnRows
from lockguard_positions._survey import survey
from tests.unit.positions_in_memory import DOUBT_MS, MARKET, Desk, held, order, own_stop, position, refused

DAY_MS = 86_400_000


def elsewhere(row: Any, *, holds: Any = None, adopt: Adopt = Adopt.STOP) -> Desk:
    """An account that has never had the row's orders."""
    desk = Desk(row, adopt=adopt)
    desk.venue.foreign = True
    desk.venue.holdings = [holds]
    return desk


async def decided(desk: Desk, what: str) -> None:
    if what == "looked at":
        await desk.reconciler.reconcile()
    else:
        row, _ = await desk.reconciler.settle()
        assert row is not None
        await desk.flow.drive(await desk.flow.intend_close(row, "exit", asked=True))


@pytest.mark.parametrize(
    ("status", "holds", "what"),
    [
        *(
            (status, holds, what)
            for status in ("active", "with its exit in doubt", "with its stop in doubt")
            for holds in (None, held("4", side="sell"))
            for what in ("looked at", "closed")
        ),
        ("active", held(), "looked at"),
        ("active", held("3"), "looked at"),
    ],
)
async def test_no_row_ends_on_an_account_that_has_never_had_its_orders(
    status: str, holds: Any, what: str
) -> None:
    desk = elsewhere(position("pending_sl" if "stop" in status else "active"), holds=holds)
    if status == "with its exit in doubt":
        desk.store.row = replace(desk.row, exit_reason="exit")
        desk.doubt(Step.CLOSE, age_ms=DOUBT_MS, asked=True)
    if status == "with its stop in doubt":
        desk.doubt(Step.STOP, age_ms=DOUBT_MS, trigger="98")
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY)] * 5
    with pytest.raises(ExchangeUnreadable, match="may be that of another account"):
        await decided(desk, what)
    assert desk.row.status.open
    assert desk.venue.waiting == []
    assert not any(ended for _, ended in desk.store.gone)
    assert not any(one.unsent for one in desk.store.doubts)
    assert any("never had the orders" in told for told in desk.alerts)


@pytest.mark.parametrize("what", ["looked at", "closed", "stop moved", "resumed"])
@pytest.mark.parametrize(
    ("status", "doubt"),
    [
        ("active", None),
        ("active", {"step": Step.CLOSE, "asked": True}),
        ("active", {"step": Step.CLOSE, "asked": True, "refused": True}),
        ("active", {"step": Step.CLOSE, "asked": True, "age_ms": DOUBT_MS}),
        ("active", {"step": Step.CLOSE, "age_ms": DOUBT_MS}),
        ("active", {"step": Step.STOP, "trigger": "97"}),
        ("active", {"step": Step.STOP, "trigger": "97", "age_ms": DOUBT_MS}),
        ("pending_sl", None),
        ("pending_sl", {"step": Step.STOP, "trigger": "98"}),
        ("pending_sl", {"step": Step.STOP, "trigger": "98", "age_ms": DOUBT_MS}),
        ("entry_placed", None),
    ],
)
@pytest.mark.parametrize("amount", ["10", "25", "4"])
async def test_no_order_for_a_row_reduces_what_another_account_holds(
    status: str, doubt: Any, amount: str, what: str
) -> None:
    """The same symbol on the same side: every order for the row would sell a part of it, or stop it."""
    desk = elsewhere(position(status), holds=held(amount))
    if doubt is not None:
        desk.doubt(**doubt)
        if doubt["step"] is Step.CLOSE:
            desk.store.row = replace(desk.row, exit_reason="exit")
    before, doubts = desk.row, list(desk.store.doubts)
    ways = {
        "looked at": desk.reconciler.reconcile,
        "closed": partial(decided, desk, "closed"),
        "stop moved": partial(desk.reconciler.move_stop, Decimal(97)),
        "resumed": partial(desk.flow.resume, desk.row),
    }
    with pytest.raises(ExchangeUnreadable, match=r"binance:APTUSDT position 7: .*check the key"):
        await ways[what]()
    assert [one for one in desk.venue.ordered() if one != "write"] == []
    assert (desk.row, desk.store.doubts) == (before, doubts)
    assert (desk.store.settled, desk.store.gone) == ([], [])


async def test_an_account_is_asked_once_whether_it_knows_a_row_s_orders_and_anew_with_another_key() -> None:
    desk = Desk(position())
    desk.venue.holdings = [held()]
    key, asked = ["first"], []
    desk.venue.own_rows = OwnRows(lambda: key[0])

    async def knows(*_: Any, patiently: bool = False) -> bool:
        asked.append(key[0])
        return key[0] == "first"

    venue: Any = desk.venue
    venue.knows = knows
    for trigger in (97, 98):
        await desk.reconciler.move_stop(Decimal(trigger))
    assert asked == ["first"]
    key[0] = "second"
    with pytest.raises(ExchangeUnreadable):
        await decided(desk, "closed")
    assert asked == ["first", "second"]


async def test_an_account_is_not_asked_about_what_was_opened_there_a_moment_ago() -> None:
    desk = Desk()
    desk.venue.foreign = True  # its lists do not show the entry yet
    await desk.open()
    desk.venue.holdings = [held()]
    await decided(desk, "closed")
    assert desk.row.status is PositionStatus.CLOSED
    assert desk.venue.ordered().count("close") == 1


@pytest.mark.parametrize("refusal", [Refusal.REDUCE_ONLY, Refusal.CROWDED])
async def test_an_exit_is_not_left_to_be_sent_again_by_an_exchange_that_fails_after_it_showed_nothing(
    refusal: Refusal,
) -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.answers = [refused(refusal)]
    venue: Any = desk.venue
    shows = venue.holding

    async def shows_and_fails(market: Any) -> Any:
        shown = await shows(market)
        desk.venue.unreadable = True
        return shown

    venue.holding = shows_and_fails
    with pytest.raises(ExchangeUnreadable):
        await decided(desk, "closed")
    assert [never_again for _, never_again in desk.store.gone] == [True]
    assert desk.venue.ordered().count("close") == 1


async def test_a_person_s_stop_on_another_account_is_not_taken_over() -> None:
    desk = elsewhere(position(), holds=held())
    desk.venue.waiting = [order("by hand", trigger="97")]
    with pytest.raises(ExchangeUnreadable):
        await desk.reconciler.reconcile()
    assert desk.row.stop_order_id == "s1"


@pytest.mark.parametrize(
    ("row", "judged"),
    [
        (position(age_ms=79 * DAY_MS), True),
        (position(age_ms=81 * DAY_MS), False),
        (position(exchange="bybit", age_ms=5 * DAY_MS), True),
        (position(exchange="bybit", age_ms=8 * DAY_MS), False),
        (position(entry_client_id=None, entry_order_id=None), True),
        (position(entry_client_id=None, entry_order_id=None, age_ms=DAY_MS), False),
        (position(entry_client_id=None, entry_order_id=None, stop_client_id="by hand"), False),
    ],
)
async def test_nothing_is_said_of_orders_that_an_exchange_may_have_forgotten(row: Any, judged: bool) -> None:
    desk = elsewhere(row)
    desk.venue.name = row.exchange
    venue: Any = desk.venue
    assert await never_had(venue, MARKET, row) is judged
    desk.venue.foreign = False
    assert not await never_had(venue, MARKET, row)


@pytest.mark.parametrize("theirs", ["stands", "is not there yet", "is of the younger row", "is elsewhere"])
async def test_a_position_that_two_labels_have_adopted_ends_in_one_row(theirs: str) -> None:
    ours = position(entry_order_id=None, entry_client_id=None)
    desk = Desk(ours)
    desk.venue.holdings = [held()]
    desk.venue.waiting = [own_stop(), order("lgs-2", trigger="98")]
    number = 8 if theirs == "is of the younger row" else 3
    also = replace(ours, id=number, exchange="binance@b", stop_client_id="lgs-2", stop_order_id="lgs-2")
    if theirs == "is not there yet":
        also = replace(also, status=PositionStatus.PENDING_SL)
    desk.store.others = [also]
    if theirs != "is elsewhere":
        desk.venue.orders["lgs-2"] = desk.venue.waiting[1]
    outcome = await desk.reconciler.reconcile()
    ends = theirs == "stands"
    assert desk.row.status is (PositionStatus.CLOSED if ends else PositionStatus.ACTIVE)
    told = [one for one in desk.alerts if "binance@b" in one and "of binance," in one]
    if theirs == "is elsewhere":
        assert (outcome.action, told) == (SyncAction.IN_STEP, [])
    else:
        assert outcome.action is (SyncAction.ENDED if ends else SyncAction.MISMATCH)
        assert len(told) == 1
    assert [one for one in desk.venue.ordered() if one != "write"] == (["cancel"] if ends else [])
    assert order("lgs-2", trigger="98") in desk.venue.waiting


@pytest.mark.parametrize("theirs", ["is the younger's own", "covers a part"])
async def test_no_row_that_two_labels_have_for_one_position_ends_with_the_only_stop(theirs: str) -> None:
    """Of two passes that adopt at the same time, one often finds the other's stop, and takes it over."""
    shared = theirs == "is the younger's own"
    ours = position(entry_order_id=None, entry_client_id=None)
    also = replace(ours, id=3, exchange="binance@b", stop_client_id="lgs-2", stop_order_id="lgs-2")
    if shared:
        ours = replace(ours, stop_client_id="lgs-2", stop_order_id="lgs-2")
    desk = Desk(ours)
    desk.venue.holdings = [held()]
    stop = order("lgs-2", trigger="98", amount=Decimal(10 if shared else 4))
    desk.venue.waiting = [stop] if shared else [own_stop(), stop]
    desk.venue.orders["lgs-2"] = stop
    desk.store.others = [also]
    outcome = await desk.reconciler.reconcile()
    assert (outcome.action, desk.row.status) == (SyncAction.MISMATCH, PositionStatus.ACTIVE)
    assert "binance@b" in outcome.details
    assert desk.venue.ordered() == []


@pytest.mark.parametrize("theirs", ["on this account", "on another account"])
async def test_another_account_s_position_in_the_same_symbol_costs_no_look_in_each_pass(theirs: str) -> None:
    """Each look takes a lease and seven requests, for every symbol that both accounts have adopted."""
    ours = position(entry_order_id=None, entry_client_id=None)
    also = replace(ours, id=3, exchange="binance@b", stop_client_id="lgs-2", stop_order_id="lgs-2")
    here = theirs == "on this account"
    stop = order("lgs-2", trigger="98") if here else own_stop()
    ours = replace(ours, stop_client_id=stop.client_id, stop_order_id=stop.id)  # here it is taken over

    def answers(value: Any) -> Any:
        async def answer(*_: Any) -> Any:
            return value

        return answer

    store: Any = SimpleNamespace(
        open_on=answers((ours,)),
        symbols_with_loose_orders=answers(()),
        open_under_other_labels=answers((also,)),
    )
    venue: Any = SimpleNamespace(
        name="binance",
        all_waiting_stops=answers((stop,)),
        holdings=answers((held(),)),
        refresh_for=answers(None),
        name_of=lambda symbol: "APTUSDT",
        left_alone=lambda symbol: None,
        can_close=lambda holding: True,
    )
    found = await survey(store, venue)
    assert (found.to_look_at, len(found.in_step)) == ((("APTUSDT",), 0) if here else ((), 1))
