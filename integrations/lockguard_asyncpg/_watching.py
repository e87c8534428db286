"""Reads what was recorded of watched tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard_asyncpg._connection import whole
from lockguard_asyncpg._errors import Meaning, meaning_of, set_up_error
from lockguard_postgres._in_force import unfenced
from lockguard_postgres._watching import COLUMNS, TRIGGERS, WATCHES, WRITES, WatchedTable, watched_tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from asyncpg.pool import PoolConnectionProxy

__all__ = ["watched"]

_OID = "select to_regclass($1)::oid"


async def watched(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    tables: Sequence[str] = (),
    *,
    since: timedelta | None = None,
) -> tuple[WatchedTable, ...]:
    """What was seen of the watched tables: who writes them, and what protection would refuse.

    Args:
        conn: a connection of a role that takes part in fencing or may see the fence.
        tables: only these; all watched ones if empty.
        since: only kinds of writes that were seen within this time; they are counted since the
            watch began.

    Raises:
        ConfigurationError: one of ``tables`` is not watched, no table is, the schema is missing or too old,
            or the role may not read it.
    """
    try:
        # Of one moment, and at a level at which a reader is in no writer's way.
        with unfenced():
            async with whole(conn, isolation="read_committed", readonly=True):
                watches, *others = [await conn.fetch(q) for q in (WATCHES, WRITES, TRIGGERS, COLUMNS)]
                numbers = {w["relation"]: w["relid"] for w in watches}
                meant = {n: numbers.get(n) or await _number(conn, n) for n in tables}
    except asyncpg.PostgresError as exc:
        if meaning_of(exc) is Meaning.CONFIGURATION:
            raise set_up_error(exc) from exc
        raise
    seen = {numbers[t.table]: t for t in watched_tables(watches, *others, since=since)}
    if not seen:
        raise ConfigurationError(
            "no table is watched: begin with lockguard fence protect TABLE --resource ... --watch"
        )
    for name, number in meant.items():
        if number is None:
            raise ConfigurationError(
                f"there is no table {name!r} in this database; write it with its schema: trading.positions"
            )
        if number not in seen:
            raise ConfigurationError(f"{name} is not watched; watched are: {', '.join(numbers)}")
    return (
        tuple(seen[n] for n in dict.fromkeys(meant.values()) if n is not None)
        if tables
        else (*seen.values(),)
    )


async def _number(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], name: str) -> int | None:
    try:
        async with conn.transaction():  # a name that is none fails, and the look goes on
            number: int | None = await conn.fetchval(_OID, name)
            return number
    except asyncpg.InvalidNameError:
        return None
