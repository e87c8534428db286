"""psycopg's connections with the fence's layer in front of them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ConnStatus
from psycopg.rows import Row

from lockguard.errors import ConfigurationError
from lockguard_postgres._errors import NotCommitted
from lockguard_postgres._unsealed import UNSEALED, seal_now
from lockguard_psycopg._layer import FenceLayer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from lockguard._lease import Lease

__all__ = ["AsyncFencedConnection", "FencedConnection"]


class FencedConnection(FenceLayer, psycopg.Connection[Row]):
    """Carries the lease; for ``psycopg_pool.ConnectionPool(url, connection_class=FencedConnection)``.

    Inside a guarded body every statement presents all leases of the surrounding bodies, whether it is run by
    ``execute``, ``executemany``, ``copy``, ``stream`` or a server-side cursor, in autocommit mode, in
    transactions and savepoints, and in pipeline mode. Outside, it is psycopg's own connection.

    Raises:
        StaleToken: by a statement or a COMMIT: the lease's token is not the one in force.
        LeaseLost: by a statement or a COMMIT: the lease has ended; the transaction was rolled back.
        LeaseNotHeld: the code began in a body that has ended.
        CommitUnknown: the reply to COMMIT was lost.
        NotCommitted: Postgres rolled the transaction back because an error was swallowed.
        ConfigurationError: PREPARE TRANSACTION, or a text that mixes COMMIT with other statements.
    """

    if not TYPE_CHECKING:

        def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            """As psycopg's, with the fence's part around the operation."""
            for lease in self._unsealed(gen):
                _seal_elsewhere(lease)
            if self._is_done(gen):
                return gen.close()
            try:
                return super().wait(self._guarded(gen), *args, **options)
            except psycopg.Error:
                if not self._is_over(gen):
                    raise
                return self.pgconn.finish()

        @contextmanager
        def transaction(self, *args: Any, **options: Any) -> Iterator[Any]:
            """As psycopg's; presents the lease together with BEGIN."""
            depth, entered, commits = self._num_transactions, False, self._commits
            try:
                with super().transaction(*args, **options) as made:
                    entered = True
                    yield made
            except BaseException:
                if not entered:
                    self._num_transactions = depth  # or the refused one would count as open
                raise
            _require_connected(self, commits)


class AsyncFencedConnection(FenceLayer, psycopg.AsyncConnection[Row]):
    """As :class:`FencedConnection`, asynchronous.

    For ``psycopg_pool.AsyncConnectionPool(url, connection_class=AsyncFencedConnection)``.
    """

    if not TYPE_CHECKING:

        async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            """As psycopg's, with the fence's part around the operation."""
            if unsealed := self._unsealed(gen):
                await seal_now(unsealed)
            if self._is_done(gen):
                return gen.close()
            pipeline, level = self._pipeline, self._pipeline and self._pipeline.level
            try:
                return await super().wait(self._guarded(gen), *args, **options)
            except psycopg.Error:
                if not self._is_over(gen):
                    raise
                return self.pgconn.finish()
            except asyncio.CancelledError as exc:
                with suppress(Exception):  # or its clean-up would complain when it is thrown away, to nobody
                    gen.close()
                if pipeline and pipeline.level > level:
                    pipeline._exit(exc)  # psycopg forgets to, and its pool would get it in pipeline mode
                unknown, self._in_doubt = self._in_doubt, None
                if unknown is not None:
                    exc.add_note(f"cancelled during COMMIT: {unknown.unknown()}")
                raise

        @asynccontextmanager
        async def transaction(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
            """As psycopg's; presents the lease together with BEGIN."""
            depth, entered, commits = self._num_transactions, False, self._commits
            try:
                async with super().transaction(*args, **options) as made:
                    entered = True
                    yield made
            except BaseException:
                if not entered:
                    self._num_transactions = depth  # or the refused one would count as open
                raise
            _require_connected(self, commits)


def _require_connected(con: Any, commits: int) -> None:
    """Refuse to pass for a commit what psycopg leaves silently: a block whose connection was lost in it.

    Args:
        con: the connection.
        commits: how many of its commits had been answered when the block began. One more is the block's own:
            it is done, and must not be done again because the connection was lost behind the answer.

    Raises:
        NotCommitted: it was.
    """
    if con.pgconn.status == ConnStatus.BAD and con._commits == commits:
        raise NotCommitted("the connection was lost before COMMIT was sent: nothing was committed")


def _seal_elsewhere(lease: Lease) -> None:
    """Seal a lease that is to be sealed with its first write, in the event loop of its guard.

    Raises:
        ConfigurationError: this is that event loop.
    """
    loop = UNSEALED.loop_of(lease.grant.id)
    if loop is None:  # another thread has sealed it just now
        return
    if loop is asyncio._get_running_loop():
        raise ConfigurationError(
            "a synchronous connection cannot seal a lease of the event loop that it blocks: use"
            " AsyncFencedConnection here, or a fence without seal_with_first_write"
        )
    asyncio.run_coroutine_threadsafe(seal_now([lease]), loop).result()
