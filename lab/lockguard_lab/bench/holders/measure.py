"""One run: servers of its own, each way to lock in each situation."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_asyncpg._schema import install
from lockguard_lab.bench.contenders import installed_version
from lockguard_lab.bench.holders.choose import WAYS, absent
from lockguard_lab.bench.holders.etcd_server import EtcdServer, find_etcd
from lockguard_lab.bench.holders.postgres_effects import horizon, pooler
from lockguard_lab.bench.holders.results import About, Found, WayFound
from lockguard_lab.bench.holders.scenarios import Scenario
from lockguard_lab.bench.holders.ways import SET_UP, Place, Way
from lockguard_lab.bench.speed import in_turns
from lockguard_lab.servers import PostgresServer, RedisServer
from lockguard_lab.servers.embedded import EmbeddedServer

__all__ = ["Sizes", "cycle_us", "measure", "set_up"]

_PACKAGES = ("redis-py", "python-redis-lock", "pottery", "coredis", "aioredlock")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of each is measured.

    Attributes:
        rounds: of the stopped and of the killed holder.
        ttl_s: of each lock that has one; etcd's shortest is 2.
        stop_s: how long a holder is stopped, and a successor waited for.
        waiters: how many tasks wait for one lock.
        cycles: locks of one turn.
        updates: dead rows for VACUUM.
    """

    rounds: int = 5
    ttl_s: int = 2
    stop_s: float = 5.0
    waiters: int = 100
    cycles: int = 100
    updates: int = 1000


async def measure(names: Sequence[str], sizes: Sizes, *, progress: Callable[[str], None]) -> Found:
    """Measure everything once.

    Args:
        names: the ways, of :data:`~lockguard_lab.bench.holders.choose.WAYS`; one that cannot run here is left
            out and named.
        sizes: how much.
        progress: called with what is being measured.
    """
    left_out, load_before = absent(names), os.getloadavg()[0]
    present = [name for name in names if name not in left_out]
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        postgres = await stack.enter_async_context(PostgresServer(max_connections=400))
        servers: dict[str, EmbeddedServer] = {redis.binary.product: redis, postgres.binary.product: postgres}
        if find_etcd() is not None and any(WAYS[name].server == "etcd" for name in present):
            servers["etcd"] = await stack.enter_async_context(EtcdServer())
        etcd_url = servers["etcd"].url if "etcd" in servers else ""
        place = Place(redis.url, postgres.create_database("holders"), etcd_url)
        keepalive = await set_up(place)
        progress("taking and giving back")
        cycles = await _cycles(present, place, sizes)
        ways: dict[str, WayFound] = {}
        for name in present:
            try:
                async with _own_etcd(name, place) as where:
                    ways[name] = await _way(name, where, sizes, cycles[name], progress)
            except ConfigurationError as failed:  # the others took minutes, and are not lost for it
                left_out[name] = str(failed)
        progress("VACUUM")
        kept = await horizon(place, sizes.updates, sizes.ttl_s)
        progress("PgBouncer")
        pooled = await pooler(postgres, place)
    about = About(
        command="lockguard bench --stopped-holder",
        date=datetime.now(UTC).date().isoformat(),
        cores=os.cpu_count() or 1,
        load_before=round(load_before, 1),
        python=platform.python_version(),
        servers={product: server.version for product, server in servers.items()},
        versions={name: installed_version(name) for name in _PACKAGES if name in present},
        left_out=left_out,
        rounds=sizes.rounds,
        ttl_s=sizes.ttl_s,
        stop_s=sizes.stop_s,
        waiters=sizes.waiters,
        updates=sizes.updates,
        keepalive=keepalive,
    )
    return Found(about, ways, kept, pooled)


@asynccontextmanager
async def _own_etcd(name: str, place: Place) -> AsyncIterator[Place]:
    """A new etcd for a way that needs one: a hundred waiters that were killed kept the next way from it."""
    if WAYS[name].server != "etcd":
        yield place
        return
    async with EtcdServer() as etcd:
        yield place.at("etcd", etcd.url)


async def _way(
    name: str, place: Place, sizes: Sizes, cycle_us: float, progress: Callable[[str], None]
) -> WayFound:
    scenario = Scenario(name, place, sizes.ttl_s, sizes.stop_s)
    progress(f"{name}: stopped")
    stopped = await scenario.stopped(sizes.rounds)
    progress(f"{name}: killed")
    killed_s = await scenario.killed_s(sizes.rounds)
    progress(f"{name}: cut off")
    cut = await scenario.cut()
    progress(f"{name}: freed")
    freed = await scenario.freed()
    progress(f"{name}: {sizes.waiters} waiters")
    waiting = await scenario.waiting_connections(sizes.waiters)
    way = WAYS[name]
    return WayFound(way.label, way.server, stopped, killed_s, cut, freed, waiting, cycle_us)


async def set_up(place: Place) -> int:
    """Make the bot's table and the fence; returns Postgres's ``tcp_keepalives_idle`` in seconds."""
    conn = await asyncpg.connect(place.postgres)
    try:
        await install(conn)
        await conn.execute(SET_UP)
        await conn.execute("insert into bot values (1, 'new')")
        return int(await conn.fetchval("select setting from pg_settings where name = 'tcp_keepalives_idle'"))
    finally:
        await conn.close()


async def _cycles(names: Sequence[str], place: Place, sizes: Sizes) -> dict[str, float]:
    """The median time to take each lock and give it back, in microseconds, in turns."""
    async with AsyncExitStack() as stack:
        ways = {name: await stack.enter_async_context(WAYS[name](place, sizes.ttl_s)) for name in names}
        # The garbage collector must not scan what all of them have loaded again in the turn of one.
        gc.collect()
        gc.freeze()
        turns = {name: partial(cycle_us, way, sizes.cycles) for name, way in ways.items()}
        return {name: round(us, 1) for name, us in (await in_turns(sizes.rounds, turns)).items()}


async def cycle_us(way: Way, cycles: int) -> float:
    """The median time to take a lock that is free and give it back, in microseconds."""
    took_s = []
    for _ in range(cycles):
        began = SYSTEM_CLOCK.now()
        async with way.held():
            pass
        took_s.append(SYSTEM_CLOCK.now() - began)
    took_s.sort()
    return took_s[len(took_s) // 2] * 1e6
