"""The gate of a synchronous ccxt exchange: no order leaves late, and none opens without a lease.

A synchronous bot decides in one function and orders in another, often in code that is not its own: freqtrade
asks a hook of the strategy and then orders by itself. A guard in the hook alone cannot stop an order of a
process that was paused between the two. So the lease is checked where the order leaves, whoever sends it.

- An order that may open or enlarge a position needs a lease on its symbol.
- A call that cannot (a reduce-only order or stop, a cancel, the leverage) is sent without a lease too: a bot
  must be able to protect what it has while the lock's servers are down. Only while the servers say that
  somebody else holds the symbol is a reduce-only order refused: the position may be the other's by now.
- Any of these calls that is made under a lease is refused when the lease has ended, or ends too soon.

A refusal is raised as a ``ccxt.ExchangeError`` of its own class, because bots handle that class as what it
is: this order was not placed, and sending it again at once is no use. The narrower classes would do harm:
freqtrade, for one, answers a stop that is refused as ``InvalidOrder``, ``BadRequest`` or
``OperationRejected`` by selling the position.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from datetime import timedelta
from functools import cache, wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lockguard._clock import SYSTEM_CLOCK
from lockguard._context import current_leases
from lockguard._lease import Resource, parse_resource
from lockguard._times import require_timedelta
from lockguard.errors import ConfigurationError, LeaseError, LeaseNotHeld, LockguardError, ResourceBusy
from lockguard.text import kind_of
from lockguard_ccxt import _proxy as proxy
from lockguard_ccxt._classify import ccxt_errors
from lockguard_ccxt._gate import Gate
from lockguard_ccxt._keys import account_name, lock_name, reads_alike, unified_symbol
from lockguard_ccxt._markets import listing_of, short_name
from lockguard_ccxt._masking import mask_error, mask_log
from lockguard_ccxt._sync_wire import check_before_bytes
from lockguard_ccxt._verbs import changes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import TypeAlias

    from lockguard._clock import Clock
    from lockguard._lease import Lease
    from lockguard.sync import LockGuard

    Leases: TypeAlias = Callable[[], Iterable[Lease]]

__all__ = ["OrderGate", "gate_orders"]

_INSTALLED = "_lockguard_order_gate"
_NEEDED = timedelta(milliseconds=500)


class _Sending:
    """One call while it runs; without leases it needs none.

    Attributes:
        unanswered: by method and path, what became of the requests that left and were not answered. ccxt
            repeats such a request if it is told to by ``maxRetriesOnFailure``, and an order would be placed
            again; here it meets the first one's error instead.
    """

    __slots__ = ("leases", "needed", "reads", "unanswered")

    def __init__(self, leases: tuple[Lease, ...], needed: timedelta, *, reads: bool = False) -> None:
        self.leases = leases
        self.needed = needed
        self.reads = reads
        self.unanswered: dict[tuple[str, str], Exception] = {}

    def check(self) -> None:
        for lease in self.leases:
            try:
                lease.ensure(self.needed)
            except LeaseError as exc:
                raise _not_sent(exc) from exc


_call: ContextVar[_Sending | None] = ContextVar("lockguard_ccxt_sync_call", default=None)
"""The outermost gated call of this thread: what it calls in turn is part of it."""


class _Writing:
    """A request of that call which changes something, on its way to the wire; and whether it has left."""

    __slots__ = ("begun", "left", "sending")

    def __init__(self, sending: _Sending) -> None:
        self.sending = sending
        self.begun = False
        """A connection asks a proxy for a tunnel before it begins."""
        self.left = False


_writing: ContextVar[_Writing | None] = ContextVar("lockguard_ccxt_sync_writing", default=None)


class _Wire:
    """Asked by the connections; see :mod:`lockguard_ccxt._sync_wire`."""

    def begins(self) -> None:
        writing = _writing.get()
        if writing is None:
            return
        if writing.left:
            raise ccxt_errors().RequestTimeout("a request that had left got no answer, and is not sent again")
        writing.begun = True

    def leaves(self) -> None:
        writing = _writing.get()
        if writing is not None:
            writing.sending.check()
            writing.left = writing.begun


_WIRE = _Wire()


class OrderGate:
    """The gate of one synchronous ccxt exchange, made by :func:`gate_orders`.

    Attributes:
        name: the account's name in locks: ``binance``, or ``binance@scalper``.
    """

    def __init__(
        self,
        exchange: Any,
        name: str,
        guard: LockGuard | None,
        leases: Leases,
        needed: timedelta,
        clock: Clock,
    ) -> None:
        self.name = name
        self._exchange = exchange
        self._guard = guard
        self._held = leases
        self._needed = needed
        self._bans = Gate(exchange, clock)

    def __repr__(self) -> str:
        return f"<OrderGate {self.name}>"

    def resource(self, symbol: str) -> Resource:
        """The resource to lock for positions in ``symbol``, in any spelling.

        Raises:
            ConfigurationError: there is no such market, or the markets are not loaded and ``symbol`` is not
                the unified symbol of a contract, such as ``BTC/USDT:USDT``.
        """
        return parse_resource(f"{self.name}:{lock_name(self._exchange, symbol)}")

    # --- inside ---

    def _install(self) -> None:
        exchange = self._exchange
        for name in dir(exchange):
            if proxy.changes_something(name) and callable(call := getattr(exchange, name)):
                setattr(exchange, name, self._gated(name, call))
            elif proxy.reads_something(name) and callable(call := getattr(exchange, name)):
                setattr(exchange, name, _reading(call))
        exchange.fetch2 = self._gated_raw(exchange.fetch2)
        exchange.fetch = self._fetch(exchange.fetch)
        check_before_bytes(exchange.session, _WIRE)
        self._bans.listen()

    def _gated(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(call)

        @wraps(call)
        def gated(*args: Any, **kwargs: Any) -> Any:
            if _call.get() is not None:
                return call(*args, **kwargs)
            asked = list(proxy.orders_of(name, signature.bind(*args, **kwargs), self._exchange.id))
            unnamed = any(order.symbol is None and not order.places for order in asked)
            return self._run(name, asked, lambda: call(*args, **kwargs), also=self._all() if unnamed else ())

        return gated

    def _gated_raw(self, fetch2: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(fetch2)

        @wraps(fetch2)
        def gated(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            if _call.get() is not None or proxy.only_reads("fetch2", bound):
                return fetch2(*args, **kwargs)
            path = str(bound.arguments.get("path"))
            asked = list(proxy.orders_of_raw(path, bound))
            return self._run(path, asked, lambda: fetch2(*args, **kwargs))

        return gated

    def _all(self) -> Iterator[Lease]:
        """The leases held here that a call which names no market may concern."""
        for lease in self._held():
            if not lease.given_back and str(lease.resource).startswith(f"{self.name}:"):
                yield lease

    def _run(
        self, name: str, asked: list[proxy.Asked], call: Callable[[], Any], also: Iterable[Lease] = ()
    ) -> Any:
        sending = _Sending((*self._leases(name, asked), *also), self._needed)
        sending.check()
        token = _call.set(sending)
        try:
            return call()
        finally:
            _call.reset(token)

    def _check_all(self) -> None:
        """Tell of a lost lease, and send nothing under it, before it is known which lease a name means."""
        _Sending(tuple(self._all()), self._needed).check()

    def _guards(self, symbol: str) -> Resource:
        """The resource of an order's market; if only the markets tell, loads them, as ccxt does anyway."""
        if listing_of(self._exchange) is None and not reads_alike(symbol):
            self._check_all()
            self._exchange.load_markets()
        return parse_resource(f"{self.name}:{short_name(unified_symbol(self._exchange, symbol))}")

    def _leases(self, name: str, asked: list[proxy.Asked]) -> Iterator[Lease]:
        held = {lease.resource: lease for lease in self._held() if not lease.given_back}
        for order in asked:
            try:
                resource = None if order.symbol is None else self._guards(order.symbol)
            except ConfigurationError as exc:
                if self._may_open(order):
                    self._check_all()
                    raise _not_sent(exc) from exc
                continue
            opens = self._may_open(order)
            lease = None if resource is None else held.get(resource)
            if lease is not None:
                yield lease
            elif opens:
                what = str(resource or self.name)
                missing = LeaseNotHeld(
                    f"{name} may open a position, and no lease on {what!r} is held here: take it, and look at"
                    " the position, before the order",
                    resource=what,
                )
                raise _not_sent(missing) from missing
            elif order.places and resource is not None:
                self._refuse_if_held_elsewhere(resource)
            elif order.places and proxy.closes_all(name):
                whose = LeaseNotHeld(
                    f"{name} names no market, and may close positions that somebody else holds: close each by"
                    " an order of its own",
                    resource=self.name,
                )
                raise _not_sent(whose) from whose

    def _refuse_if_held_elsewhere(self, resource: Resource) -> None:
        """Nobody here holds it: what is to be reduced may be another's position."""
        if self._guard is None:
            return
        try:
            found = self._guard.inspect(resource)
        except LockguardError:
            return  # protection does not wait for the lock's servers
        if found.held:
            busy = ResourceBusy(
                f"{str(resource)!r} is held by {found.holder}, whose position this order may reduce",
                resource=resource,
                holder=found.holder,
            )
            raise _not_sent(busy) from busy

    def _may_open(self, order: proxy.Asked) -> bool:
        if not order.places:
            return False
        market = self._market(order.symbol)
        if not market.get("spot"):
            return not order.reduces
        # There, "reduce only" means nothing. A sale gives away what the account has, unless it borrows.
        return order.side != "sell" or order.borrows or self._borrows()

    def _borrows(self) -> bool:
        """Whether ccxt orders on margin without being asked to by an order's parameters."""
        options = self._exchange.options
        of_orders = options.get("createOrder")
        modes = [options, *([of_orders] if isinstance(of_orders, dict) else [])]
        named = any(mode.get(name) for mode in modes for name in ("marginMode", "defaultMarginMode"))
        return named or options.get("defaultType") == "margin"

    def _market(self, symbol: str | None) -> Mapping[str, Any]:
        """The market that ccxt itself would take for a symbol in any spelling."""
        try:
            found: Mapping[str, Any] = self._exchange.market(symbol) if symbol else {}
        except ccxt_errors().BaseError:
            return {}
        return found

    def _fetch(self, send: Callable[..., Any]) -> Callable[..., Any]:
        def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
            self._bans.refuse_while_closed()
            self._bans.listen()
            writing = self._begin(url, method) if changes(method, url) else None
            token = _writing.set(writing)
            try:
                return send(url, method, headers, body)
            except ccxt_errors().BaseError as exc:
                mask_error(exc, self._exchange)
                if writing is not None and writing.left and isinstance(exc, ccxt_errors().OperationFailed):
                    writing.sending.unanswered[_path(url, method)] = exc
                raise
            finally:
                _writing.reset(token)

        return fetch

    def _begin(self, url: str, method: str) -> _Writing | None:
        sending = _call.get()
        if sending is None:  # past all of ccxt's calls
            path = urlsplit(url).path
            asked = proxy.orders_of_path(path, method)
            sending = _Sending(tuple(self._leases(path, [asked])), self._needed)
        if sending.reads:
            return None
        if (first := sending.unanswered.get(_path(url, method))) is not None:
            raise first
        try:
            check_before_bytes(self._exchange.session, _WIRE)  # adapters may have been mounted since
        except ConfigurationError as exc:
            raise _not_sent(exc) from exc
        sending.check()
        return _Writing(sending)


