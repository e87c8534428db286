"""The control surface over HTTP, so that tests can steer an exchange that runs in another process.

Every call has its twin on :class:`~lockguard_ccxt.testing.LocalExchange`. There is no key: whoever reaches
the port may steer. The exchange has no money.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, TypeAlias

from aiohttp import web

from lockguard_ccxt.testing.desk import Visibility
from lockguard_ccxt.testing.faults import Fault, Operation
from lockguard_ccxt.testing.http import json_response
from lockguard_ccxt.testing.record import decode, encode, encode_record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lockguard_ccxt.testing.desk import Desk
    from lockguard_ccxt.testing.render import Json

__all__ = ["Control"]

_Body: TypeAlias = "Mapping[str, object]"
_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PATH_STEPS_MAX = 10_000


class Control:
    """Answers ``/_control``."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._walks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End the price paths that are still being walked."""
        for walk in self._walks:
            walk.cancel()
        await asyncio.gather(*self._walks, return_exceptions=True)

    def routes(self) -> list[web.RouteDef]:
        """The endpoints."""
        return [
            web.get("/_control/health", self._answer(self._health)),
            web.get("/_control/record", self._answer(self._record)),
            web.post("/_control/price", self._answer(self._price)),
            web.post("/_control/path", self._answer(self._path)),
            web.post("/_control/latency", self._answer(self._latency)),
            web.post("/_control/visibility", self._answer(self._visibility)),
            web.get("/_control/faults", self._answer(self._waiting)),
            web.post("/_control/faults", self._answer(self._inject)),
            web.delete("/_control/faults", self._answer(self._clear)),
            web.post("/_control/reset", self._answer(self._reset)),
        ]

    @staticmethod
    def _answer(act: Callable[[_Body], Json]) -> _Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                body = await request.json() if request.can_read_body else {}
                if not isinstance(body, dict):
                    raise TypeError("the body must be a JSON object")
                return json_response(act(body))
            except KeyError as exc:
                return json_response({"error": f"field {exc} is missing"}, 400)
            except (ValueError, TypeError, InvalidOperation) as exc:
                return json_response({"error": str(exc) or type(exc).__name__}, 400)

        return handler

    def _health(self, body: _Body) -> Json:  # noqa: ARG002 - one signature for all
        return {"ok": True, "symbols": list(self._desk.engine.markets)}

    def _record(self, body: _Body) -> Json:  # noqa: ARG002 - one signature for all
        return encode_record(self._desk.record())

    def _price(self, body: _Body) -> Json:
        mark = body.get("mark")
        self._desk.set_price(
            str(body["symbol"]), _decimal(body["price"]), None if mark is None else _decimal(mark)
        )
        return {}

    def _path(self, body: _Body) -> Json:
        prices = body["prices"]
        if not isinstance(prices, list) or not 0 < len(prices) <= _PATH_STEPS_MAX:
            raise ValueError(f"prices must be a list of 1 to {_PATH_STEPS_MAX} prices")
        self.walk(str(body["symbol"]), [_decimal(price) for price in prices], _whole(body["every_ms"]))
        return {}

    def walk(self, symbol: str, prices: list[Decimal], every_ms: int) -> asyncio.Task[None]:
        """Set the first price now and one more every ``every_ms`` milliseconds."""
        self._desk.set_price(symbol, prices[0])

        async def step() -> None:
            for price in prices[1:]:
                await asyncio.sleep(every_ms / 1000)
                self._desk.set_price(symbol, price)

        task = asyncio.create_task(step(), name=f"price path of {symbol}")
        self._walks.add(task)
        task.add_done_callback(self._walks.discard)
        return task

    def _latency(self, body: _Body) -> Json:
        operation = body.get("operation")
        self._desk.set_latency(
            _whole(body["latency_ms"]), None if operation is None else Operation(str(operation))
        )
        return {}

    def _visibility(self, body: _Body) -> Json:
        self._desk.visibility = Visibility(**{name: _whole(value) for name, value in body.items()})
        return {}

    def _waiting(self, body: _Body) -> Json:  # noqa: ARG002 - one signature for all
        return [encode(fault) for fault in self._desk.faults.waiting]

    def _inject(self, body: _Body) -> Json:
        self._desk.inject(decode(Fault, body))
        return {}

    def _clear(self, body: _Body) -> Json:  # noqa: ARG002 - one signature for all
        self._desk.faults.clear()
        return {}

    def _reset(self, body: _Body) -> Json:  # noqa: ARG002 - one signature for all
        for walk in self._walks:
            walk.cancel()
        self._desk.reset()
        return {}


def _decimal(value: object) -> Decimal:
    if isinstance(value, float):
        value = repr(value)
    try:
        return Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a number") from None


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value
