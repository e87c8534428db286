"""Leases whose seal travels with their first write, in each way to write."""

from __future__ import annotations

from functools import partial

from lockguard_asyncpg._attached import PostgresFence
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
    """Write in any of the ways, each of which may carry the seal; reads are on a fenced pool too."""
    with carried(attempt.lease):
        await _WAYS[attempt.op % len(_WAYS)].write(attempt)


FIRST = Way(
    "sealed with the first write",
    first_write,
    fenced=True,
    transacts=False,
    fence=partial(PostgresFence, seal_with_first_write=True),
    travels=True,
    # Some of these transactions began before the seal, so that their snapshot is older than the seal.
    meets=("repeatable_read", "serializable"),
)
