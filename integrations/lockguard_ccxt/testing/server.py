"""The local exchange as a server."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Self

from aiohttp import web

from lockguard.clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_ccxt.testing.control import Control
from lockguard_ccxt.testing.desk import Desk, Visibility
from lockguard_ccxt.testing.http import Wire, json_response
from lockguard_ccxt.testing.markets import DEFAULT_MARKETS, MarketSpec, market_for, plain_id
from lockguard_ccxt.testing.signature import Credentials
from lockguard_ccxt.testing.surface import ROUTES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from lockguard.clock import Clock
    from lockguard_ccxt.testing.faults import Fault, Operation
    from lockguard_ccxt.testing.record import ExchangeRecord

__all__ = ["LOCAL_API_KEY", "LOCAL_SECRET", "LocalExchange"]

LOCAL_API_KEY = "local-key"
LOCAL_SECRET = "local-secret"  # noqa: S105 - of an exchange without money

_WALLET = Decimal(10_000_000)
_LINGER_S = 0.5
_NONE = timedelta(0)


class LocalExchange:
    """A USD-M futures exchange on this machine, for tests and demonstrations.

    ::

        async with LocalExchange(symbols=["APT/USDT:USDT"]) as exchange:
            client = connect(exchange.url)
            await client.create_order("APT/USDT:USDT", "market", "buy", 10)
            assert len(exchange.record().entries("APTUSDT")) == 1

    The original ccxt talks to it (:func:`~lockguard_ccxt.testing.connect`). The methods here act on it at
    once; from another process, :class:`~lockguard_ccxt.testing.ControlClient` has the same ones.

    Args:
        symbols: the contracts, as names or :class:`MarketSpec`; thirty common ones when left out.
        host: where to listen; loopback, unless told otherwise.
        port: 0 takes a free one.
        latency: how long each request takes; half of it passes before the request is carried out.
        api_key: the account's key.
        secret: the account's secret.
        wallet: the account's USDT.
        clock: the exchange's clock.

    Raises:
        ConfigurationError: a symbol that does not read as a contract, or a latency out of range.
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
        wallet: Decimal = _WALLET,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        chosen = DEFAULT_MARKETS if symbols is None else symbols
        markets = [spec if isinstance(spec, MarketSpec) else market_for(spec) for spec in chosen]
        self._desk = Desk(markets, wallet=wallet, clock=clock)
        self._credentials = Credentials(api_key, secret)
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None
        self._wire: Wire | None = None
        self._control: Control | None = None
        self.set_latency(latency)

    # --- life ---

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            ConfigurationError: the port is taken, or the host is not one of this machine's.
        """
        wire, control = Wire(self._desk, self._credentials), Control(self._desk)
        app = web.Application()
        app.add_routes([web.route(r.method, r.path, partial(wire.handle, r)) for r in ROUTES])
        app.add_routes(control.routes())
        app.router.add_route("*", "/{tail:.*}", _not_served)
        # handler_cancellation stays off: a client that hangs up does not undo its order.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_LINGER_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
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
        return f"http://{host}:{self._port}"

    # --- control ---

    @property
    def symbols(self) -> tuple[str, ...]:
        """The contracts by their unified names."""
        return tuple(spec.symbol for spec in self._desk.engine.markets.values())

    def price(self, symbol: str) -> Decimal:
        """A contract's last price."""
        return self._desk.engine.prices[plain_id(symbol)]

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
        return self._control.walk(symbol, list(prices), round(every / timedelta(milliseconds=1)))

    def set_latency(self, latency: timedelta, operation: Operation | None = None) -> None:
        """How long each request takes, or each of one kind.

        Raises:
            ConfigurationError: below zero or over a minute.
        """
        self._desk.set_latency(round(latency / timedelta(milliseconds=1)), operation)

    def set_visibility(
        self, *, orders: timedelta = _NONE, positions: timedelta = _NONE, trades: timedelta = _NONE
    ) -> None:
        """How far reads lag behind what the exchange has done."""
        millisecond = timedelta(milliseconds=1)
        self._desk.visibility = Visibility(
            orders_ms=round(orders / millisecond),
            positions_ms=round(positions / millisecond),
            trades_ms=round(trades / millisecond),
        )

    def inject(self, fault: Fault) -> None:
        """Let a fault wait for the requests it hits."""
        self._desk.inject(fault)

    def clear_faults(self) -> None:
        """Take all waiting faults back."""
        self._desk.faults.clear()

    def record(self) -> ExchangeRecord:
        """What the exchange has done since the start or the last reset."""
        return self._desk.record()

    def reset(self) -> None:
        """Forget every order, position, fault and lag; prices start over, the latency stays."""
        self._desk.reset()


async def _not_served(request: web.Request) -> web.Response:
    return json_response(
        {"code": -1, "msg": f"the local exchange does not serve {request.method} {request.path}"}, 404
    )
