"""The guard: where the parts come together, and the only thing that most users see."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, Self, TypeVar, overload

from lockguard.clock import SYSTEM_CLOCK, Clock
from lockguard.core import Core
from lockguard.errors import ConfigurationError, QuorumUnavailable
from lockguard.exclusive import Skipped, wrap
from lockguard.hold import Hold
from lockguard.lease import Token, new_grant_id, parse_resource
from lockguard.nodes.address import Address
from lockguard.nodes.standalone import StandaloneNode
from lockguard.observe.log import LogObserver
from lockguard.ports import AcquireRequest, Broken, Done, Fence, Inspection, LockNode, Observer
from lockguard.redlock import Redlock

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LockGuard", "exclusive"]

P = ParamSpec("P")
R = TypeVar("R")

TTL_DEFAULT = timedelta(seconds=10)
TTL_MIN = timedelta(milliseconds=100)
TTL_MAX = timedelta(days=1)
WAIT_DEFAULT = timedelta(seconds=10)
WAIT_MAX = timedelta(days=1)
_TEXT_CHARACTERS_MAX = 200


class _Keeps(Protocol):
    """A decorator that keeps the function's type."""

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]: ...


class _MaySkip(Protocol):
    """A decorator whose function may return :class:`Skipped` instead."""

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R | Skipped]]: ...


