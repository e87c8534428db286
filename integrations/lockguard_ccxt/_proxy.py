"""Which of ccxt's calls change something.

This is decided by name: ccxt's unified calls and its generated ones (``fapiPrivatePostOrder``) are named for
what they do, in camel or in snake case. A coroutine function of ccxt whose name does not say that it reads,
or that it keeps a connection, counts as a change: it may be a way to order that this list does not know.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lockguard_ccxt._verbs import ORDERS_BY_GET, changes

__all__ = [
    "Asked",
    "changes_something",
    "closes_all",
    "has_client_id",
    "is_order_call",
    "is_write",
    "only_reads",
    "orders_of",
    "orders_of_path",
    "orders_of_raw",
    "reads_something",
    "symbols_of",
]

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WRITE = re.compile(
    r"^(?:create_|edit_|cancel_|close_|borrow_|repay_|redeem_|upgrade_|transfer|futures_transfer|withdraw"
    r"|add_margin$|reduce_margin$|modify_margin|set_(?:leverage|margin|margin_mode|position_mode)$)"
)
_READ = re.compile(
    r"^(?:internal_)?(?:fetch|watch|wath|un_?watch|load|get_|is_|handle|ensure|find_|check_|query_|retrieve_|estimate_)"
    r"|^(?:un_?)?subscribe|^(?:authenticate|sign_in|keep_alive_|renew_listen_|negotiate|initialize_)"
    r"|^(?:close|sleep|throttle|ping|pong|safe_deterministic_call)$"
)
_GENERATED_WRITE = re.compile(rf"_(?:post|put|patch|delete)_|_get_{ORDERS_BY_GET}$")
_ANY = frozenset({"request", "fetch", "fetch2"})
"""Calls that send any request: whether they change something depends on their ``method`` and path."""
_SENDS = frozenset({"watch", "watch_multiple"})
"""Calls that send any message over a websocket, if they are given one."""
_ORDER = re.compile(r"^create_(?:\w+_)?orders?(?:_ws|_with_\w+)?$")
_CLIENT_ID_PARAMS = ("clientOrderId", "newClientOrderId", "clientAlgoId", "orderLinkId")


def _snake(name: str) -> str:
    return _HUMP.sub("_", name).lower()


def is_write(name: str, call: object) -> bool:
    """Whether a call, by its name, changes something on the exchange.

    Helpers such as ``create_order_request`` have similar names but send nothing: they are not coroutine
    functions. Nor are the generated calls, although they return a coroutine.
    """
    snake = _snake(name)
    if snake in _ANY | _SENDS:
        return callable(call)
    if _GENERATED_WRITE.search(snake):
        return callable(call)
    if not inspect.iscoroutinefunction(call):
        return False
    own = str(getattr(call, "__module__", "")).startswith("ccxt.")
    return bool(_WRITE.match(snake)) or (own and not _READ.match(snake))


def only_reads(name: str, bound: inspect.BoundArguments) -> bool:
    """Whether a call that can send anything only reads with these arguments."""
    snake, arguments = _snake(name), bound.arguments
    if snake in _SENDS:
        return arguments.get("message") is None
    path = str(arguments.get("path") or arguments.get("url"))
    return snake in _ANY and not changes(str(arguments.get("method", "GET")), path)


def is_order_call(name: str) -> bool:
    """Whether the call of this name places orders from unified arguments."""
    return bool(_ORDER.match(_snake(name)))


def has_client_id(bound: inspect.BoundArguments) -> bool:
    """Whether an order, or each of several, carries a client order id."""
    params: Any = bound.arguments.get("params") or {}
    orders: Any = bound.arguments.get("orders")
    each = [order.get("params") or {} for order in orders] if orders is not None else [params]
    return all(any(one.get(name) for name in _CLIENT_ID_PARAMS) for one in each)


def symbol_of(bound: inspect.BoundArguments) -> str | None:
    """The ``symbol`` among a call's arguments; ``None`` if it has none."""
    symbol = bound.arguments.get("symbol")
    return symbol if isinstance(symbol, str) else None


