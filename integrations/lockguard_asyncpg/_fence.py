"""The fence by asyncpg, see :mod:`lockguard_postgres._fence`."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard_asyncpg._database import AsyncpgDatabase
from lockguard_asyncpg._dsn import shown
from lockguard_asyncpg._listening import Listener
from lockguard_postgres._fence import FenceOver, resolve_over

if TYPE_CHECKING:
    from lockguard._lease import Grant
    from lockguard.ports import Outrun, Sealed
    from lockguard_postgres._errors import CommitUnknown

__all__ = ["PoolFence", "resolve"]


class PoolFence(FenceOver):
    """The fence over one pool, in one event loop; for the arguments see ``PostgresFence``."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        *,
        grace_s: float,
        listen: str | None,
        durable_close: bool,
        seal_with_first_write: bool,
    ) -> None:
        super().__init__(
            AsyncpgDatabase(pool),
            grace_s=grace_s,
            durable_close=durable_close,
            seal_with_first_write=seal_with_first_write,
        )
        self._listener = (
            None if listen is None else Listener(partial(asyncpg.connect, listen), at=shown(listen))
        )

    def start(self) -> None:
        """Begin to listen, if it is to."""
        if self._listener is not None:
            self._listener.start()

    async def aclose(self) -> None:
        """Stop listening, and stop closing grants in the background. The pool stays open."""
        if self._listener is not None:
            await self._listener.aclose()
        await super().aclose()

    async def listening(self) -> None:
        """Wait until it listens for superseded leases; for ever without ``listen``, or through a pooler."""
        if self._listener is None:
            await asyncio.get_running_loop().create_future()
        else:
            await self._listener.listening()

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        """Make ``grant`` the only one whose writes are accepted; waits for the previous one's transactions.

        With ``seal_with_first_write`` the seal is only noted here, and made with the first write.

        Raises:
            FenceUnavailable: not done within ``within``, or the outcome is unknown.
            SealUnknown: this is an old primary, or a database that has lost commits.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        self.start()
        return await super().seal(grant, within=within)


async def resolve(
    pool: asyncpg.Pool[Any], error: CommitUnknown, *, within: timedelta = timedelta(seconds=10)
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
    return await resolve_over(AsyncpgDatabase(pool), error, within=within)
