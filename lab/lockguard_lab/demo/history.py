"""Reads Redis the way ``redis-cli`` does, and derives from a lock's history who held it when.

It does not use the guard's own connection: the demo shows what any client finds in Redis.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from redis.asyncio import Redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["HistoryLine", "Peek", "Tenure", "lock_key", "overlaps", "peek", "tenures"]

_COUNT = 1000

_LINE = re.compile(
    r"(?P<at_us>\d+) (?P<event>\w+)(?: token=(?P<token>\d+))? grant=(?P<grant>\w+)"
    r"(?: holder=(?P<holder>.*?) operation=(?P<operation>.*))?(?: reason=(?P<reason>.*))?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """One line of a resource's history.

    Attributes:
        at_ms: the time by the server's clock, in milliseconds since 1970.
        fields: the fields of the line.
    """

    resource: str
    at_ms: int
    fields: dict[str, str]


def lock_key(resource: str) -> str:
    """The Redis key of a resource's lock."""
    return f"lockguard:{{{resource}}}"


class Peek:
    """A plain Redis client for reading."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def hash(self, key: str) -> dict[str, str]:
        """``HGETALL``."""
        return {str(name): str(value) for name, value in (await self._client.hgetall(key)).items()}

    async def remaining_ms(self, key: str) -> int:
        """``PTTL``; 0 when the key is gone."""
        return max(0, await self._client.pttl(key))

    async def histories(self) -> list[HistoryLine]:
        """The history of every lock in this database, oldest first."""
        found: list[HistoryLine] = []
        keys = {str(key) async for key in self._client.scan_iter("lockguard:{*}:history", count=_COUNT)}
        for key in sorted(keys):
            resource = key.removeprefix("lockguard:{").removesuffix("}:history")
            lines = [_LINE.fullmatch(str(line)) for line in await self._client.lrange(key, 0, -1)]
            found += [_entry(resource, line) for line in reversed(lines) if line is not None]
        return sorted(found, key=lambda entry: entry.at_ms)


def _entry(resource: str, line: re.Match[str]) -> HistoryLine:
    fields = {name: text for name, text in line.groupdict().items() if text is not None}
    return HistoryLine(resource, int(fields.pop("at_us")) // 1000, fields)


@asynccontextmanager
async def peek(url: str) -> AsyncIterator[Peek]:
    """Connect with the URL's password to the database that it names."""
    async with Redis.from_url(url, decode_responses=True, encoding_errors="replace") as client:
        yield Peek(client)


_ENDINGS = frozenset({"released", "broken"})


@dataclass(frozen=True, slots=True)
class Tenure:
    """The time from a grant to its end.

    Attributes:
        holder: host, process and task.
        start_ms: when it was granted, in milliseconds since 1970.
        end_ms: when it ended, in milliseconds since 1970; ``None`` if no end is recorded yet.
        ending: ``released``, ``broken`` or ``expired``. An expiry is not recorded: the next grant shows it,
            and the tenure is taken to have ended then.
    """

    resource: str
    grant: str
    holder: str
    operation: str
    token: int
    start_ms: float
    end_ms: float | None = None
    ending: str = ""

    @property
    def pid(self) -> str:
        """The process id of the holder, as text."""
        return self.holder.partition(":")[2].partition("/")[0]


def tenures(history: Iterable[HistoryLine]) -> list[Tenure]:
    """Every grant in the history, ordered by its start."""
    found: dict[str, Tenure] = {}
    last: dict[str, str] = {}
    for entry in history:
        fields = entry.fields
        grant, event = fields.get("grant", ""), fields.get("event")
        if event == "granted":
            before = found.get(last.get(entry.resource, ""))
            if before is not None and before.end_ms is None:
                found[before.grant] = replace(before, end_ms=entry.at_ms, ending="expired")
            last[entry.resource] = grant
            found[grant] = Tenure(
                resource=entry.resource,
                grant=grant,
                holder=fields.get("holder", ""),
                operation=fields.get("operation", ""),
                token=int(fields.get("token", "0")),
                start_ms=entry.at_ms,
            )
        elif event in _ENDINGS and grant in found:
            found[grant] = replace(found[grant], end_ms=entry.at_ms, ending=event)
    return sorted(found.values(), key=lambda tenure: tenure.start_ms)


def overlaps(found: Iterable[Tenure]) -> int:
    """How many grants began while an earlier grant of the same lock had not ended."""
    until: dict[str, float] = {}
    count = 0
    for tenure in found:
        count += tenure.start_ms < until.get(tenure.resource, 0.0)
        until[tenure.resource] = tenure.start_ms if tenure.end_ms is None else tenure.end_ms
    return count
