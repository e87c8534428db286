"""Connections that end, or are refused, when it matters: behind their log-in, or beside another."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lockguard import LockGuard, QuorumUnavailable
from lockguard._clock import SYSTEM_CLOCK
from lockguard._nodes.address import Address
from lockguard._nodes.connection import Connection
from lockguard._nodes.sentinel import SentinelNode
from lockguard._nodes.wire import Wire
from lockguard.errors import ConfigurationError, NodeRefused
from lockguard_lab.servers import HOLD, PASS, FaultProxy, RedisServer, ReplicatedRedis

NAME = "binance:APTUSDT"


async def until(condition: Callable[[], Any], *, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


class Gate:
    """Forwards connections, and asks what becomes of each answer.

    Attributes:
        accepted: how many connections there have been.
        silent: the numbers of those whose answers get lost, without their end being told.
        answer: called with a connection's number, its writer and each answer; forwards it, or not.
        greets: what is said to each new connection that is then closed; nothing is forwarded if it says so.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self.accepted = 0
        self.silent: set[int] = set()
        self.writers: dict[int, asyncio.StreamWriter] = {}
        self.answer: Callable[[int, asyncio.StreamWriter, bytes], None] = lambda _, writer, said: (
            writer.write(said)
        )
        self.greets: list[bytes] = []

    def forget(self) -> None:
        """The connections of now die silently."""
        self.silent.update(range(1, self.accepted + 1))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        self.writers[number] = writer
        if self.greets:
            await reader.read(1)
            writer.write(self.greets.pop())
            writer.close()
            return
        up_reader, up = await asyncio.open_connection("127.0.0.1", self._target)

        async def ask() -> None:
            with contextlib.suppress(OSError):
                while said := await reader.read(65536):
                    up.write(said)
            up.close()

        async def answer() -> None:
            with contextlib.suppress(OSError):
                while said := await up_reader.read(65536):
                    if number not in self.silent:
                        self.answer(number, writer, said)
            if number not in self.silent:
                writer.close()

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(ask(), answer())


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    with RedisServer(password="secret") as server:
        made = Gate(server.port)
        listener = await asyncio.start_server(made.serve, "127.0.0.1", 0)
        made.port = listener.sockets[0].getsockname()[1]
        yield made
        listener.close()
        for writer in made.writers.values():
            writer.transport.abort()


def guard_at(
    gate: Gate, options: str = "", *, ttl_s: float = 3.0, calls: list[int] | None = None
) -> LockGuard:
    def credentials() -> str:
        if calls is not None:
            calls.append(1)
        return "secret"

    url = f"redis://127.0.0.1:{gate.port}/0{options}"
    return LockGuard.from_url(url, ttl=timedelta(seconds=ttl_s), credentials=credentials)


def ends_behind_its_log_in(gate: Gate, first: int) -> None:
    """With RESP3 its last answer is the one to PING."""

    def answer(number: int, writer: asyncio.StreamWriter, said: bytes) -> None:
        writer.write(said)
        if number == first and said.endswith(b"+PONG\r\n"):
            writer.close()

    gate.answer = answer


def ends_with_its_last_answer(gate: Gate, first: int) -> None:
    """What comes in the same bytes was not asked for, and has the connection ended before anybody is told."""

    def answer(number: int, writer: asyncio.StreamWriter, said: bytes) -> None:
        last = number == first and said.endswith(b"+PONG\r\n")
        writer.write(said + b"+OK\r\n" if last else said)

    gate.answer = answer


