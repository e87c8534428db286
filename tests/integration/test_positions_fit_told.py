"""What ``lockguard positions fit`` tells: of rows, keys and obstacles that stand in its way, and of stops."""

from __future__ import annotations

import asyncio
import re
from decimal import Decimal

import pytest

from lockguard._cli.app import run
from lockguard.errors import ConfigurationError
from lockguard_lab.exchange import Fault, FaultKind, Operation
from lockguard_positions import migrate, version
from lockguard_positions._fit import _mapping
from lockguard_positions._schema import LATEST
from tests.integration.fitted import (
    APT,
    ETH,
    HOUR,
    OTHERS,
    PLAIN,
    Stage,
    hold,
    managed,
    opens_syncs_and_closes,
    stage,
)

__all__ = ["stage"]


async def test_duplicates_are_named_and_the_fit_goes_on_once_they_are_settled(stage: Stage) -> None:
    await stage.conn.execute(PLAIN)
    insert = (
        "insert into monitoring.positions (symbol, exchange, side, quantity, entry_price, status, strategy)"
        " values ($1, 'binance', 'long', 10, 8.5, $2, 'x') returning id"
    )
    first = await stage.conn.fetchval(insert, "APTUSDT", "active")
    second = await stage.conn.fetchval(insert, "APT/USDT:USDT", "entry_placed")
    told = await stage.read()
    (twice,) = [finding for finding in told["findings"] if finding["kind"] == "duplicate"]
    assert (twice["rows"], twice["blocks"]) == ([str(first), str(second)], True)
    assert f"where id = {second};" in twice["remedy"]
    (spelt,) = [f for f in told["findings"] if f["kind"] == "spelling" and f["level"] == "guard"]
    assert "APT/USDT:USDT, APTUSDT" in spelt["told"]
    done = await stage.apply()
    assert (done.exit_code, await version(stage.conn)) == (1, 3), done.output
    await stage.conn.execute("update monitoring.positions set status = 'rolled_back' where id = $1", second)
    done = await stage.apply()
    assert (done.exit_code, await version(stage.conn)) == (0, LATEST), done.output


async def test_rows_that_cannot_be_read_are_named_one_by_one(stage: Stage) -> None:
    await stage.conn.execute(OTHERS)
    await stage.conn.execute(
        "insert into trading.positions (symbol, exchange, side, quantity, status, opened_at) values"
        f" (null, 'binance', 'long', 1, 'active', {HOUR}), ('APTUSDT', 'binance', 'both', 1, 'active',"
        f" {HOUR}),"
        f" ('ETHUSDT', 'binance', 'long', -1, 'active', {HOUR}), ('SOLUSDT', 'binance', 'SELL', -2,"
        f" 'active', {HOUR}),"
        f" ('XRPUSDT', 'binance', 'long', 1, 'pending_entry', {HOUR}), ('BTCUSDT', 'binance', 'long', 1,"
        f" null, {HOUR})"
    )
    told = await stage.read("trading.positions")
    blocking = [finding["told"] for finding in told["findings"] if finding["blocks"]]
    assert blocking == [
        "1 row(s) have no status",
        "1 row(s) have the side 'both'",
        "row 1 (active, ?) has no symbol",
        "row 3 (active, ETHUSDT) has the quantity -1",
    ]
    (late,) = [finding for finding in told["findings"] if finding["kind"] == "half_done"]
    assert "under the lease of binance:XRPUSDT in a fenced transaction" in late["remedy"]
    adopts = re.search("update trading.*?;", late["remedy"])
    assert adopts is not None
    for held, status in ((Decimal(0), "canceled"), (Decimal(1), "active")):
        await stage.conn.execute(adopts[0], int(late["rows"][0]), held)
        assert await stage.conn.fetchval("select status from trading.positions where id = 5") == status


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("trading.none", "there is no table 'trading.none'"),
        ("trading.open_positions", "is a view"),
        ("trading.counted", "is a materialized view"),
        ("trading.far", "is a foreign table"),
        ("trading.parts_all", "is a partition"),
        (
            "trading.nameless",
            "has no column for the symbol; name it with --column symbol=NAME; it has id, coin",
        ),
        ("'; drop table trading.positions; --", "there is no table"),
    ],
)
async def test_what_can_never_fit_is_refused_in_one_line(
    stage: Stage, name: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await stage.conn.execute(OTHERS)
    before = await stage.shape()
    done = await stage.apply(name)
    assert isinstance(done.exception, ConfigurationError)
    assert why in str(done.exception)
    assert "\n" not in str(done.exception)
    assert await stage.shape() == before
    typed = ["positions", "fit", name, "--database", stage.urls["LOCKGUARD_DATABASE_URL"], "--apply", "--yes"]
    assert await asyncio.to_thread(run, typed) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("name", "why", "remedy"),
    [
        (
            "trading.parts",
            "is partitioned: its unique indexes must have the partition key",
            "look and guard work",
        ),
        (
            "trading.keyless",
            "id alone is not unique: the primary key is (symbol, exchange)",
            "create unique index",
        ),
        ("trading.keyless", "id has no default", "add generated by default as identity"),
        ("trading.keyless", "allows one row per symbol, exchange for ever", "drop constraint keyless_pkey;"),
    ],
)
async def test_keys_that_no_row_of_the_flow_could_have_are_told(
    stage: Stage, name: str, why: str, remedy: str
) -> None:
    await stage.conn.execute(OTHERS)
    told = await stage.read(name)
    (finding,) = [each for each in told["findings"] if why in each["told"]]
    assert finding["blocks"]
    assert remedy in finding["remedy"]
    assert (await stage.fit(name)).exit_code == (2 if finding["never"] else 1)


