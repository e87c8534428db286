"""A table that is watched while many processes' worth of writers are at work, with leases and without.

The same scripts are run in an unwatched, a watched and a protected table: the writers get the same answers in
all of them (in the third after what was refused was written under maintenance), and what was recorded of the
second is what the third refused.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from lockguard_asyncpg import install, protect, watched
from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_lab.servers import PostgresServer

WRITERS, WRITES = 9, 40
LEVELS = ("read committed", "repeatable read", "serializable")
TABLES = ("plain", "seen", "kept")
TABLE = """
create table {t} (
  id bigint primary key, symbol text not null, status text not null default 'active',
  price numeric not null default 1
)
"""
Kind = tuple[str, tuple[str, ...] | None]


@pytest.fixture
def urls(postgres_server: PostgresServer, database_url: str) -> Iterator[list[str]]:
    """The database directly, and behind PgBouncer in transaction mode where that is installed."""
    if find_pgbouncer() is None:
        yield [database_url]
        return
    with PgBouncer(postgres_server, pool_size=WRITERS) as pooler:
        yield [database_url, pooler.url_for(database_url)]


def script(writer: int) -> list[tuple[str | None, list[str]]]:
    """Transactions of one writer: what it presents, and its statements; each changes its own rows."""
    chosen = random.Random(writer)
    own = [writer * 1000 + i for i in range(3)]
    made: list[tuple[str | None, list[str]]] = []
    for number in range(WRITES):
        row, fresh = chosen.choice(own), writer * 1000 + 100 + number
        statements = chosen.choice(
            [
                [f"update {{t}} set price = price + 1 where id = {row}"],
                [f"update {{t}} set status = 's{number}' where id = {row} returning status"],
                [f"update {{t}} set status = 's{number}', price = price + 1 where id = {row} returning id"],
                [f"insert into {{t}} (id, symbol) values ({fresh}, 'W{writer}')"],
                [f"delete from {{t}} where id >= {writer * 1000 + 100} and id < {writer * 1000 + 900}"],
                [
                    (
                        f"insert into {{t}} (id, symbol) values ({fresh}, 'W{writer}')"
                        " on conflict (id) do update set price = excluded.price"
                    )
                ],
                [
                    f"update {{t}} set price = price * 1.5 where id = {row}",
                    "savepoint s",
                    f"update {{t}} set status = 'undone' where id = {row}",
                    "rollback to s",
                ],
            ]
        )
        made.append((chosen.choice([None, None, "lease", "stale"]), statements))
    return made


async def present(conn: asyncpg.Connection[Any], what: str | None, writer: int, grant: UUID) -> None:
    if what == "lease":
        await conn.execute(f"select lockguard.check('W{writer}', 7, '{grant}')")
    elif what == "stale":
        claim = json.dumps({f"W{writer}": [3, str(grant)]})
        await conn.execute(f"select set_config('lockguard.leases', '{claim}', true)")


async def made(
    conn: asyncpg.Connection[Any],
    table: str,
    level: str,
    writer: int,
    grant: UUID,
    part: tuple[str | None, list[str]],
) -> list[Any]:
    """One transaction of a script, again where Postgres asks for it; what the writer is told."""
    what, statements = part
    while True:
        try:
            async with conn.transaction():
                await conn.execute(f"set transaction isolation level {level}")
                await conn.execute("set local lock_timeout = '10s'")
                if what == "maintenance":
                    await conn.execute("select lockguard.maintenance('as if it had not been refused')")
                await present(conn, what, writer, grant)
                told: list[Any] = []
                for statement in statements:
                    text = statement.format(t=table)
                    rows = await conn.fetch(text) if "returning" in text else await conn.execute(text)
                    told.append([tuple(r) for r in rows] if isinstance(rows, list) else rows)
                return told
        except asyncpg.SerializationError:
            continue


async def run(
    urls: list[str], table: str, writer: int, grant: UUID, refused: Counter[Kind]
) -> list[list[Any]]:
    """All of a writer's script in one table."""
    conn = await asyncpg.connect(urls[writer % len(urls)], statement_cache_size=0)
    level = LEVELS[writer % 3]
    told = []
    try:
        for part in script(writer):
            try:
                told.append(await made(conn, table, level, writer, grant, part))
            except asyncpg.PostgresError as exc:
                if exc.sqlstate not in ("LG001", "LG002"):
                    raise
                detail = json.loads(exc.detail or "")
                columns = detail.get("columns")
                refused[detail["reason"], None if columns is None else tuple(columns)] += 1
                told.append(await made(conn, table, level, writer, grant, ("maintenance", part[1])))
    finally:
        await conn.close()
    return told


async def test_watching_beside_writers_at_work_changes_nothing_and_tells_what_is_refused(
    conn: asyncpg.Connection[Any], urls: list[str]
) -> None:
    await install(conn)
    grants = [uuid4() for _ in range(WRITERS)]
    for writer, grant in enumerate(grants):
        await conn.execute("select lockguard.seal($1, 7, $2, 'bot', 'open', 1000)", f"W{writer}", grant)
    for table in TABLES:
        await conn.execute(TABLE.format(t=table))
        rows = f"generate_series(0, {WRITERS - 1}) w, generate_series(0, 2) i"
        await conn.execute(f"insert into {table} (id, symbol) select w * 1000 + i, 'W' || w from {rows}")
    await protect(conn, "seen", resource="{symbol}", exempt=["price"], watch=True)
    await protect(conn, "kept", resource="{symbol}", exempt=["price"])
    refused: Counter[Kind] = Counter()
    told = {
        table: await asyncio.gather(*(run(urls, table, w, g, refused) for w, g in enumerate(grants)))
        for table in TABLES
    }
    assert told["plain"] == told["seen"] == told["kept"]
    (seen,) = await watched(conn, ["seen"])
    recorded: Counter[Kind] = Counter()
    for write in seen.writes:
        # The refusal of a stale token names no columns.
        named = write.columns if write.verdict == "unguarded" else None
        recorded[write.verdict, named] += write.refused
    # What was rolled back to a savepoint is refused, but leaves no record.
    undone = sum(
        what in (None, "stale") and "savepoint s" in statements
        for w in range(WRITERS)
        for what, statements in script(w)
    )
    assert sum(refused.values()) - undone == seen.refused == sum(recorded.values())
    assert seen.refused > WRITERS * WRITES / 4
    assert seen.leased > WRITERS
    for kind in {*refused, *recorded}:
        assert refused[kind] >= recorded[kind], kind
    rows_ = [await conn.fetch(f"select * from {table} order by id") for table in TABLES]
    assert rows_[0] == rows_[1] == rows_[2]
    assert await conn.fetchval("select count(*) from lockguard.watched") < WRITERS * 2 * len(seen.writes)
