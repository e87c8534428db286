"""Events of positions, as immutable values for observers such as logs, metrics and alerts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from lockguard.events import ObserverFailed
from lockguard_positions._model import Position
from lockguard_positions._status import PositionStatus

__all__ = ["Alert", "LogPositions", "Moved", "PositionEvent", "PositionObserver", "WriteRefused"]

_LOG = logging.getLogger("lockguard.positions")


@dataclass(frozen=True, slots=True)
class Moved:
    """A position's state was committed.

    Attributes:
        position: the row as it is now.
        before: its status before; ``None`` for a new row.
        operation: the operation of the lease, such as ``open long`` or ``sync``.
    """

    position: Position
    before: PositionStatus | None
    operation: str


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


@dataclass(frozen=True, slots=True)
class WriteRefused:
    """Postgres refused a write of this process, because its lease is no longer in force.

    Attributes:
        presented: the token of the write; ``None`` when it had none.
        current: the token in force; ``None`` when there is none.
    """

    resource: str
    presented: int | None
    current: int | None


PositionEvent: TypeAlias = Moved | Alert | WriteRefused | ObserverFailed


class PositionObserver(Protocol):
    """Receives events. It must not block; what it raises is logged, and it still gets the next event."""

    def on(self, event: PositionEvent) -> None:
        """Handle one event."""
        ...


class LogPositions:
    """Logs events with the logger ``lockguard.positions``."""

    def on(self, event: PositionEvent) -> None:
        """Log one event; other kinds of events are ignored."""
        match event:
            case Moved(position, before, operation):
                _LOG.info(
                    "%s:%s position %d: %s -> %s token=%s during %s",
                    position.exchange,
                    position.symbol,
                    position.id,
                    "new" if before is None else before.value,
                    position.status.value,
                    position.token,
                    operation,
                )
            case Alert(resource, position_id, message):
                _LOG.error("%s position %s: %s", resource, position_id, message)
            case WriteRefused(resource, presented, current):
                _LOG.warning(
                    "%s: a write was refused, presented token=%s, current token=%s",
                    resource,
                    presented,
                    current,
                )
