"""The last check before a request leaves this machine.

Between the check at the start of a call and the bytes on the wire lie ccxt's rate limiter, which may queue
the request, and the event loop, which may stall. A process that was paused there for a minute would send its
order on waking up, before the loss of its lease is delivered to it. So the lease is looked at once more in
``fetch``, the last of ccxt's functions before the socket, with no ``await`` in between.

The same place knows whether anything was sent at all, which turns "unknown" into a plain "no" for every
error before it.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from lockguard_ccxt.masking import masked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from lockguard.lease import Lease

__all__ = ["Attempt", "attempt", "install"]

_INSTALLED = "_lockguard_gate"


class Attempt:
    """One guarded call while it runs.

    Attributes:
        lease: what it runs under.
        needed: how much of the lease must be left when it is sent.
        sent: whether it may have left this machine.
    """

    __slots__ = ("lease", "needed", "sent")

    def __init__(self, lease: Lease, needed: timedelta) -> None:
        self.lease = lease
        self.needed = needed
        self.sent = False


_current: ContextVar[Attempt | None] = ContextVar("lockguard_ccxt_attempt", default=None)


@contextmanager
def attempt(lease: Lease, needed: timedelta) -> Iterator[Attempt]:
    """Check the lease now, and again when something is sent inside.

    Raises:
        LeaseLost: the lease has ended or has less than ``needed`` left.
    """
    lease.ensure(needed)
    running = Attempt(lease, needed)
    token = _current.set(running)
    try:
        yield running
    finally:
        _current.reset(token)


def install(exchange: Any) -> None:
    """Put the check into a ccxt exchange; a second time changes nothing. Other calls are as before."""
    if getattr(exchange, _INSTALLED, False):
        return
    send = exchange.fetch

    async def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        running = _current.get()
        if running is not None and method != "GET":
            running.lease.ensure(running.needed)
            running.sent = True
        try:
            return await send(url, method, headers, body)
        except Exception as exc:
            # ccxt names the request by its whole URL, and with it the signature.
            exc.args = tuple(masked(arg) if isinstance(arg, str) else arg for arg in exc.args)
            raise

    exchange.fetch = fetch
    setattr(exchange, _INSTALLED, True)
