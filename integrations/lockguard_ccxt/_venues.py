"""What differs between exchanges: how a stop is placed, where orders are found, how long ids stay unique.

Everything else goes through ccxt's unified calls, whose answers are parsed here.
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
    "FILLS_MAX",
    "IN_HEDGE_MODE",
    "UNREAD",
    "Binance",
    "Bybit",
    "Fill",
    "Holding",
    "Venue",
    "every_order",
    "every_position",
    "fills_of_one",
    "next_page",
    "orders_of_one",
    "parse_fills",
    "parse_holdings",
    "parse_order",
    "venue_of",
]

UNREAD = "lockguard_unread"
"""Key in the answer to a cancel: whether the order was moved before it was cancelled could not be read."""

_ZERO = Decimal(0)
_LINEAR = {"type": "swap", "subType": "linear"}
_BYBIT_POSITIONS_MAX = 200
_BYBIT_ORDERS_MAX = 50
_BYBIT_FILLS_MAX = 100
"""How many Bybit returns per page."""
FILLS_MAX = 1_000
"""How many fills Binance lists at most; a list that is full may be cut off."""
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
    """What is particular to one exchange."""

    @property
    def ids_unique_for_good(self) -> bool:
        """Whether an id is refused forever after its first use, not only while its order is open."""
        ...

    @property
    def attaches_stops(self) -> bool:
        """Whether an entry can carry its stop, so that the position is never without one."""
        ...

    @property
    def window(self) -> timedelta:
        """The age from which the exchange refuses a request that was in flight."""
        ...

    def stop_params(self, trigger: str, client_id: str) -> dict[str, Any]:
        """The ccxt parameters of a reduce-only stop at ``trigger``."""
        ...

    def entry_params(self, stop: str | None, client_id: str) -> dict[str, Any]:
        """The ccxt parameters of an entry, with its stop attached where that is possible."""
        ...

    async def find(
        self, exchange: Any, symbol: str, client_id: str, *, conditional: bool
    ) -> PlacedOrder | None:
        """An order by its client order id, in every book; the book of ``conditional`` is asked first.

        Raises:
            ccxt.NetworkError: the exchange could not be asked. That is not "no such order".
        """
        ...

    async def cancel(self, exchange: Any, order: PlacedOrder) -> Mapping[str, Any]:
        """Ask to cancel an order, by its client order id if it has one.

        Returns:
            The answer, with its ``id``; with the ``triggerPrice`` if the order was moved before, and with
            :data:`UNREAD` if it may have been moved and that could not be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Binance:
    """USD-M futures: stops are in a second book, and ids are unique among open orders only."""

    window: timedelta = timedelta(seconds=10)
    ids_unique_for_good: bool = False
    attaches_stops: bool = False

    def stop_params(self, trigger: str, client_id: str) -> dict[str, Any]:
        """The parameters of a stop; ``stopLossPrice`` makes ccxt use the algo order API."""
        return {"stopLossPrice": trigger, "reduceOnly": True, "clientOrderId": client_id}

    def entry_params(self, stop: str | None, client_id: str) -> dict[str, Any]:  # noqa: ARG002 - none to attach
        """The parameters of an entry, which carries no stop here."""
        return {"clientOrderId": client_id}

    async def find(
        self, exchange: Any, symbol: str, client_id: str, *, conditional: bool
    ) -> PlacedOrder | None:
        """Look for an order in both books."""
        for trigger in (conditional, not conditional):
            params = {"clientOrderId": client_id, **({"trigger": True} if trigger else {})}
            try:
                order = await exchange.fetch_order(None, symbol, params)
            except ccxt_errors().OrderNotFound:
                continue
            return await _with_fill(exchange, symbol, order)
        return None

    async def cancel(self, exchange: Any, order: PlacedOrder) -> Mapping[str, Any]:
        """Cancel an order; a stop is only found with the parameter ``trigger``, and its rest without."""
        by_name = {"clientOrderId": order.client_id} if order.client_id else {}
        params = {**by_name, **({"trigger": True} if order.conditional else {})}
        answer: Mapping[str, Any]
        try:
            answer = await exchange.cancel_order(order.id or None, order.symbol, params)
        except ccxt_errors().OrderNotFound:
            if not order.conditional:
                raise
            # A stop that has fired is no longer in that book, but what is left of it may still be filled.
            became = _became(await exchange.fetch_order(order.id or None, order.symbol, params))
            if became is None:
                raise
            answer = await exchange.cancel_order(became, order.symbol)
        return answer


def _became(stop: Mapping[str, Any]) -> str | None:
    """The id of the ordinary order that a stop has become; ``None`` if it has not fired."""
    became = (stop.get("info") or {}).get("actualOrderId")
    return str(became) if became else None


async def _with_fill(exchange: Any, symbol: str, order: Mapping[str, Any]) -> PlacedOrder:
    """Add the fill to a fired stop: it has become an ordinary order, which has the fill."""
    parsed, became = parse_order(order), _became(order)
    if not parsed.conditional or became is None:
        return parsed
    try:
        filled = parse_order(await exchange.fetch_order(became, symbol))
    except ccxt_errors().OrderNotFound:
        return parsed
    return replace(parsed, filled=filled.filled, average=filled.average, filling=filled.live)


