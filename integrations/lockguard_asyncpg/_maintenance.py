"""An operator's work on the whole fence: to prune resources long closed, and to recover after lost commits.

The database's part is in ``sql/0009_long_gone.sql`` and ``sql/0007_recover.sql``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._times import require_timedelta
from lockguard.errors import ConfigurationError
from lockguard_asyncpg._connection import whole
from lockguard_asyncpg._errors import Meaning, meaning_of, set_up_error

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

__all__ = ["Prunable", "Recovered", "count_prunable", "prune_resources", "shut_out_all"]

_AGE_MIN = timedelta(days=2)
_AGE_MAX = timedelta(days=36_500)
_PART = 500
_PRUNE = "select last, pruned from lockguard.prune_resources($1, $2, $3)"
_COUNT = "select gone, resources from lockguard.count_long_gone($1)"
_RECORDS = "select lockguard.prune()"


@dataclass(frozen=True, slots=True)
class Prunable:
    """How many resources can be pruned.

    Attributes:
        gone: the number of resources that have been closed for long enough.
        resources: the number of all resources for which the fence has a row.
    """

    gone: int
    resources: int


async def count_prunable(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], *, older_than: timedelta
) -> Prunable:
    """How many resources :func:`prune_resources` would remove. Changes nothing.

    Args:
        conn: a connection of the role that owns the schema.
        older_than: how long they must have been closed; at least 2 days.

    Raises:
        ConfigurationError: an age out of bounds, too little privilege, or no schema.
    """
    _require_age(older_than)
    try:
        row = await conn.fetchrow(_COUNT, older_than)
    except asyncpg.PostgresError as exc:
        raise _said(exc) from exc
    assert row is not None, "an aggregate has a row"
    return Prunable(row["gone"], row["resources"])


async def prune_resources(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], *, older_than: timedelta
) -> int:
    """Remove the resources that have been closed for long; no token of theirs is ever accepted again.

    Each of its transactions removes a part of them, and waits for no other session. The next grant of such a
    resource gets a token above all that the resource had.

    Args:
        conn: a connection of the role that owns the schema, outside of a transaction.
        older_than: how long they must have been closed; at least 2 days, during which the outcome of a write
            may be looked up.

    Returns:
        How many were removed.

    Raises:
        ConfigurationError: an age out of bounds, too little privilege, or no schema.
    """
    _require_age(older_than)
    pruned, last = 0, ""
    try:
        while await conn.fetchval(_RECORDS):  # records of writes of more than 36 hours ago go first
            pass
        while True:
            async with whole(conn, isolation="read_committed"):
                row = await conn.fetchrow(_PRUNE, older_than, last, _PART)
            if row is None or row["last"] is None:
                return pruned
            pruned, last = pruned + row["pruned"], row["last"]
    except asyncpg.PostgresError as exc:
        raise _said(exc) from exc


def _require_age(age: timedelta) -> None:
    require_timedelta("older_than", age)
    if not _AGE_MIN <= age <= _AGE_MAX:
        raise ConfigurationError(
            f"older_than={age.total_seconds() / 86_400:g} days cannot work: what became of a write can be"
            f" asked for longer than a day; use {_AGE_MIN.days} to {_AGE_MAX.days} days"
        )


def _said(exc: asyncpg.PostgresError) -> Exception:
    if isinstance(exc, asyncpg.InsufficientPrivilegeError):
        return ConfigurationError(f"{exc.message}; prune as the role that owns lockguard's schema")
    return set_up_error(exc) if meaning_of(exc) is Meaning.CONFIGURATION else exc


_RECOVER = "select last, raised, were_open from lockguard.recover($1, $2, $3, $4)"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What :func:`shut_out_all` did.

    Attributes:
        raised: the number of resources whose row it raised.
        were_open: how many of them were held, as far as this database knew.
    """

    raised: int
    were_open: int


async def shut_out_all(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], *, reason: str) -> Recovered:
    """Accept no more writes of any grant that was sealed before now; safe to repeat.

    Args:
        conn: a connection of the role that owns the schema, outside of a transaction.
        reason: why; kept in ``lockguard.audit``.

    Raises:
        ConfigurationError: too little privilege, or no schema.
    """
    raised, were_open, last = 0, 0, ""
    try:
        before = await conn.fetchval("select clock_timestamp()")
        while True:
            row = await conn.fetchrow(_RECOVER, reason, before, last, _PART)
            if row is None or row["last"] is None:
                return Recovered(raised, were_open)
            raised, were_open, last = raised + row["raised"], were_open + row["were_open"], row["last"]
    except asyncpg.InsufficientPrivilegeError as exc:
        raise ConfigurationError(f"{exc.message}; recover as the role that owns lockguard's schema") from exc
    except asyncpg.PostgresError as exc:
        if meaning_of(exc) is Meaning.CONFIGURATION:
            raise set_up_error(exc) from exc
        raise
