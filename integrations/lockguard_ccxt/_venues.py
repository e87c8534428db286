"""What differs between exchanges: how a stop is asked for, where an order is looked for, what an id is worth.

Everything else goes through ccxt's unified calls; what those give is read here.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

from lockguard.errors import ConfigurationError
from lockguard_ccxt._classify import ccxt_errors
from lockguard_ccxt._markets import listing_of, venue_name
from lockguard_ccxt._money import decimal_of
from lockguard_ccxt._outcome import OrderState, PlacedOrder, Side, opposite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "IN_HEDGE_MODE",
    "UNREAD",
    "Binance",
    "Bybit",
    "Holding",
    "Venue",
    "every_order",
    "every_position",
    "next_page",
    "orders_of_one",
    "parse_holdings",
    "parse_order",
    "venue_of",
]

UNREAD = "lockguard_unread"
"""In the answer to a cancel: whether the order was moved before it was taken back could not be read."""

_ZERO = Decimal(0)
_LINEAR = {"type": "swap", "subType": "linear"}
_BYBIT_POSITIONS_MAX = 200
_BYBIT_ORDERS_MAX = 50
"""How many Bybit gives at once."""
_HISTORY_PAUSES_S = (0.0, 0.25, 0.5)
_STATES = {
    "open": OrderState.OPEN,
    "closed": OrderState.CLOSED,
    "canceled": OrderState.CANCELED,
    "canceling": OrderState.CANCELED,
    "expired": OrderState.EXPIRED,
    "rejected": OrderState.REJECTED,
}


class Venue(Protocol):
    """One exchange's ways."""

    @property
    def ids_unique_for_good(self) -> bool:
        """Whether an id is refused for ever after its first use, or only while its order is open."""
        ...

    @property
    def attaches_stops(self) -> bool:
        """Whether an entry can carry its stop, so that there is no instant without one."""
        ...

    @property
    def window(self) -> timedelta:
        """After how long the exchange refuses a request that was on its way."""
        ...

    def stop_params(self, trigger: str, client_id: str) -> dict[str, Any]:
        """What asks for a reduce-only stop at ``trigger``."""
        ...

    def entry_params(self, stop: str | None, client_id: str) -> dict[str, Any]:
        """What asks for an entry, with its stop attached where that is possible."""
        ...

    async def find(
        self, exchange: Any, symbol: str, client_id: str, *, conditional: bool
    ) -> PlacedOrder | None:
        """An order by its client id, in every book; the one where it should be first.

        Raises:
            ccxt.NetworkError: the exchange could not be asked. That is not "no such order".
        """
        ...

    async def cancel(self, exchange: Any, order: PlacedOrder) -> Mapping[str, Any]:
        """Ask to cancel an order, by our name for it if it has one.

        Returns:
            The answer, with its ``id``; with its ``triggerPrice`` where that is another one by now, and with
            :data:`UNREAD` where it may be another one and could not be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Binance:
    """USD-M futures: stops live in a second book, and ids are unique among open orders only."""

    window: timedelta = timedelta(seconds=10)
    ids_unique_for_good: bool = False
    attaches_stops: bool = False

    def stop_params(self, trigger: str, client_id: str) -> dict[str, Any]:
        """Any trigger sends the order to the algo order API."""
        return {"stopLossPrice": trigger, "reduceOnly": True, "clientOrderId": client_id}

    def entry_params(self, stop: str | None, client_id: str) -> dict[str, Any]:  # noqa: ARG002 - none to attach
        """An entry carries no stop here."""
        return {"clientOrderId": client_id}

    async def find(
        self, exchange: Any, symbol: str, client_id: str, *, conditional: bool
    ) -> PlacedOrder | None:
        """Ask both books."""
        for trigger in (conditional, not conditional):
            params = {"clientOrderId": client_id, **({"trigger": True} if trigger else {})}
            try:
                order = await exchange.fetch_order(None, symbol, params)
            except ccxt_errors().OrderNotFound:
                continue
            return await _with_fill(exchange, symbol, order)
        return None

    async def cancel(self, exchange: Any, order: PlacedOrder) -> Mapping[str, Any]:
        """A stop is not found without ``trigger``."""
        by_name = {"clientOrderId": order.client_id} if order.client_id else {}
        params = {**by_name, **({"trigger": True} if order.conditional else {})}
        answer: Mapping[str, Any] = await exchange.cancel_order(order.id or None, order.symbol, params)
        return answer


async def _with_fill(exchange: Any, symbol: str, order: Mapping[str, Any]) -> PlacedOrder:
    """A stop that has fired has become an ordinary order, and that one knows the fill."""
    parsed = parse_order(order)
    became = (order.get("info") or {}).get("actualOrderId")
    if not parsed.conditional or not became:
        return parsed
    try:
        filled = parse_order(await exchange.fetch_order(str(became), symbol))
    except ccxt_errors().OrderNotFound:
        return parsed
    return replace(parsed, filled=filled.filled, average=filled.average)


@dataclass(frozen=True, slots=True)
class Bybit:
    """Linear contracts: an entry carries its stop, and ids are unique for good."""

    window: timedelta = timedelta(seconds=5)
    ids_unique_for_good: bool = True
    attaches_stops: bool = True

    def stop_params(self, trigger: str, client_id: str) -> dict[str, Any]:
        """A conditional order that only reduces."""
        return {"stopLossPrice": trigger, "reduceOnly": True, "clientOrderId": client_id}

    def entry_params(self, stop: str | None, client_id: str) -> dict[str, Any]:
        """The stop goes along with the entry."""
        attached = {} if stop is None else {"stopLoss": {"triggerPrice": stop}}
        return {"clientOrderId": client_id, **attached}

    async def find(
        self, exchange: Any, symbol: str, client_id: str, *, conditional: bool
    ) -> PlacedOrder | None:
        """Ask for open orders of both kinds, then for the history."""
        by_id = {"orderLinkId": client_id}
        for trigger in (conditional, not conditional):
            params = {**by_id, **({"trigger": True} if trigger else {})}
            for order in await exchange.fetch_open_orders(symbol, None, None, params):
                return parse_order(order)
        for order in await exchange.fetch_canceled_and_closed_orders(symbol, None, None, by_id):
            return parse_order(order)
        return None

    async def cancel(self, exchange: Any, order: PlacedOrder) -> Mapping[str, Any]:
        """There is one book. What is the position's own goes by its id too, never as the position's setting.

        Set to nothing, that would take back whatever stands there by now, such as what a person has moved it
        to meanwhile. Whether an order keeps its id when it is moved is not documented, so what such a cancel
        has ended is looked up, and returned; a few times, as the history lags.
        """
        params = {"orderLinkId": order.client_id} if order.client_id else {}
        answer: Mapping[str, Any] = await exchange.cancel_order(order.id or None, order.symbol, params)
        if not order.attached:
            return answer
        by_id = {"orderId": order.id}
        for pause_s in _HISTORY_PAUSES_S:
            await asyncio.sleep(pause_s)
            with suppress(ccxt_errors().BaseError):  # it is taken back, whether this is answered or not
                ended = await exchange.fetch_canceled_and_closed_orders(order.symbol, None, None, by_id)
                if (found := next((one for one in ended if one.get("id") == order.id), None)) is not None:
                    return dict(found)
        return {**answer, UNREAD: True}


def every_position(exchange: Any) -> tuple[dict[str, Any], ...]:
    """What to ask with, one question after the other, to get the positions of all contracts.

    Bybit keeps a list for each coin of settlement, and ccxt asks for that of USDT if it is not told another.
    """
    return tuple({**coin, "limit": _BYBIT_POSITIONS_MAX} for coin in _bybit_coins(exchange)) or ({},)


def every_order(exchange: Any) -> tuple[dict[str, Any], ...]:
    """What to ask with, one question after the other, to get the open orders of all contracts.

    ccxt.binance lists its default type, spot, unless it is told whose orders are meant.
    """
    if venue_name(exchange) == "binance":
        return (dict(_LINEAR),)
    coins = _bybit_coins(exchange)
    return tuple({**_LINEAR, **coin, "limit": _BYBIT_ORDERS_MAX} for coin in coins) or ({},)


def orders_of_one(exchange: Any) -> dict[str, Any]:
    """What to ask with for the open orders of one symbol: Bybit gives twenty, if it is not told how many."""
    return {"limit": _BYBIT_ORDERS_MAX} if venue_name(exchange) == "bybit" else {}


def next_page(asked: Mapping[str, Any], page: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What to ask with for what comes after a page; ``None`` when that was the last one.

    A list that ends after its first page looks complete: what is on the second one would be taken for gone.
    A page that is not full need not be the last one, so the cursor is followed until there is nothing more.
    """
    cursors = [(entry.get("info") or {}).get("nextPageCursor") for entry in page]
    cursor = next((found for found in cursors if found), None)
    return None if cursor in {None, asked.get("cursor")} else {**asked, "cursor": cursor}