def _path(url: str, method: str) -> tuple[str, str]:
    return method, url.partition("?")[0]


def gate_orders(
    exchange: Any,
    guard: LockGuard | None = None,
    *,
    leases: Leases = current_leases,
    account: str | None = None,
    needed: timedelta = _NEEDED,
    clock: Clock = SYSTEM_CLOCK,
) -> OrderGate:
    """Check the lease of each order of a synchronous ccxt exchange right before its bytes leave the machine.

    The exchange is changed in place, so that it may belong to other code, such as freqtrade's. Idempotent.

    Not guaranteed: that calls of two holders exclude each other at the exchange, which cannot check a token;
    and a request that has left is not called back.

    Args:
        exchange: from ``ccxt``, not from ``ccxt.async_support``.
        guard: asked who holds the symbol, before a reduce-only order for which no lease is held here. Without
            it such orders are always sent.
        leases: gives those that are held here. By default those of the thread that orders; a bot that takes
            them in one thread and orders in another keeps them in a collection of its own.
        account: the label of the account, if there are several at the exchange; part of every name.
        needed: how much of the lease must be left when a request is sent.
        clock: measures how long calls stay closed after a ban.

    Raises:
        ConfigurationError: ``exchange`` is not a synchronous exchange of ccxt; ``account`` cannot be part of
            a name; or ccxt's own retries are on, which would send an order again without asking what became
            of it.
    """
    _require_synchronous(exchange)
    mask_log(exchange)
    _require_guard(guard)
    require_timedelta("needed", needed)
    name = account_name(exchange, account)
    installed: OrderGate | None = getattr(exchange, _INSTALLED, None)
    if installed is not None:
        if installed.name != name:
            raise ConfigurationError(
                f"the exchange has a gate for {installed.name} already; give each account its own exchange"
            )
        return installed
    gate = OrderGate(exchange, name, guard, leases, needed, clock)
    gate._install()
    setattr(exchange, _INSTALLED, gate)
    return gate


