"""A job that is delivered more than once opens one position, under taskiq and Celery, in real workers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import celery
import psutil
import pytest
import taskiq
from taskiq.kicker import AsyncKicker

from lockguard_lab.exchange import Execution, Fault, FaultKind, LocalExchange, Operation
from lockguard_lab.servers.ports import free_port
from tests.integration.examples import EXAMPLES, RUNNER, Stage, until

BIN = Path(sys.executable).parent
JOB = ("s1", "APTUSDT", "buy", "10")


def entries(exchange):
    return len(exchange.record().entries("APTUSDT"))


def asked(exchange):
    """How often it was asked to place an order."""
    return sum(one.operation is Operation.CREATE_ORDER for one in exchange.record().requests)


@pytest.fixture
async def exchange():
    async with LocalExchange() as made:
        yield made


@pytest.fixture
async def stage(redis_url, example_database, database_url, exchange):
    async with Stage(redis_url, database_url, exchange.url) as made:
        made.environment["PYTHONPATH"] = str(EXAMPLES)
        yield made


# --- taskiq ---


@contextlib.asynccontextmanager
async def publisher(address):
    broker = taskiq.ZeroMQBroker(address, address)
    await broker.startup()
    try:
        yield broker
    finally:
        await broker.shutdown()
        broker.socket.close(0)
        broker.context.term()


async def test_taskiq_delivers_a_job_to_two_workers_again_and_again_and_one_order_is_placed(stage, exchange):
    address = f"tcp://127.0.0.1:{free_port()}"
    stage.environment |= {"ZMQ_PUBLISH": address, "ZMQ_SUBSCRIBE": address}
    worker = (sys.executable, RUNNER, BIN / "taskiq", "worker", "taskiq_bot:broker", "-w", "1")
    workers = [await stage.run(*worker, EXAMPLE_CLOCK_S=wrong) for wrong in ("0", "-60")]
    for one in workers:
        await one.says("Listening started")
    async with publisher(address) as broker, asyncio.timeout(60):
        while not all(one.said("s1 has its order") for one in workers):
            await AsyncKicker("open_position", broker, {}).kiq(*JOB)
            await asyncio.sleep(0.05)
    assert entries(exchange) == 1


IN_MEMORY = """
import asyncio
from taskiq_bot import broker, open_position

async def main():
    await broker.startup()
    jobs = [await open_position.kiq("s1", "APTUSDT", "buy", "10") for _ in range(3)]
    for job in jobs:
        (await job.wait_result()).raise_for_error()
    await broker.shutdown()

asyncio.run(main())
"""


async def test_taskiq_in_memory_places_one_order_for_three_deliveries(stage, exchange, tmp_path):
    (program := tmp_path / "program.py").write_text(IN_MEMORY)
    done = await stage.run(sys.executable, RUNNER, program, ENVIRONMENT="pytest")
    assert await done.ended() == 0, done.lines
    assert done.said("s1 has its order") == 2
    assert entries(exchange) == 1


# --- Celery ---


class CeleryOf:
    """Celery with a broker in a directory, which outlives its workers."""

    def __init__(self, stage, directory):
        queue, control = directory / "queue", directory / "control"
        queue.mkdir()
        control.mkdir()
        options = {
            "data_folder_in": str(queue),
            "data_folder_out": str(queue),
            "control_folder": str(control),
        }
        (directory / "celeryconfig.py").write_text(
            f"broker_url = 'filesystem://'\nbroker_transport_options = {options}\n"
        )
        self._stage = stage
        self._client = celery.Celery(broker="filesystem://", set_as_current=False)
        self._client.conf.broker_transport_options = options
        stage.environment |= {"PYTHONPATH": f"{EXAMPLES}:{directory}", "LOCKGUARD_TTL": "3s"}

    async def worker(self, app, *words):
        words = (*("-A", app, "worker", "--loglevel", "INFO"), *words)
        return await self._stage.run(sys.executable, RUNNER, BIN / "celery", *words)

    def deliver(self, task, *arguments):
        self._client.send_task(task, arguments)


@pytest.fixture
def queue(stage, tmp_path):
    return CeleryOf(stage, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)  # it waits for 17 s that an order may still appear, on whatever machine
async def test_celery_delivers_the_job_of_a_killed_worker_again_and_one_order_is_placed(exchange, queue):
    """It is killed before the order arrives, and after it was executed and before the answer."""
    for execution in (Execution.NEVER, Execution.FIRST):
        exchange.inject(Fault(FaultKind.HANG, Operation.CREATE_ORDER, execution, hold_ms=60_000))
    worker = await queue.worker("celery_bot", "--pool", "prefork", "-c", "1")
    queue.deliver("open_position", *JOB)
    await until(lambda: asked(exchange) == 1)
    psutil.Process(worker.pid).children()[0].kill()
    await until(lambda: asked(exchange) == 2)
    psutil.Process(worker.pid).children()[0].kill()
    await worker.says("s1 has its order")
    assert entries(exchange) == 1


async def test_a_job_that_runs_twice_at_once_on_a_redis_that_forgets_places_one_order(
    exchange, queue, redis_server
):
    """The first delivery waits for its answer when Redis loses the lease, and the second one gets it."""
    exchange.inject(Fault(FaultKind.HANG, Operation.CREATE_ORDER, Execution.FIRST, hold_ms=60_000))
    worker = await queue.worker("celery_bot", "--pool", "prefork", "-c", "2")
    for _ in range(2):
        queue.deliver("open_position", *JOB)
    await until(lambda: asked(exchange) == 1)
    redis_server.command("FLUSHALL")
    await worker.says("s1 has its order", times=2)
    assert worker.said("LeaseLost")
    assert entries(exchange) == asked(exchange) == 1


async def test_celery_goes_on_when_the_servers_end_its_connections_between_two_tasks(
    exchange, queue, example_database, redis_server
):
    worker = await queue.worker("celery_bot", "--pool", "solo")
    for number in (1, 2):
        queue.deliver("open_position", f"s{number}", *JOB[1:])
        await worker.says(f"s{number}: Executed")
        await example_database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
        )
        redis_server.command("CLIENT", "KILL", "SKIPME", "yes")
    assert entries(exchange) == 2


@pytest.mark.parametrize("pool", ["prefork", "solo"])
async def test_a_guard_of_a_celery_module_serves_one_task_after_the_other(queue, pool):
    worker = await queue.worker("celery_tasks", "--pool", pool, "-c", "2")
    for task in ("with_asyncio_run", "with_sync") * 2:
        queue.deliver(task, "APTUSDT")
    await worker.says("succeeded in", times=4)
    assert worker.said("APTUSDT is ours") == 4
    worker.tell(signal.SIGTERM)
    assert await worker.ended() == 0, worker.lines