def _bybit_coins(exchange: Any) -> tuple[dict[str, Any], ...]:
    listing = listing_of(exchange)
    if venue_name(exchange) != "bybit" or listing is None:
        return ()
    return tuple({"settleCoin": coin} for coin in listing.settle_coins)


def venue_of(exchange: Any) -> Venue:
    """The ways of a ccxt exchange.

    Raises:
        ConfigurationError: an exchange whose ways are not known.
    """
    match venue_name(exchange):
        case "binance":
            window_ms = exchange.options.get("recvWindow")
            return Binance(window=timedelta(milliseconds=window_ms)) if window_ms else Binance()
        case "bybit":
            return Bybit()
        case other:
            raise ConfigurationError(
                f"placing orders by intent is known for binance and bybit, not for {other!r};"
                " use the exchange's own calls through the guard instead"
            )


def parse_order(order: Mapping[str, Any]) -> PlacedOrder:
    """A ccxt order, typed. What the exchange left out is taken for nothing: no fill, merely accepted."""
    side: Side = "sell" if order.get("side") == "sell" else "buy"
    filled = decimal_of(order.get("filled")) or _ZERO
    average = decimal_of(order.get("average"))
    info = order.get("info") or {}
    closes_all = any(str(info.get(name)).lower() == "true" for name in ("closePosition", "closeOnTrigger"))
    return PlacedOrder(
        id=str(order.get("id") or ""),
        client_id=str(order.get("clientOrderId") or ""),
        symbol=str(order.get("symbol") or ""),
        side=side,
        state=_STATES.get(str(order.get("status")), OrderState.ACCEPTED),
        amount=decimal_of(order.get("amount")) or _ZERO,
        filled=filled,
        average=average if average and filled else None,
        trigger=decimal_of(order.get("triggerPrice")),
        reduce_only=bool(order.get("reduceOnly")) or closes_all,
        takes_profit=_takes_profit(order),
        closes_all=closes_all,
        attached=info.get("stopOrderType") == "StopLoss" and not info.get("orderLinkId"),
    )


