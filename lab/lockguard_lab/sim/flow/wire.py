"""What lies below ccxt: its requests reach the local exchange in virtual time, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import aiohttp

from lockguard_lab.exchange.control import WALLET
from lockguard_lab.exchange.desk import Desk
from lockguard_lab.exchange.faults import FaultKind, Operation
from lockguard_lab.exchange.http import Reply, RestApi
from lockguard_lab.exchange.markets import MarketSpec
from lockguard_lab.exchange.signature import Credentials
from lockguard_lab.exchange.surface import ROUTES
from lockguard_lab.sim.world import Process, World

if TYPE_CHECKING:
    from types import TracebackType

    from lockguard_lab.exchange.surface import Endpoint

__all__ = ["API_KEY", "SECRET", "URL", "Request", "SimExchange", "Wire"]

API_KEY, SECRET = "local-key", "local-secret"
URL = "http://exchange"

_STEPS = {"lge-": "entry", "lgs-": "stop", "lgc-": "close"}
_ROUTES = {(route.method, route.path): route for route in ROUTES}


@dataclass(frozen=True)
class Request:
    """A request as it leaves a process."""

    process: Process
    route: Endpoint
    params: dict[str, str]

    @property
    def client_id(self) -> str:
        """The client order id that it names."""
        names = ("newClientOrderId", "clientAlgoId", "origClientOrderId")
        return next((self.params[name] for name in names if name in self.params), "")

    @property
    def step(self) -> str:
        """What it is for: ``entry``, ``stop``, ``close``, ``cancel``, ``look``, ``hold`` or ``read``.

        A look is for one order, and what is held is asked for by itself too.
        """
        operation = self.route.operation
        if operation in (Operation.GET_ORDER, Operation.GET_ALGO):
            return "look"
        if operation is Operation.POSITIONS:
            return "hold"
        if operation in (Operation.CANCEL_ORDER, Operation.CANCEL_ALGO):
            return "cancel"
        if operation not in (Operation.CREATE_ORDER, Operation.CREATE_ALGO):
            return "read"
        return _STEPS.get(self.client_id[:4], "other")

    @property
    def writes(self) -> bool:
        """Whether it changes something."""
        return self.route.operation.writes


class SimExchange:
    """The local exchange as a process of the schedule.

    Args:
        world: the schedule.
        markets: its contracts.

    Attributes:
        desk: its books.
        delay_s: the least and the most that a request or an answer takes.
        on_send: called with each request when it leaves its process, in the context of who sends it.
        on_arrival: called with each request when it reaches the exchange.
        on_reply: called with each request and the answer that it gets.
    """

    def __init__(self, world: World, markets: list[MarketSpec]) -> None:
        self.world = world
        self.process = Process(world, "exchange")
        self.desk = Desk(markets, wallet=WALLET, credentials=Credentials(API_KEY, SECRET))
        self.delay_s = (0.002, 0.05)
        self.requests = 0
        self.on_send: Callable[[Request], None] = lambda _: None
        self.on_arrival: Callable[[Request], None] = lambda _: None
        self.on_reply: Callable[[Request, Reply], None] = lambda *_: None
        self._rest = RestApi(self.desk)

    def carry(self, request: Request, payload: str, key: str | None, answer: Callable[[Reply], None]) -> None:
        """Take a request to the exchange and its answer back."""
        self.requests += 1
        self.on_send(request)
        world = self.world

        async def serve() -> None:
            self.on_arrival(request)
            reply = await self._rest.ask(request.route, payload, request.params, key)
            self.on_reply(request, reply)
            world.after(
                world.dice.uniform(*self.delay_s), lambda: request.process.arrived.append((answer, (reply,)))
            )

        def begin() -> None:
            self.process.start(serve(), "request")

        def arrive() -> None:
            self.process.arrived.append((begin, ()))

        world.after(world.dice.uniform(*self.delay_s), arrive)


class Wire:
    """Stands in for the ``aiohttp`` session of one process's ccxt.

    Args:
        process: the process.
        exchange: where its requests go.
    """

    def __init__(self, process: Process, exchange: SimExchange) -> None:
        self._process, self._exchange = process, exchange
        self.headers: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in ("get", "post", "put", "delete"):
            raise AttributeError(name)
        return lambda url, **options: _Call(self._process, self._exchange, name.upper(), url, options)

    async def close(self) -> None:
        """Nothing is open."""


class _Call:
    """One request, as ``async with session.get(...) as response``."""

    def __init__(
        self, process: Process, exchange: SimExchange, method: str, url: Any, options: dict[str, Any]
    ) -> None:
        self._process, self._exchange = process, exchange
        self._method, self._url, self._options = method, url, options

    async def __aenter__(self) -> _Response:
        url, body = self._url, (self._options.get("data") or b"").decode()
        values = dict(parse_qsl(url.raw_query_string, keep_blank_values=True))
        values.update(parse_qsl(body, keep_blank_values=True))
        route = _ROUTES[self._method, url.path]
        answered: asyncio.Future[Reply] = self._process.create_future()

        def answer(reply: Reply) -> None:
            if not answered.done():
                answered.set_result(reply)

        self._exchange.carry(
            Request(self._process, route, values),
            url.raw_query_string + body,
            (self._options.get("headers") or {}).get("X-MBX-APIKEY"),
            answer,
        )
        async with asyncio.timeout(self._options["timeout"].total):
            reply = await answered
        if reply.ending is FaultKind.DISCONNECT:
            raise aiohttp.ServerDisconnectedError
        return _Response(reply)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class _Response:
    """What ccxt reads of a response."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.status, self.reason = reply.status, ""
        self.headers = {"Content-Type": "application/json", **(reply.headers or {})}

    async def text(self, errors: str = "") -> str:
        """The body.

        Raises:
            aiohttp.ClientPayloadError: it broke off.
        """
        del errors
        if self._reply.ending is FaultKind.TRUNCATED:
            raise aiohttp.ClientPayloadError
        if self._reply.ending is FaultKind.UNAVAILABLE:
            self.headers["Content-Type"] = "text/html"
            return "Service Unavailable"
        return json.dumps(self._reply.body, separators=(",", ":"))


def market(base: str, price: str) -> MarketSpec:
    """A contract of the schedule."""
    return MarketSpec(base, price=Decimal(price))
