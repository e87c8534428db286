"""What a watched table tells is what a protected one refuses.

The same writes are made in three tables: one that is watched, one that is protected, and one that is neither.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest

from lockguard_asyncpg import install, protect, watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

APT, BTC = "binance:APTUSDT", "binance:BTCUSDT"
GRANT, OLD = uuid4(), uuid4()
COLUMNS = """
  id bigint not null, exchange text, symbol text, status text not null default 'active',
  price numeric, note text,
  twice numeric generated always as (price * 2) stored, updated_at timestamptz
"""
TOUCH = """
create or replace function public.touch() returns trigger language plpgsql as
  'begin new.updated_at := clock_timestamp(); return new; end'
"""
ROWS = """
insert into {t} (id, exchange, symbol, price) values
  (1, 'binance', 'APTUSDT', 1), (2, 'binance', 'BTCUSDT', 1), (3, 'binance', 'APTUSDT', 1),
  (4, 'kraken', 'APTUSDT', 1), (5, null, 'APTUSDT', 1)
"""
NOTHING = ""
LEASED = f"select lockguard.check('{APT}', 7, '{GRANT}')"
BOTH = f"{LEASED}; select lockguard.check('{BTC}', 7, '{GRANT}')"
BY_HAND = "select set_config('lockguard.leases', '{}', true)"
STALE = BY_HAND.format(json.dumps({APT: [3, str(OLD)]}))
STALE_OF_BOTH = BY_HAND.format(json.dumps({APT: [3, str(OLD)], BTC: [7, str(GRANT)]}))
CLOSED = BY_HAND.format(json.dumps({"kraken:APTUSDT": [7, str(GRANT)]}))
UNSEALED = BY_HAND.format(json.dumps({APT: [7, str(GRANT)], "binance:NEW": [9, str(GRANT)]}))
GARBAGE = BY_HAND.format("{not json")
MAINTENANCE = "select lockguard.maintenance('ticket 12')"
REPLICA = "set local session_replication_role = replica"

WRITES = [
    (NOTHING, "update {t} set status = 'a' where id = 1"),
    (LEASED, "update {t} set status = 'b' where id = 1"),
    (LEASED, "update {t} set status = 'c' where id = 2"),
    (LEASED, "update {t} set status = 'd'"),
    (BOTH, "update {t} set status = 'e' where id in (1, 2, 3)"),
    (STALE, "update {t} set status = 'f' where id = 1"),
    (STALE, "update {t} set status = 'f2' where id in (1, 2)"),
    (STALE_OF_BOTH, "update {t} set status = 'g' where id in (1, 2)"),
    (CLOSED, "update {t} set status = 'h' where id = 4"),
    (UNSEALED, "insert into {t} (id, exchange, symbol) values (20, 'binance', 'NEW')"),
    (GARBAGE, "update {t} set status = 'i' where id = 1"),
    (MAINTENANCE, "update {t} set status = 'j'"),
    (REPLICA, "update {t} set status = 'k' where id = 1"),
    (NOTHING, "update {t} set price = price + 1"),
    (STALE, "update {t} set price = price + 1 where id = 1"),
    (NOTHING, "update {t} set price = 3, note = 'n' where id = 1"),
    (NOTHING, "update {t} set status = status where id = 1"),
    (NOTHING, "update {t} set status = 'nobody' where id = 99"),
    (NOTHING, "update {t} set symbol = 'BTCUSDT' where id = 3"),
    (BOTH, "update {t} set symbol = 'APTUSDT' where id = 3"),
    (NOTHING, "update {t} set status = 'l' where id = 5"),
    (LEASED, "update {t} set exchange = 'binance' where id = 5"),
    (LEASED, "update {t} set exchange = null where id = 5"),
    (NOTHING, "insert into {t} (id, exchange, symbol) values (10, 'binance', 'APTUSDT')"),
    (LEASED, "insert into {t} (id, exchange, symbol) values (11, 'binance', 'APTUSDT') returning id, status"),
    (
        LEASED,
        (
            "insert into {t} (id, exchange, symbol) values (12, 'binance', 'APTUSDT'),"
            " (13, 'binance', 'BTCUSDT')"
        ),
    ),
    (NOTHING, "insert into {t} (id, exchange, symbol) select 30, 'binance', 'APTUSDT' where false"),
    (
        NOTHING,
        (
            "insert into {t} (id, exchange, symbol) values (1, 'binance', 'APTUSDT')"
            " on conflict (id, exchange) do nothing"
        ),
    ),
    (
        NOTHING,
        (
            "insert into {t} as p (id, exchange, symbol, price) values (1, 'binance', 'APTUSDT', 9)"
            " on conflict (id, exchange) do update set price = excluded.price"
        ),
    ),
    (
        NOTHING,
        (
            "insert into {t} as p (id, exchange, symbol) values (1, 'binance', 'APTUSDT'),"
            " (40, 'binance', 'APTUSDT') on conflict (id, exchange) do update set status = 'm'"
        ),
    ),
    (
        NOTHING,
        (
            "with gone as (delete from {t} where id = 40 returning *)"
            " insert into {t} (id, exchange, symbol) select 41, exchange, symbol from gone returning id"
        ),
    ),
    (
        LEASED,
        "with moved as (update {t} set note = 'w' where id = 1 returning id) select count(*) from moved",
    ),
    (
        NOTHING,
        "do $$ begin for i in 1..3 loop update {t} set status = 'n' || i where id = 1; end loop; end $$",
    ),
    (NOTHING, "do $$ begin update {t} set status = 'o' where id = 1; delete from {t} where id = 41; end $$"),
    (NOTHING, "update {t} set note = 'p1' where id = 1; update {t} set note = 'p2' where id = 1"),
    (NOTHING, "update {via} set status = 'v' where symbol = 'APTUSDT' and exchange = 'binance'"),
    (LEASED, "update {via} set status = 'w' where symbol = 'APTUSDT' and exchange = 'binance'"),
    (STALE, "update {via} set price = 7 where symbol = 'APTUSDT' and exchange = 'binance'"),
    (NOTHING, "update {t} set exchange = 'kraken' where id = 1"),
    (NOTHING, "update {t} set exchange = 'binance' where id = 1"),
    (NOTHING, "delete from {parent} where id = 2"),
    (LEASED, "delete from {parent} where id = 3"),
    (NOTHING, "delete from {t} where id in (10, 11)"),
    (LEASED, "delete from {t} where id = 12"),
    (NOTHING, "delete from {t} where id = 99"),
    (NOTHING, "copy"),
    (LEASED, "copy"),
    (MAINTENANCE, "truncate {t}"),
    (NOTHING, "truncate {t}"),
    (LEASED, "truncate {parent} cascade"),
]
MERGES = [
    (
        NOTHING,
        (
            "merge into {t} p using (values (1), (77)) v (x) on p.id = v.x"
            " when matched then update set status = 'q' when not matched then"
            " insert (id, exchange, symbol) values (v.x, 'binance', 'APTUSDT')"
        ),
    ),
    (
        LEASED,
        "merge into {t} p using (values (1)) v (x) on p.id = v.x when matched then update set status = 'r'",
    ),
    (
        NOTHING,
        "merge into {t} p using (values (1)) v (x) on p.id = v.x when matched then update set price = 8",
    ),
    (NOTHING, "merge into {t} p using (values (77)) v (x) on p.id = v.x when matched then delete"),
]
KINDS = {
    "ordinary": ("create table {t} (" + COLUMNS + ", primary key (id))", ""),
    "partitioned": (
        "create table {t} (" + COLUMNS + ") partition by list (exchange)",
        (
            "create table {t}_binance partition of {t} for values in ('binance');"
            "create table {t}_other partition of {t} default"
        ),
    ),
    "inheriting": (
        "create table {t}_base (like {t}_made including defaults); create table {t} () inherits ({t}_base)",
        "",
    ),
}

VIA = {"ordinary": "", "partitioned": "_binance", "inheriting": "_base"}


async def made(conn: asyncpg.Connection[Any], kind: str, table: str, *, touched: bool) -> None:
    before, after = KINDS[kind]
    if kind == "inheriting":
        await conn.execute(
            f"create table {table}_made ({COLUMNS.replace('generated always as (price * 2) stored', '')})"
        )
    await conn.execute(f"{before.format(t=table)}; {after.format(t=table)}")
    if kind == "ordinary":
        await conn.execute(f"alter table {table} drop constraint {table}_pkey")
    await conn.execute(
        f"create table {table}_parent (id bigint primary key);"
        f"insert into {table}_parent select generate_series(1, 100);"
        f"alter table {table} add foreign key (id) references {table}_parent on delete cascade;"
        f"create unique index on {table} (id, exchange); {ROWS.format(t=table)}"
    )
    if touched:
        await conn.execute(
            f"create trigger touch before update on {table} for each row execute function touch()"
        )


async def write(conn: asyncpg.Connection[Any], kind: str, context: str, statement: str, table: str) -> Any:
    """One write in a transaction of its own; what the client gets."""
    async with conn.transaction():
        if context:
            await conn.execute(context)
        if statement == "copy":
            records = [(50 + (context == LEASED), "binance", "APTUSDT")]
            return await conn.copy_records_to_table(
                table, records=records, columns=["id", "exchange", "symbol"]
            )
        text = statement.format(t=table, parent=f"{table}_parent", via=f"{table}{VIA[kind]}")
        if "returning" in text or "select count" in text:
            return [tuple(r) for r in await conn.fetch(text)]
        return await conn.execute(text)


async def seen(conn: asyncpg.Connection[Any], table: str) -> dict[tuple[Any, ...], int]:
    """How many statements would have been refused so far, by what refuses them."""
    (found,) = await watched(conn, [table])
    return {(w.operation, w.verdict, w.columns): w.refused for w in found.writes if not w.passes}


@asynccontextmanager
async def three_tables(
    url: str, kind: str, exempt: list[str], *, touched: bool
) -> AsyncIterator[asyncpg.Connection[Any]]:
    conn = await asyncpg.connect(url)
    try:
        await install(conn)
        await conn.execute(TOUCH)
        for resource in (APT, BTC, "kraken:APTUSDT"):
            await conn.execute("select lockguard.seal($1, 7, $2, 'bot', 'open', 1000)", resource, GRANT)
        await conn.execute("select lockguard.close('kraken:APTUSDT', 7, $1, 1000)", GRANT)
        for table in ("plain", "seen", "kept"):
            await made(conn, kind, table, touched=touched)
        await protect(conn, "seen", resource="{exchange}:{symbol}", exempt=exempt, watch=True)
        await protect(conn, "kept", resource="{exchange}:{symbol}", exempt=exempt)
        yield conn
    finally:
        await conn.close()


async def refusal(
    conn: asyncpg.Connection[Any], kind: str, context: str, statement: str
) -> tuple[str, tuple[str, ...] | None, bool] | None:
    """Why the protected table refuses a write, the changed columns, and whether it names them.

    Then the write is made all the same.
    """
    try:
        await write(conn, kind, context, statement, "kept")
    except asyncpg.PostgresError as exc:
        state = exc.sqlstate or ""
        if state in ("LG001", "LG002"):
            detail = json.loads(exc.detail or "")
            columns = detail.get("columns")
            why = detail["reason"], None if columns is None else tuple(columns), state == "LG002"
        else:
            why = f"error {state}", None, True
        # As it would have gone on, had it not been refused.
        await write(conn, kind, MAINTENANCE, statement, "kept")
        return why
    return None


@pytest.mark.parametrize(
    ("exempt", "touched"), [([], False), (["price", "updated_at"], True)], ids=["all", "exempt"]
)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_watching_tells_is_what_protection_refuses(
    database_url: str, kind: str, exempt: list[str], touched: bool
) -> None:
    async with three_tables(database_url, kind, exempt, touched=touched) as conn:
        writes = WRITES + (MERGES if conn.get_server_version().major >= 15 else [])
        refused = 0
        for context, statement in ordered(writes):
            expected = await refusal(conn, kind, context, statement)
            before = await seen(conn, "seen")
            answers = [await write(conn, kind, context, statement, table) for table in ("plain", "seen")]
            assert answers[0] == answers[1], statement
            after = await seen(conn, "seen")
            new = {key: n - before.get(key, 0) for key, n in after.items() if n != before.get(key, 0)}
            if expected is None:
                assert new == {}, (context, statement)
                continue
            refused += 1
            reason, columns, names_columns = expected
            assert list(new.values()) == [1], (context, statement, new)
            ((_, verdict, changed),) = new
            assert verdict == reason, (context, statement)
            if names_columns:
                assert changed == columns, (context, statement)
        assert sum((await seen(conn, "seen")).values()) == refused
        assert refused > 20
        for table in ("seen", "kept"):
            left = await conn.fetch(
                f"select id, exchange, symbol, status, price, note from {table} except"
                " select id, exchange, symbol, status, price, note from plain"
            )
            assert left == []


def ordered(writes: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Truncation comes last."""
    return sorted(writes, key=lambda w: "truncate" in w[1])
