"""Holding a resource for the length of a body: acquire, seal, run, cut if lost, release.

The way out is where lock libraries hurt their users, so its rules are strict:

* When the lease ends under the body, the body's task is cancelled and what leaves here is ``LeaseLost``.
  Like ``asyncio.timeout``, this takes back exactly its own cancel: one that came from outside stays one.
* A body's own exception always wins; the loss becomes a note on it (S11).
* A body that ends normally after its lease did gets ``LeaseLost`` too: leaving without an error means that
  the lease was good for the whole body.
* Releasing never raises because the lease was gone already, nor because a server cannot be reached: the
  lease then ends by its ttl, and an event tells.
* The release has left for Redis before the first await, so that no cancellation can leave the lock behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lockguard.clock import Clock
from lockguard.context import Entry, entry_for, pop_entry, push_entry
from lockguard.errors import FenceUnavailable, LossReason, ResourceBusy, SelfDeadlock
from lockguard.events import Acquired, Released
from lockguard.lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.ports import AcquireRequest, Outrun, Sealed

if TYPE_CHECKING:
    from contextvars import Token as ContextToken
    from types import TracebackType

    from lockguard.core import Core

__all__ = ["Hold", "HoldMany"]

_SEAL_ATTEMPTS = 3


@dataclass(slots=True)
class _Cut:
    """The cancel that this hold sent to its body's task, if it did."""

    task: asyncio.Task[Any]
    cancels_before: int
    reason: LossReason | None = None

    def __call__(self, reason: LossReason) -> None:
        self.reason = reason
        self.task.cancel(f"lockguard: lease lost ({reason.value})")

    async def take_back(self, exc: BaseException | None) -> bool:
        """Undo our cancel; tells whether ``exc`` is nothing but that cancel."""
        only_ours = self.task.uncancel() <= self.cancels_before
        if not isinstance(exc, asyncio.CancelledError):
            # The body ended before it was delivered. Python 3.11 and 3.12 deliver it at the next await all
            # the same, which would be the release: take it here.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if not only_ours:
                    raise
            return False
        return only_ours


