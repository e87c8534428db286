"""Which of ccxt's calls change something.

This is decided by name: ccxt's unified calls and its generated ones (``fapiPrivatePostOrder``) are named for
what they do, in camel or in snake case. A call that is not recognised counts as a read.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

__all__ = ["has_client_id", "is_order_call", "is_write", "only_reads", "symbol_of"]

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WRITE = re.compile(
    r"^(?:create_|edit_|cancel_|close_|borrow_|repay_|redeem_|upgrade_|transfer|futures_transfer|withdraw"
    r"|add_margin$|reduce_margin$|modify_margin|set_(?:leverage|margin|margin_mode|position_mode)$)"
)
_GENERATED_WRITE = re.compile(r"_(?:post|put|patch|delete)_")
_ANY = frozenset({"request", "fetch", "fetch2"})
"""Calls that send any request: whether they change something depends on their ``method``."""
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
    if snake in _ANY:
        return callable(call)
    if _GENERATED_WRITE.search(snake):
        return callable(call)
    return bool(_WRITE.match(snake)) and inspect.iscoroutinefunction(call)


def only_reads(name: str, bound: inspect.BoundArguments) -> bool:
    """Whether a call that can send any request only reads with these arguments."""
    return _snake(name) in _ANY and str(bound.arguments.get("method", "GET")).upper() == "GET"


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