def _reading(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call that reads, and is never taken for an order, although its request may look like one."""

    @wraps(call)
    def reading(*args: Any, **kwargs: Any) -> Any:
        if _call.get() is not None:
            return call(*args, **kwargs)
        token = _call.set(_Sending((), _NEEDED, reads=True))
        try:
            return call(*args, **kwargs)
        finally:
            _call.reset(token)

    return reading


def _require_synchronous(exchange: Any) -> None:
    fetch2 = getattr(exchange, "fetch2", None)
    if inspect.iscoroutinefunction(fetch2):
        raise ConfigurationError(
            f"{type(exchange).__module__}.{type(exchange).__name__} is an asyncio exchange; give it to"
            " GuardedExchange(), or take the one of that name from ccxt"
        )
    if fetch2 is None or getattr(exchange, "session", None) is None:
        raise ConfigurationError(
            f"{type(exchange).__module__}.{type(exchange).__name__} is no exchange of ccxt; give one, such as"
            " ccxt.binanceusdm({...})"
        )
    if exchange.options.get("maxRetriesOnFailure"):
        raise ConfigurationError(
            f"maxRetriesOnFailure of {exchange.id} is {exchange.options['maxRetriesOnFailure']!r};"
            " set it to 0, as ccxt would repeat orders blindly"
        )


def _require_guard(guard: Any) -> None:
    ask = getattr(guard, "inspect", None)
    if guard is not None and (ask is None or inspect.iscoroutinefunction(ask)):
        raise ConfigurationError(
            f"guard is {kind_of(guard)}; give a LockGuard of lockguard.sync, or leave it out"
        )


def _not_sent(exc: LockguardError) -> Exception:
    error: Exception = _not_sent_class()(f"not sent: {exc}")
    return error


@cache
def _not_sent_class() -> Any:
    """Made when first needed, because the import of ccxt takes a second or two."""
    return type("NotSent", (ccxt_errors().ExchangeError,), {"__doc__": "A call that was not sent."})
