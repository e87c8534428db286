"""The examples of the pages, as processes of their own on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

from lockguard_lab.child_process import signal_child
from lockguard_lab.exchange import LOCAL_API_KEY, LOCAL_SECRET

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
RUNNER = Path(__file__).parent / "example_runner.py"
PATIENCE_S = 60


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, such as what another process has said."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


class Example:
    """A running example and the lines that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid
        self.lines: list[str] = []
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode(errors="replace").rstrip())

    def said(self, text: str) -> int:
        """How many of its lines contain ``text``."""
        return sum(text in line for line in self.lines)

    async def says(self, text: str, times: int = 1) -> None:
        """Wait until so many of its lines contain ``text``; it must not end before."""
        await until(lambda: self.said(text) >= times or self._listening.done())
        assert self.said(text) >= times, "\n".join(self.lines)

    async def ended(self) -> int:
        """Wait for its end; returns the exit code."""
        async with asyncio.timeout(PATIENCE_S):
            await self._listening
            return await self.process.wait()

    async def stop(self) -> None:
        """SIGSTOP: it stops running, as on a machine that swaps or sleeps."""
        signal_child(self.process, signal.SIGSTOP)
        inside = psutil.Process(self.pid)
        await until(lambda: inside.status() == psutil.STATUS_STOPPED)

    def tell(self, number: signal.Signals) -> None:
        signal_child(self.process, number)

    async def kill(self) -> None:
        """SIGKILL, and the processes that it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children(recursive=True):
                child.kill()
        signal_child(self.process, signal.SIGKILL)
        await self.ended()


class Stage:
    """Servers, and the examples that run on them. Leaving it ends the examples."""

    def __init__(self, redis_url: str, database_url: str = "", exchange_url: str = "") -> None:
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LOCKGUARD_")},
            "PYTHONUNBUFFERED": "1",
            "LOCKGUARD_REDIS_URL": redis_url,
            "LOCKGUARD_DATABASE_URL": database_url,
            "LOCKGUARD_EXCHANGE_URL": exchange_url,
            "LOCKGUARD_EXCHANGE_API_KEY": LOCAL_API_KEY,
            "LOCKGUARD_EXCHANGE_SECRET": LOCAL_SECRET,
        }
        self._running: list[Example] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for example in self._running:
            await example.kill()
            print(f"--- process {example.pid}", *example.lines, sep="\n")  # shown if the test fails

    async def run(self, *words: str | Path, **environment: str) -> Example:
        """Start a command, such as a worker that imports an example."""
        process = await asyncio.create_subprocess_exec(
            *map(str, words),
            cwd=EXAMPLES,
            env=self.environment | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._running.append(Example(process))
        return self._running[-1]

    async def example(self, name: str, *words: str, **environment: str) -> Example:
        """Start an example as a program."""
        return await self.run(sys.executable, RUNNER, EXAMPLES / name, *words, **environment)