@dataclass(frozen=True, slots=True)
class Bybit:
    """Linear contracts: an entry carries its stop, and ids stay unique forever."""

    window: timedelta = timedelta(seconds=5)
    ids_unique_for_good: bool = True
    attaches_stops: bool = True

    def stop_params(self, trigger: str, client_id: str) -> dict[str, Any]:
        """The parameters of a conditional, reduce-only order."""
        return {"stopLossPrice": trigger, "reduceOnly": True, "clientOrderId": client_id}

    def entry_params(self, stop: str | None, client_id: str) -> dict[str, Any]:
        """The parameters of an entry with its stop attached."""
        attached = {} if stop is None else {"stopLoss": {"triggerPrice": stop}}
        return {"clientOrderId": client_id, **attached}

    async def find(
        self, exchange: Any, symbol: str, client_id: str, *, conditional: bool
    ) -> PlacedOrder | None:
        """Look for an order among the open ones of both kinds, then in the history."""
        by_id = {"orderLinkId": client_id}
        for trigger in (conditional, not conditional):
            params = {**by_id, **({"trigger": True} if trigger else {})}
            for order in await exchange.fetch_open_orders(symbol, None, None, params):
                return parse_order(order)
        for order in await exchange.fetch_canceled_and_closed_orders(symbol, None, None, by_id):
            return parse_order(order)
        return None

    async def cancel(self, exchange: Any, order: PlacedOrder) -> Mapping[str, Any]:
        """Cancel an order by its id; the position's own stop too, never through the position's setting.

        Clearing that setting would cancel whatever stop stands by then, such as one that a person has moved.
        Whether an order keeps its id when it is moved is not documented, so the order that such a cancel has
        ended is looked up and returned; a few times, as the history lags.
        """
        params = {"orderLinkId": order.client_id} if order.client_id else {}
        answer: Mapping[str, Any] = await exchange.cancel_order(order.id or None, order.symbol, params)
        if not order.attached:
            return answer
        by_id = {"orderId": order.id}
        for pause_s in _HISTORY_PAUSES_S:
            await asyncio.sleep(pause_s)
            with suppress(ccxt_errors().BaseError):  # the order is cancelled whether or not this is answered
                ended = await exchange.fetch_canceled_and_closed_orders(order.symbol, None, None, by_id)
                if (found := next((one for one in ended if one.get("id") == order.id), None)) is not None:
                    return dict(found)
        return {**answer, UNREAD: True}


def every_position(exchange: Any) -> tuple[dict[str, Any], ...]:
    """The parameters of the requests, one after the other, that list the positions of all contracts.

    Bybit keeps a list for each settlement coin, and ccxt asks for that of USDT unless told otherwise.
    """
    return tuple({**coin, "limit": _BYBIT_POSITIONS_MAX} for coin in _bybit_coins(exchange)) or ({},)


def every_order(exchange: Any) -> tuple[dict[str, Any], ...]:
    """The parameters of the requests, one after the other, that list the open orders of all contracts.

    ccxt.binance lists those of its default type, spot, unless told otherwise.
    """
    if venue_name(exchange) == "binance":
        return (dict(_LINEAR),)
    coins = _bybit_coins(exchange)
    return tuple({**_LINEAR, **coin, "limit": _BYBIT_ORDERS_MAX} for coin in coins) or ({},)


def orders_of_one(exchange: Any) -> dict[str, Any]:
    """The parameters that list the open orders of one symbol; Bybit returns only twenty by default."""
    return {"limit": _BYBIT_ORDERS_MAX} if venue_name(exchange) == "bybit" else {}


def fills_of_one(exchange: Any) -> dict[str, Any]:
    """The parameters that list as many fills of one symbol as one request can."""
    return {"limit": _BYBIT_FILLS_MAX if venue_name(exchange) == "bybit" else FILLS_MAX}