# --- what a synchronous call asks for: there, helpers cannot be told from calls by how they are defined ---

_HELPER = re.compile(r"_(?:requests?|helper)$|^create_(?:ccxt|safe|ohlcv|expired)_")
_PLACES = re.compile(r"^(?:create|edit)_(?:\w+_)?orders?(?:_ws|_with_\w+)?$")
_CLOSES = re.compile(r"^close_(?:all_)?positions?$")
_REDUCES = ("reduceOnly", "reduce_only", "closePosition")
_YES = frozenset({"true", "yes", "1"})
_BORROWS = re.compile(r"margin|lever|borrow|loan|isolated|sideeffect|tdmode|tradetype|account|^type$")
_OWN_COINS = frozenset({"", "false", "0", "none", "no", "cash", "spot", "trade", "normal"})
_SIDES_IN_HEDGE_MODE = ("positionSide", "posSide", "holdSide", "tradeSide", "offset")
_OPENS_IN_HEDGE_MODE = frozenset({("buy", "long"), ("sell", "short")})
_ORDERS = re.compile(r"order|buy|sell|clos|plac|entrust")
_PUTS_ANOTHER = re.compile(r"plac|buy|sell|amend")
_NO_ORDER = re.compile(
    r"leverage|margin|mode|dual|isolat|risk|countdown|heartbeat|trading[-_]?stop|pos[-_]?tpsl"
    r"|transfer|withdraw|deposit|address|sub[-_]?acc|loan|borrow|repay|convert|stak|earn|saving|redeem"
    r"|listen|stream|token|session|auth|login|logout|key"
    r"|balance|ledger|histor|info|status|quer|list|export|fee|open[-_]?positions|volume"
)
"""In the path of a change that places no order: of a position, coins or a connection, or a read by POST."""
_NATIVE_SYMBOLS = ("symbol", "instId", "instrument_name", "contract", "market", "pair")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks for, as far as its arguments tell.

    Attributes:
        symbol: the market; ``None`` when the call names none.
        side: ``buy`` or ``sell``; ``""`` when it is not told.
        places: whether it places an order, edits one, or closes a position.
        reduces: whether that order certainly makes no position larger, if its market has positions.
        borrows: whether a sale on a spot market may sell what the account does not have.
    """

    symbol: str | None
    side: str
    places: bool
    reduces: bool
    borrows: bool


def changes_something(name: str) -> bool:
    """Whether a unified call changes something on the exchange, by its name alone."""
    snake = _snake(name)
    return bool(_WRITE.match(snake)) and not _HELPER.search(snake)


def reads_something(name: str) -> bool:
    """Whether a unified call reads, by its name alone; Kraken and others have reads by POST."""
    return _snake(name).startswith(("fetch_", "load_"))


def orders_of(name: str, bound: inspect.BoundArguments, exchange_id: str) -> Iterator[Asked]:
    """What a unified call asks for: one for each order, or one for any other change.

    An order reduces only if it says so in ccxt's own words. Other spellings, ``"true"`` and ``1`` among
    them, are dropped or passed on without a meaning by some exchanges, and the order would open. An edit
    never counts: exchanges change the price and the amount of an order, and ignore the rest.
    """
    snake, arguments = _snake(name), bound.arguments
    if not _PLACES.match(snake):
        closes = bool(_CLOSES.match(snake))
        yield Asked(symbol_of(bound), "", places=closes, reduces=closes, borrows=False)
        return
    side = next((side for side in ("buy", "sell") if f"_{side}_" in snake), "")
    for order in arguments["orders"] if arguments.get("orders") is not None else [arguments]:
        params: Any = order.get("params") or {}
        its_side = str(order.get("side") or side).lower()
        says = (
            "_reduce_only_" in snake
            or params.get("reduceOnly") is True
            or (exchange_id.startswith("binance") and _is_yes(params.get("closePosition")))
        )
        reduces = says and not snake.startswith("edit_") and not _says_it_opens(params, its_side)
        borrows = any(
            _BORROWS.search(name.lower()) and str(value or "").lower() not in _OWN_COINS
            for name, value in params.items()
        )
        # Parameters go over the arguments: their market is the one that is traded.
        for symbol in dict.fromkeys((order.get("symbol"), *_native_symbols(params))):
            yield Asked(symbol, its_side, places=True, reduces=reduces, borrows=borrows)


def orders_of_raw(path: str, bound: inspect.BoundArguments) -> Iterator[Asked]:
    """What a generated call asks for, such as ``fapiPrivatePostOrder``: its path and parameters tell."""
    params: Any = bound.arguments.get("params")
    known: Mapping[str, Any] = params if isinstance(params, dict) else {}  # a batch is a list
    public = "public" in str(bound.arguments.get("api"))
    places = orders_of_path(path, str(bound.arguments.get("method")), public=public).places
    if places and _has_orders_inside(known):
        yield Asked(None, "", places=True, reduces=False, borrows=False)
        return
    reduces = any(_is_yes(known.get(name)) for name in _REDUCES) and not _says_it_opens(
        known, str(known.get("side")).lower()
    )
    symbol = next(iter(_native_symbols(known)), None)
    yield Asked(symbol, "", places=places, reduces=reduces, borrows=False)


def orders_of_path(path: str, method: str, *, public: bool = False) -> Asked:
    """What a change of this path asks for, if nothing is known of its parameters.

    It places an order unless the path tells that it does something else: hyperliquid takes orders at
    ``exchange``, Bitstamp at ``buy/{pair}/``, OKX closes at ``trade/close-position``.

    Args:
        path: without the host, whose name tells nothing.
        method: of HTTP.
        public: whether it needs no key, so that it cannot order.
    """
    words = _snake(path)
    orders = bool(_ORDERS.search(words))
    cancels = method.upper() == "DELETE" or ("cancel" in words and not _PUTS_ANOTHER.search(words))
    places = not cancels and (orders or not (public or _NO_ORDER.search(words)))
    return Asked(None, "", places=places, reduces=False, borrows=False)


def closes_all(name: str) -> bool:
    """Whether a call closes positions in markets that it does not name."""
    return bool(re.match(r"close_(?:all_)?positions$", _snake(name)))


def symbols_of(bound: inspect.BoundArguments) -> list[str]:
    """Every market that a call of any kind names: its own, and those of its orders, parameters or message."""
    arguments = bound.arguments
    inside = [arguments.get(name) for name in ("params", "orders", "message", "body")]
    named = [arguments.get("symbol"), *_symbols_inside(inside)]
    return list(dict.fromkeys(symbol for symbol in named if isinstance(symbol, str)))


def _symbols_inside(value: Any) -> Iterator[str]:
    """The markets in parameters, which may hold a batch of orders, and that as JSON."""
    if isinstance(value, str) and value[:1] in {"[", "{"}:
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, dict):
        yield from _native_symbols(value)
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _symbols_inside(one)


def _native_symbols(params: Mapping[str, Any]) -> list[str]:
    return [str(params[name]) for name in _NATIVE_SYMBOLS if params.get(name)]


def _has_orders_inside(params: Mapping[str, Any]) -> bool:
    """Whether a raw request may be a batch, of which no single parameter tells anything."""
    return any(
        (isinstance(value, (list, dict)) or str(value)[:1] in {"[", "{"}) and not name.startswith("attach")
        for name, value in params.items()
    )


def _says_it_opens(params: Mapping[str, Any], side: str) -> bool:
    """Whether another parameter contradicts one that says "reduce only", and may win."""
    words = [str(params.get(name)).lower() for name in _SIDES_IN_HEDGE_MODE]
    denied = any(name in params and not _is_yes(params[name]) for name in _REDUCES[:2])
    return denied or "open" in words or any((side, word) in _OPENS_IN_HEDGE_MODE for word in words)


def _is_yes(value: object) -> bool:
    return str(value).lower() in _YES
