"""A body of synchronous code, under one lease or several.

It is entered and left by a thread, which stands for the task of the asynchronous guard: the same thread may
enter again and keeps its token. A thread that has another's context (``contextvars.copy_context``) and asks
for what that one holds waits its turn, and is told that it would wait for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from lockguard._context import enter_thread_scope, exit_scope, exit_thread_scope, scope_for
from lockguard._lease import Resource
from lockguard.errors import ConfigurationError, LeaseLost, QueueFull, ResourceBusy, SelfDeadlock
from lockguard.sync._blocking import require_blocking_allowed
from lockguard.sync._holding import Holding
from lockguard.sync._lease import Lease, ThreadScope

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Begin", "Hold", "HoldMany", "acquired"]

Begin = Callable[[Sequence[Resource]], Holding]
"""Makes what holds these resources; nothing is asked for yet."""


class _Body:
    """What both kinds of hold share.

    Args:
        guard: the guard.
        resources: what to hold.
        begin: makes what holds those of them that this thread does not hold already.
        closes_later: whether ``at_least`` was given, which only the outermost hold can keep.
    """

    __slots__ = (
        "_begin",
        "_closes_later",
        "_entered",
        "_guard",
        "_holding",
        "_outer",
        "_resources",
        "_scopes",
        "_used",
    )

    def __init__(
        self, guard: object, resources: Sequence[Resource], begin: Begin, *, closes_later: bool = False
    ) -> None:
        self._guard = guard
        self._resources = tuple(resources)
        self._begin = begin
        self._closes_later = closes_later
        self._used = False
        self._outer: list[ThreadScope] = []
        self._scopes: list[ThreadScope] = []
        self._holding: Holding | None = None
        self._entered: tuple[Lease, ...] | None = None

    def __del__(self) -> None:
        # Ctrl-C may come when the body has ended and its __exit__ has not begun: nothing else would release.
        if getattr(self, "_entered", None) is not None:  # an interrupted __init__ set none
            self._leave_scopes()
        if (holding := getattr(self, "_holding", None)) is not None:
            _forget(holding)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release what was acquired.

        Raises:
            LeaseLost: a lease ended under the body. If the body raised, it is a note on that instead.
            ConfigurationError: the hold is not open.
        """
        if self._entered is None:
            raise ConfigurationError("this hold is not open: write guard.hold(...) in a `with`")
        self._leave_scopes()
        self._entered = None
        holding = self._holding
        if holding is None or holding.left:  # inside another hold, or released in the body
            return
        if holding.in_own_thread:  # a forgotten generator, collected there: nobody could wait
            holding.abandon()
            return
        try:
            holding.leave()
            self._holding = None  # nothing is left for __del__ to do
        except LeaseLost as lost:
            self._holding = None
            if exc is None:
                raise
            if str(exc) != str(lost):  # ensure() told it
                exc.add_note(str(lost))

    async def __aenter__(self) -> NoReturn:
        raise ConfigurationError(
            "this hold is one of lockguard.sync, for synchronous code; in an `async def` function make the"
            " guard with lockguard.LockGuard"
        )

    async def __aexit__(self, *_: object) -> None:
        """Needed for ``async with`` to reach the refusal above."""

    def _enter(self) -> tuple[Lease, ...]:
        if self._used:
            raise ConfigurationError(
                "this hold was entered before; a hold is for one use: write guard.hold(...) in each `with`"
            )
        self._used = True
        self._entered = ()
        try:
            return self._enter_each()
        except BaseException:  # who handles it may keep it, and this hold with it
            self._leave_scopes()
            raise

    def _enter_each(self) -> tuple[Lease, ...]:
        leases: dict[Resource, Lease] = {}
        missing = []
        for resource in sorted(set(self._resources)):
            if (scope := _held_here(resource, self._guard)) is None:
                missing.append(resource)
                continue
            if self._closes_later:
                raise ConfigurationError(
                    f"at_least= was given for {resource!r}, which this thread holds already; the outer hold"
                    " releases it: give at_least= there"
                )
            # Two tasks of an event loop in the body would be inside at the same time.
            require_blocking_allowed("a hold", in_own_thread=False)
            scope.lease.ensure()
            self._outer.append(scope)
            scope.bodies.add(id(self))
            leases[resource] = scope.lease
        if missing:
            self._holding = self._begin(missing)
            self._entered = _acquire(self._guard, self._holding)
            for lease in self._entered:
                scope = ThreadScope(lease, self._holding.task, self._guard, borrowed=False)
                self._scopes.append(scope)
                enter_thread_scope(scope)
                leases[lease.resource] = lease
        return tuple(leases[resource] for resource in self._resources)

    def _leave_scopes(self) -> None:
        # A generator may be left in another thread, or by the garbage collector, than it was entered in.
        for scope in self._outer:
            scope.bodies.discard(id(self))
        for scope in self._scopes:
            scope.unwound = True
            exit_scope(scope)


