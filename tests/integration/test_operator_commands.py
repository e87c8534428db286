"""The commands that an operator types, flag by flag, on real servers: the day after an unguarded bot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner, Result

from lockguard._cli.app import lockguard
from lockguard_lab.exchange import LocalExchange, connect
from lockguard_lab.naive import NaiveManager
from lockguard_lab.servers import PostgresServer
from lockguard_positions._schema import migrate

APT, ETH = "APT/USDT:USDT", "ETH/USDT:USDT"
HOUR_MS = 3_600_000
QUICK = ("--latency-ms", "5", "--stagger-ms", "5")


@dataclass(frozen=True)
class Terminal:
    """Where commands are typed.

    Attributes:
        urls: of the servers, in the environment.
        folder: where files go.
    """

    urls: dict[str, str]
    folder: Path

    async def lockguard(self, *arguments: str) -> Result:
        environment = {"COLUMNS": "200", **self.urls}
        ended = await asyncio.to_thread(CliRunner(env=environment).invoke, lockguard, list(arguments))
        assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
        return ended

    async def race(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """A race's exit code and its result as JSON."""
        file = self.folder / "race.json"
        ended = await self.lockguard("race", *QUICK, *arguments, "--json", str(file))
        return ended.exit_code, json.loads(await asyncio.to_thread(file.read_text))


@dataclass(frozen=True)
class Leftovers:
    """What an unguarded bot has left: a duplicate's remains on ETH, and an open that died on APT."""

    terminal: Terminal
    exchange: LocalExchange
    pool: asyncpg.Pool[Any]

    async def an_hour_later(self) -> None:
        """What has just changed is not taken at its word: let it have changed long ago."""
        for column in ("created_at", "opened_at", "closed_at"):
            await self.pool.execute(f"update monitoring.positions set {column} = {column} - '1 h'::interval")

    async def rows(self) -> list[tuple[int, str, str]]:
        rows = await self.pool.fetch("select id, symbol, status from monitoring.positions order by id")
        return [(row["id"], row["symbol"], row["status"]) for row in rows]


class Died(BaseException):
    """The process ended there: no except clause of the bot's sees it."""


@pytest.fixture
async def leftovers(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Leftovers]:
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=4))
        async with pool.acquire() as conn:
            await migrate(conn, to=1)
        client = connect(exchange.url)
        stack.push_async_callback(client.close)
        await client.load_markets()

        async def at(step: str, symbol: str) -> None:
            if step == "entry_placed" and symbol == APT:
                raise Died
            if step == "entry_placed":
                assert await bot.sync_exchange_positions() == 1

        bot = NaiveManager(pool, client, time_scale=0.01, at=at)
        opened = await bot.open_position_atomic(
            "s", ETH, "long", Decimal("0.1"), exchange.price(ETH), Decimal(2)
        )
        assert opened.unique_violation
        with pytest.raises(Died):
            await bot.open_position_atomic("s", APT, "long", Decimal(10), exchange.price(APT), Decimal(2))
        urls = {
            "LOCKGUARD_REDIS_URL": redis_url,
            "LOCKGUARD_DATABASE_URL": database_url,
            "LOCKGUARD_EXCHANGE_URL": exchange.url,
        }
        left = Leftovers(Terminal(urls, tmp_path), exchange, pool)
        await left.an_hour_later()
        yield left


async def test_tables_go_down_only_where_that_is_confirmed(leftovers: Leftovers) -> None:
    run, before = leftovers.terminal.lockguard, await leftovers.rows()
    assert (await run("positions", "migrate", "--to", "2")).exit_code == 0
    told = "--to 0 goes down from version 2, and removes the tables, with all their rows; add --confirm"
    with pytest.raises(AssertionError, match=told):  # the terminal shows the error that main() words
        await run("positions", "migrate", "--to", "0")
    assert await leftovers.rows() == before
    assert (await run("positions", "migrate", "--to", "0", "--confirm")).stdout == "version 0, was 2\n"


