"""The race: what happens to two bots while they open 25 symbols."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.exchange.markets import plain_id
from lockguard_lab.own_bot.counting import HALF_DONE, Counted, counted
from lockguard_lab.own_bot.processes import BotProcess, until
from lockguard_lab.own_bot.stage import TTL_S, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["BOTS", "PLACES", "Place", "race"]

BOTS = Path("docs/examples/own_bot")
SYMBOLS = 25
_CALM, _STOPPED = 9, 17
"""Up to which symbol both run on, and up to which one of them is stopped; during the rest one is killed."""
_BREAKS = 4
_PASSES = 2
_PASSES_MAX = 12
_RISE = Decimal("1.02")
_HOLDS = "select count(*) from monitoring.positions where symbol = any($1) and status = any($2)"

Place: TypeAlias = Literal["row", "entry", "stop"]
"""What has just happened when a bot is stopped or killed: its row is written and no order sent, or the
exchange has carried out the entry, or the stop, and the answer is on its way."""
PLACES: tuple[Place, ...] = ("row", "entry", "stop")


async def race(on: Stage, *, stop_at: Place = "entry", kill_at: Place = "stop", seed: int = 0) -> Counted:
    """Have two bots open every symbol, disturb them, let the survivors settle, and count.

    Args:
        on: a stage on which no bot has been started.
        stop_at: where the first bot is stopped, until the second has handled the same signals.
        kill_at: where it is killed later; a third takes its place.
        seed: of the choice of locks that are broken.

    Raises:
        ConfigurationError: a bot ended, or did not go on.
    """
    symbols = [plain_id(symbol) for symbol in on.exchange.symbols if symbol.endswith(":USDT")][:SYMBOLS]
    first, second = await on.bot(), await on.bot()
    for bot in (first, second):
        await bot.says("ready")
    signals = _Signals()
    async with _breaking(on, symbols, seed) as broken:
        for bot in (first, second):
            signals.give(bot, symbols[:_CALM])
        await signals.handled(first, second)
        _prices_rise(on, symbols)  # and the stops follow

        await _opens(on, signals, first, second, symbols[_CALM:_STOPPED], stop_at)
        await first.stop()
        stopped_at = SYSTEM_CLOCK.now()
        await signals.handled(second)
        await asyncio.sleep(
            max(0.0, stopped_at + TTL_S - SYSTEM_CLOCK.now())
        )  # without a guard it is done at once
        first.resume()
        await signals.handled(first)

        await _opens(on, signals, first, second, symbols[_STOPPED:], kill_at)
        await first.kill()
        third = await on.bot()
        await signals.handled(second)
    await _settled(on, second, third)
    lines = [line for bot in on.bots for line in bot.lines]
    return await counted(on.conn, on.record, symbols, lines, broken=len(broken))


class _Signals:
    """Signals, each with a number of its own, and to which bot they went."""

    def __init__(self) -> None:
        self._given: dict[BotProcess, list[int]] = {}
        self._count = 0

    def give(self, bot: BotProcess, symbols: Sequence[str]) -> None:
        for symbol in symbols:
            self._count += 1
            bot.tell(f"{self._count} long {symbol}")
            self._given.setdefault(bot, []).append(self._count)

    async def handled(self, *bots: BotProcess) -> None:
        for bot in bots:
            for number in self._given[bot]:
                await bot.says(f"signal {number} done")


async def _opens(
    on: Stage, signals: _Signals, first: BotProcess, second: BotProcess, symbols: Sequence[str], place: Place
) -> None:
    """Give both the same signals, and wait until an open of the first one, which is ahead, is at a place."""
    signals.give(first, symbols)
    await until(_reached(on, "row", symbols), "the row of an open")
    signals.give(second, symbols)
    await until(_reached(on, place, symbols), f"an open at its {place}")


def _reached(on: Stage, place: Place, symbols: Sequence[str]) -> Callable[[], bool | Awaitable[bool]]:
    """Whether an open of one of the symbols has come to a place."""

    async def row() -> bool:
        return bool(await on.conn.fetchval(_HOLDS, symbols, HALF_DONE))

    def order() -> bool:
        record = on.record
        seen = record.entries if place == "entry" else record.open_stops
        return any(seen(symbol) for symbol in symbols)

    return row if place == "row" else order


def _prices_rise(on: Stage, symbols: Sequence[str]) -> None:
    for symbol in symbols:
        on.exchange.set_price(symbol, on.exchange.price(symbol) * _RISE)


@asynccontextmanager
async def _breaking(on: Stage, symbols: Sequence[str], seed: int) -> AsyncIterator[list[str]]:
    """Break locks of opens under their holders; gives those that were broken."""
    broken: list[str] = []
    if on.both is None or on.redis_only is None:
        yield broken
        return
    dice = random.Random(seed)  # noqa: S311 - a schedule
    guards = (on.both, on.redis_only)

    async def go_on() -> None:
        while len(broken) < _BREAKS:
            symbol, guard = dice.choice(symbols), guards[len(broken) % 2]
            if symbol not in broken and await on.conn.fetchval(_HOLDS, [symbol], HALF_DONE):
                found = await guard.break_(f"binance:{symbol}", reason="race: forced expiry")
                broken.extend([symbol] if found.grant else [])
            await asyncio.sleep(0.01)

    task = asyncio.create_task(go_on())
    try:
        yield broken
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _settled(on: Stage, *bots: BotProcess) -> None:
    """Wait for two sync passes of each bot, and with the guard until one has reached every closed lock."""
    for bot in bots:
        await bot.says("ready")
    passes: Mapping[BotProcess, int] = {bot: bot.said("sync {") for bot in bots}

    def made() -> int:
        return min(bot.said("sync {") - passes[bot] for bot in bots)

    async def done() -> bool:
        if made() < _PASSES or not on.guarded:
            return made() >= _PASSES
        left = await on.conn.fetchval(
            "select count(*) from monitoring.positions where status = any($1)", HALF_DONE
        )
        return made() >= _PASSES_MAX or not (left or on.record.without_stop())

    await until(done, "the last sync passes")
