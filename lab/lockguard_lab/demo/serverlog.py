"""Reads from Postgres's own log that the late writes arrived, and that it refused them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockguard_lab.demo.holder import APPLICATION

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LINE_PREFIX", "LateWrite", "RefusedWrite", "arrived", "refused"]

LINE_PREFIX = "%n|%a|%e|"
"""The server's setting ``log_line_prefix``: time, application, SQLSTATE."""

STALE = "LG001"

_LINE = re.compile(r"^(?P<at>\d+)\.?(?P<ms>\d{3})?\|(?P<app>[^|]*)\|(?P<state>[^|]*)\|(?P<text>.*)$")
_STALE = re.compile(
    r"stale token for (?P<resource>.+): presented (?P<presented>\d+), current (?P<current>\d+)"
)
_SENT = re.compile(r"statement: begin;.*update monitoring\.positions")


@dataclass(frozen=True, slots=True)
class LateWrite:
    """The arrival of a stopped holder's write at the server.

    Attributes:
        at_ms: the time by the server's clock, in milliseconds since 1970.
    """

    at_ms: float


@dataclass(frozen=True, slots=True)
class RefusedWrite:
    """The server's refusal of such a write.

    Attributes:
        at_ms: the time by the server's clock, in milliseconds since 1970.
        presented: the token that the write carried.
        current: the token in force.
        text: the server's error text.
    """

    at_ms: float
    resource: str
    presented: int
    current: int
    sqlstate: str
    text: str


def arrived(log: str) -> list[LateWrite]:
    """Every write of a stopped holder that the server received."""
    return [LateWrite(at_ms) for at_ms, _, text in _lines(log) if _SENT.search(text)]


def refused(log: str) -> list[RefusedWrite]:
    """Every write of a stopped holder that the server refused as stale."""
    found = []
    for at_ms, state, text in _lines(log):
        match = _STALE.search(text)
        if state == STALE and match is not None:
            found.append(
                RefusedWrite(
                    at_ms=at_ms,
                    resource=match["resource"],
                    presented=int(match["presented"]),
                    current=int(match["current"]),
                    sqlstate=state,
                    text=match[0],
                )
            )
    return found


def _lines(log: str) -> Iterator[tuple[float, str, str]]:
    for line in log.splitlines():
        match = _LINE.match(line)
        if match is not None and match["app"] == APPLICATION:
            yield int(match["at"]) * 1000.0 + int(match["ms"] or 0), match["state"], match["text"]
