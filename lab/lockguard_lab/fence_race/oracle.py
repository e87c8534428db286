"""Checks the laws of a race against its tables."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    from lockguard_lab.fence_race.holders import Holders, Seen
    from lockguard_lab.fence_race.plan import RaceReport

__all__ = ["judge"]

_LEDGER = "select resource, n, token, op from lockguard_race.ledger order by resource, n"
_ENTRIES = "select resource, token, op from lockguard_race.entry"


async def judge(holders: Holders) -> None:
    """Add each broken law to the report."""
    async with holders.pool.acquire() as conn, conn.transaction():
        ledger = await conn.fetch(_LEDGER)
        entries = await conn.fetch(_ENTRIES)
    _in_order(ledger, holders)
    updated, inserted = _tokens(ledger), _tokens(entries)
    for (resource, token), seen in holders.seen.items():
        older = bisect_left(updated[resource], token), bisect_left(inserted[resource], token)
        _final(f"{resource}: all below token {token}", seen, older, holders.report)
    for (resource, token), seen in holders.closed.items():
        own = updated[resource].count(token), inserted[resource].count(token)
        _final(f"{resource}: all of token {token}", seen, own, holders.report)
    _no_duplicates_and_none_lost((row["op"] for row in (*ledger, *entries)), holders)


def _in_order(rows: Sequence[asyncpg.Record], holders: Holders) -> None:
    """In the order of the counter, no number is missing or duplicated, and tokens never go back."""
    last: dict[str, tuple[int, int]] = {}
    for row in rows:
        resource, n, token = row["resource"], row["n"], row["token"]
        n_before, before = last.get(resource, (0, 0))
        if n != n_before + 1:
            _stale(holders.report, f"{resource} n={n}: came after n={n_before}")
        elif token < before:
            _stale(holders.report, f"{resource} n={n}: token {token} committed after {before}")
        last[resource] = (n, max(before, token))


def _tokens(rows: Sequence[asyncpg.Record]) -> dict[str, list[int]]:
    """The tokens of each resource, sorted."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        found[row["resource"]].append(row["token"])
    for tokens in found.values():
        tokens.sort()
    return found


def _final(what: str, seen: Seen, there: tuple[int, int], report: RaceReport) -> None:
    if there != (seen.updates, seen.entries):
        _stale(report, f"{what} had been read as final: {seen}, there are {there[0]} and {there[1]}")


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
