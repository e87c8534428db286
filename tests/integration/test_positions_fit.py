"""``lockguard positions fit`` on tables as bots have them: what it does, and what works then."""

from __future__ import annotations

import asyncpg
import pytest

from lockguard_positions import PositionStatus, version
from tests.integration.fitted import (
    APT,
    CHECKED,
    ENUM,
    FLOATS,
    HOUR,
    PLAIN,
    RENAMED,
    UUID,
    Stage,
    hold,
    managed,
    opens_syncs_and_closes,
    stage,
    until,
    writer,
)

__all__ = ["stage"]


async def test_a_plain_table_is_fitted_beside_its_writer_and_the_flow_takes_over_its_stop(
    stage: Stage,
) -> None:
    await stage.conn.execute(PLAIN)
    stop = await hold(stage)
    await stage.conn.execute(
        "insert into monitoring.positions (symbol, exchange, side, quantity, entry_price, status,"
        " sl_order_id, strategy,"
        f" opened_at) values ('APTUSDT', 'binance', 'long', 10, 8.5, 'active', $1, 'x', {HOUR}),"
        f" ('BTCUSDT', 'binance', 'short', 1, 60000, 'closed', null, 'x', {HOUR})",
        stop,
    )
    before = await stage.shape()
    told = await stage.fit()
    assert (told.exit_code, await stage.shape()) == (1, before), told.output
    async with writer(stage) as written:
        done = await stage.apply()
        await until(lambda: len(written) > 20)
    assert (done.exit_code, "monitoring.positions fits." in done.output) == (0, True), done.output
    assert (await stage.fit()).exit_code == 0
    async with managed(stage) as manager:
        report = await manager.sync_exchange_positions("binance")
        assert {o.symbol: o.action.value for o in report.outcomes} == {"APTUSDT": "in step"}
    await opens_syncs_and_closes(stage)
    async with managed(stage) as manager:
        closed = await manager.close_position("APTUSDT", "binance")
        assert closed is not None
        assert closed.status is PositionStatus.CLOSED
    assert await stage.client.fetch_open_orders(APT, params={"trigger": True}) == []


async def test_an_enum_of_statuses_becomes_text_and_its_checks_and_indexes_follow(stage: Stage) -> None:
    await stage.conn.execute(ENUM)
    await stage.conn.execute(
        "insert into monitoring.positions (symbol, exchange, side, quantity, status)"
        " values ('BTCUSDT', 'binance', 'long', 1, 'closed')"
    )
    told = await stage.fit()
    assert "rewrites the table" in told.output
    done = await stage.apply()
    assert done.exit_code == 0, done.output
    assert (
        await stage.conn.fetchval("select pg_typeof(status)::text from monitoring.positions limit 1")
        == "text"
    )
    with pytest.raises(asyncpg.CheckViolationError):
        await stage.conn.execute(
            "insert into monitoring.positions (symbol, exchange, side, quantity, status)"
            " values ('APTUSDT', 'binance', 'both', 1, 'pending_entry')"
        )
    await opens_syncs_and_closes(stage)


async def test_statuses_that_nobody_knows_are_asked_for_and_checks_let_the_flow_pass(stage: Stage) -> None:
    await stage.conn.execute(CHECKED)
    stop = await hold(stage)
    await stage.conn.execute(
        "insert into monitoring.positions (symbol, exchange, side, quantity, status, stop_loss_order_id,"
        " created_at)"
        f" values ('APT/USDT:USDT', 'Binance', 'BUY', 10, 'OPEN', $1, {HOUR}),"
        f" ('BTCUSDT', 'binance', 'SELL', 1, 'CLOSED', 7, {HOUR})",
        int(stop),
    )
    found = await stage.read()
    asked = [finding["remedy"] for finding in found["findings"] if finding["kind"] == "status"]
    assert asked == ["--map OPEN=active"]  # CLOSED is closed in any case of its letters
    assert {step["phase"] for step in found["statements"]} == {"beside"}
    assert (await stage.apply()).exit_code == 1
    assert await version(stage.conn) == 0
    done = await stage.apply("--map", "OPEN=active")
    assert done.exit_code == 0, done.output
    row = await stage.conn.fetchrow("select * from monitoring.positions where status = 'active'")
    assert row is not None
    assert (row["symbol"], row["market"], row["exchange"], row["side"]) == ("APTUSDT", APT, "binance", "long")
    assert row["stop_order_id"] == stop
    async with managed(stage) as manager:
        report = await manager.sync_exchange_positions("binance")
        assert {o.symbol: o.action.value for o in report.outcomes} == {"APTUSDT": "in step"}
    await opens_syncs_and_closes(stage)


