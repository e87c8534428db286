"""How much slower than one server are five? Run as a script; nothing here is collected by pytest.

One process, servers of its own, all ways in turns (A B A B), so that a noisy moment hits all alike. Taking
and giving back are timed apart. The limits are bare connections that send the very commands that the guard
sent: one connection that waits for its reply, and five that go on at the third reply. What separates the two
limits is what five servers cost on this machine; what separates a guard from its limit is the guard.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import socket
import statistics
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import hiredis

from lockguard import LockGuard
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import new_grant_id
from lockguard_lab.servers import IndependentRedis, RedisServer

NAME = "bench:quorum"
_NO_MORE = object()

Turn = Callable[[], Awaitable[tuple[float, float]]]
"""Takes and gives back once; how long each took, in seconds."""


class Bare(asyncio.Protocol):
    """A connection that counts replies."""

    def __init__(self, replied: Callable[[], None]) -> None:
        self._reader = hiredis.Reader(notEnoughData=_NO_MORE)
        self._replied = replied

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while self._reader.gets() is not _NO_MORE:
            self._replied()


class Limit:
    """So many bare connections; goes on when a majority has replied."""

    def __init__(self, calls: list[tuple[list[bytes], list[bytes], bytes]]) -> None:
        self._calls = calls
        self._enough = len(calls) // 2 + 1
        self._wires: list[Bare] = []
        self._replies = 0
        self._decided: asyncio.Future[None] | None = None
        self._all: asyncio.Future[None] | None = None

    async def connect(self, servers: list[RedisServer]) -> None:
        loop = asyncio.get_running_loop()
        for server in servers:
            link = socket.create_connection(("127.0.0.1", server.port))
            link.sendall(hiredis.pack_command(("AUTH", server.password)))
            assert link.recv(100) == b"+OK\r\n"
            _, wire = await loop.create_connection(lambda: Bare(self._replied), sock=link)
            self._wires.append(wire)

    def close(self) -> None:
        for wire in self._wires:
            wire.transport.close()

    def _replied(self) -> None:
        self._replies += 1
        if self._replies == self._enough:
            self._decided.set_result(None)
        if self._replies == len(self._wires):
            self._all.set_result(None)

    async def turn(self) -> tuple[float, float]:
        grant = new_grant_id().encode()
        times = []
        for which in (0, 1):
            loop = asyncio.get_running_loop()
            self._replies, self._decided, self._all = 0, loop.create_future(), loop.create_future()
            began = SYSTEM_CLOCK.now()
            for wire, call in zip(self._wires, self._calls, strict=True):
                words = tuple(grant if word == call[2] else word for word in call[which])
                wire.transport.write(hiredis.pack_command(words))
            await self._decided
            times.append(SYSTEM_CLOCK.now() - began)
            await self._all
        return times[0], times[1]


def words_of(command: bytes) -> list[bytes]:
    reader = hiredis.Reader()
    reader.feed(command)
    return reader.gets()


async def recorded(guard: LockGuard, servers) -> list[tuple[list[bytes], list[bytes], bytes]]:
    """What the guard says to each server to take and to give back, and with which grant."""
    calls = []
    for node, server in zip(guard._core.locks.nodes, servers, strict=True):
        said = []
        connection = node._connection
        send = connection.send_packed

        def note(slot, command, *, lone=False, said=said, send=send):
            said.append(words_of(command))
            send(slot, command, lone=lone)

        connection.send_packed = note
        calls.append((server, said))
    async with guard.hold(NAME) as lease:
        grant = lease.grant.id.encode()
    for node in guard._core.locks.nodes:
        del node._connection.send_packed
    return [(said[0], said[1], grant) for _, said in calls]


def guarded(guard: LockGuard) -> Turn:
    async def turn() -> tuple[float, float]:
        hold = guard.hold(NAME)
        began = SYSTEM_CLOCK.now()
        await hold.__aenter__()
        held = SYSTEM_CLOCK.now()
        await hold.__aexit__(None, None, None)
        return held - began, SYSTEM_CLOCK.now() - held

    return turn


async def measure(nodes: int, rounds: int, cycles: int) -> dict[str, tuple[list[float], list[float]]]:
    """Medians of each round, in seconds: of taking, and of giving back."""
    with IndependentRedis(nodes) as many, IndependentRedis(1) as one:
        async with AsyncExitStack() as stack:
            guard_one = await stack.enter_async_context(LockGuard.from_url(one.urls[0]))
            guard_many = await stack.enter_async_context(LockGuard.from_urls(many.urls))
            for guard in (guard_one, guard_many):
                for _ in range(20):
                    await guarded(guard)()
            turns: dict[str, Turn] = {"one": guarded(guard_one), "many": guarded(guard_many)}
            for name, guard, servers in (("limit one", guard_one, one), ("limit many", guard_many, many)):
                limit = Limit(await recorded(guard, servers.servers))
                await limit.connect(servers.servers)
                stack.callback(limit.close)
                turns[name] = limit.turn
            gc.collect()
            gc.freeze()
            found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in turns}
            for number in range(rounds + 1):
                for name, turn in turns.items():
                    times = [await turn() for _ in range(cycles)]
                    if number:
                        for part in (0, 1):
                            found[name][part].append(statistics.median(each[part] for each in times))
            return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cycles", type=int, default=100)
    asked = parser.parse_args()
    found = asyncio.run(measure(asked.nodes, asked.rounds, asked.cycles))
    print(
        f"load {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores; {asked.rounds} rounds of {asked.cycles}, us"
    )
    for name, times in found.items():
        take_us, give_us = (statistics.median(part) * 1e6 for part in times)
        print(f"{name:12} acquire {take_us:7.0f}   release {give_us:7.0f}")
    for part, what in ((0, "acquire"), (1, "release")):
        for left, right in (("many", "one"), ("limit many", "limit one"), ("many", "limit many")):
            ratios = [a / b for a, b in zip(found[left][part], found[right][part], strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{what} {left} / {right}: {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
