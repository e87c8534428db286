"""No call of the fence depends on how many rows any of its tables has: rows and pages are counted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from lockguard._lease import new_grant_id
from lockguard_asyncpg import install
from lockguard_asyncpg._schema import SCHEMA_VERSION

HERE = "binance:APTUSDT"
ROWS = 20_000
NUMBER = (1 << 62) + 1025
# One page more for each level that an index has grown by, on each look into each of the tables.
PAGES_MORE_MAX = 30
FILL = {
    "fence": (
        "insert into lockguard.fence (resource, token, grant_id, holder, operation, released_at)"
        " select 'other:' || g, 5, gen_random_uuid(), 'h', 'o', clock_timestamp()"
        " from generate_series(1, $1) g"
    ),
    "writer": (
        "insert into lockguard.writer (resource, slot, token, sequence, first)"
        " select case g % 2 when 0 then 'binance:APTUSDT' else 'other:' || g end, g, 5, g, g"
        " from generate_series(1, $1) g"
    ),
    "outcome": (
        "insert into lockguard.outcome (resource, token, sequence)"
        " select case g % 2 when 0 then 'binance:APTUSDT' else 'other:' || g end, 5, g"
        " from generate_series(1, $1) g"
    ),
    "forgotten": (
        "insert into lockguard.forgotten (resource, token, sequence)"
        " select 'other:' || g, 5, g from generate_series(1, $1) g"
    ),
    "audit": (
        "insert into lockguard.audit (action, subject, reason)"
        " select 'break', 'binance:APTUSDT', 'why' from generate_series(1, $1) g"
    ),
}
CALLS = {
    "a seal that travels": f"lockguard.check_first($1, $2, $3, 'h', 'o', {NUMBER - 1})",
    "seal": "lockguard.seal($1, $2, $3, 'h', 'o', 5000)",
    "check": f"lockguard.check($1, $2, $3, {NUMBER})",
    "check again": f"lockguard.check($1, $2, $3, {NUMBER + 1})",
    "check, as a library of before": "lockguard.check($1, $2, $3, 17)",
    "status": "lockguard.status($1)",
    "who is in the way": "lockguard.at_the_gate($1)",
    "evict": "lockguard.evict($1, $2)",
    "resolve": f"lockguard.resolve($1, $2, {NUMBER + 1}, 5000)",
    "resolve what never was": f"lockguard.resolve($1, $2, {NUMBER + 2048}, 5000)",
    "resolve, as a library of before": "lockguard.resolve($1, $2, 18, 5000)",
    "the last check": f"lockguard.check_last($1, $2, $3, {NUMBER + 4096})",
    "close": "lockguard.close($1, $2, $3, 5000)",
    "break": "lockguard.break_($1, 'why', 5000)",
}
TOUCHED = """
select coalesce(sum(seq_tup_read), 0)::int as scanned, coalesce(sum(idx_tup_fetch), 0)::int as fetched,
       coalesce(sum(n_tup_ins + n_tup_upd), 0)::int as written, coalesce(sum(n_tup_del), 0)::int as deleted
  from pg_stat_xact_all_tables where schemaname = 'lockguard'
"""


@dataclass(frozen=True)
class Touched:
    """Rows by each call, as the server counts them, and pages."""

    rows: dict[str, tuple[int, ...]]
    pages: dict[str, int]


async def touched(conn: asyncpg.Connection[Any], token: int) -> Touched:
    """What all calls touch, one after the other, in a transaction that is rolled back."""
    grant, rows, pages = UUID(new_grant_id()), {}, {}
    transaction = conn.transaction()
    await transaction.start()
    try:
        for name, call in CALLS.items():
            used = [value for n, value in enumerate((HERE, token, grant), 1) if f"${n}" in call]
            before = await conn.fetchrow(TOUCHED)
            plan = json.loads(
                await conn.fetchval(f"explain (analyze, buffers, format json) select {call}", *used)
            )[0]["Plan"]
            after = await conn.fetchrow(TOUCHED)
            assert before is not None
            assert after is not None
            rows[name] = tuple(new - old for new, old in zip(after, before, strict=True))
            pages[name] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    finally:
        await transaction.rollback()
    return Touched(rows, pages)


@pytest.mark.parametrize("analyzed", [False, True], ids=["unknown to the planner", "analyzed"])
async def test_no_seal_check_close_resolve_or_break_depends_on_how_many_rows_any_table_has(
    database_url: str, analyzed: bool
) -> None:
    conn = await asyncpg.connect(database_url)
    try:
        await install(conn)
        await touched(conn, 7)  # what a session learns once, of functions and tables
        before = await touched(conn, 7)
        await conn.execute("alter table lockguard.fence disable trigger user")
        for fill in FILL.values():
            await conn.execute(fill, ROWS)
        if analyzed:
            await conn.execute("analyze")
        await touched(conn, 7)
        after = await touched(conn, 7)
    finally:
        await conn.close()
    # Fewer, where a table of a row or two is read as a whole.
    grown = {n: (before.rows[n], rows) for n, rows in after.rows.items() if sum(rows) > sum(before.rows[n])}
    assert not grown, grown
    assert {deleted for *_, deleted in after.rows.values()} == {0}
    more = {name: pages - before.pages[name] for name, pages in after.pages.items()}
    assert max(more.values()) <= PAGES_MORE_MAX, (more, before.pages)
    assert max(sum(counts) for counts in after.rows.values()) < 20, after.rows


async def test_the_tables_that_are_filled_are_all_that_the_fence_has(database_url: str) -> None:
    conn = await asyncpg.connect(database_url)
    try:
        await install(conn)
        found = await conn.fetch(
            "select relname from pg_class where relkind = 'r' and relnamespace = 'lockguard'::regnamespace"
        )
    finally:
        await conn.close()
    # What is there once, or once for each protected table, or is bounded.
    few = {
        "schema_version",
        "protected",
        "declared",
        "sweep",
        "guarded",
        "floor",
        "identity",
        "part",
        "refusal",
        "watched",
    }
    assert {row["relname"] for row in found} - few == set(FILL), SCHEMA_VERSION
