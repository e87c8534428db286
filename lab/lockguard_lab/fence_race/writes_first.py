"""Leases whose seal travels with their first write, whichever way that goes."""

from __future__ import annotations

from functools import partial

from lockguard_asyncpg._fence import PostgresFence
from lockguard_lab.fence_race.plan import Way, WriteAttempt
from lockguard_lab.fence_race.writes import (
    CLOSING,
    CLOSING_STATEMENT,
    FOREIGN,
    NATIVE,
    SAVEPOINTS,
    TRANSACTION,
)
from lockguard_lab.fence_race.writes_dropin import (
    BEGUN_BEFORE,
    CURSOR,
    DROP_IN,
    DROP_IN_SAVEPOINTS,
    EXECUTEMANY,
    LONE,
    PREPARED,
    carried,
)

__all__ = ["FIRST"]

_WAYS = (
    LONE,
    NATIVE,
    TRANSACTION,
    CLOSING_STATEMENT,
    CLOSING,
    DROP_IN,
    PREPARED,
    EXECUTEMANY,
    BEGUN_BEFORE,
    DROP_IN_SAVEPOINTS,
    CURSOR,
    FOREIGN,
    SAVEPOINTS,
)


async def first_write(attempt: WriteAttempt) -> None:
    """In one of all ways: any of them may bring the seal. What it reads, it reads on a fenced pool."""
    with carried(attempt.lease):
        await _WAYS[attempt.op % len(_WAYS)].write(attempt)


FIRST = Way(
    "sealed with the first write",
    first_write,
    fenced=True,
    transacts=False,
    fence=partial(PostgresFence, seal_with_first_write=True),
    travels=True,
    # Some of these transactions have begun before the seal, which their snapshot is older than.
    meets=("repeatable_read", "serializable"),
)
