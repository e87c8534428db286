"""The laws of a race, read off its tables."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    from lockguard_asyncpg.race.holders import Holders
    from lockguard_asyncpg.race.plan import RaceReport

__all__ = ["judge"]

_LEDGER = "select resource, n, token, op from lockguard_race.ledger order by resource, n"
_ENTRIES = "select resource, token, op from lockguard_race.entry"


async def judge(holders: Holders) -> None:
    """Enter each broken law in the report."""
    async with holders.pool.acquire() as conn, conn.transaction():
        ledger = await conn.fetch(_LEDGER)
        entries = await conn.fetch(_ENTRIES)
    _no_stale_update(ledger, holders)
    _no_stale_insert(entries, holders)
    _no_duplicates_and_none_lost((row["op"] for row in (*ledger, *entries)), holders)


def _no_stale_update(rows: Sequence[asyncpg.Record], holders: Holders) -> None:
    last: dict[str, tuple[int, int]] = {}
    for row in rows:
        resource, n, token = row["resource"], row["n"], row["token"]
        n_before, before = last.get(resource, (0, 0))
        seen = holders.seen.get((resource, token))
        if n != n_before + 1:
            _stale(holders.report, f"{resource} n={n}: came after n={n_before}")
        elif token < before:
            _stale(holders.report, f"{resource} n={n}: token {token} committed after {before}")
        elif token > before and (seen is None or seen.n != n_before):
            _stale(holders.report, f"{resource} n={n}: token {token} had read {seen} as final")
        last[resource] = (n, max(before, token))


def _no_stale_insert(rows: Sequence[asyncpg.Record], holders: Holders) -> None:
    tokens: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        tokens[row["resource"]].append(row["token"])
    for found in tokens.values():
        found.sort()
    for (resource, token), seen in holders.seen.items():
        older = bisect_left(tokens[resource], token)
        if older != seen.entries:
            _stale(
                holders.report,
                f"{resource}: token {token} had read {seen.entries} entries as final, there are {older}",
            )


def _no_duplicates_and_none_lost(ops: Iterable[int], holders: Holders) -> None:
    report, times = holders.report, Counter(ops)
    for op in (op for op, count in times.items() if count > 1):
        report.duplicates += 1
        report.tell(f"operation {op} committed {times[op]} times")
    for op in (op for op in times if op < 0):
        report.lost_writes += 1
        report.tell(f"what operation {-op} rolled back to a savepoint is there")
    for op in holders.committed - times.keys():
        report.lost_writes += 1
        report.tell(f"operation {op} was reported as committed and is not there")
    for op in holders.refused & times.keys():
        report.lost_writes += 1
        report.tell(f"operation {op} was reported as refused and is there")


def _stale(report: RaceReport, line: str) -> None:
    report.stale_commits += 1
    report.tell(line)