class Hold:
    """What ``guard.hold()`` returns: an async context manager, for one use.

    Entering it gives the :class:`~lockguard.lease.Lease`.

    Args:
        core: the guard's parts.
        resource: what to hold.
        ttl_ms: the life asked for, in milliseconds.
        patience: how long to wait.
        operation: what for, for people.
        queue: whether to wait at all.
    """

    __slots__ = (
        "_acquired_at",
        "_context",
        "_core",
        "_cut",
        "_lease",
        "_operation",
        "_patience",
        "_queue",
        "_resource",
        "_ttl_ms",
    )

    def __init__(
        self, core: Core, resource: Resource, *, ttl_ms: int, patience: timedelta, operation: str, queue: bool
    ) -> None:
        self._core = core
        self._resource = resource
        self._ttl_ms = ttl_ms
        self._patience = patience
        self._operation = operation
        self._queue = queue
        self._lease: Lease | None = None
        self._cut: _Cut | None = None
        self._context: ContextToken[tuple[Entry, ...]] | None = None
        self._acquired_at = 0.0

    async def __aenter__(self) -> Lease:
        """Acquire and seal.

        Raises:
            AcquireError: it was not obtained; see its kinds.
            LeaseLost: it was obtained and ended again before it was sealed.
            ConfigurationError: the guard is closed or belongs to another event loop.
        """
        core = self._core
        task = core.enter()
        if (entry := entry_for(self._resource, core)) is not None:
            return self._enter_again(entry, task)
        called_at = core.clock.now()
        request = AcquireRequest(
            resource=self._resource,
            grant=new_grant_id(),
            holder=core.holder(task),
            operation=self._operation,
            ttl_ms=self._ttl_ms,
            queue=self._queue,
            lock_delay_ms=core.lock_delay_ms,
        )
        give_up_at = called_at + self._patience.total_seconds()
        won = await core.queue.acquire(request, give_up_at=give_up_at)
        grant = Grant(
            request.resource, request.grant, won.token, request.holder, request.operation, request.ttl_ms
        )
        lease = Lease(grant, deadline=won.deadline, clock=core.clock)
        self._cut = _Cut(task, task.cancelling())
        self._acquired_at = core.keeper.keep(lease, self._cut, max_hold_s=core.max_hold_s)
        if core.fence is not None:
            await self._seal(lease, request)
            self._acquired_at = core.clock.now()
        self._lease = lease
        self._context = push_entry(Entry(lease, task, core))
        core.emit(Acquired(lease.grant, (self._acquired_at - called_at) * 1000))
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release. See the module's rules.

        Raises:
            LeaseLost: the lease ended under the body.
        """
        if self._context is None:  # entered again: the outer hold releases
            return
        core, lease, cut = self._core, self._lease, self._cut
        assert lease is not None
        assert cut is not None
        loss, grant = lease.loss, lease.grant
        asked = core.redlock.undo(grant.resource, grant.id)
        # It has left: the rest is done while the server works.
        lease.mark_released()
        core.keeper.drop(lease)
        pop_entry(self._context)
        cut_only = cut.reason is not None and await cut.take_back(exc)
        if loss is None:
            if core.fence is not None:
                # Shielded: it is closed even if this task is cancelled here; the guard sees to its end.
                await asyncio.shield(core.close_fence(grant))
            found = await core.redlock.confirm(asked)
            core.emit(Released(grant, (core.clock.now() - self._acquired_at) * 1000, found))
            return
        # Lost, perhaps because a server hangs: what was sent is not waited for, the caller must know now.
        if core.fence is not None:
            core.close_fence(grant)
        if exc is None or cut_only:
            raise lease.lost_error(loss) from exc
        exc.add_note(str(lease.lost_error(loss)))

    def _enter_again(self, entry: Entry, task: asyncio.Task[Any]) -> Lease:
        if entry.owner is task:
            entry.lease.ensure()
            return entry.lease
        resource = self._resource
        raise SelfDeadlock(
            f"{task.get_name()!r} asked for {resource!r}, which the task that started it"
            f" ({entry.owner.get_name()!r}) holds: it would wait for ever;"
            " use the lease of the surrounding body",
            resource=resource,
        )

    async def _seal(self, lease: Lease, request: AcquireRequest) -> None:
        """Shut out everything older (S3). What fails here gives the lock back before it leaves."""
        cut = self._cut
        assert cut is not None
        try:
            await self._seal_until_ours(lease, request)
            lease.ensure()
        except BaseException as exc:
            self._core.keeper.drop(lease)
            self._core.redlock.undo(lease.resource, lease.grant.id)
            self._core.close_fence(lease.grant)
            if cut.reason is not None and await cut.take_back(exc):
                raise lease.lost_error(cut.reason) from exc
            raise

    async def _seal_until_ours(self, lease: Lease, request: AcquireRequest) -> None:
        core, fence = self._core, self._core.fence
        assert fence is not None
        for _ in range(_SEAL_ATTEMPTS):
            match await fence.seal(lease.grant, within=core.fence_within):
                case Sealed(token):
                    lease.settle(token)
                    return
                case Outrun(current):
                    # Either we are late and a successor sealed, or Redis lost its data and gave out a low
                    # token. Only Redis knows: the higher token sticks only if it is still ours there.
                    token = Token(current + 1)
                    if not await core.redlock.settle(request, token):
                        raise ResourceBusy(
                            f"{lease.resource!r} passed to somebody else before it was sealed;"
                            f" its token is {current}",
                            resource=lease.resource,
                            token=current,
                        )
                    lease.settle(token)
        raise FenceUnavailable(
            f"the fence of {lease.resource!r} was outrun {_SEAL_ATTEMPTS} times; try again",
            resource=lease.resource,
        )


class HoldMany:
    """What ``guard.hold_many()`` returns: several holds, all or none, for one use.

    They are taken in the order of their names, whatever the caller's order, so that two callers that want
    the same ones never wait for each other. Losing one ends the body.
    """

    __slots__ = ("_clock", "_hold", "_patience", "_resources", "_stack")

    def __init__(
        self,
        resources: Sequence[str],
        hold: Callable[[str, timedelta], Hold],
        *,
        patience: timedelta,
        clock: Clock,
    ) -> None:
        self._resources = tuple(resources)
        self._hold = hold
        self._patience = patience
        self._clock = clock
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> tuple[Lease, ...]:
        """The leases in the caller's order; ``patience`` covers all of them together.

        Raises:
            AcquireError: one could not be had; none is held.
        """
        give_up_at = self._clock.now() + self._patience.total_seconds()
        leases: dict[str, Lease] = {}
        async with AsyncExitStack() as stack:
            for resource in sorted(set(self._resources)):
                left = timedelta(seconds=max(0.0, give_up_at - self._clock.now()))
                leases[resource] = await stack.enter_async_context(self._hold(resource, left))
            self._stack = stack.pop_all()
        return tuple(leases[resource] for resource in self._resources)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Release all of them, last first."""
        return await self._stack.__aexit__(kind, exc, traceback)
