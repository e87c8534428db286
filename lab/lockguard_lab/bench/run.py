"""One run of all measurements: servers of its own, and each contender in turn."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TypeVar

from redis.asyncio import Redis

from lockguard_lab.bench.contenders import PEERS, Contender, Lockguard, contender, installed_version, left_out
from lockguard_lab.bench.figures import About, Figures, Sizes, Throughput, Uncontended
from lockguard_lab.bench.limits import BareProtocol, BareSocket, record
from lockguard_lab.bench.loops import current_loop
from lockguard_lab.bench.monitor import Keeper, watch
from lockguard_lab.bench.speed import LIMIT, throughput, uncontended
from lockguard_lab.bench.upkeep import decorator_us, renewal
from lockguard_lab.bench.waiting import hand_offs, memory, waiters
from lockguard_lab.servers import RedisServer, SentinelRedis, TopologyName
from lockguard_lab.servers.redis_commands import command
from lockguard_lab.servers.topologies import Topology

__all__ = ["measure"]

T = TypeVar("T")

_HOST = "127.0.0.1"
_OURS = "lockguard"
_SINGLE = TopologyName()


async def measure(
    peers: Sequence[str],
    sizes: Sizes,
    *,
    progress: Callable[[str], None],
    topology: TopologyName = _SINGLE,
) -> Figures:
    """Measure everything once.

    Args:
        peers: the peers to compare with, of :data:`PEERS`; one that is not installed, or does not support the
            topology, is left out and named.
        sizes: the sizes of the measurements.
        progress: called with what is being measured.
        topology: the servers of the locks.
    """
    absent = left_out(peers, topology.kind)
    load_before = os.getloadavg()[0]
    async with topology.servers() as servers, AsyncExitStack() as stack:
        urls = TopologyName.urls(servers)
        present = {peer: contender(peer, urls) for peer in peers if peer not in absent}
        lockguard = Lockguard(urls)
        everybody: dict[str, Contender] = {_OURS: lockguard, **present}
        for each in everybody.values():
            await stack.enter_async_context(each.opened())
        keepers = [await _keeper(stack, server) for server in _kept_by(servers)]
        slots = {keeper.port: await _slots(keeper) for keeper in keepers}
        async with watch(keepers) as monitor:
            progress("waiters")
            recorded, commands_per_call = await record(
                lockguard, monitor, slots, {keeper.port: keeper.password for keeper in keepers}
            )
            crowd, bytes_per_waiter = await waiters(lockguard, urls, monitor, keepers, sizes)
        memory_figures = await memory(lockguard, keepers, bytes_per_waiter=bytes_per_waiter)
        # The garbage collector must not scan what all contenders have loaded again in the turn of one.
        gc.collect()
        gc.freeze()
        progress("one task alone")
        socket = await stack.enter_async_context(BareSocket.opened(recorded, _HOST))
        alone = await uncontended(everybody, socket, sizes)
        progress(f"{sizes.tasks} tasks")
        bare = await stack.enter_async_context(BareProtocol.opened(recorded, _HOST))
        together = await throughput(everybody, bare, sizes)
        progress("hand-off between processes")
        handed = await hand_offs(everybody, urls, sizes)
        progress("renewal")
        return Figures(
            uncontended=Uncontended(alone[_OURS], alone[LIMIT], _only(present, alone)),
            throughput=Throughput(together[_OURS], together[LIMIT], _only(present, together)),
            hand_off=handed[_OURS],
            hand_off_peers=_only(present, handed),
            waiters=crowd,
            renewal=await renewal(urls, sizes, {keeper.port for keeper in keepers}),
            decorator_us=await decorator_us(sizes),
            memory=memory_figures,
            commands_per_call=commands_per_call,
            about=_about(topology, servers, load_before, present, absent, sizes),
        )


def _about(
    topology: TopologyName,
    servers: Topology,
    load_before: float,
    present: Iterable[str],
    absent: dict[str, str],
    sizes: Sizes,
) -> About:
    server = servers.servers[0]
    return About(
        topology=str(topology),
        loop=current_loop(),
        server=f"{server.binary.product} {server.version}",
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        cores=os.cpu_count() or 1,
        load_before=load_before,
        versions={name: installed_version(name) for name in (_OURS, "hiredis", *present)},
        left_out=absent,
        sizes=sizes,
    )


def _kept_by(servers: Topology) -> list[RedisServer]:
    """The servers that are asked for locks; a replica only receives its master's commands."""
    return [servers.master] if isinstance(servers, SentinelRedis) else servers.servers


async def _keeper(stack: AsyncExitStack, server: RedisServer) -> Keeper:
    client = Redis.from_url(server.url, single_connection_client=True)
    return Keeper(_HOST, server.port, server.password, await stack.enter_async_context(client))


async def _slots(keeper: Keeper) -> range | None:
    """The slots of a cluster's master, contiguous here; ``None`` for any other server."""
    if not (await keeper.admin.info("cluster"))["cluster_enabled"]:
        return None
    nodes = str(command(keeper.port, "CLUSTER", "NODES", password=keeper.password)).splitlines()
    served = next(line for line in nodes if "myself" in line).split()[-1]
    first, _, last = served.partition("-")
    return range(int(first), int(last) + 1)


def _only(peers: Mapping[str, Contender], figures: Mapping[str, T]) -> dict[str, T]:
    return {peer: figures[peer] for peer in PEERS if peer in peers}
