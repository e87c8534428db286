"""The value types: the position asked for, the rows of positions and intents, and the results of calls."""

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
    "GONE",
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
    "plain_number",
    "stop_price_of",
    "worded",
]

GONE = "gone from the exchange; its row ends when no stop of it stands, and none can arrive any more"
"""The error of an open row whose position has ended otherwise: nothing of it is left to protect."""

_HUNDRED = Decimal(100)


class PositionSide(StrEnum):
    """The side of a position: long or short."""

    LONG = "long"
    """Bought first, and sold to close."""
    SHORT = "short"
    """Sold first, and bought to close."""

    @property
    def entry(self) -> Side:
        """The side of an order that opens the position."""
        return "buy" if self is PositionSide.LONG else "sell"

    @property
    def exit(self) -> Side:
        """The side of an order that closes or protects the position."""
        return "sell" if self is PositionSide.LONG else "buy"

    @classmethod
    def read(cls, text: str) -> PositionSide:
        """Parse ``long``, ``short``, or the entry's side ``buy``, ``sell``, in any case.

        Raises:
            ConfigurationError: the text is none of these.
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
    """Leave it alone and raise an alert."""
    STOP = "stop"
    """Give it a row and, if it has no stop yet, one where the price allows. Never an exit."""

    @classmethod
    def read(cls, text: str) -> Adopt:
        """Parse ``off``, ``alert`` or ``stop``, in any case.

        Raises:
            ConfigurationError: the text is none of these.
        """
        try:
            return cls(worded(text, name="adopt").strip().lower())
        except ValueError:
            raise ConfigurationError(
                f"adopt={text!r} is not known; write {', '.join(repr(one.value) for one in cls)}"
            ) from None


class IntentOutcome(StrEnum):
    """What became of an intent's order."""

    EXECUTED = "executed"
    """Executed."""
    REFUSED = "refused"
    """Refused by the exchange: certainly not executed."""
    ABSENT = "absent"
    """Certainly never placed."""
    CANCELED = "canceled"
    """Placed, then cancelled."""


@dataclass(frozen=True, slots=True)
class NewPosition:
    """The position that a signal asks for, checked and in the exchange's steps.

    Attributes:
        exchange: the account, as in the lock's name.
        symbol: as in the lock's name.
        quantity: in the base currency.
        entry_price: the price when the signal was given; the fill's price replaces it.
        stop_loss_percent: how far from the entry the stop is, above 0 and below 100.
        signal_id: what asked for the position; ``None`` if no signal did.
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
        id: the row's number.
        exchange: the account, as in the lock's name.
        symbol: as in the lock's name.
        side: long or short.
        quantity: how much is held, in the base currency or contracts; once the row has ended, how much was
            entered.
        status: where it is in its life.
        signal_id: what asked for it; ``None`` if no signal did.
        entry_price: the average price of the entry; the signal's price before the fill is known.
        entry_order_id: the order that is known to have opened the position; ``None`` for a position that was
            found on the exchange.
        entry_client_id: the client order id of the entry.
        stop_loss_percent: how far from the entry the stop is, above 0 and below 100.
        stop_price: the price at which the stop triggers, as placed.
        stop_order_id: the exchange's id of the stop.
        stop_client_id: the client order id of the stop.
        exit_price: the average price of the exit.
        exit_order_id: the exchange's id of the exit.
        exit_reason: why it was or is being closed, as a text for display.
        error_details: why it failed or was rolled back, as a text for display.
        opened_at: when it was entered.
        closed_at: when it ended.
        token: the fencing token under which the row's state was last written.
        age_ms: milliseconds since the position was closed, else entered, else created.
        market: the unified symbol; ``None`` in an old row whose name does not determine it.
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
        """The name to ask the exchange by: the unified symbol if the row has it, else ``symbol``."""
        return self.market or self.symbol

    @property
    def names_no_stop(self) -> bool:
        """Whether the table knows no stop of the position, whatever its status is."""
        return self.stop_client_id is None and self.stop_order_id is None

    @property
    def planned_stop(self) -> Decimal | None:
        """The stop's price before rounding to the tick; ``None`` if the row does not determine it."""
        if self.stop_price is not None:  # the stop may have been moved, or be a person's
            return self.stop_price
        if self.entry_price is None or self.stop_loss_percent is None:
            return None
        return stop_price_of(self.side, self.entry_price, self.stop_loss_percent)

    @property
    def opened_here(self) -> bool:
        """Whether an order of this table is known to have opened it. Any other position may be a person's."""
        return self.entry_order_id is not None

    @property
    def unsettled(self) -> bool:
        """Whether the position may still vanish: its entry is in doubt, or its exit has begun."""
        return self.status.open and (
            self.status is PositionStatus.PENDING_ENTRY or self.exit_reason is not None
        )


