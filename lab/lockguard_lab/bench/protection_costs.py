"""Measures the cost of protection: the same changes of an unprotected, a protected and a watched table.

They are made in turn, on one connection, in transactions that are rolled back; a change that needs a lease
has it presented beforehand. A figure is the median over the rounds, in microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

from lockguard._clock import SYSTEM_CLOCK, Clock
from lockguard._lease import Resource, new_grant_id
from lockguard.errors import ConfigurationError
from lockguard_asyncpg._protection import protect
from lockguard_asyncpg._schema import require_current
from lockguard_lab.own_schema import made_anew

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Cost", "measure"]

_COLUMNS = "id int, exchange text, symbol text, status text, price numeric"
_ROWS = "select g, 'binance', 'APTUSDT', 'active', 1 from generate_series({first}, {last}) g"
_RESOURCE = Resource("lockguard_bench:binance:APTUSDT")
_PRESENT = "select lockguard.check('lockguard_bench:binance:APTUSDT', {token}, '{grant}')"
_TEMPLATE = "lockguard_bench:{exchange}:{symbol}"
_DROP = "drop schema if exists lockguard_bench cascade"
_SET_UP = made_anew("lockguard_bench", "lockguard fence bench")


@dataclass(frozen=True, slots=True)
class Cost:
    """The time of one kind of change.

    Attributes:
        table: ``ordinary`` or ``partitioned``, which are checked in different ways.
        change: the kind of change.
        unit: the unit of the figures: a row of one big statement, or a statement of one row.
        plain_us: the time on the unprotected table, in microseconds.
        protected_us: the time on the protected table, in microseconds.
        watched_us: the time on the watched table, in microseconds.
    """

    table: str
    change: str
    unit: str
    plain_us: float
    protected_us: float
    watched_us: float

    @property
    def ratio(self) -> float:
        """The protected time divided by the unprotected one."""
        return self.protected_us / self.plain_us

    @property
    def watched_ratio(self) -> float:
        """The watched time divided by the unprotected one."""
        return self.watched_us / self.plain_us


@dataclass(frozen=True, slots=True)
class _Case:
    change: str
    unit: str
    statement: str
    count: int
    leased: bool = True


def _cases(table: str, rows: int) -> Iterator[_Case]:
    few = min(rows, 5_000)
    loop = f"do $$ begin for i in 1..{few} loop {{}}; end loop; end $$"
    update, tick = f"update {table} set status = 'closed'", f"update {table} set price = 2"  # noqa: S608 - ours
    inserted = f"insert into {table} {_ROWS.format(first=rows + 1, last=2 * rows)}"
    one = f"insert into {table} values ({rows} + i, 'binance', 'APTUSDT', 'active', 1)"  # noqa: S608 - ours
    yield _Case("update", "row", update, rows)
    yield _Case("insert", "row", inserted, rows)
    yield _Case("delete", "row", f"delete from {table}", rows)  # noqa: S608 - ours
    yield _Case("update of an exempt column", "row", tick, rows, leased=False)
    yield _Case("update", "statement", loop.format(update + " where id = i"), few)
    yield _Case("insert", "statement", loop.format(one), few)
    yield _Case(
        "update of an exempt column", "statement", loop.format(tick + " where id = i"), few, leased=False
    )


async def measure(
    conn: asyncpg.Connection[Any], *, rows: int = 20_000, rounds: int = 5, clock: Clock = SYSTEM_CLOCK
) -> tuple[Cost, ...]:
    """Measure in a schema of its own, ``lockguard_bench``, that is dropped before and after.

    Args:
        conn: a connection of a role that owns lockguard's schema and may create one.
        rows: how many rows each table has.
        rounds: how often each change is made.
        clock: the clock.

    Raises:
        ConfigurationError: lockguard's schema is missing or old, the role lacks a privilege, or another owner
            has a schema of that name.
    """
    await require_current(conn)
    try:
        await conn.execute(_SET_UP)
    except asyncpg.InsufficientPrivilegeError as exc:
        raise ConfigurationError(
            f"{exc.message}; measuring takes a role that owns lockguard's schema and may create another one"
        ) from exc
    token, grant = int(clock.wall() * 1_000_000), new_grant_id()
    seal = "select lockguard.seal($1, $2, $3, 'bench', 'bench', 5000)"
    await conn.execute(seal, _RESOURCE, token, UUID(grant))
    present = _PRESENT.format(token=token, grant=grant)
    costs: list[Cost] = []
    try:
        for kind, suffix in (("ordinary", ""), ("partitioned", " partition by list (exchange)")):
            tables = [f"lockguard_bench.{kind}_{how}" for how in ("plain", "protected", "watched")]
            for table in tables:
                await _create(conn, table, suffix, rows)
            await protect(conn, tables[1], resource=_TEMPLATE, exempt=("price",))
            await protect(conn, tables[2], resource=_TEMPLATE, exempt=("price",), watch=True)
            for cases in zip(*(_cases(table, rows) for table in tables), strict=True):
                figures = await _compare(conn, tables, cases, rounds, present, clock)
                costs.append(Cost(kind, cases[0].change, cases[0].unit, *figures))
    finally:
        await conn.execute(_DROP)
        await conn.execute("select lockguard.close($1, $2, $3, 5000)", _RESOURCE, token, UUID(grant))
    return tuple(costs)


async def _create(conn: asyncpg.Connection[Any], table: str, suffix: str, rows: int) -> None:
    await conn.execute(f"create table {table} ({_COLUMNS}){suffix}")
    if suffix:
        await conn.execute(f"create table {table}_part partition of {table} default")
    await conn.execute(f"create index on {table} (id)")
    await conn.execute(f"insert into {table} {_ROWS.format(first=1, last=rows)}")
    await conn.execute(f"vacuum analyze {table}")


async def _compare(
    conn: asyncpg.Connection[Any],
    tables: Sequence[str],
    cases: Sequence[_Case],
    rounds: int,
    present: str,
    clock: Clock,
) -> tuple[float, float, float]:
    taken: tuple[list[float], list[float], list[float]] = ([], [], [])
    for _ in range(rounds):
        for table, case, times in zip(tables, cases, taken, strict=True):
            transaction = conn.transaction()
            await transaction.start()
            if case.leased:
                await conn.execute(present)
            began = clock.now()
            await conn.execute(case.statement)
            times.append((clock.now() - began) / case.count * 1e6)
            await transaction.rollback()
            await conn.execute(f"vacuum {table}")  # rolled-back rows would slow the next round
    return median(taken[0]), median(taken[1]), median(taken[2])
