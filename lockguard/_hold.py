"""Holding a resource for the length of a body: acquire, seal, run, cut if lost, release.

Leaving a hold is where lock libraries hurt their users, so the rules are strict:

* When the lease ends under the body, the body's task is cancelled and the hold raises ``LeaseLost``. Like
  ``asyncio.timeout``, it undoes exactly its own cancel: a cancel from outside remains one.
* A body's own exception always wins; the loss becomes a note on it (S11).
* A body that ends normally after its lease has ended gets ``LeaseLost`` too, even if only the release finds
  that the lock was gone: leaving without an error means that the lease was good for the whole body.
* A release never raises because a server cannot be reached, nor because the lock expired while the release
  was in flight: an event reports it.
* The release is sent to Redis before the first await, so that no cancellation can leave the lock behind.
* A hold is for one use. If it were entered twice, the first exit would release what the second entry holds.
* It may be left by a task other than the one that entered it (an abandoned generator, an exit stack, a
  fixture): everything is closed all the same. But a task that ends with its hold still open can no longer be
  cut, and no code sees its lease any more, so the lease ends with the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Literal

from lockguard._awaiting import Bound, cancel_on_its_way, end_of, waits_for
from lockguard._clock import Clock
from lockguard._context import LeaseScope, enter_scope, exit_scope, note_task, scope_for
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard._locks import Found
from lockguard.errors import (
    ConfigurationError,
    FenceUnavailable,
    LeaseLost,
    LossReason,
    QueueFull,
    QuorumUnavailable,
    ResourceBusy,
    SelfDeadlock,
)
from lockguard.events import Acquired, Lost, NotAcquired, NotAcquiredReason, Released, Unwound
from lockguard.ports import AcquireRequest, Outrun, Sealed

if TYPE_CHECKING:
    from types import TracebackType

    from lockguard._binding import Binding
    from lockguard._locks import Won

__all__ = ["Hold", "HoldMany"]

_SEAL_ATTEMPTS = 3


class _Stage(Enum):
    """How far a hold has come. Each step is taken once."""

    NEW = auto()
    ENTERING = auto()
    OPEN = auto()
    INNER = auto()
    """Inside another hold of this task, which is the one that releases."""
    OVER = auto()


# In Python 3.11 each access to a member of an Enum takes as long as a call.
_NEW, _ENTERING, _OPEN, _INNER, _OVER = _Stage
_GONE, _UNTOLD = Found.NO, Found.UNKNOWN


def _why_not(exc: BaseException, request: AcquireRequest) -> NotAcquiredReason:
    match exc:
        case QueueFull():
            return NotAcquiredReason.QUEUE_FULL
        case ResourceBusy():
            return NotAcquiredReason.GAVE_UP if request.queue else NotAcquiredReason.SKIPPED
        case QuorumUnavailable():
            return NotAcquiredReason.NO_QUORUM
        case FenceUnavailable():
            return NotAcquiredReason.NO_FENCE
        case SelfDeadlock():
            return NotAcquiredReason.DEADLOCK
        case LeaseLost():
            return NotAcquiredReason.LOST
        case asyncio.CancelledError() | GeneratorExit():
            return NotAcquiredReason.CANCELLED
        case _:
            return NotAcquiredReason.ERROR


def _not_acquired(exc: BaseException, request: AcquireRequest, waited_s: float) -> NotAcquired:
    return NotAcquired(request.resource, request.grant, _why_not(exc, request), waited_s * 1000)


def _used() -> ConfigurationError:
    return ConfigurationError(
        "this hold was entered before; a hold is for one use: write guard.hold(...) in each `async with`"
    )


def _not_the_one_that_releases(resource: Resource) -> ConfigurationError:
    return ConfigurationError(
        f"at_least= was given for {resource!r}, which this task holds already; the outer hold releases it:"
        " give at_least= there"
    )


def _may_exit(stage: _Stage, exc: BaseException | None) -> bool:
    """Whether the hold can be left. If not, raises, or adds a note to the body's error (S11)."""
    if stage in (_OPEN, _INNER):
        return True
    what = "was left before" if stage is _OVER else "was not entered"
    told = f"this hold {what}, so there is nothing to leave: write guard.hold(...) in an `async with`"
    if exc is None:
        raise ConfigurationError(told)
    exc.add_note(told)
    return False