def ends_while_its_listener_logs_in(gate: Gate, first: int) -> None:
    """With RESP2 the connection for commands is made before the one that listens."""

    def answer(number: int, writer: asyncio.StreamWriter, said: bytes) -> None:
        if number == first + 1:
            gate.writers[first].transport.abort()
            asyncio.get_running_loop().call_later(0.03, writer.write, said)
        else:
            writer.write(said)

    gate.answer = answer


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ("", ends_behind_its_log_in),
        ("", ends_with_its_last_answer),
        ("?protocol=2", ends_while_its_listener_logs_in),
    ],
)
async def test_a_lease_outlives_a_connection_that_ended_before_it_was_kept(
    gate: Gate, options: str, ends: Callable[[Gate, int], None]
) -> None:
    """It was to replace one that had died silently, and both are gone."""
    async with guard_at(gate, options) as guard, guard.hold(NAME) as lease:
        ends(gate, gate.accepted + 1)
        gate.forget()
        first_deadline = lease.deadline
        await until(lambda: lease.deadline > first_deadline, within_s=3)
        second_deadline = lease.deadline
        await until(lambda: lease.deadline > second_deadline, within_s=3)
        lease.ensure()


async def test_a_lease_outlives_a_server_that_refuses_the_first_connections_after_one_died_silently(
    gate: Gate,
) -> None:
    async with guard_at(gate, ttl_s=2.0) as guard, guard.hold(NAME) as lease:
        gate.forget()
        gate.greets = [b"-LOADING Redis is loading the dataset in memory\r\n"] * 2
        first_deadline = lease.deadline
        await until(lambda: lease.deadline > first_deadline, within_s=2)
        lease.ensure()
        assert gate.greets == []


@pytest.mark.parametrize("lasts_s", [0.0, 0.005])
async def test_connections_that_end_behind_their_log_in_are_made_with_pauses(
    gate: Gate, lasts_s: float
) -> None:
    calls: list[int] = []
    async with guard_at(gate, calls=calls) as guard:

        def answer(_: int, writer: asyncio.StreamWriter, said: bytes) -> None:
            writer.write(said)
            if said.endswith(b"+PONG\r\n"):
                asyncio.get_running_loop().call_later(lasts_s, writer.close)

        async with guard.hold(NAME):
            pass
        gate.answer, known, began_at = answer, gate.accepted, SYSTEM_CLOCK.now()
        gate.writers[known].close()
        await until(lambda: gate.accepted == known + 6)
        # The shortest pauses behind the five before it.
        assert SYSTEM_CLOCK.now() - began_at >= 0.025 + 0.05 + 0.1 + 0.2 + 0.4
        assert len(calls) == gate.accepted
        gate.answer = lambda _, writer, said: writer.write(said)
        async with guard.hold(NAME, wait=timedelta(seconds=5)):
            pass


async def test_a_listener_that_ends_as_it_subscribes_keeps_nobody_waiting(gate: Gate) -> None:
    def answer(number: int, writer: asyncio.StreamWriter, said: bytes) -> None:
        if number == 2 and b"subscribe" in said:
            writer.close()
        else:
            writer.write(said)

    gate.answer = answer
    connected: list[bool] = []
    connection = connection_to(gate, "?protocol=2", connected)
    async with asyncio.timeout(5):
        with pytest.raises(NodeRefused):
            await connection.connect()
    assert connected == []
    await connection.aclose()


async def test_a_connection_that_ended_with_its_last_answer_was_not_made(gate: Gate) -> None:
    ends_with_its_last_answer(gate, 1)
    connected: list[bool] = []
    connection = connection_to(gate, "", connected)
    with pytest.raises(NodeRefused):
        await connection.connect()
    assert connected == []
    await connection.connect()
    assert connected == [False]
    await connection.aclose()


@pytest.mark.parametrize(("protocol", "confirmed"), [(2, b"*3\r\n$9\r\nsub"), (3, b">3\r\n$9\r\nsub")])
async def test_a_refused_subscription_is_told_though_the_server_closes_behind_it(
    gate: Gate, protocol: int, confirmed: bytes
) -> None:
    def answer(_: int, writer: asyncio.StreamWriter, said: bytes) -> None:
        before, found, _ = said.partition(confirmed)
        writer.write(before)
        if found:
            pong = b"+PONG\r\n" if protocol == 3 else b""  # which is asked for behind it
            writer.write(b"-NOPERM No permissions to access a channel\r\n" + pong)
            writer.close()

    gate.answer = answer
    connection = connection_to(gate, f"?protocol={protocol}", [])
    with pytest.raises(ConfigurationError, match=r"NOPERM.*the channel in:test:inbox"):
        await connection.connect()
    await connection.aclose()


