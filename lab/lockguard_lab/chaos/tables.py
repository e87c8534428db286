"""Compares the history of a round with its tables.

Of the history (see :mod:`lockguard_lab.chaos.recording`) it reads the writes, and three kinds of lines more,
whose times are by the clock of Postgres:

``read``    what was final for all tokens below ``token`` when it was read: after a seal, or after a break
``closed``  what was final for ``token`` itself, read after its lease was released; for a close that did not
            wait for the disk, ``lazy`` is the position of Postgres's log then, and ``at`` the time
``crash``   how far the log of Postgres was read after a crash, and ``at`` the time

The laws: in the order of a resource's counter no number is missing or duplicated, and tokens never go back;
what was final stays as it was read; no operation is there twice; what was reported as committed is there, and
what was reported as refused is not. A crash may undo one thing, and only for what comes after it: a close
that did not wait for the disk, and that the log does not reach.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lockguard_lab.fence_race.operate import End

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from lockguard_lab.chaos.plan import RoundReport

__all__ = ["BELOW", "BYPASS", "BYPASSES", "OWN", "judge", "read_tables"]

BELOW = """
select (select count(*) from lockguard_race.ledger where resource = $1 and token < $2) as updates,
       (select count(*) from lockguard_race.entry where resource = $1 and token < $2) as entries,
       extract(epoch from clock_timestamp())::float8 as at,
       pg_current_wal_insert_lsn() - '0/0'::pg_lsn as logged
"""
OWN = BELOW.replace("token < $2", "token = $2")
"""The queries for what is final for tokens below the given one, and for the given one."""
BYPASSES = "create table lockguard_race.bypass (resource text, token bigint, op bigint)"
BYPASS = "insert into lockguard_race.bypass (resource, token, op) values ($1, $2, $3)"
"""The table without a fence, whose stale writes the judge must see, and a write to it."""
_TABLES = {
    "ledger": """
select resource, n, token, op, extract(epoch from at)::float8 as at from lockguard_race.ledger
order by resource, n
""",
    "entries": "select resource, token, op, extract(epoch from at)::float8 as at from lockguard_race.entry",
    "bypasses": "select resource, token, op from lockguard_race.bypass",
}
_UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class _Row:
    resource: str
    token: int
    op: int
    at: float


async def read_tables(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any],
) -> dict[str, list[dict[str, Any]]]:
    """All rows of a round."""
    return {name: [dict(row) for row in await conn.fetch(query)] for name, query in _TABLES.items()}


def judge(
    tables: dict[str, list[dict[str, Any]]], lines: Sequence[dict[str, Any]], report: RoundReport
) -> None:
    """Add what was done, and each broken law, to the report."""
    judged = {
        name: [_Row(row["resource"], row["token"], row["op"], row["at"]) for row in tables[table]]
        for name, table in (("updates", "ledger"), ("entries", "entries"))
    }
    judging = _Judge(lines, report)
    judging.count_ends()
    judging.order(tables["ledger"])
    for name, rows in judged.items():
        judging.what_was_final(name, rows)
    judging.each_once_and_as_told(row.op for rows in judged.values() for row in rows)


class _Judge:
    def __init__(self, journal: Sequence[dict[str, Any]], report: RoundReport) -> None:
        self._journal = journal
        self._report = report
        self._begun = {line["begin"]: line for line in journal if line.get("call") == "write"}
        self._ended = {line["end"]: End(line["how"]) for line in journal if line.get("end") in self._begun}
        self._crashes = sorted((line["at"], line["crash"]) for line in journal if "crash" in line)

    def count_ends(self) -> None:
        for op, line in self._begun.items():
            tally = self._report.of(line["way"])
            tally.attempted += 1
            match self._ended.get(op):
                case None:
                    tally.open_ended += 1
                case End.COMMITTED:
                    tally.committed += 1
                case End.REFUSED | End.GIVEN_UP:
                    tally.refused += 1
        lost = sum(self._lost_at(line) < math.inf for line in self._journal if "closed" in line)
        self._report.counts["closes lost in a crash"] += lost

    def order(self, ledger: Sequence[dict[str, Any]]) -> None:
        """Check that in the counter's order no number is missing or duplicated, and tokens never go back."""
        last: dict[str, tuple[int, int]] = {}
        for row in ledger:
            resource, n, token = row["resource"], row["n"], row["token"]
            n_before, before = last.get(resource, (0, 0))
            if n != n_before + 1:
                self._stale(row["op"], f"{resource} n={n} came after n={n_before}")
            elif token < before:
                self._stale(row["op"], f"{resource} n={n}: token {token} committed after {before}")
            last[resource] = (n, max(before, token))

    def what_was_final(self, name: str, rows: Sequence[_Row]) -> None:
        """Check that what was read as final has not grown."""
        by_resource: dict[str, list[_Row]] = defaultdict(list)
        for row in rows:
            by_resource[row.resource].append(row)
        for line in self._journal:
            if "read" in line:
                older = [row for row in by_resource[line["read"]] if row.token < line["token"]]
                self._final(line["read"], f"{name} below", line["token"], line[name], older)
            elif "closed" in line:
                lost_at = self._lost_at(line)
                own = [
                    row
                    for row in by_resource[line["closed"]]
                    if row.token == line["token"] and row.at < lost_at
                ]
                self._final(line["closed"], f"{name} of", line["token"], line[name], own)

    def _lost_at(self, line: dict[str, Any]) -> float:
        """The time when a crash undid a close that had not waited for the disk; infinity for other closes."""
        if (logged := line.get("lazy")) is None:
            return math.inf
        crashed = next(((at, survived) for at, survived in self._crashes if at > line["at"]), None)
        return crashed[0] if crashed is not None and crashed[1] < logged else math.inf

    def _final(self, resource: str, what: str, token: int, count: int, rows: Sequence[_Row]) -> None:
        if len(rows) != count:
            late = max(rows, key=lambda row: row.at, default=None)
            self._stale(
                None if late is None else late.op,
                f"{resource}: {count} {what} token {token} were final, there are {len(rows)}",
            )

    def each_once_and_as_told(self, ops: Iterable[int]) -> None:
        """Check that no operation is there twice, and that each is there or not as its process was told."""
        times = Counter(ops)
        for op, count in times.items():
            if op < 0 or op not in self._begun:
                self._lost(op, f"operation {op}, which was rolled back, is there")
            elif count > 1:
                self._report.of(self._way_of(op)).duplicates += 1
                self._report.tell(f"{self._way_of(op)}: operation {op} committed {count} times")
        for op, end in self._ended.items():
            if (end is End.COMMITTED) != (op in times):
                there = "is there" if op in times else "is not there"
                self._lost(op, f"operation {op} was reported as {end.value} and {there}")

    def _way_of(self, op: int | None) -> str:
        found = None if op is None else self._begun.get(abs(op))
        return _UNKNOWN if found is None else str(found["way"])

    def _stale(self, op: int | None, line: str) -> None:
        self._report.of(self._way_of(op)).stale_commits += 1
        self._report.tell(f"{self._way_of(op)}: {line}")

    def _lost(self, op: int, line: str) -> None:
        self._report.of(self._way_of(op)).lost_writes += 1
        self._report.tell(f"{self._way_of(op)}: {line}")
