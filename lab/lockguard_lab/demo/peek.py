"""Reading what lies in Redis the way ``redis-cli`` does: plain commands, plain answers.

The guard's own connection is not used on purpose: what the demo shows is what anybody finds there.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Entry", "Peek", "lock_key", "peek"]

Reply: TypeAlias = "str | int | list[Reply] | None"

_COUNT = "1000"

_LINE = re.compile(
    r"(?P<at_us>\d+) (?P<event>\w+)(?: token=(?P<token>\d+))? grant=(?P<grant>\w+)"
    r"(?: holder=(?P<holder>.*?) operation=(?P<operation>.*))?(?: reason=(?P<reason>.*))?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a resource's history.

    Attributes:
        at_ms: when, by the server's clock, in milliseconds since 1970.
        fields: what is written there.
    """

    resource: str
    at_ms: int
    fields: dict[str, str]


def lock_key(resource: str) -> str:
    """The key under which a lock lies."""
    return f"lockguard:{{{resource}}}"


class Peek:
    """One plain connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, *words: str) -> Reply:
        """Send one command; gives its answer."""
        parts = [word.encode() for word in words]
        head = b"*%d\r\n" % len(parts)
        self._writer.write(head + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        await self._writer.drain()
        return await self._reply()

    async def hash(self, key: str) -> dict[str, str]:
        """``HGETALL``."""
        flat = [str(part) for part in _listed(await self.ask("HGETALL", key))]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def remaining_ms(self, key: str) -> int:
        """``PTTL``; 0 when the key is gone."""
        answer = await self.ask("PTTL", key)
        return max(0, answer) if isinstance(answer, int) else 0

    async def histories(self) -> list[Entry]:
        """What happened to every lock of this database, oldest first."""
        found: list[Entry] = []
        for key in sorted(await self._keys("lockguard:{*}:history")):
            resource = key.removeprefix("lockguard:{").removesuffix("}:history")
            lines = [_LINE.fullmatch(str(line)) for line in _listed(await self.ask("LRANGE", key, "0", "-1"))]
            found += [_entry(resource, line) for line in reversed(lines) if line is not None]
        return sorted(found, key=lambda entry: entry.at_ms)

    async def _keys(self, pattern: str) -> set[str]:
        keys: set[str] = set()
        cursor = "0"
        while True:
            cursor_reply, page = _listed(await self.ask("SCAN", cursor, "MATCH", pattern, "COUNT", _COUNT))
            keys |= {str(key) for key in _listed(page)}
            cursor = str(cursor_reply)
            if cursor == "0":
                return keys

    async def _reply(self) -> Reply:
        line = (await self._reader.readuntil(b"\r\n"))[:-2].decode()
        kind, rest = line[:1], line[1:]
        match kind:
            case "+":
                return rest
            case ":":
                return int(rest)
            case "$" if rest != "-1":
                return (await self._reader.readexactly(int(rest) + 2))[:-2].decode(errors="replace")
            case "*" if rest != "-1":
                return [await self._reply() for _ in range(int(rest))]
            case "$" | "*":
                return None
            case _:
                raise ConnectionError(f"Redis answered {line}")


def _entry(resource: str, line: re.Match[str]) -> Entry:
    fields = {name: text for name, text in line.groupdict().items() if text is not None}
    return Entry(resource, int(fields.pop("at_us")) // 1000, fields)


def _listed(reply: Reply) -> list[Reply]:
    assert isinstance(reply, list)
    return reply


@asynccontextmanager
async def peek(url: str) -> AsyncIterator[Peek]:
    """Connect with the URL's password, to the database that it names."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        looking = Peek(reader, writer)
        if parts.password:
            await looking.ask("AUTH", unquote(parts.password))
        await looking.ask("SELECT", parts.path.strip("/") or "0")
        yield looking
    finally:
        writer.close()
        await writer.wait_closed()
