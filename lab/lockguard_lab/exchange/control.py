"""The control API over HTTP, so that tests can control an exchange that runs in another process.

Every call has its counterpart on :class:`~lockguard_lab.exchange.LocalExchange`. It asks for no key: every
client that reaches the port may control the exchange, which holds no money.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, TypeAlias

from aiohttp import web

from lockguard_lab.exchange import byhand
from lockguard_lab.exchange.desk import Visibility
from lockguard_lab.exchange.faults import Fault, Operation
from lockguard_lab.exchange.http import json_response
from lockguard_lab.exchange.listenkeys import Owner
from lockguard_lab.exchange.markets import MarketSpec, market_for
from lockguard_lab.exchange.model import MAIN
from lockguard_lab.exchange.record import decode, encode, encode_record
from lockguard_lab.exchange.signature import Credentials
from lockguard_lab.exchange.venue import Listing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lockguard_lab.exchange.desk import Desk
    from lockguard_lab.exchange.render import Json
    from lockguard_lab.exchange.streams import Streams

__all__ = ["BAN_STATUS", "DENIAL_CODE", "WALLET", "Control"]

WALLET = Decimal(10_000_000)
"""An account's opening balance in USDT and in USDC, unless another is given."""
BAN_STATUS = 418
DENIAL_CODE = -2015

_Body: TypeAlias = "Mapping[str, object]"
_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PATH_STEPS_MAX = 10_000


class Control:
    """Answers the requests below ``/_control`` for one desk."""

    def __init__(self, desk: Desk, streams: Streams) -> None:
        self._desk = desk
        self._streams = streams
        self._walks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop the price paths that are still in progress."""
        for walk in self._walks:
            walk.cancel()
        await asyncio.gather(*self._walks, return_exceptions=True)

    def routes(self) -> list[web.RouteDef]:
        """The routes below ``/_control``."""
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
            web.post("/_control/ban", self._answer(self._ban)),
            web.delete("/_control/ban", self._answer(self._lift_ban)),
            web.post("/_control/denial", self._answer(self._deny)),
            web.delete("/_control/denial", self._answer(self._allow)),
            web.post("/_control/maintenance", self._answer(self._maintenance)),
            web.post("/_control/clock", self._answer(self._clock)),
            web.post("/_control/contract", self._answer(self._list_contract)),
            web.delete("/_control/contract", self._answer(self._delist_contract)),
            web.post("/_control/account", self._answer(self._add_account)),
            web.post("/_control/hedge", self._answer(self._hedge)),
            web.post("/_control/permissions", self._answer(self._permissions)),
            web.post("/_control/trade", self._answer(self._trade)),
            web.post("/_control/stop", self._answer(self._stop)),
            web.post("/_control/cancel", self._answer(self._cancel)),
            web.get("/_control/streams", self._answer(self._listeners)),
            web.delete("/_control/streams", self._answer(self._cut_streams)),
            web.delete("/_control/listenkey", self._answer(self._expire_listen_keys)),
            web.post("/_control/release", self._answer(self._release)),
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
        return {"ok": True, "symbols": list(self._desk.venue.markets)}

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

    def _ban(self, body: _Body) -> Json:
        until_ms = self._desk.now_ms + _whole(body["duration_ms"])
        self._desk.conditions.ban(until_ms, _whole(body.get("status", BAN_STATUS)))
        return {"until_ms": until_ms}

    def _lift_ban(self, body: _Body) -> Json:  # noqa: ARG002 - one signature for all
        self._desk.conditions.lift_ban()
        return {}

    def _deny(self, body: _Body) -> Json:
        operations = body.get("operations")
        if operations is not None and not isinstance(operations, list):
            raise TypeError("operations must be a list")
        chosen = None if operations is None else {Operation(str(name)) for name in operations}
        self._desk.conditions.deny(self._account(body), _whole(body.get("code", DENIAL_CODE)), chosen)
        return {}

    def _allow(self, body: _Body) -> Json:
        self._desk.conditions.allow(self._account(body))
        return {}

    def _account(self, body: _Body) -> str | None:
        name = body.get("account")
        return None if name is None else self._desk.engine(str(name)).account.name

    def _maintenance(self, body: _Body) -> Json:
        self._desk.conditions.maintenance = _flag(body["on"])
        return {}

    def _clock(self, body: _Body) -> Json:
        self._desk.set_clock_offset(_whole(body["offset_ms"]))
        return {}

    def _listeners(self, body: _Body) -> Json:  # noqa: ARG002 - one signature for all
        return [{"account": one.account, "streams": list(one.streams)} for one in self._streams.listeners()]

    def _cut_streams(self, body: _Body) -> Json:
        self._streams.cut(self._account(body))
        return {}

    def _expire_listen_keys(self, body: _Body) -> Json:
        account = self._account(body) or MAIN
        for inverse in (False, True):
            self._streams.expire(Owner(account, inverse))
        return {}

    def _list_contract(self, body: _Body) -> Json:
        spec = decode(MarketSpec, body) if "base" in body else market_for(str(body["symbol"]))
        self._desk.list_contract(spec)
        return {"symbol": spec.id}

    def _delist_contract(self, body: _Body) -> Json:
        self._desk.delist_contract(str(body["symbol"]), Listing(str(body.get("listing", Listing.GONE))))
        return {}

    def _add_account(self, body: _Body) -> Json:
        credentials = Credentials(str(body["api_key"]), str(body["secret"]))
        self._desk.add_account(str(body["name"]), credentials, _decimal(body.get("wallet", WALLET)))
        return {}

    def _hedge(self, body: _Body) -> Json:
        byhand.set_hedge_mode(self._desk, hedged=_flag(body["on"]), account=str(body.get("account", MAIN)))
        return {}

    def _permissions(self, body: _Body) -> Json:
        byhand.set_permissions(
            self._desk,
            withdrawals=_flag(body["withdrawals"]),
            futures=_flag(body["futures"]),
            account=str(body.get("account", MAIN)),
        )
        return {}

    def _trade(self, body: _Body) -> Json:
        return encode(byhand.trade(self._desk, decode(byhand.HandOrder, body)))

    def _stop(self, body: _Body) -> Json:
        return encode(byhand.stop(self._desk, decode(byhand.HandStop, body)))

    def _cancel(self, body: _Body) -> Json:
        return encode(byhand.cancel(self._desk, _whole(body["order_id"]), str(body.get("account", MAIN))))

    def _release(self, body: _Body) -> Json:
        symbol = body.get("symbol")
        self._desk.release(None if symbol is None else str(symbol))
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


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is not true or false")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value
