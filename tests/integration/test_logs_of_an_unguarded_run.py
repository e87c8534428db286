"""What the analyzer reads out of an unguarded bot's log is what the table and the exchange say happened."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from decimal import ROUND_UP, Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from lockguard_lab.exchange import (
    DEFAULT_MARKETS,
    Execution,
    Fault,
    FaultKind,
    LocalExchange,
    Operation,
    connect,
)
from lockguard_lab.naive import NaiveManager, NaiveOpen
from lockguard_lab.race.run import RaceSettings, run_race
from lockguard_lab.race.score import entered_twice_and_turned
from lockguard_lab.servers import PostgresServer
from lockguard_lab.statements import statement
from lockguard_logs import Analysis, Finding, FindingKind, SightingKind, analyze, read_log
from lockguard_logs._cli import logs
from lockguard_positions._schema import migrate

NAIVE = logging.getLogger("lockguard_lab.naive")

# How many signals each symbol gets, and whether a sync pass meets them.
ALONE = {"BTC/USDT:USDT": 1, "XRP/USDT:USDT": 1}
SIGNALS = {"APT/USDT:USDT": 2, "SUI/USDT:USDT": 3}
SYNCED = {"ETH/USDT:USDT": 1, "SOL/USDT:USDT": 1, "DOGE/USDT:USDT": 2}
RETRIED = "LTC/USDT:USDT"


class Gate:
    """Holds the opens of a group behind their entries until all have come, and what they meet is over."""

    def __init__(self, expected: int) -> None:
        self._left = expected
        self.full = asyncio.Event()
        self.go = asyncio.Event()

    async def arrive(self) -> None:
        self._left -= 1
        if not self._left:
            self.full.set()
        await self.go.wait()


class Bots:
    """Two unguarded bots on one exchange and one database."""

    def __init__(self, exchange: LocalExchange, pool: asyncpg.Pool[Any], clients: list[Any]) -> None:
        self.exchange = exchange
        self.pool = pool
        self._gates: dict[str, Gate] = {}
        self._managers = [NaiveManager(pool, client, time_scale=0.01, at=self._at) for client in clients]

    async def _at(self, step: str, symbol: str) -> None:
        if step == "entry_placed" and symbol in self._gates:
            await self._gates[symbol].arrive()

    async def open(self, symbol: str, bot: int = 0) -> NaiveOpen:
        spec = next(spec for spec in DEFAULT_MARKETS if spec.symbol == symbol)
        steps = (spec.min_notional * 2 / spec.price / spec.step).to_integral_value(ROUND_UP)
        return await self._managers[bot % 2].open_position_atomic(
            f"signal {symbol}", symbol, "long", steps * spec.step, spec.price, Decimal(2)
        )

    async def race(self, signals: dict[str, int], *, sync: bool) -> list[NaiveOpen]:
        """All signals at once; none goes on before all have entered, and the pass, if any, has ended."""
        gate = Gate(sum(signals.values()))
        self._gates |= dict.fromkeys(signals, gate)
        async with asyncio.TaskGroup() as group:
            opens = [
                group.create_task(self.open(symbol, bot))
                for symbol, count in signals.items()
                for bot in range(count)
            ]
            await gate.full.wait()
            if sync:
                assert await self._managers[1].sync_exchange_positions() == len(signals)
            gate.go.set()
        return [open_.result() for open_ in opens]

    async def retry_after_a_refused_stop(self, symbol: str) -> None:
        """Two rows and two entries, one after the other: nothing is doubled."""
        refused = Fault(
            FaultKind.REJECTED, Operation.CREATE_ALGO, Execution.NEVER, symbol=plain(symbol), code=-4131
        )
        self.exchange.inject(refused)
        first, second = await self.open(symbol, 0), await self.open(symbol, 1)
        assert first.error is not None
        assert not first.unique_violation
        assert second.error is None

    async def overlapping(self) -> dict[str, set[int]]:
        """The rows that were open at the same time as another of their symbol, by the table."""
        doubled = {row[0] for row in await self.pool.fetch(statement("overlapping", "race.sql"))}
        rows = await self.pool.fetch("select symbol, id from monitoring.positions")
        return {name: {row["id"] for row in rows if row["symbol"] == name} for name in doubled}

    async def violations(self) -> Counter[str]:
        rows = await self.pool.fetch(
            "select symbol from monitoring.positions where error_details like '%idx_unique_active_position%'"
        )
        return Counter(row["symbol"] for row in rows)


@pytest.fixture
async def bots(database_url: str) -> AsyncIterator[Bots]:
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=20))
        async with pool.acquire() as conn:
            await migrate(conn, to=1)
        clients = [connect(exchange.url) for _ in range(2)]
        for client in clients:
            stack.push_async_callback(client.close)
            await client.load_markets()
        yield Bots(exchange, pool, clients)


@pytest.fixture
def log(tmp_path: Path) -> Iterable[Path]:
    handler = logging.FileHandler(tmp_path / "bot.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    NAIVE.addHandler(handler)
    NAIVE.setLevel(logging.INFO)
    yield tmp_path / "bot.log"
    NAIVE.removeHandler(handler)
    NAIVE.setLevel(logging.NOTSET)
    handler.close()


def plain(symbol: str) -> str:
    return symbol.partition(":")[0].replace("/", "")


def rows_told(findings: Iterable[Finding]) -> dict[str, set[int]]:
    told: dict[str, set[int]] = {}
    for finding in findings:
        ids = {sighting.position_id for sighting in finding.sightings}
        told.setdefault(finding.symbol or "", set()).update(id_ for id_ in ids if id_ is not None)
    return told


def orders_told(findings: Iterable[Finding]) -> dict[str, set[str | None]]:
    told: dict[str, set[str | None]] = {}
    for finding in findings:
        told.setdefault(finding.symbol or "", set()).update(s.order for s in finding.sightings)
    return told


async def compare(found: Analysis, bots: Bots) -> None:
    """The log against the two records that cannot be wrong, by symbol, row and order."""
    assert rows_told(found.of(FindingKind.CREATED_TWICE)) == await bots.overlapping()
    assert Counter(f.symbol for f in found.of(FindingKind.UNIQUE_VIOLATION)) == await bots.violations()
    record = bots.exchange.record()
    doubled, _ = entered_twice_and_turned(record)
    assert orders_told(found.of(FindingKind.ENTERED_TWICE)) == {
        symbol: {str(order.id) for order in record.entries(symbol)} for symbol in doubled
    }


async def test_what_the_log_tells_is_what_the_table_and_the_exchange_say(bots: Bots, log: Path) -> None:
    await asyncio.gather(*(bots.open(symbol) for symbol in ALONE))
    again = await asyncio.gather(*(bots.open(symbol, 1) for symbol in ALONE))
    assert all(one.existing for one in again)
    await asyncio.gather(bots.race(SIGNALS, sync=False), bots.retry_after_a_refused_stop(RETRIED))
    await bots.race(SYNCED, sync=True)

    text = await asyncio.to_thread(log.read_text)
    assert "\nTraceback (most recent call last):\n" in text
    assert "\nasyncpg.exceptions.UniqueViolationError: duplicate key value" in text
    assert "\nDETAIL:  Key (symbol, exchange)=(APTUSDT, binance) already exists." in text
    found = analyze(read_log(log))
    await compare(found, bots)

    # Not vacuously: each kind has its symbols, and those that nothing happened to have none.
    assert {f.symbol for f in found.of(FindingKind.CREATED_TWICE)} == {
        plain(symbol) for symbol in [*SIGNALS, *SYNCED]
    }
    assert {f.symbol for f in found.of(FindingKind.ENTERED_TWICE)} == {"APTUSDT", "SUIUSDT", "DOGEUSDT"}
    assert Counter(f.symbol for f in found.of(FindingKind.UNIQUE_VIOLATION)) == {
        "APTUSDT": 1,
        "SUIUSDT": 2,
        "ETHUSDT": 1,
        "SOLUSDT": 1,
        "DOGEUSDT": 2,
    }
    assert {f.exchange for f in found.findings} == {"binance"}


async def test_the_story_of_one_symbol_is_the_one_of_its_rows(bots: Bots, log: Path) -> None:
    await bots.race({"APT/USDT:USDT": 2, "ETH/USDT:USDT": 1}, sync=True)
    exported = log.with_suffix(".json")
    done = await asyncio.to_thread(
        CliRunner().invoke,
        logs,
        ["analyze", str(log), "--symbol", "APT/USDT:USDT", "--export", str(exported)],
    )
    assert done.exit_code == 1, done.output
    told = json.loads(exported.read_text())
    assert {finding["symbol"] for finding in told["findings"]} == {"APTUSDT"}
    kinds = [kind for line in told["timeline"] for kind in line["what"]]
    assert Counter(kinds) == {
        SightingKind.CREATED: 3,
        SightingKind.ENTERED: 2,
        SightingKind.UNIQUE_VIOLATION: 2,
        SightingKind.ENDED: 2,
    }
    assert (kinds[0], kinds[4], kinds[-1]) == (
        SightingKind.CREATED,
        SightingKind.CREATED,  # the pass's, behind both entries
        SightingKind.ENDED,
    )


async def test_a_races_own_logs_tell_what_the_race_counted(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    async with LocalExchange() as exchange:
        settings = RaceSettings(
            "",
            postgres_server.url,
            exchange.url,
            scenario="B",
            phase="before-stop",
            guard=False,
            opens=5,
            symbols=3,
            latency_ms=5,
            stagger_ms=5,
            log_folder=str(tmp_path),
        )
        result = await run_race(settings)
    found = [
        analyze(record for bot in (0, 1) for record in read_log(tmp_path / f"round-{number}-bot-{bot}.log"))
        for number in (1, 2)
    ]

    def symbols(kind: FindingKind) -> int:
        return sum(len({finding.symbol for finding in one.of(kind)}) for one in found)

    assert symbols(FindingKind.CREATED_TWICE) == result.overlapping_rows == 5
    assert symbols(FindingKind.UNIQUE_VIOLATION) == result.unique_violations == 5
    assert symbols(FindingKind.ENTERED_TWICE) == result.double_entries == 0
