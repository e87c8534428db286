"""One process of a race: ``python -m lockguard_lab.race.worker``.

The first line of its standard input has its instructions. It says ``ready`` when it is connected, then
plays one round for each further line. It ends when its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import asyncpg

from lockguard import LeaseLost, ResourceBusy, StaleToken
from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.child_process import begin_as_child, open_input, say
from lockguard_lab.naive import SETTLEMENT
from lockguard_lab.race.bot import Bot, Refusals, set_up
from lockguard_lab.race.logs import RaceLog
from lockguard_lab.race.phase import Line
from lockguard_lab.race.settings import Report, Role, WorkerSpec
from lockguard_positions._errors import DuplicatePosition

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["main"]

_PASS_GAP_S = 0.005
_PASS_GAP_RANDOM_S = 10.0
"""The average time between occasional passes, at time scale 1."""
_SETTLE_GAP_S = 0.1
_SETTLE_S_MAX = 20.0
_LANES: dict[Role, int] = {"opener": 0, "syncer": 3, "cleaner": 1, "both": 1}
"""How many loops of passes a process runs; several, so that some pass meets each phase of an open."""


class _Player:
    """Plays the rounds of one process."""

    def __init__(self, spec: WorkerSpec, bot: Bot, refusals: Refusals, line: Line | None) -> None:
        self._spec = spec
        self._bot = bot
        self._refusals = refusals
        self._line = line
        self._report = Report()
        self.stopping = asyncio.Event()

    async def play(self, symbols: list[str], seed: int) -> Report:
        """Play one round; passes go on until :attr:`stopping` is set."""
        self.stopping.clear()
        report = self._report = Report()
        role = self._spec.role
        action = self._bot.clean_up if self._spec.settings.scenario == "D" else self._bot.sync
        async with asyncio.TaskGroup() as group:
            for lane in range(self._lanes):
                group.create_task(self._repeat(action, report, random.Random(f"{seed}/pass/{lane}")))  # noqa: S311
            if role in {"opener", "both"}:
                await self._open_all(symbols, seed, report)
            say({"opened": True})
            await self.stopping.wait()
        return self._with_refusals(report)

    async def make_pass(self) -> None:
        """Make one pass while opens wait at their phase."""
        await self._tell(self._bot.sync(self._report), self._report)
        say({"passed": True})

    def go(self) -> None:
        """Let the opens that wait at their phase go on."""
        if self._line is not None:
            self._line.go()

    @property
    def _lanes(self) -> int:
        match self._spec.settings.phase:
            case "all":
                return _LANES[self._spec.role]
            case "random":
                return min(1, _LANES[self._spec.role])
            case _:
                return 0

    async def settle(self) -> Report:
        """Make passes after the race, as any bot does, until one leaves nothing in doubt."""
        report = Report()
        until = SYSTEM_CLOCK.now() + _SETTLE_S_MAX
        while True:
            await self._tell(self._bot.sync(report), report)
            if self._bot.settled or SYSTEM_CLOCK.now() >= until:
                return self._with_refusals(report)
            await asyncio.sleep(_SETTLE_GAP_S)

    def _with_refusals(self, report: Report) -> Report:
        report.stale_refused, self._refusals.count = self._refusals.count, 0
        return report

    async def _open_all(self, symbols: list[str], seed: int, report: Report) -> None:
        mine = self._share(symbols)
        async with asyncio.TaskGroup() as group:
            if self._line is not None:
                self._line.begin(len(mine))
                group.create_task(self._line_up(self._line))
            for thread in range(self._threads_per_symbol):
                delays_s = self._delays_s(len(mine), seed, thread)
                for symbol, delay_s in zip(mine, delays_s, strict=True):
                    group.create_task(self._open_one(self._bot.unified(symbol), delay_s, report))

    @property
    def _threads_per_symbol(self) -> int:
        settings = self._spec.settings
        return 1 if settings.scenario in {"B", "D"} else settings.threads

    def _share(self, symbols: list[str]) -> list[str]:
        settings, number = self._spec.settings, self._spec.number
        if settings.scenario in {"B", "D"}:
            return symbols[number :: max(1, settings.processes - 1)]
        return symbols

    def _delays_s(self, count: int, seed: int, thread: int) -> list[float]:
        settings, number = self._spec.settings, self._spec.number
        together = settings.scenario in {"A", "C"}
        dice = random.Random(f"{seed}" if together else f"{seed}/{number}/{thread}")  # noqa: S311 - a schedule
        stagger_s = settings.stagger_ms / 1000
        at_once = settings.threads // self._threads_per_symbol
        delays = [stagger_s * (i // at_once + dice.random()) for i in range(count)]
        if settings.scenario == "stress":
            dice.shuffle(delays)
        if settings.scenario == "C":
            # By then the first process is at its rollback, or just before it.
            waited_s = 0.0 if settings.guard else SETTLEMENT.total_seconds() * settings.time_scale
            turn = number if settings.processes > 1 else thread
            late_s = turn * (waited_s + 2.5 * settings.latency_ms / 1000)
            return [delay + late_s for delay in delays]
        return delays

    async def _open_one(self, symbol: str, delay_s: float, report: Report) -> None:
        await asyncio.sleep(delay_s)
        await self._tell(self._bot.open(symbol, report), report, symbol)
        if self._line is not None:
            self._line.over(symbol)
        say({"progress": 1})

    async def _line_up(self, line: Line) -> None:
        await line.full()
        say({"lined_up": True})

    async def _repeat(
        self, action: Callable[[Report], Awaitable[None]], report: Report, dice: random.Random
    ) -> None:
        settings = self._spec.settings
        random_s = 2 * _PASS_GAP_RANDOM_S * settings.time_scale
        while not self.stopping.is_set():
            gap_s = dice.uniform(0, random_s) if settings.phase == "random" else _PASS_GAP_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), gap_s)
                return
            await self._tell(action(report), report)

    async def _tell(self, action: Awaitable[None], report: Report, symbol: str = "") -> None:
        """Await ``action`` and report how it ended: an error does not stop the race."""
        try:
            await action
        except ResourceBusy:
            report.refused += 1
        except (LeaseLost, StaleToken):
            pass  # another process finishes the open
        except (DuplicatePosition, asyncpg.UniqueViolationError):
            report.violations.append(symbol)
        except Exception as exc:  # noqa: BLE001 - whatever it was belongs in the result
            report.errors.append(f"{symbol}: {type(exc).__name__}: {exc}"[:300])


async def _run() -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    listening = asyncio.create_task(_listen(lines))
    spec = WorkerSpec.decode(await lines.get())
    async with AsyncExitStack() as stack:
        refusals = Refusals()
        settings = spec.settings
        line = Line(settings.phase) if settings.lined_up and spec.role == "opener" else None
        player = _Player(spec, await set_up(stack, spec, refusals, line), refusals, line)
        say({"ready": True})
        log = RaceLog(settings.log_folder, spec.number)
        playing: asyncio.Task[Report] | None = None
        while True:
            command = json.loads(await lines.get())
            match command["do"]:
                case "play":
                    log.begin_round()
                    playing = asyncio.create_task(player.play(command["symbols"], command["seed"]))
                case "pass":
                    await player.make_pass()
                case "go":
                    player.go()
                case "stop" if playing is not None:
                    player.stopping.set()
                    say({"report": (await playing).encode()})
                case "settle":
                    say({"report": (await player.settle()).encode()})
                case "end":
                    break
    listening.cancel()


async def _listen(lines: asyncio.Queue[str]) -> None:
    """Queue the lines of the standard input; end the process when it ends."""
    reader = await open_input()
    while line := await reader.readline():
        lines.put_nowait(line.decode())
    # The parent is gone: no remaining work here matters.
    os._exit(3)


def main() -> None:
    """Play rounds until the standard input ends."""
    begin_as_child()
    asyncio.run(_run())  # noqa: TID251 - its parent ends it


if __name__ == "__main__":
    main()
