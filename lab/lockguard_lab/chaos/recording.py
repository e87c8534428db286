"""The history of a round: what each process notes, and how it is read back.

Each process has a file with a line of JSON for each fact, written at once: a ``kill -9`` loses at most a line
that was not written yet. ``t`` is the time by the clock of :data:`lockguard._clock.SYSTEM_CLOCK`, in seconds,
which all processes of a machine share.

=============  =======================================================================================
``begin``      a call: its number, ``call``, ``resource``, ``pid``, ``t``, and what it was called with
``end``        its answer: the number, ``how``, ``t``, and what was answered
``renewed``    a lease was renewed: its grant, and the ``deadline`` until which its holder may trust it
``lost``       a lease ended under its holder: its grant, and the ``reason``
``stalled``    for so many seconds before ``t`` the process did not run
``fault``      a fault began: its number, ``kind`` and ``target``
``healed``     that fault is over
=============  =======================================================================================

The calls are ``acquire``, ``confirm``, ``release``, ``write``, ``break``, and ``bypass``, a write past the
fence that the judge must see. A call without an ``end`` was not answered, as when its process was killed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockguard._clock import SYSTEM_CLOCK

__all__ = ["Call", "FaultWindow", "History", "Recorder", "beat", "lines_of"]

_NUMBERS_EACH = 10**13
_BEAT_S = 0.02
_LATE_BEAT_S = 0.04


class Recorder:
    """Writes the history of one process.

    Args:
        path: the file; lines are appended.
        number: the number of the process: no two processes of a history share one.
    """

    def __init__(self, path: str, number: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":  # a kill cut the last line short
            os.write(self._file, b"\n")
        # A restarted process begins with numbers that were never used.
        first = number * _NUMBERS_EACH + int(SYSTEM_CLOCK.wall() * 1_000) % 10**9 * 10**4
        self._numbers = itertools.count(first)
        self._pid = os.getpid()

    def note(self, **facts: Any) -> None:
        """Write a line, of now unless ``t`` is given; once written it survives the process."""
        facts.setdefault("t", round(SYSTEM_CLOCK.now(), 6))
        os.write(self._file, json.dumps(facts).encode() + b"\n")

    def begin(self, call: str, resource: str, **facts: Any) -> int:
        """Note that a call is about to be made; returns its number."""
        number = next(self._numbers)
        self.note(begin=number, call=call, resource=resource, pid=self._pid, **facts)
        return number

    def end(self, number: int, how: str, **facts: Any) -> None:
        """Note the answer."""
        self.note(end=number, how=how, **facts)

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


async def beat(recorder: Recorder) -> None:
    """Note each time that this process did not run for a while, whoever kept it from it."""
    last = SYSTEM_CLOCK.now()
    while True:
        await asyncio.sleep(_BEAT_S)
        now = SYSTEM_CLOCK.now()
        if (late := now - last - _BEAT_S) > _LATE_BEAT_S:
            recorder.note(stalled=round(late + _BEAT_S, 6))
        last = now


@dataclass(slots=True)
class Call:
    """One call of a history.

    Attributes:
        number: its number.
        call: which.
        resource: on what.
        process: the name of the history's file.
        begin: when it was made, in seconds.
        end: when it was answered; infinity if it was not.
        how: the answer; empty if there is none.
        facts: what it was called with, and what was answered.
    """

    number: int
    call: str
    resource: str
    process: str
    begin: float
    end: float = math.inf
    how: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        token = f" with token {self.facts['token']}" if "token" in self.facts else ""
        ended = "unanswered" if self.end == math.inf else f"{self.how} at {self.end:.3f}"
        return f"{self.call} {self.resource}{token} by {self.process}, from {self.begin:.3f}, {ended}"


@dataclass(slots=True)
class FaultWindow:
    """A fault, while it lasted.

    Attributes:
        kind: which.
        target: the process, resource or server, for display.
        begin: from when.
        end: until when; infinity if it was not healed.
    """

    kind: str
    target: str
    begin: float
    end: float = math.inf


@dataclass(slots=True)
class History:
    """The history of a round, put together from the files of all processes.

    Attributes:
        calls: all calls, by number.
        renewed: for each grant, the times and deadlines of its renewals.
        lost: for each grant that was lost, when and why.
        stalled: for each process, the spans of time in which it did not run.
        faults: all faults, by number.
        lines: all lines, as they are.
        unreadable: for each process, how many lines are not whole, or answer a call that is not there.
    """

    calls: dict[int, Call] = field(default_factory=dict)
    renewed: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    lost: dict[str, tuple[float, str]] = field(default_factory=dict)
    stalled: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    faults: dict[int, FaultWindow] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    unreadable: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, paths: Iterable[Path]) -> History:
        """Put the files together."""
        history = cls()
        for path in paths:
            lines, history.unreadable[path.stem] = _parsed(path)
            for line in lines:
                history.add(path.stem, line)
        return history

    def add(self, process: str, line: dict[str, Any]) -> None:
        """Add one line of a process."""
        self.lines.append(line)
        match line:
            case {"begin": number, "call": call, "resource": resource, "t": at, **facts}:
                self.calls[number] = Call(number, call, resource, process, at, facts=facts)
            case {"end": number, "how": how, "t": at, **facts} if number in self.calls:
                call = self.calls[number]
                call.end, call.how = at, how
                call.facts.update(facts)
            case {"renewed": grant, "deadline": deadline, "t": at}:
                self.renewed.setdefault(grant, []).append((at, deadline))
            case {"lost": grant, "reason": reason, "t": at}:
                self.lost.setdefault(grant, (at, reason))
            case {"stalled": seconds, "t": at}:
                self.stalled.setdefault(process, []).append((at - seconds, at))
            case {"fault": number, "kind": kind, "target": target, "t": at}:
                self.faults[number] = FaultWindow(kind, target, at)
            case {"healed": number, "t": at} if number in self.faults:
                self.faults[number].end = at
            case {"end": _} | {"healed": _}:
                self.unreadable[process] += 1  # what it answers is gone

    def made(self, call: str) -> Iterator[Call]:
        """All calls of a kind."""
        return (each for each in self.calls.values() if each.call == call)

    @property
    def over(self) -> float:
        """The last time of the history."""
        return max((line["t"] for line in self.lines if "t" in line), default=0.0)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; one that was cut short by a kill is left out.

    Raises:
        OSError: the file cannot be read.
    """
    return _parsed(path)[0]


def _parsed(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a file, and how many more there are that cannot be read."""
    found, unreadable = [], 0
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            found += [line] if line else []
        else:
            unreadable += 1
    return found, unreadable
