"""One run: a server of its own, everybody in turns, all figures."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TypeVar

from redis.asyncio import Redis

from lockguard.bench.contenders import PEERS, Contender, Lockguard, contender, installed_version, missing
from lockguard.bench.crowd import memory, waiters
from lockguard.bench.figures import About, Figures, Sizes, Throughput, Uncontended
from lockguard.bench.handoff import hand_offs
from lockguard.bench.limits import BareProtocol, BareSocket, record
from lockguard.bench.monitor import watch
from lockguard.bench.speed import LIMIT, throughput, uncontended
from lockguard.bench.upkeep import decorator_us, renewal
from lockguard.testing import RedisServer

__all__ = ["measure"]

T = TypeVar("T")

_HOST = "127.0.0.1"
_OURS = "lockguard"


async def measure(peers: Sequence[str], sizes: Sizes, *, progress: Callable[[str], None]) -> Figures:
    """Measure everything once.

    Args:
        peers: whom to compare with, of :data:`PEERS`; one that is not installed is left out and named.
        sizes: how much.
        progress: told what is being measured.
    """
    left_out = {peer: "not installed: pip install 'lockguard[bench]'" for peer in peers if missing(peer)}
    load_before = os.getloadavg()[0]
    with RedisServer() as server:
        async with AsyncExitStack() as stack:
            present = {peer: contender(peer, server.url) for peer in peers if peer not in left_out}
            lockguard = Lockguard(server.url)
            everybody: dict[str, Contender] = {_OURS: lockguard, **present}
            for each in everybody.values():
                await stack.enter_async_context(each.opened())
            admin = await stack.enter_async_context(Redis.from_url(server.url, single_connection_client=True))
            async with watch(_HOST, server.port, admin) as monitor:
                progress("waiters")
                recorded, commands_per_call = await record(lockguard, monitor)
                crowd, bytes_per_waiter = await waiters(lockguard, server.url, monitor, admin, sizes)
            memory_figures = await memory(lockguard, admin, bytes_per_waiter=bytes_per_waiter)
            # What everybody has loaded must not be searched for garbage again in somebody's turn.
            gc.collect()
            gc.freeze()
            progress("one task alone")
            socket = await stack.enter_async_context(BareSocket.opened(recorded, _HOST, server.port))
            alone = await uncontended(everybody, socket, sizes)
            progress(f"{sizes.tasks} tasks")
            bare = await stack.enter_async_context(BareProtocol.opened(recorded, _HOST, server.port))
            together = await throughput(everybody, bare, sizes)
            progress("hand-off between processes")
            handed = await hand_offs(everybody, server.url, sizes)
            progress("renewal")
            renewed = await renewal(server.url, sizes)
        return Figures(
            uncontended=Uncontended(alone[_OURS], alone[LIMIT], _only(present, alone)),
            throughput=Throughput(together[_OURS], together[LIMIT], _only(present, together)),
            hand_off=handed[_OURS],
            hand_off_peers=_only(present, handed),
            waiters=crowd,
            renewal=renewed,
            decorator_us=await decorator_us(sizes),
            memory=memory_figures,
            commands_per_call=commands_per_call,
            about=About(
                server=f"{server.binary.product} {server.version}",
                python=platform.python_version(),
                machine=f"{platform.system()} {platform.machine()}",
                cores=os.cpu_count() or 1,
                load_before=load_before,
                versions={name: installed_version(name) for name in (_OURS, "hiredis", *present)},
                left_out=left_out,
                sizes=sizes,
            ),
        )


def _only(peers: Mapping[str, Contender], figures: Mapping[str, T]) -> dict[str, T]:
    return {peer: figures[peer] for peer in PEERS if peer in peers}
