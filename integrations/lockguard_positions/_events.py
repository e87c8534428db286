"""What happens to positions, as frozen facts for observers: logs, metrics, alerts, timelines."""

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
        position: as it is now.
        before: its status before; ``None`` for a new row.
        operation: what was going on, such as ``open`` or ``sync``.
    """

    position: Position
    before: PositionStatus | None
    operation: str


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a person should look at."""

    resource: str
    position_id: int | None
    message: str


@dataclass(frozen=True, slots=True)
class WriteRefused:
    """Postgres refused a write of this process: its lease is not in force any more.

    Attributes:
        presented: the token of the write; ``None`` when it had none.
        current: the token in force; ``None`` when there is none.
    """

    resource: str
    presented: int | None
    current: int | None


PositionEvent: TypeAlias = Moved | Alert | WriteRefused | ObserverFailed


class PositionObserver(Protocol):
    """Somebody who watches. It must not block; what it raises is logged, and it is told the next event."""

    def on(self, event: PositionEvent) -> None:
        """Something happened."""
        ...


class LogPositions:
    """Events as log records of the logger ``lockguard.positions``."""

    def on(self, event: PositionEvent) -> None:
        """Log one event."""
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
