"""The laws of the flow, judged by the exchange's own record and by what is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lockguard._context import current_leases
from lockguard.errors import ConfigurationError, LockguardError
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_lab.exchange.faults import Operation
from lockguard_lab.exchange.model import AlgoChange, AlgoStatus, OrderChange, Origin, Side
from lockguard_lab.sim.flow.plan import FINAL_CODES
from lockguard_lab.sim.judge import Violation
from lockguard_positions import AlreadyOpen, NotOpened, Opened, SyncOutcome, SyncReport
from lockguard_positions._rows import is_asked
from lockguard_positions._status import OPEN

if TYPE_CHECKING:
    from lockguard_lab.exchange.http import Reply
    from lockguard_lab.exchange.model import AlgoOrder, Change, Fill, Order
    from lockguard_lab.sim.flow.database import Database, Moved
    from lockguard_lab.sim.flow.plan import FlowPlan
    from lockguard_lab.sim.flow.wire import Request, SimExchange
    from lockguard_lab.sim.world import Process, World
    from lockguard_positions import Position

__all__ = ["Book", "FlowJudge"]

_OPEN = {status.value for status in OPEN}
_ZERO = Decimal(0)
_ROUNDED = Decimal("0.000001")
"""An average has more digits than an answer shows."""
_LATELY_S = 30.0
"""Within this a person's act may have crossed what a bot had read."""
_AT_ONCE_S = 3.0
_DELAYS_ORDERS = {
    *("lose", "refuse passing", "fail reads", "lag", "maintenance", "ban", "deny", "clock", "slow exchange"),
    *("stop", "database down", "lose commit answers", "slow database", "cut redis", "partial", "kill"),
    "rest ends",
}
"""What may come between a bot's last look and its order, or has an order filled later."""
_READS = ("read", "look", "hold")
_CROWDED = ("-4118", "-2022")
_DEADLINE_S = 10.6
"""``Pace.stop_deadline``, and the way there."""
_GRACE_S = 9.0
"""A little less than ``Pace.grace``."""
_HINDERS_ALERTS = {
    *("kill", "cancel", "stop", "break", "cut redis", "wipe redis", "database down", "lose commit answers"),
    *(
        "slow database",
        "maintenance",
        "ban",
        "slow exchange",
        "fail reads",
        "lag",
        "clock",
        "partial",
        "drop",
        "short stop",
        "resting stop",
        "liquidation",
        "rest ends",
    ),
}
"""What may keep every bot from a position for a while; then there is another bound."""


@dataclass
class Book:
    """What the exchange knows of one contract since it was flat last.

    Attributes:
        qty: what is held, below zero if short.
        entry: the client id of the bot's order that opened it; empty for a person's.
        ours: how much of it bots have opened and not closed again.
        touched: whether a person had a hand in it, or the exchange of its own accord.
        person_at: when one of them did something there last, with the position or its stops.
        bare_since: since when the position has no stop; ``None`` while it has.
        final: whether a stop of it was refused for good.
        crowded_at: when an exit of it was refused because of its stops.
        dropped_at: when the exchange dropped a stop of it, of its own accord, or filled only a part of it.
        opened_at: when it was opened, or turned round.
    """

    qty: Decimal = _ZERO
    entry: str = ""
    ours: Decimal = _ZERO
    touched: bool = False
    person_at: float = -1e9
    bare_since: float | None = None
    final: bool = False
    crowded_at: float = -1e9
    dropped_at: float = -1e9
    opened_at: float = -1e9


