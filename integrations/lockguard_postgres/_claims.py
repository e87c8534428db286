"""What a transaction presents to the fence, and the SQL text that presents it together with BEGIN.

BEGIN, the limits and the checks leave as one simple query. A check with parameters would cost one more
round trip in every transaction, since asyncpg sends parameters only in a message of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from lockguard._lease import GrantId, Lease, Resource, Token
from lockguard.errors import LeaseNotHeld
from lockguard_postgres._errors import CommitUnknown
from lockguard_postgres._in_force import leases_of_bodies
from lockguard_postgres._literals import number, text, uuid
from lockguard_postgres._unsealed import UNSEALED

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FEW", "Claim", "Limits", "Presentation", "first_of", "leases_for", "presentation_for"]

_LOCK_MS = 5_000
# Up to this many, one check after another costs little, and a schema before version 5 can do it.
FEW = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a fenced transaction may keep a takeover waiting.

    Attributes:
        lock_timeout: the longest wait for a lock inside the transaction; by default 5 s or the lease's ttl,
            whichever is less.
        idle_timeout: how long the transaction may be open without a statement before the server ends it, so
            that a holder frozen inside it can be taken over; by default the lease's ttl.
    """

    lock_timeout: timedelta | None = None
    idle_timeout: timedelta | None = None


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """The token and the grant that a write presents for a resource.

    Attributes:
        resource: the resource of the lease.
        token: the lease's token.
        grant: the id of the lease's grant.
        seals: where the same call seals the grant, the SQL of that call without its last argument.
    """

    resource: Resource
    token: Token
    grant: GrantId
    seals: str | None = field(default=None, compare=False)

    def check_sql(self, sequence: int | None = None, *, last: bool = False) -> str:
        """The check as a simple query; with ``last`` it also closes the grant with the COMMIT."""
        pair = f"{text(self.resource)},{number(self.token)},{uuid(self.grant)}"
        if self.seals is not None and not last:
            return f"select {self.seals}{number(sequence)});"
        first = "" if self.seals is None else f"{self.seals}{number(None)})+"
        return f"select {first}lockguard.{'check_last' if last else 'check'}({pair},{number(sequence)});"

    def close_sql(self, within_ms: int) -> str:
        """The close of the grant as a simple query."""
        return (
            f"select lockguard.close({text(self.resource)},{number(self.token)},{uuid(self.grant)},"
            f"{within_ms:d});"
        )


def leases_for(lease: Lease | Sequence[Lease] | None) -> tuple[Lease, ...]:
    """The leases under which a transaction writes; by default those of all surrounding bodies.

    Raises:
        LeaseNotHeld: there are none; or one of those bodies was left before the task that was begun in it.
    """
    leases = leases_of_bodies() if lease is None else (lease,) if isinstance(lease, Lease) else tuple(lease)
    if not leases:
        raise LeaseNotHeld(
            "a fenced transaction needs a lease: open it inside `async with guard.hold(...)` or pass lease=",
            resource="",
        )
    return leases


def first_of(leases: Sequence[Lease]) -> Resource:
    """The resource under which a transaction's number is recorded."""
    if len(leases) == 1:
        return leases[0].resource
    return min(lease.resource for lease in leases)


@dataclass(frozen=True, slots=True)
class Presentation:
    """All that a transaction presents when it begins.

    Attributes:
        claims: in the order in which every transaction locks the fence's rows, so that two never deadlock.
        sequence: the transaction's number, recorded with the first claim; ``None`` records nothing.
        lock_ms: the bound on waiting for locks, in ms.
        idle_ms: the bound on idling, in ms.
        last: whether the transaction also closes all claims; only for one that is a single statement.
    """

    claims: tuple[Claim, ...]
    sequence: int | None
    lock_ms: int
    idle_ms: int
    last: bool = False

    def sql(self) -> str:
        """What follows BEGIN: the limits, for this transaction only, then the checks."""
        bound = f"select lockguard.bound({self.lock_ms:d},{self.idle_ms:d});"
        if self._in_one_call:
            return bound + self._all_sql()
        first, *others = self.claims
        return bound + first.check_sql(self.sequence) + "".join(claim.check_sql() for claim in others)

    def piped_sql(self) -> str:
        """The limits and the checks as one query without a row, for the statement before the next Sync."""
        if self._in_one_call:
            check = self._all_sql().removeprefix("select ").removesuffix(";")
        else:
            first, *others = self.claims
            calls = [
                first.check_sql(self.sequence, last=self.last),
                *(claim.check_sql(last=self.last) for claim in others),
            ]
            check = "(" + "+".join(call.removeprefix("select ").removesuffix(";") for call in calls) + ")"
        return f"select from lockguard.bound({self.lock_ms:d},{self.idle_ms:d}) where {check} is null"

    def unknown(self) -> CommitUnknown:
        """The error for a transaction that presented this and whose outcome is unknown."""
        first = self.claims[0]
        assert self.sequence is not None, f"no write of {first.resource} was numbered, and one is in doubt"
        return CommitUnknown(
            resource=first.resource,
            token=first.token,
            sequence=self.sequence,
            first=first.seals is not None,
        )

    @property
    def _in_one_call(self) -> bool:
        """Whether one call presents all claims."""
        return len(self.claims) > FEW and not self.last and all(claim.seals is None for claim in self.claims)

    def _all_sql(self) -> str:
        resources = ",".join(text(claim.resource) for claim in self.claims)
        tokens = ",".join(number(claim.token) for claim in self.claims)
        grants = ",".join(uuid(claim.grant) for claim in self.claims)
        return (
            f"select lockguard.check_all(array[{resources}],array[{tokens}],array[{grants}],"
            f"{number(self.sequence)});"
        )


def presentation_for(
    leases: Sequence[Lease], *, sequence: int | None, limits: Limits, first: bool = False, last: bool = False
) -> Presentation:
    """What a transaction under ``leases`` presents.

    With ``first`` it seals the grants that are not sealed yet, with ``last`` it closes them.

    Raises:
        LeaseLost: one of them has ended.
        LeaseNotHeld: one of them was released.
    """
    for lease in leases:
        lease.ensure()
    claims = {_claim(lease, first=first) for lease in leases}
    ttl_ms = min(lease.grant.ttl_ms for lease in leases)
    idle_ms = ttl_ms if limits.idle_timeout is None else _milliseconds(limits.idle_timeout)
    # A holder that froze while waiting for a lock must not keep its successor out longer than an idle one.
    lock_ms = min(_LOCK_MS, ttl_ms) if limits.lock_timeout is None else _milliseconds(limits.lock_timeout)
    return Presentation(tuple(sorted(claims)), sequence, max(1, lock_ms), max(1, idle_ms), last)


def _claim(lease: Lease, *, first: bool) -> Claim:
    grant = lease.grant
    seals = UNSEALED.present(grant.id) if first else None
    return Claim(grant.resource, grant.token, grant.id, seals)


def _milliseconds(time: timedelta) -> int:
    # Zero would mean "no bound" to Postgres.
    return max(1, int(time.total_seconds() * 1000))
