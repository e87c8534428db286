"""An optimistic version column, for rows that belong to no resource.

The row carries a number that each change raises; a change names the number that it is based on, and is not
made if another change came in between. That prevents lost updates. It is not a fence: a holder whose lease
has ended gets through if the row has not changed since, INSERT and DELETE are not covered, and other code
that writes the row without raising the number goes unnoticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard_asyncpg._connection import whole
from lockguard_asyncpg._errors import VersionConflict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asyncpg.pool import PoolConnectionProxy

__all__ = ["update_if_version"]


async def update_if_version(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    table: str,
    *,
    key: Mapping[str, object],
    version: int,
    values: Mapping[str, object],
    column: str = "version",
) -> int:
    """Change one row if it still has the version that the caller read; raises its version by one.

    Names are taken as the catalogue has them: no case is folded, and nothing in them is read as SQL.

    Args:
        conn: a connection, which may be in a transaction of the caller.
        table: its name, with its schema if needed: ``trading.settings``.
        key: the columns that identify the row, its primary key.
        version: the version that was read.
        values: the columns to change.
        column: the column that counts versions.

    Returns:
        The new version.

    Raises:
        VersionConflict: the row has another version by now, or is gone; nothing was changed.
        ConfigurationError: no such table or column, or ``key`` names several rows.
    """
    if not key or not values or column in values:
        raise ConfigurationError(
            f"update_if_version({table!r}) needs columns in key and in values, and sets {column!r} itself"
        )
    try:
        async with whole(conn):  # rolls back if several rows were changed
            changed = await conn.fetch(
                _update(table, key, values, column), *values.values(), *key.values(), version
            )
            if len(changed) > 1:
                raise ConfigurationError(
                    f"{dict(key)!r} names {len(changed)} rows of {table}: give its whole primary key as key"
                )
            if changed:
                return int(changed[0][0])
            found = await conn.fetchval(_select(table, key, column), *key.values())
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError) as exc:
        raise ConfigurationError(
            f"{exc.message}; update_if_version takes names as the catalogue has them"
        ) from exc
    now = "is gone" if found is None else f"has version {found}"
    raise VersionConflict(
        f"the row {dict(key)!r} of {table} was read at version {version} and {now}: read it again",
        expected=version,
        found=found,
    )


def _update(table: str, key: Mapping[str, object], values: Mapping[str, object], column: str) -> str:
    counter, last = _identifier(column), len(values) + len(key) + 1
    return (
        f"update {_relation(table)} set {', '.join(_equals(values, 1))}, {counter} = {counter} + 1"  # noqa: S608 - quoted
        f" where {' and '.join(_equals(key, 1 + len(values)))} and {counter} = ${last} returning {counter}"
    )


def _select(table: str, key: Mapping[str, object], column: str) -> str:
    return f"select {_identifier(column)} from {_relation(table)} where {' and '.join(_equals(key, 1))}"  # noqa: S608 - quoted


def _equals(columns: Iterable[str], first: int) -> list[str]:
    return [f"{_identifier(name)} = ${number}" for number, name in enumerate(columns, first)]


def _relation(table: str) -> str:
    return ".".join(map(_identifier, table.split(".", 1)))


def _identifier(name: str) -> str:
    if not name or "\x00" in name:
        raise ConfigurationError(f"{name!r} is no name of a table or column")
    return '"' + name.replace('"', '""') + '"'