async def test_leftovers_are_diagnosed_shown_cleaned_up_and_migrated(leftovers: Leftovers) -> None:
    run, before = leftovers.terminal.lockguard, await leftovers.rows()
    assert [status for _, _, status in before] == ["rolled_back", "active", "entry_placed"]
    orders = leftovers.exchange.record().orders

    checked = await run("positions", "diagnose", "--mode", "check", "--older-than", "60")
    assert checked.exit_code == 1
    assert checked.stdout.splitlines() == [
        "incomplete binance:APTUSDT 3: entry_placed",
        "orphaned_row binance:ETHUSDT 2: the exchange holds nothing",
    ]
    told = await run("positions", "diagnose", "--json")
    assert told.exit_code == 1
    found = json.loads(told.stdout)
    assert [(finding["kind"], finding["position_ids"]) for finding in found["findings"]] == [
        ("incomplete", [3]),
        ("orphaned_row", [2]),
    ]
    statistics = {figures["status"]: figures for figures in found["statistics"]}
    assert {status: figures["count"] for status, figures in statistics.items()} == {
        "rolled_back": 1,
        "active": 1,
        "entry_placed": 1,
    }
    assert statistics["entry_placed"]["duration_ms_average"] >= HOUR_MS

    for how in (["--dry-run"], []):
        planned = await run("positions", "cleanup", *how, "--json")
        assert planned.exit_code == 1
        plan = json.loads(planned.stdout)
        assert plan["confirmed"] is False
        assert [step["remedy"] for step in plan["plan"]] == [
            "finish it from the exchange's truth",
            "close the row",
        ]
    assert (await leftovers.rows(), leftovers.exchange.record().orders) == (before, orders)

    assert (await run("fence", "install")).exit_code == 0
    assert (await run("positions", "migrate", "--to", "3")).exit_code == 0
    backup = leftovers.terminal.folder / "backup.jsonl"
    done = await run("positions", "cleanup", "--confirm", "--json", "--backup", str(backup))
    outcomes = {(one["symbol"], one["action"]) for one in json.loads(done.stdout)["outcomes"]}
    # The stop that nobody wrote down waits until the row's end is no news any more; the exit code says so.
    assert (done.exit_code, ("ETHUSDT", "settling") in outcomes) == (1, True), done.output
    assert (await asyncio.to_thread(backup.read_text)).count("\n") == 2
    await leftovers.an_hour_later()
    arguments = ("--confirm", "--json", "--older-than", "0", "--backup", f"{backup}.2")
    again = await run("positions", "cleanup", *arguments)
    outcomes = {(one["symbol"], one["action"]) for one in json.loads(again.stdout)["outcomes"]}
    # The old bot's row says nothing of a stop: it is told of, and only a person's word sells what it opened.
    assert (again.exit_code, outcomes) == (
        1,
        {("ETHUSDT", "in step"), ("ETHUSDT", "stop taken back"), ("APTUSDT", "unprotected")},
    )
    closed = await run("positions", "close", "APTUSDT", "--confirm")
    assert closed.exit_code == 0, closed.output
    record = leftovers.exchange.record()
    assert (record.without_stop(), record.orphan_stops()) == ((), ())
    assert (await run("positions", "migrate", "--protect")).exit_code == 0
    checked = await run("positions", "diagnose", "--mode", "check", "--older-than", "0")
    assert (checked.exit_code, checked.stdout) == (0, "")
    recovered = await run("positions", "recover")
    assert (recovered.exit_code, recovered.stdout) == (0, "Nothing is half done.\n")


@pytest.fixture
async def racing(redis_url: str, postgres_server: PostgresServer, tmp_path: Path) -> AsyncIterator[Terminal]:
    async with LocalExchange() as exchange:
        urls = {
            "LOCKGUARD_REDIS_URL": redis_url,
            "LOCKGUARD_DATABASE_URL": postgres_server.url,
            "LOCKGUARD_EXCHANGE_URL": exchange.url,
        }
        yield Terminal(urls, tmp_path)


async def test_stress_with_ten_threads_for_a_while_is_harmless_under_the_guard_only(racing: Terminal) -> None:
    arguments = ("--scenario", "stress", "--threads", "10", "--duration", "0.2", "--symbols", "2")
    code, guarded = await racing.race(*arguments)
    assert (code, guarded["duplicates"], guarded["without_stop"], guarded["orphan_stops"]) == (0, 0, 0, 0)
    assert (guarded["threads"], guarded["errors"]) == (10, [])
    assert guarded["opens"] % 2 == 0
    code, naive = await racing.race(*arguments, "--no-guard")
    assert (code, naive["guard"]) == (1, False)
    assert naive["duplicates"] > 0


async def test_one_process_races_with_itself(racing: Terminal) -> None:
    arguments = ("--processes", "1", "--scenario", "B", "--opens", "3")
    code, guarded = await racing.race(*arguments)
    assert (code, guarded["processes"], guarded["opens"], guarded["duplicates"]) == (0, 1, 3, 0)
    assert guarded["errors"] == []
    code, naive = await racing.race(
        "--processes", "1", "--threads", "2", "--scenario", "A", "--opens", "3", "--no-guard"
    )
    assert (code, naive["duplicates"], naive["double_entries"]) == (1, 3, 3)


async def test_the_logs_of_a_race_are_analyzed_within_an_interval_and_drawn(racing: Terminal) -> None:
    folder = racing.folder / "logs"
    code, naive = await racing.race(
        *("--no-guard", "--phase", "before-stop", "--opens", "3", "--symbols", "3", "--logs", str(folder))
    )
    assert (code, naive["duplicates"]) == (1, 3)
    analyze = ("logs", "analyze", *(str(folder / f"round-1-bot-{number}.log") for number in (0, 1)))
    everything = await racing.lockguard(*analyze, "--export", "-")
    assert everything.exit_code == 1
    found = json.loads(everything.stdout)
    assert [finding["duplicate"] for finding in found["findings"]] == [True] * 6
    first, last = (found[name].partition("+")[0] for name in ("first", "last"))
    symbol = found["findings"][0]["symbol"]

    exported, drawn = racing.folder / "found.json", racing.folder / "found.html"
    one = await racing.lockguard(
        *(*analyze, "--from", first, "--to", last, "--symbol", symbol),
        *("--export", str(exported), "--html", str(drawn)),
    )
    assert one.exit_code == 1
    assert f"The story of {symbol}" in one.stdout
    of_one = json.loads(await asyncio.to_thread(exported.read_text))
    assert [finding["kind"] for finding in of_one["findings"]] == ["created twice", "unique violation"]
    assert [line["what"] for line in of_one["timeline"]].count(["created"]) == 2
    assert "<svg" in await asyncio.to_thread(drawn.read_text)

    clear = await racing.lockguard(*analyze, "--from", last)
    assert (clear.exit_code, "No duplicates, no races." in clear.stdout) == (0, True)
