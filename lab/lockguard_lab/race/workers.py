"""The parent's side of a race's processes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from lockguard_lab.child_process import Child
from lockguard_lab.race.settings import Report, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

__all__ = ["Workers"]

_MODULE = "lockguard_lab.race.worker"


class Workers:
    """All processes of a race; an async context manager that leaves none behind.

    Args:
        specs: the instructions of each process.
        on_progress: called with how many opens have ended since the last call.
    """

    def __init__(self, specs: Sequence[WorkerSpec], on_progress: Callable[[int], None]) -> None:
        self._specs = specs
        self._on_progress = on_progress
        self._processes: list[Child] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for spec in self._specs:
                name = f"process {spec.number} of the race ({spec.role})"
                process = await stack.enter_async_context(Child(_MODULE, name=name))
                await process.write(spec.encode())
                self._processes.append(process)
            await asyncio.gather(*(self._expect(process, "ready") for process in self._processes))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, exc, traceback)

    async def play(self, symbols: Sequence[str], seed: int) -> Report:
        """Play one round: all processes begin together; when all opens are over, the passes end."""
        total = Report()
        await self._tell_all({"do": "play", "symbols": list(symbols), "seed": seed})
        opening = await self._meet() if self._specs[0].settings.lined_up else self._processes
        await asyncio.gather(*(self._expect(process, "opened") for process in opening))
        await self._tell_all({"do": "stop"})
        reports = await asyncio.gather(*(self._expect(process, "report") for process in self._processes))
        for report in reports:
            total.add(Report(**report))
        return total

    async def settle(self) -> Report:
        """Have one process make passes, as any bot does, until nothing is in doubt."""
        last = self._processes[-1]
        await last.tell({"do": "settle"})
        return Report(**await self._expect(last, "report"))

    async def _meet(self) -> list[Child]:
        """Have a complete pass made while all opens wait at their phase; returns the processes that go on."""
        *openers, syncer = self._processes
        await self._expect(syncer, "opened")  # it opens nothing
        await asyncio.gather(*(self._expect(opener, "lined_up") for opener in openers))
        await syncer.tell({"do": "pass"})
        await self._expect(syncer, "passed")
        await asyncio.gather(*(opener.tell({"do": "go"}) for opener in openers))
        return openers

    async def _expect(self, process: Child, word: str) -> Any:
        """The value of the next line that says ``word``; progress is reported meanwhile."""
        while word not in (facts := await process.hear()):
            self._on_progress(int(facts.get("progress", 0)))
        return facts[word]

    async def _tell_all(self, message: dict[str, Any]) -> None:
        await asyncio.gather(*(process.tell(message) for process in self._processes))
