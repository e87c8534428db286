"""The fence by psycopg."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from psycopg_pool import AsyncConnectionPool

from lockguard_psycopg import AsyncFencedConnection, PsycopgFence, resolve
from tests.cancellation.fences import (
    INSERT,
    PostgresWorld,
    fence_rows,
    passing_lease,
    sealed,
    written_under_a_hold,
)
from tests.cancellation.worlds import Row
from tests.integration.fence_leases import SOON, under, unknown

__all__ = ["PsycopgWorld"]

FENCED = "lockguard_psycopg.AsyncFencedConnection"


class PsycopgWorld(PostgresWorld):
    """A pool of fenced connections, and a fence that seals on it."""

    background = (*PostgresWorld.background, "pool-")  # psycopg_pool's own

    async def driver(self, stack: AsyncExitStack) -> None:
        await super().driver(stack)
        self.pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            self.servers.database_url,
            connection_class=AsyncFencedConnection,
            min_size=2,
            max_size=2,
            open=False,
            kwargs={"application_name": "psycopg"},
        )
        await stack.enter_async_context(self.pool)
        self.fence = await stack.enter_async_context(PsycopgFence(self.pool))

    def strange_tasks(self) -> list[str]:
        """Without the one in which the scheduler of psycopg's pool waits."""
        return [told for told in super().strange_tasks() if "Event.wait" not in told]

    def lent(self) -> list[str]:
        told = self.pool.get_stats()
        idle = told["pool_available"] == told["pool_size"]
        return [*super().lent(), *([] if idle else [f"a connection of psycopg's pool: {told}"])]

    async def write(self) -> None:
        async with asyncio.timeout(5), self.pool.connection() as conn, self.pool.connection():
            await conn.execute(INSERT)


def on_psycopg(way: Any) -> Any:
    """A row's call: on a connection of the pool, under the standing lease."""

    async def call(world: PsycopgWorld) -> None:
        with under(world.lease):
            async with world.pool.connection() as conn:
                await way(conn)

    return call


async def in_a_transaction(conn: Any) -> None:
    async with conn.transaction():
        await conn.execute(INSERT)
        async with conn.transaction():
            await conn.execute(INSERT)


async def in_a_pipeline(conn: Any) -> None:
    async with conn.pipeline():
        await conn.execute(INSERT)
        await conn.execute("select 1")


async def streamed(conn: Any) -> None:
    async for _ in conn.cursor().stream(f"{INSERT} returning id"):
        pass


async def copied(conn: Any) -> None:
    async with conn.cursor().copy("copy note (id) from stdin") as copy:
        await copy.write_row((1,))


async def looked_up(world: PsycopgWorld) -> None:
    assert await resolve(world.pool, unknown(world.state, 99), within=SOON) is False


async def in_a_fence(world: PsycopgWorld) -> None:
    plain: AsyncConnectionPool[Any] = AsyncConnectionPool(
        world.servers.database_url, min_size=1, max_size=1, open=False
    )
    async with plain, PsycopgFence(plain) as fence:
        before, world.fence = world.fence, fence
        try:
            await sealed(world)
        finally:
            world.fence = before


PsycopgWorld.rows = (
    Row(("lockguard.LockGuard.hold",), written_under_a_hold, name="a write under a hold, by psycopg"),
    Row((f"{FENCED}.wait",), on_psycopg(lambda conn: conn.execute(INSERT))),
    Row((f"{FENCED}.transaction",), on_psycopg(in_a_transaction)),
    Row((f"{FENCED}.wait",), on_psycopg(in_a_pipeline), name="AsyncFencedConnection in a pipeline"),
    Row((f"{FENCED}.wait",), on_psycopg(streamed), name="AsyncFencedConnection streaming"),
    Row((f"{FENCED}.wait",), on_psycopg(copied), name="AsyncFencedConnection copying"),
    Row(("lockguard_psycopg.resolve",), looked_up, passing_lease),
    *fence_rows("lockguard_psycopg.PsycopgFence"),
    Row(
        tuple(f"lockguard_psycopg.PsycopgFence.{name}" for name in ("__aenter__", "__aexit__", "aclose")),
        in_a_fence,
        finishes="asyncio.wait_for of Python 3.11, with which psycopg's pool waits, loses a late cancel",
    ),
)