async def test_floats_and_coarse_numerics_become_exact(stage: Stage) -> None:
    await stage.conn.execute(FLOATS)
    await stage.conn.execute(
        "insert into monitoring.positions (symbol, exchange, side, quantity, entry_price, status)"
        " values ('BTCUSDT', 'binance', 'long', 0.1, 60000, 'closed')"
    )
    told = await stage.read()
    changed = [step["sql"] for step in told["statements"] if " type " in step["sql"]]
    assert [text.split(" type ")[0].split()[-1] for text in changed] == [
        "quantity",
        "entry_price",
        "stop_price",
    ]
    done = await stage.apply()
    assert done.exit_code == 0, done.output
    assert str(await stage.conn.fetchval("select quantity from monitoring.positions")) == "0.1"
    await opens_syncs_and_closes(stage)


ODD = {
    "numbers for statuses, a domain, times without a zone": (
        """
create schema monitoring;
create domain monitoring.amount as numeric(20, 8) check (value > 0);
create table monitoring.positions (id serial primary key, symbol char(12) not null, exchange varchar not null,
  side varchar(5) not null, quantity monitoring.amount,
  status int not null default 0 check (status between 0 and 2), opened_at timestamp default now());
create unique index one_open on monitoring.positions (symbol) where status = 1;
insert into monitoring.positions (symbol, exchange, side, quantity, status)
  values ('BTCUSDT', 'binance', 'long', 1, 2);
""",
        ("--map", "0=pending_entry", "--map", "1=active", "--map", "2=closed"),
    ),
    "a trigger, amounts of ended rows at 0, signed amounts": (
        """
create schema monitoring;
create table monitoring.positions (id serial primary key, symbol text not null, exchange text not null,
  side text not null, quantity int not null, status text not null, updated_at timestamptz);
create function public.stamp() returns trigger language plpgsql as
  $$ begin new.updated_at := now(); return new; end $$;
create trigger stamp before update on monitoring.positions for each row execute function public.stamp();
insert into monitoring.positions (symbol, exchange, side, quantity, status)
  values ('BTCUSDT', 'binance', 'long', 0, 'cancelled'), ('SOLUSDT', 'kraken', 'sell', -2, 'ACTIVE');
""",
        (),
    ),
}


@pytest.mark.parametrize("kind", ODD)
async def test_odd_types_and_values_are_put_in_lockguards_form(stage: Stage, kind: str) -> None:
    made, said = ODD[kind]
    await stage.conn.execute(made)
    done = await stage.apply(*said)
    assert done.exit_code == 0, (done.output, done.exception)
    await opens_syncs_and_closes(stage)
    found = await stage.conn.fetch(
        "select side, quantity, status from monitoring.positions order by id limit 2"
    )
    rows = [(row["side"], int(row["quantity"]), row["status"]) for row in found]
    assert rows[0] in {("long", 1, "closed"), ("long", 0, "canceled")}
    assert rows[1] in {("long", 1, "closed"), ("short", 2, "active")}


