"""The laws of a race, read off its ledger."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from lockguard_asyncpg.race.holders import Holders
    from lockguard_asyncpg.race.plan import RaceReport

__all__ = ["judge"]

_TOLD_MAX = 10
_LEDGER = "select resource, n, token, op from lockguard_race.ledger order by resource, n"


async def judge(holders: Holders) -> None:
    """Enter each broken law in the report."""
    async with holders.pool.acquire() as conn, conn.transaction():
        rows = await conn.fetch(_LEDGER)
    _no_stale_commits(rows, holders)
    _no_duplicates_and_none_lost(rows, holders)


def _no_stale_commits(rows: Sequence[asyncpg.Record], holders: Holders) -> None:
    last: dict[str, int] = {}
    for row in rows:
        resource, n, token = row["resource"], row["n"], row["token"]
        before, read = last.get(resource, 0), holders.seen.get((resource, token))
        if token < before:
            _stale(holders.report, f"{resource} n={n}: token {token} committed after {before}")
        elif token > before and read != n - 1:
            _stale(holders.report, f"{resource} n={n}: token {token} had read n={read} as final")
        last[resource] = max(before, token)


def _no_duplicates_and_none_lost(rows: Sequence[asyncpg.Record], holders: Holders) -> None:
    report, times = holders.report, Counter(row["op"] for row in rows)
    for op in (op for op, count in times.items() if count > 1):
        report.duplicates += 1
        _tell(report, f"operation {op} committed {times[op]} times")
    for op in holders.committed - times.keys():
        report.lost_writes += 1
        _tell(report, f"operation {op} was reported as committed and is not there")
    for op in holders.refused & times.keys():
        report.lost_writes += 1
        _tell(report, f"operation {op} was reported as refused and is there")


def _stale(report: RaceReport, line: str) -> None:
    report.stale_commits += 1
    _tell(report, line)


def _tell(report: RaceReport, line: str) -> None:
    if len(report.told) < _TOLD_MAX:
        report.told.append(line)
