"""The last check before a request leaves this machine, and a stop to all requests while the exchange bans us.

Between the check at the start of a call and the bytes on the wire lie ccxt's rate limiter, which may queue
the request, and the event loop, which may stall. A process that was paused there for a minute would send its
order on waking up, before the loss of its lease is delivered to it. So the lease is checked once more in
``fetch``, the last of ccxt's functions before the socket, with no ``await`` in between; and in the client's
``send`` where ccxt writes to a websocket instead.

This is also the place that knows whether anything was sent at all: every error before it means "not sent"
instead of an unknown outcome. And as every call of an account passes here, reads included, bans are obeyed
here: while the exchange has said to wait, nothing is sent, because further requests make a ban longer.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lockguard._clock import SYSTEM_CLOCK
from lockguard._context import current_leases
from lockguard.errors import LeaseNotHeld
from lockguard_ccxt._classify import ccxt_errors
from lockguard_ccxt._loading import SharedLoading
from lockguard_ccxt._masking import mask_error, mask_log
from lockguard_ccxt._prepared import sends_only_by_fetch, wait_for_nothing, word
from lockguard_ccxt._verbs import changes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lockguard._clock import Clock
    from lockguard._lease import Lease, Resource

__all__ = ["Attempt", "Gate", "any_lease", "attempt", "install", "lease_on"]

_LOG = logging.getLogger("lockguard.ccxt")
_INSTALLED = "_lockguard_gate"
_TOO_MANY = 429
_BANNED = 418
_BANNED_S_LEAST = 120
"""Binance's shortest ban, assumed for a ban that does not say how long it lasts."""
_CLOSED_S_MAX = 3 * 24 * 3600
"""Binance's longest ban."""
_RESYNC_EVERY_S = 5.0
_RESYNC_WITHIN_S = 5.0
_UNTIL = re.compile(r"banned until (\d{13})")
_PLAIN_SECONDS = re.compile(r"^\d{1,7}$")


class Attempt:
    """One guarded call while it runs.

    Attributes:
        lease: the lease that the call runs under.
        others: those on the other markets that it concerns.
        needed: how much of the lease must be left when a request is sent.
        sent: whether a request may have left this machine.
        margin_ms: how much of the lease was left when the last request was sent, in milliseconds.
        unanswered: by method and path, what became of the requests that left and were not answered. ccxt
            repeats such a request if it is told to by ``maxRetriesOnFailure``, which may be a parameter.
    """

    __slots__ = ("lease", "margin_ms", "needed", "others", "sent", "unanswered")

    def __init__(self, lease: Lease, needed: timedelta, others: tuple[Lease, ...] = ()) -> None:
        self.lease = lease
        self.others = others
        self.needed = needed
        self.sent = False
        self.margin_ms: float | None = None
        self.unanswered: dict[tuple[str, str], Exception] = {}

    def check(self) -> None:
        """Raise ``LeaseLost`` if a lease has ended or has less than ``needed`` left."""
        for lease in (self.lease, *self.others):
            lease.ensure(self.needed)

    def leaves(self) -> None:
        """Check the lease and mark the call as sent, right before its request is sent.

        Raises:
            LeaseLost: the lease has ended or has less than ``needed`` left; the request must not be sent.
        """
        self.check()
        self.sent = True
        self.margin_ms = self.lease.remaining.total_seconds() * 1000


_current: ContextVar[Attempt | None] = ContextVar("lockguard_ccxt_attempt", default=None)


@contextmanager
def attempt(lease: Lease, needed: timedelta, *others: Lease) -> Iterator[Attempt]:
    """Check the leases now, and again when something is sent inside.

    Raises:
        LeaseLost: one has ended or has less than ``needed`` left.
    """
    running = Attempt(lease, needed, others)
    running.check()
    token = _current.set(running)
    try:
        yield running
    finally:
        _current.reset(token)


