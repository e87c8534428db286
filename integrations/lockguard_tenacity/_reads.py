"""Retries for calls that only read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import ParamSpec, TypeVar, cast

from tenacity import AsyncRetrying, RetryCallState, stop_after_attempt, stop_any, wait_random_exponential

from lockguard._context import current_lease
from lockguard_tenacity._predicates import retry_if_network_failed
from lockguard_tenacity._waits import stop_at_lease_end

__all__ = ["retry_reads"]

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST = timedelta(seconds=2)


def retry_reads(
    *, attempts: int = 4, longest: timedelta = _LONGEST
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Retry a call that only reads when the network fails. Never use it for a write.

    ::

        @retry_reads()
        async def positions(exchange): return await exchange.fetch_positions()

    Inside a lease it stops retrying before the lease ends. The last error is raised unchanged.

    Args:
        attempts: the most calls to make, including the first.
        longest: the longest pause between two calls.
    """
    retrying = AsyncRetrying(
        retry=retry_if_network_failed(),
        wait=wait_random_exponential(multiplier=0.1, max=longest.total_seconds()),
        stop=stop_any(stop_after_attempt(attempts), _stop_at_the_end_of_a_lease()),
        reraise=True,
    )

    def repeat(call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        return cast("Callable[P, Awaitable[T]]", retrying.wraps(call))

    return repeat


class _stop_at_the_end_of_a_lease(stop_at_lease_end):  # noqa: N801 - tenacity's naming convention
    """Never stops outside a lease, since reads need none; inside one, stops at its end."""

    def __call__(self, retry_state: RetryCallState) -> bool:
        return current_lease() is not None and super().__call__(retry_state)
