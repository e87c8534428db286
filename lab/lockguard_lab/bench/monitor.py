"""The commands that the servers received, as they report them with MONITOR."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

__all__ = ["Command", "Keeper", "Monitor", "watch"]

_LINE = re.compile(rb"^\+[\d.]+ \[\d+ ([^\]]*)\] (.*)\r\n$")
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_LINE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Keeper:
    """A server that keeps locks.

    Attributes:
        host: the host on which it listens.
        port: the port on which it listens.
        password: the password that it asks for.
        admin: a client with one connection, whose own commands are not counted.
    """

    host: str
    port: int
    password: str
    admin: Redis

    async def clients(self) -> set[str]:
        """All connected clients, by names that no other server's clients have."""
        return {f"{client['addr']}>{self.port}" for client in await self.admin.client_list()}


@dataclass(frozen=True, slots=True)
class Command:
    """One command that a client sent; commands called by scripts are left out."""

    port: int
    sender: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """The command's name in lower case."""
        return self.words[0].lower()


class _Tap:
    """Collects the commands that all other clients send to one server."""

    def __init__(self, reader: asyncio.StreamReader, keeper: Keeper) -> None:
        self._reader = reader
        self._keeper = keeper
        self._commands: list[Command] = []
        self._marker = ""
        self._marked = asyncio.Event()

    async def collect(self) -> None:
        """Read until cancelled."""
        port = self._keeper.port
        while line := await self._reader.readline():
            if (match := _LINE.match(line)) and match[1] != b"lua":
                words = tuple(word.decode(errors="replace") for word in _WORD.findall(match[2]))
                self._commands.append(Command(port, f"{match[1].decode()}>{port}", words))
                if words[-1] == self._marker:
                    self._marked.set()

    async def take(self) -> list[Command]:
        """All that was sent since the last call, up to now."""
        self._marked.clear()
        self._marker = secrets.token_hex(8)
        await self._keeper.admin.echo(self._marker)
        await self._marked.wait()
        taken, self._commands = self._commands, []
        own = next(command.sender for command in taken if command.words[-1] == self._marker)
        return [command for command in taken if command.sender != own]


class Monitor:
    """Collects the commands that all other clients send to any of the servers."""

    def __init__(self, taps: Sequence[_Tap]) -> None:
        self._taps = taps

    async def take(self) -> list[Command]:
        """All that was sent since the last call, up to now, server by server."""
        return [command for tap in self._taps for command in await tap.take()]


@contextlib.asynccontextmanager
async def watch(keepers: Sequence[Keeper]) -> AsyncIterator[Monitor]:
    """A monitor of all these servers."""
    async with contextlib.AsyncExitStack() as stack:
        yield Monitor([await stack.enter_async_context(_tapped(keeper)) for keeper in keepers])


@contextlib.asynccontextmanager
async def _tapped(keeper: Keeper) -> AsyncIterator[_Tap]:
    reader, writer = await asyncio.open_connection(keeper.host, keeper.port, limit=_LINE_BYTES_MAX)
    writer.write(f"AUTH {keeper.password}\r\nMONITOR\r\n".encode())
    await reader.readline()
    await reader.readline()
    tap = _Tap(reader, keeper)
    collecting = asyncio.create_task(tap.collect(), name="lockguard-bench-monitor")
    try:
        yield tap
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
