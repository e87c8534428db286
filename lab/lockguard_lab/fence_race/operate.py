"""One operation, tried until its end is certain."""

from __future__ import annotations

import asyncio
from contextvars import Context
from enum import Enum
from typing import TYPE_CHECKING, Any

from lockguard.errors import FenceUnavailable, LeaseError, StaleToken
from lockguard_asyncpg._errors import DATABASE_ERRORS, CommitUnknown, NotCommitted
from lockguard_asyncpg._fence import resolve

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from datetime import timedelta

    import asyncpg

    from lockguard_lab.fence_race.plan import Write, WriteAttempt

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
    attempt: Callable[[], WriteAttempt],
    *,
    pool: asyncpg.Pool[Any],
    within: timedelta,
    counts: Counter[str],
    late: set[asyncio.Task[Any]],
) -> End:
    """Write until it is committed or refused; an outcome that nobody knows is looked up first.

    Args:
        write: the way.
        attempt: makes each new attempt at the same operation.
        pool: where outcomes are looked up.
        within: the patience of one look.
        counts: how often each thing happened.
        late: the looks that are under way. One is seen through also when the caller is cut, as by the loss of
            its lease, and whoever ends the race waits for it.
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
            looking = asyncio.create_task(_found(pool, unknown, within, counts), context=Context())
            late.add(looking)
            looking.add_done_callback(late.discard)
            if not await asyncio.shield(looking):
                continue
        except (NotCommitted, *DATABASE_ERRORS):
            counts["failed, certainly not committed"] += 1
            continue
        counts["committed"] += 1
        return End.COMMITTED
    counts["given up"] += 1
    return End.GIVEN_UP


async def _found(
    pool: asyncpg.Pool[Any], unknown: CommitUnknown, within: timedelta, counts: Counter[str]
) -> bool:
    while True:
        try:
            happened = await resolve(pool, unknown, within=within)
        except FenceUnavailable:
            continue
        counts["unknown, had committed" if happened else "unknown, had not"] += 1
        return happened
