"""Diagnose, clean up and recover, by the commands, on real servers and the original ccxt."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner, Result

from lockguard import LockGuard
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import PostgresFence, install
from lockguard_ccxt import GuardedExchange
from lockguard_lab.exchange import Fault, FaultKind, LocalExchange, Operation, connect
from lockguard_positions import AtomicPositionManager, Opened, Pace, migrate
from lockguard_positions._cli import positions

APT = "APT/USDT:USDT"
BEFORE_THE_INDEX = 3


@dataclass
class Stage:
    exchange: LocalExchange
    client: Any
    pool: asyncpg.Pool[Any]
    urls: dict[str, str]
    folder: Path

    async def run(self, *arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner(env=self.urls).invoke, positions, list(arguments))

    async def found(self, *arguments: str) -> dict[str, list[str]]:
        """What diagnose says, as the symbols of each kind."""
        told = json.loads((await self.run("diagnose", "--json", "--older-than", "0", *arguments)).stdout)
        kinds: dict[str, list[str]] = {}
        for finding in told["findings"]:
            kinds.setdefault(finding["kind"], []).append(finding["symbol"])
        return kinds

    async def clean_up(self, *arguments: str) -> dict[str, Any]:
        file = self.folder / "backup.jsonl"
        done = await self.run(
            "cleanup", "--confirm", "--json", "--older-than", "0", "--backup", str(file), *arguments
        )
        assert done.exit_code in {0, 1}, done.exception
        return {**json.loads(done.stdout), "exit_code": done.exit_code, "log": done.stderr}

    async def row(self, symbol: str = "APTUSDT", *, status: str = "active", stop: str | None = None) -> int:
        """A row that got there a while ago."""
        position_id = await self.pool.fetchval(
            "insert into monitoring.positions"
            " (exchange, symbol, side, quantity, status, entry_price, stop_loss_percent, stop_order_id,"
            "  created_at, opened_at)"
            " values ('binance', $1, 'long', 10, 'entry_placed', 8.5, 2, $2, now() - '1 h'::interval,"
            "  now() - '1 h'::interval) returning id",
            symbol,
            stop,
        )
        way = ["entry_placed", "pending_sl", "active"]
        for step in way[1 : way.index(status) + 1]:
            await self.pool.execute(
                "update monitoring.positions set status = $2 where id = $1", position_id, step
            )
        return position_id

    async def hold(self, quantity: float = 10) -> None:
        await self.client.create_order(APT, "market", "buy", quantity)

    async def stop(self, price: str = "8.3") -> str:
        params = {"stopLossPrice": price, "reduceOnly": True}
        return str((await self.client.create_order(APT, "market", "sell", 10, None, params))["id"])

    async def leave_a_stop(self, symbol: str) -> None:
        """As a bot leaves one that closes its position and forgets the stop."""
        price = self.exchange.price(symbol) * Decimal("0.9")
        for side, params in (
            ("buy", {}),
            ("sell", {"stopLossPrice": str(price), "reduceOnly": True}),
            ("sell", {}),
        ):
            await self.client.create_order(symbol, "market", side, 1000, None, params)

    async def statuses(self) -> list[str]:
        rows = await self.pool.fetch("select status from monitoring.positions order by id")
        return [row["status"] for row in rows]


@pytest.fixture
async def stage(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        client = connect(exchange.url)
        stack.push_async_callback(client.close)
        await client.load_markets()
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=4))
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn, to=BEFORE_THE_INDEX)
            await conn.execute("drop index monitoring.idx_unique_active_position")
        urls = {
            "LOCKGUARD_REDIS_URL": redis_url,
            "LOCKGUARD_DATABASE_URL": database_url,
            "LOCKGUARD_EXCHANGE_URL": exchange.url,
        }
        yield Stage(exchange, client, pool, urls, tmp_path)


async def test_what_is_in_order_is_told_so_with_its_figures(stage: Stage) -> None:
    await stage.hold()
    await stage.row(stop=await stage.stop())
    done = await stage.run("diagnose")
    assert (done.exit_code, "Nothing is wrong" in done.output) == (0, True), done.output
    told = json.loads((await stage.run("diagnose", "--json")).stdout)
    (active,) = told["statistics"]
    assert (active["status"], active["count"]) == ("active", 1)
    assert active["duration_ms_average"] >= 3_600_000
    assert (told["exchanges"], told["complete"]) == (["binance"], True)


async def test_each_kind_of_wrong_is_found_and_the_exit_code_says_so(stage: Stage) -> None:
    await stage.row("BTCUSDT")
    await stage.row("ETHUSDT", status="pending_sl")
    await stage.row("SOLUSDT", status="entry_placed")
    await stage.row("SOLUSDT", status="entry_placed")
    await stage.hold()
    await stage.client.create_order("XRP/USDT:USDT", "market", "buy", 100)
    await stage.row("XRPUSDT")
    await stage.leave_a_stop("DOGE/USDT:USDT")
    assert await stage.found() == {
        "orphaned_row": ["BTCUSDT"],
        "incomplete": ["ETHUSDT", "SOLUSDT", "SOLUSDT"],
        "duplicate": ["SOLUSDT"],
        "orphaned_position": ["APTUSDT"],
        "without_stop": ["APTUSDT", "XRPUSDT"],
        "mismatch": ["XRPUSDT"],
        "orphaned_stop": ["DOGEUSDT"],
    }
    done = await stage.run("diagnose", "--mode", "check")
    assert done.exit_code == 1
    assert "orphaned_row binance:BTCUSDT 1: the exchange holds nothing" in done.output


async def test_the_first_schema_can_be_diagnosed(stage: Stage) -> None:
    await stage.row("BTCUSDT")
    async with stage.pool.acquire() as conn:
        await conn.execute(
            "create unique index idx_unique_active_position on monitoring.positions (symbol, exchange)"
            " where status = 'active'"
        )
        await migrate(conn, to=1)
    assert await stage.found() == {"orphaned_row": ["BTCUSDT"]}
    refused = await stage.run("cleanup", "--confirm")
    assert isinstance(refused.exception, ConfigurationError)
    assert "lockguard positions migrate --to 3" in str(refused.exception)


async def test_a_failed_read_of_the_exchange_is_said_and_is_no_finding_about_rows(stage: Stage) -> None:
    await stage.row("BTCUSDT")
    stage.exchange.inject(Fault(FaultKind.UNAVAILABLE, Operation.POSITIONS, times=10))
    done = await stage.run("diagnose", "--json")
    assert done.exit_code == 3
    assert [finding["kind"] for finding in json.loads(done.stdout)["findings"]] == ["unreadable"]
    cleaned = await stage.run("cleanup", "--confirm", "--backup", str(stage.folder / "b"))
    assert cleaned.exit_code == 3
    assert await stage.statuses() == ["active"]


async def test_a_clean_up_changes_nothing_unless_it_is_confirmed(stage: Stage) -> None:
    await stage.hold()
    await stage.row("BTCUSDT")
    for arguments in ([], ["--dry-run"]):
        done = await stage.run("cleanup", *arguments)
        assert done.exit_code == 1
        assert {"orphaned_row", "remedy"} <= set(done.output.replace("│", " ").replace("┃", " ").split())
        assert "Nothing was changed" in done.output
    assert await stage.statuses() == ["active"]
    assert stage.exchange.record().algo_orders == ()
    both = await stage.run("cleanup", "--dry-run", "--confirm")
    assert isinstance(both.exception, ConfigurationError)


async def test_a_clean_up_leaves_nothing_to_find(stage: Stage) -> None:
    await stage.row("BTCUSDT")
    await stage.row("ETHUSDT", status="pending_sl")
    await stage.hold()
    await stage.leave_a_stop("DOGE/USDT:USDT")
    done = await stage.clean_up()
    assert done["exit_code"] == 0, done
    assert {(o["symbol"], o["action"]) for o in done["outcomes"]} >= {
        ("BTCUSDT", "closed"),
        ("ETHUSDT", "ended"),
        ("APTUSDT", "adopted"),
        ("DOGEUSDT", "stop taken back"),
    }
    assert await stage.found() == {}
    assert stage.exchange.record().without_stop() == stage.exchange.record().orphan_stops() == ()


async def test_the_rows_are_kept_as_they_were_and_every_step_is_logged(stage: Stage) -> None:
    position_id = await stage.row("BTCUSDT")
    done = await stage.clean_up()
    backup = stage.folder / "backup.jsonl"
    assert done["backup"] == str(backup)
    (line,) = backup.read_text().splitlines()
    saved = json.loads(line)
    assert (saved["position"]["id"], saved["position"]["status"]) == (position_id, "active")
    assert backup.stat().st_mode & 0o777 == 0o600
    assert f"position {position_id}: active -> closed" in done["log"]
    again = await stage.run("cleanup", "--confirm", "--backup", done["backup"])
    assert again.exception is None or isinstance(
        again.exception, SystemExit
    )  # nothing left: no backup is made
    await stage.row("ETHUSDT")
    refused = await stage.run("cleanup", "--confirm", "--backup", done["backup"])
    assert isinstance(refused.exception, ConfigurationError)
    assert (await stage.statuses())[-1] == "active"


async def test_a_symbol_that_somebody_holds_is_left_alone(stage: Stage) -> None:
    await stage.row("BTCUSDT")
    async with LockGuard.from_url(
        stage.urls["LOCKGUARD_REDIS_URL"], fence=PostgresFence(stage.pool)
    ) as guard:
        async with guard.hold("binance:BTCUSDT", operation="open long"):
            done = await stage.clean_up()
    assert (done["exit_code"], done["outcomes"][0]["action"]) == (1, "busy")
    assert "open long" in done["outcomes"][0]["details"]
    assert await stage.statuses() == ["active"]


async def test_of_two_rows_of_one_position_the_one_with_the_stop_is_left(stage: Stage) -> None:
    await stage.hold()
    first = await stage.row(stop="12345")
    second = await stage.row(stop=await stage.stop())
    done = await stage.clean_up("--only", "duplicate")
    assert done["exit_code"] == 0, done
    assert await stage.statuses() == ["closed", "active"]
    reason = await stage.pool.fetchval("select exit_reason from monitoring.positions where id = $1", first)
    assert reason == f"duplicate of position {second}"
    record = stage.exchange.record()
    assert (record.position(APT), len(record.open_stops(APT))) == (Decimal(10), 1)
    async with stage.pool.acquire() as conn:
        assert (await migrate(conn)).after > BEFORE_THE_INDEX


async def test_a_position_that_was_doubled_is_halved_and_keeps_one_stop(stage: Stage) -> None:
    await stage.hold(20)
    await stage.row(stop=await stage.stop())
    await stage.row(stop=await stage.stop("8.2"))
    done = await stage.clean_up()
    assert done["exit_code"] == 0, done
    record = stage.exchange.record()
    assert (record.position(APT), len(record.open_stops(APT))) == (Decimal(10), 1)
    assert all(order.reduce_only for order in record.orders[1:])
    assert await stage.statuses() == ["active", "closed"]


async def test_amounts_that_do_not_add_up_are_left_to_a_person(stage: Stage) -> None:
    await stage.hold(13)
    await stage.row(stop=await stage.stop())
    await stage.row()
    done = await stage.clean_up()
    assert (done["exit_code"], done["outcomes"][0]["action"]) == (1, "mismatch")
    assert await stage.statuses() == ["active", "active"]
    assert stage.exchange.record().position(APT) == Decimal(13)


async def test_recover_shows_what_it_would_finish_and_finishes_it_when_confirmed(stage: Stage) -> None:
    await stage.hold()
    await stage.row(status="entry_placed")
    shown = await stage.run("recover")
    assert (shown.exit_code, "APTUSDT" in shown.output) == (1, True), shown.output
    assert await stage.statuses() == ["entry_placed"]
    done = await stage.run("recover", "--confirm", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["outcomes"][0]["action"] == "recovered"
    assert await stage.statuses() == ["active"]
    assert len(stage.exchange.record().open_stops(APT)) == 1
    assert (await stage.run("recover")).exit_code == 0


async def doubled(stage: Stage) -> None:
    await stage.hold(20)
    await stage.row(stop=await stage.stop())
    await stage.row(stop=await stage.stop("8.2"))


async def without_a_stop(stage: Stage) -> None:
    await stage.hold()
    await stage.row()


async def without_a_row(stage: Stage) -> None:
    await stage.hold()


async def without_a_row_beside_its_stop(stage: Stage) -> None:
    await stage.hold()
    await stage.stop("7.5")


async def half_open_in_loss(stage: Stage) -> None:
    await stage.hold()
    position_id = await stage.row(status="entry_placed")
    await stage.pool.execute(
        "update monitoring.positions set entry_order_id = '1' where id = $1", position_id
    )
    stage.exchange.set_price(APT, Decimal("8.2"))


async def ended_with_a_stop_left(stage: Stage) -> None:
    await stage.hold()
    await stage.row(stop=await stage.stop())
    await stage.client.create_order(APT, "market", "sell", 10, None, {"reduceOnly": True})


async def a_stop_left_alone(stage: Stage) -> None:
    await stage.leave_a_stop(APT)


@pytest.mark.parametrize(
    "prepare",
    [
        doubled,
        without_a_stop,
        without_a_row,
        without_a_row_beside_its_stop,
        half_open_in_loss,
        ended_with_a_stop_left,
        a_stop_left_alone,
    ],
)
async def test_the_dry_run_names_every_order_that_the_real_run_sends(stage: Stage, prepare: Any) -> None:
    await prepare(stage)
    shown = json.loads((await stage.run("cleanup", "--json", "--older-than", "0")).stdout)
    named = {numbers_plain(order) for finding in shown["plan"] for order in finding["orders"]}
    before = stage.exchange.record()
    await stage.clean_up()
    after = stage.exchange.record()
    sent = [
        f"{order.side.value.lower()} {order.qty} at market, reduce-only"
        for order in after.orders[len(before.orders) :]
    ]
    sent += [
        f"stop {order.side.value.lower()} {order.qty} at {order.trigger}, reduce-only"
        for order in after.algo_orders[len(before.algo_orders) :]
    ]
    gone = {s.client_id for s in before.open_stops(APT)} - {s.client_id for s in after.open_stops(APT)}
    sent += [f"cancel {client_id}" for client_id in gone]
    for order in map(numbers_plain, sent):
        assert any(line.startswith(order) for line in named), (order, named)


def numbers_plain(line: str) -> str:
    return re.sub(r"(?<=\d)\.?0+(?=[ ,)]|$)", "", re.sub(r"(?<= )(\d+)(?=[ ,)])", r"\1.0", line))


async def test_what_is_missing_is_told_in_one_line(stage: Stage) -> None:
    for variable, command, told in (
        ("LOCKGUARD_DATABASE_URL", ["diagnose"], "give --database"),
        ("LOCKGUARD_EXCHANGE_URL", ["diagnose"], "give --exchange"),
        ("LOCKGUARD_REDIS_URL", ["recover"], "give --redis"),
    ):
        urls = {name: url for name, url in stage.urls.items() if name != variable}
        done = await asyncio.to_thread(CliRunner(env=urls).invoke, positions, command)
        assert isinstance(done.exception, ConfigurationError)
        assert told in str(done.exception)
    done = await stage.run("diagnose", "--exchange", "binanceusdm")
    assert "LOCKGUARD_EXCHANGE_API_KEY" in str(done.exception)


async def test_the_flow_works_on_protected_tables_and_nobody_else_writes_there(stage: Stage) -> None:
    done = await stage.run("migrate", "--protect")
    assert "monitoring.positions is protected" in done.output, done
    async with LockGuard.from_url(
        stage.urls["LOCKGUARD_REDIS_URL"], fence=PostgresFence(stage.pool)
    ) as guard:
        exchange = GuardedExchange(stage.client)
        manager = AtomicPositionManager(
            guard, stage.pool, [exchange], pace=Pace(poll=timedelta(milliseconds=20))
        )
        opened = await manager.open_position_atomic("s", APT, "binance", "long", "10", "8.5", "2")
        assert isinstance(opened, Opened)
        assert await manager.store.tick(opened.position.id, Decimal("8.7"))
        with pytest.raises(asyncpg.PostgresError, match="no token for binance:APTUSDT"):
            await stage.pool.execute("update monitoring.positions set status = 'closed'")
        assert await manager.close_position(APT, "binance") is not None
    assert await stage.statuses() == ["closed"]
