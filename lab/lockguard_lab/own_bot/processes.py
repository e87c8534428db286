"""The bot's processes: their standard input takes signals, and their lines are kept."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Self

import psutil

from lockguard.errors import ConfigurationError
from lockguard_lab.child_process import signal_child, start_program

__all__ = ["BotProcess", "until"]

_PATIENCE_S = 90.0
_POLL_S = 0.005
_LAST_LINES = 20


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Wait for a condition, such as the state of another process.

    Raises:
        ConfigurationError: it did not come about.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                answer = condition()
                if answer if isinstance(answer, bool) else await answer:
                    return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise ConfigurationError(f"{what}: not within {_PATIENCE_S:g} s; is the machine very busy?") from None


class BotProcess:
    """One bot's process, which is killed when the ``async with`` block is left.

    Args:
        file: the bot.
        environment: added to that of this process.
    """

    def __init__(self, file: Path, environment: Mapping[str, str]) -> None:
        self._file = file.resolve()
        self._environment = {**os.environ, **environment}
        self._started: tuple[asyncio.subprocess.Process, asyncio.Task[None]] | None = None
        self.lines: list[str] = []

    async def __aenter__(self) -> Self:
        process = await start_program(
            (sys.executable, "-m", "lockguard_lab.own_bot.runner", str(self._file)),
            folder=self._file.parent,
            output=asyncio.subprocess.PIPE,
            environment=self._environment,
            takes_input=True,
        )
        self._started = process, asyncio.create_task(self._listen(process))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.kill()

    @property
    def _process(self) -> asyncio.subprocess.Process:
        assert self._started is not None
        return self._started[0]

    @property
    def runs(self) -> bool:
        """Whether it has not ended; it may be stopped."""
        return self._started is not None and self._process.returncode is None

    def said(self, text: str) -> int:
        """How many of its lines contain ``text``."""
        return sum(text in line for line in self.lines)

    async def says(self, text: str, times: int = 1) -> None:
        """Wait until so many of its lines contain ``text``.

        Raises:
            ConfigurationError: it ended first, or took too long.
        """

        def has_said() -> bool:
            if self.said(text) < times and not self.runs:
                last = "\n".join(self.lines[-_LAST_LINES:])
                raise ConfigurationError(f"the bot {self._file} ended: {last}")
            return self.said(text) >= times

        await until(has_said, f"the bot's line {text!r}")

    def tell(self, line: str) -> None:
        """Give it a signal."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def end(self) -> None:
        """Close its standard input, and wait until it has handled what it was given."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await until(lambda: not self.runs, "the end of a bot")

    async def stop(self) -> None:
        """SIGSTOP; returns when the kernel shows it as stopped."""
        signal_child(self._process, signal.SIGSTOP)
        inside = psutil.Process(self._process.pid)
        await until(lambda: inside.status() == psutil.STATUS_STOPPED, "a bot's stop")

    def resume(self) -> None:
        """SIGCONT."""
        signal_child(self._process, signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL, which works on a stopped process too."""
        assert self._started is not None
        signal_child(self._process, signal.SIGKILL)
        await self._process.wait()
        await self._started[1]

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self.lines.append(line.decode(errors="replace").rstrip())