def _takes_profit(order: Mapping[str, Any]) -> bool:
    """Whether a conditional order waits for a better price than now: then it protects nothing."""
    info = order.get("info") or {}
    kind = f"{info.get('orderType')} {info.get('origType')} {info.get('stopOrderType')}".upper()
    if "PROFIT" in kind:
        return True
    rises = str(info.get("triggerDirection") or "")
    return bool(info.get("reduceOnly")) and rises == ("1" if order.get("side") == "sell" else "2")


@dataclass(frozen=True, slots=True)
class Holding:
    """An open position.

    Attributes:
        symbol: the unified symbol.
        side: ``buy`` when it is long, ``sell`` when it is short.
        amount: above zero.
        entry_price: average; ``None`` when the exchange does not say.
    """

    symbol: str
    side: Side
    amount: Decimal
    entry_price: Decimal | None

    @property
    def closing_side(self) -> Side:
        """The side of an order that makes it smaller."""
        return opposite(self.side)


IN_HEDGE_MODE = (
    "{what} is in hedge mode, with a long and a short side of its own; this works in one-way mode only:"
    " close the positions and switch the account over (exchange.set_position_mode(False))"
)


def _is_leg(info: Mapping[str, Any]) -> bool:
    """Whether the exchange says that it is the long or the short one of two (Binance's and Bybit's words)."""
    return info.get("positionSide") in {"LONG", "SHORT"} or str(info.get("positionIdx") or "0") in {"1", "2"}


def parse_holdings(positions: Iterable[Mapping[str, Any]]) -> tuple[Holding, ...]:
    """Ccxt's positions without the flat ones.

    Raises:
        ConfigurationError: one of them is a leg of hedge mode, be it a flat one: an order without a side of
            its own would be refused, or meet the other leg.
    """
    held = []
    for position in positions:
        if _is_leg(position.get("info") or {}):
            raise ConfigurationError(IN_HEDGE_MODE.format(what=f"the position in {position['symbol']}"))
        amount = decimal_of(position.get("contracts"))
        if amount:
            side: Side = "sell" if position.get("side") == "short" else "buy"
            held.append(
                Holding(str(position["symbol"]), side, abs(amount), decimal_of(position.get("entryPrice")))
            )
    return tuple(held)
