"""What a fence is attached to: the pool that it was given, or the one that a function gives at each use.

A guard and its fence are often made where a module is imported, and the pool long after that, in an event
loop and for as long as that runs; the next loop has another pool. What a fence knows and does (its name, the
closes under way, its listener) belongs to one pool in one loop, and is begun anew for each.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from lockguard.errors import ConfigurationError
from lockguard_postgres._fence import FenceOver

if TYPE_CHECKING:
    from lockguard._lease import Grant, GrantId, Resource, Token
    from lockguard.ports import Outrun, Sealed

__all__ = ["GRACE", "Attached", "AttachedFence"]

GRACE = timedelta(milliseconds=500)


P = TypeVar("P")
F = TypeVar("F", bound=FenceOver)


class Attached(Generic[P, F]):
    """The fence over the pool of the running event loop.

    Args:
        pool: a pool, or a function that takes nothing and returns the pool of the running event loop.
        begin: makes the fence over one pool.
        require_pool: raises :class:`ConfigurationError` for what is no pool.
        require_usable: raises :class:`ConfigurationError` for a pool that cannot be used in the running loop.

    Raises:
        ConfigurationError: it is neither a pool nor a function.
    """

    def __init__(
        self,
        pool: P | Callable[[], P],
        *,
        begin: Callable[[P], F],
        require_pool: Callable[[object], None],
        require_usable: Callable[[P], None],
    ) -> None:
        self._begin = begin
        self._require_pool = require_pool
        self._require_usable = require_usable
        self._given: Callable[[], P] | None = None
        self._pool: P | None = None
        given = cast("Any", pool)  # which of the two it is, no type tells
        if _is_function(given):
            self._given = given
        else:
            require_pool(given)
            self._pool = given
        self._parts: dict[asyncio.AbstractEventLoop, tuple[P, F]] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def here(self) -> F:
        """The fence over the present pool.

        Raises:
            ConfigurationError: there is no pool, or it is closed or of another event loop.
        """
        pool, loop = self._present(), asyncio.get_running_loop()
        known = self._parts.get(loop)
        self._require_usable(pool)
        if known is not None and known[0] is pool:
            return known[1]
        for other in list(self._parts):  # a copy: another thread's loop may be added meanwhile
            if other.is_closed():
                self._parts.pop(other, None)
        if known is not None:
            self._retire(known[1])
        part = self._begin(pool)
        self._parts[loop] = pool, part
        return part

    async def aclose(self) -> None:
        """Close the fence of the running event loop, if there is one."""
        _, part = self._parts.pop(asyncio.get_running_loop(), (None, None))
        if part is not None:
            await part.aclose()

    def _present(self) -> P:
        if self._given is None:
            assert self._pool is not None
            return self._pool
        try:
            pool = self._given()
        except Exception as exc:
            raise ConfigurationError(
                f"the fence has no pool: its function raised {type(exc).__name__}; make the pool before the"
                " first lease is taken, for example in the application's lifespan"
            ) from exc
        if pool is None:
            raise ConfigurationError(
                "the fence has no pool: its function returned None; make the pool before the first lease is"
                " taken, for example in the application's lifespan"
            )
        if inspect.iscoroutine(pool):
            pool.close()
            raise ConfigurationError(
                "the fence's function is an 'async def'; make it a plain one that returns the pool"
            )
        self._require_pool(pool)
        return pool

    def _retire(self, part: F) -> None:
        task = asyncio.create_task(part.aclose(), name="lockguard-fence-retires")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


class AttachedFence(Generic[F]):
    """Refuses the writes of every grant but the one that sealed last.

    Args:
        attached: gives the fence over the pool of the running event loop.
    """

    def __init__(self, attached: Attached[Any, F]) -> None:
        self._attached = attached

    async def __aenter__(self) -> Self:
        self._attached.here().start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop listening, and stop closing grants in the background. The pool stays open."""
        await self._attached.aclose()

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        """Make ``grant`` the only one whose writes are accepted; waits for the previous one's transactions.

        With ``seal_with_first_write`` the seal is only noted here, and made with the first write.

        Raises:
            FenceUnavailable: not done within ``within``, or the outcome is unknown.
            SealUnknown: this is an old primary, or a database that has lost commits.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        return await self._attached.here().seal(grant, within=within)

    async def confirm(self, grant: Grant, *, within: timedelta) -> bool:
        """Whether writes of ``grant`` are accepted now.

        Waits for no other transaction, except to seal a grant whose first write is still to come.

        Raises:
            FenceUnavailable: no answer within ``within``.
            ConfigurationError: the schema is missing, or the role lacks a right.
        """
        return await self._attached.here().confirm(grant, within=within)

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        """Accept no more writes of ``grant``; waits for its open transactions.

        Raises:
            FenceUnavailable: not done within ``within``, or the outcome is unknown.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        await self._attached.here().close(grant, within=within)

    async def hand_on(self, grant: Grant, successor: GrantId, *, within: timedelta) -> None:
        """As :meth:`close`, but in the transaction of the seal of ``successor``, if that comes at once.

        A close by itself would keep that seal waiting for a commit that the seal makes superfluous.

        Raises:
            FenceUnavailable: not done within ``within``, or the outcome is unknown.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        await self._attached.here().hand_on(grant, successor, within=within)

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        """Accept no more writes of the holder of ``resource``; the reason is kept in ``lockguard.audit``.

        Raises:
            FenceUnavailable: not done within ``within``, or the outcome is unknown.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        return await self._attached.here().break_(resource, reason=reason, within=within)

    async def break_grant(self, grant: Grant, *, reason: str, within: timedelta) -> Token | Outrun:
        """As :meth:`break_`, but leaves a newer grant than ``grant`` alone.

        With a token of 0 any other grant that the fence knows counts as newer.

        Returns:
            The token in force from now on; ``Outrun`` if a newer grant is in force, and stays so.

        Raises:
            FenceUnavailable: not done within ``within``, or the outcome is unknown.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        return await self._attached.here().break_grant(grant, reason=reason, within=within)


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type) and not hasattr(value, "acquire")
