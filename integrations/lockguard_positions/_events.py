"""Events of positions, as immutable values for observers such as logs, metrics and alerts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from lockguard.events import ObserverFailed
from lockguard.observe._facts import facts_of
from lockguard.text import printable
from lockguard_ccxt import OrderAnswered
from lockguard_positions._model import IntentOutcome, Position, SyncOutcome
from lockguard_positions._status import PositionStatus

__all__ = [
    "OVER",
    "Alert",
    "CommitResolved",
    "DoubtResolved",
    "LogPositions",
    "Looked",
    "Moved",
    "PositionEvent",
    "PositionObserver",
    "WriteRefused",
]

_LOG = logging.getLogger("lockguard.positions")

OVER = "over: "
"""The beginning of an alert that tells the end of a condition."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A position's state was committed.

    Attributes:
        position: the row as it is now.
        before: its status before; ``None`` for a new row.
        operation: the operation of the lease, such as ``open long`` or ``sync``.
        without_stop_ms: for how many milliseconds the position had been without a stop, where it has got
            one; ``None`` otherwise.
    """

    position: Position
    before: PositionStatus | None
    operation: str
    without_stop_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a person should look at.

    Attributes:
        resource: the symbol's resource, or the exchange's name.
        position_id: the row; ``None`` if there is none.
        message: what is wrong, as a text for display.
    """

    resource: str
    position_id: int | None
    message: str

    @property
    def over(self) -> bool:
        """Whether it tells the end of a condition, and not a new one."""
        return self.message.startswith(OVER)


@dataclass(frozen=True, slots=True)
class DoubtResolved:
    """The outcome of an order that was in doubt is known now, and committed.

    Attributes:
        resource: the symbol's resource.
        position_id: the row.
        step: ``entry``, ``stop`` or ``close``.
        client_id: the client order id.
        outcome: what became of the order.
        after_ms: the age of its intent when it was read, in milliseconds.
    """

    resource: str
    position_id: int
    step: str
    client_id: str
    outcome: IntentOutcome
    after_ms: int


@dataclass(frozen=True, slots=True)
class CommitResolved:
    """The reply to a COMMIT was lost, and Postgres was asked what became of it.

    Attributes:
        resource: the symbol's resource.
        token: the token of the write.
        committed: whether it was committed; ``None`` if that could not be found out.
    """

    resource: str
    token: int | None
    committed: bool | None


@dataclass(frozen=True, slots=True)
class Looked:
    """A pass or a recovery has come to its end.

    Attributes:
        exchange: the account.
        kind: ``pass`` or ``recovery``.
        took_ms: how long it took, in milliseconds.
        outcomes: what it did about each symbol.
        rows: the open rows of the account as it read them; ``None`` if it did not read all.
    """

    exchange: str
    kind: str
    took_ms: float
    outcomes: tuple[SyncOutcome, ...]
    rows: tuple[Position, ...] | None


@dataclass(frozen=True, slots=True)
class WriteRefused:
    """Postgres refused a write of this process, because its lease is no longer in force.

    Attributes:
        resource: the symbol's resource.
        presented: the token of the write; ``None`` when it had none.
        current: the token in force; ``None`` when there is none.
    """

    resource: str
    presented: int | None
    current: int | None


PositionEvent: TypeAlias = (
    Moved | Alert | WriteRefused | OrderAnswered | DoubtResolved | CommitResolved | Looked | ObserverFailed
)
"""What an observer of positions is told: one of these."""


class PositionObserver(Protocol):
    """Receives events. It must not block; what it raises is logged, and it still gets the next event."""

    def on(self, event: PositionEvent) -> None:
        """Handle one event."""
        ...


class LogPositions:
    """Logs events with the logger ``lockguard.positions``.

    One record an event. Its text is for people; its facts are attributes of the record as well, such as
    ``lockguard_event``, ``lockguard_resource`` and ``lockguard_token``, for a formatter that writes JSON.
    """

    def on(self, event: PositionEvent) -> None:
        """Log one event; other kinds of events are ignored."""
        if not _LOG.isEnabledFor(_level_of(event)):
            return  # before any text is made: an open tells eight events, and most bots log warnings alone
        match event:
            case Moved(position, before, operation):
                _LOG.info(
                    "%s:%s position %d: %s -> %s token=%s during %s",
                    printable(position.exchange),
                    printable(position.symbol),
                    position.id,
                    "new" if before is None else before.value,
                    position.status.value,
                    position.token,
                    printable(operation),
                    extra=facts_of(event, **_facts_of(position)),
                )
            case Alert(resource, position_id, message):
                _LOG.error(
                    "%s position %s: %s",
                    printable(resource),
                    position_id,
                    printable(message),
                    extra=facts_of(event, over=event.over),
                )
            case WriteRefused(resource, presented, current):
                _LOG.warning(
                    "%s: a write was refused, presented token=%s, current token=%s",
                    printable(resource),
                    presented,
                    current,
                    extra=facts_of(event),
                )
            case DoubtResolved() | CommitResolved():
                self._log_resolved(event)
            case Looked(exchange, kind, took_ms, outcomes, rows):
                count = None if rows is None else len(rows)
                _LOG.debug(
                    "%s: a %s over %d symbols took %.0f ms",
                    printable(exchange),
                    printable(kind),
                    len(outcomes),
                    took_ms,
                    extra=facts_of(event, outcomes=len(outcomes), rows=count),
                )
            case OrderAnswered():
                _LOG.debug("%s", event, extra=facts_of(event))

    @staticmethod
    def _log_resolved(event: DoubtResolved | CommitResolved) -> None:
        if isinstance(event, DoubtResolved):
            what, became = f"the order {printable(event.client_id)}", event.outcome.value
        else:
            what, became = "a commit whose reply was lost", "not known still"
            if event.committed is not None:
                became = "committed" if event.committed else "not committed"
        _LOG.info(
            "%s: %s, which was in doubt: %s", printable(event.resource), what, became, extra=facts_of(event)
        )


def _level_of(event: PositionEvent) -> int:
    match event:
        case Alert():
            return logging.ERROR
        case WriteRefused():
            return logging.WARNING
        case Looked() | OrderAnswered():
            return logging.DEBUG
        case _:
            return logging.INFO


def _facts_of(position: Position) -> dict[str, object]:
    return {
        "resource": f"{position.exchange}:{position.symbol}",
        "position": position.id,
        "token": position.token,
        "side": position.side,
        "quantity": position.quantity,
        "status": position.status,
        "signal_id": position.signal_id,
    }
