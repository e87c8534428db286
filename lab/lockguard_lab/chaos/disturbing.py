"""Makes the faults of a round's plan, and notes each in the history."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import LockguardError, NodeError
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_lab.chaos.recording import beat
from lockguard_lab.chaos.tables import BELOW
from lockguard_lab.fence_race.running import kill_one
from lockguard_lab.servers.fault_proxy import DROP, Flow
from lockguard_lab.servers.supervision import wait_until
from lockguard_lab.servers.topologies import (
    ClusterRedis,
    IndependentRedis,
    SentinelRedis,
    is_master,
    replicates,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    import asyncpg

    from lockguard._guard import LockGuard
    from lockguard_lab.chaos.plan import ChaosPlan, PlannedFault, RoundReport
    from lockguard_lab.chaos.processes import BotProcess
    from lockguard_lab.chaos.recording import Recorder
    from lockguard_lab.servers import FaultProxy, PostgresServer, RedisServer
    from lockguard_lab.servers.topologies import Topology

__all__ = ["Disturber", "break_and_read"]

_LATENCY = timedelta(milliseconds=60)
_OLD_S = 0.7
_REJOIN_S = 40.0
_BACK_S = 20.0
# Right after a crash the last checkpoint is the one that ended recovery, and it begins where the log ended.
_SURVIVED = """
select redo_lsn - '0/0'::pg_lsn as survived, extract(epoch from pg_postmaster_start_time())::float8 as at
from pg_control_checkpoint()
"""


class Disturber:
    """Disturbs the processes and servers of a round.

    Args:
        plan: the round's.
        topology: the Redis servers, started.
        postgres: the Postgres, started.
        pool: a pool on it.
        guard: a guard over the same servers, past the processes' links, to break locks with.
        bots: the processes.
        resources: what they lock.
        application: the application name of the processes' connections to Postgres.
        recorder: the history of this process.
        report: counts the faults.
    """

    def __init__(
        self,
        plan: ChaosPlan,
        *,
        topology: Topology,
        postgres: PostgresServer,
        pool: asyncpg.Pool[Any],
        guard: LockGuard,
        bots: Sequence[BotProcess],
        resources: Sequence[str],
        application: str,
        recorder: Recorder,
        report: RoundReport,
    ) -> None:
        self._plan = plan
        self._topology = topology
        self._postgres = postgres
        self._pool = pool
        self._guard = guard
        self._bots = bots
        self._resources = resources
        self._application = application
        self._recorder = recorder
        self._report = report
        self._numbers = itertools.count(1)
        self._ttl_s = plan.ttl.total_seconds()
        self._busy: set[object] = set()
        """The processes, servers and links that are disturbed already."""

    async def disturb(self, faults: Sequence[PlannedFault]) -> None:
        """Make each fault in its time; those of one server, process or link do not overlap."""
        began = SYSTEM_CLOCK.now()
        beating = asyncio.create_task(beat(self._recorder))
        try:
            async with asyncio.TaskGroup() as beside:
                for fault in faults:
                    await asyncio.sleep(max(0.0, began + fault.at_s - SYSTEM_CLOCK.now()))
                    beside.create_task(self._make(fault))
                await asyncio.sleep(max(0.0, began + self._plan.length.total_seconds() - SYSTEM_CLOCK.now()))
        finally:
            beating.cancel()

    async def _make(self, fault: PlannedFault) -> None:
        """Make a fault, unless what it is about is disturbed already."""
        what, name, make = self._chosen(fault)
        if what in self._busy:
            self._report.counts["faults left out"] += 1
            return
        self._busy.add(what)
        number = next(self._numbers)
        self._recorder.note(fault=number, kind=fault.kind, target=name)
        try:
            await make(fault)
        except (LockguardError, TimeoutError) as exc:  # a server that another fault keeps from answering
            self._report.counts["faults that failed"] += 1
            self._report.counts[f"faults that failed: {fault.kind}, {type(exc).__name__}"] += 1
        finally:
            self._recorder.note(healed=number)
            if what is self._topology and isinstance(self._topology, IndependentRedis):
                await self._readmitted()
            self._busy.discard(what)

    def _chosen(
        self, fault: PlannedFault
    ) -> tuple[object, str, Callable[[PlannedFault], Coroutine[Any, Any, None]]]:
        """What a fault is about, its name, and what makes it."""
        kind, bot = fault.kind, self._bots[fault.target % len(self._bots)]
        if kind.startswith("process "):
            return bot, bot.name, {"process stopped": self._stop, "process killed": self._kill}[kind]
        if kind in _LINK_FAULTS:
            return bot.links.redis[0], bot.name, self._disturb_links
        if kind in _POSTGRES_LINK_FAULTS:
            return bot.links.postgres, bot.name, self._disturb_postgres_link
        if kind == "lock broken":
            resource = self._resources[fault.target % len(self._resources)]
            return resource, resource, self._break
        if kind == "backend ended":
            return kind, "", self._end_backend
        if kind == "Postgres crashed":
            return self._postgres, "", self._crash
        server = self._topology.servers[fault.target % len(self._topology.servers)]
        if isinstance(self._topology, SentinelRedis):
            server = self._topology.servers[0]  # the master is asked for when it is time
        return self._topology, str(server.port), _SERVER_FAULTS[kind].__get__(self)

    async def _readmitted(self) -> None:
        """Wait until a node that lost its data votes again: no two may be out of the vote."""
        if len(self._topology.servers) > 1:
            await asyncio.sleep(2 * self._ttl_s + 1)

    # Processes.

    def _bot(self, fault: PlannedFault) -> BotProcess:
        return self._bots[fault.target % len(self._bots)]

    async def _stop(self, fault: PlannedFault) -> None:
        bot = self._bot(fault)
        await asyncio.to_thread(bot.pause)
        try:
            await asyncio.sleep(fault.length_s)
        finally:
            await asyncio.to_thread(bot.resume)

    async def _kill(self, fault: PlannedFault) -> None:
        bot = self._bot(fault)
        await asyncio.to_thread(bot.kill)
        await asyncio.to_thread(bot.restart)

    # Links.

    async def _disturb_links(self, fault: PlannedFault) -> None:
        await _disturb_all(self._bot(fault).links.redis, fault)

    async def _disturb_postgres_link(self, fault: PlannedFault) -> None:
        await _disturb_all([self._bot(fault).links.postgres], fault)

    # Locks and Postgres.

    async def _break(self, fault: PlannedFault) -> None:
        resource = self._resources[fault.target % len(self._resources)]
        number = self._recorder.begin("break", resource)
        try:
            line = await break_and_read(self._guard, self._pool, resource)
        except (LockguardError, *DATABASE_ERRORS) as exc:
            self._recorder.end(number, "failed", why=type(exc).__name__)
            self._report.counts["breaks that failed"] += 1
        else:
            self._recorder.end(number, "ok", broken=line.pop("broken"))
            self._recorder.note(**line)

    async def _end_backend(self, _: PlannedFault) -> None:
        with contextlib.suppress(*DATABASE_ERRORS):
            await kill_one(self._pool, self._application)

    async def _crash(self, _: PlannedFault) -> None:
        """Kill Postgres and all its processes during the load; note from where on the log was lost."""
        await asyncio.to_thread(self._postgres.kill)
        await asyncio.to_thread(self._postgres.restart)
        async with asyncio.timeout(_BACK_S):
            # The pool may still lend earlier connections that it has not yet seen break.
            while (row := await self._survived()) is None:  # noqa: ASYNC110 - Postgres does not tell
                await asyncio.sleep(0.02)
        self._recorder.note(crash=int(row["survived"]), at=row["at"])

    async def _survived(self) -> asyncpg.Record | None:
        try:
            return await self._pool.fetchrow(_SURVIVED)
        except DATABASE_ERRORS:
            return None

    # Redis servers.

    def _server(self, fault: PlannedFault) -> RedisServer:
        if isinstance(self._topology, SentinelRedis):
            return self._topology.master
        if isinstance(self._topology, ClusterRedis):
            masters = [server for server in self._topology.servers if _seems(is_master, server)]
            return masters[fault.target % len(masters)]
        return self._topology.servers[fault.target % len(self._topology.servers)]

    async def _flush(self, fault: PlannedFault) -> None:
        server = await asyncio.to_thread(self._server, fault)
        await asyncio.to_thread(server.command, "FLUSHALL")

    async def _stop_server(self, fault: PlannedFault) -> None:
        server = await asyncio.to_thread(self._server, fault)
        await asyncio.to_thread(server.pause)
        try:
            await asyncio.sleep(fault.length_s)
        finally:
            await asyncio.to_thread(server.resume)

    async def _restart_with_data(self, fault: PlannedFault) -> None:
        server = self._server(fault)
        with contextlib.suppress(LockguardError):  # it ends instead of answering
            await asyncio.to_thread(server.command, "SHUTDOWN", "SAVE")
        await asyncio.to_thread(wait_until, lambda: not server.running, _BACK_S)
        await asyncio.to_thread(server.restart)

    async def _restart_empty(self, fault: PlannedFault) -> None:
        server = self._server(fault)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.restart, keep_data=False)

    async def _restart_old(self, fault: PlannedFault) -> None:
        server = self._server(fault)
        await asyncio.to_thread(server.command, "SAVE")
        await asyncio.sleep(_OLD_S * self._ttl_s)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.restart)

    async def _fail_over(self, fault: PlannedFault) -> None:
        """Have a replica take over from a healthy master."""
        if isinstance(self._topology, SentinelRedis):
            await asyncio.to_thread(self._topology.failover)
            return
        replicas = [server for server in self._topology.servers if _seems(replicates, server)]
        chosen = replicas[fault.target % len(replicas)]
        await asyncio.to_thread(chosen.command, "CLUSTER", "FAILOVER")
        await asyncio.to_thread(wait_until, lambda: _seems(is_master, chosen), _BACK_S)

    async def _kill_master(self, fault: PlannedFault) -> None:
        """Kill a master, wait until its replica is the master, and bring it back empty, as a replica."""
        old = await asyncio.to_thread(self._server, fault)
        others = [server for server in self._topology.servers if server is not old]
        before = _masters(others)
        await asyncio.to_thread(old.kill)
        try:
            await asyncio.to_thread(wait_until, lambda: _masters(others) > before, _REJOIN_S)
        finally:
            await asyncio.to_thread(old.restart, keep_data=isinstance(self._topology, ClusterRedis))
        await asyncio.to_thread(wait_until, lambda: _seems(replicates, old), _REJOIN_S)


def _seems(role: Callable[[RedisServer], bool], server: RedisServer) -> bool:
    """Whether a server says that it has a role."""
    try:
        return role(server)
    except NodeError:
        return False


def _masters(servers: Sequence[RedisServer]) -> int:
    return sum(_seems(is_master, server) for server in servers)


_SERVER_FAULTS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "server flushed": Disturber._flush,
    "server stopped": Disturber._stop_server,
    "server restarted with its data": Disturber._restart_with_data,
    "server restarted empty": Disturber._restart_empty,
    "server restarted with old data": Disturber._restart_old,
    "failover ordered": Disturber._fail_over,
    "master killed": Disturber._kill_master,
}
_LINK_FAULTS = ("link cut", "answers lost", "link delayed", "link reset")
_POSTGRES_LINK_FAULTS = ("link to Postgres cut", "answers of Postgres lost")


async def _disturb_all(proxies: Sequence[FaultProxy], fault: PlannedFault) -> None:
    """Cut, delay or reset links; what is lost on one is followed by a reset, never by later bytes."""
    for proxy in proxies:
        if fault.kind.endswith("cut"):
            proxy.partition()
        elif fault.kind.endswith("lost"):
            proxy.to_client.set(DROP)
        elif fault.kind.endswith("delayed"):
            proxy.to_server.set(Flow(latency=_LATENCY))
            proxy.to_client.set(Flow(latency=_LATENCY))
    try:
        await asyncio.sleep(fault.length_s)
    finally:
        for proxy in proxies:
            if fault.kind.endswith(("lost", "reset")):
                proxy.reset()
            proxy.heal()


async def break_and_read(guard: LockGuard, pool: asyncpg.Pool[Any], resource: str) -> dict[str, Any]:
    """Break a lock; returns a line for the history that says what was final from then on.

    Everything below the token in force in the fence is final. The number that the break returns is the floor
    in Redis, which may be higher, by a grant that came in between and has not been sealed. ``broken`` is the
    grant that was thrown out, empty if there was none.

    Raises:
        LockguardError: the lock could not be broken.
    """
    broken = await guard.break_(resource, reason="chaos")
    async with pool.acquire() as conn, conn.transaction():
        token = await conn.fetchval("select token from lockguard.status($1)", resource)
        row = await conn.fetchrow(BELOW, resource, token)
    assert row is not None, f"{BELOW!r} gave no row for {resource} and token {token}"
    return {
        "read": resource,
        "token": token,
        "updates": row["updates"],
        "entries": row["entries"],
        "broken": broken.grant,
    }
