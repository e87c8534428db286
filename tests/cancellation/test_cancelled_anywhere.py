"""Every public coroutine, cancelled at each of its steps, leaves nothing behind (S8)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from lockguard_lab.cancellation import Point, cancelled_at
from tests.cancellation.exchanges import ExchangeWorld
from tests.cancellation.exploring import explore
from tests.cancellation.fences import (
    AsyncpgWorld,
    EmptyDatabaseWorld,
    MemoryWorld,
    SchemaWorld,
    SQLAlchemyWorld,
)
from tests.cancellation.lab import LabWorld
from tests.cancellation.locks import LockWorld, QuorumWorld
from tests.cancellation.positions import AlertsWorld, FlowWorld, MigrationWorld, StoreWorld
from tests.cancellation.psycopg_fences import PsycopgWorld
from tests.cancellation.worlds import Row, Servers, World, until_empty

WORLDS: tuple[type[World], ...] = (
    LockWorld,
    QuorumWorld,
    AsyncpgWorld,
    SchemaWorld,
    EmptyDatabaseWorld,
    SQLAlchemyWorld,
    PsycopgWorld,
    MemoryWorld,
    ExchangeWorld,
    StoreWorld,
    MigrationWorld,
    FlowWorld,
    AlertsWorld,
    LabWorld,
)


@pytest.fixture(params=WORLDS, ids=lambda world: world.__name__)
def world(request: pytest.FixtureRequest) -> type[World]:
    chosen: type[World] = request.param
    return chosen


def most_of(row: Row, cancellation: str) -> int | None:
    """How many points of a row are tried: of a sample a few, and other ones on each loop."""
    if cancellation != "sample":
        return None
    return 2 if row.thorough else 4


async def test_a_call_cancelled_at_any_step_leaves_nothing_and_what_it_used_works(
    world: type[World], servers: Servers, cancellation: str
) -> None:
    faults: list[str] = []
    seed = sum(map(ord, type(asyncio.get_running_loop()).__name__))
    async with AsyncExitStack() as stack:
        running = world(servers)
        await running.begin(stack)
        for row in running.rows:
            if cancellation not in ("sample", "all") and cancellation not in str(row):
                continue
            report = await explore(running, row, most=most_of(row, cancellation), seed=seed)
            print(f"{report.row}: {report.steps} steps, {report.points} points, {dict(report.ended)}")
            print("".join(f"    {fault}\n" for fault in report.faults), end="")
            faults += report.faults
    assert faults == []


async def test_a_look_that_is_cancelled_twice_leaves_no_prepared_read(
    redis_url: str, database_url: str
) -> None:
    """The read of what is held waits for the lease; the second cancel came while the price was given up."""
    async with AsyncExitStack() as stack:
        running = FlowWorld(Servers(redis_url, database_url))
        await running.begin(stack)
        for step, again in ((1, 3), (2, 2), (3, 1)):
            await running.clean()
            await cancelled_at(running.bot.open, Point(step, again=again))

            async def look() -> list[str]:
                return running.strange_tasks()

            assert await until_empty(look) == []
