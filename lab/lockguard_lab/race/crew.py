"""The processes of a race, from the parent's side."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from lockguard.errors import ConfigurationError
from lockguard_lab.race.settings import Crewman, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

__all__ = ["Crew"]

_MODULE = "lockguard_lab.race.worker"
_END_S = 5.0
_STDERR_LINES = 30


class _Process:
    """One process, and the lines that it says."""

    def __init__(
        self, crewman: Crewman, process: asyncio.subprocess.Process, on_progress: Callable[[int], None]
    ) -> None:
        self._crewman = crewman
        self._process = process
        self._on_progress = on_progress
        self._complaints: deque[str] = deque(maxlen=_STDERR_LINES)
        self._hearing = asyncio.create_task(self._hear_complaints())

    async def tell(self, message: dict[str, Any]) -> None:
        """Give an order."""
        await self.write(json.dumps(message))

    async def write(self, line: str) -> None:
        """Send one line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            raise await self._ended() from None

    async def expect(self, word: str) -> Any:
        """The value of the next line that says ``word``; progress is passed on meanwhile."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if word in message:
                return message[word]
            self._on_progress(int(message.get("progress", 0)))
        raise await self._ended()

    async def end(self) -> None:
        """Let it end; make it if it does not."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._hearing.cancel()

    def kill(self) -> None:
        """End it at once."""
        if self._process.returncode is None:
            self._process.kill()

    async def _hear_complaints(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._complaints.append(line.decode(errors="replace").rstrip())

    async def _ended(self) -> ConfigurationError:
        code = await self._process.wait()
        await asyncio.wait({self._hearing}, timeout=1)
        last = next((line for line in reversed(self._complaints) if line.strip()), "it said nothing")
        return ConfigurationError(
            f"process {self._crewman.number} of the race ({self._crewman.role}) ended with {code}: {last}"
        )


class Crew:
    """All processes of a race; an async context manager that leaves none behind.

    Args:
        crewmen: what each is told.
        on_progress: called with how many opens have ended since the last call.
    """

    def __init__(self, crewmen: Sequence[Crewman], on_progress: Callable[[int], None]) -> None:
        self._crewmen = crewmen
        self._on_progress = on_progress
        self._processes: list[_Process] = []

    async def __aenter__(self) -> Self:
        try:
            for crewman in self._crewmen:
                self._processes.append(await self._start(crewman))
            await asyncio.gather(*(process.expect("ready") for process in self._processes))
        except BaseException:
            await self._end(kill=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._end(kill=exc is not None)

    async def play(self, symbols: Sequence[str], seed: int) -> Report:
        """One round: all begin together; when all opens are over, the passes end."""
        total = Report()
        await self._tell_all({"do": "play", "symbols": list(symbols), "seed": seed})
        opening = await self._meet() if self._crewmen[0].settings.lined_up else self._processes
        await asyncio.gather(*(process.expect("opened") for process in opening))
        await self._tell_all({"do": "stop"})
        for report in await asyncio.gather(*(process.expect("report") for process in self._processes)):
            total.add(Report(**report))
        return total

    async def settle(self) -> Report:
        """Passes of one process, as any bot makes them, until nothing is in doubt."""
        last = self._processes[-1]
        await last.tell({"do": "settle"})
        return Report(**await last.expect("report"))

    async def _meet(self) -> list[_Process]:
        """Have a whole pass made while all opens wait at their phase; returns who goes on opening."""
        *openers, syncer = self._processes
        await syncer.expect("opened")  # it opens nothing
        await asyncio.gather(*(opener.expect("lined_up") for opener in openers))
        await syncer.tell({"do": "pass"})
        await syncer.expect("passed")
        await asyncio.gather(*(opener.tell({"do": "go"}) for opener in openers))
        return openers

    async def _tell_all(self, message: dict[str, Any]) -> None:
        await asyncio.gather(*(process.tell(message) for process in self._processes))

    async def _start(self, crewman: Crewman) -> _Process:
        # Settings travel by standard input: everybody can read the arguments of a process.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            _MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        started = _Process(crewman, process, self._on_progress)
        await started.write(crewman.encode())
        return started

    async def _end(self, *, kill: bool) -> None:
        if kill:
            for process in self._processes:
                process.kill()
        await asyncio.gather(*(process.end() for process in self._processes))
