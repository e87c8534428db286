"""Every public coroutine, cancelled at each of its steps, leaves nothing behind (S8)."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from tests.cancellation.exploring import explore
from tests.cancellation.fences import (
    AsyncpgWorld,
    EmptyDatabaseWorld,
    MemoryWorld,
    SchemaWorld,
    SQLAlchemyWorld,
)
from tests.cancellation.locks import LockWorld, QuorumWorld
from tests.cancellation.psycopg_fences import PsycopgWorld
from tests.cancellation.worlds import Servers, World

WORLDS: tuple[type[World], ...] = (
    LockWorld,
    QuorumWorld,
    AsyncpgWorld,
    SchemaWorld,
    EmptyDatabaseWorld,
    SQLAlchemyWorld,
    PsycopgWorld,
    MemoryWorld,
)


@pytest.fixture(params=WORLDS, ids=lambda world: world.__name__)
def world(request: pytest.FixtureRequest) -> type[World]:
    chosen: type[World] = request.param
    return chosen


async def test_a_call_cancelled_at_any_step_leaves_nothing_and_what_it_used_works(
    world: type[World], servers: Servers, cancellation: str, record_property
) -> None:
    faults: list[str] = []
    async with AsyncExitStack() as stack:
        running = world(servers)
        await running.begin(stack)
        for row in running.rows:
            if cancellation not in ("sample", "all") and cancellation not in str(row):
                continue
            report = await explore(running, row, most=12 if cancellation == "sample" else None)
            print(f"{report.row}: {report.steps} steps, {report.points} points, {dict(report.ended)}")
            for fault in report.faults:
                print("   ", fault)
            faults += report.faults
    assert faults == []
