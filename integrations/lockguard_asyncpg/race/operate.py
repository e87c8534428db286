"""One operation, tried until its end is certain."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from lockguard.errors import FenceUnavailable, LeaseError, StaleToken
from lockguard_asyncpg.errors import DATABASE_ERRORS, CommitUnknown, NotCommitted
from lockguard_asyncpg.fence import resolve

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from datetime import timedelta

    import asyncpg

    from lockguard_asyncpg.race.plan import Attempt, Write

__all__ = ["End", "operate"]

_ATTEMPTS_MAX = 50


class End(Enum):
    """What became of an operation, for certain."""

    COMMITTED = "committed"
    REFUSED = "refused"
    """By the fence, or by the lease that has ended: nothing was written."""
    GIVEN_UP = "given up"
    """It failed too often for reasons of its own; nothing was written."""


async def operate(
    write: Write,
    attempt: Callable[[], Attempt],
    *,
    pool: asyncpg.Pool[Any],
    within: timedelta,
    counts: Counter[str],
) -> End:
    """Write until it is committed or refused; an outcome that nobody knows is looked up first.

    Args:
        write: the way.
        attempt: makes each new attempt at the same operation.
        pool: where outcomes are looked up.
        within: the patience of one look.
        counts: how often each thing happened.
    """
    for _ in range(_ATTEMPTS_MAX):
        counts["attempts"] += 1
        try:
            await write(attempt())
        except (StaleToken, LeaseError):
            counts["refused"] += 1
            return End.REFUSED
        except CommitUnknown as unknown:
            counts["unknown"] += 1
            happened = await _found(pool, unknown, within)
            counts["unknown, had committed" if happened else "unknown, had not"] += 1
            if not happened:
                continue
        except (NotCommitted, *DATABASE_ERRORS):
            counts["failed, certainly not committed"] += 1
            continue
        counts["committed"] += 1
        return End.COMMITTED
    counts["given up"] += 1
    return End.GIVEN_UP


async def _found(pool: asyncpg.Pool[Any], unknown: CommitUnknown, within: timedelta) -> bool:
    while True:
        try:
            return await resolve(pool, unknown, within=within)
        except FenceUnavailable:
            continue
