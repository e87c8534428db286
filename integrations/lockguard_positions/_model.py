"""The nouns: a signal's order, a position's row, an intent's row, and what came of a call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import TypeAlias

from lockguard.errors import ConfigurationError
from lockguard.text import kind_of, printable
from lockguard_ccxt import Side, Step
from lockguard_positions._status import PositionStatus

__all__ = [
    "Adopt",
    "AlreadyOpen",
    "Intent",
    "IntentOutcome",
    "NewPosition",
    "NotOpened",
    "OpenResult",
    "Opened",
    "Position",
    "PositionSide",
    "Progress",
    "SyncAction",
    "SyncOutcome",
    "SyncReport",
    "money",
    "percent",
    "stop_price_of",
    "worded",
]

_HUNDRED = Decimal(100)


class PositionSide(StrEnum):
    """Which way a position goes."""

    LONG = "long"
    SHORT = "short"

    @property
    def entry(self) -> Side:
        """The side of an order that opens it."""
        return "buy" if self is PositionSide.LONG else "sell"

    @property
    def exit(self) -> Side:
        """The side of an order that closes or protects it."""
        return "sell" if self is PositionSide.LONG else "buy"

    @classmethod
    def read(cls, text: str) -> PositionSide:
        """``long``, ``short``, or the entry's side ``buy``, ``sell``.

        Raises:
            ConfigurationError: something else.
        """
        match worded(text, name="side").lower():
            case "long" | "buy":
                return cls.LONG
            case "short" | "sell":
                return cls.SHORT
            case _:
                raise ConfigurationError(f"side {text!r} is not known; write 'long' or 'short'")


class Adopt(StrEnum):
    """What a pass does about a position that the exchange holds and the table has no row for."""

    OFF = "off"
    """Leave it alone and say nothing."""
    ALERT = "alert"
    """Leave it alone and tell a person."""
    STOP = "stop"
    """Give it a row and, if it has no stop yet, one where the price allows. Never an exit."""

    @classmethod
    def read(cls, text: str) -> Adopt:
        """``off``, ``alert`` or ``stop``.

        Raises:
            ConfigurationError: something else.
        """
        try:
            return cls(worded(text, name="adopt").strip().lower())
        except ValueError:
            raise ConfigurationError(
                f"adopt={text!r} is not known; write {', '.join(repr(one.value) for one in cls)}"
            ) from None


class IntentOutcome(StrEnum):
    """What became of an intent."""

    EXECUTED = "executed"
    REFUSED = "refused"
    ABSENT = "absent"
    """Certainly never placed."""
    CANCELED = "canceled"
    """Placed, and taken back."""


@dataclass(frozen=True, slots=True)
class NewPosition:
    """What a signal asks for, checked and in the exchange's steps.

    Attributes:
        exchange: the venue, as in the lock's name.
        symbol: as in the lock's name.
        quantity: in the base currency.
        entry_price: the price that the signal was given at; the fill's replaces it.
        stop_loss_percent: how far from the entry the stop is, above 0 and below 100.
        signal_id: what asked for it.
        market: the unified symbol.
    """

    exchange: str
    symbol: str
    side: PositionSide
    quantity: Decimal
    entry_price: Decimal
    stop_loss_percent: Decimal
    signal_id: str | None
    market: str | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """A row of ``monitoring.positions``, without its ticks.

    Attributes:
        entry_order_id: the order that is known to have opened it; ``None`` for one that was found on the
            exchange.
        token: the fencing token under which its state was written last.
        age_ms: how long ago it reached where it is: closed, else entered, else created.
        market: the unified symbol; ``None`` in a row of before, whose name did not tell it.
    """

    id: int
    exchange: str
    symbol: str
    side: PositionSide
    quantity: Decimal
    status: PositionStatus
    signal_id: str | None
    entry_price: Decimal | None
    entry_order_id: str | None
    entry_client_id: str | None
    stop_loss_percent: Decimal | None
    stop_price: Decimal | None
    stop_order_id: str | None
    stop_client_id: str | None
    exit_price: Decimal | None
    exit_order_id: str | None
    exit_reason: str | None
    error_details: str | None
    opened_at: datetime | None
    closed_at: datetime | None
    token: int | None
    age_ms: int
    market: str | None = None

    @property
    def traded_as(self) -> str:
        """What the exchange is asked by: the unified symbol, where the row has it."""
        return self.market or self.symbol

    @property
    def planned_stop(self) -> Decimal | None:
        """The stop's price before it is brought to the tick; ``None`` if nothing tells where it should be."""
        if self.stop_price is not None:  # it may have been moved, or be a person's
            return self.stop_price
        if self.entry_price is None or self.stop_loss_percent is None:
            return None
        return stop_price_of(self.side, self.entry_price, self.stop_loss_percent)

    @property
    def opened_here(self) -> bool:
        """Whether an order of this table is known to have opened it. What is not may be a person's."""
        return self.entry_order_id is not None

    @property
    def unsettled(self) -> bool:
        """Whether it may come to nothing: its entry is in doubt, or its exit is on the way."""
        return self.status.open and (
            self.status is PositionStatus.PENDING_ENTRY or self.exit_reason is not None
        )


