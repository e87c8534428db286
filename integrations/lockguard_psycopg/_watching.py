"""Reads what was recorded of watched tables, over a synchronous connection of psycopg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

from lockguard_postgres._errors import Meaning
from lockguard_postgres._in_force import unfenced
from lockguard_postgres._watching import COLUMNS, TRIGGERS, WATCHES, WRITES, WatchedTable, watched_tables
from lockguard_psycopg._errors import ERRORS
from lockguard_psycopg._setup import require_synchronous

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["watched"]


def watched(conn: psycopg.Connection[Any], *, since: timedelta | None = None) -> tuple[WatchedTable, ...]:
    """What was seen of the watched tables: who writes them, and what protection would refuse.

    Args:
        conn: a connection of a role that takes part in fencing or may see the fence.
        since: only kinds of writes that were seen within this time; they are counted since the
            watch began.

    Raises:
        ConfigurationError: the schema is missing or too old, the role may not read it, or ``conn`` is no
            synchronous connection.
    """
    require_synchronous(conn)
    try:
        with unfenced(), conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
            answers = [cursor.execute(query).fetchall() for query in (WATCHES, WRITES, TRIGGERS, COLUMNS)]
    except psycopg.Error as exc:
        if ERRORS.meaning_of(exc) is Meaning.CONFIGURATION:
            raise ERRORS.set_up_error(exc) from exc
        raise
    return watched_tables(*answers, since=since)