class Gate:
    """Holds back all requests of one ccxt exchange while its venue says to wait.

    Args:
        exchange: from ``ccxt.async_support``.
        clock: measures how long calls stay closed.
    """

    def __init__(self, exchange: Any, clock: Clock) -> None:
        self._exchange = exchange
        self._clock = clock
        self._closed_until = 0.0
        self._resynced_at: float | None = None
        self._listeners: list[Callable[[timedelta], None]] = []
        self._hook: Any = None
        self.fetch: Any = None

    @property
    def is_last(self) -> bool:
        """Whether this exchange sends every request through the gate, so that a call may be begun early."""
        return self._exchange.fetch is self.fetch and sends_only_by_fetch(self._exchange)

    @property
    def closed_for(self) -> timedelta:
        """For how much longer nothing is sent; zero when calls are open."""
        return timedelta(seconds=max(0.0, self._closed_until - self._clock.now()))

    def on_closed(self, listener: Callable[[timedelta], None]) -> None:
        """Call ``listener`` with the waiting time when the exchange closes calls."""
        self._listeners.append(listener)

    def refuse_while_closed(self) -> None:
        """Raise while calls are closed; called before anything is sent.

        Raises:
            ccxt.DDoSProtection: the exchange said to wait, and the time is not over.
        """
        left_s = self.closed_for.total_seconds()
        if left_s > 0:
            raise ccxt_errors().DDoSProtection(
                f"{self._exchange.id} calls are closed for {left_s:.1f} s more by the exchange; not sent"
            )

    def listen(self) -> None:
        """Inspect each answer before ccxt does, even if another hook was installed since."""
        hook = self._exchange.on_rest_response
        if hook is self._hook:
            return

        def on_rest_response(
            code: int, reason: str, url: str, method: str, headers: Any, body: str, *rest: Any
        ) -> Any:
            self.answered(code, headers or {}, body or "")
            return hook(code, reason, url, method, headers, body, *rest)

        self._exchange.on_rest_response = self._hook = on_rest_response

    def answered(self, status: int, headers: Mapping[str, str], body: str) -> None:
        """Close calls if an answer says to wait."""
        if status not in {_TOO_MANY, _BANNED}:
            return
        wait_s = self._asked_s(headers, body)
        if wait_s is None:
            if status != _BANNED:
                return  # a plain rate limit without a time: the caller slows down by itself
            wait_s = _BANNED_S_LEAST
        until = self._clock.now() + min(wait_s, _CLOSED_S_MAX)
        if until <= self._closed_until:
            return
        was_open = not self.closed_for
        self._closed_until = until
        if was_open:
            for listener in self._listeners:
                try:
                    listener(timedelta(seconds=wait_s))
                except Exception:  # noqa: BLE001 - a listener must not break the answer to an order
                    _LOG.exception("a listener of closed calls failed; it stays")

    def _asked_s(self, headers: Mapping[str, str], body: str) -> float | None:
        after = next((value for name, value in headers.items() if name.lower() == "retry-after"), "").strip()
        asked = [float(after)] if _PLAIN_SECONDS.match(after) else []
        if (until := _UNTIL.search(body)) is not None:
            there_ms = self._exchange.milliseconds() - (self._exchange.options.get("timeDifference") or 0)
            asked.append((int(until[1]) - there_ms) / 1000)
        return max(asked) if asked and max(asked) > 0 else None

    async def resync(self) -> None:
        """Measure the exchange's clock again, as it refused a request's time; at most every five seconds."""
        now = self._clock.now()
        if self._resynced_at is not None and now - self._resynced_at < _RESYNC_EVERY_S:
            return
        self._resynced_at = now
        try:
            async with asyncio.timeout(_RESYNC_WITHIN_S):
                await self._exchange.load_time_difference()
        except (TimeoutError, ccxt_errors().BaseError):
            return  # the refusal stands; the next refused request measures again


def install(exchange: Any, clock: Clock = SYSTEM_CLOCK) -> Gate:
    """Install the check in a ccxt exchange; idempotent. Calls without a lease are only checked for bans."""
    installed: Gate | None = getattr(exchange, _INSTALLED, None)
    if installed is not None:
        return installed
    gate = Gate(exchange, clock)
    send = exchange.fetch

    async def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        await word()
        gate.refuse_while_closed()
        gate.listen()
        running = _current.get()
        if method == "GET" and running is not None and not changes(method, url):
            running = None
        request = (method, url.partition("?")[0])
        if running is not None:
            if (first := running.unanswered.get(request)) is not None:
                raise first
            running.leaves()
        try:
            return await send(url, method, headers, body)
        except Exception as exc:
            if running is not None and isinstance(exc, ccxt_errors().OperationFailed):
                running.unanswered[request] = exc
            mask_error(exc, exchange)
            if isinstance(exc, ccxt_errors().InvalidNonce):
                await gate.resync()
            raise

    exchange.fetch = gate.fetch = fetch
    mask_log(exchange)
    exchange.load_markets = SharedLoading(exchange, (lambda: _current.set(None), wait_for_nothing))
    gate.listen()
    if callable(getattr(exchange, "client", None)):
        _guard_websockets(exchange, gate)
    setattr(exchange, _INSTALLED, gate)
    return gate


def _guard_websockets(exchange: Any, gate: Gate) -> None:
    """Install the same check where ccxt writes to a websocket; its tasks inherit their call's attempt."""
    make = exchange.client

    def client(url: str) -> Any:
        found = make(url)
        if not getattr(found, _INSTALLED, False):
            send = found.send

            async def checked(message: Any) -> Any:
                await word()
                running = _current.get()
                if running is not None:
                    gate.refuse_while_closed()
                    running.leaves()
                return await send(message)

            found.send = checked
            setattr(found, _INSTALLED, True)
        return found

    exchange.client = client


def lease_on(resource: Resource) -> Lease:
    """The innermost lease on a resource that is held here.

    Raises:
        LeaseNotHeld: there is none.
    """
    for lease in reversed(current_leases()):
        if lease.resource == resource:
            return lease
    raise LeaseNotHeld(
        f"no lease on {resource!r} is held here; enter guard.hold({str(resource)!r}) first",
        resource=resource,
    )


def any_lease(name: str, account: str) -> Lease:
    """The innermost lease that is held here.

    Raises:
        LeaseNotHeld: there is none.
    """
    leases = current_leases()
    if not leases:
        raise LeaseNotHeld(f"{name} needs a lease, and none is held here", resource=account)
    return leases[-1]