@dataclass(frozen=True, slots=True)
class Intent:
    """A row of ``monitoring.position_intents``: an order that is about to be sent, or may have been.

    Attributes:
        number: what the client order id is made of.
        side: the order's own side.
        trigger: the stop's price; ``None`` for other orders.
        age_ms: how long ago it was written.
        sent_before: whether it was found in the table: then the order may be there, sent by somebody else.
        asked: whether a person asked for it: a call, a signal, a command. Of closes only.
    """

    number: int
    position_id: int
    step: Step
    client_id: str
    side: Side
    amount: Decimal
    trigger: Decimal | None
    age_ms: int = 0
    sent_before: bool = False
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """A position, and the intent whose outcome is not known yet."""

    position: Position
    intent: Intent | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The position stands, with its stop."""

    position: Position


@dataclass(frozen=True, slots=True)
class AlreadyOpen:
    """There was an open position; nothing was ordered for this signal.

    Attributes:
        position: that one.
        asked: the side that this signal asked for.
    """

    position: Position
    asked: PositionSide

    @property
    def reason(self) -> str:
        """Why nothing was ordered, for people."""
        row = self.position
        found = f"{row.exchange}:{row.symbol} is open {row.side.value} already (row {row.id})"
        if row.side is self.asked:
            return found
        return f"{found}; close it before it is opened {self.asked.value}"

    @property
    def passing(self) -> bool:
        """Whether that position may come to nothing: then the same signal is to be tried again."""
        return self.position.unsettled


@dataclass(frozen=True, slots=True)
class NotOpened:
    """No position came of it, or none that is known to stand.

    Attributes:
        reason: why, for people.
        position: the row that tells; ``None`` when none was written. One that is still open is in doubt, and
            recovery will settle it: do not order again.
        passing: whether nothing was ordered, for a reason that passes: the same signal may be tried again.
    """

    reason: str
    position: Position | None = None
    passing: bool = False

    @property
    def in_doubt(self) -> bool:
        """Whether the exchange may hold something for it all the same."""
        return self.position is not None and self.position.status.open


OpenResult: TypeAlias = Opened | AlreadyOpen | NotOpened


class SyncAction(StrEnum):
    """What a pass did about a symbol."""

    IN_STEP = "in step"
    ADOPTED = "adopted"
    """The exchange had a position and the table had no row; now it has one, and a stop."""
    LEFT_ALONE = "left alone"
    """The exchange has a position and the table has no row, and is to have none: as ``adopt`` says, or as
    positions are not kept in this kind of market."""
    RECOVERED = "recovered"
    """Somebody else had left it half done; now it is active."""
    ENDED = "ended"
    """Somebody else had left it half done; now it is closed, rolled back or was never entered."""
    CLOSED = "closed"
    """The exchange holds it no more; the row follows."""
    STOP_PLACED = "stop placed"
    """Its stop was missing."""
    STOP_TAKEN_OVER = "stop taken over"
    """Its own stop was missing, and another one stands: that is its stop now."""
    STOP_MOVED = "stop moved"
    """As a call asked for."""
    STOP_KEPT = "stop kept"
    """It was to be moved, and the exchange did not take the new one: the old one stands."""
    STOP_TAKEN_BACK = "stop taken back"
    """It waited without a position; only the clean-up looks for those."""
    BUSY = "busy"
    """Somebody holds the symbol: it was left alone, and is neither absent nor flat."""
    SETTLING = "settling"
    """It changed a moment ago: the exchange's lists may lag, so nothing was decided."""
    UNPROTECTED = "unprotected"
    """It has no stop and none could be placed now; a person was told, and the next pass tries again."""
    IN_DOUBT = "in doubt"
    """An order's outcome is not known yet; a later pass looks again."""
    UNREADABLE = "unreadable"
    """Exchange, Redis or Postgres did not answer; nothing was decided."""
    NO_MARKET = "no market"
    """The exchange lists no such market, so nothing can be asked or ordered there: for a person."""
    FAILED = "failed"
    """It could not be decided, for a reason that nobody has thought of: for a person."""
    MISMATCH = "mismatch"
    """Row and exchange differ in a way that a person should look at."""

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do or to find out about the symbol for now."""
        return self not in _UNSETTLED


_UNSETTLED = frozenset(
    {
        SyncAction.BUSY,
        SyncAction.SETTLING,
        SyncAction.UNPROTECTED,
        SyncAction.IN_DOUBT,
        SyncAction.UNREADABLE,
        SyncAction.NO_MARKET,
        SyncAction.FAILED,
        SyncAction.MISMATCH,
    }
)


@dataclass(frozen=True, slots=True)
class SyncOutcome:
    """What a pass did about one symbol.

    Attributes:
        symbol: as the table has it.
        position_id: the row, if there is one.
        details: who holds a busy symbol, what is in doubt, and the like.
    """

    symbol: str
    action: SyncAction
    position_id: int | None = None
    details: str = ""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a pass did."""

    exchange: str
    outcomes: tuple[SyncOutcome, ...]

    def of(self, *actions: SyncAction) -> tuple[SyncOutcome, ...]:
        """The outcomes of some kinds."""
        return tuple(outcome for outcome in self.outcomes if outcome.action in actions)

    @property
    def skipped(self) -> tuple[SyncOutcome, ...]:
        """The symbols that somebody else was working on."""
        return self.of(SyncAction.BUSY)

    @property
    def settled(self) -> bool:
        """Whether every symbol was looked at and nothing is in doubt."""
        return all(outcome.action.settled for outcome in self.outcomes)


