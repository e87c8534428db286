"""A symbol whose row and exchange are plain objects, so that each decision of the flow can be stated alone.

The exchange shows what a test lets it show: lists that lag, orders that are not there yet, partial fills,
answers that are lost. The row changes as the statements of the store change it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard_ccxt import (
    Executed,
    Fill,
    Holding,
    Market,
    OrderState,
    PlacedOrder,
    Refusal,
    Refused,
    Step,
    Unknown,
)
from lockguard_ccxt._money import MarketRules
from lockguard_positions import Alert, AtomicPositionManager, Moved, Pace, PositionStatus
from lockguard_positions._errors import DuplicatePosition, ExchangeUnreadable
from lockguard_positions._flow import Flow
from lockguard_positions._model import (
    Adopt,
    Intent,
    IntentOutcome,
    NewPosition,
    Position,
    PositionSide,
    Progress,
)
from lockguard_positions._own_rows import OwnRows
from lockguard_positions._reconcile import Reconciler
from lockguard_positions._scope import SymbolScope
from lockguard_positions._status import check_transition
from lockguard_positions._venue import Venue

MS = timedelta(milliseconds=1)
GRACE_MS = 10_000
DOUBT_MS = 20_000
LONG, SHORT = PositionSide.LONG, PositionSide.SHORT
PACE = Pace(settle=50 * MS, poll=MS, stop_deadline=30 * MS, retry_pause=MS, grace=GRACE_MS * MS)
RULES = MarketRules("APT/USDT:USDT", Decimal("0.1"), Decimal("0.01"), Decimal("0.1"), None, None)
MARKET = Market(
    *("binance", "APT/USDT:USDT", "APTUSDT", "swap", "USDT", Decimal(1)), True, False, True, lambda: RULES
)


def position(status: str = "active", *, side: PositionSide = LONG, **more: Any) -> Position:
    """A row of ten at 100, stopped at 98 by the order ``s1``; old enough for all lists to be right."""
    stop = "98" if side is LONG else "102"
    stopped = status == "active"
    facts: dict[str, Any] = {
        "id": 7,
        "exchange": "binance",
        "symbol": "APTUSDT",
        "side": side,
        "quantity": Decimal(10),
        "status": PositionStatus(status),
        "signal_id": "s",
        "entry_price": Decimal(100),
        "entry_order_id": "e1",
        "entry_client_id": "lge-1",
        "stop_loss_percent": Decimal(2),
        "stop_price": Decimal(stop) if stopped else None,
        "stop_order_id": "s1" if stopped else None,
        "stop_client_id": "lgs-1" if stopped else None,
        "exit_price": None,
        "exit_order_id": None,
        "exit_reason": None,
        "error_details": None,
        "opened_at": None,
        "closed_at": None,
        "token": 5,
        "age_ms": 60_000,
        "market": "APT/USDT:USDT",
        **more,
    }
    return Position(**facts)


def order(name: str, *, side: str = "sell", trigger: str | None = None, **more: Any) -> PlacedOrder:
    """An open order of ten, whose client order id is its name."""
    facts: dict[str, Any] = {
        "id": name,
        "client_id": name,
        "symbol": "APT/USDT:USDT",
        "side": side,
        "state": OrderState.OPEN,
        "amount": Decimal(10),
        "filled": Decimal(0),
        "average": None,
        "trigger": None if trigger is None else Decimal(trigger),
        "reduce_only": True,
        **more,
    }
    return PlacedOrder(**facts)


def own_stop(trigger: str = "98", **more: Any) -> PlacedOrder:
    """The stop of the row that :func:`position` makes."""
    return order("lgs-1", trigger=trigger, **{"id": "s1", **more})


def held(amount: str = "10", *, side: str = "buy", price: str | None = "100") -> Holding:
    """What the exchange holds."""
    return Holding("APT/USDT:USDT", side, Decimal(amount), None if price is None else Decimal(price))  # type: ignore[arg-type]


def refused(refusal: Refusal) -> Refused:
    """A refusal of an order."""
    return Refused(refusal, None, refusal.value, "")


LOST = Unknown("", "no answer in time", timedelta(0))
"""The answer to an order was lost."""


@dataclass
class FakeVenue:
    """What the exchange shows, and what was asked of it."""

    sent: list[tuple[str, Any]] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    """The outcomes of the next orders; without one an order is taken."""
    cancels: dict[str, Any] = field(default_factory=dict)
    orders: dict[str, PlacedOrder] = field(default_factory=dict)
    waiting: list[PlacedOrder] = field(default_factory=list)
    holdings: list[Holding | None] = field(default_factory=lambda: [None])
    """What the next reads of the position show; the last one stays."""
    fills: tuple[Fill, ...] | None = (Fill("e1", "buy", Decimal(10), 0),)
    """The account's fills since the entry; ``None`` if the exchange does not show all of them."""
    becomes: PlacedOrder | None = None
    last_price: Decimal = Decimal(100)
    unreadable: bool = False
    closed: bool = False
    foreign: bool = False
    """Whether it is another account than that of its rows."""
    name: str = "binance"
    in_doubt_ms: int = DOUBT_MS
    own_rows: OwnRows = field(default_factory=lambda: OwnRows(lambda: "key"))
    placed_stop: Any = None
    intended_stop: Any = None

    def __post_init__(self) -> None:
        self.intended_stop = lambda market, intent: Venue.intended_stop(self, market, intent)  # type: ignore[arg-type]
        self.placed_stop = lambda market, row: Venue.placed_stop(self, market, row)  # type: ignore[arg-type]

    def prepare(self, ask: Any, intent: Intent) -> None:
        return None

    def attached_stop(self, market: Market, new: NewPosition) -> None:
        return None

    def _answer(self, what: str, intent: Intent, taken: PlacedOrder) -> Any:
        self.sent.append((what, intent))
        return self.answers.pop(0) if self.answers else Executed(taken)

    async def enter(self, market: Market, intent: Intent, stop_price: Decimal | None, renew: Any) -> Any:
        filled = order(intent.client_id, side=intent.side, state=OrderState.CLOSED, reduce_only=False)
        taken = replace(filled, amount=intent.amount, filled=intent.amount, average=Decimal(100))
        return self._answer("enter", intent, taken)

    async def stop(self, market: Market, intent: Intent) -> Any:
        if intent.sent_before and intent.client_id in self.orders:
            return Executed(self.orders[intent.client_id], found=True)
        amount = market.rules.reduction(intent.amount)
        if amount is None:
            return refused(Refusal.INVALID)
        taken = order(intent.client_id, side=intent.side, trigger=str(intent.trigger), amount=amount)
        answer = self._answer("stop", intent, taken)
        if isinstance(answer, Executed) and answer.order.live:
            self.waiting.append(answer.order)
            self.orders[intent.client_id] = answer.order
        return answer

    async def close(self, market: Market, intent: Intent, renew: Any = None) -> Any:
        amount = market.rules.reduction(intent.amount)
        if amount is None:
            return refused(Refusal.INVALID)
        filled = order(intent.client_id, side=intent.side, state=OrderState.CLOSED)
        taken = replace(filled, amount=amount, filled=amount, average=Decimal(99))
        return self._answer("close", intent, taken)

    async def cancel(self, stop: PlacedOrder) -> Any:
        self.sent.append(("cancel", stop.id))
        answer = self.cancels.get(stop.id) or Executed(replace(stop, state=OrderState.CANCELED))
        if isinstance(answer, Executed):
            self.waiting = [one for one in self.waiting if one.id != stop.id]
            shown = self.orders.get(stop.client_id)
            if shown is not None and shown.live:
                self.orders[stop.client_id] = replace(shown, state=OrderState.CANCELED)
        return answer

    async def done(
        self, market: Market, intent: Intent, placed: PlacedOrder, filling: Any = None
    ) -> PlacedOrder:
        return self.becomes or placed

    def _look(self) -> None:
        if self.unreadable:
            raise ExchangeUnreadable("it does not answer")

    async def find(self, market: Market, intent: Intent, *, patiently: bool = False) -> PlacedOrder | None:
        self._look()
        self.sent.append(("find", intent.client_id))
        return self.orders.get(intent.client_id)

    async def find_stop(self, market: Market, row: Position) -> PlacedOrder | None:
        self._look()
        return self.orders.get(row.stop_client_id or "")

    async def knows(self, market: Market, row: Position, *, patiently: bool = False) -> bool:
        if row.exchange == self.name:
            return not self.foreign
        return (row.entry_client_id or "") in self.orders or (row.stop_client_id or "") in self.orders

    async def holding(self, market: Market) -> Holding | None:
        self._look()
        return self.holdings.pop(0) if len(self.holdings) > 1 else self.holdings[0]

    async def fills_since(self, market: Market, order_id: str) -> tuple[Fill, ...] | None:
        self._look()
        return self.fills

    async def open_orders(self, market: Market) -> tuple[PlacedOrder, ...]:
        self._look()
        return tuple(self.waiting)

    async def waiting_stops(self, market: Market) -> tuple[PlacedOrder, ...]:
        return tuple(order for order in await self.open_orders(market) if order.conditional)

    async def price(self, market: Market) -> Decimal:
        return self.last_price

    async def look(self, market: Market, quote: Any = None) -> tuple[Holding | None, Decimal | None]:
        return await self.holding(market), self.last_price

    async def refresh_for(self, symbols: Any) -> None: ...

    async def says_gone(self, exc: Exception) -> bool:
        return False

    def gone(self, symbol: str) -> bool:
        return False

    def market(self, symbol: str) -> Market:
        return MARKET

    def resource_of_row(self, symbol: str) -> str:
        return f"binance:{symbol}"

    def in_steps(self, market: Market, new: NewPosition, price: Decimal | None) -> NewPosition:
        return new

    def ordered(self) -> list[str]:
        """What was sent that changes something, in order."""
        return [what for what, _ in self.sent if what != "find"]

    def intent(self, what: str) -> Intent:
        """The intent of the last order of a kind."""
        found: Intent = next(intent for kind, intent in reversed(self.sent) if kind == what)
        return found


