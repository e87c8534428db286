"""One operation, tried until its outcome is certain."""

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
    """The certain outcome of an operation."""

    COMMITTED = "committed"
    REFUSED = "refused"
    """Refused by the fence, or because the lease had ended: nothing was written."""
    GIVEN_UP = "given up"
    """It failed too often for other reasons; nothing was written."""


async def operate(
    write: Write,
    attempt: Callable[[], WriteAttempt],
    *,
    pool: asyncpg.Pool[Any],
    within: timedelta,
    counts: Counter[str],
    late: set[asyncio.Task[Any]],
) -> End:
    """Write until the operation is committed or refused; an unknown outcome is looked up before a new try.

    Args:
        write: the way to write.
        attempt: makes each new attempt at the same operation.
        pool: the pool on which outcomes are looked up.
        within: the time limit of one look-up.
        counts: how often each thing happened.
        late: the look-ups in flight. Each one is completed even when the caller is cancelled, as by the loss
            of its lease, and is awaited at the end of the race.
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
