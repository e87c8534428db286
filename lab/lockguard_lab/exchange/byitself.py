"""What the exchange does of its own accord: no order of the account asks for it.

The orders are recorded with the origin ``exchange``, under the client order ids that Binance gives them.
"""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal
from typing import TYPE_CHECKING

from lockguard_lab.exchange.model import MAIN, NewOrder, Order, OrderType, Origin, Side

if TYPE_CHECKING:
    from lockguard_lab.exchange.desk import Desk

__all__ = ["deleverage", "liquidate"]


def liquidate(desk: Desk, symbol: str, share: Decimal, account: str = MAIN) -> Order | None:
    """Liquidate a share of a position in one-way mode, at the last price; its orders expire first.

    Args:
        desk: the exchange.
        symbol: the contract.
        share: above 0 and at most 1; rounded down to the contract's step, and at least one step.
        account: whose position it is.

    Returns:
        The order; ``None`` if nothing is held.
    """
    market_id, engine = desk.listed_id(symbol), desk.engine(account)
    if not engine.account.position(market_id).qty:
        return None
    engine.expire_all(market_id, desk.now_ms)
    return _reduce(desk, market_id, share, account, f"autoclose-{desk.now_ms}")


def deleverage(desk: Desk, symbol: str, share: Decimal, account: str = MAIN) -> Order | None:
    """Close a share of a position by auto-deleveraging; its orders stay as they are.

    Takes and returns what :func:`liquidate` does.
    """
    return _reduce(desk, desk.listed_id(symbol), share, account, "adl_autoclose")


def _reduce(desk: Desk, market_id: str, share: Decimal, account: str, client_id: str) -> Order | None:
    engine, spec = desk.engine(account), desk.venue.markets[market_id]
    held = engine.account.position(market_id).qty
    if not held:
        return None
    new = NewOrder(
        symbol=market_id,
        side=Side.SELL if held > 0 else Side.BUY,
        type=OrderType.MARKET,
        qty=max(spec.step, (abs(held) * share / spec.step).to_integral_value(ROUND_DOWN) * spec.step),
        client_id=client_id,
        reduce_only=True,
    )
    return engine.place(new, desk.now_ms, Origin.EXCHANGE)
