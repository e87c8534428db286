"""One installation as its servers see it: the locks in Redis, the fence and the positions in Postgres.

What ``top``, ``web`` and ``exporter`` show. A server that does not answer is a line of text here and never an
exception: what the other one says is worth seeing most when something is down.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from lockguard._cli.told import read
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Resource
from lockguard._looking import PartlyRead
from lockguard._records import FenceStanding, FenceState, Refusal, standing
from lockguard.errors import ConfigurationError, FenceUnavailable, LockguardError
from lockguard.ports import Inspection
from lockguard.text import first_line, printable
from lockguard_ops._positions import OpenPosition, open_positions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    import asyncpg

    from lockguard import LockGuard
    from lockguard._cli.servers import Servers
    from lockguard._story import Line
    from lockguard.ports import Broken
    from lockguard_asyncpg._records import FenceRecords

__all__ = ["Installation", "LockView", "OpenFences", "Snapshot"]

T = TypeVar("T")

_WITHIN_S = 5.0
"""How long each of the two servers may take to answer."""

_NO_ANSWER = f"no answer within {_WITHIN_S:g} s"

_PROBE = Resource("lockguard:answering")
"""A resource that nothing holds, which is looked at to see whether a server answers."""


@dataclass(frozen=True, slots=True)
class LockView:
    """A resource in Redis, and its fence.

    Attributes:
        lock: what Redis says.
        fence: how the fence stands to it; ``None`` if it was never sealed, or no database was read.
        fence_token: the token in the fence; ``None`` as above.
    """

    lock: Inspection
    fence: FenceStanding | None = None
    fence_token: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an installation was doing at one time.

    Attributes:
        at: the time on this host's clock, in UTC.
        locks: those that are held, the oldest first, then those that are only waited for or kept closed.
        refusals: the writes that the fence refused last, newest first.
        positions: the open rows of the table, those without a stop first; ``None`` if they cannot be read.
        redis_fault: why Redis could not be read; empty if it was.
        unread: which locks could not be read, and why, such as one of which another program has written the
            key; empty if all were. The others are there.
        database_fault: why the database, or a part of it, could not be read; empty if it was.
        took_s: how long reading took.
    """

    at: datetime
    locks: tuple[LockView, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    positions: tuple[OpenPosition, ...] | None = None
    redis_fault: str = ""
    unread: str = ""
    database_fault: str = ""
    took_s: float = 0.0

    @property
    def without_stop(self) -> tuple[OpenPosition, ...]:
        """The positions that the exchange may hold without a stop."""
        return tuple(position for position in self.positions or () if position.without_stop)


@dataclass(frozen=True, slots=True)
class OpenFences:
    """The resources whose fence accepts writes.

    Attributes:
        at: the time on the database's clock; ``None`` if it could not be read, or there is none.
        states: the fences.
        fault: why they could not be read; empty if they were.
    """

    at: datetime | None = None
    states: tuple[FenceState, ...] = ()
    fault: str = ""


class Installation:
    """Reads an installation, and acts on it for an operator; an async context manager.

    Args:
        servers: which servers.

    Raises:
        ConfigurationError: a URL cannot work.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._guard: LockGuard = servers.guard()
        self._stack = AsyncExitStack()
        self._pool: asyncpg.Pool[Any] | None = None
        self._records: FenceRecords | None = None
        self._reconnect: Callable[[], Awaitable[None]] = _nothing

    @property
    def has_database(self) -> bool:
        """Whether a database is named."""
        return self._servers.database is not None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._servers.require_all()
            stack.push_async_callback(self._guard.aclose)
            if self._servers.database is not None:
                await self._open(stack, self._servers.database)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def snapshot(self, pattern: str = "*", *, refusals: int = 50) -> Snapshot:
        """Read everything once.

        Args:
            pattern: which locks, as for ``LockGuard.list``; refusals and positions are always all.
            refusals: how many of the last ones.

        Raises:
            ConfigurationError: the pattern cannot work.
        """
        began = SYSTEM_CLOCK.now()
        (locks, redis_fault, unread), (refused, positions, database_fault) = await asyncio.gather(
            self._locks(pattern), self._tables(refusals)
        )
        if database_fault == _NO_ANSWER:
            views, fence_fault = tuple(_view(lock, None) for lock in locks), ""  # it would not answer now
        else:
            views, fence_fault = await self._beside_the_fence(locks)
        return Snapshot(
            at=datetime.now(UTC),
            locks=views,
            refusals=refused,
            positions=positions,
            redis_fault=redis_fault,
            unread=unread,
            database_fault=database_fault or fence_fault,
            took_s=SYSTEM_CLOCK.now() - began,
        )

    async def open_fences(self) -> OpenFences:
        """The resources whose fence accepts writes, whether they are held or not."""
        if self._records is None:
            return OpenFences()
        try:
            now = await self._within(self._records.now())
            return OpenFences(now, await self._within(self._records.states(only_open=True)))
        except (LockguardError, TimeoutError) as exc:
            return OpenFences(fault=_told(exc))

    async def answering(self) -> dict[str, bool]:
        """Whether each server of locks answers, by its name: a majority hides that one of them does not."""
        binding = self._guard._binding
        names = [node.name for node in binding.core.locks.nodes]
        answers = [False] * len(names)
        with suppress(LockguardError, TimeoutError):
            async with asyncio.timeout(_WITHIN_S):
                core, _ = binding.enter()
                await core.connect()
                votes = await core.locks.ask_all(lambda node: node.inspect(_PROBE))
                answers = [isinstance(vote, Inspection) for vote in votes]
        return dict(zip(names, answers, strict=True))

    async def show(self, resource: str) -> LockView:
        """Read one resource.

        Raises:
            QuorumUnavailable: Redis does not answer.
        """
        found = await self._guard.inspect(resource)
        views, _ = await self._beside_the_fence([found])
        return views[0]

    async def story(self, resource: str, *, limit: int = 200) -> tuple[Line, ...]:
        """What happened to one resource, oldest first: what ``lockguard history`` tells.

        Args:
            resource: the resource.
            limit: how many lines at most, the last ones.

        Raises:
            QuorumUnavailable: Redis does not answer, and there is no database or it does not answer either.
            ConfigurationError: the schema of the fence is old, or the role lacks a right.
        """
        asked = self._records
        try:
            told = await self._within(read(resource, self._guard, asked, limit=limit))
        except TimeoutError:  # a database that hangs, of which a snapshot tells
            asked = None
            told = await read(resource, self._guard, asked, limit=limit)
        if len(told.silent) == (1 if asked is None else 2):
            raise next(iter(told.silent.values()))
        return tuple(told.lines[-limit:])

    async def ask(self, resource: str, *, grant: str, reason: str) -> bool:
        """Request a hand-over of the grant that the operator saw; returns whether the resource is held.

        Raises:
            ChangedHands: another grant holds it by now, and was not asked.
            ConfigurationError: the reason cannot be shown.
            QuorumUnavailable: Redis does not answer.
        """
        await self._servers.require_all()  # there may have been no answer when this began
        return await self._guard.request_handover(resource, reason=reason, grant=grant)

    async def break_(self, resource: str, *, grant: str, reason: str) -> Broken:
        """Break the lock of one grant, in the fence first; a lock that changed hands is left as it is.

        Args:
            resource: the resource.
            grant: the grant that the operator saw.
            reason: why, for the history and the audit.

        Raises:
            ChangedHands: another grant holds it by now.
            FenceUnavailable: the fence could not be raised, and nothing was freed.
            QuorumUnavailable: Redis does not answer; the fence is broken all the same.
            ConfigurationError: the schema of the fence is old, or the role lacks a right.
        """
        await self._servers.require_all()
        async with AsyncExitStack() as stack:
            try:
                fence = await stack.enter_async_context(self._servers.fence()) if self.has_database else None
            except click.ClickException as exc:  # for a command, which it would end
                told = f"the fence cannot be broken, and nothing was freed: {exc.message}"
                raise FenceUnavailable(told, resource=resource) from exc
            guard = await stack.enter_async_context(self._servers.guard(fence=fence))
            return await guard.break_(resource, reason=reason, grant=grant)

    async def _open(self, stack: AsyncExitStack, url: str) -> None:
        try:
            import asyncpg  # noqa: PLC0415 - an optional dependency

            from lockguard_asyncpg._dsn import arguments, shown  # noqa: PLC0415 - needs it
            from lockguard_asyncpg._records import FenceRecords  # noqa: PLC0415 - needs it
        except ImportError as missing:
            raise ConfigurationError(
                "a database is named and asyncpg is not installed; pip install 'lockguard[postgres]'"
            ) from missing
        given: dict[str, Any] = arguments(url) | {"statement_cache_size": 0}  # a pooler may be in between

        async def connect() -> None:
            # It connects when it is first asked, and again after an outage.
            pool = await asyncpg.create_pool(**given, min_size=0, max_size=2, timeout=_WITHIN_S)
            self._pool, self._records = pool, FenceRecords(pool, name=shown(url))

        await connect()
        self._reconnect = connect
        stack.callback(self._drop)

    def _drop(self) -> None:
        """Drop the connections; an orderly end would wait for a database that hangs."""
        if self._pool is not None:
            self._pool.terminate()

    async def _within(self, asking: Coroutine[Any, Any, T]) -> T:
        """Ask the database for a bounded time, also where it was stopped during a query.

        asyncpg waits without a bound for the end of a query that was cancelled, so its connection is dropped.

        Raises:
            TimeoutError: it did not answer.
        """
        task = asyncio.create_task(asking)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(_WITHIN_S):
                return await asyncio.shield(task)
        except TimeoutError:
            self._drop()
            await self._reconnect()
            raise
        finally:
            task.cancel()

    async def _locks(self, pattern: str) -> tuple[list[Inspection], str, str]:
        """The locks, why there are none, and which of them could not be read."""
        found, unread = [], ""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_WITHIN_S) as bound:
                async for each in self._guard.list(pattern):
                    found.append(each)
                    bound.reschedule(loop.time() + _WITHIN_S)  # many locks take longer, and Redis answers
        except ConfigurationError:
            raise
        except PartlyRead as exc:
            unread = _told(exc)
        except (LockguardError, TimeoutError) as exc:
            return [], _told(exc), ""
        # Not by the age, which is read with each lock: those of nearly the same age would change places.
        found.sort(key=lambda each: (not each.held, each.acquired_at_ms, -each.age_ms, each.resource))
        return found, "", unread

    async def _tables(
        self, refusals: int
    ) -> tuple[tuple[Refusal, ...], tuple[OpenPosition, ...] | None, str]:
        if self._pool is None or self._records is None:
            return (), None, ""
        refused: tuple[Refusal, ...] = ()
        try:
            refused = await self._within(self._records.refusals(limit=refusals))
            return refused, await self._within(self._open_positions()), ""
        except (LockguardError, TimeoutError) as exc:
            return refused, None, _told(exc)
        except Exception as exc:  # noqa: BLE001 - whatever the database raises is shown beside the locks
            from lockguard_asyncpg._dsn import reason_of  # noqa: PLC0415 - an optional dependency

            return (
                refused,
                None,
                printable(f"the positions cannot be read: {reason_of(exc, within_s=_WITHIN_S)}"),
            )

    async def _open_positions(self) -> tuple[OpenPosition, ...] | None:
        assert self._pool is not None
        async with self._pool.acquire() as conn:
            return await open_positions(conn)

    async def _beside_the_fence(self, locks: list[Inspection]) -> tuple[tuple[LockView, ...], str]:
        states: dict[str, FenceState] = {}
        fault = ""
        if self._records is not None and locks:
            try:
                found = await self._within(self._records.states([lock.resource for lock in locks]))
                states = {state.resource: state for state in found}
            except (LockguardError, TimeoutError) as exc:
                fault = _told(exc)
        return tuple(_view(lock, states.get(lock.resource)) for lock in locks), fault


async def _nothing() -> None:
    """No database is named."""


def _view(lock: Inspection, state: FenceState | None) -> LockView:
    return LockView(lock, standing(lock, state), None if state is None else state.token)


def _told(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return _NO_ANSWER
    return printable(first_line(exc))