@dataclass(slots=True)
class _Cut:
    """The cancel that a hold sent to its body's task."""

    task: asyncio.Task[Any]
    reason: LossReason
    cancels_at_entry: int
    cancels_before: int
    outside: bool
    """Whether another cancel was pending when this one was sent."""

    @property
    def message(self) -> str:
        """The message by which this cancel is recognized."""
        return f"lockguard: lease lost ({self.reason.value})"

    async def take_back(self, exc: BaseException | None) -> bool:
        """Undo our cancel; returns whether ``exc`` is that cancel and nothing else."""
        only_ours = self._only_ours(self.task.uncancel(), exc)
        if not isinstance(exc, asyncio.CancelledError):
            # The body ended before the cancel was delivered. Python 3.11 and 3.12 still deliver it at the
            # next await, which would be the release: take it here.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if not only_ours:
                    raise
            return False
        return only_ours

    def _only_ours(self, cancels: int, exc: BaseException | None) -> bool:
        if cancels <= self.cancels_at_entry:
            return True
        if cancels > self.cancels_before or self.outside:
            return False
        # Cancels were counted before ours, and none was pending: they had been handled, as by a TaskGroup
        # whose child failed, which (in 3.11) does not uncancel its own. Unless one is still propagating.
        while isinstance(exc, asyncio.CancelledError):
            if exc.args != (self.message,):
                return False
            exc = exc.__context__
        return True


class _ForAsyncWith:
    __slots__ = ()

    if not TYPE_CHECKING:  # a type checker complains of `with` by itself

        def __enter__(self) -> None:
            """Refuse `with`.

            Raises:
                ConfigurationError: always.
            """
            raise ConfigurationError(
                "this hold is for `async with`; for `with`, in synchronous code, make the guard with"
                " lockguard.sync.LockGuard"
            )

        def __exit__(self, *_: object) -> None:
            """Needed for `with` to reach the refusal above."""


