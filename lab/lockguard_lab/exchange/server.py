"""The local exchange as a server."""

from __future__ import annotations

import ssl
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Self

from aiohttp import web

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_ccxt._by_url import LOCAL_API_KEY, LOCAL_SECRET
from lockguard_lab.exchange import byhand
from lockguard_lab.exchange.control import BAN_STATUS, DENIAL_CODE, WALLET, Control
from lockguard_lab.exchange.desk import Desk, Visibility
from lockguard_lab.exchange.http import RestApi, json_response
from lockguard_lab.exchange.markets import COIN_MARKETS, DEFAULT_MARKETS, MarketSpec, market_for, plain_id
from lockguard_lab.exchange.model import MAIN, PositionSide
from lockguard_lab.exchange.signature import Credentials
from lockguard_lab.exchange.surface import ROUTES
from lockguard_lab.exchange.venue import Listing

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Iterable, Sequence
    from decimal import Decimal
    from pathlib import Path
    from types import TracebackType

    from lockguard._clock import Clock
    from lockguard_lab.exchange.faults import Fault, Operation
    from lockguard_lab.exchange.model import AlgoOrder, Order, Side
    from lockguard_lab.exchange.record import ExchangeRecord

__all__ = ["LocalExchange"]


_LINGER_S = 0.5
_NONE = timedelta(0)
_MILLISECOND = timedelta(milliseconds=1)


