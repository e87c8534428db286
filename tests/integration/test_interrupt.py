"""Ctrl-C and SIGTERM, at instants spread over the whole life of a command: counted in calls, and not timed.

Run as a program, this file is that command: once for each instant, in a fork of its own.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from lockguard import _interrupt as interrupt

INSTANTS = 25
TOLD = "lockguard: interrupted\n"


@dataclass(frozen=True)
class End:
    """How one run ended."""

    at: int
    code: int
    err: str


class Ticks:
    """Counts calls in one process, in memory that its parent sees, and sends a signal at each of some."""

    def __init__(self) -> None:
        self.count = memoryview(mmap.mmap(-1, 8)).cast("Q")

    def send(self, at: set[int], number: int) -> None:
        self.count[0] = 0

        def tick(_frame: object, event: str, _arg: object) -> None:
            if event == "call":
                self.count[0] += 1
                if self.count[0] in at:
                    os.kill(os.getpid(), number)

        sys.setprofile(tick)


def run_each(arguments: list[str], number: int, *, times: int, answer: int) -> None:
    """Fork for each instant; only a child returns, to go on as the command."""
    ticks, ends = Ticks(), []
    total = 0
    for turn in range(INSTANTS + 1):  # in the first one nothing is sent
        at = set() if turn == 0 else {total * turn // (INSTANTS + 1) + i * total // 50 for i in range(times)}
        with tempfile.TemporaryFile("w+") as told:
            pid = os.fork()
            if pid == 0:
                os.dup2(told.fileno(), 2)
                sys.argv = ["lockguard", *arguments]
                ticks.send(at, number)
                return
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            told.seek(0)
            ends.append(vars(End(min(at, default=0), code, told.read())))
        if turn == 0:
            total = ticks.count[0]
    with os.fdopen(answer, "w") as told:
        json.dump(ends, told)
    os._exit(0)


def ends(arguments: list[str], number: int, *, times: int = 1, ignore: bool = False) -> list[End]:
    """How the command ended, by the instant of the signal; the first end is one without a signal."""
    told, write = os.pipe()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignore else signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, __file__, json.dumps([arguments, int(number), times, write])],
            stdout=subprocess.DEVNULL,
            pass_fds=[write],
        )
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(write)
    with os.fdopen(told) as reading:
        text = reading.read()
    assert process.wait() == 0
    return [End(**end) for end in json.loads(text)]


def judged(found: list[End]) -> list[End]:
    """Ends that are not right: interrupted, in one line; or done, where the signal came too late for that."""
    first, *others = found
    assert (first.code, first.err) == (0, "")
    assert sum(end.code == 130 for end in others) > len(others) / 2
    return [end for end in others if (end.code, end.err.lstrip("\n")) not in ((130, TOLD), (0, ""))]


def test_a_command_that_is_interrupted_ends_in_one_line_whenever_that_is(redis_url):
    assert judged(ends(["inspect", "binance:APTUSDT", "--redis", redis_url], signal.SIGINT)) == []


def test_a_command_in_the_background_is_interrupted_by_sigterm_in_the_same_way(redis_url):
    found = ends(["inspect", "binance:APTUSDT", "--redis", redis_url], signal.SIGTERM, ignore=True)
    assert judged(found) == []


def test_who_insists_is_told_in_one_line_too(redis_url):
    assert judged(ends(["inspect", "binance:APTUSDT", "--redis", redis_url], signal.SIGINT, times=2)) == []


def test_an_interrupt_is_not_lost_in_a_destructor_nor_between_two_loops():
    assert judged(ends(["hazards"], signal.SIGINT)) == []


def test_a_hang_up_ends_a_command_without_a_word_whenever_that_is(redis_url):
    """Its terminal is gone; a lock that it held ends with its ttl."""
    first, *others = ends(["inspect", "binance:APTUSDT", "--redis", redis_url], signal.SIGHUP)
    assert (first.code, first.err) == (0, "")
    assert {(end.code, end.err) for end in others} <= {(-signal.SIGHUP, ""), (0, "")}
    assert sum(end.code == -signal.SIGHUP for end in others) > len(others) / 2


WHILE_IMPORTED = """
import os, signal, sys

when, number, entry = sys.argv[1], int(sys.argv[2]), sys.argv[3]

class Interrupting:
    def find_spec(self, name, *_):
        if name == when:
            os.kill(os.getpid(), number)

sys.argv[1:] = ["inspect", "x"]
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
module, _, function = entry.partition(":")
getattr(__import__(module, fromlist=[function]), function)()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["lockguard", "asyncio", "redis", "click", "lockguard._cli.app"])
def test_a_command_is_interrupted_in_one_line_while_it_is_imported(when, number):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    arguments = (when, str(int(number)), project["project"]["scripts"]["lockguard"])
    ended = subprocess.run(
        [sys.executable, "-c", WHILE_IMPORTED, *arguments], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (interrupt.INTERRUPTED, "", TOLD)


class Loud:
    """Is busy while it is collected."""

    def __del__(self) -> None:
        for _ in range(5):
            judged.__repr__()
            Loud.__repr__(self)

    def __repr__(self) -> str:
        return "loud"


async def _work() -> None:
    async def wait() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            Loud()

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(wait())
    await asyncio.to_thread(Loud)


@click.command()
def hazards() -> None:
    """Everything in which an interrupt could be lost or printed."""
    for _ in range(3):
        interrupt.run(_work())
        for _ in range(10):
            Loud()


if __name__ == "__main__":
    from lockguard._cli import app, main

    app.lockguard.add_command(hazards)
    arguments_, number_, times_, answer_ = json.loads(sys.argv[1])
    run_each(arguments_, number_, times=times_, answer=answer_)
    main()