class Hold(_ForAsyncWith):
    """What ``guard.hold()`` returns: an async context manager, for one use.

    Entering it gives the :class:`~lockguard._lease.Lease`.

    Args:
        binding: the guard's parts, for whatever event loop the hold is entered in.
        resource: what to hold.
        ttl_ms: the lease's ttl, in milliseconds.
        patience: how long to wait.
        operation: what the hold is for, for display.
        on_busy: whether to wait at all.
        at_least_ms: how long after its grant the resource opens at the earliest; 0: when it is released.
    """

    __slots__ = (
        "__weakref__",
        "_acquired_at",
        "_at_least_ms",
        "_binding",
        "_cancels_at_entry",
        "_core",
        "_cut",
        "_lease",
        "_operation",
        "_patience",
        "_queue",
        "_resource",
        "_scope",
        "_stage",
        "_task",
        "_ttl_ms",
    )

    def __init__(
        self,
        binding: Binding,
        resource: Resource,
        ttl_ms: int,
        patience: timedelta,
        operation: str,
        on_busy: Literal["wait", "raise"],
        at_least_ms: int = 0,
    ) -> None:
        self._binding = binding
        self._core = binding.core
        self._resource = resource
        self._ttl_ms = ttl_ms
        self._patience = patience
        self._operation = operation
        self._queue = on_busy == "wait"
        self._at_least_ms = at_least_ms
        self._stage = _NEW
        self._task: asyncio.Task[Any] | None = None
        self._cancels_at_entry = 0
        self._lease: Lease | None = None
        self._cut: _Cut | None = None
        self._scope: LeaseScope | None = None
        self._acquired_at = 0.0
        note_task()

    async def __aenter__(self) -> Lease:
        """Acquire and seal.

        Raises:
            AcquireError: the lock was not obtained; see its subclasses.
            LeaseLost: the lease ended before it was sealed.
            ConfigurationError: the hold was used before, its guard is closed or in use in another event loop,
                or it has ``at_least`` and this task holds the resource already.
        """
        if self._stage is not _NEW:
            raise _used()
        self._stage = _ENTERING
        core, task = self._binding.enter()
        self._core = core
        surrounding = scope_for(self._resource, core)
        if surrounding is not None and surrounding.owner is task:
            return self._enter_inside(surrounding.lease)
        called_at = core.clock.now()
        request = AcquireRequest(
            self._resource,
            new_grant_id(),
            core.holder(task),
            self._operation,
            self._ttl_ms,
            self._queue,
            0,
            core.lock_delay_ms,
            core.history,
            self._at_least_ms,
        )
        give_up_at = called_at + self._patience.total_seconds()
        try:
            if surrounding is None or not self._queue:  # a lock of the parent is busy like any other
                won = await core.queue.acquire(request, give_up_at=give_up_at)
            else:
                won = await self._acquire_inside(surrounding, request, give_up_at, task)
            grant = Grant(
                request.resource,
                request.grant,
                won.token,
                request.holder,
                request.operation,
                request.ttl_ms,
                won.seal,
                request.lock_delay_ms,
                request.at_least_ms,
                core.clock.now(),
            )
            lease = self._binding.lease_type(grant, deadline=won.deadline, clock=core.clock)
            self._task, self._cancels_at_entry = task, task.cancelling()
            self._acquired_at = core.keeper.keep(lease, self._cut_body, max_hold_s=core.max_hold_s)
            sealed_ms = 0.0 if core.fence is None else await self._seal(lease, request)
        except BaseException as exc:
            core.emit(_not_acquired(exc, request, core.clock.now() - called_at))
            raise
        self._lease, self._scope = lease, enter_scope(LeaseScope(lease, task, core))
        self._stage = _OPEN
        task.add_done_callback(self._task_ended)
        core.emit(Acquired(lease.grant, (self._acquired_at - called_at) * 1000, sealed_ms))
        return lease

    def _enter_inside(self, lease: Lease) -> Lease:
        """Enter inside another hold of this task, which is the one that releases."""
        if self._at_least_ms:
            raise _not_the_one_that_releases(self._resource)
        lease.ensure()
        self._stage = _INNER
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lease, by the rules of this module.

        Raises:
            LeaseLost: the lease ended under the body, or the hold is left outside the guard's event loop.
            ConfigurationError: the hold is not open.
        """
        if self._stage is not _OPEN and not _may_exit(self._stage, exc):
            return
        inner, self._stage = self._stage is _INNER, _OVER
        if inner:  # the outer hold releases
            return
        core, lease, task, scope = self._core, self._lease, self._task, self._scope
        assert lease is not None
        assert task is not None
        assert scope is not None
        if not core.in_own_loop:
            self._exit_elsewhere(exc)
            return
        task.remove_done_callback(self._task_ended)
        loss, grant = lease.loss, lease.grant
        ended_at = core.clock.now()
        releasing = core.locks.release(
            grant.resource, grant.id, lost=loss is not None, seal=grant.seal, at_least_ms=self._at_least_ms
        )
        # The release is sent: the rest is done while the server works.
        follows = loss is None and not self._at_least_ms and core.queue.lines
        successor = core.queue.follow(grant.resource) if follows else None
        deadline = lease.mark_released()
        kept = core.keeper.drop(lease)
        scope.unwound = isinstance(exc, GeneratorExit) and asyncio.current_task() is not task
        exit_scope(scope)
        if loss is not None:
            self._tell_loss(lease, loss, ended_at, told=not kept)
        cut = self._cut
        cut_only = cut is not None and asyncio.current_task() is task and await cut.take_back(exc)
        if loss is not None:
            # A hung server may be the reason: the release is not waited for, the caller must know now.
            if core.fence is not None:
                core.close_fence(grant)
            self._report_loss(lease, loss, exc, cut_only=cut_only)
            return
        closing = core.close_fence(grant, successor) if core.fence is not None else None
        found, gone = None, False
        try:
            found = await releasing()
            gone = found is _GONE and core.clock.now() < lease.kept_until
            if closing is not None and not closing.done():
                # The fence is closed even if this task is cancelled here: the guard completes it.
                await end_of(closing)
        finally:  # told also if this task is cancelled here: the release was sent
            if not gone:
                now, margin_ms = core.clock.now(), (deadline - ended_at) * 1000
                held_ms, released_ms = (now - self._acquired_at) * 1000, (now - ended_at) * 1000
                told = None if found in (None, _UNTOLD) else found is not _GONE
                core.emit(Released(grant, held_ms, told, margin_ms, released_ms, cancelled=found is None))
        if gone:
            self._report_taken(lease, ended_at, exc)

    def _report_taken(self, lease: Lease, ended_at: float, exc: BaseException | None) -> None:
        """No deadline ended it, and this was the only release: the lock was taken from under the body."""
        self._tell_loss(lease, LossReason.REFUSED, ended_at, told=False)
        self._report_loss(lease, LossReason.REFUSED, exc, cut_only=False)

    def _tell_loss(self, lease: Lease, loss: LossReason, ended_at: float, *, told: bool) -> None:
        if not told:  # such as the loss of a body that blocked the event loop, and the timer with it
            self._core.emit(Lost(lease.grant, loss))
        self._core.emit(Unwound(lease.grant, loss, (ended_at - self._acquired_at) * 1000))

    @staticmethod
    def _report_loss(lease: Lease, loss: LossReason, exc: BaseException | None, *, cut_only: bool) -> None:
        if exc is None or cut_only:
            raise lease.lost_error(loss) from exc
        exc.add_note(str(lease.lost_error(loss)))

    async def _acquire_inside(
        self, surrounding: LeaseScope, request: AcquireRequest, give_up_at: float, task: asyncio.Task[Any]
    ) -> Won:
        """Wait for a lock of the task that started this one, unless that task waits for this one."""
        if waits_for(surrounding.owner, task):
            raise self._deadlock(surrounding, task)
        try:
            return await self._core.queue.acquire(request, give_up_at=give_up_at)
        except QueueFull:
            raise
        except ResourceBusy as busy:
            if scope_for(self._resource, self._core) is surrounding:
                raise self._deadlock(surrounding, task) from busy
            raise

    def _deadlock(self, surrounding: LeaseScope, task: asyncio.Task[Any]) -> SelfDeadlock:
        return SelfDeadlock(
            f"{task.get_name()!r} asked for {self._resource!r}, which the task that started it"
            f" ({surrounding.owner.get_name()!r}) holds: it would wait for ever;"
            " use the lease of the surrounding body, or start what is to go on without it inside"
            " `with detached():`",
            resource=self._resource,
        )

    def _cut_body(self, reason: LossReason) -> None:
        """Cancel the body's task, because the lease has ended."""
        task, at_entry = self._task, self._cancels_at_entry
        assert task is not None
        before = task.cancelling()
        outside = before > at_entry and cancel_on_its_way(task)
        self._cut = _Cut(task, reason, at_entry, before, outside)
        task.cancel(self._cut.message)

    def _task_ended(self, _: object) -> None:
        """End the lease if the task that entered the hold has ended without leaving it."""
        if self._stage is _OPEN and not self._core.closed:
            self._abandon()

    def _abandon(self) -> None:
        """End the lease of a body that can no longer be cut. Runs in the guard's own loop."""
        core, lease = self._core, self._lease
        assert lease is not None
        lease.end(LossReason.ABANDONED)
        core.keeper.drop(lease)
        core.locks.release(lease.resource, lease.grant.id, lost=True, seal=lease.grant.seal)
        if core.fence is not None:
            core.close_fence(lease.grant)

    def _exit_elsewhere(self, exc: BaseException | None) -> None:
        """Leave in another event loop, in none, or after a fork: only the guard's own loop can release."""
        lease = self._lease
        assert lease is not None
        self._core.call_in_own_loop(self._abandon)
        self._report_loss(lease, lease.loss or LossReason.ABANDONED, exc, cut_only=False)

    async def _seal(self, lease: Lease, request: AcquireRequest) -> float:
        """Shut out all older grants (S3). If that fails, the lock is released before the error is raised.

        Returns:
            How long it took, in milliseconds; the hold counts from its end.
        """
        began = self._acquired_at
        try:
            await self._seal_in_time(lease, request)
            lease.ensure()
        except BaseException as exc:
            self._core.keeper.drop(lease)
            self._core.locks.release(lease.resource, lease.grant.id)
            if not isinstance(exc, ConfigurationError):  # which the fence would tell once more
                self._core.close_fence(lease.grant)
            if (cut := self._cut) is not None and await cut.take_back(exc):
                raise lease.lost_error(cut.reason) from exc
            raise
        self._acquired_at = self._core.clock.now()
        return (self._acquired_at - began) * 1000

    async def _seal_in_time(self, lease: Lease, request: AcquireRequest) -> None:
        core = self._core
        try:
            with Bound(core.fence_bounds):
                await self._seal_until_ours(lease, request)
        except TimeoutError as exc:
            raise FenceUnavailable(
                f"the fence of {lease.resource!r} did not answer within"
                f" {core.fence_within.total_seconds():g} s",
                resource=lease.resource,
            ) from exc

    async def _seal_until_ours(self, lease: Lease, request: AcquireRequest) -> None:
        core, fence = self._core, self._core.fence
        assert fence is not None
        for _ in range(_SEAL_ATTEMPTS):
            match await fence.seal(lease.grant, within=core.fence_within):
                case Sealed(token, seal):
                    lease.take_token(token, seal)
                    return
                case Outrun(current):
                    # Either we are late and a successor sealed, or Redis lost its data and gave out a low
                    # token. Only Redis knows: it takes the higher token only while the lock is still ours.
                    token = Token(current + 1)
                    if not await core.locks.settle(request, token):
                        raise ResourceBusy(
                            f"{lease.resource!r} passed to somebody else before it was sealed;"
                            f" its token is {current}",
                            resource=lease.resource,
                            token=current,
                        )
                    lease.take_token(token)
        raise FenceUnavailable(
            f"the fence of {lease.resource!r} was outrun {_SEAL_ATTEMPTS} times; try again",
            resource=lease.resource,
        )