async def test_a_column_that_means_something_else_is_told_and_nothing_is_offered(stage: Stage) -> None:
    await stage.conn.execute(
        "create schema monitoring; create table monitoring.positions (id serial primary key, symbol text,"
        " exchange text, side text, quantity float8, is_open boolean, token text);"
        " create view public.sums as select quantity from monitoring.positions"
    )
    told = await stage.read()
    remedies = {finding["told"]: finding["remedy"] for finding in told["findings"]}
    assert [text.split(";")[0] for text in remedies] == [
        "monitoring.positions has no column for status",
        "the type of quantity (double precision) cannot be changed: rule _RETURN on view sums depends on it",
        "token is text, and lockguard keeps bigint in token",
    ]
    assert "rename column token to token_old;" in list(remedies.values())[2]
    assert told["statements"] == []


async def test_a_uuid_table_may_be_looked_at_and_guarded_but_not_be_the_flows(stage: Stage) -> None:
    await stage.conn.execute(UUID)
    before = await stage.shape()
    done = await stage.apply()
    assert done.exit_code == 2, done.output
    assert (await stage.fit("--level", "look")).exit_code == 0
    told = await stage.read()
    assert told["levels"]["flow"].startswith("this table cannot have it: id is uuid")
    assert "fence protect monitoring.positions --resource '{exchange}:{symbol}'" in told["levels"]["guard"]
    assert await stage.shape() == before


async def test_a_table_of_other_names_moves_under_a_view_of_its_own_name(stage: Stage) -> None:
    await stage.conn.execute(RENAMED)
    old = 'public."My.Trades ü"'
    insert = (
        f"insert into {old} (ticker, venue, direction, qty, state, sl_id) values ($1, 'binance', 'long', 1,"
        " $2, 's1')"
    )
    await stage.conn.execute(insert, "BTCUSDT", "closed")
    prepared = await stage.conn.prepare(f"select ticker, qty from {old} order by pos_id")
    assert len(await prepared.fetch()) == 1
    for name in (old, "My.Trades ü"):
        assert (await stage.fit(name)).exit_code == 1
    done = await stage.apply(old)
    assert done.exit_code == 0, done.output
    assert [row["ticker"] for row in await prepared.fetch()] == [
        "BTCUSDT"
    ]  # old code, with its old statement
    await stage.conn.execute(f"{insert} on conflict (pos_id) do nothing", "SOLUSDT", "pending_entry")
    await stage.conn.execute(f"update {old} set state = 'canceled' where ticker = 'SOLUSDT'")
    assert (
        await stage.conn.fetchval("select count(*) from monitoring.positions where symbol = 'SOLUSDT'") == 1
    )
    await opens_syncs_and_closes(stage)
    assert (await stage.fit()).exit_code == 0
    refused = await stage.fit(old)
    assert (refused.exit_code, "is a view" in refused.output) == (1, True) or "is a view" in str(
        refused.exception
    )


async def test_columns_of_other_names_are_renamed_in_place_where_no_view_can_stand(stage: Stage) -> None:
    await stage.conn.execute(
        "create schema monitoring;"
        " create table monitoring.positions (id bigserial primary key, coin text not null,"
        " side text not null, lots numeric not null, status text not null, since timestamptz default now())"
    )
    told = await stage.fit()
    assert (told.exit_code, "name it with --column symbol=NAME" in str(told.exception)) == (1, True)
    said: tuple[str, ...] = (
        "--column",
        "symbol=coin",
        "--column",
        "quantity=lots",
        "--column",
        "opened_at=since",
    )
    told = await stage.fit(*said)
    assert "say which it is: --exchange-name binance" in told.output
    said = (*said, "--exchange-name", "binance")
    found = await stage.read(*said)
    (renaming,) = [step for step in found["statements"] if step["renames"]]
    assert renaming["phase"] == "switch"
    assert (await stage.fit("--apply", "--yes", *said)).exit_code == 1
    await stage.conn.execute(
        "insert into monitoring.positions (coin, side, lots, status) values ('BTCUSDT', 'long', 1, 'closed')"
    )
    done = await stage.apply(*said)
    assert done.exit_code == 0, done.output
    assert (await stage.fit(*said)).exit_code == 0  # the same call again
    assert await stage.conn.fetchval("select exchange from monitoring.positions") == "binance"
    await opens_syncs_and_closes(stage)