PLACE = """
create schema monitoring; create schema old;
create type old.stage as enum ('active', 'closed');
create table old.stages (word text primary key); insert into old.stages values ('active'), ('closed');
create table monitoring.positions (id bigserial primary key, symbol text not null, exchange text not null,
  side text not null, quantity numeric not null, status text not null, deleted_at timestamptz, strategy text);
"""
OBSTACLES = {
    "a key of an expression": (
        "create unique index u on monitoring.positions (upper(symbol))",
        "u allows one row per upper(symbol) for ever",
    ),
    "a key of the rows that are not deleted": (
        "create unique index u on monitoring.positions (exchange, symbol) where deleted_at is null",
        "u allows one row per exchange, symbol where (deleted_at IS NULL) for ever",
    ),
    "a key with a column that always has the same value": (
        "alter table monitoring.positions alter strategy set default 'main', add unique (symbol, strategy)",
        "allows one row per symbol, strategy for ever",
    ),
    "an exclusion": (
        (
            "create extension btree_gist;"
            " alter table monitoring.positions add exclude using gist (symbol with =)"
        ),
        "allows one row per symbol for ever",
    ),
    "a rule": (
        "create rule r as on insert to monitoring.positions do also notify inserted",
        "rule r on INSERT rewrites what lockguard writes",
    ),
    "a table that a crash empties": (
        "alter table monitoring.positions set unlogged",
        "is unlogged: a crash empties it",
    ),
    "numbers given by hand": (
        "update monitoring.positions set id = 2; alter sequence monitoring.positions_id_seq restart",
        "the next id would be 1, and there are rows up to 2",
    ),
    "a list of statuses": (
        "alter table monitoring.positions add constraint f foreign key (status) references old.stages",
        "f refuses status pending_entry, ",
    ),
    "a market that is none": (
        (
            "alter table monitoring.positions add market text not null default 'futures'"
            " check (market in ('spot', 'futures'))"
        ),
        "market is 'futures' in a row",
    ),
    "a column made of the status": (
        (
            "alter table monitoring.positions alter status type old.stage using status::old.stage,"
            " add is_open boolean generated always as (status = 'active') stored"
        ),
        "the type of status (old.stage) cannot be changed: generated column is_open depends on it",
    ),
}


@pytest.mark.parametrize("kind", OBSTACLES)
async def test_what_would_refuse_the_flow_is_told_and_once_removed_a_position_opens_and_closes(
    stage: Stage, kind: str
) -> None:
    made, why = OBSTACLES[kind]
    await stage.conn.execute(PLACE)
    await stage.conn.execute(
        "insert into monitoring.positions (symbol, exchange, side, quantity, status)"
        " values ('ETHUSDT', 'binance', 'long', 1, 'closed')"
    )
    await stage.conn.execute(made)
    told = await stage.read()
    (finding,) = [each for each in told["findings"] if why in each["told"]]
    assert finding["blocks"]
    assert (await stage.apply()).exit_code == 1
    (remedy,) = re.findall(r"(?:alter|drop|select) .*;", finding["remedy"]) or [
        "alter table monitoring.positions drop is_open"
    ]
    await stage.conn.execute(remedy)
    done = await stage.apply()
    assert (done.exit_code, await stage.conn.fetchval("select count(*) from monitoring.positions")) == (0, 1)
    await opens_syncs_and_closes(stage)


