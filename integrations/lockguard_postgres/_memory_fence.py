"""The fence without a database, for tests of code that writes under leases.

Its rules are those of the functions in ``sql/``: what is sealed, closed, broken and refused, and who waits
for whom. The contract suite asks the same laws of it as of each driver. It keeps nothing on disk, fails
never, and waits only for transactions of :mod:`lockguard_postgres._memory_tables`.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lockguard._awaiting import Bound, Bounds
from lockguard._clock import SYSTEM_CLOCK, Clock, timers_of
from lockguard._lease import Grant, GrantId, Resource, Token, new_grant_id
from lockguard.errors import FenceUnavailable, StaleToken
from lockguard.ports import Outrun, Sealed
from lockguard_postgres._in_force import leases_in_force
from lockguard_postgres._memory_tables import MemoryTable, MemoryTransaction, transaction_of
from lockguard_postgres._refusals import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lockguard._lease import Lease

__all__ = ["MemoryFence"]


@dataclass(slots=True)
class _Row:
    token: int
    grant: GrantId
    holder: str = ""
    operation: str = ""
    is_open: bool = True


@dataclass(slots=True)
class _Gate:
    """Who writes under a resource in an open transaction, and who waits until nobody does."""

    inside: int = 0
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


class MemoryFence:
    """A fence in memory that refuses stale writes as Postgres does: ``LockGuard.in_memory(fence=fence)``.

    The data are in :meth:`table`, or in whatever the test has, with :meth:`check` before each write. Writes
    of one :meth:`transaction` are kept or undone together.

    Args:
        clock: that of the guards, if a test moves their time.

    Attributes:
        refusals: each refused write, in order, as ``lockguard.refusal`` has them in Postgres.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._rows: dict[Resource, _Row] = {}
        self._gates: dict[Resource, _Gate] = {}
        self.refusals: list[Refused] = []

    # For the guard.

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        """Make ``grant`` the only one whose writes are accepted; waits for open transactions of others.

        Raises:
            FenceUnavailable: they did not end within ``within``.
        """
        row = self._rows.get(grant.resource)
        if self._is_busy(grant.resource):
            if row is not None and row.grant != grant.id and row.token >= grant.token:
                return Outrun(Token(row.token))
            await self._alone(grant.resource, within)
            row = self._rows.get(grant.resource)
        if row is None or (row.token < grant.token and row.grant != grant.id):
            row = _Row(grant.token, grant.id, grant.holder, grant.operation)
            self._rows[grant.resource] = row
        token = Token(row.token)
        return Sealed(token) if row.grant == grant.id and row.is_open else Outrun(token)

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        """Accept no more writes of ``grant``; waits for its open transactions.

        Raises:
            FenceUnavailable: they did not end within ``within``.
        """
        row = self._rows.get(grant.resource)
        if self._is_busy(grant.resource):
            if row is not None and row.grant != grant.id and (row.token >= grant.token or row.is_open):
                return
            await self._alone(grant.resource, within)
            row = self._rows.get(grant.resource)
        if row is not None and row.grant == grant.id:
            row.token, row.is_open = max(row.token, grant.token), False
        elif row is None or (row.token < grant.token and not row.is_open):
            # Its seal may still be on its way: it finds the grant closed.
            self._rows[grant.resource] = _Row(
                grant.token, grant.id, "", "ended before it was sealed", is_open=False
            )

    async def confirm(self, grant: Grant, *, within: timedelta) -> bool:  # noqa: ARG002 - nothing is asked
        """Whether writes of ``grant`` are accepted now."""
        row = self._rows.get(grant.resource)
        return row is not None and row.is_open and (row.token, row.grant) == (grant.token, grant.id)

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        """Accept no more writes of the holder of ``resource``; waits for its open transactions.

        Raises:
            FenceUnavailable: they did not end within ``within``.
        """
        await self._alone(resource, within)
        row = self._rows.get(resource)
        return self._shut(resource, new_grant_id(), reason, above=0 if row is None else row.token)

    async def break_grant(self, grant: Grant, *, reason: str, within: timedelta) -> Token | Outrun:
        """As :meth:`break_`, but leaves a newer grant than ``grant`` alone.

        Raises:
            FenceUnavailable: open transactions did not end within ``within``.
        """
        mark, resource = GrantId(f"broken {grant.id}"), grant.resource
        if not self._is_newer(self._rows.get(resource), grant, mark):
            await self._alone(resource, within)
        row = self._rows.get(resource)
        if row is not None and row.grant == mark:
            return Token(row.token)
        if row is not None and self._is_newer(row, grant, mark):
            return Outrun(Token(row.token))
        return self._shut(resource, mark, reason, above=max(grant.token, 0 if row is None else row.token))

    # For tests.

    def table(self, *, protect: str | Callable[[Any, Any], str] | None = None) -> MemoryTable:
        """A new table: a ``dict`` whose writes are refused as those of a fenced pool are.

        Args:
            protect: as ``lockguard fence protect``, the lease that a row needs: a template over the row's
                fields and ``{key}``, such as ``"{exchange}:{symbol}"``, or a function of key and row. Without
                it, code that holds no lease may write, and code that holds one presents it.
        """
        return MemoryTable(self, protect)

    def transaction(self) -> MemoryTransaction:
        """A block, for ``async with`` or ``with``, whose writes to tables are kept or undone together.

        Inside another one it is a savepoint. What it has presented keeps seals, closes and breaks waiting
        until it ends. Other code sees its writes before it has ended: a table is a dictionary.
        """
        return MemoryTransaction(self)

    def check(self) -> None:
        """Present the leases of the surrounding bodies, as a statement on a fenced pool does.

        Call it before each write of a fake repository that keeps its rows elsewhere.

        Raises:
            StaleToken: a lease's token is not the one in force. The lease is over.
            LeaseLost: a lease has ended.
            LeaseNotHeld: this task has outlived the body in which it began.
        """
        self._present()

    # For transactions and tables.

    def _present(self) -> tuple[Lease, ...]:
        """As :meth:`check`; returns what was presented, all of which the open transaction has from now on."""
        leases = leases_in_force()
        for lease in leases:
            lease.ensure()
        transaction = transaction_of(self)
        for lease in sorted(leases, key=lambda lease: lease.resource):
            grant = lease.grant
            if transaction is not None and transaction.has(grant.id):
                continue
            self._hold(lease, leases)
            if transaction is not None:
                transaction.claim(lease)
        return leases

    def _require(self, resource: str | None, claimed: Sequence[Lease]) -> None:
        """Refuse the write of a protected row unless its own lease was presented.

        Raises:
            StaleToken: it was not.
        """
        if resource in {lease.resource for lease in claimed}:
            return
        row = None if resource is None else self._rows.get(Resource(resource))
        current = None if row is None else row.token
        told = (
            f"no token for {'a row whose resource is null' if resource is None else resource}: a row belongs"
            f" to it and this transaction presented no lease, current {'none' if row is None else row.token}"
        )
        about = ("", "") if row is None else (row.holder, row.operation)
        self.refusals.append(Refused(resource or "", None, current, "LG002", "unguarded", *about))
        raise self._kept(StaleToken(told, resource=resource or "", presented=None, current=current))

    def _enter(self, resource: Resource) -> None:
        """Have seals of ``resource`` wait from now on."""
        self._gates.setdefault(resource, _Gate()).inside += 1

    def _leave(self, resource: Resource) -> None:
        """End what :meth:`_enter` began."""
        gate = self._gates[resource]
        gate.inside -= 1
        if gate.inside:
            return
        for waiting in gate.waiting:
            with contextlib.suppress(RuntimeError):  # that loop has ended
                waiting.get_loop().call_soon_threadsafe(_done, waiting)
        del self._gates[resource]

    def _hold(self, lease: Lease, leases: Sequence[Lease]) -> None:
        grant, row = lease.grant, self._rows.get(lease.resource)
        presented = f"stale token for {grant.resource}: presented {grant.token}"
        if row is None:
            reason, told = "unsealed", f"{presented}, but the resource was never sealed by this fence"
            told += ": the guard that gave the lease has no fence=, or another one"
        elif (row.token, row.grant) != (grant.token, grant.id):
            reason = "superseded"
            told = f"{presented}, current {row.token} ({row.holder}, {row.operation})"
        elif not row.is_open:
            reason, told = "closed", f"{presented}, current {row.token}, closed"
        else:
            return
        current = None if row is None else row.token
        about = (grant.holder, grant.operation)
        self.refusals.append(Refused(grant.resource, grant.token, current, "LG001", reason, *about))
        refusal = StaleToken(told, resource=grant.resource, presented=grant.token, current=current)
        for each in leases:
            if each.grant.id == grant.id:
                each.lost_to_fence(refusal)
        raise self._kept(refusal)

    def _kept(self, refusal: StaleToken) -> StaleToken:
        """The refusal, which an open transaction tells of at its end should the test's code swallow it."""
        if (transaction := transaction_of(self)) is not None:
            transaction.refused(refusal)
        return refusal

    def _shut(self, resource: Resource, mark: GrantId, reason: str, *, above: int) -> Token:
        token = max(round(self._clock.wall() * 1_000_000), above + 1)
        self._rows[resource] = _Row(token, mark, "", f"break: {reason}", is_open=False)
        return Token(token)

    @staticmethod
    def _is_newer(row: _Row | None, grant: Grant, mark: GrantId) -> bool:
        return row is not None and row.grant not in (grant.id, mark) and row.token >= grant.token

    def _is_busy(self, resource: Resource) -> bool:
        return resource in self._gates

    async def _alone(self, resource: Resource, within: timedelta) -> None:
        """Wait until no transaction is open that has presented a lease on ``resource``."""
        bounds = Bounds(within.total_seconds(), timers_of(self._clock))
        try:
            with Bound(bounds):
                while (gate := self._gates.get(resource)) is not None:
                    waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    gate.waiting.append(waiting)
                    await waiting
        except TimeoutError as exc:
            raise FenceUnavailable(
                f"a transaction under {resource!r} was open for longer than {within.total_seconds():g} s",
                resource=resource,
            ) from exc
        finally:
            bounds.close()


def _done(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
