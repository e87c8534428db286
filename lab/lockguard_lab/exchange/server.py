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
from lockguard_lab.exchange.listenkeys import Owner
from lockguard_lab.exchange.markets import COIN_MARKETS, DEFAULT_MARKETS, MarketSpec, market_for, plain_id
from lockguard_lab.exchange.model import MAIN, PositionSide
from lockguard_lab.exchange.signature import Credentials
from lockguard_lab.exchange.streams import Streams
from lockguard_lab.exchange.surface import ROUTES
from lockguard_lab.exchange.venue import Listing
from lockguard_lab.exchange.wsapi import WebsocketApi

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
    from lockguard_lab.exchange.streams import Listener

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

    The original ccxt talks to it (:func:`~lockguard_lab.exchange.connect`). The methods here act on the
    exchange at once; :class:`~lockguard_lab.exchange.ControlClient` has the same ones for another process.

    Args:
        symbols: the contracts, as names or :class:`MarketSpec`; when left out, thirty common ones of USD-M
            and two of COIN-M.
        host: the address to listen on; loopback by default.
        port: the port to listen on; 0 picks a free one.
        latency: how long each request takes; half of it passes before the request is carried out.
        api_key: the key of the account ``main``; :meth:`add_account` adds others.
        secret: the secret of that key.
        wallet: the balance of that account in USDT, and in USDC.
        tls: the files of a certificate and of its key, both in PEM format; with them the exchange speaks
            HTTPS, so that an unmodified ccxt can reach it by its URL
            (:func:`~lockguard_lab.exchange.ccxt_settings`).
        clock: the exchange's clock.

    Raises:
        ConfigurationError: a symbol is not the name of a contract, the latency is out of range, or the
            certificate cannot be read.
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
        self._parts: tuple[Streams | WebsocketApi | Control | RestApi, ...] = ()
        self._control: Control | None = None
        self._streams: Streams | None = None
        self.set_latency(latency)

    # --- life ---

    async def start(self) -> None:
        """Start to listen.

        Raises:
            ConfigurationError: the port is taken, or the host is not one of this machine's.
        """
        wire, streams = RestApi(self._desk), Streams(self._desk)
        by_websocket = WebsocketApi(wire)
        control = Control(self._desk, streams)
        app = web.Application()
        app.add_routes([web.route(r.method, r.path, partial(wire.handle, r)) for r in ROUTES])
        app.add_routes(control.routes())
        app.add_routes(streams.routes())
        app.add_routes(by_websocket.routes())
        app.router.add_route("*", "/{tail:.*}", _not_served)
        # handler_cancellation stays off: a client that hangs up does not undo its order.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_LINGER_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, ssl_context=self._tls).start()
        except OSError as exc:
            await streams.close()
            await runner.cleanup()
            raise ConfigurationError(
                f"cannot listen on {self._host}:{self._port} ({exc.strerror or exc});"
                " choose another port, or 0 for a free one"
            ) from exc
        self._port = runner.addresses[0][1]
        self._runner, self._control, self._streams = runner, control, streams
        self._parts = (streams, by_websocket, control, wire)

    async def close(self) -> None:
        """Stop listening and end the requests that hang."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        for part in self._parts:
            await part.close()
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
        """The exchange's URL, such as ``http://127.0.0.1:8080``."""
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
        """Set a contract's price; fills the limit orders and triggers the algo orders that it reaches.

        Args:
            symbol: ``BTCUSDT`` or ``BTC/USDT:USDT``.
            price: the last price.
            mark: the mark price; the last price when left out.

        Raises:
            ConfigurationError: an unknown contract, or a price that is not above zero.
        """
        self._desk.set_price(symbol, price, mark)

    def walk_price(self, symbol: str, prices: Sequence[Decimal], *, every: timedelta) -> asyncio.Task[None]:
        """Set the first price now and the next after each interval; the task ends with the path."""
        if self._control is None:
            raise ConfigurationError("a price path needs a running exchange; start it first")
        return self._control.walk(symbol, list(prices), round(every / _MILLISECOND))

    def set_latency(self, latency: timedelta, operation: Operation | None = None) -> None:
        """Set how long each request takes, or each request of one kind, or how late such an event is sent.

        Raises:
            ConfigurationError: the latency is below zero or over a minute.
        """
        self._desk.set_latency(round(latency / _MILLISECOND), operation)

    def set_visibility(
        self, *, orders: timedelta = _NONE, positions: timedelta = _NONE, trades: timedelta = _NONE
    ) -> None:
        """Set how far reads lag behind what the exchange has done."""
        self._desk.visibility = Visibility(
            orders_ms=round(orders / _MILLISECOND),
            positions_ms=round(positions / _MILLISECOND),
            trades_ms=round(trades / _MILLISECOND),
        )

    def inject(self, fault: Fault) -> None:
        """Arm a fault for the requests that it hits."""
        self._desk.inject(fault)

    def clear_faults(self) -> None:
        """Remove all waiting faults."""
        self._desk.faults.clear()

    # --- conditions: they hold until they are lifted ---

    def ban(self, duration: timedelta, *, status: int = BAN_STATUS) -> int:
        """Refuse every request with a 418 or 429, as Binance does to an address that sent too many requests.

        The answer has a ``Retry-After`` header, and its text says when the ban ends. Requests during the ban
        are in ``record().banned_requests()``.

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
        """Refuse a key with -2015 (no permission, or not from this address) or -2014.

        Args:
            code: -2015 or -2014.
            operations: the requests to refuse; when left out, all that change state, so that orders are
                refused while reads work.
            account: the account whose key is refused; every account when left out.
        """
        if account is not None:
            self._desk.engine(account)
        self._desk.conditions.deny(account, code, operations)

    def allow(self, account: str | None = None) -> None:
        """End the refusals of one account's key, or of every key."""
        self._desk.conditions.allow(account)

    def set_maintenance(self, on: bool) -> None:  # noqa: FBT001 - it is the only thing that can be said
        """Refuse every request with a 503: the system is under maintenance."""
        self._desk.conditions.maintenance = on

    def set_clock_offset(self, offset: timedelta) -> None:
        """Step the exchange's clock: it is this far ahead of this machine's from now on.

        Signed requests whose timestamp is outside the receive window are then refused with -1021, until the
        client asks for the exchange's time and corrects its own.
        """
        self._desk.set_clock_offset(round(offset / _MILLISECOND))

    # --- streams ---

    def listeners(self) -> tuple[Listener, ...]:
        """The open websockets; none before the exchange was started."""
        return () if self._streams is None else self._streams.listeners()

    def cut_streams(self, account: str | None = None) -> None:
        """Cut the websockets that listen to an account, or all, without a closing word."""
        if self._streams is not None:
            self._streams.cut(account)

    def expire_listen_keys(self, account: str = MAIN) -> None:
        """End the account's listen keys, as their hour does; its listeners are told, and hear no more."""
        self._desk.engine(account)
        if self._streams is not None:
            for inverse in (False, True):
                self._streams.expire(Owner(account, inverse))

    # --- contracts ---

    def list_contract(self, contract: str | MarketSpec) -> None:
        """Open a contract to trading; a contract that was delisted is listed again."""
        self._desk.list_contract(contract if isinstance(contract, MarketSpec) else market_for(contract))

    def delist_contract(self, symbol: str, *, listing: Listing = Listing.GONE) -> None:
        """Close a contract to orders. Its open orders expire, its positions stay.

        Args:
            symbol: the contract.
            listing: ``GONE``: only the list of positions still knows the contract, every endpoint that is
                given its name answers -1121; ``SETTLING``: it is listed under that status, and orders are
                refused with -4108.
        """
        self._desk.delist_contract(symbol, listing)

    # --- accounts, and what a person does by hand ---

    def add_account(self, name: str, *, api_key: str, secret: str, wallet: Decimal = WALLET) -> None:
        """Add an account with positions and orders of its own. The first account is called ``main``.

        Raises:
            ConfigurationError: the name or the key is another account's.
        """
        self._desk.add_account(name, Credentials(api_key, secret), wallet)

    def set_hedge_mode(self, on: bool, *, account: str = MAIN) -> None:  # noqa: FBT001 - as above
        """Turn hedge mode on or off: with it a contract has two positions, and orders must say which (-4061).

        Raises:
            ConfigurationError: the account has orders or positions.
        """
        byhand.set_hedge_mode(self._desk, hedged=on, account=account)

    def set_permissions(
        self, *, withdrawals: bool = False, futures: bool = True, account: str = MAIN
    ) -> None:
        """Say what the account's key may do, for ``apiRestrictions``; no request is refused for it."""
        byhand.set_permissions(self._desk, withdrawals=withdrawals, futures=futures, account=account)

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
        """Place an order as a person does in the exchange's app; the record gives its origin as ``person``.

        Args:
            symbol: the contract.
            side: buy or sell.
            qty: how many contracts.
            price: the price of a limit order; a market order when left out.
            reduce_only: only make a position smaller.
            position_side: in hedge mode, which position.
            account: the account to trade in.
            client_id: the order's client id; when left out, one like those of Binance's web page.

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
            qty: how many contracts; when left out, the whole position at its size when the order fires.
            reduce_only: only make a position smaller.
            take_profit: a take-profit rather than a stop.
            position_side: in hedge mode, which position.
            account: the account to trade in.
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
        """Cancel an order or a stop of any origin by the exchange's id.

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

        Prices return to their initial values; the latency, the accounts and their listen keys stay.
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