@pytest.mark.parametrize(
    "harmless",
    [
        "create unique index u on monitoring.positions (lower(symbol)) where status = 'active'",
        "create unique index u on monitoring.positions (symbol, id)",
        "create unique index u on monitoring.positions (symbol, strategy)",
        "alter table monitoring.positions add market text check (market in ('spot', 'futures'))",
        "create rule r as on delete to monitoring.positions do instead nothing",
    ],
)
async def test_what_the_flow_never_meets_is_not_in_its_way(stage: Stage, harmless: str) -> None:
    await stage.conn.execute(PLACE)
    await stage.conn.execute(harmless)
    done = await stage.apply()
    assert (done.exit_code, done.exception) == (0, None), done.output
    await opens_syncs_and_closes(stage)


async def test_a_trigger_that_swallows_the_row_is_named_and_nothing_is_ordered(stage: Stage) -> None:
    await stage.conn.execute(PLACE)
    await stage.conn.execute(
        "create function old.swallow() returns trigger language plpgsql as 'begin return null; end';"
        " create trigger swallow before insert on monitoring.positions"
        " for each row execute function old.swallow()"
    )
    assert (await stage.apply()).exit_code == 0
    async with managed(stage) as manager:
        with pytest.raises(ConfigurationError, match="a trigger BEFORE INSERT that returns NULL swallows it"):
            await manager.open_position_atomic("signal-7", "ETHUSDT", "binance", "long", "1", "2500", "2")
    assert await stage.client.fetch_positions([ETH]) == []


async def test_a_table_that_lockguard_made_fits_as_it_is(stage: Stage) -> None:
    await migrate(stage.conn)
    before = await stage.shape()
    done = await stage.apply()
    assert (done.exit_code, await stage.shape()) == (0, before), done.output
    told = await stage.fit()
    assert (told.exit_code, "It fits for level flow" in told.output) == (0, True), told.output


async def test_the_columns_are_those_of_the_migrations(stage: Stage) -> None:
    await migrate(stage.conn)
    found = await stage.conn.fetch(
        "select column_name, data_type from information_schema.columns"
        " where table_schema = 'monitoring' and table_name = 'positions'"
    )
    assert {row["column_name"]: row["data_type"] for row in found} == _mapping.TYPES


async def test_the_exchange_says_which_stops_stand_and_nothing_is_written_or_ordered(stage: Stage) -> None:
    await stage.conn.execute(PLAIN)
    stop = await hold(stage)
    await stage.client.create_order("SOL/USDT:USDT", "market", "buy", 3)
    await stage.conn.execute(
        "insert into monitoring.positions (symbol, exchange, side, quantity, entry_price, status,"
        " sl_order_id,"
        " strategy, opened_at)"
        f" values ('APTUSDT', 'binance', 'long', 10, 8.5, 'active', $1, 'x', {HOUR}),"
        f" ('ETHUSDT', 'binance', 'long', 1, 2500, 'active', '999', 'x', {HOUR}),"
        f" ('NONEUSDT', 'binance', 'long', 1, 1, 'active', null, 'x', {HOUR})",
        stop,
    )
    before, orders = await stage.shape(), await stage.client.fetch_open_orders(APT, params={"trigger": True})
    assert (await stage.fit("--level", "look", exchange=True)).exit_code == 1
    found = await stage.read("--level", "look", exchange=True)
    told = " | ".join(finding["told"] for finding in found["findings"])
    assert f"row 1 APTUSDT: its stop {stop} stands, sell 10" in told
    assert "row 2 ETHUSDT: its stop 999 is not there" in told
    assert "orphaned_row binance:ETHUSDT" in told
    assert "orphaned_position binance:SOLUSDT" in told
    assert "row 3 was not compared: binance lists no market NONEUSDT" in told
    assert await stage.shape() == before
    assert await stage.client.fetch_open_orders(APT, params={"trigger": True}) == orders


async def test_an_exchange_that_does_not_answer_is_no_answer(stage: Stage) -> None:
    await stage.conn.execute(PLAIN)
    stage.exchange.inject(Fault(FaultKind.UNAVAILABLE, Operation.POSITIONS, times=10))
    done = await stage.fit("--level", "look", exchange=True)
    assert (done.exit_code, "binance could not be read" in done.output) == (3, True), done.output