class HoldMany(_ForAsyncWith):
    """What ``guard.hold_many()`` returns: several holds, all or none, for one use.

    They are taken in the order of their names, whatever the caller's order, so that two callers that want the
    same resources never wait for each other. The loss of one lease ends the body.
    """

    __slots__ = ("_clock", "_hold", "_patience", "_resources", "_stack", "_stage")

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
        self._stage = _NEW
        note_task()

    async def __aenter__(self) -> tuple[Lease, ...]:
        """Acquire all; returns the leases in the caller's order. ``patience`` covers all of them together.

        Raises:
            AcquireError: one lock was not obtained, so none is held.
            ConfigurationError: it was used before; see :meth:`Hold.__aenter__`.
        """
        if self._stage is not _NEW:
            raise _used()
        self._stage = _ENTERING
        give_up_at = self._clock.now() + self._patience.total_seconds()
        leases: dict[str, Lease] = {}
        async with AsyncExitStack() as stack:
            for resource in sorted(set(self._resources)):
                left = timedelta(seconds=max(0.0, give_up_at - self._clock.now()))
                leases[resource] = await stack.enter_async_context(self._hold(resource, left))
            self._stack = stack.pop_all()
        self._stage = _OPEN
        return tuple(leases[resource] for resource in self._resources)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Release all leases, last first.

        Raises:
            LeaseLost: one of the leases ended under the body.
            ConfigurationError: it is not open.
        """
        if not _may_exit(self._stage, exc):
            return None
        self._stage = _OVER
        return await self._stack.__aexit__(kind, exc, traceback)