class LockGuard:
    """Lease locks in Redis, with fencing tokens.

    One guard serves a whole process; it is bound to the event loop that first uses it. Connecting happens
    on first use, or with ``async with guard:``, which also closes it.

    Args:
        nodes: one node, or several independent ones of which a majority decides.
        ttl: the life of a lease without renewal; at least 0.1 s. It is renewed from a third of it on.
        wait: how long a caller waits for a busy resource by default.
        fence: the database's side, for example ``lockguard_asyncpg.PostgresFence(pool)``.
        fence_within: how long sealing may take, including the wait for transactions of the last holder.
        observers: told what happens; the default one logs.
        clock: for tests.

    Raises:
        ConfigurationError: a value that cannot work.
    """

    def __init__(
        self,
        nodes: Sequence[LockNode],
        *,
        ttl: timedelta = TTL_DEFAULT,
        wait: timedelta = WAIT_DEFAULT,
        fence: Fence | None = None,
        fence_within: timedelta = timedelta(seconds=5),
        observers: Sequence[Observer] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not nodes:
            raise ConfigurationError("a guard needs at least one Redis node; got none")
        self._ttl = _checked_ttl(ttl)
        self._wait = _checked_wait(wait)
        self._core = Core(
            Redlock(nodes, clock=clock),
            fence=fence,
            clock=clock,
            observers=[LogObserver()] if observers is None else observers,
            fence_within=fence_within,
        )
        self._host = socket.gethostname()

    @classmethod
    def from_url(cls, url: str, **options: Any) -> LockGuard:
        """A guard over one Redis or Valkey: ``redis://``, ``rediss://`` or ``unix://``.

        Args:
            url: the server; user, password and database number as redis-py reads them.
            **options: as for the class.

        Raises:
            ConfigurationError: the URL or an option cannot work. Nothing is connected yet.
        """
        return cls([StandaloneNode(Address.parse(url), inbox=_new_inbox())], **options)

    def __repr__(self) -> str:
        nodes = ", ".join(node.name for node in self._core.redlock.nodes)
        fence = "fenced" if self._core.fence else "without a fence"
        return f"<LockGuard {nodes} ttl={self._ttl.total_seconds():g}s {fence}>"

    async def __aenter__(self) -> Self:
        self._core.enter()
        await self._core.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def hold(
        self,
        resource: str,
        *,
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str = "",
        on_busy: Literal["wait", "raise"] = "wait",
    ) -> Hold:
        """Hold ``resource`` for the length of an ``async with`` body.

        Args:
            resource: what to lock, such as ``"binance:APTUSDT"``.
            wait: patience when it is busy; the guard's by default.
            ttl: life of the lease without renewal; the guard's by default.
            operation: what for; shown to whoever finds it busy and by ``redis-cli``.
            on_busy: wait in line, or raise at once.

        Returns:
            An async context manager that gives the :class:`~lockguard.lease.Lease`. Entering raises
            ``ResourceBusy``, ``QuorumUnavailable``, ``FenceUnavailable`` or ``SelfDeadlock``; leaving raises
            ``LeaseLost`` if the lease ended under the body.

        Raises:
            ConfigurationError: a value that cannot work.
        """
        if on_busy not in ("wait", "raise"):
            raise ConfigurationError(f"on_busy={on_busy!r} is not known here; write 'wait' or 'raise'")
        ttl_ms = round((self._ttl if ttl is None else _checked_ttl(ttl)).total_seconds() * 1000)
        request = AcquireRequest(
            resource=parse_resource(resource),
            grant=new_grant_id(),
            holder=self._holder(),
            operation=operation[:_TEXT_CHARACTERS_MAX],
            ttl_ms=ttl_ms,
            queue=on_busy == "wait",
        )
        return Hold(self._core, request, patience=self._wait if wait is None else _checked_wait(wait))

    @overload
    def exclusive(
        self,
        template: str,
        *,
        on_busy: Literal["wait", "raise"] = ...,
        wait: timedelta | None = ...,
        ttl: timedelta | None = ...,
        operation: str | None = ...,
    ) -> _Keeps: ...
    @overload
    def exclusive(
        self,
        template: str,
        *,
        on_busy: Literal["skip"],
        wait: timedelta | None = ...,
        ttl: timedelta | None = ...,
        operation: str | None = ...,
    ) -> _MaySkip: ...
    def exclusive(
        self,
        template: str,
        *,
        on_busy: Literal["wait", "raise", "skip"] = "wait",
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str | None = None,
    ) -> Any:
        """Decorate a coroutine function or method: one call at a time per resource.

        Args:
            template: the resource's name over the function's parameters, such as ``"{exchange}:{symbol}"``.
            on_busy: wait in line, raise ``ResourceBusy``, or return a falsy
                :class:`~lockguard.exclusive.Skipped` that tells who holds it.
            wait: as for :meth:`hold`.
            ttl: as for :meth:`hold`.
            operation: what for; the function's name by default.

        Raises:
            ConfigurationError: the template does not fit the function, or a value cannot work.
        """
        return exclusive(
            template, guard=lambda *_: self, on_busy=on_busy, wait=wait, ttl=ttl, operation=operation
        )

    async def inspect(self, resource: str) -> Inspection:
        """Who holds ``resource``, since when, with which token, and who waits.

        Raises:
            QuorumUnavailable: no node could be asked.
        """
        self._core.enter()
        await self._core.connect()
        name = parse_resource(resource)
        votes = [await node.inspect(name) for node in self._core.redlock.nodes]
        seen = [vote for vote in votes if isinstance(vote, Inspection)]
        if not seen:
            raise self._unasked(resource, votes)
        return max(seen, key=lambda inspection: (inspection.held, inspection.token))

    async def break_(self, resource: str, *, reason: str) -> Broken:
        """End somebody else's lease by force: its writes are refused from now on, then the lock is freed.

        Args:
            resource: what to free.
            reason: why; kept in the lock's history.

        Raises:
            FenceUnavailable: the fence could not be raised; the lock was left alone.
            QuorumUnavailable: too few nodes could be asked.
        """
        self._core.enter()
        await self._core.connect()
        name, token = parse_resource(resource), Token(0)
        if self._core.fence is not None:
            # The fence first: freed first, the broken holder could still write beside its successor.
            token = await self._core.fence.break_(name, reason=reason, within=self._core.fence_within)
        nodes = self._core.redlock.nodes
        votes = [await node.break_(name, reason=reason, token=token) for node in nodes]
        done = [vote for vote in votes if isinstance(vote, Broken)]
        if len(done) <= len(nodes) // 2:
            raise self._unasked(resource, votes)
        return max(done, key=lambda broken: broken.token)

    async def request_handover(self, resource: str, *, reason: str) -> bool:
        """Ask the holder to end when it can: its ``lease.wanted`` turns true with its next renewal.

        Returns:
            Whether anybody holds it.

        Raises:
            QuorumUnavailable: no node could be asked.
        """
        self._core.enter()
        await self._core.connect()
        name = parse_resource(resource)
        votes = [await node.request_handover(name, reason=reason) for node in self._core.redlock.nodes]
        done = [vote for vote in votes if isinstance(vote, Done)]
        if not done:
            raise self._unasked(resource, votes)
        return any(vote.found for vote in done)

    async def aclose(self) -> None:
        """End every lease of this guard as lost, send what is queued, close the connections."""
        await self._core.aclose()

    def _holder(self) -> str:
        task = self._core.enter()
        return f"{self._host}:{os.getpid()}/{task.get_name()}"[:_TEXT_CHARACTERS_MAX]

    def _unasked(self, resource: str, votes: Sequence[Any]) -> QuorumUnavailable:
        names = [node.name for node in self._core.redlock.nodes]
        told = {name: str(getattr(vote, "error", vote)) for name, vote in zip(names, votes, strict=True)}
        return QuorumUnavailable("; ".join(told.values()), resource=resource, votes=told)


@overload
def exclusive(
    template: str,
    *,
    guard: str | Callable[..., LockGuard],
    on_busy: Literal["wait", "raise"] = ...,
    wait: timedelta | None = ...,
    ttl: timedelta | None = ...,
    operation: str | None = ...,
) -> _Keeps: ...
@overload
def exclusive(
    template: str,
    *,
    guard: str | Callable[..., LockGuard],
    on_busy: Literal["skip"],
    wait: timedelta | None = ...,
    ttl: timedelta | None = ...,
    operation: str | None = ...,
) -> _MaySkip: ...
def exclusive(
    template: str,
    *,
    guard: str | Callable[..., LockGuard],
    on_busy: Literal["wait", "raise", "skip"] = "wait",
    wait: timedelta | None = None,
    ttl: timedelta | None = None,
    operation: str | None = None,
) -> Any:
    """As :meth:`LockGuard.exclusive`, for methods whose guard is known only when they are called.

    Args:
        template: as there; ``"{self.exchange}:{symbol}"`` works too.
        guard: the name of an attribute of ``self``, or a function that gets the call's positional arguments.
        on_busy: as there.
        wait: as there.
        ttl: as there.
        operation: as there.

    Raises:
        ConfigurationError: the template does not fit the function, or a value cannot work.
    """
    if on_busy not in ("wait", "raise", "skip"):
        raise ConfigurationError(f"on_busy={on_busy!r} is not known; write 'wait', 'raise' or 'skip'")
    if wait is not None:
        _checked_wait(wait)
    if ttl is not None:
        _checked_ttl(ttl)

    def guard_of(args: tuple[Any, ...]) -> LockGuard:
        found = guard(*args) if callable(guard) else getattr(args[0], guard, None)
        if not isinstance(found, LockGuard):
            raise ConfigurationError(f"guard={guard!r} gave {found!r} instead of a LockGuard")
        return found

    def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R | Skipped]]:
        name = operation if operation is not None else getattr(function, "__qualname__", "")

        def hold(args: tuple[Any, ...], resource: str) -> Hold:
            return guard_of(args).hold(
                resource, wait=wait, ttl=ttl, operation=name, on_busy="wait" if on_busy == "wait" else "raise"
            )

        return wrap(function, template, hold, skip=on_busy == "skip")

    return decorate


