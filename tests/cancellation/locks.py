"""The lock by itself: a guard over one server and over a quorum, and what it is made of."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import redis

from lockguard import LockGuard
from lockguard._lease import Token, new_grant_id
from lockguard.ports import AcquireRequest
from lockguard.testing import FakeClock
from tests.cancellation.worlds import Row, Servers, World

__all__ = ["LOCK_ROWS", "LockWorld", "QuorumWorld"]

NAME = "binance:APTUSDT"
OTHER = "binance:BTCUSDT"
KEPT = (":token", ":history", ":member", ":seal")
SHORT = timedelta(seconds=2)


class LockWorld(World):
    """A guard, and another one of another process as far as the server can tell."""

    guard: LockGuard
    other: LockGuard

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.clients: list[Any] = []
        self.made: list[LockGuard] = []

    def urls(self) -> tuple[str, ...]:
        return (self.servers.redis_url,)

    def new_guard(self, **options: Any) -> LockGuard:
        return LockGuard.from_url(self.servers.redis_url, **options)

    async def begin(self, stack: AsyncExitStack) -> None:
        for url in self.urls():
            self.clients.append(stack.enter_context(redis.Redis.from_url(url, decode_responses=True)))
        self.guard = await stack.enter_async_context(self.new_guard(name="first"))
        self.other = await stack.enter_async_context(self.new_guard(name="second"))

    def locks(self) -> list[str]:
        return [key for client in self.clients for key in client.keys("*") if not key.endswith(KEPT)]

    async def left(self) -> list[str]:
        for guard in (self.guard, self.other):
            await guard.inspect(NAME)  # behind every release, on the same connection
        found = [f"key {key}" for key in self.locks()]
        for guard in (self.guard, self.other):
            core = guard._core
            found += [f"closing {task.get_name()}" for task in core._closing]
            found += [f"kept lease {grant}" for grant in core.keeper.grants_on(NAME)]
            if len(core.keeper) or len(core.queue):
                found.append(f"{len(core.keeper)} leases and {len(core.queue)} waiters")
        return found

    async def works(self) -> None:
        async with self.other.hold(NAME, wait=SHORT), self.guard.hold(OTHER, wait=SHORT):
            pass
        async with self.guard.hold(NAME, wait=SHORT):
            pass

    async def end_made(self) -> None:
        """Close the guards that a row has made."""
        for guard in self.made:
            await guard.aclose()
        self.made.clear()


class QuorumWorld(LockWorld):
    """The same over three servers of which a majority decides."""

    needs = frozenset({"redis_urls"})

    def urls(self) -> tuple[str, ...]:
        return self.servers.redis_urls

    def new_guard(self, **options: Any) -> LockGuard:
        return LockGuard.from_urls(self.servers.redis_urls, node_timeout=timedelta(seconds=1), **options)


# Ways to call


async def held(world: LockWorld) -> None:
    async with world.guard.hold(NAME):
        await asyncio.sleep(0)


async def held_many(world: LockWorld) -> None:
    async with world.guard.hold_many([NAME, OTHER]):
        await asyncio.sleep(0)


async def held_by_decorator(world: LockWorld) -> None:
    @world.guard.exclusive("{symbol}")
    async def body(symbol: str) -> None:
        await asyncio.sleep(0)

    await body(NAME)


async def held_for_a_while(world: LockWorld) -> None:
    async with world.guard.hold(NAME, at_least=timedelta(milliseconds=1)):
        pass


async def handed_on(world: LockWorld) -> None:
    """Two of one process that want the same, the second woken by the first."""
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(held(world))


async def waited_for_another_process(world: LockWorld) -> None:
    """Woken through the server by a holder that is not cancelled."""
    holder = world.other.hold(NAME)
    await holder.__aenter__()
    task = asyncio.create_task(held(world), name="lockguard-test-waiter")
    try:
        while not any(key.endswith(":queue") for key in world.locks()):
            await asyncio.sleep(0)
    finally:
        task.cancel() if task.done() else None
        await holder.__aexit__(None, None, None)
    try:
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def confirmed(world: LockWorld) -> None:
    async with world.guard.hold(NAME) as lease:
        await lease.confirm()


async def listed(world: LockWorld) -> None:
    async with world.guard.hold(NAME):
        async for _ in world.guard.list():
            pass


async def broken(world: LockWorld) -> None:
    await world.guard.break_(NAME, reason="test")


async def broken_by_grant(world: LockWorld) -> None:
    await world.guard.break_(NAME, reason="test", grant=(await world.guard.inspect(NAME)).grant)


async def in_a_guard(world: LockWorld) -> None:
    made = world.new_guard()
    world.made.append(made)
    async with made, made.hold(NAME):
        pass


async def closed(world: LockWorld) -> None:
    await world.made[-1].aclose()


async def a_guard_in_use(world: LockWorld) -> None:
    made = world.new_guard()
    world.made.append(made)
    async with made.hold(NAME):
        pass


async def all_guards_are_closed(world: LockWorld) -> list[str]:
    """A guard that was closed, or left, has closed everything, however its close was cut."""
    async with asyncio.timeout(5):
        while any(guard._core.connected and guard._core.closed for guard in world.made):
            await asyncio.sleep(0.001)
    left = ["an open guard" for guard in world.made if guard._core.connected]
    await world.end_made()
    return left


# What a quorum is made of. Its callers undo a cancelled acquire, as Locks.acquire says.


def request() -> AcquireRequest:
    return AcquireRequest(world_name, new_grant_id(), "test", "", 10_000)


world_name: Any = NAME


async def asked_once(world: LockWorld) -> None:
    wanted = request()
    locks = world.guard._core.locks
    try:
        await locks.acquire(wanted)
    finally:
        releasing = locks.release(wanted.resource, wanted.grant)
    await releasing()


async def settled(world: LockWorld) -> None:
    wanted = request()
    locks = world.guard._core.locks
    try:
        won: Any = await locks.acquire(wanted)
        await locks.settle(wanted, Token(won.token + 1))
    finally:
        locks.release(wanted.resource, wanted.grant)


async def connected(world: LockWorld) -> None:
    made = world.new_guard()
    world.made.append(made)
    try:
        await made._core.locks.connect()
    finally:
        await asyncio.shield(made._core.locks.aclose())


async def asked_all(world: LockWorld) -> None:
    await world.guard._core.locks.ask_all(lambda node: node.inspect(world_name))


async def slept(_world: LockWorld) -> None:
    clock = FakeClock()
    async with asyncio.TaskGroup() as group:
        group.create_task(clock.sleep(1))  # by the clock that it moves
        await clock.run_for(timedelta(seconds=2))


LOCK_ROWS = (
    Row(("lockguard.LockGuard.hold",), held),
    Row(("lockguard.LockGuard.hold_many",), held_many),
    Row(("lockguard.LockGuard.exclusive", "lockguard.exclusive"), held_by_decorator),
    Row(("lockguard.LockGuard.hold",), held_for_a_while, name="hold with at_least"),
    Row(("lockguard.LockGuard.hold",), handed_on, name="hold handed on in one process"),
    Row(("lockguard.LockGuard.hold",), waited_for_another_process, name="hold behind another process"),
    Row(("lockguard.Lease.confirm", "lockguard.sync.Lease.confirm"), confirmed),
    Row(("lockguard.LockGuard.list", "lockguard.ports.ReadableNode.names"), listed),
    Row(("lockguard.LockGuard.inspect",), lambda world: world.guard.inspect(NAME)),
    Row(("lockguard.LockGuard.history",), lambda world: world.guard.history(NAME)),
    Row(("lockguard.LockGuard.break_",), broken),
    Row(("lockguard.LockGuard.break_",), broken_by_grant, name="break of a grant"),
    Row(
        ("lockguard.LockGuard.request_handover",),
        lambda world: world.guard.request_handover(NAME, reason="test"),
    ),
    Row(
        (
            "lockguard.LockGuard.__aenter__",
            "lockguard.LockGuard.__aexit__",
            "lockguard.ports.LockNode.connect",
        ),
        in_a_guard,
        judge=all_guards_are_closed,
    ),
    Row(
        ("lockguard.LockGuard.aclose", "lockguard.ports.LockNode.aclose"),
        closed,
        before=a_guard_in_use,
        judge=all_guards_are_closed,
    ),
    Row(("lockguard.testing.FakeClock.run_for", "lockguard.testing.FakeClock.sleep"), slept),
)

LockWorld.rows = LOCK_ROWS
QuorumWorld.rows = (
    *LOCK_ROWS[:-1],
    Row(("lockguard.redlock.Redlock.acquire", "lockguard.redlock.Redlock.release"), asked_once),
    Row(("lockguard.redlock.Redlock.settle",), settled),
    Row(
        ("lockguard.redlock.Redlock.connect", "lockguard.redlock.Redlock.aclose"),
        connected,
        judge=all_guards_are_closed,
    ),
    Row(("lockguard.redlock.Redlock.ask_all",), asked_all),
)
