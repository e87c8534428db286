"""The exchange's own changing calls, each under a lease of what it changes."""

from __future__ import annotations

import asyncio
import inspect
from functools import wraps
from typing import TYPE_CHECKING, Any

from lockguard._context import current_leases
from lockguard.errors import ConfigurationError
from lockguard_ccxt import _proxy as proxy
from lockguard_ccxt._classify import ccxt_errors
from lockguard_ccxt._gate import any_lease, attempt, lease_on
from lockguard_ccxt._markets import listing_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from lockguard._lease import Lease, Resource

__all__ = ["under_lease"]


def under_lease(
    name: str,
    call: Callable[..., Awaitable[Any]],
    exchange: Any,
    resource_of: Callable[[str], Resource],
    *,
    account: str,
    needed: timedelta,
) -> Callable[..., Awaitable[Any]]:
    """A changing call of ccxt that checks the leases on its symbols first, and does not outlive them.

    Args:
        name: of the call, which says what it does.
        call: the exchange's own.
        exchange: of ccxt, whose ``timeout`` bounds the call too.
        resource_of: the resource of a symbol.
        account: the account's name, for the error where no lease at all is held.
        needed: how much of the leases has to be left.
    """
    signature = inspect.signature(call)

    @wraps(call)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        if proxy.only_reads(name, bound):
            return await call(*args, **kwargs)
        if proxy.is_order_call(name) and not proxy.has_client_id(bound):
            raise ConfigurationError(
                f"{name} without a client order id: its order could not be found again if the answer were"
                " lost; pass params={'clientOrderId': client_order_id(...)}"
            )
        if proxy.closes_all(name):
            raise ConfigurationError(
                f"{name} names no market, and may close positions that somebody else holds; close each"
                " with close_position()"
            )
        lease, *others = await _leases(bound, resource_of, exchange, name, account, needed)
        with attempt(lease, needed, *others):
            left = min(one.remaining for one in (lease, *others)).total_seconds()
            seconds = min(float(exchange.timeout) / 1000, left)
            try:
                async with asyncio.timeout(seconds):
                    return await call(*args, **kwargs)
            except TimeoutError as exc:
                raise ccxt_errors().RequestTimeout(
                    f"{exchange.id} {name} got no answer in {seconds:.3f} s; its outcome is unknown"
                ) from exc

    return guarded


async def _leases(
    bound: inspect.BoundArguments,
    resource_of: Callable[[str], Resource],
    exchange: Any,
    name: str,
    account: str,
    needed: timedelta,
) -> list[Lease]:
    """The leases on a call's markets; if only the markets tell which, loads them, as ccxt does anyway."""
    symbols = proxy.symbols_of(bound)
    try:
        return [lease_on(resource_of(symbol)) for symbol in symbols] or [any_lease(name, account)]
    except ConfigurationError:
        _refuse_if_lost(account, needed)
        if listing_of(exchange) is not None:
            raise
    any_lease(name, account)
    await exchange.load_markets()
    return [lease_on(resource_of(symbol)) for symbol in symbols]


def _refuse_if_lost(account: str, needed: timedelta) -> None:
    """Tell of a lost lease, and send nothing under it, before it is known which lease a name means."""
    for lease in current_leases():
        if str(lease.resource).startswith(f"{account}:"):
            lease.ensure(needed)
