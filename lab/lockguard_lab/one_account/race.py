"""The two processes, the signs by which they and the race talk, and what the exchange says afterwards.

A bot leaves signs as files in its own folder: ``ready`` when it could begin, one byte more in ``rounds`` for
each round over all pairs, and ``ended`` right before it sends itself the signal that ``end_here`` names. It
begins when there is a file ``go``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self

import psutil

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_lab.child_process import signal_child, start_program
from lockguard_lab.exchange import LocalExchange
from lockguard_lab.servers import RedisServer

__all__ = ["GUARDS", "PAIRS", "TTL_S", "Bot", "Bought", "End", "Guard", "Stage", "race"]

COINS = ("APT", "ETH", "SOL", "BNB", "XRP", "DOGE", "ADA", "AVAX", "LINK", "DOT")
PAIRS = tuple(f"{coin}/USDT:USDT" for coin in COINS)
TTL_S = 3
_PATIENCE_S = 240.0
_POLL_S = 0.02
_MORE_ROUNDS = 3

Guard = Literal["none", "hooks", "full"]
GUARDS: dict[Guard, str] = {
    "none": "no guard",
    "hooks": "a lease in the hooks only",
    "full": "a lease in the hooks, and the gate",
}

End = Literal["", "SIGSTOP", "SIGKILL"]
"""The signal that the first bot sends itself once, between its first confirmed hook and its order."""


@dataclass(frozen=True, slots=True)
class Bought:
    """What the exchange's own record says after a race.

    Attributes:
        entries: for each pair, how many orders made its position larger.
        positions: for each pair, its position, in what one order buys.
        took_s: how long it took from the start of the second bot until every pair was bought, in seconds.
        ended_at: when the first bot was found stopped or dead, on the clock of leases; ``None`` if it ran on.
    """

    entries: Mapping[str, int]
    positions: Mapping[str, float]
    took_s: float
    ended_at: float | None

    @property
    def doubled(self) -> int:
        """How many pairs were bought more than once."""
        return sum(count > 1 for count in self.entries.values())


class Bot:
    """One bot's process, which is killed when the ``async with`` block is left.

    Args:
        folder: its own; its signs are there, and its output in ``log``.
        command: what it runs.
        environment: added to that of this process.
    """

    def __init__(self, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._command = tuple(command)
        self._environment = {**os.environ, **environment}
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        with (self.folder / "log").open("wb") as output:
            self._process = await start_program(
                self._command, folder=self.folder, output=output, environment=self._environment
            )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        signal_child(self.process, signal.SIGKILL)
        await self.process.wait()

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """What it has written."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    @property
    def rounds(self) -> int:
        """How many rounds over all pairs it has begun."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "rounds").stat().st_size
        return 0

    def has(self, sign: str) -> bool:
        """Whether it has left this sign."""
        return (self.folder / sign).exists()

    def tell(self, sign: str, text: str = "") -> None:
        """Leave a sign for it, whole from the first moment."""
        (self.folder / "writing").write_text(text, encoding="utf-8")
        (self.folder / "writing").rename(self.folder / sign)

    def resume(self) -> None:
        """Let it go on after ``SIGSTOP``."""
        signal_child(self.process, signal.SIGCONT)

    @property
    def stands(self) -> bool:
        """Whether it is stopped, or dead."""
        if self.process.returncode is not None:
            return True
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED
        return False

    async def until(self, done: Callable[[], bool], what: str, *, may_end: bool = False) -> None:
        """Wait for a condition while the process runs.

        Raises:
            ConfigurationError: it ended, or the condition did not come.
        """
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not done():
                    if self.process.returncode is not None and not may_end:
                        raise ConfigurationError(f"the bot {self.folder.name} ended: {self.log[-3000:]}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise ConfigurationError(
                f"the bot {self.folder.name} did not {what}: {self.log[-3000:]}"
            ) from None

    async def goes_round(self, times: int = _MORE_ROUNDS) -> None:
        """Wait until it has begun this many more rounds."""
        wanted = self.rounds + times
        await self.until(lambda: self.rounds >= wanted, "go on")


@dataclass(frozen=True, slots=True)
class Stage:
    """Two bots on one account of an exchange, which wait to be told to begin.

    Attributes:
        exchange: the account is that of its key.
        redis: where their leases are.
        first: the one that may be ended.
        second: begins when the first stands where it is meant to end, and otherwise together with it.
    """

    exchange: LocalExchange
    redis: RedisServer
    first: Bot
    second: Bot


async def race(stage: Stage, end: End = "") -> Bought:
    """Let both begin, until every pair is bought and each has gone over all pairs three times more.

    Args:
        stage: on which they have not begun.
        end: what becomes of the first. After ``SIGSTOP`` it is continued when every pair is bought.

    Raises:
        ConfigurationError: a bot ended, or did not go on.
    """
    exchange, first, second = stage.exchange, stage.first, stage.second

    def all_bought() -> bool:
        record = exchange.record()
        return all(record.entries(pair) for pair in PAIRS)

    for bot in (first, second):
        await bot.until(partial(bot.has, "ready"), "start")
    if end:
        first.tell("end_here", end)
    first.tell("go")
    if end:
        await first.until(lambda: first.has("ended") and first.stands, "confirm an entry", may_end=True)
    ended_at = SYSTEM_CLOCK.now() if end else None
    began = SYSTEM_CLOCK.now()
    second.tell("go")
    await second.until(all_bought, "buy every pair")
    took_s = SYSTEM_CLOCK.now() - began
    if end == "SIGSTOP":
        first.resume()
    for bot in (second,) if end == "SIGKILL" else (first, second):
        await bot.goes_round()
    record = exchange.record()
    entries = {pair: record.entries(pair) for pair in PAIRS}
    sizes = {pair: float(record.position(pair) / orders[0].executed) for pair, orders in entries.items()}
    return Bought({pair: len(orders) for pair, orders in entries.items()}, sizes, took_s, ended_at)
