"""The fence by psycopg, see :mod:`lockguard_postgres._fence`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lockguard._times import checked_wait
from lockguard.errors import ConfigurationError
from lockguard.text import kind_of
from lockguard_postgres._attaching import GRACE, Attached, AttachedFence
from lockguard_postgres._fence import FenceOver, resolve_over
from lockguard_psycopg._database import PsycopgDatabase, require_pool, require_usable

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg_pool import AsyncConnectionPool

    from lockguard_postgres._errors import CommitUnknown

__all__ = ["PsycopgFence", "resolve"]


class PsycopgFence(AttachedFence[FenceOver]):
    """Refuses the writes of every grant but the one that sealed last.

    Give it a pool of its own, or one with room to spare: an acquire that waits for a connection in use by
    another body is slow, and in the end fails with :class:`FenceUnavailable`. To end the session of a holder
    that was stopped, it needs two connections at a time. The pool may be fenced or not.

    Args:
        pool: an open ``AsyncConnectionPool`` on the primary, direct or through a pooler in transaction mode;
            or a function that returns the one of the running event loop, called at each use: for a guard that
            is made before the pool is, or that serves several loops in turn.
        grace: how long a seal or a break waits for the transactions of the previous grant before it has their
            sessions ended. If all bots log in as one role, that role needs no right for it.
        durable_close: with ``False`` a release does not wait for the disk. A crash of the server within the
            next moments may lose the release of a lease, but not that it was superseded: until the next seal
            or break, code that writes blindly under it is then let in.

    Raises:
        ConfigurationError: an argument has a value that cannot work. Every method raises it where there is no
            pool, or the pool is closed or of another event loop.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[Any] | Callable[[], AsyncConnectionPool[Any]],
        *,
        grace: timedelta = GRACE,
        durable_close: bool = True,
    ) -> None:
        if not isinstance(durable_close, bool):
            raise ConfigurationError(f"durable_close= is {kind_of(durable_close)}; give True or False")
        grace_s = checked_wait(grace, "grace").total_seconds()

        def begin(found: AsyncConnectionPool[Any]) -> FenceOver:
            return FenceOver(PsycopgDatabase(found), grace_s=grace_s, durable_close=durable_close)

        super().__init__(
            Attached(pool, begin=begin, require_pool=require_pool, require_usable=require_usable)
        )


async def resolve(
    pool: AsyncConnectionPool[Any], error: CommitUnknown, *, within: timedelta = timedelta(seconds=10)
) -> bool:
    """Whether the transaction whose COMMIT reply was lost has committed. If not, it never will.

    Waits for the transaction while the server still has it open.

    Raises:
        ConfigurationError: the fence of this database never accepted the token: the write was made in
            another one.
        FenceUnavailable: no answer within ``within``; ask again.
        OutcomeUnknown: it can no longer be found out: the write is more than a day old, or its reply did come
            and its writer has made further writes since.
    """
    return await resolve_over(PsycopgDatabase(pool), error, within=within)
