"""The life of a position, as one table.

::

    (new) ──> pending_entry ──> entry_placed ──> pending_sl ──> active ──> closed
                   │                 │               │    <────────┘
                   │                 │               │   its stop is missing
                   ├─> failed        ├─> rolled_back ├─> rolled_back
                   ├─> canceled      └─> closed      └─> closed
                   └─> rolled_back

* ``pending_entry``: the entry is about to be ordered, or was, and nobody has seen its answer.
* ``entry_placed``: the exchange holds the position; it has no stop.
* ``pending_sl``: the stop is about to be ordered, or was, and nobody has seen its answer.
* ``active``: position and stop stand.
* ``closed``: it ended as positions do: stop, exit, or found gone.
* ``failed``: the exchange refused the entry, or nothing was ever ordered.
* ``canceled``: the entry was never executed, as is known for certain.
* ``rolled_back``: entered, and closed again because it could not be given a stop.

A fill is written down together with the intent of its stop, so ``pending_entry`` also goes to ``pending_sl``.
A position that is found on the exchange without a row begins at ``entry_placed``. A row that begins at
``failed`` says why a signal was refused before any order. The last four never change again.

The database has the same table (``monitoring.status_transitions``) and refuses what is not in it, also from
code that does not ask here; a test compares the two.
"""

from __future__ import annotations

from enum import StrEnum

from lockguard_positions._errors import IllegalTransition

__all__ = ["INITIAL", "OPEN", "TERMINAL", "TRANSITIONS", "PositionStatus", "check_transition"]


class PositionStatus(StrEnum):
    """How a position stands."""

    PENDING_ENTRY = "pending_entry"
    ENTRY_PLACED = "entry_placed"
    PENDING_SL = "pending_sl"
    ACTIVE = "active"
    CLOSED = "closed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    CANCELED = "canceled"

    @property
    def open(self) -> bool:
        """Whether the exchange may hold something for it."""
        return self in OPEN


_S = PositionStatus

INITIAL = frozenset({_S.PENDING_ENTRY, _S.ENTRY_PLACED, _S.FAILED})
"""What a row may begin as."""

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

OPEN = frozenset({_S.PENDING_ENTRY, _S.ENTRY_PLACED, _S.PENDING_SL, _S.ACTIVE})
"""What counts as open wherever it matters: existence checks, the unique index, recovery."""

TERMINAL = frozenset(PositionStatus) - OPEN


def check_transition(old: PositionStatus | None, new: PositionStatus) -> None:
    """Refuse a change that is not in the table.

    Args:
        old: ``None`` for a new row.
        new: what it would become.

    Raises:
        IllegalTransition: it is not in the table.
    """
    allowed = INITIAL if old is None else TRANSITIONS[old]
    if new not in allowed:
        raise IllegalTransition(old=None if old is None else old.value, new=new.value)
