"""Which leases the running code holds.

A context variable follows the body through awaits and into the tasks that the body starts, so a helper
deep in existing code finds the token to write with. A task that outlives the body still sees the lease,
but as released: this module filters it out, and ``Lease.ensure`` refuses it. Start what must see no lease at
all inside :func:`detached`.

A context variable does not follow a hold that is *entered* in a task of its own (``asyncio.wait_for``
before Python 3.12, ``gather``, a fixture): what that task set is gone with it, and the task that waited for
it goes on without a lease. The lease is ended then (``_hold.py``), but the waiting task's writes would go out
as if there had never been one. So each task that uses lockguard is noted in its own context, with the nearest
earlier task from which it inherited. That shows whether a task may have entered a hold through a task that
has ended (:func:`lost_sight`).
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from lockguard._lease import Lease, Resource

if TYPE_CHECKING:
    from asyncio import Task

__all__ = [
    "LeaseScope",
    "current_lease",
    "current_leases",
    "detached",
    "enter_scope",
    "enter_thread_scope",
    "exit_scope",
    "exit_thread_scope",
    "lost_sight",
    "note_task",
    "outlived_lease",
    "scope_for",
]

_count = itertools.count().__next__


def _nobody() -> None:
    """Stands in for a weak reference where there is no task."""


class _Seen:
    """A task that used lockguard, and the one before it in its context; without a task, a new beginning."""

    __slots__ = ("at", "before", "task")

    def __init__(self, task: Task[Any] | None, before: _Seen | None) -> None:
        self.task: Callable[[], Task[Any] | None] = _nobody if task is None else weakref.ref(task)
        self.at = _count()
        self.before = before

    @property
    def is_beginning(self) -> bool:
        """Whether earlier tasks do not count."""
        return self.task is _nobody

    @property
    def over(self) -> bool:
        """Whether its task has ended."""
        return self.task is not _nobody and ((task := self.task()) is None or task.done())


class LeaseScope:
    """A lease in force in this context, and the task that entered its hold.

    Attributes:
        lease: what is held.
        owner: the task that entered the hold.
        guard: the guard that gave the lease.
        unwound: whether it was left because the generator that held it was abandoned. What its owner does
            from then on is outside the body.
    """

    __slots__ = ("__weakref__", "_origin", "guard", "lease", "owner", "unwound")

    def __init__(self, lease: Lease, owner: Task[Any], guard: object) -> None:
        self.lease = lease
        self.owner = owner
        self.guard = guard
        self.unwound = False
        self._origin: _Seen | None = None

    @property
    def over(self) -> bool:
        """Whether nothing can be entered inside it any more."""
        return self.lease.given_back or self.owner.done()

    @property
    def left_here(self) -> bool:
        """Whether what runs here now is outside the body, although this context still has the scope."""
        return self.unwound and self.owner is asyncio.current_task()

    @property
    def entered_again(self) -> bool:
        """Whether a body inside it counts on the lease, so that it stays here when that is released."""
        return False

    @property
    def body_runs_here(self) -> bool:
        """Whether what runs here is in a body that goes on although another thread released its lease."""
        return False

    def may_be_below(self, seen: _Seen, *, certainly: bool) -> bool:
        """Whether the task noted as ``seen`` may have entered this hold through the task that entered it.

        Such a task is the nearest running ancestor of the task that entered it; or one of the same ancestor
        that was not noted before the hold was entered; or one that these have started since. ``certainly``:
        only the first counts.
        """
        origin = self._origin
        if origin is None or self.owner.get_loop() is not asyncio.get_running_loop():
            return False
        above = next(_line(origin.before), None)
        if certainly:
            return seen is above
        for link in _line(seen):
            if link is above:
                return True
            if link.at < origin.at or link.is_beginning:
                return False
        return above is None


_scopes: ContextVar[tuple[LeaseScope, ...]] = ContextVar("lockguard_scopes", default=())
_seen: ContextVar[_Seen | None] = ContextVar("lockguard_seen", default=None)
_open: set[weakref.ref[LeaseScope]] = set()
"""The scopes of all open holds, in whatever thread. One that was garbage-collected drops out."""


def note_task() -> Task[Any] | None:
    """Note that the running task uses lockguard; returns the task, or ``None`` if none runs."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return None
    if task is not None and ((seen := _seen.get()) is None or seen.task() is not task):
        _note(task)
    return task


def enter_scope(scope: LeaseScope) -> LeaseScope:
    """Put a lease in force; pass the result to :func:`exit_scope`."""
    scope._origin = _note(scope.owner)
    _open.add(weakref.ref(scope, _open.discard))
    _scopes.set((*_scopes.get(), scope))
    return scope


