"""One process of a race: ``python -m lockguard_positions.race_worker``.

It is told what it is by the first line of its standard input, says ``ready`` when it is connected, and then
plays one round for each line that it is given. It ends when its standard input does: so it dies with its
parent, however that dies.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import ROUND_UP, Decimal
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard import LeaseLost, LockGuard, ResourceBusy, StaleToken
from lockguard.clock import SYSTEM_CLOCK
from lockguard_asyncpg import PostgresFence
from lockguard_ccxt import GuardedExchange, Patience, decimal_of, rules_of
from lockguard_ccxt.testing import connect
from lockguard_positions.errors import DuplicatePosition
from lockguard_positions.events import LogPositions, PositionEvent, WriteRefused
from lockguard_positions.manager import AtomicPositionManager
from lockguard_positions.model import AlreadyOpen, Opened
from lockguard_positions.naive import SETTLEMENT, NaiveManager
from lockguard_positions.race_imports import import_lean
from lockguard_positions.race_settings import Crewman, Report, Role
from lockguard_positions.venue import Pace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["main"]

_EXCHANGE = "binance"
_STOP_PERCENT = Decimal(2)
_WORTH = Decimal(60)
_POOL_MAX = 12
_PASS_GAP_S = 0.005
_SETTLE_GAP_S = 0.1
_LATE_MS = 1_000
_SETTLE_S_MAX = 20.0
_LANES: dict[Role, int] = {"opener": 0, "syncer": 3, "cleaner": 1, "both": 1}
"""How many loops of passes a process runs; several, so that each phase of an open meets one."""
_INCOMPLETE_AFTER = timedelta(seconds=2)
"""What the unguarded clean-up takes for dead, at time scale 1."""


class _Bot:
    """The bot of this process, with the guard or without."""

    def __init__(self, crewman: Crewman, client: Any, manager: AtomicPositionManager | NaiveManager) -> None:
        self._settings = crewman.settings
        self._client = client
        self._manager = manager
        self._prices: dict[str, Decimal] = {}
        self.settled = False

    async def prepare(self) -> None:
        """Learn the prices, so that a signal has one."""
        for symbol, ticker in (await self._client.fetch_tickers()).items():
            price = decimal_of(ticker.get("last"))
            if price:
                self._prices[symbol] = price

    def unified(self, symbol: str) -> str:
        return str(self._client.market(symbol)["symbol"])

    async def open(self, symbol: str, report: Report) -> None:
        """One signal."""
        price = self._prices[symbol]
        rules = rules_of(self._client, self._client.market(symbol))
        steps = (
            max(_WORTH, (rules.cost_min or Decimal(0)) * 2) / price / rules.amount_step
        ).to_integral_value(ROUND_UP)
        quantity = steps * rules.amount_step
        started = SYSTEM_CLOCK.now()
        if isinstance(self._manager, NaiveManager):
            naive = await self._manager.open_position_atomic(
                f"race {symbol}", symbol, "long", quantity, price, _STOP_PERCENT
            )
            report.violations += [symbol] if naive.unique_violation else []
            report.refused += naive.existing
            done = naive.error is None and not naive.existing
            report.failed += naive.error is not None
        else:
            result = await self._manager.open_position_atomic(
                f"race {symbol}", symbol, _EXCHANGE, "long", quantity, price, _STOP_PERCENT
            )
            done = isinstance(result, Opened)
            report.refused += isinstance(result, AlreadyOpen)
            report.failed += not isinstance(result, AlreadyOpen | Opened)
        if done:
            report.opened += 1
            report.open_ms.append((SYSTEM_CLOCK.now() - started) * 1000)

    async def sync(self, report: Report) -> None:
        """One pass."""
        report.passes += 1
        self.settled = False
        if isinstance(self._manager, NaiveManager):
            await self._manager.sync_exchange_positions(stop_loss_percent=_STOP_PERCENT)
            self.settled = True
        else:
            passed = await self._manager.sync_exchange_positions(_EXCHANGE)
            report.skipped += len(passed.skipped)
            self.settled = passed.settled

    async def clean_up(self, report: Report) -> None:
        """One clean-up of what looks incomplete."""
        report.passes += 1
        if isinstance(self._manager, NaiveManager):
            await self._manager.clean_up(_INCOMPLETE_AFTER * self._settings.time_scale)
        else:
            passed = await self._manager.recover(_EXCHANGE)
            report.skipped += len(passed.skipped)


class _Player:
    """Plays rounds."""

    def __init__(self, crewman: Crewman, bot: _Bot, refusals: _Refusals) -> None:
        self._crewman = crewman
        self._bot = bot
        self._refusals = refusals
        self.stopping = asyncio.Event()

    async def play(self, symbols: list[str], seed: int) -> Report:
        """One round; passes go on until :attr:`stopping` is set."""
        self.stopping.clear()
        report = Report()
        role = self._crewman.role
        async with asyncio.TaskGroup() as group:
            for _ in range(_LANES[role]):
                action = self._bot.clean_up if role == "cleaner" else self._bot.sync
                group.create_task(self._repeat(action, report))
            if role in {"opener", "both"}:
                await self._open_all(symbols, seed, report)
            _say({"opened": True})
            await self.stopping.wait()
        return self._with_refusals(report)

    async def settle(self) -> Report:
        """Passes after all is over, as any bot makes them, until one finds nothing left in doubt."""
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
            for thread in range(self._threads_per_symbol):
                delays_s = self._delays_s(len(mine), seed, thread)
                for symbol, delay_s in zip(mine, delays_s, strict=True):
                    group.create_task(self._open_one(self._bot.unified(symbol), delay_s, report))

    @property
    def _threads_per_symbol(self) -> int:
        settings = self._crewman.settings
        return 1 if settings.scenario in {"B", "D"} else settings.threads

    def _share(self, symbols: list[str]) -> list[str]:
        settings, number = self._crewman.settings, self._crewman.number
        if settings.scenario in {"B", "D"}:
            return symbols[number :: settings.processes - 1]
        return symbols

    def _delays_s(self, count: int, seed: int, thread: int) -> list[float]:
        settings, number = self._crewman.settings, self._crewman.number
        together = settings.scenario in {"A", "C"}
        dice = random.Random(f"{seed}" if together else f"{seed}/{number}/{thread}")  # noqa: S311 - a schedule
        stagger_s = settings.stagger_ms / 1000
        at_once = settings.threads // self._threads_per_symbol
        delays = [stagger_s * (i // at_once + dice.random()) for i in range(count)]
        if settings.scenario == "stress":
            dice.shuffle(delays)
        if settings.scenario == "C":
            # The first process is by then at, or just before, its rollback.
            waited_s = 0.0 if settings.guard else SETTLEMENT.total_seconds() * settings.time_scale
            late_s = number * (waited_s + 2.5 * settings.latency_ms / 1000)
            return [delay + late_s for delay in delays]
        return delays

    async def _open_one(self, symbol: str, delay_s: float, report: Report) -> None:
        await asyncio.sleep(delay_s)
        await self._tell(self._bot.open(symbol, report), report, symbol)
        _say({"progress": 1})

    async def _repeat(self, action: Callable[[Report], Awaitable[None]], report: Report) -> None:
        while not self.stopping.is_set():
            await self._tell(action(report), report)
            await asyncio.sleep(_PASS_GAP_S)

    async def _tell(self, action: Awaitable[None], report: Report, symbol: str = "") -> None:
        """Run it and note how it ended: a race goes on."""
        try:
            await action
        except ResourceBusy:
            report.refused += 1
        except (LeaseLost, StaleToken):
            report.leases_lost += 1
        except (DuplicatePosition, asyncpg.UniqueViolationError):
            report.violations.append(symbol)
        except Exception as exc:  # noqa: BLE001 - whatever it was belongs in the result
            report.errors.append(f"{symbol}: {type(exc).__name__}: {exc}"[:300])


class _Refusals:
    """Counts the writes that Postgres refused."""

    def __init__(self) -> None:
        self.count = 0

    def on(self, event: PositionEvent) -> None:
        if isinstance(event, WriteRefused):
            self.count += 1


async def _set_up(stack: AsyncExitStack, crewman: Crewman, refusals: _Refusals) -> _Bot:
    settings = crewman.settings
    pool = await stack.enter_async_context(
        asyncpg.create_pool(settings.database_url, min_size=1, max_size=_POOL_MAX)
    )
    import_lean("binanceusdm")
    # What was never sent is certain to be absent the sooner, the shorter the exchange takes late orders.
    config = {"options": {"recvWindow": _LATE_MS}} if settings.expire_leases or settings.faults else {}
    client = connect(settings.exchange_url, config=config)
    stack.push_async_callback(client.close)
    await client.load_markets()
    manager: AtomicPositionManager | NaiveManager
    if settings.guard:
        fence_pool = await stack.enter_async_context(
            asyncpg.create_pool(settings.database_url, min_size=1, max_size=_POOL_MAX)
        )
        guard = await stack.enter_async_context(
            LockGuard.from_url(
                settings.redis_url,
                fence=PostgresFence(fence_pool),
                ttl=timedelta(milliseconds=settings.ttl_ms),
                wait=timedelta(seconds=30),
            )
        )
        exchange = GuardedExchange(
            client,
            patience=Patience(search=timedelta(seconds=1), poll=timedelta(milliseconds=50)),
        )
        pace = Pace(
            poll=timedelta(milliseconds=50),
            grace=timedelta(seconds=10) * settings.time_scale,
        )
        manager = AtomicPositionManager(
            guard, pool, [exchange], pace=pace, observers=[LogPositions(), refusals]
        )
    else:
        manager = NaiveManager(pool, client, time_scale=settings.time_scale)
    bot = _Bot(crewman, client, manager)
    await bot.prepare()
    return bot


async def _run() -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    listening = asyncio.create_task(_listen(lines))
    crewman = Crewman.decode(await lines.get())
    async with AsyncExitStack() as stack:
        refusals = _Refusals()
        player = _Player(crewman, await _set_up(stack, crewman, refusals), refusals)
        _say({"ready": True})
        playing: asyncio.Task[Report] | None = None
        while True:
            command = json.loads(await lines.get())
            match command["do"]:
                case "play":
                    playing = asyncio.create_task(player.play(command["symbols"], command["seed"]))
                case "stop" if playing is not None:
                    player.stopping.set()
                    _say({"report": (await playing).encode()})
                case "settle":
                    _say({"report": (await player.settle()).encode()})
                case "end":
                    break
    listening.cancel()


async def _listen(lines: asyncio.Queue[str]) -> None:
    """Pass the standard input on, and end the process with it."""
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        lines.put_nowait(line.decode())
    # The parent is gone: nothing that is left to do here could matter to anybody.
    os._exit(3)


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Play until the standard input ends."""
    asyncio.run(_run())


if __name__ == "__main__":
    main()