class Hold(_Body):
    """What ``guard.hold()`` returns: a context manager that gives the lease, for one use."""

    __slots__ = ()

    def __enter__(self) -> Lease:
        """Acquire.

        Raises:
            AcquireError: the lock was not obtained; see its subclasses.
            LeaseLost: this thread holds the resource already, and has lost it.
            ConfigurationError: the hold was used before, or this thread must not block.
        """
        return self._enter()[0]


class HoldMany(_Body):
    """What ``guard.hold_many()`` returns: a context manager that gives the leases, all or none."""

    __slots__ = ()

    def __enter__(self) -> tuple[Lease, ...]:
        """Acquire all; returns the leases in the caller's order.

        Raises:
            AcquireError: one lock was not obtained, so none is held.
            LeaseLost: this thread holds one of the resources already, and has lost it.
            ConfigurationError: the hold was used before, or this thread must not block.
        """
        return self._enter()


def acquired(resource: Resource, guard: object, begin: Begin) -> Lease:
    """Acquire ``resource`` for whoever releases it.

    Raises:
        SelfDeadlock: this thread holds it already.
        AcquireError: the lock was not obtained.
    """
    scope = _held_here(resource, guard)
    if scope is not None:
        if scope.lease.loss is None:
            raise SelfDeadlock(
                f"this thread ({threading.current_thread().name!r}) acquired {resource!r} before and has not"
                " released it: it would wait for itself; use that lease, or release it first",
                resource=resource,
            )
        if not scope.borrowed or scope.entered_again:
            scope.lease.ensure()  # after the release of the new one, this body would run on without any
        exit_thread_scope(scope.lease)  # lost: what begins now is under the new one alone
    holding = begin([resource])
    try:
        (lease,) = _acquire(guard, holding)
        enter_thread_scope(ThreadScope(lease, holding.task, guard, borrowed=True))
    except BaseException:  # as of Ctrl-C
        _forget(holding)
        raise
    return lease


def _forget(holding: Holding) -> None:
    """Release without waiting, and show the lease here no more: what runs on is not in its body."""
    holding.abandon()
    for lease in holding.leases:
        exit_thread_scope(lease)


def _held_here(resource: Resource, guard: object) -> ThreadScope | None:
    """Where this thread holds ``resource``, if it does."""
    scope = scope_for(resource, guard)
    return scope if isinstance(scope, ThreadScope) and scope.thread == threading.get_ident() else None


def _acquire(guard: object, holding: Holding) -> tuple[Lease, ...]:
    try:
        return holding.enter()
    except QueueFull:
        raise
    except ResourceBusy as busy:
        if scope_for(Resource(busy.resource), guard) is None:
            raise
        raise SelfDeadlock(
            f"this thread ({threading.current_thread().name!r}) asked for {busy.resource!r}, which the thread"
            " whose context it was given holds: it would wait for ever; use that lease, or run what is to go"
            " on without it inside `with detached():`",
            resource=busy.resource,
        ) from busy