@dataclass
class FlowJudge:
    """Watches one schedule."""

    world: World
    plan: FlowPlan
    exchange: SimExchange
    database: Database
    violations: list[Violation] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    books: dict[str, Book] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    by_hand: bool = False
    alerts: list[tuple[float, str]] = field(default_factory=list)
    closed: dict[Any, float] = field(default_factory=dict)
    read_at: dict[Any, float] = field(default_factory=dict)
    acting: Any = None
    on_event: Callable[[str, Any], None] = lambda *_: None
    """Told of each event that a trouble may wait for, and of the process that it happens to."""
    on_request: Callable[[Request], None] = lambda _: None
    """Told of each request that reaches the exchange."""

    def __post_init__(self) -> None:
        self.exchange.desk.on_change = self._changed
        self.exchange.on_send = self._sent
        self.exchange.on_arrival = self._arrived
        self.exchange.on_reply = self._replied
        self.database.on_commit = self._committed

    def accuse(self, law: str, told: str) -> None:
        """A law was broken."""
        self.violations.append(Violation(law, told))
        self.world.tell(f"VIOLATION {law}: {told}")

    def book(self, symbol: str) -> Book:
        """The book of a contract."""
        return self.books.setdefault(symbol, Book())

    def lately(self, book: Book, within_s: float = _LATELY_S) -> bool:
        """Whether a person did something there a moment ago."""
        return self.world.now - book.person_at < within_s

    @property
    def crossing_s(self) -> float:
        """For how long an order may be on its way since its bot has looked at what is held."""
        return _LATELY_S if self.plan.kinds & _DELAYS_ORDERS else _AT_ONCE_S

    # --- requests ---

    def _intent(self, client_id: str) -> dict[str, Any] | None:
        rows = self.database.tables.intents.values()
        return next((row for row in rows if row["client_id"] == client_id), None)

    def _sent(self, request: Request) -> None:
        """A request leaves its process."""
        if self.world.now < self.closed.get(request.process, 0.0):
            told = f"{request.process.name} sends {request.route.operation.value} during a ban"
            self.accuse("P: a ban is obeyed", told)
        if request.step in _READS:
            self.on_event("send read", request.process)
            return
        symbol = request.params.get("symbol", "")
        said = " ".join(request.params.get(name, "") for name in ("side", "quantity", "triggerPrice"))
        self.world.tell(f"{request.process.name} sends {request.step} {request.client_id} {said}")
        self._check_lease(request, symbol)
        if request.step != "cancel":
            self._check_intent(request)
        self.on_event(f"send {request.step}", request.process)

    def _check_lease(self, request: Request, symbol: str) -> None:
        now = request.process.time()
        leases = [lease for lease in current_leases() if not symbol or lease.resource.endswith(f":{symbol}")]
        held = [lease for lease in leases if lease.loss is None and now < lease.deadline]
        if not held:
            told = f"{request.process.name} sends {request.step} {request.client_id} of {symbol}"
            self.accuse("S13: no order leaves without a lease", told)

    def _check_intent(self, request: Request) -> None:
        intent = self._intent(request.client_id)
        if intent is None:
            self.accuse("S13: the intent is committed before its order", f"{request.client_id} has none")
            return
        params = request.params
        ordered = (
            params["side"].lower(),
            Decimal(params["quantity"]),
            Decimal(params["triggerPrice"]) if request.step == "stop" else None,
        )
        trigger = intent["trigger_price"] if request.step == "stop" else None
        intended = (intent["side"], intent["amount"], trigger)
        if ordered != intended:
            told = f"{request.client_id}: {ordered} was ordered, {intended} was intended"
            self.accuse("S13: an order is what was intended", told)

    def _arrived(self, request: Request) -> None:
        """A request reaches the exchange."""
        self.acting = request.process
        self._check_exit(request)
        self.on_request(request)

    def _check_exit(self, request: Request) -> None:
        if request.step != "close":
            return
        symbol = request.params["symbol"]
        intent, book = self._intent(request.client_id), self.book(symbol)
        if intent is None:
            return
        if is_asked(intent["details"]):
            if symbol not in self.asked:
                self.accuse("P1: only what a person asked for", f"{request.client_id} says that one did")
        elif not book.final and book.qty:
            told = f"an exit of {symbol}, and no stop was refused for good"
            self.accuse("P2: what passes is no reason to sell", told)

    def _replied(self, request: Request, reply: Reply) -> None:
        """The exchange has answered a request."""
        code = str(reply.body.get("code", "")) if isinstance(reply.body, dict) and reply.status != 200 else ""
        if request.step not in _READS:
            self.world.tell(f"exchange: {request.client_id} {reply.status} {code} {reply.ending or ''}")
        if request.route.operation in (Operation.OPEN_ALGOS, Operation.GET_ALGO):
            self.read_at[request.process] = self.world.now - self.exchange.desk.visibility.orders_ms / 1000
        if reply.headers and "Retry-After" in reply.headers:
            # It is known there once it has arrived.
            until = self.world.now + int(reply.headers["Retry-After"]) - 1
            known_s = self.exchange.delay_s[1] + 0.1
            self.world.after(known_s, lambda: self.closed.update({request.process: until}))
        if code and "symbol" in request.params:
            book = self.book(request.params["symbol"])
            if request.step == "stop" and code in ("-2021", *map(str, FINAL_CODES)):
                book.final = True
            if request.step == "close" and code in _CROWDED:
                book.crowded_at = self.world.now
        self.on_event("reply read" if request.step in _READS else f"reply {request.step}", request.process)

    # --- the exchange's record ---

    def _changed(self, _account: str, change: Change) -> None:
        match change:
            case OrderChange(order=order, fill=fill) if fill is not None:
                self._filled(order, fill)
            case AlgoChange(algo=algo):
                self.world.tell(
                    f"exchange: stop {algo.client_id} of {algo.symbol} {algo.side.value} {algo.qty} at"
                    f" {algo.trigger} is {algo.status.value}"
                )
                self._stop_changed(algo)
            case _:
                pass

    def _filled(self, order: Order, fill: Fill) -> None:
        symbol, book, now = order.symbol, self.book(order.symbol), self.world.now
        before = book.qty
        book.qty += fill.qty * order.side.sign
        self.world.tell(
            f"exchange: {order.origin.value} {order.client_id} {order.side.value} {fill.qty} {symbol} at"
            f" {fill.price}; held {book.qty}"
        )
        if before * book.qty <= 0:
            book.opened_at = now
        if order.origin is not Origin.API:
            self._by_others(book, before)
        else:
            self._by_a_bot(order, fill, book, before)
        if not book.qty:
            self.books[symbol] = Book(person_at=book.person_at)
        elif before * book.qty <= 0 and order.origin is Origin.API and book.entry == order.client_id:
            book.bare_since = None  # what it is without begins anew, and is looked at
        self._look_at_stops(symbol)

    def _by_a_bot(self, order: Order, fill: Fill, book: Book, before: Decimal) -> None:
        intent = self._intent(order.client_id)
        row = None if intent is None else self.database.tables.positions.get(intent["position_id"])
        if row is not None and row["status"] not in _OPEN:
            told = f"{order.client_id} fills {fill.qty}, and row {row['id']} is {row['status']}"
            self.accuse("P: a row ends when none of its orders can be filled", told)
        if order.client_id.startswith("lge-"):
            self._by_an_entry(order, fill, book, before)
        else:
            self._by_an_exit(order, fill, book, before)

    def _by_others(self, book: Book, before: Decimal) -> None:
        """A person, or a liquidation: no order of a bot."""
        book.person_at, book.touched = self.world.now, True
        if before * book.qty <= 0:  # turned round or opened
            book.entry, book.ours = "", _ZERO
        book.ours = min(book.ours, abs(book.qty))

    def _by_an_entry(self, order: Order, fill: Fill, book: Book, before: Decimal) -> None:
        if before and book.entry != order.client_id and not self.lately(book, self.crossing_s):
            whose = book.entry or "a person"
            if fill.opened and book.entry:
                told = f"{order.client_id} adds to {before} of {whose}"
                self.accuse("P: one position for one symbol", told)
            elif not fill.opened or fill.opened < fill.qty:
                self.accuse("P1: no order reduces what is not ours", f"{order.client_id} reduces {whose}")
            else:
                self.accuse("P: one position for one symbol", f"{order.client_id} adds to {whose}")
        if not before or before * book.qty < 0:
            book.entry, book.final = order.client_id, False
            book.touched = order.executed > fill.qty  # what it had filled before was closed beside it
        book.ours += fill.opened

    def _by_an_exit(self, order: Order, fill: Fill, book: Book, before: Decimal) -> None:
        if not order.reduce_only:
            self.accuse("P1: every exit is reduce-only", f"{order.client_id} is not")
        if fill.opened:
            self.accuse("P1: an exit opens nothing", f"{order.client_id} turned {before} into {book.qty}")
        intent = self._intent(order.client_id)
        judged = order.algo_id is None and intent is not None and not is_asked(intent["details"])
        if judged and fill.qty > book.ours and not self.lately(book, self.crossing_s):
            told = f"{order.client_id} sold {fill.qty}, of which {book.ours} was ours"
            self.accuse("P1: no order reduces what is not ours", told)
        book.ours = max(_ZERO, book.ours - fill.qty)

    def stops(self, symbol: str) -> list[AlgoOrder]:
        """The waiting stops that reduce what is held."""
        closing = Side.SELL if self.book(symbol).qty > 0 else Side.BUY
        return [
            algo
            for algo in self.exchange.desk.engine().open_algo_orders()
            if algo.symbol == symbol
            and algo.side is closing
            and (algo.reduce_only or algo.close_position)
            and not algo.type.value.startswith("TAKE")
        ]

    def covered(self, symbol: str) -> bool:
        """Whether a stop closes all that is held; of what a person had a hand in, any part."""
        book = self.book(symbol)
        return any(
            algo.close_position or algo.qty >= abs(book.qty) or book.touched for algo in self.stops(symbol)
        )

    def _look_at_stops(self, symbol: str) -> None:
        book = self.book(symbol)
        if not book.qty or self.covered(symbol):
            if book.bare_since is not None:
                self._was_bare(symbol, book)
            book.bare_since = None
        elif book.bare_since is None:
            book.bare_since = since = self.world.now
            if book.entry and not self.plan.kinds & _HINDERS_ALERTS:
                self.world.after(_DEADLINE_S, lambda: self._look_for_alert(symbol, since))

    def _look_for_alert(self, symbol: str, since: float) -> None:
        """A position has been without a stop for longer than it may be, unless somebody was told."""
        book = self.book(symbol)
        if self.lately(book, 2 * _DEADLINE_S):  # what a person does is found out by the next pass
            return
        if book.bare_since != since or self.told_of(symbol):
            return
        told = f"{symbol} has had none for {self.world.now - since:.1f} s"
        self.accuse("P5: a position without a stop is an alert", told)

    def told_of(self, symbol: str) -> bool:
        """Whether there was an alert on the position that is held; one on an earlier position is none."""
        opened_at = self.book(symbol).opened_at
        return any(at >= opened_at and resource.endswith(symbol) for at, resource in self.alerts)

    def _was_bare(self, symbol: str, book: Book) -> None:
        assert book.bare_since is not None
        lasted = self.world.now - book.bare_since
        if self.plan.calm and lasted > 1.0:
            self.accuse("P: a position has its stop at once", f"{symbol} had none for {lasted:.2f} s")

    def _stop_changed(self, algo: AlgoOrder) -> None:
        symbol, book = algo.symbol, self.book(algo.symbol)
        if self.by_hand or algo.origin is Origin.PERSON:
            book.person_at = self.world.now
        if algo.origin is Origin.API and not (algo.reduce_only or algo.close_position):
            self.accuse("P1: every exit is reduce-only", f"{algo.client_id} is not")
        if algo.status in (AlgoStatus.EXPIRED, AlgoStatus.TRIGGERED, AlgoStatus.FINISHED):
            book.dropped_at = self.world.now
        was_covered = book.ours and book.bare_since is None
        self._look_at_stops(symbol)
        if algo.status is not AlgoStatus.CANCELED or self.by_hand or not was_covered or self.covered(symbol):
            return
        known = book.dropped_at < self.read_at.get(self.acting, self.world.now)
        if known and not self.lately(book, 12.0) and self.world.now - book.crowded_at > 15.0:
            told = f"{algo.client_id} of {symbol} is taken back, and {book.qty} has no other"
            self.accuse("P3: a position keeps its stop", told)

    # --- the rows ---

    def _committed(self, moved: Moved, token: int, process: Process) -> None:
        for before, after in moved:
            status = after["status"]
            was = None if before is None else before["status"]
            self.world.tell(
                f"row {after['id']} of {after['symbol']} {was} -> {status} {after['quantity']} stop"
                f" {after['stop_price']} {after['exit_reason'] or ''} {after['error_details'] or ''}"
            )
            if before is not None and (before["token"] or 0) > token:
                self.accuse("S3: no stale commit", f"row {after['id']}: {token} after {before['token']}")
            if was is None and status == "entry_placed":
                self._adopted(after)
            if was in _OPEN and status not in _OPEN:
                self._ended(after)
            if was == "pending_entry" and status in ("entry_placed", "pending_sl"):
                self._entered(after)
            if was != "active" and status == "active":
                self._active(after)
        self.on_event("commit", process)

    def orders_of(self, client_id: str | None) -> list[Order]:
        """The exchange's ordinary orders of a client id."""
        if not client_id:
            return []
        return [order for order in self.exchange.desk.engine().orders() if order.client_id == client_id]

    def _ended(self, row: dict[str, Any]) -> None:
        entries = self.orders_of(row["entry_client_id"])
        if row["status"] in ("failed", "canceled") and any(order.executed for order in entries):
            told = f"row {row['id']} is {row['status']}, and its entry was executed"
            self.accuse("P: rows tell the truth", told)
        book = self.book(row["symbol"])
        if row["entry_client_id"] and book.qty and book.entry == row["entry_client_id"] and not book.touched:
            told = f"row {row['id']} is {row['status']}, and {book.qty} is held"
            self.accuse("P: a row ends when its position is gone", told)

        self._check_end(row)

    def _check_end(self, row: dict[str, Any]) -> None:
        """What a row says of its end is what happened."""
        engine, symbol = self.exchange.desk.engine(), row["symbol"]
        entered = {order.executed for order in self.orders_of(row["entry_client_id"]) if order.executed}
        if row["entry_order_id"] and entered and row["quantity"] not in entered:
            told = f"row {row['id']} ended with {row['quantity']}, and {entered} were entered"
            self.accuse("P: rows tell the truth", told)
        prices = {order.avg_price for order in engine.orders() if order.symbol == symbol and order.executed}
        said = row["exit_price"]
        if said is not None and not any(abs(said - price) < _ROUNDED for price in prices):
            told = f"row {row['id']} ended at {row['exit_price']}, and nothing was filled there"
            self.accuse("P: rows tell the truth", told)
        if row["exit_reason"] == "stop" and not any(
            algo.order_id
            for algo in engine.algo_orders()
            if str(algo.id) == row["stop_order_id"] or algo.client_id == row["stop_client_id"]
        ):
            self.accuse("P: rows tell the truth", f"row {row['id']} ended by its stop, which has not fired")

    def _adopted(self, row: dict[str, Any]) -> None:
        """A row for what was found on the exchange: no leg of hedge mode, no echo of what has just ended."""
        book = self.book(row["symbol"])
        if self.exchange.desk.engine().account.hedged and not self.lately(book, self.crossing_s):
            told = f"row {row['id']} is for {book.qty} in hedge mode, where its stop is refused"
            self.accuse("P: only positions of one-way mode are kept", told)
        if book.qty:
            return
        for other in self.database.tables.positions.values():
            if other["symbol"] == row["symbol"] and other["closed_at"] is not None:
                age_s = (row["created_at"] - other["closed_at"]).total_seconds()
                if age_s < _GRACE_S and other["status"] != "failed":
                    told = f"row {row['id']} is the echo of row {other['id']}, ended {age_s:.1f} s before"
                    self.accuse("P: rows tell the truth", told)

    def _entered(self, row: dict[str, Any]) -> None:
        orders = self.orders_of(row["entry_client_id"])
        true = {(str(one.id), one.executed, round(one.avg_price, 6)) for one in orders if one.executed}
        said = (row["entry_order_id"], row["quantity"], round(row["entry_price"], 6))
        if said not in true:
            self.accuse("P: rows tell the truth", f"row {row['id']} says {said}, and the exchange {true}")

    def _active(self, row: dict[str, Any]) -> None:
        algos = [
            one for one in self.exchange.desk.engine().algo_orders() if str(one.id) == row["stop_order_id"]
        ]
        if not algos:
            self.accuse("P: rows tell the truth", f"the stop of row {row['id']} was never placed")
        elif (algos[0].side is Side.SELL) is not (row["side"] == "long"):
            self.accuse("P: rows tell the truth", f"the stop of row {row['id']} is on its own side")

    # --- the calls ---

    def returned(self, who: str, call: str, symbol: str, result: object, began: float) -> None:
        """A call of a bot has ended."""
        name = type(result).__name__
        self.outcomes[f"{call} {name}"] = self.outcomes.get(f"{call} {name}", 0) + 1
        self.world.tell(f"{who} {call} {symbol}: {_said(result)} after {self.world.now - began:.2f} s")
        if isinstance(result, BaseException):
            if not self._may_raise(call, result):
                self.accuse("S12: the outcome of every call", f"{call} raised {result!r}")
        elif isinstance(result, Opened):
            self._check_fill(result.position, filled=True)
        elif isinstance(result, NotOpened) and result.position is not None:
            if result.position.status.value in ("failed", "canceled"):
                self._check_fill(result.position, filled=False)
        elif isinstance(result, AlreadyOpen) and result.position.id not in self.database.tables.positions:
            self.accuse("S12: the outcome of every call", f"row {result.position.id} does not exist")

    def _may_raise(self, call: str, error: BaseException) -> bool:
        """Whether a call may end like this."""
        if isinstance(error, ConfigurationError) and "hedge mode" in self.plan.kinds:
            return call == "move stop" or "is in hedge mode" in str(error)
        if isinstance(error, ConfigurationError):
            return call == "move stop"  # of a position that is not there
        if isinstance(error, DATABASE_ERRORS):
            return bool(self.plan.kinds & {"database down", "lose commit answers", "slow database"})
        return isinstance(error, LockguardError | asyncio.CancelledError)

    def _check_fill(self, row: Position, *, filled: bool) -> None:
        if any(order.executed for order in self.orders_of(row.entry_client_id)) is not filled:
            told = f"row {row.id} is {row.status.value}, and its entry was {'not ' if filled else ''}filled"
            self.accuse("S12: the outcome of every call", told)


def _said(result: object) -> str:
    """What a call came to, without names that differ between two runs, such as that of a holder."""
    match result:
        case SyncReport(outcomes=outcomes):
            return "; ".join(f"{one.symbol} {one.action.value}" for one in outcomes) or "nothing"
        case SyncOutcome():
            return result.action.value
        case Opened(position=row) | AlreadyOpen(position=row):
            return f"{type(result).__name__} row {row.id}"
        case NotOpened(position=row):
            passing = " for now" if result.passing else ""
            return f"not opened{passing}, row {None if row is None else row.id}"
        case BaseException():
            return type(result).__name__
        case _:
            return type(result).__name__
