"""Orders that a person places by hand in the exchange's own app, without any program.

They are recorded with the origin ``person``, so that a test can tell them from the orders of its bot.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, TypeVar

from lockguard.errors import ConfigurationError
from lockguard_lab.exchange.accounting import change_position_mode
from lockguard_lab.exchange.model import (
    MAIN,
    ZERO,
    AlgoOrder,
    NewAlgoOrder,
    NewOrder,
    Order,
    OrderType,
    Origin,
    PositionSide,
    Side,
)
from lockguard_lab.exchange.rejections import Rejection

if TYPE_CHECKING:
    from lockguard_lab.exchange.desk import Desk

__all__ = ["HandOrder", "HandStop", "cancel", "set_hedge_mode", "set_permissions", "stop", "trade"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HandOrder:
    """An order placed by hand.

    Attributes:
        price: of a limit order; ``None`` for a market order.
    """

    symbol: str
    side: Side
    qty: Decimal
    price: Decimal | None = None
    reduce_only: bool = False
    position_side: PositionSide = PositionSide.BOTH
    account: str = MAIN
    client_id: str | None = None


@dataclass(frozen=True, slots=True)
class HandStop:
    """A stop or take-profit placed by hand.

    Attributes:
        qty: ``None`` closes the whole position.
        reduce_only: leave it out in hedge mode, where a closing order is reduce-only anyway.
    """

    symbol: str
    side: Side
    trigger: Decimal
    qty: Decimal | None = None
    reduce_only: bool = True
    take_profit: bool = False
    position_side: PositionSide = PositionSide.BOTH
    account: str = MAIN
    client_id: str | None = None


def trade(desk: Desk, hand: HandOrder) -> Order:
    """Place an order by hand.

    Raises:
        ConfigurationError: the exchange refuses it.
    """
    new = NewOrder(
        symbol=desk.listed_id(hand.symbol),
        side=hand.side,
        type=OrderType.MARKET if hand.price is None else OrderType.LIMIT,
        qty=hand.qty,
        client_id=hand.client_id or _client_id(),
        price=hand.price,
        reduce_only=hand.reduce_only,
        position_side=hand.position_side,
    )
    return _done(lambda: desk.engine(hand.account).place(new, desk.now_ms, Origin.PERSON))


def stop(desk: Desk, hand: HandStop) -> AlgoOrder:
    """Place a stop or take-profit by hand.

    Raises:
        ConfigurationError: the exchange refuses it.
    """
    whole = hand.qty is None
    new = NewAlgoOrder(
        symbol=desk.listed_id(hand.symbol),
        side=hand.side,
        type=OrderType.TAKE_PROFIT_MARKET if hand.take_profit else OrderType.STOP_MARKET,
        qty=ZERO if hand.qty is None else hand.qty,
        client_id=hand.client_id or _client_id(),
        trigger=hand.trigger,
        reduce_only=hand.reduce_only and not whole and hand.position_side is PositionSide.BOTH,
        close_position=whole,
        position_side=hand.position_side,
    )
    return _done(lambda: desk.engine(hand.account).place_algo(new, desk.now_ms, Origin.PERSON))


def cancel(desk: Desk, order_id: int, account: str = MAIN) -> Order | AlgoOrder:
    """Cancel an order of either book and of any origin.

    Raises:
        ConfigurationError: there is no such open order.
    """
    engine = desk.engine(account)
    for order in engine.open_orders():
        if order.id == order_id:
            return engine.cancel(order.symbol, order_id, None, desk.now_ms)
    return _done(lambda: engine.cancel_algo(order_id, None, desk.now_ms))


def set_hedge_mode(desk: Desk, *, hedged: bool, account: str = MAIN) -> None:
    """Turn hedge mode on or off; no error if the account is in that mode already.

    Raises:
        ConfigurationError: the account has orders or positions.
    """
    engine = desk.engine(account)
    if engine.account.hedged is not hedged:
        _done(lambda: change_position_mode(engine, hedged=hedged))


def set_permissions(desk: Desk, *, withdrawals: bool, futures: bool, account: str = MAIN) -> None:
    """Say what the account's key may do. It is only told: no request is refused for it."""
    chosen = desk.engine(account).account
    chosen.may_withdraw, chosen.may_trade_futures = withdrawals, futures


def _client_id() -> str:
    return f"web_{secrets.token_hex(8)}"


def _done(act: Callable[[], T]) -> T:
    try:
        return act()
    except Rejection as no:
        raise ConfigurationError(f"the exchange refuses: {no.code} {no.message}") from no
