"""The fence in virtual time: the shipped code breaks no law, known mistakes do, and the model is Postgres."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from lockguard_lab.sim.fault import Fault
from lockguard_lab.sim.fenced.functions import entries
from lockguard_lab.sim.fenced.openings import COPIES
from lockguard_lab.sim.fenced.plan import FencedPlan
from lockguard_lab.sim.fenced.run import run_fenced
from lockguard_lab.sim.fenced.sequences import run_sequences
from lockguard_lab.sim.fenced.server import PostgresServer
from lockguard_lab.sim.network import Network
from lockguard_lab.sim.planted import PLANTED, convict
from lockguard_lab.sim.run import in_world
from lockguard_lab.sim.world import Process, World

pytestmark = pytest.mark.no_cover

# Each is convicted by one of the first schedules.
SOON = (
    "a lost COMMIT is called lost",
    "the body begins before its seal",
    "nobody ends the sessions of a stopped holder",
    "what a rollback to a savepoint undid is not presented again",
    "a connection is given back inside a transaction",
    "past: equal arguments lock two names",
    "past: a hold is used twice",
)


def test_no_law_is_broken_by_the_fence() -> None:
    broken = {}
    for seed in range(1, 13):
        outcome = run_fenced(FencedPlan.of(seed))
        if outcome.violations:
            broken[seed] = [str(violation) for violation in outcome.violations]
    assert not broken


def test_a_backend_that_was_frozen_executes_nothing_after_its_server_has_crashed() -> None:
    faults = (
        Fault("freeze session", 0.4085, 3.234, (6, 38)),
        Fault("crash database", 1.4208, 1.898, (29, 43)),
    )
    plan = FencedPlan(80024, processes=1, ttl_s=1.0, work_s=0.5, until_s=2.0, faults=faults)
    assert not run_fenced(plan).violations


def test_one_seed_is_one_schedule_of_the_fence_in_every_process() -> None:
    code = "from lockguard_lab.sim.fenced.plan import FencedPlan\n"
    code += "from lockguard_lab.sim.fenced.run import run_fenced\n"
    code += "print([run_fenced(FencedPlan.of(seed)).trace_hash for seed in range(1, 7)])"
    told = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(told) == 1


def test_a_schedule_is_the_same_behind_another() -> None:
    first = run_fenced(FencedPlan.of(3)).trace_hash
    run_fenced(FencedPlan.of(4))
    assert run_fenced(FencedPlan.of(3)).trace_hash == first


def test_the_model_of_the_fence_answers_as_postgres_does() -> None:
    assert not {seed: str(found) for seed, found in run_sequences(range(1, 6)).items()}


@pytest.mark.parametrize("shows", COPIES)
def test_a_copy_in_the_model_does_what_it_does_in_postgres(shows: str) -> None:
    seed = 1000 + list(COPIES).index(shows)
    assert not {one: str(found) for one, found in run_sequences(range(seed, seed + 1), COPIES[shows]).items()}


class GivenUp(Exception):
    """The client gives up a COPY."""


async def _rows(*ops: str, is_given_up: bool = False) -> AsyncIterator[tuple[str, int, str]]:
    for op in ops:
        yield ("r", 1, op)
    if is_given_up:
        raise GivenUp


async def _copies(
    conn: asyncpg.Connection[Any], entries: Callable[[], Awaitable[list[str]]]
) -> list[tuple[str, list[str]]]:
    """COPYs by asyncpg: what each came to, and which entries were committed then."""

    async def copy(*ops: str, is_given_up: bool = False) -> str:
        rows = _rows(*ops, is_given_up=is_given_up)
        return await conn.copy_records_to_table("entry", records=rows, columns=("resource", "token", "op"))

    steps: tuple[Callable[[], Awaitable[str]], ...] = (
        lambda: copy("a", "b"),
        copy,  # no row
        lambda: copy("c", is_given_up=True),
        lambda: copy("d"),  # nothing was left open
        lambda: conn.execute("begin"),
        lambda: copy("e"),
        lambda: copy("f", is_given_up=True),
        lambda: copy("g"),  # the transaction has failed
        lambda: conn.execute("select 1"),  # what was refused is answered once
        lambda: conn.execute("commit"),
        lambda: conn.execute("begin"),
        lambda: conn.execute("select 1/0"),
        lambda: copy("h"),
        lambda: copy("i"),
        lambda: conn.execute("rollback"),
        lambda: conn.execute("select 1"),
        lambda: conn.execute("begin"),
        lambda: copy("j"),
        lambda: conn.execute("commit"),
    )
    told: list[tuple[str, list[str]]] = []
    for step in steps:
        try:
            answer = await step()
        except (asyncpg.PostgresError, GivenUp) as error:
            answer = type(error).__name__
        told.append((answer, await entries()))
    return told


def _copies_on_the_simulated_server() -> list[tuple[str, list[str]]]:
    world = World(1)
    with in_world(world):
        network, process = Network(world), Process(world, "p0")
        process.connect = network.connect
        server = PostgresServer(world, "10.0.0.9:5432")
        network.servers[server.name] = server
        told: list[tuple[str, list[str]]] = []

        async def committed() -> list[str]:
            return entries(server.database, "r")

        async def work() -> None:
            conn = await asyncpg.connect(host="10.0.0.9", user="bot", database="bot", ssl=False)
            told.extend(await _copies(conn, committed))
            await conn.close()

        task = process.start(work(), "work")
        world.run(task.done, latest=60.0)
        task.result()
        return told


async def test_copies_by_asyncpg_are_answered_by_the_simulated_server_as_by_postgres(
    database_url: str,
) -> None:
    conn, look = await asyncpg.connect(database_url), await asyncpg.connect(database_url)

    async def committed() -> list[str]:
        return [str(row["op"]) for row in await look.fetch('select op from entry order by op collate "C"')]

    try:
        await look.execute("create table entry (resource text, token bigint, op text)")
        real = await _copies(conn, committed)
    finally:
        await conn.close()
        await look.close()
    assert await asyncio.to_thread(_copies_on_the_simulated_server) == real


@pytest.mark.parametrize("name", SOON)
def test_a_known_mistake_in_the_fence_is_convicted(name: str, tmp_path: Path) -> None:
    planted = next(one for one in PLANTED if one.name == name)
    found = convict(planted, tmp_path, seeds=range(1, 61))
    assert found is not None, "no schedule of 60 broke a law"
    assert found.law.startswith(planted.law)