def next_page(asked: Mapping[str, Any], page: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The parameters of the request for the next page; ``None`` after the last one.

    A list cut off after its first page looks complete: what is on the second one would be taken for gone. A
    page that is not full need not be the last, so the cursor is followed to its end.
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
    """The :class:`Venue` of a ccxt exchange.

    Raises:
        ConfigurationError: orders by intent are not supported for this exchange.
    """
    venue: Binance | Bybit
    match venue_name(exchange):
        case "binance":
            venue = Binance()
        case "bybit":
            venue = Bybit()
        case other:
            raise ConfigurationError(
                f"placing orders by intent is known for binance and bybit, not for {other!r};"
                " use the exchange's own calls through the guard instead"
            )
    window_ms = decimal_of(exchange.options.get("recvWindow"))  # ccxt signs each request with it
    return replace(venue, window=timedelta(milliseconds=float(window_ms))) if window_ms else venue


def parse_order(order: Mapping[str, Any]) -> PlacedOrder:
    """Parse a ccxt order. A fill that the exchange left out is zero, a state left out is ``ACCEPTED``."""
    side: Side = "sell" if order.get("side") == "sell" else "buy"
    filled = decimal_of(order.get("filled")) or _ZERO
    average = decimal_of(order.get("average"))
    info = order.get("info") or {}
    closes_position, closes_only = (
        str(info.get(name)).lower() == "true" for name in ("closePosition", "closeOnTrigger")
    )
    amount = decimal_of(order.get("amount")) or _ZERO
    attached = info.get("stopOrderType") == "StopLoss" and not info.get("orderLinkId")
    return PlacedOrder(
        id=str(order.get("id") or ""),
        client_id=str(order.get("clientOrderId") or ""),
        symbol=str(order.get("symbol") or ""),
        side=side,
        state=_STATES.get(str(order.get("status")), OrderState.ACCEPTED),
        amount=amount,
        filled=filled,
        average=average if average and filled else None,
        trigger=decimal_of(order.get("triggerPrice")),
        reduce_only=bool(order.get("reduceOnly")) or closes_position or closes_only,
        takes_profit=_takes_profit(order),
        # Bybit sets closeOnTrigger also on stops for a part ("PartialStopLoss"): those close their amount.
        closes_all=closes_position or (closes_only and (attached or not amount)),
        attached=attached,
    )


def _takes_profit(order: Mapping[str, Any]) -> bool:
    """Whether a conditional order waits for a better price than now, and so protects nothing.

    So does a stop with a limit on the wrong side of its trigger: it triggers, and then waits for that price.
    """
    info = order.get("info") or {}
    limit, trigger = decimal_of(order.get("price")), decimal_of(order.get("triggerPrice"))
    if limit and trigger and order.get("type") != "market":
        beyond = limit <= trigger if order.get("side") == "sell" else limit >= trigger
        if not beyond:
            return True
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
        entry_price: the average price; ``None`` when the exchange does not give it.
        leg: whether it is the long or the short leg of a contract in hedge mode, where nothing is ordered.
    """

    symbol: str
    side: Side
    amount: Decimal
    entry_price: Decimal | None
    leg: bool = False

    @property
    def closing_side(self) -> Side:
        """The side of an order that reduces it."""
        return opposite(self.side)


@dataclass(frozen=True, slots=True)
class Fill:
    """A fill of one order.

    Attributes:
        order_id: the exchange's id of the order.
        side: the order's own side.
        amount: above zero.
        at_ms: on the exchange's clock, in milliseconds since 1970.
    """

    order_id: str
    side: Side
    amount: Decimal
    at_ms: int


def parse_fills(trades: Iterable[Mapping[str, Any]]) -> tuple[Fill, ...]:
    """Parse ccxt's trades of the account; by their milliseconds, as pages come the latest first.

    Raises:
        ccxt.BadResponse: the order, the amount or the time of one cannot be read.
    """
    fills = []
    for trade in trades:
        order_id, amount, at_ms = trade.get("order"), decimal_of(trade.get("amount")), trade.get("timestamp")
        if not order_id or not amount or at_ms is None:  # left out, it would hide who has traded
            raise ccxt_errors().BadResponse(f"a fill of {trade.get('symbol')} cannot be read")
        side: Side = "sell" if trade.get("side") == "sell" else "buy"
        fills.append(Fill(str(order_id), side, amount, int(at_ms)))
    return tuple(sorted(fills, key=lambda fill: fill.at_ms))


IN_HEDGE_MODE = (
    "{what} is in hedge mode, with a long and a short side of its own; this works in one-way mode only:"
    " close the positions and switch the account over (exchange.set_position_mode(False))"
)


def _is_leg(info: Mapping[str, Any]) -> bool:
    """Whether a position is the long or the short leg of hedge mode, in Binance's or Bybit's terms."""
    return info.get("positionSide") in {"LONG", "SHORT"} or str(info.get("positionIdx") or "0") in {"1", "2"}


def parse_holdings(positions: Iterable[Mapping[str, Any]], *, of_all: bool = False) -> tuple[Holding, ...]:
    """Parse ccxt's positions, leaving out the flat ones.

    Args:
        positions: ccxt's.
        of_all: whether they are those of all contracts. A leg of one that has a mode of its own, as at Bybit,
            is then marked: it must not hide the others.

    Raises:
        ConfigurationError: one of them, flat or not, is a leg of hedge mode: an order that names no leg would
            be refused, or reduce the other leg.
        ccxt.BadResponse: the amount of one is not a number.
    """
    held = []
    for position in positions:
        leg = False
        if _is_leg(position.get("info") or {}):
            leg = "positionIdx" in position["info"]
            if not (leg and of_all):
                raise ConfigurationError(IN_HEDGE_MODE.format(what=f"the position in {position['symbol']}"))
        given = position.get("contracts")
        amount = decimal_of(given)
        if amount is None and given not in (None, ""):  # not "flat", which would end the position's row
            raise ccxt_errors().BadResponse(f"the amount of {position.get('symbol')} cannot be read")
        if amount:
            side: Side = "sell" if position.get("side") == "short" else "buy"
            price = decimal_of(position.get("entryPrice"))
            held.append(Holding(str(position["symbol"]), side, abs(amount), price, leg))
    return tuple(held)
