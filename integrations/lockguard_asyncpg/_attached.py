"""The fence that users make: attached to a pool, or to a function that gives the pool of the running loop."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from lockguard._times import checked_wait
from lockguard.errors import ConfigurationError
from lockguard.text import kind_of
from lockguard_asyncpg._dsn import checked
from lockguard_asyncpg._fence import PoolFence
from lockguard_asyncpg._pools import require_pool, require_usable
from lockguard_postgres._attaching import GRACE, Attached, AttachedFence

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg


__all__ = ["PostgresFence"]


class PostgresFence(AttachedFence[PoolFence]):
    """Refuses the writes of every grant but the one that sealed last.

    Give it a pool of its own, or one with room to spare: an acquire that waits for a connection in use by
    another body is slow, and in the end fails with :class:`FenceUnavailable`. To end the session of a holder
    that was stopped, it needs two connections at a time.

    Args:
        pool: an asyncpg pool on the primary, direct or through a pooler in transaction mode; or a function
            that returns the pool of the running event loop, called at each use: for a guard that is made
            before the pool is, or that serves several loops in turn.
        grace: how long a seal or a break waits for the transactions of the previous grant before it has their
            sessions ended. If all bots log in as one role, that role needs no right for it.
        listen: the URL of the database itself, not of a pooler in transaction mode. With it, one more
            connection learns at once when a successor supersedes a lease of this process that is still open,
            and that lease ends. Close such a fence: ``async with PostgresFence(...) as fence``.
        seal_with_first_write: with ``True`` taking a lease sends the database nothing: its seal is part of
            the transaction that first presents it. For bodies that before their first write read only through
            a fenced pool: until then, what an older holder has under way is not waited for. A body that never
            presents its lease sends the database nothing.
        durable_close: with ``False`` a release does not wait for the disk. A crash of the server within the
            next moments may lose the release of a lease, but not that it was superseded: until the next seal
            or break, code that writes blindly under it is then let in.

    Raises:
        ConfigurationError: an argument has a value that cannot work. Every method raises it where there is no
            pool, or the pool is closed or of another event loop.
    """

    def __init__(
        self,
        pool: asyncpg.Pool[Any] | Callable[[], asyncpg.Pool[Any]],
        *,
        grace: timedelta = GRACE,
        listen: str | None = None,
        durable_close: bool = True,
        seal_with_first_write: bool = False,
    ) -> None:
        if not isinstance(listen, str | None):
            raise ConfigurationError(f"listen= is {kind_of(listen)}; write the URL of the database as text")
        for name, value in (
            ("durable_close", durable_close),
            ("seal_with_first_write", seal_with_first_write),
        ):
            if not isinstance(value, bool):
                raise ConfigurationError(f"{name}= is {kind_of(value)}; give True or False")
        checked(listen)
        begin = partial(
            PoolFence,
            grace_s=checked_wait(grace, "grace").total_seconds(),
            listen=listen,
            durable_close=durable_close,
            seal_with_first_write=seal_with_first_write,
        )
        super().__init__(
            Attached(pool, begin=begin, require_pool=require_pool, require_usable=require_usable)
        )

    async def listening(self) -> None:
        """Wait until it listens for superseded leases; for ever without ``listen``, or through a pooler."""
        await self._attached.here().listening()