@dataclass(frozen=True, slots=True)
class Intent:
    """A row of ``monitoring.position_intents``: an order that is about to be sent, or may have been.

    Attributes:
        number: part of the client order id.
        position_id: the row.
        step: what the order is for.
        client_id: the client order id.
        side: the order's own side.
        amount: the amount ordered, in the base currency or contracts.
        trigger: the price of the stop, or of the stop that an entry carries; ``None`` without one.
        age_ms: milliseconds since the intent was written, or since its order was last sent or refused.
        sent_before: whether the intent was read from the table: an earlier holder may have sent its order.
        asked: whether a person asked for this exit, by a call, a signal or a command; closes only.
        refused: whether its order was refused for now, so that none of it can still arrive; closes only.
        void: whether less was seen than what it was to close, so that it is never sent again; closes only.
        ended: whether it was seen that the position has ended otherwise; closes only.
        unsent: whether it only records that, so that no order of it is ever sent; closes only.
        entered_since: how much its row has grown by since it was written, as what was left of the entry was
            filled. Of the entry itself: how much of what it has filled the row has, where that came in parts.
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
    refused: bool = False
    void: bool = False
    ended: bool = False
    unsent: bool = False
    entered_since: Decimal = Decimal(0)

    def may_arrive(self, in_doubt_ms: int) -> bool:
        """Whether an order of this intent that is not on the exchange may still arrive there.

        Args:
            in_doubt_ms: for how many milliseconds after it was sent an order may still appear.
        """
        return not (self.refused or self.unsent) and self.age_ms < in_doubt_ms


@dataclass(frozen=True, slots=True)
class Progress:
    """A position, and its intent whose outcome is not known yet, if there is one."""

    position: Position
    intent: Intent | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The position is open, with its stop in place.

    Attributes:
        position: the row.
    """

    position: Position


@dataclass(frozen=True, slots=True)
class AlreadyOpen:
    """There was an open position; nothing was ordered for this signal.

    Attributes:
        position: the open position.
        asked: the side that this signal asked for.
    """

    position: Position
    asked: PositionSide

    @property
    def reason(self) -> str:
        """Why nothing was ordered, as a text for display."""
        row = self.position
        found = f"{row.exchange}:{row.symbol} is open {row.side.value} already (row {row.id})"
        if row.side is self.asked:
            return found
        return f"{found}; close it before it is opened {self.asked.value}"

    @property
    def passing(self) -> bool:
        """Whether the open position may still vanish: then the same signal should be tried again."""
        return self.position.unsettled


@dataclass(frozen=True, slots=True)
class NotOpened:
    """No position was opened, or none that is known to exist.

    Attributes:
        reason: why, as a text for display.
        position: the row that records it; ``None`` when none was written. A row that is still open is in
            doubt, and recovery will settle it: do not order again.
        passing: whether nothing was ordered, for a reason that passes: the same signal may be tried again.
    """

    reason: str
    position: Position | None = None
    passing: bool = False

    @property
    def in_doubt(self) -> bool:
        """Whether the exchange may hold a position for this signal nevertheless."""
        return self.position is not None and self.position.status.open


OpenResult: TypeAlias = Opened | AlreadyOpen | NotOpened
"""What became of a request to open a position."""


