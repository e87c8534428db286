"""One round: the tables, the processes, their disturbance, and the verdict."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard._lease import new_grant_id
from lockguard._private_files import write_private
from lockguard.errors import LockguardError
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_asyncpg._protection import protect
from lockguard_lab.fence_race.chaos.history import BELOW, judge, read_journals
from lockguard_lab.fence_race.chaos.plan import ChaosPlan, ChaosWorkerSpec, RoundReport
from lockguard_lab.fence_race.running import PROTECTED_TABLES, SET_UP, TEAR_DOWN, kill_one
from lockguard_lab.servers.binaries import ServerBinary
from lockguard_lab.servers.embedded import EmbeddedServer
from lockguard_lab.servers.supervision import ServerProcess, Spawn, server_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from lockguard_lab.servers import PostgresServer, RedisServer

__all__ = ["break_and_read", "run_round"]

_WORKER = "lockguard_lab.fence_race.chaos.worker"
_READY = "ready"
_QUIET_S = 20.0
_GAP_S = (0.05, 0.6)
_RESOURCE = "insert into lockguard_race.state (resource, n) values ($1, 0)"
_LEFT = "select count(*) from pg_stat_activity where application_name = $1"
# Right after a crash the last checkpoint is the one that ended recovery, and it begins where the log ended.
_SURVIVED = """
select redo_lsn - '0/0'::pg_lsn as survived, extract(epoch from pg_postmaster_start_time())::float8 as at
from pg_control_checkpoint()
"""
_BACK_S = 20.0


class _Process(EmbeddedServer):
    """One bot. The servers' warden runs it, so that it ends with this process, even while stopped."""

    def __init__(self, spec: Callable[[Path], ChaosWorkerSpec]) -> None:
        super().__init__(ServerBinary("Bot", "", Path(sys.executable), "this Python"), 0)
        self._spec = spec

    @property
    def url(self) -> str:
        """Empty: a bot accepts no connections."""
        return ""

    @property
    def journal(self) -> Path:
        """The path of its journal, which is deleted when the process is stopped for good."""
        return self._started_directory() / "journal"

    def _prepare(self, directory: Path) -> None:
        told = asdict(self._spec(directory / "journal"))
        write_private(directory / "told.json", json.dumps(told))

    def _discard(self, directory: Path) -> None:
        (directory / "journal").unlink(missing_ok=True)

    def _command(self, directory: Path) -> Spawn:
        return Spawn(
            argv=(str(self.binary.path), "-m", _WORKER, str(directory / "told.json")),
            log=str(self._log_path()),
            cwd=str(directory),
            env=server_environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def _ready(self, directory: Path) -> bool:  # noqa: ARG002 - the log is enough
        return _READY in self.log.split()

    def _end(self, process: ServerProcess, *, keep_data: bool) -> None:  # noqa: ARG002 - the journal stays
        process.end(signal.SIGTERM)

    def finish(self) -> bool:
        """Let the bot finish what it has begun; returns whether it ended by itself."""
        process = self._running_process()
        process.resume()
        process.end(signal.SIGTERM)
        return "Traceback" not in self.log


async def run_round(
    plan: ChaosPlan,
    *,
    redis: RedisServer,
    postgres: PostgresServer,
    database_url: str | None = None,
    pooler: bool = False,
) -> RoundReport:
    """Disturb ``plan.processes`` bots for ``plan.length`` and judge the journals and tables that they leave.

    Args:
        plan: what to run.
        redis: the race's own server: it is emptied and restarted.
        postgres: the race's own server with lockguard's schema: it may be killed and restarted.
        database_url: the URL by which the bots reach it, such as a pooler's; by default the direct one.
        pooler: whether that is a pooler in transaction mode.

    Raises:
        ConfigurationError: a process does not start.
    """
    report, application = RoundReport(), f"lockguard-chaos-{new_grant_id()[:8]}"
    resources = tuple(f"chaos:{plan.seed}:{number}" for number in range(plan.resources))
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(asyncpg.create_pool(postgres.url, min_size=0, max_size=4))
        await _set_up(pool, resources, protects=plan.protects)

        def spec(number: int) -> Callable[[Path], ChaosWorkerSpec]:
            return lambda journal: ChaosWorkerSpec(
                redis_url=redis.url,
                database_url=database_url or postgres.url,
                pooler=pooler,
                application=application,
                journal=str(journal),
                number=number,
                seed=plan.seed,
                resources=resources,
                ways=plan.ways,
                ttl_ms=round(plan.ttl.total_seconds() * 1_000),
                blind=plan.blind,
                stalls=plan.stalls,
            )

        workers = [_Process(spec(number)) for number in range(1, plan.processes + 1)]
        await asyncio.gather(*(stack.enter_async_context(process) for process in workers))
        chaos = _Chaos(plan, redis, postgres, pool, workers, resources, application, report)
        await chaos.disturb()
        finished = await asyncio.gather(*(asyncio.to_thread(process.finish) for process in workers))
        for process, orderly in zip(workers, finished, strict=True):
            if not orderly:
                report.counts["processes that failed"] += 1
                report.tell(f"a process failed: {_why(process.log)}")
        await _quiet(pool, application)
        journal = [*chaos.journal, *read_journals(process.journal for process in workers)]
        for line in journal:
            report.counts.update(line.get("counts", {}))
        async with pool.acquire() as conn:
            await judge(conn, journal, report)
            await conn.execute(TEAR_DOWN)
    return report


def _why(log: str) -> str:
    """The lines before the first traceback of a log, and the exception of that traceback."""
    before, _, after = log.partition("Traceback")
    said = before.strip().splitlines()[-1:]
    raised = [line for line in after.splitlines()[1:] if line and not line[0].isspace()][:1]
    return " | ".join([*said, *raised]) or "it wrote nothing"


async def _set_up(pool: asyncpg.Pool[Any], resources: tuple[str, ...], *, protects: bool) -> None:
    async with pool.acquire() as conn:
        await conn.execute(SET_UP)
        await conn.executemany(_RESOURCE, [(resource,) for resource in resources])
        if protects:
            for table in PROTECTED_TABLES:
                await protect(conn, table, resource="{resource}")


async def _quiet(pool: asyncpg.Pool[Any], application: str) -> None:
    """Wait until Postgres has ended the transactions of the killed processes."""
    async with asyncio.timeout(_QUIET_S):
        while await pool.fetchval(_LEFT, application):
            # Idle connections of killed processes go at once; those of a pooler stay, in no transaction.
            busy = await pool.fetchval(f"{_LEFT} and state <> 'idle'", application)
            if not busy:
                return
            await asyncio.sleep(0.05)


class _Chaos:
    """Disturbs the processes and servers of a round."""

    def __init__(
        self,
        plan: ChaosPlan,
        redis: RedisServer,
        postgres: PostgresServer,
        pool: asyncpg.Pool[Any],
        workers: list[_Process],
        resources: tuple[str, ...],
        application: str,
        report: RoundReport,
    ) -> None:
        self._plan = plan
        self._redis = redis
        self._postgres = postgres
        self._pool = pool
        self._workers = workers
        self._resources = resources
        self._application = application
        self._report = report
        self._rng = random.Random(plan.seed)  # noqa: S311 - no secret
        self._ttl_s = plan.ttl.total_seconds()
        self._busy: set[_Process] = set()
        self.journal: list[dict[str, Any]] = []

    async def disturb(self) -> None:
        """Make one disturbance after the other, and pauses besides, until the round is over."""
        until = SYSTEM_CLOCK.now() + self._plan.length.total_seconds()
        faults: list[tuple[int, str, Callable[[], Coroutine[Any, Any, None]]]] = [
            (8, "processes stopped", self._stop),
            (3, "processes killed", self._kill),
            (3, "Redis flushed", self._flush),
            (1, "Redis restarted empty", self._restart),
            (3, "locks broken", self._break),
            (4, "backends killed", self._kill_backend),
        ]
        if self._plan.crashes:
            faults.append((3, "Postgres crashed", self._crash))
        weights = [weight for weight, _, _ in faults]
        async with asyncio.TaskGroup() as beside:
            while (left := until - SYSTEM_CLOCK.now()) > 0:
                await asyncio.sleep(min(left, self._rng.uniform(*_GAP_S)))
                _, name, fault = self._rng.choices(faults, weights)[0]
                self._report.faults[name] += 1
                if fault in (self._stop, self._kill):
                    beside.create_task(fault())
                else:
                    await fault()

    def _free(self) -> _Process | None:
        free = [process for process in self._workers if process not in self._busy]
        return self._rng.choice(free) if free else None

    async def _stop(self) -> None:
        if (process := self._free()) is None:
            return
        self._busy.add(process)
        try:
            await asyncio.to_thread(process.pause)
            await asyncio.sleep(self._ttl_s * self._rng.uniform(0.2, 2.5))
            await asyncio.to_thread(process.resume)
        finally:
            self._busy.discard(process)

    async def _kill(self) -> None:
        if (process := self._free()) is None:
            return
        self._busy.add(process)
        try:
            await asyncio.to_thread(process.kill)
            await asyncio.to_thread(process.restart)
        finally:
            self._busy.discard(process)

    async def _flush(self) -> None:
        await asyncio.to_thread(self._redis.command, "FLUSHALL")

    async def _restart(self) -> None:
        await asyncio.to_thread(self._redis.kill)
        await asyncio.to_thread(self._redis.restart, keep_data=False)

    async def _crash(self) -> None:
        """Kill Postgres and all its processes during the load; note from where on the log was lost."""
        await asyncio.to_thread(self._postgres.kill)
        await asyncio.to_thread(self._postgres.restart)
        async with asyncio.timeout(_BACK_S):
            # The pool may still lend earlier connections that it has not yet seen break.
            while (row := await self._survived()) is None:  # noqa: ASYNC110 - Postgres does not tell
                await asyncio.sleep(0.02)
        self.journal.append({"crash": row["survived"], "at": row["at"]})

    async def _survived(self) -> asyncpg.Record | None:
        try:
            return await self._pool.fetchrow(_SURVIVED)
        except DATABASE_ERRORS:
            return None

    async def _kill_backend(self) -> None:
        await kill_one(self._pool, self._application)

    async def _break(self) -> None:
        resource = self._rng.choice(self._resources)
        try:
            self.journal.append(await break_and_read(self._redis.url, self._pool, resource))
        except (LockguardError, *DATABASE_ERRORS):
            self._report.faults["breaks that failed"] += 1


async def break_and_read(redis_url: str, pool: asyncpg.Pool[Any], resource: str) -> dict[str, Any]:
    """Break a lock; returns a line for the journal that says what was final from then on.

    Everything below the token in force in the fence is final. The number that the break returns is the floor
    in Redis, which may be higher, by a grant that came in between and has not been sealed.

    Raises:
        LockguardError: the lock could not be broken.
    """
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
        await guard.break_(resource, reason="chaos")
    async with pool.acquire() as conn, conn.transaction():
        token = await conn.fetchval("select token from lockguard.status($1)", resource)
        row = await conn.fetchrow(BELOW, resource, token)
    assert row is not None, f"{BELOW!r} gave no row for {resource} and token {token}"
    return {"read": resource, "token": token, "updates": row["updates"], "entries": row["entries"]}
