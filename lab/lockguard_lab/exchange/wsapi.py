"""The websocket API: the requests of the REST API, as messages over a websocket.

A request is carried out also if its sender is gone by then, as over HTTP. A fault that loses the answer of a
request over HTTP cuts the connection here.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import WSMsgType, web

from lockguard_lab.exchange.faults import FaultKind
from lockguard_lab.exchange.surface import ROUTES

if TYPE_CHECKING:
    from lockguard_lab.exchange.http import RestApi
    from lockguard_lab.exchange.render import Json
    from lockguard_lab.exchange.surface import Endpoint

__all__ = ["WebsocketApi"]

_REQUESTS_MAX = 100
"""Requests of one connection that are under way; until one is done, no more are read."""
_REQUEST_MAX = 256 * 1024
_PING_EVERY_S = 180.0
_ENDPOINTS = {(route.method, route.path): route for route in ROUTES}
_METHODS = {
    "order.place": "POST v1/order",
    "order.test": "POST v1/order/test",
    "order.modify": "PUT v1/order",
    "order.cancel": "DELETE v1/order",
    "order.status": "GET v1/order",
    "algoOrder.place": "POST v1/algoOrder",
    "algoOrder.cancel": "DELETE v1/algoOrder",
    "account.balance": "GET v2/balance v1/balance",
    "v2/account.balance": "GET v3/balance",
    "account.position": "GET v2/positionRisk v1/positionRisk",
    "v2/account.position": "GET v3/positionRisk",
    "account.status": "GET v2/account v1/account",
    "v2/account.status": "GET v3/account",
    "userDataStream.start": "POST v1/listenKey",
    "userDataStream.ping": "PUT v1/listenKey",
    "userDataStream.stop": "DELETE v1/listenKey",
    "depth": "GET v1/depth",
    "ticker.price": "GET v1/ticker/price",
    "ticker.book": "GET v1/ticker/bookTicker",
}


class WebsocketApi:
    """Answers the requests that come by websocket."""

    def __init__(self, requests: RestApi) -> None:
        self._requests = requests
        self._under_way: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.Transport] = set()

    async def close(self) -> None:
        """Cut every connection, and drop what is still under way."""
        for transport in self._open:
            transport.abort()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def routes(self) -> list[web.RouteDef]:
        """The paths, as at ``ws-fapi.binance.com`` and ``ws-dapi.binance.com``."""
        return [web.get(f"/ws-{api}/v1", self._connect) for api in ("fapi", "dapi")]

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(heartbeat=_PING_EVERY_S, max_msg_size=_REQUEST_MAX, compress=False)
        try:
            await socket.prepare(request)
        except ConnectionError:
            return web.Response()  # the client is gone, and nothing is sent
        api = "dapi" if "dapi" in request.path else "fapi"
        own: set[asyncio.Task[None]] = set()
        if (transport := request.transport) is None:
            return socket  # it is gone already
        self._open.add(transport)
        try:
            async for message in socket:
                if message.type is not WSMsgType.TEXT:
                    continue
                if len(own) >= _REQUESTS_MAX:
                    await asyncio.wait(own, return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._answer(api, message.data, socket, request))
                for tasks in (own, self._under_way):
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
        finally:
            self._open.discard(transport)
        return socket

    async def _answer(self, api: str, text: str, socket: web.WebSocketResponse, request: web.Request) -> None:
        number: Json = None
        try:
            asked = json.loads(text, parse_float=str)
            if not isinstance(asked, dict) or not isinstance(asked.get("params", {}), dict):
                raise TypeError("not an object with an object of params")
            number = asked.get("id")
            route = _route(api, str(asked.get("method")))
        except (ValueError, TypeError, RecursionError) as exc:
            error: Json = {"code": -1100, "msg": f"Invalid request: {exc}"}
            await _say(socket, {"id": number, "status": 400, "error": error})
            return
        values = {name: _text(value) for name, value in asked.get("params", {}).items() if value is not None}
        payload = "&".join(f"{name}={values[name]}" for name in sorted(values))
        reply = await self._requests.ask(route, payload, values, values.get("apiKey"))
        if reply.ending in {FaultKind.DISCONNECT, FaultKind.TRUNCATED}:
            _cut(request)
            return
        content = "result" if reply.status < 400 else "error"
        await _say(socket, {"id": number, "status": reply.status, content: reply.body})


def _route(api: str, method: str) -> Endpoint:
    verb, *paths = _METHODS.get(method, "-").split()
    found = [_ENDPOINTS[verb, full] for path in paths if (verb, full := f"/{api}/{path}") in _ENDPOINTS]
    if not found:
        raise ValueError(f"the local exchange does not serve {method[:64]!r}")
    return found[0]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _say(socket: web.WebSocketResponse, body: Json) -> None:
    with suppress(ConnectionError):  # it may be gone by now; that undoes nothing
        await socket.send_str(json.dumps(body, separators=(",", ":")))
