"""The limit for a lock with these scripts: the same two commands, sent over a bare socket.

Where several servers keep locks, only one of them is asked: no lock can be faster than that.

The commands are not written here. They are recorded at the server when lockguard locks and unlocks once, with
a new resource and grant filled in for each call: so they are the same by construction.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any, cast

import hiredis
from redis.crc import key_slot

from lockguard._lease import new_grant_id
from lockguard._scripts import ACQUIRE, RELEASE
from lockguard_lab.bench.contenders import Lockguard
from lockguard_lab.bench.monitor import Command, Monitor

__all__ = ["BareProtocol", "BareSocket", "Recorded", "record"]

_NO_MORE = object()
_CALLS_RECORDED = 7
_REPLY_BYTES_MAX = 4096


class Calls:
    """The two commands for one resource, to be filled in with a grant."""

    def __init__(self, acquire: list[str], release: list[str], grant: str) -> None:
        self._acquire = acquire
        self._release = release
        self._at = [place for place, word in enumerate(acquire) if word == grant]
        self._release_at = [place for place, word in enumerate(release) if word == grant]

    def packed(self) -> tuple[bytes, bytes]:
        """Both commands, encoded with a new grant."""
        grant = new_grant_id()
        for place in self._at:
            self._acquire[place] = grant
        for place in self._release_at:
            self._release[place] = grant
        return _packed(self._acquire), _packed(self._release)


def _packed(words: list[str]) -> bytes:
    command: bytes = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]  # its stub takes one word
    return command


@dataclass(frozen=True, slots=True)
class Recorded:
    """The commands of one lock and unlock, as one of the servers received them.

    Attributes:
        port: the port of that server.
        password: the password that it asks for.
        slots: the only slots whose keys that server keeps; ``None`` for all.
    """

    port: int
    password: str = field(repr=False)
    slots: range | None
    resource: str
    acquire: tuple[str, ...]
    release: tuple[str, ...]
    grant: str

    def login(self) -> bytes:
        """The bytes that a connection must send first."""
        words: Any = ("AUTH", self.password)  # the annotation allows one word only
        return bytes(hiredis.pack_command(words))

    def on(self, resource: str) -> Calls:
        """The same commands for another resource, whose name is lengthened until this server keeps it."""
        name, tries = resource, itertools.count()
        while self.slots is not None and key_slot(resource.encode()) not in self.slots:
            resource = f"{name}:{next(tries)}"
        acquire, release = (
            [word.replace(self.resource, resource) for word in words]
            for words in (self.acquire, self.release)
        )
        return Calls(acquire, release, self.grant)


async def record(
    lockguard: Lockguard, monitor: Monitor, slots: Mapping[int, range | None], passwords: Mapping[int, str]
) -> tuple[Recorded, int]:
    """Record what lockguard sends for one uncontended lock and unlock, and how many commands that is.

    Args:
        lockguard: the sender.
        monitor: the monitor that records the commands.
        slots: the slots of each server by its port, if it keeps only some.
        passwords: the password of each server by its port.
    """
    resource = f"bench:recorded:{secrets.token_hex(4)}"
    async with lockguard.lock(resource):
        pass
    tried: list[tuple[int, list[Command]]] = []
    for _ in range(_CALLS_RECORDED):
        await monitor.take()
        async with lockguard.lock(resource):
            pass
        commands = await monitor.take()
        # Sentinels and replicas send commands to the server as well.
        ours = {command.sender for command in commands if command.name == "evalsha"}
        tried.append((sum(command.sender in ours for command in commands), commands))
    # On a busy machine a lease may be asked about, and a server may be told within the next call only.
    usual = median_low(count for count, _ in tried)
    commands = next(commands for count, commands in tried if count == usual)
    calls = [command for command in commands if command.name == "evalsha"]
    acquire, release = (
        next(c.words for c in calls if c.port == calls[0].port and script.sha in c.words)
        for script in (ACQUIRE, RELEASE)
    )
    grant = next(word for word in acquire if re.fullmatch("[0-9a-f]{32}", word))
    port = calls[0].port
    recorded = Recorded(port, passwords[port], slots[port], resource, acquire, release, grant)
    return recorded, usual


class BareSocket:
    """An asyncio stream: send, wait for any bytes, send, wait. It does not even parse the reply."""

    def __init__(
        self, recorded: Recorded, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._recorded = recorded
        self._reader = reader
        self._writer = writer
        self._calls: dict[str, Calls] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls, recorded: Recorded, host: str) -> AsyncIterator[BareSocket]:
        """Connected for the length of the body."""
        reader, writer = await asyncio.open_connection(host, recorded.port)
        writer.write(recorded.login())
        await reader.readline()
        try:
            yield cls(recorded, reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()

    async def cycle_alone(self, resource: str) -> None:
        """Send both commands, waiting for each reply."""
        if resource not in self._calls:
            self._calls[resource] = self._recorded.on(resource)
        acquire, release = self._calls[resource].packed()
        self._writer.write(acquire)
        granted = await self._reader.read(_REPLY_BYTES_MAX)
        assert granted.startswith(b"*"), granted
        self._writer.write(release)
        await self._reader.read(_REPLY_BYTES_MAX)


class BareProtocol(asyncio.Protocol):
    """A protocol class that gathers the commands of one turn of the event loop into one write."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NO_MORE)
        self._futures: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, recorded: Recorded, host: str) -> AsyncIterator[BareProtocol]:
        """Connected for the length of the body."""
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(lambda: cls(recorded), host, recorded.port)
        greeted = loop.create_future()
        protocol._futures.append(greeted)
        transport.write(recorded.login())
        await greeted
        try:
            yield protocol
        finally:
            transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no base class

    def data_received(self, data: bytes) -> None:
        """Give each reply to the oldest future."""
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _NO_MORE:
            self._futures.popleft().set_result(reply)

    async def cycles(self, resource: str, number: int) -> None:
        """Send both commands ``number`` times, waiting for each reply."""
        calls = self._recorded.on(resource)
        for _ in range(number):
            acquire, release = calls.packed()
            granted = await self._call(acquire)
            assert granted[0] == 1, granted
            assert await self._call(release) == 1

    def _call(self, command: bytes) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._futures.append(future)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(command)
        return future

    def _flush(self) -> None:
        assert self._transport is not None
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