@dataclass
class FakeStore:
    """One row and its intents, changed as the statements of the store change them."""

    venue: FakeVenue
    row: Position | None = None
    doubts: list[Intent] = field(default_factory=list)
    settled: list[tuple[str, IntentOutcome]] = field(default_factory=list)
    gone: list[tuple[str, bool]] = field(default_factory=list)
    """Exits of which it was noted that they are never sent again, and whether the position had ended."""
    renewed: list[tuple[str, bool]] = field(default_factory=list)
    """Intents whose age counts from anew, and whether they were refused."""
    stops: set[str] = field(default_factory=lambda: {"lgs-1"})
    may_stand: list[Intent] = field(default_factory=list)
    """The intents of stops that the lists may not show."""
    unanswered: list[Intent] = field(default_factory=list)
    """The intents of stops of which an order may still arrive."""
    copied: list[str] = field(default_factory=list)
    """The stops of which another copy was noted to be on its way."""
    attached: Decimal | None = None
    ended: Position | None = None
    others: list[Position] = field(default_factory=list)
    loose: list[Intent] = field(default_factory=list)
    duplicate: bool = False
    number: int = 100
    parts: Decimal = Decimal(0)
    """What the row has of its entry, where that came in parts."""
    entered: Decimal = Decimal(0)
    """For how much the row's stops and exits were, before some of it was filled."""
    written: list[str] = field(default_factory=list)

    def _intent(
        self, row: Position, step: Step, trigger: Decimal | None = None, *, asked: bool = False
    ) -> Intent:
        self.number += 1
        self.entered = max(self.entered, row.quantity)
        name = f"lg{step.value[0]}-{self.number}"
        if step is Step.STOP:
            self.stops.add(name)
        return Intent(self.number, row.id, step, name, row.side.exit, row.quantity, trigger, asked=asked)

    def _now(self, row: Position, **changes: Any) -> Position:
        status = changes.get("status", row.status)
        if status is not row.status:
            check_transition(row.status, status)
        base = self.row if self.row is not None and self.row.id == row.id else row
        self.row = replace(base, **changes)  # a statement writes its own columns only
        self.venue.sent.append(("write", None))
        return self.row

    def _in_doubt_no_more(self, intent: Intent) -> None:
        self.doubts = [one for one in self.doubts if one.client_id != intent.client_id]

    async def begin(
        self, lease: Lease, new: NewPosition, *, number: Any, attached: Any, then: Any
    ) -> Progress:
        row = position("pending_entry", side=new.side, quantity=new.quantity, entry_order_id=None)
        self.row = row
        intent = Intent(9, row.id, Step.ENTRY, "lge-1", row.side.entry, row.quantity, attached)
        return Progress(row, intent)

    async def record_entry(
        self,
        lease: Lease,
        row: Position,
        intent: Any,
        *,
        order_id: Any,
        price: Any,
        quantity: Any,
        stop: Any,
        rests: bool = False,
        then: Any,
    ) -> Progress:
        if intent is not None:
            self._in_doubt_no_more(intent)
        if rests:
            self.parts = quantity
            self.doubts.append(intent)
        entered = {"entry_order_id": order_id, "entry_price": price or row.entry_price, "quantity": quantity}
        status = PositionStatus.ENTRY_PLACED if stop is None else PositionStatus.PENDING_SL
        now = self._now(row, status=status, stop_price=stop, **entered)
        return Progress(now, None if stop is None else self._intent(now, Step.STOP, stop))

    async def entry_filled(
        self,
        lease: Lease,
        row: Position,
        entry: PlacedOrder,
        *,
        closing: Intent | None = None,
        by: Any = None,
        again: bool = False,
    ) -> Progress:
        more, self.parts = entry.filled - self.parts, entry.filled
        if closing is None:
            return Progress(self._now(row, quantity=row.quantity + more, entry_price=entry.average))
        self._in_doubt_no_more(closing)
        self.settled.append(
            (closing.client_id, IntentOutcome.ABSENT if by is None else IntentOutcome.EXECUTED)
        )
        reason = row.exit_reason if again else None
        none = {"stop_order_id": None, "stop_client_id": None, "exit_reason": reason, "age_ms": 0}
        now = self._now(row, quantity=more, entry_price=entry.average, **none)
        return Progress(now, self._intent(now, Step.CLOSE, asked=closing.asked) if again else None)

    async def expect_stop(self, lease: Lease, row: Position, trigger: Decimal) -> Progress:
        intent = self._intent(row, Step.STOP, trigger)
        changes = {
            "status": PositionStatus.PENDING_SL,
            "stop_price": trigger,
            "stop_client_id": intent.client_id,
        }
        return Progress(self._now(row, stop_order_id=None, **changes), intent)

    async def activate(self, lease: Lease, row: Position, intent: Intent, order_id: str) -> Position:
        if self.duplicate:
            raise DuplicatePosition("another is active", existing_id=3)
        changes = {
            "stop_order_id": order_id,
            "stop_client_id": intent.client_id,
            "stop_price": intent.trigger,
        }
        return self._now(row, status=PositionStatus.ACTIVE, **changes)

    async def take_over_stop(self, lease: Lease, row: Position, stop: PlacedOrder) -> Position:
        if row.status is PositionStatus.ENTRY_PLACED:
            row = self._now(row, status=PositionStatus.PENDING_SL)
        changes = {
            "stop_order_id": stop.id,
            "stop_client_id": stop.client_id or None,
            "stop_price": stop.trigger,
        }
        for intent in [one for one in self.doubts if one.client_id == stop.client_id]:
            self._in_doubt_no_more(intent)
            await self.renew_intent(lease, row, intent, copied=True)
        return self._now(row, status=PositionStatus.ACTIVE, **changes)

    async def expect_move(self, lease: Lease, row: Position, trigger: Decimal) -> Progress:
        return Progress(row, self._intent(row, Step.STOP, trigger))

    async def move_stop(self, lease: Lease, row: Position, intent: Intent, stop: PlacedOrder) -> Position:
        self._in_doubt_no_more(intent)
        changes = {"stop_order_id": stop.id, "stop_client_id": intent.client_id, "stop_price": intent.trigger}
        return self._now(row, **changes)

    async def expect_close(
        self, lease: Lease, row: Position, reason: str, *, asked: bool = False, ended: bool = False
    ) -> Progress:
        intent = self._intent(row, Step.CLOSE, asked=asked)
        if ended:
            intent = replace(intent, unsent=True, void=True, ended=True)
            self.doubts.append(intent)
        return Progress(self._now(row, exit_reason=reason), intent)

    async def withdraw_close(
        self, lease: Lease, row: Position, intent: Intent, outcome: IntentOutcome, details: str
    ) -> Position:
        self.settled.append((intent.client_id, outcome))
        return self._now(row, exit_reason=None)

    async def renew_intent(
        self, lease: Lease, row: Position, intent: Intent, *, copied: bool = False
    ) -> None:
        if copied:
            self.copied.append(intent.client_id)
            self.unanswered.append(replace(intent, age_ms=0))
            return
        self.renewed.append((intent.client_id, intent.refused))
        self._noted(intent, age_ms=0)
        self.venue.sent.append(("write", None))

    async def note_gone(self, lease: Lease, row: Position, intent: Intent) -> None:
        self.gone.append((intent.client_id, intent.ended))
        self._noted(intent)
        self.venue.sent.append(("write", None))

    def _noted(self, intent: Intent, *, age_ms: int | None = None) -> None:
        """Write what is known of an intent; its age is the table's, not the one that was read with it."""
        self.doubts = [
            replace(intent, age_ms=one.age_ms if age_ms is None else age_ms)
            if one.number == intent.number
            else one
            for one in self.doubts
        ]

    async def close_rest(self, lease: Lease, row: Position, intent: Intent, placed: PlacedOrder) -> Progress:
        self.settled.append((intent.client_id, IntentOutcome.EXECUTED))
        self.entered = max(self.entered, row.quantity)
        now = self._now(row, quantity=row.quantity - placed.filled)
        rest = self._intent(now, Step.CLOSE, asked=intent.asked)
        return Progress(now, replace(rest, void=intent.void, ended=intent.ended))

    async def stop_filled(
        self, lease: Lease, row: Position, filled: Decimal, *, own: bool = False, fired: Any = None
    ) -> Position:
        if fired is not None:
            intent, _ = fired
            self.settled.append((intent.client_id, IntentOutcome.EXECUTED))
            self._in_doubt_no_more(intent)
        none = {"stop_order_id": None, "stop_client_id": None} if own else {}
        self.entered = max(self.entered, row.quantity)
        return self._now(row, quantity=row.quantity - filled, **none)

    async def finish(
        self,
        lease: Lease,
        row: Position,
        status: PositionStatus,
        *,
        intent: Any = None,
        outcome: Any = None,
        **told: Any,
    ) -> Position:
        if intent is not None:
            self._in_doubt_no_more(intent)
            if not intent.unsent:
                self.settled.append((intent.client_id, outcome or IntentOutcome.EXECUTED))
        reason = told.get("reason") or row.exit_reason
        return self._now(
            row,
            status=status,
            quantity=max(row.quantity, self.entered, self.parts),
            exit_reason=reason,
            exit_price=told.get("price"),
            error_details=told.get("error"),
        )

    async def settle(
        self, lease: Lease, row: Position, intent: Intent, outcome: IntentOutcome, **told: Any
    ) -> None:
        self._in_doubt_no_more(intent)
        self.settled.append((intent.client_id, outcome))

    async def note_error(self, lease: Lease, row: Position, error: str) -> Position:
        return self._now(row, error_details=error)

    async def adopt(self, lease: Lease, new: NewPosition) -> Position:
        self.row = position(
            *("entry_placed",),
            side=new.side,
            quantity=new.quantity,
            entry_price=new.entry_price,
            entry_order_id=None,
            entry_client_id=None,
            age_ms=0,
        )
        return self.row

    async def in_doubt(self, row: Position, *steps: Step) -> Intent | None:
        found = [one for one in self.doubts if one.step in steps]
        if not found:
            return None
        since = self.parts if found[-1].step is Step.ENTRY else found[-1].entered_since
        return replace(found[-1], sent_before=True, entered_since=since)

    async def stop_ids(self, row: Position) -> frozenset[str]:
        return frozenset(self.stops)

    async def stops_of(self, row: Position) -> tuple[frozenset[str], tuple[Intent, ...], tuple[Intent, ...]]:
        return frozenset(self.stops), tuple(self.may_stand), tuple(self.unanswered)

    async def attached_stop(self, row: Position) -> Decimal | None:
        return self.attached

    async def open_of(self, exchange: str, symbol: str) -> Position | None:
        return self.row if self.row is not None and self.row.status.open else None

    async def open_under_other_labels(self, exchange: str, symbol: str) -> tuple[Position, ...]:
        return tuple(self.others)

    async def last_ended(self, exchange: str, symbol: str) -> Position | None:
        return self.ended

    async def loose_stops(self, exchange: str, symbol: str) -> tuple[Intent, ...]:
        return tuple(self.loose)

    async def get(self, position_id: int) -> Position | None:
        return self.row if self.row is not None and self.row.id == position_id else self.ended

    async def next_intent(self, exchange: str, symbol: str) -> int:
        return self.number + 1


