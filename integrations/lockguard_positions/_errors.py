"""The errors of positions, besides those of leases.

::

    LockguardError
    └ PositionError
      ├ IllegalTransition       a change of status that is not in the table: a bug
      ├ PositionChanged         the row is not as it was read: a bug, or a write past the fence
      ├ DuplicatePosition       there is already an open row: existing_id
      ├ ExchangeUnreadable      the exchange did not answer a read; retryable
      ├ ServerUnreachable       a database or an exchange does not answer at all; retryable
      └ MigrationRefused        the schema cannot be changed as asked

A lost lease (``LeaseLost``) and a refused write (``StaleToken``) are never converted into one of these: they
stop the flow and reach its caller.
"""

from __future__ import annotations

from lockguard.errors import LockguardError

__all__ = [
    "DuplicatePosition",
    "ExchangeUnreadable",
    "IllegalTransition",
    "MigrationRefused",
    "PositionChanged",
    "PositionError",
    "ServerUnreachable",
]


class PositionError(LockguardError):
    """Base of the errors of this package."""


class IllegalTransition(PositionError):
    """A change of status that is not in :data:`~lockguard_positions.TRANSITIONS`.

    Attributes:
        old: the status before; ``None`` for a new row.
        new: the status that was asked for.
    """

    def __init__(self, *, old: str | None, new: str) -> None:
        what = f"cannot begin as {new}" if old is None else f"cannot go from {old} to {new}"
        super().__init__(f"a position {what}")
        self.old = old
        self.new = new


class PositionChanged(PositionError):
    """A row differs from what was read under the same lease.

    Attributes:
        position_id: the id of the row.
    """

    def __init__(self, message: str, *, position_id: int) -> None:
        super().__init__(message)
        self.position_id = position_id


class DuplicatePosition(PositionError):
    """The symbol already has an open row.

    Attributes:
        existing_id: the id of the open row; ``None`` if it could not be read.
    """

    def __init__(self, message: str, *, existing_id: int | None) -> None:
        super().__init__(message)
        self.existing_id = existing_id


class ExchangeUnreadable(PositionError):
    """The exchange did not answer a read. That is not an empty answer: nothing was decided."""

    retryable = True


class ServerUnreachable(PositionError):
    """A database or an exchange does not answer at all: nothing was begun."""

    retryable = True


class MigrationRefused(PositionError):
    """The schema cannot be changed as asked; nothing was changed."""
