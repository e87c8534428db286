"""The bot processes of the third act, from the demo's side: start, talk, stop, continue, end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import psutil

from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from types import TracebackType

    from lockguard_lab.demo.parts import Part

__all__ = ["Actor"]

_PATIENCE_S = 30.0
_STOPPED_S = 5.0
_POLL_S = 0.002
_LAST_WORDS = 30


class Actor:
    """One bot process; an async context manager that leaves none behind, stopped or not.

    Args:
        module: which one.
        part: what it is told.
    """

    def __init__(self, module: str, part: Part) -> None:
        self._module = module
        self._part = part
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._hearing: asyncio.Task[None] | None = None
        self._started: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._started = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", self._module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is the demo's business, which then ends its processes.
            process_group=0,
        )
        self._hearing = asyncio.create_task(self._hear_last_words())
        await self.tell(self._part.encode())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # works on a stopped one too
        await asyncio.shield(self._process.wait())
        if self._hearing is not None:
            self._hearing.cancel()

    async def tell(self, line: str) -> None:
        """Give it one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        with contextlib.suppress(ConnectionError):  # that it has ended shows when it is asked
            await self._process.stdin.drain()

    async def expect(self, word: str) -> Any:
        """The fact that it tells next.

        Raises:
            ConfigurationError: it told something else, or ended, or nothing came.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ConfigurationError(
                f"{self._module} said nothing for {_PATIENCE_S:g} s; is the machine very busy? Try again"
            ) from None
        if not line:
            code, last = await self.ended()
            raise ConfigurationError(f"{self._module} ended with {code}: {last or 'it said nothing'}")
        facts = json.loads(line)
        if word not in facts:
            raise ConfigurationError(f"{self._module} said {', '.join(facts)} instead of {word}")
        return facts[word]

    async def ended(self) -> tuple[int, str]:
        """Wait for its end: the exit code, and the last line that it left."""
        code = await asyncio.wait_for(self._process.wait(), _PATIENCE_S)
        if self._hearing is not None:
            await asyncio.wait({self._hearing}, timeout=1)
        return code, next((line for line in reversed(self._last_words) if line.strip()), "")

    async def stop(self) -> None:
        """SIGSTOP; returns when the kernel shows it as stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        process = psutil.Process(self.pid)
        async with asyncio.timeout(_STOPPED_S):
            while process.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(_POLL_S)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def _process(self) -> asyncio.subprocess.Process:
        assert self._started is not None
        return self._started

    async def _hear_last_words(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._last_words.append(line.decode(errors="replace").rstrip())