class LocalExchange:
    """A futures exchange on this machine, for tests and demonstrations.

    ::

        async with LocalExchange(symbols=["APT/USDT:USDT"]) as exchange:
            client = connect(exchange.url)
            await client.create_order("APT/USDT:USDT", "market", "buy", 10)
            assert len(exchange.record().entries("APTUSDT")) == 1

    The original ccxt talks to it (:func:`~lockguard_lab.exchange.connect`). The methods here act on it at
    once; from another process, :class:`~lockguard_lab.exchange.ControlClient` has the same ones.

    Args:
        symbols: the contracts, as names or :class:`MarketSpec`; when left out, thirty common ones of USD-M
            and two of COIN-M.
        host: where to listen; loopback, unless told otherwise.
        port: 0 takes a free one.
        latency: how long each request takes; half of it passes before the request is carried out.
        api_key: the key of the account ``main``; :meth:`add_account` adds others.
        secret: its secret.
        wallet: its USDT, and its USDC.
        tls: the files of a certificate and of its key, both in PEM format; with them it speaks HTTPS, which
            lets an unmodified ccxt know it by its URL (:func:`~lockguard_lab.exchange.ccxt_settings`).
        clock: the exchange's clock.

    Raises:
        ConfigurationError: a symbol that does not read as a contract, a latency out of range, or a
            certificate that cannot be read.
    """

    def __init__(
        self,
        *,
        symbols: Iterable[str | MarketSpec] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        latency: timedelta = _NONE,
        api_key: str = LOCAL_API_KEY,
        secret: str = LOCAL_SECRET,
        wallet: Decimal = WALLET,
        tls: tuple[Path | str, Path | str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        chosen = (*DEFAULT_MARKETS, *COIN_MARKETS) if symbols is None else symbols
        markets = [spec if isinstance(spec, MarketSpec) else market_for(spec) for spec in chosen]
        self._desk = Desk(markets, wallet=wallet, credentials=Credentials(api_key, secret), clock=clock)
        self._host = host
        self._port = port
        self._tls = None if tls is None else _tls_context(*tls)
        self._runner: web.AppRunner | None = None
        self._wire: RestApi | None = None
        self._control: Control | None = None
        self.set_latency(latency)

    # --- life ---

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            ConfigurationError: the port is taken, or the host is not one of this machine's.
        """
        wire, control = RestApi(self._desk), Control(self._desk)
        app = web.Application()
        app.add_routes([web.route(r.method, r.path, partial(wire.handle, r)) for r in ROUTES])
        app.add_routes(control.routes())
        app.router.add_route("*", "/{tail:.*}", _not_served)
        # handler_cancellation stays off: a client that hangs up does not undo its order.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_LINGER_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, ssl_context=self._tls).start()
        except OSError as exc:
            await runner.cleanup()
            raise ConfigurationError(
                f"cannot listen on {self._host}:{self._port} ({exc.strerror or exc});"
                " choose another port, or 0 for a free one"
            ) from exc
        self._port = runner.addresses[0][1]
        self._runner, self._wire, self._control = runner, wire, control

    async def close(self) -> None:
        """Stop listening; requests that hang end."""
        if self._runner is None or self._wire is None or self._control is None:
            return
        runner, self._runner = self._runner, None
        await self._control.close()
        await self._wire.close()
        await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """Where it listens, such as ``http://127.0.0.1:8080``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http{'' if self._tls is None else 's'}://{host}:{self._port}"

    # --- control ---

    @property
    def symbols(self) -> tuple[str, ...]:
        """The contracts by their unified names."""
        return tuple(spec.symbol for spec in self._desk.venue.markets.values())

    def price(self, symbol: str) -> Decimal:
        """A contract's last price."""
        return self._desk.venue.prices[plain_id(symbol)]

    def set_price(self, symbol: str, price: Decimal, *, mark: Decimal | None = None) -> None:
        """Move a contract's price; limits that it reaches are filled and algo orders triggered.

        Args:
            symbol: ``BTCUSDT`` or ``BTC/USDT:USDT``.
            price: the last price.
            mark: the mark price; the last price when left out.

        Raises:
            ConfigurationError: an unknown contract, or a price that is not above zero.
        """
        self._desk.set_price(symbol, price, mark)

    def walk_price(self, symbol: str, prices: Sequence[Decimal], *, every: timedelta) -> asyncio.Task[None]:
        """Set the first price now and one more at each interval; await the result for the end of the path."""
        if self._control is None:
            raise ConfigurationError("a price path needs a running exchange; start it first")
        return self._control.walk(symbol, list(prices), round(every / _MILLISECOND))

    def set_latency(self, latency: timedelta, operation: Operation | None = None) -> None:
        """How long each request takes, or each of one kind.

        Raises:
            ConfigurationError: below zero or over a minute.
        """
        self._desk.set_latency(round(latency / _MILLISECOND), operation)

    def set_visibility(
        self, *, orders: timedelta = _NONE, positions: timedelta = _NONE, trades: timedelta = _NONE
    ) -> None:
        """How far reads lag behind what the exchange has done."""
        self._desk.visibility = Visibility(
            orders_ms=round(orders / _MILLISECOND),
            positions_ms=round(positions / _MILLISECOND),
            trades_ms=round(trades / _MILLISECOND),
        )

    def inject(self, fault: Fault) -> None:
        """Let a fault wait for the requests it hits."""
        self._desk.inject(fault)

    def clear_faults(self) -> None:
        """Take all waiting faults back."""
        self._desk.faults.clear()

    # --- conditions: they hold until they are taken back ---

    def ban(self, duration: timedelta, *, status: int = BAN_STATUS) -> int:
        """Refuse every request with a 418 or 429, as Binance does to an address that asked too often.

        The answer has a ``Retry-After`` header and tells in its text until when. The requests that come all
        the same are in ``record().banned_requests()``.

        Returns:
            The end of the ban, in milliseconds since 1970 by the exchange's clock.
        """
        until_ms = self._desk.now_ms + round(duration / _MILLISECOND)
        self._desk.conditions.ban(until_ms, status)
        return until_ms

    def lift_ban(self) -> None:
        """End a ban early."""
        self._desk.conditions.lift_ban()

    def deny(
        self,
        code: int = DENIAL_CODE,
        *,
        operations: Collection[Operation] | None = None,
        account: str | None = None,
    ) -> None:
        """Refuse a key, with -2015 (no permission, or not from this address) or -2014.

        Args:
            code: -2015 or -2014.
            operations: the requests that are refused; all that change something when left out, so that
                orders are refused while reads work.
            account: whose key; everybody's when left out.
        """
        if account is not None:
            self._desk.engine(account)
        self._desk.conditions.deny(account, code, operations)

    def allow(self, account: str | None = None) -> None:
        """Let the keys do again what they may."""
        self._desk.conditions.allow(account)

    def set_maintenance(self, on: bool) -> None:  # noqa: FBT001 - it is the only thing that can be said
        """Refuse every request with a 503: the system is under maintenance."""
        self._desk.conditions.maintenance = on

    def set_clock_offset(self, offset: timedelta) -> None:
        """Step the exchange's clock: how far it is ahead of this machine's from now on.

        Signed requests whose time is out of its window are then refused with -1021, until the client has
        asked for the time and corrects its own.
        """
        self._desk.set_clock_offset(round(offset / _MILLISECOND))

    # --- contracts ---

    def list_contract(self, contract: str | MarketSpec) -> None:
        """From now on a contract is traded; one that was taken off the list is back on it."""
        self._desk.list_contract(contract if isinstance(contract, MarketSpec) else market_for(contract))

    def delist_contract(self, symbol: str, *, listing: Listing = Listing.GONE) -> None:
        """From now on a contract takes no orders. Its open orders expire, positions in it stay.

        Args:
            symbol: which contract.
            listing: ``GONE``: no endpoint knows it any more (-1121), only the list of positions;
                ``SETTLING``: it is listed under that status, and orders are refused with -4108.
        """
        self._desk.delist_contract(symbol, listing)

    # --- accounts, and what a person does by hand ---

    def add_account(self, name: str, *, api_key: str, secret: str, wallet: Decimal = WALLET) -> None:
        """Another account, with positions and orders of its own. The first one is called ``main``.

        Raises:
            ConfigurationError: the name or the key is another account's.
        """
        self._desk.add_account(name, Credentials(api_key, secret), wallet)

    def set_hedge_mode(self, on: bool, *, account: str = MAIN) -> None:  # noqa: FBT001 - as above
        """Hedge mode: two positions in a contract; orders must say which (-4061).

        Raises:
            ConfigurationError: the account has orders or positions.
        """
        byhand.set_hedge_mode(self._desk, hedged=on, account=account)

    def trade_by_hand(
        self,
        symbol: str,
        side: Side,
        qty: Decimal,
        *,
        price: Decimal | None = None,
        reduce_only: bool = False,
        position_side: PositionSide = PositionSide.BOTH,
        account: str = MAIN,
        client_id: str | None = None,
    ) -> Order:
        """Order as a person with the exchange's app does; the record has its origin as ``person``.

        Args:
            symbol: the contract.
            side: buy or sell.
            qty: how many contracts.
            price: of a limit order; a market order when left out.
            reduce_only: only make a position smaller.
            position_side: in hedge mode, which position.
            account: whose.
            client_id: the order's client id; one as the web page gives when left out.

        Raises:
            ConfigurationError: the exchange refuses it.
        """
        return byhand.trade(
            self._desk,
            byhand.HandOrder(symbol, side, qty, price, reduce_only, position_side, account, client_id),
        )

    def stop_by_hand(
        self,
        symbol: str,
        side: Side,
        trigger: Decimal,
        *,
        qty: Decimal | None = None,
        reduce_only: bool = True,
        take_profit: bool = False,
        position_side: PositionSide = PositionSide.BOTH,
        account: str = MAIN,
        client_id: str | None = None,
    ) -> AlgoOrder:
        """Place a stop or take-profit as a person does.

        Args:
            symbol: the contract.
            side: ``SELL`` guards a long position.
            trigger: the price that fires it.
            qty: how many contracts; the whole position, whatever its size then, when left out.
            reduce_only: only make a position smaller.
            take_profit: a take-profit rather than a stop.
            position_side: in hedge mode, which position.
            account: whose.
            client_id: the order's client id.

        Raises:
            ConfigurationError: the exchange refuses it.
        """
        return byhand.stop(
            self._desk,
            byhand.HandStop(
                symbol, side, trigger, qty, reduce_only, take_profit, position_side, account, client_id
            ),
        )

    def cancel_by_hand(self, order_id: int, *, account: str = MAIN) -> Order | AlgoOrder:
        """Cancel an order or a stop, whoever sent it, by the exchange's id.

        Raises:
            ConfigurationError: there is no such open order.
        """
        return byhand.cancel(self._desk, order_id, account)

    def release(self, symbol: str | None = None) -> None:
        """Fill what :attr:`FaultKind.RESTS <lockguard_lab.exchange.FaultKind.RESTS>` left in the book."""
        self._desk.release(symbol)

    def record(self) -> ExchangeRecord:
        """What the exchange has done since the start or the last reset."""
        return self._desk.record()

    def reset(self) -> None:
        """Forget every order, position, fault, condition and lag, and the contracts listed since the start.

        Prices start over; the latency and the accounts stay.
        """
        self._desk.reset()


def _tls_context(certificate: Path | str, key: Path | str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as exc:  # ssl.SSLError is one too
        raise ConfigurationError(
            f"certificate {certificate} with key {key} cannot be used: {exc.strerror or exc}"
        ) from exc
    return context


async def _not_served(request: web.Request) -> web.Response:
    return json_response(
        {"code": -1, "msg": f"the local exchange does not serve {request.method} {request.path}"}, 404
    )