class Desk:
    """A row and an exchange, and the flow over both under one lease."""

    def __init__(self, row: Position | None = None, *, pace: Pace = PACE, adopt: Adopt = Adopt.STOP) -> None:
        self.venue = FakeVenue()
        self.store = FakeStore(self.venue, row)
        self.events: list[Any] = []
        grant = Grant(Resource("binance:APTUSDT"), new_grant_id(), Token(5), "h", "open", 60_000)
        self.lease = Lease(grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
        store: Any = self.store
        venue: Any = self.venue
        self.scope = SymbolScope(store, venue, MARKET, self.lease, pace, SYSTEM_CLOCK, self.events.append)
        self.flow = Flow(self.scope)
        self.reconciler = Reconciler(self.scope, self.flow, adopt=adopt, adopt_stop_loss_percent=Decimal(2))

    @property
    def row(self) -> Position:
        assert self.store.row is not None
        return self.store.row

    @property
    def alerts(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Alert)]

    @property
    def path(self) -> list[str]:
        return [event.position.status.value for event in self.events if isinstance(event, Moved)]

    def doubt(
        self,
        step: Step,
        *,
        age_ms: int = 0,
        trigger: str | None = None,
        asked: bool = False,
        refused: bool = False,
    ) -> Intent:
        """An intent that an earlier holder wrote, and may have sent."""
        number = len(self.store.doubts) + 1
        name = {Step.ENTRY: "lge", Step.STOP: "lgs", Step.CLOSE: "lgc"}[step]
        row = self.row
        side = row.side.entry if step is Step.ENTRY else row.side.exit
        intent = Intent(
            *(number, row.id, step, f"{name}-{40 + number}", side, row.quantity),
            None if trigger is None else Decimal(trigger),
            age_ms=age_ms,
            asked=asked,
            refused=refused,
        )
        self.store.doubts.append(intent)
        self.store.stops.add(intent.client_id)
        return intent

    async def open(self, side: PositionSide = LONG) -> Position:
        """Open a position of ten, as a signal asks for it."""
        new = NewPosition(
            *("binance", "APTUSDT", side, Decimal(10), Decimal(100), Decimal(2)), "s", market="APT/USDT:USDT"
        )
        progress = await self.flow.begin(new, number=9, attached=None, begun=lambda _: None)
        return await self.flow.drive(progress)


class Guard:
    """Gives the desk's lease to each hold; ``fails`` is raised in place of it for a resource."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.fails: dict[str, Exception] = {}
        self.holds: list[tuple[str, str]] = []

    @asynccontextmanager
    async def hold(
        self, resource: str, *, wait: Any = None, operation: str = "", on_busy: str = "wait"
    ) -> AsyncIterator[Lease]:
        self.holds.append((resource, on_busy))
        if resource in self.fails:
            raise self.fails[resource]
        yield self._desk.lease


def managed(desk: Desk, *observers: Any) -> tuple[AtomicPositionManager, Guard]:
    """A manager over the desk's row and exchange."""
    guard = Guard(desk)
    anything: Any = guard
    pool: Any = type("Pool", (), {"acquire": None})()
    manager = AtomicPositionManager(anything, pool, [], pace=desk.scope.pace, observers=observers)
    inside: Any = manager
    inside._venues, inside._store = {"binance": desk.venue}, desk.store
    return manager, guard
