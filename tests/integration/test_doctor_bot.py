"""``lockguard doctor`` on accounts and positions that are broken on purpose, and what it shows."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from lockguard._cli.app import lockguard, run
from lockguard_asyncpg import install
from lockguard_lab.exchange import Fault, FaultKind, Listing, LocalExchange, Operation
from lockguard_lab.servers import PostgresServer, RedisServer
from lockguard_positions import migrate
from lockguard_positions._schema import protect_positions
from tests.integration.doctor_runs import NONE_OF_OURS, Doctor, Visit, paste

COLUMNS = 80


@dataclass
class Clinic:
    """A whole set-up.

    Attributes:
        exchange: the local exchange.
        conn: to the database.
        doctor: for all of it, by the environment.
    """

    exchange: LocalExchange
    conn: asyncpg.Connection[Any]
    doctor: Doctor

    async def visit(self, *more: str) -> Visit:
        return await asyncio.to_thread(self.doctor.visit, *more)

    async def mend(self, *lines: str) -> None:
        for line in lines:
            await asyncio.to_thread(paste, line, {**self.doctor.env, **self.doctor.passwords})

    async def row(self, symbol: str = "APTUSDT", *, status: str = "active", stop: str | None = None) -> None:
        """A row that got there a while ago."""
        async with self.conn.transaction():
            await self.conn.execute("select lockguard.maintenance('test')")
            position_id = await self.conn.fetchval(
                "insert into monitoring.positions (exchange, symbol, side, quantity, status, entry_price,"
                " stop_loss_percent, stop_order_id, created_at, opened_at) values ('binance', $1, 'long', 10,"
                " 'entry_placed', 8.5, 2, $2, now() - '1 h'::interval, now() - '1 h'::interval) returning id",
                symbol,
                stop,
            )
            way = ["entry_placed", "pending_sl", "active"]
            for step in way[1 : way.index(status) + 1]:
                await self.conn.execute(
                    "update monitoring.positions set status = $2 where id = $1", position_id, step
                )


@pytest.fixture(scope="module")
def sound_redis() -> Any:
    with RedisServer(persistence="aof") as started:
        yield started


@pytest.fixture(scope="module")
def sound_postgres() -> Any:
    with PostgresServer(settings={"fsync": "on", "full_page_writes": "on"}) as started:
        yield started


@pytest.fixture
async def clinic(sound_redis: RedisServer, sound_postgres: PostgresServer) -> AsyncIterator[Clinic]:
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        url = sound_postgres.create_database("bot")
        stack.callback(sound_postgres.drop_database, "bot")
        conn = await asyncpg.connect(url)
        stack.push_async_callback(conn.close)
        for prepare in (install, migrate, protect_positions):
            await prepare(conn)
        env = {
            "LOCKGUARD_REDIS_URL": sound_redis.url,
            "LOCKGUARD_DATABASE_URL": url,
            "LOCKGUARD_EXCHANGE_URL": exchange.url,
        }
        yield Clinic(
            exchange, conn, Doctor((), env, {"PGUSER": "postgres", "PGPASSWORD": sound_postgres.password})
        )


# --- the exchange ---


async def test_a_sound_account_gives_no_warning_and_nothing_is_ever_changed(clinic: Clinic) -> None:
    visit = await clinic.visit("--strict")
    assert (visit.amiss, visit.code) == ([], 0)
    sound = {one["code"] for one in visit.told["findings"] if one["severity"] == "ok"}
    assert sound >= {"exchange.clock", "exchange.mode", "exchange.keys", "positions.wrong"}
    assert visit.told["unchecked"] == []
    changing = {Operation.CREATE_ORDER, Operation.AMEND_ORDER, Operation.CANCEL_ORDER, Operation.CANCEL_ALL}
    changing |= {Operation.CREATE_ALGO, Operation.CANCEL_ALGO, Operation.CANCEL_ALL_ALGOS}
    changing |= {Operation.LEVERAGE, Operation.MARGIN_TYPE, Operation.SET_POSITION_MODE}
    asked = {request.operation for request in clinic.exchange.record().requests}
    assert asked
    assert not asked & changing


@pytest.mark.parametrize(
    ("seconds", "severity"), [(-90, "error"), (90, "error"), (-2, "error"), (7, "warning")]
)
async def test_a_clock_that_the_exchange_refuses(clinic: Clinic, seconds: int, severity: str) -> None:
    clinic.exchange.set_clock_offset(timedelta(seconds=seconds))
    visit = await clinic.visit()
    assert visit.of("exchange.clock")["severity"] == severity
    assert visit.of("exchange.clock")["remedy"] == "timedatectl set-ntp true"
    assert visit.codes <= {"exchange.clock", "clock.offset"}
    assert visit.code == (1 if severity == "error" else 0)
    clinic.exchange.set_clock_offset(timedelta(0))
    assert (await clinic.visit("--strict")).code == 0


async def test_hedge_mode(clinic: Clinic) -> None:
    clinic.exchange.set_hedge_mode(True)
    visit = await clinic.visit()
    assert (visit.codes, visit.code) == ({"exchange.mode"}, 1)
    clinic.exchange.set_hedge_mode(False)
    assert (await clinic.visit("--strict")).code == 0


async def test_what_the_key_may_do(clinic: Clinic) -> None:
    clinic.exchange.set_permissions(withdrawals=True)
    visit = await clinic.visit()
    assert (visit.codes, visit.code) == ({"exchange.withdrawals"}, 0)
    clinic.exchange.set_permissions(futures=False)
    visit = await clinic.visit()
    assert (visit.codes, visit.code) == ({"exchange.keys"}, 1)
    clinic.exchange.set_permissions()
    assert (await clinic.visit("--strict")).code == 0


async def test_keys_that_are_refused(clinic: Clinic) -> None:
    clinic.exchange.deny(-2015, operations=[Operation.POSITION_MODE])
    visit = await clinic.visit()
    assert (visit.codes, visit.code) == ({"exchange.keys"}, 1)


async def test_a_key_whose_rights_cannot_be_read(clinic: Clinic) -> None:
    clinic.exchange.inject(Fault(FaultKind.UNAVAILABLE, Operation.ACCOUNT))
    visit = await clinic.visit()
    assert visit.of("exchange.permissions")["severity"] == "note"
    assert visit.code == 0


async def test_an_exchange_that_bans_or_does_not_answer(clinic: Clinic) -> None:
    clinic.exchange.ban(timedelta(minutes=1))
    visit = await clinic.visit()
    assert (visit.codes, visit.code) == ({"exchange.limits"}, 1)
    clinic.exchange.lift_ban()
    clinic.exchange.set_maintenance(True)
    visit = await clinic.visit()
    assert (visit.codes, visit.code) == ({"exchange.unreachable"}, 3)


@pytest.mark.parametrize("kind", [FaultKind.TRUNCATED, FaultKind.DISCONNECT, FaultKind.UNAVAILABLE])
@pytest.mark.parametrize("operation", [Operation.TIME, Operation.EXCHANGE_INFO, Operation.POSITION_MODE])
async def test_an_exchange_that_answers_badly(clinic: Clinic, kind: FaultKind, operation: Operation) -> None:
    for _ in range(9):  # also where ccxt asks again
        clinic.exchange.inject(Fault(kind, operation))
    visit = await clinic.visit()
    assert (visit.codes, visit.code) == ({"exchange.unreachable"}, 3)


# --- positions ---


async def test_a_position_without_a_stop_and_a_row_on_its_way(clinic: Clinic) -> None:
    clinic.exchange.trade_by_hand("APTUSDT", _buy(), Decimal(10))
    await clinic.row()
    await clinic.row("ETHUSDT", status="pending_sl")
    visit = await clinic.visit()
    assert visit.codes == {"positions.without_stop", "positions.on_their_way"}
    assert "binance:APTUSDT" in visit.of("positions.without_stop")["found"]
    assert visit.code == 1
    await clinic.mend(
        visit.of("positions.without_stop")["remedy"], visit.of("positions.on_their_way")["remedy"]
    )
    assert (await clinic.visit("--strict")).amiss == []


def _buy() -> Any:
    from lockguard_lab.exchange import Side

    return Side.BUY


async def test_the_table_alone_tells_of_rows_without_a_stop(clinic: Clinic) -> None:
    await clinic.row()
    await clinic.row("ETHUSDT", stop="123")
    clinic.doctor.env = {k: v for k, v in clinic.doctor.env.items() if "EXCHANGE" not in k}
    visit = await clinic.visit()
    assert visit.codes == {"positions.without_stop"}
    assert "APTUSDT" in visit.of("positions.without_stop")["found"]
    assert any("Exchange" in what for what in visit.told["unchecked"])


async def test_an_open_row_whose_market_is_gone(clinic: Clinic) -> None:
    await clinic.row(stop="123")
    clinic.exchange.delist_contract("APTUSDT", listing=Listing.GONE)
    visit = await clinic.visit()
    assert (visit.codes, visit.code) == ({"exchange.markets"}, 1)


async def test_old_tables(clinic: Clinic) -> None:
    await clinic.conn.execute("select lockguard.unprotect(t::regclass) from unnest($1::text[]) t", _TABLES)
    await migrate(clinic.conn, to=8)
    visit = await clinic.visit()
    assert visit.codes == {"positions.schema", "postgres.unprotected"}
    await clinic.mend(visit.of("positions.schema")["remedy"] + " --protect")
    assert (await clinic.visit("--strict")).code == 0


_TABLES = ["monitoring.positions", "monitoring.position_intents", "monitoring.signals"]


# --- how it is shown, and called ---


async def test_its_lines_fit_80_columns_and_its_remedies_are_whole(clinic: Clinic) -> None:
    clinic.exchange.set_permissions(withdrawals=True)
    await clinic.row()
    env = {**dict.fromkeys(NONE_OF_OURS), **clinic.doctor.env}
    told = await asyncio.to_thread(CliRunner(env=env).invoke, lockguard, ["doctor", "--watch", "0s"])
    remedies = [one["remedy"] for one in (await clinic.visit()).amiss]
    assert len(remedies) == 2
    lines = told.stdout.splitlines()
    assert all(any(line.strip() == remedy for line in lines) for remedy in remedies)
    assert [line for line in lines if len(line) > COLUMNS and line.strip() not in remedies] == []
    assert told.exit_code == 1


@pytest.mark.parametrize("columns", [40, 60])
async def test_it_can_be_read_in_a_narrow_terminal_with_few_letters(clinic: Clinic, columns: int) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "lockguard", "doctor", "--watch", "0s", "--tables", "\N{SNOWMAN}"],
        env={
            **os.environ,
            **clinic.doctor.env,
            "PYTHONIOENCODING": "latin-1",
            "NO_COLOR": "1",
            "COLUMNS": str(columns),
        },
        capture_output=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.decode("latin-1").splitlines()
    assert (done.stderr, done.returncode) == (b"", 1)
    assert any("\\u2603" in line for line in lines)
    plain = [line for line in lines if "u2603" not in line and " --tables " not in line]
    assert [line for line in plain if len(line) > columns] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--redis", "http://user:hidden@host"],
        ["--redis", "redis://a:hidden/x@host"],
        ["--redis", "redis+sentinel://host/main", "--redis", "redis://host"],
        ["--database", "mysql://user:hidden@host/db"],
        ["--database", "postgresql://user:hid/den@host/db"],
        ["--exchange", "no_such_exchange"],
        ["--exchange", "binanceusdm", "--option", "hidden"],
        ["--ttl", "10"],
        ["--watch", "long"],
    ],
)
def test_a_mistake_in_the_call_is_one_line_without_secrets(
    arguments: list[str], redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NONE_OF_OURS:
        monkeypatch.delenv(name, raising=False)
    first = [] if "--redis" in arguments else ["--redis", redis_url]
    assert run(["doctor", "--watch", "0s", *first, *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "hid" not in told.err


@pytest.mark.parametrize(
    ("missing", "unchecked"),
    [
        (["asyncpg", "ccxt", "tenacity"], ["Postgres", "Exchange", "Positions"]),
        (["ccxt"], ["Exchange", "Positions"]),
    ],
)
async def test_it_checks_what_it_can_without_some_packages(
    clinic: Clinic, missing: list[str], unchecked: list[str]
) -> None:
    block = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"  # as if they were not installed
        "from lockguard._cli import app\n"
        "sys.exit(app.run(['doctor', '--json', '--watch', '0s']))\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", block],
        env={**os.environ, **clinic.doctor.env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = json.loads(done.stdout)
    assert [what.partition(":")[0] for what in told["unchecked"]] == unchecked
    assert all("pip install 'lockguard[" in what for what in told["unchecked"])
    codes = {one["code"] for one in told["findings"]}
    assert "redis.scripts" in codes
    assert ("postgres.schema" in codes) == ("asyncpg" not in missing)
    assert done.returncode == 0