_MONEY_MAX = Decimal("1e15")


def money(value: Decimal | str | float, *, name: str) -> Decimal:
    """A number above zero. A float is read as the text it is shown as, never by its binary value.

    Raises:
        ConfigurationError: it is no number, not above zero, or beyond what any market takes.
    """
    try:
        number = value if isinstance(value, Decimal) else Decimal(str(value))
    except InvalidOperation:
        raise ConfigurationError(f"{name}={value!r} is not a number") from None
    if not number.is_finite() or number <= 0:
        raise ConfigurationError(f"{name}={value} must be above zero")
    if number >= _MONEY_MAX:  # not exact in steps any more: it would fail between an intent and its order
        raise ConfigurationError(f"{name}={str(value)[:40]!r} is out of all bounds; check the unit")
    return number


def worded(value: str, *, name: str) -> str:
    """A text that a row, a log and a later comparison can hold as it is.

    Raises:
        ConfigurationError: it is no text, or has characters in it that are not seen as themselves.
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is {kind_of(value)}, and has to be a text")
    if not value or printable(value) != value:
        raise ConfigurationError(f"{name}={printable(value)!r} is no text of printable characters")
    return value


def percent(value: Decimal, *, name: str = "stop_loss_percent") -> Decimal:
    """A share of a price.

    Raises:
        ConfigurationError: it is not above 0 and below 100.
    """
    if not 0 < value < _HUNDRED:
        raise ConfigurationError(f"{name}={value} must be above 0 and below 100")
    return value


def stop_price_of(side: PositionSide, entry_price: Decimal, stop_loss_percent: Decimal) -> Decimal:
    """The stop's price, before it is brought to the exchange's tick."""
    share = stop_loss_percent / _HUNDRED
    return entry_price * (1 - share if side is PositionSide.LONG else 1 + share)