async def test_a_server_that_refuses_a_connection_before_it_is_asked_anything_is_quoted() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR max number of clients reached\r\n")
        writer.close()

    said: list[str] = []
    wire = Wire(on_push=lambda _: None, on_end=lambda _, cause: said.append(cause), reply_timeout_s=9.0)
    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with listener, asyncio.timeout(5):
        await asyncio.get_running_loop().create_connection(lambda: wire, *listener.sockets[0].getsockname())
        await wire.gone.wait()
    assert said == ["the server refuses it: ERR max number of clients reached"]


def connection_to(gate: Gate, options: str, connected: list[bool]) -> Connection:
    async def nothing(*_: Any) -> None: ...

    return Connection(
        Address.parse(f"redis://:secret@127.0.0.1:{gate.port}/0{options}"),
        inbox="in:test",
        on_message=lambda _: None,
        on_login=nothing,
        on_connect=lambda *, again: connected.append(again),
        on_refused=lambda: None,
        on_wiped=lambda: None,
        connect_timeout_s=20.0,
        reply_timeout_s=20.0,
    )


async def test_a_guard_follows_the_sentinels_also_if_the_next_master_refused_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next master is named before it is promoted, and the old one answers again meanwhile."""
    with ReplicatedRedis(1, password="") as setup:
        old, new = setup.servers
        async with FaultProxy(old.port) as to_old, FaultProxy(new.port) as to_new:
            named = to_old.port

            async def locate(self: SentinelNode) -> Address:
                return replace(self._url.master, host="127.0.0.1", port=named)

            monkeypatch.setattr(SentinelNode, "_locate", locate)
            monkeypatch.setattr("lockguard._nodes.sentinel._WATCH_S", 3600.0)
            async with LockGuard.from_url("redis+sentinel://127.0.0.1:1/mymaster") as guard:
                node: Any = guard._core.locks.nodes[0]  # type: ignore[union-attr]
                async with guard.hold(NAME):
                    pass
                to_old.to_client.set(HOLD)
                named = to_new.port
                asking = asyncio.create_task(node.ask("PING"))
                await until(lambda: to_new.to_client.received_bytes > 0)  # INFO: it is a replica
                await until(lambda: to_new.connections == 0)
                to_old.to_client.set(PASS)
                assert await asking == b"PONG"
                assert node.ready
                new.command("REPLICAOF", "NO", "ONE")
                monkeypatch.setattr("lockguard._nodes.sentinel._WATCH_S", 0.01)
                watching = asyncio.create_task(node._watch())
                await until(lambda: to_new.connections > 0 and node.ready)
                watching.cancel()
                assert node.address.port == to_new.port
                async with guard.hold(NAME, wait=timedelta(seconds=5)):
                    assert to_old.connections == 0


def sockets() -> int:
    links = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return sum(link.startswith("socket:") for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the sockets of this process")
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_loop_that_is_closed_around_an_attempt_leaves_nothing(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        guard = LockGuard.from_url(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/0")
        before = sockets()

        async def hold(wait_s: float) -> None:
            with contextlib.suppress(TimeoutError, QuorumUnavailable):
                async with asyncio.timeout(wait_s), guard.hold(NAME, wait=timedelta(seconds=5)):
                    pass

        around = asyncio.new_event_loop()
        around.run_until_complete(hold(0.5))
        around.close()
        assert sockets() == before + 1

        async def use_again() -> None:
            await hold(0.05)
            await guard.aclose()

        asyncio.run(use_again())
        assert sockets() == before
    gc.collect()
    assert told == []
