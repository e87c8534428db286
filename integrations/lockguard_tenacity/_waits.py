"""Wait and stop strategies: how long to pause before another attempt, and when to give up."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING

from tenacity import RetryCallState, wait_random_exponential
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from lockguard._context import current_lease

if TYPE_CHECKING:
    from lockguard._lease import Lease

__all__ = ["stop_at_lease_end", "wait_for_retry_after"]

_JITTER = timedelta(milliseconds=50)
_LONGEST = timedelta(seconds=30)
_NONE = timedelta(0)


class wait_for_retry_after(wait_base):  # noqa: N801 - tenacity's naming convention
    """Wait for the error's ``retry_after``, which is the rest of the holder's lease, plus a random jitter.

    Without the jitter, callers that were refused together would return together.

    Args:
        longest: the longest wait, whatever the error says.
        jitter: the most that is added to ``retry_after``.
        otherwise: the wait after an error without ``retry_after``; random exponential backoff by default.
    """

    def __init__(
        self,
        *,
        longest: timedelta = _LONGEST,
        jitter: timedelta = _JITTER,
        otherwise: wait_base | None = None,
    ) -> None:
        self._longest_s = longest.total_seconds()
        self._jitter_s = jitter.total_seconds()
        self._otherwise = otherwise or wait_random_exponential(multiplier=0.1, max=self._longest_s)

    def __call__(self, retry_state: RetryCallState) -> float:
        """The wait before the next attempt, in seconds."""
        outcome = retry_state.outcome
        exc = outcome.exception() if outcome is not None else None
        retry_after = getattr(exc, "retry_after", None)
        if not isinstance(retry_after, timedelta):
            return min(self._longest_s, float(self._otherwise(retry_state)))
        extra_s = random.uniform(0, self._jitter_s)  # noqa: S311 - spreads callers, guards nothing
        return min(self._longest_s, max(0.0, retry_after.total_seconds()) + extra_s)


class stop_at_lease_end(stop_base):  # noqa: N801 - tenacity's naming convention
    """Stop when the lease would end before another attempt could finish.

    It does not count on renewals that have not happened yet. Without a lease it stops at once, because
    nothing would guard the next attempt.

    Args:
        needed: how much of the lease an attempt needs.
        lease: the lease to watch; by default the innermost enclosing one.
    """

    def __init__(self, needed: timedelta = _NONE, *, lease: Lease | None = None) -> None:
        self._needed = needed
        self._lease = lease

    def __call__(self, retry_state: RetryCallState) -> bool:
        """Whether to stop retrying."""
        lease = current_lease() if self._lease is None else self._lease
        if lease is None:
            return True
        return lease.remaining <= timedelta(seconds=retry_state.upcoming_sleep) + self._needed
