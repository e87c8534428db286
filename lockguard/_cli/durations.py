"""Lengths of time as a command takes them, a whole number and its unit, and as it shows them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import click

__all__ = ["Duration", "span"]

_UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}


if TYPE_CHECKING:
    _Length: TypeAlias = click.ParamType[timedelta]
else:
    _Length = click.ParamType  # generic in newer versions only


class Duration(_Length):
    """A length of time, such as ``90s`` or ``12w``.

    Args:
        name: what it is called in errors.
        units: the units that may be given, such as ``"dw"``.
        remedy: what to write instead, with an example.
        least: the shortest length that is accepted.
    """

    def __init__(self, name: str, units: str, remedy: str, *, least: timedelta = timedelta()) -> None:
        self.name = name
        self._units = units
        self._remedy = remedy
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The length that ``value`` names; fails if it is malformed or too short."""
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(rf"([0-9]{{1,5}})([{self._units}])", str(value).strip())
        length = None if found is None else int(found[1]) * _UNITS[found[2]]
        if length is None or length < self._least:
            self.fail(f"{value!r} is no {self.name}; {self._remedy}", param, ctx)
        return length


def span(ms: int) -> str:
    """A length of time for display, such as ``1.5 s`` or ``0:02:05``."""
    if ms < 60_000:
        return f"{ms / 1000:.3g} s"
    return str(timedelta(seconds=ms // 1000))