class SyncAction(StrEnum):
    """What a pass did about a symbol."""

    IN_STEP = "in step"
    """Row and exchange agree, and the stop stands."""
    ADOPTED = "adopted"
    """The exchange had a position and the table had no row; now it has one, and a stop."""
    LEFT_ALONE = "left alone"
    """The exchange has a position and the table is to have no row for it: ``adopt`` says so, or positions are
    not kept in this kind of market."""
    RECOVERED = "recovered"
    """An earlier holder had left it half done; now it is active."""
    ENDED = "ended"
    """An earlier holder had left it half done; now it is closed, rolled back or was never entered."""
    CLOSED = "closed"
    """The exchange no longer holds it; the row was closed."""
    STOP_PLACED = "stop placed"
    """Its stop was missing; a new one stands."""
    STOP_TAKEN_OVER = "stop taken over"
    """Its own stop was missing, and another one stands, which is its stop now."""
    STOP_MOVED = "stop moved"
    """A call asked for that, and the new stop stands."""
    STOP_KEPT = "stop kept"
    """It was to be moved, but the exchange refused the new stop: the old one stands."""
    STOP_TAKEN_BACK = "stop taken back"
    """A stop without a position was cancelled; only the clean-up looks for those."""
    BUSY = "busy"
    """Another holder has the symbol: it was left alone, which does not mean that it is absent or flat."""
    SETTLING = "settling"
    """It changed a moment ago: the exchange's lists may lag, so nothing was decided."""
    UNPROTECTED = "unprotected"
    """It has no stop and none could be placed now, or its stops cover only a part of what is held; an alert
    was raised, and the next pass looks again. Its details tell what else is wrong."""
    IN_DOUBT = "in doubt"
    """An order's outcome is not known yet, such as that of a stop being moved; a later pass looks again.

    Also a row whose position is gone, and which is open while a stop of it may still arrive."""
    UNREADABLE = "unreadable"
    """Exchange, Redis or Postgres did not answer; nothing was decided."""
    NO_MARKET = "no market"
    """The exchange lists no such market, so nothing can be asked or ordered there; a person has to act."""
    FAILED = "failed"
    """It could not be decided because of an unexpected error; a person has to act."""
    MISMATCH = "mismatch"
    """Row and exchange differ in a way that a person should look at."""

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do or to find out for the symbol for now."""
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
        symbol: in the table's spelling.
        action: what it did.
        position_id: the row, if there is one.
        details: such as the holder of a busy symbol, or what is in doubt.
    """

    symbol: str
    action: SyncAction
    position_id: int | None = None
    details: str = ""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a pass or a recovery did, symbol by symbol.

    Attributes:
        exchange: the account.
        outcomes: what was done about each symbol.
    """

    exchange: str
    outcomes: tuple[SyncOutcome, ...]

    def of(self, *actions: SyncAction) -> tuple[SyncOutcome, ...]:
        """The outcomes with one of ``actions``."""
        return tuple(outcome for outcome in self.outcomes if outcome.action in actions)

    @property
    def skipped(self) -> tuple[SyncOutcome, ...]:
        """The outcomes of symbols that another holder was working on."""
        return self.of(SyncAction.BUSY)

    @property
    def settled(self) -> bool:
        """Whether every symbol was looked at and nothing is in doubt."""
        return all(outcome.action.settled for outcome in self.outcomes)


_MONEY_MAX = Decimal("1e15")


def plain_number(text: str) -> Decimal | None:
    """A number as people and exchanges write it, or None.

    Python reads more than that: ``1_0`` and the digits of every script. What was mistyped would be an amount.
    """
    if not text.isascii() or "_" in text:
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def money(value: Decimal | str | float, *, name: str) -> Decimal:
    """Parse a number above zero. A float is read by its shortest decimal text, never its binary value.

    Raises:
        ConfigurationError: the value is not a number, not above zero, or beyond what any market takes.
    """
    number = value if isinstance(value, Decimal) else plain_number(str(value))
    if number is None:
        raise ConfigurationError(f"{name}={value!r} is not a number")
    if not number.is_finite() or number <= 0:
        raise ConfigurationError(f"{name}={value} must be above zero")
    if number >= _MONEY_MAX:  # no longer exact in steps: it would fail between an intent and its order
        raise ConfigurationError(f"{name}={str(value)[:40]!r} is out of all bounds; check the unit")
    return number


def worded(value: str, *, name: str) -> str:
    """Check a text that is stored, logged and compared as it is.

    Raises:
        ConfigurationError: it is not a ``str``, is empty, or has characters that are not printable.
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is {kind_of(value)}, and has to be a text")
    if not value or printable(value) != value:
        raise ConfigurationError(f"{name}={printable(value)!r} is no text of printable characters")
    return value


def percent(value: Decimal, *, name: str = "stop_loss_percent") -> Decimal:
    """Check a percentage of a price.

    Raises:
        ConfigurationError: it is not above 0 and below 100.
    """
    if not 0 < value < _HUNDRED:
        raise ConfigurationError(f"{name}={value} must be above 0 and below 100")
    return value


def stop_price_of(side: PositionSide, entry_price: Decimal, stop_loss_percent: Decimal) -> Decimal:
    """The stop's price, before it is rounded to the exchange's tick."""
    share = stop_loss_percent / _HUNDRED
    return entry_price * (1 - share if side is PositionSide.LONG else 1 + share)
