"""What the server was asked, as the server itself reports it with MONITOR."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

from redis.asyncio import Redis

__all__ = ["Command", "Monitor", "watch"]

_LINE = re.compile(rb"^\+[\d.]+ \[\d+ ([^\]]*)\] (.*)\r\n$")
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_LINE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Command:
    """One command that a client sent; what scripts call is left out."""

    sender: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """In lower case."""
        return self.words[0].lower()


class Monitor:
    """Collects what all other clients send.

    Args:
        reader: a connection in MONITOR mode.
        admin: a client with one connection, whose own commands are left out.
    """

    def __init__(self, reader: asyncio.StreamReader, admin: Redis) -> None:
        self._reader = reader
        self._admin = admin
        self._commands: list[Command] = []
        self._marker = ""
        self._marked = asyncio.Event()

    async def collect(self) -> None:
        """Read until cancelled."""
        while line := await self._reader.readline():
            if (match := _LINE.match(line)) and match[1] != b"lua":
                words = tuple(word.decode(errors="replace") for word in _WORD.findall(match[2]))
                self._commands.append(Command(match[1].decode(), words))
                if words[-1] == self._marker:
                    self._marked.set()

    async def take(self) -> list[Command]:
        """All that was sent since the last call, up to now."""
        self._marked.clear()
        self._marker = secrets.token_hex(8)
        await self._admin.echo(self._marker)
        await self._marked.wait()
        taken, self._commands = self._commands, []
        own = next(command.sender for command in taken if command.words[-1] == self._marker)
        return [command for command in taken if command.sender != own]


@contextlib.asynccontextmanager
async def watch(host: str, port: int, admin: Redis) -> AsyncIterator[Monitor]:
    """A monitor of the server on ``host`` and ``port``."""
    reader, writer = await asyncio.open_connection(host, port, limit=_LINE_BYTES_MAX)
    writer.write(b"MONITOR\r\n")
    await reader.readline()
    monitor = Monitor(reader, admin)
    collecting = asyncio.create_task(monitor.collect(), name="lockguard-bench-monitor")
    try:
        yield monitor
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
