"""The guard for synchronous code: the asynchronous one, in a background thread."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeAlias, TypeVar, Unpack, cast, overload

from lockguard import _guard
from lockguard._exclusive import required_key
from lockguard._guard_options import CommonOptions, ReachOptions, require_fence
from lockguard._history import HistoryEntry
from lockguard._lease import Resource
from lockguard._naming import Key
from lockguard._nodes.memory import MemoryStore
from lockguard._settings import NO_REDIS, Settings
from lockguard.errors import ConfigurationError, FenceUnavailable, LockguardError
from lockguard.ports import Broken, Fence, Inspection
from lockguard.sync import _background
from lockguard.sync._background import Background, FenceMaker
from lockguard.sync._blocking import require_blocking_allowed
from lockguard.sync._exclusive import Keeps, MaySkip, exclusive
from lockguard.sync._hold import Hold, HoldMany, acquired
from lockguard.sync._holding import Holding, OnLoss
from lockguard.sync._lease import Lease
from lockguard.text import kind_of

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LockGuard"]

T = TypeVar("T")

Make: TypeAlias = Callable[[Fence | None], _guard.LockGuard]
"""Makes the asynchronous guard, given its fence."""

_Enter = Callable[[_guard.LockGuard, Sequence[Resource]], AbstractAsyncContextManager[Any]]


class _Options(CommonOptions, ReachOptions, total=False):
    """The options of a guard that is made with URLs, but for its fence."""


class LockGuard:
    """Lease locks in Redis, with fencing tokens, for synchronous code and threads.

    One guard serves a whole process and all of its threads. It may be made at module level: its background
    thread, with an event loop of its own, begins with the first call, and a forked process begins its own.
    ``with guard:`` closes it; otherwise the interpreter's exit does, and releases what is held.

    Make it with :meth:`from_url`, :meth:`from_urls`, :meth:`from_env` or :meth:`in_memory`.

    Args:
        make: makes the asynchronous guard that works in the background, given its fence; for nodes of your
            own.
        fence: the fence in the database. What it needs, such as a pool, belongs to the background loop, so
            give a function that makes both there: one under ``@contextlib.asynccontextmanager`` that yields
            the fence. It is called once in each process, within ``fence_within``. Or a fence that needs no
            loop of its own.

    Raises:
        ConfigurationError: a value that cannot work.
    """

    def __init__(self, make: Make, *, fence: Fence | FenceMaker | None = None) -> None:
        if not callable(make):
            raise ConfigurationError(
                f"a guard of lockguard.sync is not made of {kind_of(make)}; write LockGuard.from_url(url)"
            )
        given: Fence | None = None
        self._maker: FenceMaker | None = None
        if isinstance(fence, type) or fence is None or hasattr(fence, "seal") or not callable(fence):
            require_fence(fence)
            given = cast("Fence | None", fence)
        else:
            self._maker = fence

        def made(fence: Fence | None) -> _guard.LockGuard:
            guard = make(fence if given is None else given)
            guard._binding.lease_type = Lease
            return guard

        self._make = made
        self._has_fence = given is not None
        self._checks = made(None)
        """Checks what holds are asked for, and does nothing else."""
        self._background: Background | None = None
        self._closed = False
        self._stand_in: LockGuard | None = None
        """What does all work of this guard instead, see :func:`lockguard.testing.replaced`."""

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        min_replicas: int = 0,
        fence: Fence | FenceMaker | None = None,
        **options: Unpack[_Options],
    ) -> Self:
        """A guard over one Redis or Valkey server, or over a set-up that fails over by itself.

        Args:
            url: as for :meth:`lockguard.LockGuard.from_url`.
            min_replicas: as there.
            fence: as for the class.
            **options: as for :class:`lockguard.LockGuard`. Observers are told in the background thread.

        Raises:
            ConfigurationError: the URL or an option cannot work. Nothing is connected yet.
        """
        return cls(
            lambda made: _guard.LockGuard.from_url(url, min_replicas=min_replicas, fence=made, **options),
            fence=fence,
        )

    @classmethod
    def from_urls(
        cls,
        urls: Iterable[str],
        *,
        fence: Fence | FenceMaker | None = None,
        **options: Unpack[_Options],
    ) -> Self:
        """A guard over several independent servers, of which a majority decides (Redlock).

        Args:
            urls: as for :meth:`lockguard.LockGuard.from_urls`.
            fence: as for the class.
            **options: as for :meth:`from_url`.

        Raises:
            ConfigurationError: the URLs or an option cannot work. Nothing is connected yet.
        """
        given = urls if isinstance(urls, str | bytes) or not isinstance(urls, Iterable) else tuple(urls)
        return cls(lambda made: _guard.LockGuard.from_urls(given, fence=made, **options), fence=fence)

    @classmethod
    def from_env(cls, *, fence: Fence | FenceMaker | None = None, **options: Unpack[_Options]) -> Self:
        """A guard over the servers that the environment or a file names, as for every command.

        Args:
            fence: as for the class.
            **options: as for :meth:`from_url`; they count before the environment, see
                :meth:`lockguard.LockGuard.from_env`.

        Raises:
            ConfigurationError: no server is named, or a setting is unknown or malformed.
        """
        settings = Settings.read()
        if not settings.redis:
            raise ConfigurationError(NO_REDIS)
        return cls(lambda made: _guard.guard_over(settings, fence=made, **options), fence=fence)

    @classmethod
    def in_memory(
        cls,
        store: MemoryStore | None = None,
        *,
        fence: Fence | FenceMaker | None = None,
        **options: Unpack[_Options],
    ) -> Self:
        """A guard without a server, for unit tests of code that locks.

        Args:
            store: shared by guards that compete for the same locks; a new one by default.
            fence: as for the class.
            **options: as for :meth:`from_url`.

        Raises:
            ConfigurationError: fakeredis is not installed, or an option cannot work.
        """
        shared = MemoryStore() if store is None else store
        return cls(lambda made: _guard.LockGuard.in_memory(shared, fence=made, **options), fence=fence)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse ``copy`` and ``pickle``, as of ``multiprocessing`` without fork.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a guard cannot be copied or pickled, for its connections belong to one process; make one in each"
            " process: where a module is imported, or in the function that the process runs"
        )

    def __repr__(self) -> str:
        told = repr(self._checks).removeprefix("<LockGuard ")
        return f"<lockguard.sync.LockGuard {told}"

    def __enter__(self) -> Self:
        """Connect; returns also if that is not possible now. A guard that was closed is opened again.

        Raises:
            ConfigurationError: a node refused the log-in, nodes are not independent, or this thread must not
                block.
        """
        if self._stand_in is not None:
            self._stand_in.__enter__()
            return self
        self._closed = False
        background = self._running("with guard")
        try:
            with suppress(FenceUnavailable):  # as with servers that are down: the first hold tells it
                background.call(_connect)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def resource(self, name: str) -> Resource:
        """The name that this guard locks for ``name``, see :meth:`lockguard.LockGuard.resource`.

        Raises:
            ConfigurationError: it cannot be a name, or ``resource_key`` refused it.
        """
        named = self._checks.resource(name)
        return named if self._stand_in is None else self._stand_in.resource(named)

    def hold(
        self,
        resource: str,
        *,
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str = "",
        on_busy: Literal["wait", "raise"] = "wait",
        at_least: timedelta | None = None,
        on_loss: OnLoss | None = None,
    ) -> Hold:
        """Hold ``resource`` for the length of a ``with`` body.

        The thread that holds it may enter again, and keeps its token.

        Args:
            resource: what to lock, such as ``"binance:APTUSDT"``.
            wait: how long to wait while it is busy; the guard's by default.
            ttl: how long the lease lasts without renewal; the guard's by default.
            operation: what it is for; shown to callers that find it busy and by ``redis-cli``.
            on_busy: wait in line, or raise at once.
            at_least: as for :meth:`lockguard.LockGuard.hold`.
            on_loss: called with the :class:`~lockguard.LeaseLost` when the lease ends under the body: at
                once, in the guard's background thread, where it must be short and may not call the guard.
                What it raises is logged.

        Returns:
            A context manager that gives the :class:`Lease`. Entering raises ``ResourceBusy``,
            ``QuorumUnavailable``, ``FenceUnavailable`` or ``SelfDeadlock``; leaving raises ``LeaseLost`` if
            the lease ended under the body.

        Raises:
            ConfigurationError: a value that cannot work.
        """
        enter = _holder(wait=wait, ttl=ttl, operation=operation, on_busy=on_busy, at_least=at_least)
        name = self._checked(enter, [resource], on_loss)[0]
        if self._stand_in is not None:
            return self._stand_in.hold(
                name,
                wait=wait,
                ttl=ttl,
                operation=operation,
                on_busy=on_busy,
                at_least=at_least,
                on_loss=on_loss,
            )
        return Hold(self, [name], partial(self._holding, enter, on_loss), closes_later=bool(at_least))

    def acquire(
        self,
        resource: str,
        *,
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str = "",
        on_busy: Literal["wait", "raise"] = "wait",
        at_least: timedelta | None = None,
        on_loss: OnLoss | None = None,
    ) -> Lease:
        """Acquire ``resource`` until ``lease.release()``, which another function or thread may call.

        For hooks of a framework, of which one begins and another ends what is guarded. Where one block does
        both, ``with guard.hold(...)`` is better: nothing is forgotten there. Until it is released, the lease
        is renewed, whatever became of the thread; the interpreter's exit releases it.

        Args:
            resource: as for :meth:`hold`.
            wait: as there.
            ttl: as there.
            operation: as there.
            on_busy: as there.
            at_least: as there.
            on_loss: as there.

        Raises:
            SelfDeadlock: this thread holds the resource already.
            ResourceBusy: it is held elsewhere.
            QuorumUnavailable: too few nodes could be asked.
            FenceUnavailable: the fence could not be asked in time.
            ConfigurationError: a value that cannot work, the guard is closed, or this thread must not block.
        """
        enter = _holder(wait=wait, ttl=ttl, operation=operation, on_busy=on_busy, at_least=at_least)
        name = self._checked(enter, [resource], on_loss)[0]
        if self._stand_in is not None:
            return self._stand_in.acquire(
                name,
                wait=wait,
                ttl=ttl,
                operation=operation,
                on_busy=on_busy,
                at_least=at_least,
                on_loss=on_loss,
            )
        return acquired(name, self, partial(self._holding, enter, on_loss))

    def hold_many(
        self,
        resources: Sequence[str],
        *,
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str = "",
        on_busy: Literal["wait", "raise"] = "wait",
        on_loss: OnLoss | None = None,
    ) -> HoldMany:
        """Hold several resources for the length of a ``with`` body, all or none.

        Args:
            resources: what to lock; taken in the order of their names, so that callers do not deadlock.
            wait: how long to wait for all of them together; the guard's by default.
            ttl: as for :meth:`hold`.
            operation: as there.
            on_busy: as there.
            on_loss: as there; called for the first that is lost.

        Returns:
            A context manager that gives the leases in the order of ``resources``.

        Raises:
            ConfigurationError: a value that cannot work.
        """

        def enter(guard: _guard.LockGuard, names: Sequence[Resource]) -> AbstractAsyncContextManager[Any]:
            return guard.hold_many(names, wait=wait, ttl=ttl, operation=operation, on_busy=on_busy)

        if not isinstance(resources, str | bytes) and isinstance(resources, Iterable):
            resources = tuple(resources)  # an iterator can be read once
        names = self._checked(enter, resources, on_loss)
        if self._stand_in is not None:
            return self._stand_in.hold_many(
                names, wait=wait, ttl=ttl, operation=operation, on_busy=on_busy, on_loss=on_loss
            )
        return HoldMany(self, names, partial(self._holding, enter, on_loss))

    @overload
    def exclusive(
        self,
        key: Key,
        *,
        on_busy: Literal["wait", "raise"] = ...,
        wait: timedelta | None = ...,
        ttl: timedelta | None = ...,
        operation: str | None = ...,
        at_least: timedelta | None = ...,
    ) -> Keeps: ...
    @overload
    def exclusive(
        self,
        key: Key,
        *,
        on_busy: Literal["skip"],
        wait: timedelta | None = ...,
        ttl: timedelta | None = ...,
        operation: str | None = ...,
        at_least: timedelta | None = ...,
    ) -> MaySkip: ...
    def exclusive(
        self,
        key: Key | None = None,
        *,
        on_busy: Literal["wait", "raise", "skip"] = "wait",
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str | None = None,
        at_least: timedelta | None = None,
    ) -> Any:
        """Decorate a ``def`` function or method: one call at a time per resource.

        Args:
            key: as for :meth:`lockguard.LockGuard.exclusive`.
            on_busy: wait in line, raise ``ResourceBusy``, or return a falsy :class:`~lockguard.Skipped` that
                tells the holder.
            wait: as for :meth:`hold`.
            ttl: as there.
            operation: what the lock is for; the function's name by default.
            at_least: as for :meth:`hold`.

        Raises:
            ConfigurationError: the key does not fit the function, the function is ``async def`` or a
                generator, or a value cannot work.
        """
        return exclusive(
            required_key(key),
            guard=lambda *_: self,
            on_busy=on_busy,
            wait=wait,
            ttl=ttl,
            operation=operation,
            at_least=at_least,
        )

    def inspect(self, resource: str) -> Inspection:
        """Who holds ``resource``, see :meth:`lockguard.LockGuard.inspect`.

        Raises:
            QuorumUnavailable: too few nodes answered to say.
        """
        return self._call("guard.inspect()", lambda guard: guard.inspect(resource))

    def list(self, pattern: str = "*") -> Iterator[Inspection]:
        """Every resource that is in use, see :meth:`lockguard.LockGuard.list`.

        Args:
            pattern: as there.

        Raises:
            ConfigurationError: as there.
            QuorumUnavailable: as there; after all that could be read were told.
        """
        found, failed = self._call("guard.list()", lambda guard: _listed(guard, pattern))
        yield from found
        if failed is not None:
            raise failed

    def history(self, resource: str, *, limit: int = 100) -> tuple[HistoryEntry, ...]:
        """What happened to the lock of ``resource``, newest first, see :meth:`lockguard.LockGuard.history`.

        Args:
            resource: whose history.
            limit: how many entries at most.

        Raises:
            ConfigurationError: a value cannot work, or a node cannot tell a history.
            QuorumUnavailable: too few nodes answered.
        """
        return self._call("guard.history()", lambda guard: guard.history(resource, limit=limit))

    def break_(self, resource: str, *, reason: str, grant: str | None = None) -> Broken:
        """End a holder's lease by force, see :meth:`lockguard.LockGuard.break_`.

        Args:
            resource: what to free.
            reason: why; kept in the lock's history.
            grant: the grant that is to be ended; ``None``: whatever grant holds it.

        Raises:
            ChangedHands: another grant than ``grant`` holds the lock by now.
            FenceUnavailable: the fence could not be raised; break it again.
            QuorumUnavailable: too few nodes could be asked.
            ConfigurationError: ``grant`` is no grant's id, or the fence cannot compare grants.
        """
        return self._call("guard.break_()", lambda guard: guard.break_(resource, reason=reason, grant=grant))

    def request_handover(self, resource: str, *, reason: str, grant: str | None = None) -> bool:
        """Request a hand-over, see :meth:`lockguard.LockGuard.request_handover`.

        Args:
            resource: what is wanted.
            reason: why; the holder sees it, and the lock's history keeps it.
            grant: the grant that is to be asked; ``None``: whatever grant holds it.

        Returns:
            Whether the resource is held.

        Raises:
            ChangedHands: another grant than ``grant`` holds the lock by now, and was not asked.
            QuorumUnavailable: no node could be asked.
            ConfigurationError: ``grant`` is no grant's id.
        """
        return self._call(
            "guard.request_handover()",
            lambda guard: guard.request_handover(resource, reason=reason, grant=grant),
        )

    def close(self) -> None:
        """End every lease of this guard as lost, send what is queued, close the connections, end the thread.

        Raises:
            ConfigurationError: called in the guard's own background thread.
        """
        if self._stand_in is not None:
            self._stand_in.close()
            return
        background = self._background
        if background is not None and background.in_own_thread:
            raise ConfigurationError(
                "guard.close() was called in the guard's own background thread, as from on_loss= or an"
                " observer, and would wait for itself; have another thread call it"
            )
        with _background.starting:
            self._closed, background, self._background = True, self._background, None
        if background is not None:
            background.close_soon()
            background.join()

    def _call(self, what: str, work: Callable[[_guard.LockGuard], Awaitable[T]]) -> T:
        if self._stand_in is not None:
            return self._stand_in._call(what, work)
        return self._running(what).call(work)

    def _checked(self, enter: _Enter, resources: Sequence[str], on_loss: object) -> tuple[Resource, ...]:
        """The names of what to hold; what cannot work is refused here, before anything is asked for."""
        if on_loss is not None and (not callable(on_loss) or inspect.iscoroutinefunction(on_loss)):
            raise ConfigurationError(
                f"on_loss= is {kind_of(on_loss)}; give a plain function that takes the LeaseLost error"
            )
        enter(self._checks, resources)  # type: ignore[arg-type]  # are they names?
        return tuple(self._checks.resource(resource) for resource in resources)

    def _holding(self, enter: _Enter, on_loss: OnLoss | None, names: Sequence[Resource]) -> Holding:
        background = self._running("a hold")
        return Holding(self, background, lambda guard: enter(guard, names), ", ".join(names), on_loss)

    def _running(self, what: str) -> Background:
        """What works in the background, begun now if it has not in this process."""
        background = self._background
        require_blocking_allowed(what, in_own_thread=background is not None and background.in_own_thread)
        if background is None or background.over or self._closed:
            with _background.starting:
                background = self._begun()
        return background

    def _begun(self) -> Background:
        if self._closed:
            raise ConfigurationError("this guard is closed; `with guard:` opens it again, or make a new one")
        before = self._background
        if before is not None and not before.over:
            return before
        if before is not None and not before.is_here and self._has_fence:
            raise ConfigurationError(
                "this guard was used before a fork, with a fence whose connections are the parent's; give"
                " fence= a function that makes the fence in each process, or make the guard in the child"
            )
        within_s = self._checks._core.fence_within.total_seconds()
        self._background = begun = Background(self._make, self._maker, within_s)
        weakref.finalize(self, begun.close_soon).atexit = False
        return begun


def _holder(**options: Any) -> _Enter:
    return lambda guard, names: guard.hold(names[0], **options)


async def _connect(guard: _guard.LockGuard) -> None:
    core = await guard._binding.open()
    await core.connect()


async def _listed(guard: _guard.LockGuard, pattern: str) -> tuple[list[Inspection], LockguardError | None]:
    found: list[Inspection] = []
    try:
        async for each in guard.list(pattern):
            found.append(each)  # noqa: PERF401 - what was found before a failure is told too
    except LockguardError as failed:
        return found, failed
    return found, None
