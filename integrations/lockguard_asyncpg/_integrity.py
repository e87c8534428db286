"""Finds what is not as the schema made it: functions and triggers that were replaced, unlogged tables."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from lockguard_postgres._steps import sql_file, steps

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

__all__ = ["damage", "functions_of_app", "restore"]

_MADE = re.compile(
    r"^create (?:or replace )?(function lockguard\.(\w+)\s*\((?:[^$]|\$(?!\w*\$))*(\$\w*\$)(.*?)\3[^;]*;)",
    re.DOTALL | re.MULTILINE,
)
_RENAMED = re.compile(r"^alter function lockguard\.(\w+)\([^;]*\) rename to (\w+);", re.MULTILINE)
_SIGNATURE = re.compile(r"lockguard\.\w+\([^)]*\)")
_BODIES = """
select proname, prosrc, pronargs from pg_catalog.pg_proc
 where pronamespace = to_regnamespace('lockguard') and proname = any ($1)
"""
_TRIGGERS = """
select t.tgrelid::regclass::text as relation, t.tgname
  from pg_catalog.pg_trigger t
 where t.tgrelid in (to_regclass('lockguard.fence'), to_regclass('lockguard.floor'))
   and t.tgname like 'keep\\_%'
   and t.tgfoid <> to_regproc('lockguard.' || case t.tgname
         when 'keep_rows' then 'keep_monotone' when 'keep_row' then 'keep_floor' else t.tgname end)
 order by 1, 2
"""
# Each guard has a function of its own, which is made of the table's columns.
_GUARDS = """
select p.relation, p.template, p.exempt, lockguard.is_fed(to_regclass(p.relation)) as fed,
       lockguard.is_watched(to_regclass(p.relation)) as watched,
       string_agg(distinct format('%s.%s', f.pronamespace::regnamespace, f.proname), ', ') as functions
  from lockguard.protections() p
  join pg_catalog.pg_trigger t on t.tgrelid in (
         select to_regclass(p.relation) union select relid from pg_partition_tree(to_regclass(p.relation)))
  join pg_catalog.pg_proc f on f.oid = t.tgfoid
 where t.tgname like 'zz\\_lockguard\\_%'
   and (f.pronamespace <> to_regnamespace('lockguard')
        or f.proname like 'guard\\_%' and position('perform lockguard.require(' in f.prosrc) = 0
           and (not lockguard.is_watched(to_regclass(p.relation))
                or position('perform lockguard.note_watched(' in f.prosrc) = 0))
 group by 1, 2, 3, 4, 5 order by 1
"""
_UNLOGGED = """
select c.oid::regclass::text from pg_catalog.pg_class c
 where c.relkind = 'r' and c.relpersistence = 'u'
   and (c.relnamespace = to_regnamespace('lockguard')
        or exists (select from lockguard.protections() p
                    where c.oid = to_regclass(p.relation)
                       or c.oid in (select relid from pg_partition_tree(to_regclass(p.relation)))))
 order by c.relnamespace <> to_regnamespace('lockguard'), 1
"""


@cache
def _made() -> dict[str, dict[str, tuple[str, str]]]:
    """Of each function of the newest schema, by its arguments: its body, and the statement that makes it."""
    made: dict[str, dict[str, tuple[str, str]]] = {}
    for text in [*(step.sql for step in steps()), sql_file("rights")]:
        for old, new in _RENAMED.findall(text):
            made[new] = {
                arguments.replace(old, new): (
                    body,
                    statement.replace(f"function lockguard.{old}", f"function lockguard.{new}"),
                )
                for arguments, (body, statement) in made.pop(old).items()
            }
        for found in _MADE.finditer(text):
            arguments = " ".join(found[1][: found[1].index(")")].split())
            made.setdefault(found[2], {})[arguments] = found[4], f"create or replace {found[1]}"
    return made


def functions_of_app() -> tuple[str, ...]:
    """The signatures of the functions that a bot's role may call."""
    ((body, _),) = _made()["allow"].values()
    _, _, granted = body.partition("grant execute on function")
    return tuple(_SIGNATURE.findall(granted))


async def _replaced(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> list[tuple[str, int]]:
    """The functions, each with the number of its arguments, whose body is not this version's."""
    made = _made()
    rows = await conn.fetch(_BODIES, list(made))
    return sorted(
        (row["proname"], row["pronargs"])
        for row in rows
        # A migration tool may have made its line ends those of Windows.
        if row["prosrc"].replace("\r\n", "\n") not in {body for body, _ in made[row["proname"]].values()}
    )


async def damage(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any],
) -> list[tuple[str, str, str]]:
    """What was replaced in a schema of this library's version: the relation, what is wrong, and the remedy.

    Raises:
        asyncpg.PostgresError: the role may not ask, or the database does not answer.
    """
    again = "lockguard fence install"
    found = [
        (
            f"lockguard.{name}",
            "the function is not the one that this version has: it may refuse nothing",
            again,
        )
        for name, _ in await _replaced(conn)
    ]
    for row in await conn.fetch(_TRIGGERS):
        what = f"its trigger {row['tgname']} calls another function: a token could go back"
        found.append((row["relation"], what, again))
    for row in await conn.fetch(_GUARDS):
        exempt = f" --exempt {','.join(row['exempt'])}" if row["exempt"] else ""
        fed = " --subscriber" * row["fed"] + " --watch" * row["watched"]
        what = f"its triggers call {row['functions']}, which checks no lease: rows change without one"
        template = "'" + row["template"].replace("'", "'\\''") + "'"
        remedy = f"lockguard fence protect {row['relation']} --resource {template}{exempt}{fed}"
        found.append((row["relation"], what, remedy))
    unlogged = [row[0] for row in await conn.fetch(_UNLOGGED)]
    what = "it is unlogged: a crash empties it"
    return [*found, *((table, what, f"alter table {table} set logged") for table in unlogged)]


async def restore(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> None:
    """Make the functions that were replaced as this version has them.

    Raises:
        asyncpg.PostgresError: the role does not own the schema.
    """
    for name, count in await _replaced(conn):
        made = _made()[name]
        for arguments, (_, statement) in made.items():
            if len(made) == 1 or arguments.count(",") + 1 == count:
                await conn.execute(statement)
