"""The interface of a signal source, and files with one signal per line.

A file is read from its beginning at each start: signals decided before are recognised by their ids.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias

from lockguard.errors import ConfigurationError
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_bot._signals import LINE_BYTES_MAX, BadSignal, Signal, Unread, read_line
from lockguard_bot._stopping import unless_stopped

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Delivery", "FileSource", "Readings", "SignalSource", "nothing_to_settle"]


_LOG = logging.getLogger("lockguard.bot")
_KEY_CHARS = 32


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery of a signal.

    Attributes:
        where: the origin of the signal, for messages.
        signal: the signal, or why it cannot be parsed.
        settle: awaited at the end, with ``True`` if the signal need not be delivered again and with ``False``
            if it is left to another delivery.
        returns: whether an undecided signal will be delivered again.
        understood: awaited once the signal's resource is known; a process that dies earlier counts as killed
            by reading the signal.
    """

    where: str
    signal: Signal | BadSignal
    settle: Callable[[bool], Awaitable[None]]
    returns: bool
    understood: Callable[[], Awaitable[None]] = field(default_factory=lambda: _nothing)


class SignalSource(Protocol):
    """Delivers signals one at a time."""

    async def next(self, stopping: asyncio.Event) -> Delivery | None:
        """The next delivery; ``None`` when there are no more, or when stopping begins."""
        ...


_Line: TypeAlias = "tuple[int, bytes] | OSError | None"


class Readings(Protocol):
    """A record of which bot is reading which line; it outlives a bot that dies while reading."""

    async def begin_reading(self, line: str) -> int:
        """Record that this bot is reading a line; returns how many bots died while reading it."""
        ...

    async def end_reading(self, line: str) -> None:
        """Record that a line was read, and forget the bots that died while reading it."""
        ...


class FileSource:
    """The lines of a file, a pipe or the standard input (``-``).

    Reads block, and a pipe may stay silent for ever, so they are made in a daemon thread, which the process
    does not wait for at exit.

    Args:
        name: the file's path, or ``-``.
        readings: the record of which bot reads which line; without it, a line may kill one bot after another.
        ends_max: how many bots may die while reading a line before it is set aside unread.
    """

    def __init__(self, name: str, readings: Readings | None = None, *, ends_max: int = 2) -> None:
        self._name = name
        self._readings = readings
        self._ends_max = ends_max
        self._shown = "standard input" if name == "-" else name
        self._lines: asyncio.Queue[_Line] = asyncio.Queue(1)
        self._reader: threading.Thread | None = None

    async def next(self, stopping: asyncio.Event) -> Delivery | None:
        """The next line that is not blank.

        Raises:
            ConfigurationError: the file cannot be read.
        """
        if self._reader is None:
            self._reader = threading.Thread(
                target=self._read, args=(asyncio.get_running_loop(),), daemon=True
            )
            self._reader.start()
        while True:
            found = await unless_stopped(stopping, self._lines.get())
            if found is None:
                return None
            if isinstance(found, OSError):
                raise ConfigurationError(f"signals {self._shown} cannot be read: {found.strerror}") from found
            number, line = found
            if line.strip():
                return await self._delivery(line, f"{self._shown} line {number}")

    async def _delivery(self, line: bytes, where: str) -> Delivery:
        key = hashlib.sha256(line.strip()).hexdigest()[:_KEY_CHARS]
        if self._readings is None or (ended := await self._begin(self._readings, key, where)) is None:
            return Delivery(where, _parsed(line, where), nothing_to_settle, returns=False)
        if ended >= self._ends_max:
            told = (
                f"{where}: set aside unread, as {ended} bots ended while they read it, by it or killed from"
                " outside; look at it, and write it anew"
            )
            return Delivery(where, Unread(told), nothing_to_settle, returns=False)
        readings, reading = self._readings, True

        async def understood() -> None:
            nonlocal reading
            if not reading:
                return
            reading = False
            try:
                await readings.end_reading(key)
            except DATABASE_ERRORS as exc:
                _LOG.warning("%s is still counted as being read: %s", where, exc)

        async def settle(decided: bool) -> None:  # noqa: ARG001, FBT001 - Delivery's signature
            await understood()

        return Delivery(where, _parsed(line, where), settle, returns=False, understood=understood)

    @staticmethod
    async def _begin(readings: Readings, key: str, where: str) -> int | None:
        try:
            return await readings.begin_reading(key)
        except DATABASE_ERRORS as exc:
            _LOG.warning("bots that end while they read %s are not counted: %s", where, exc)
            return None

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        def hand_over(item: _Line) -> None:
            asyncio.run_coroutine_threadsafe(self._lines.put(item), loop).result()

        try:
            # Not sys.stdin: a thread blocked while holding its lock would abort the interpreter at exit.
            with (
                open(sys.stdin.fileno(), "rb", closefd=False)
                if self._name == "-"
                else Path(self._name).open("rb")
            ) as file:
                for number, line in enumerate(iter(lambda: _line_of(file), b""), 1):
                    hand_over((number, line))
            hand_over(None)
        except OSError as exc:
            hand_over(exc)
        except (RuntimeError, CancelledError):
            return  # the event loop is closed


def _line_of(file: IO[bytes]) -> bytes:
    """The next line, cut at ``LINE_BYTES_MAX``; the rest of a longer one is skipped."""
    line = file.readline(LINE_BYTES_MAX)
    rest = line
    while len(rest) == LINE_BYTES_MAX and not rest.endswith(b"\n"):
        rest = file.readline(LINE_BYTES_MAX)
    return line


def _parsed(line: bytes, where: str) -> Signal | BadSignal:
    try:
        return read_line(line, where=where)
    except BadSignal as exc:
        return exc
    except Exception as exc:  # noqa: BLE001 - one line must not end the bot, nor block the lines after it
        return BadSignal(f"{where}: cannot be read ({type(exc).__name__}); write one JSON object a line")


async def nothing_to_settle(decided: bool) -> None:  # noqa: FBT001 - Delivery's signature
    """Do nothing: a file keeps its lines, so there is nothing to acknowledge."""


async def _nothing() -> None:
    pass