def enter_thread_scope(scope: LeaseScope) -> None:
    """Put a lease in force in this context, whose owner is no task of the event loop that may run here."""
    # Those that another thread released would stay for ever: nothing else in this context ends them.
    _scopes.set((*(each for each in _scopes.get() if not each.left_here), scope))


def exit_thread_scope(lease: Lease) -> None:
    """End what :func:`enter_thread_scope` began; in another context there is nothing to take back."""
    _scopes.set(tuple(each for each in _scopes.get() if each.lease is not lease or each.entered_again))


def exit_scope(scope: LeaseScope) -> None:
    """End what :func:`enter_scope` began; in another context there is nothing to take back."""
    _open.discard(weakref.ref(scope))
    scopes = _scopes.get()
    if scopes and scopes[-1] is scope:  # nearly always
        _scopes.set(scopes[:-1])
    elif scope in scopes:
        at = scopes.index(scope)
        _scopes.set((*scopes[:at], *scopes[at + 1 :]))


def scope_for(resource: Resource, guard: object) -> LeaseScope | None:
    """The innermost unreleased lease on ``resource`` that ``guard`` gave to this context."""
    for scope in reversed(_scopes.get()):
        if scope.guard is guard and scope.lease.resource == resource:
            return None if scope.over else scope
    return None


def current_leases() -> tuple[Lease, ...]:
    """Every unreleased lease of the surrounding bodies, outermost first.

    Lost leases are among them: code that writes under one must be refused, not let through as if there had
    never been a lease.
    """
    return tuple(e.lease for e in _scopes.get() if not e.lease.given_back)


def current_lease() -> Lease | None:
    """The innermost unreleased lease of the surrounding bodies, or ``None``."""
    leases = current_leases()
    return leases[-1] if leases else None


def outlived_lease() -> Lease | None:
    """The lease that was released although what runs here began in its body; else ``None``.

    A task that was started in a body and outlived it may write under a lease of its own. A thread that is
    still in the body may not: it takes itself to have both.
    """
    has_own = False
    for scope in reversed(_scopes.get()):
        if scope.left_here:
            continue
        if scope.lease.given_back and (scope.body_runs_here or not has_own):
            return scope.lease
        has_own = True
    return None


def lost_sight() -> Lease | None:
    """The lease of an open hold that this task may have entered through a task that has ended; else ``None``.

    Asked before a write: the task may take itself to be in that hold's body, so its write must be refused. A
    task that was noted before the hold was entered, and did not start the task that entered it, is not in the
    body. A task that writes under leases of its own is stopped only if it certainly started that task and has
    no lease on the same resource.
    """
    task = note_task()
    if not _open or task is None:
        return None
    seen = _note(task)
    for reference in _open.copy():
        scope = reference()
        if scope is not None and scope.owner.done():
            held = {lease.resource for lease in current_leases()}
            if scope.lease.resource not in held and scope.may_be_below(seen, certainly=bool(held)):
                return scope.lease
    return None


@contextmanager
def detached() -> Iterator[None]:
    """Code and tasks started inside see no lease of the surrounding bodies.

    For tasks that are started inside a body and outlive it, such as a background writer or the consumer of a
    queue: ``with detached(): asyncio.create_task(writer())``. Without this, a task that outlives the body is
    refused whenever it writes to a fenced pool. Inside, and in every task started inside, there is no current
    lease; a write to a fenced pool carries none.
    """
    scopes, seen = _scopes.get(), _seen.get()
    _scopes.set(())
    _seen.set(_Seen(None, None))
    try:
        yield
    finally:
        # Not reset by token: a generator may be left in a context other than the one it was entered in.
        _scopes.set(scopes)
        _seen.set(seen)


def _note(task: Task[Any]) -> _Seen:
    """The note of ``task``, in whose context this runs; made now if there is none yet."""
    seen = _seen.get()
    if seen is not None and seen.task() is task:
        return seen
    # Tasks that share a context note themselves in turn: each only once, or the chain would grow for ever.
    for link in _line(seen):
        if link.task() is task:
            return link
    noted = _Seen(task, next(_line(seen), None))
    _seen.set(noted)
    return noted


def _line(seen: _Seen | None) -> Iterator[_Seen]:
    """``seen`` and earlier ones that still run; ended ones are unlinked, or the chain would grow for ever."""
    while seen is not None:
        while (before := seen.before) is not None and before.over:
            seen.before = before.before
        if not seen.over:
            yield seen
        seen = seen.before
