"""What a connection's open transaction has presented, and the grants that a transaction has closed.

What was presented is valid only while the row lock behind it is held, so it is kept only while every
statement of the connection passes through a driver's layer, and forgotten whenever the lock may be gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard._lease import GrantId, Lease
    from lockguard.errors import StaleToken
    from lockguard_postgres._claims import Claim, Presentation

__all__ = ["CLOSED", "Presented"]

_CLOSED_MAX = 10_000


class _Closed:
    """The grants that a transaction has closed and whose leases are not released yet, up to a bound."""

    def __init__(self) -> None:
        self._grants: dict[GrantId, None] = {}

    def note(self, leases: Sequence[Lease]) -> None:
        """Record that a transaction which closed the grants of ``leases`` has committed."""
        self._grants.update((lease.grant.id, None) for lease in leases)
        while len(self._grants) > _CLOSED_MAX:  # a forgotten grant is only closed once more
            del self._grants[next(iter(self._grants))]

    def take(self, grant: GrantId) -> bool:
        """Remove ``grant``; returns whether it was one of them."""
        found = grant in self._grants
        self._grants.pop(grant, None)
        return found


CLOSED = _Closed()
"""The closed grants of this process: their release has nothing left to close in the fence."""


class Presented:
    """What a connection's open transaction has presented to the fence.

    Attributes:
        presentation: the one whose number records the transaction's outcome; ``None`` if it is not recorded.
        numbers: the numbers recorded in it, given back when its outcome is certain.
        leases: the leases presented, by grant.
        claims: the claims whose rows are locked now.
        doubt: whether the row that records the outcome may have been rolled back with a savepoint.
        read_only: whether it was begun READ ONLY: it can neither write nor lock a row of the fence.
        refusal: the fence's refusal in this transaction, in case the caller swallows it.
        unaccepted: whether leases were sent to be presented after the transaction began, whatever became of
            that: accepted, refused, failed or cancelled. A COMMIT that is answered by ROLLBACK must then be
            told as such, also if nothing was presented before.
    """

    __slots__ = (
        "_begun_with",
        "claims",
        "doubt",
        "leases",
        "numbers",
        "presentation",
        "read_only",
        "refusal",
        "unaccepted",
    )

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was presented: the transaction is over."""
        self._begun_with = False
        self.presentation: Presentation | None = None
        self.numbers: list[int] = []
        self.leases: dict[GrantId, Lease] = {}
        self.claims: set[Claim] = set()
        self.doubt = False
        self.read_only = False
        self.refusal: StaleToken | None = None
        self.unaccepted = False

    def forget(self) -> None:
        """Discard what was presented: a rollback to a savepoint may have undone it, or will."""
        self.claims.clear()
        if self.presentation is not None and not self._begun_with:
            self.presentation, self.doubt = None, True

    def numbers_taken(self) -> list[int]:
        """Take over its numbers, to be given back if the caller learns its outcome for certain."""
        numbers, self.numbers = self.numbers, []
        return numbers

    def note(self, presentation: Presentation, leases: Sequence[Lease], *, begins: bool = False) -> None:
        """Record what the fence accepted; with ``begins``, in the message that began the transaction."""
        if presentation.sequence is not None:
            self.numbers.append(presentation.sequence)
            if self.presentation is None:
                self.presentation, self.doubt, self._begun_with = presentation, False, begins
        self.claims.update(presentation.claims)
        self.leases.update((lease.grant.id, lease) for lease in leases)