def _new_inbox() -> str:
    """This process's wake-up channel: readable, and unlike any other's."""
    host = "".join(c for c in socket.gethostname() if c.isalnum() or c in "-._")[:60]
    return f"lockguard:inbox:{host}:{os.getpid()}:{new_grant_id()[:12]}"


def _checked_ttl(ttl: timedelta) -> timedelta:
    _require_timedelta("ttl", ttl)
    if not TTL_MIN <= ttl <= TTL_MAX:
        raise ConfigurationError(
            f"ttl={ttl.total_seconds():g} s cannot work: a lease is trusted for its ttl less 1 % and 2 ms of"
            f" clock drift, and is renewed from a third of it on; use {TTL_MIN.total_seconds():g} s to"
            f" {TTL_MAX.total_seconds():g} s"
        )
    return ttl


def _checked_wait(wait: timedelta) -> timedelta:
    _require_timedelta("wait", wait)
    if not timedelta(0) <= wait <= WAIT_MAX:
        raise ConfigurationError(
            f"wait={wait.total_seconds():g} s cannot work; use 0 s to {WAIT_MAX.total_seconds():g} s"
        )
    return wait


def _require_timedelta(name: str, value: object) -> None:
    if not isinstance(value, timedelta):
        raise ConfigurationError(
            f"{name}={value!r} has no unit; write a timedelta, such as timedelta(seconds=10)"
        )
