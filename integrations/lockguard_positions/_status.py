"""The statuses of a position, and the allowed changes between them.

::

    (new) ──> pending_entry ──> entry_placed ──> pending_sl ──> active ──> closed
                   │                 │               │    <────────┘
                   │                 │               │   its stop is missing
                   ├─> failed        ├─> rolled_back ├─> rolled_back
                   ├─> canceled      └─> closed      └─> closed
                   └─> rolled_back

* ``pending_entry``: the entry is about to be sent, or was sent, and its answer is not known.
* ``entry_placed``: the exchange holds the position; it has no stop.
* ``pending_sl``: the stop is about to be sent, or was sent, and its answer is not known.
* ``active``: the position and its stop are in place.
* ``closed``: the position ended by its stop or an exit, or was found gone.
* ``failed``: the exchange refused the entry, or nothing was ever ordered.
* ``canceled``: the entry was certainly never executed.
* ``rolled_back``: entered, and closed again because no stop could be placed.

A fill is recorded together with the intent of its stop, so ``pending_entry`` also goes to ``pending_sl``. A
position that is found on the exchange without a row begins at ``entry_placed``. A row that begins at
``failed`` says why a signal was refused before any order. The last four never change again.

The database has the same table (``monitoring.status_transitions``) and refuses changes that are not in it,
even from code that bypasses this module; a test compares the two.
"""

from __future__ import annotations

from enum import StrEnum

from lockguard_positions._errors import IllegalTransition

__all__ = ["INITIAL", "OPEN", "TERMINAL", "TRANSITIONS", "PositionStatus", "check_transition"]


class PositionStatus(StrEnum):
    """The status of a position."""

    PENDING_ENTRY = "pending_entry"
    """The entry is about to be sent, or was sent, and its answer is not known."""
    ENTRY_PLACED = "entry_placed"
    """The exchange holds the position; it has no stop."""
    PENDING_SL = "pending_sl"
    """The stop is about to be sent, or was sent, and its answer is not known."""
    ACTIVE = "active"
    """The position and its stop are in place."""
    CLOSED = "closed"
    """The position ended by its stop or an exit, or was found gone."""
    FAILED = "failed"
    """The exchange refused the entry, or nothing was ever ordered."""
    ROLLED_BACK = "rolled_back"
    """Entered, and closed again because no stop could be placed."""
    CANCELED = "canceled"
    """The entry was certainly never executed."""

    @property
    def open(self) -> bool:
        """Whether the exchange may hold a position for a row in this status."""
        return self in OPEN


_S = PositionStatus

INITIAL = frozenset({_S.PENDING_ENTRY, _S.ENTRY_PLACED, _S.FAILED})
"""The statuses in which a row may begin."""

TRANSITIONS: dict[PositionStatus, frozenset[PositionStatus]] = {
    _S.PENDING_ENTRY: frozenset({_S.ENTRY_PLACED, _S.PENDING_SL, _S.FAILED, _S.CANCELED, _S.ROLLED_BACK}),
    _S.ENTRY_PLACED: frozenset({_S.PENDING_SL, _S.ROLLED_BACK, _S.CLOSED}),
    _S.PENDING_SL: frozenset({_S.ACTIVE, _S.ROLLED_BACK, _S.CLOSED}),
    _S.ACTIVE: frozenset({_S.PENDING_SL, _S.CLOSED}),
    _S.CLOSED: frozenset(),
    _S.FAILED: frozenset(),
    _S.ROLLED_BACK: frozenset(),
    _S.CANCELED: frozenset(),
}
"""The statuses that each may become."""

OPEN = frozenset({_S.PENDING_ENTRY, _S.ENTRY_PLACED, _S.PENDING_SL, _S.ACTIVE})
"""The open statuses, as used by existence checks, the unique index and recovery."""

TERMINAL = frozenset(PositionStatus) - OPEN
"""The statuses that never change again."""


def check_transition(old: PositionStatus | None, new: PositionStatus) -> None:
    """Check a change of status against :data:`TRANSITIONS`, or a first status against :data:`INITIAL`.

    Args:
        old: the status before; ``None`` for a new row.
        new: the status after.

    Raises:
        IllegalTransition: the change is not in the table.
    """
    allowed = INITIAL if old is None else TRANSITIONS[old]
    if new not in allowed:
        raise IllegalTransition(old=None if old is None else old.value, new=new.value)
