"""The account endpoints of the USD-M REST API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockguard_ccxt.testing.rejections import Rejection
from lockguard_ccxt.testing.render import fill_json, position_json, text

if TYPE_CHECKING:
    from lockguard_ccxt.testing.desk import Desk
    from lockguard_ccxt.testing.params import Params
    from lockguard_ccxt.testing.render import Json

__all__ = [
    "account",
    "balance",
    "brackets",
    "commission_rate",
    "get_position_mode",
    "positions_v2",
    "positions_v3",
    "set_leverage",
    "set_margin_type",
    "set_position_mode",
    "user_trades",
]

_LEVERAGE_MAX = 125
_TRADES_DEFAULT = 500
_TRADES_MAX = 1000


def positions_v2(desk: Desk, params: Params) -> Json:
    """``GET v2/positionRisk``: every contract, flat or not."""
    return _positions(desk, params, version=2)


def positions_v3(desk: Desk, params: Params) -> Json:
    """``GET v3/positionRisk``: contracts with a position only."""
    return _positions(desk, params, version=3)


def _positions(desk: Desk, params: Params, *, version: int) -> Json:
    engine = desk.engine
    symbol = params.optional("symbol")
    if symbol is not None:
        engine.market(symbol)
    as_of_ms = desk.now_ms - desk.visibility.positions_ms
    return [
        position_json(p, engine.market(p.symbol), engine.account, engine.marks[p.symbol], version=version)
        for p in engine.account.positions(as_of_ms)
        if symbol in {None, p.symbol} and (p.qty or version == 2)
    ]


def account(desk: Desk, params: Params) -> Json:
    """``GET account`` of version 2 or 3."""
    money = _money(desk)
    total = {f"total{name[0].upper()}{name[1:]}": value for name, value in money.items() if name in _TOTALS}
    return {
        "feeTier": 0,
        "canTrade": True,
        "canDeposit": True,
        "canWithdraw": False,
        "updateTime": desk.now_ms,
        "totalMaintMargin": "0.00000000",
        "totalOpenOrderInitialMargin": "0.00000000",
        **total,
        "availableBalance": money["availableBalance"],
        "maxWithdrawAmount": money["availableBalance"],
        "assets": [{"asset": "USDT", **money, "updateTime": desk.now_ms}],
        "positions": positions_v3(desk, params),
    }


_TOTALS = frozenset(
    {
        "walletBalance",
        "unrealizedProfit",
        "marginBalance",
        "initialMargin",
        "positionInitialMargin",
        "crossWalletBalance",
        "crossUnPnl",
    }
)


def _money(desk: Desk) -> dict[str, Json]:
    account, marks = desk.engine.account, desk.engine.marks
    unrealized = account.unrealized(marks)
    available = account.available(marks)
    tied = account.wallet + unrealized - available
    return {
        "walletBalance": text(account.wallet),
        "unrealizedProfit": text(unrealized),
        "marginBalance": text(account.wallet + unrealized),
        "maintMargin": "0.00000000",
        "initialMargin": text(tied),
        "positionInitialMargin": text(tied),
        "openOrderInitialMargin": "0.00000000",
        "crossWalletBalance": text(account.wallet),
        "crossUnPnl": text(unrealized),
        "availableBalance": text(available),
        "maxWithdrawAmount": text(available),
    }


def balance(desk: Desk, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET balance`` of version 2 or 3."""
    money = _money(desk)
    return [
        {
            "accountAlias": "local",
            "asset": "USDT",
            "balance": money["walletBalance"],
            "crossWalletBalance": money["crossWalletBalance"],
            "crossUnPnl": money["crossUnPnl"],
            "availableBalance": money["availableBalance"],
            "maxWithdrawAmount": money["maxWithdrawAmount"],
            "marginAvailable": True,
            "updateTime": desk.now_ms,
        }
    ]


def user_trades(desk: Desk, params: Params) -> Json:
    """``GET userTrades`` of one contract."""
    symbol = params.text("symbol")
    spec = desk.engine.market(symbol)
    order_id = params.whole("orderId")
    start_ms = params.whole("startTime") or 0
    as_of_ms = min(params.whole("endTime") or desk.now_ms, desk.now_ms - desk.visibility.trades_ms)
    fills = [
        fill
        for fill in desk.engine.account.fills
        if fill.symbol == symbol and order_id in {None, fill.order_id} and start_ms <= fill.at_ms <= as_of_ms
    ]
    limit = min(params.whole("limit") or _TRADES_DEFAULT, _TRADES_MAX)
    return [fill_json(fill, spec) for fill in fills[-limit:]]


def set_leverage(desk: Desk, params: Params) -> Json:
    """``POST leverage``."""
    symbol = params.text("symbol")
    desk.engine.market(symbol)
    leverage = params.whole("leverage") or 0
    if not 1 <= leverage <= _LEVERAGE_MAX:
        raise Rejection(-4028, f"Leverage {leverage} is not valid")
    desk.engine.account.leverage[symbol] = leverage
    return {"symbol": symbol, "leverage": leverage, "maxNotionalValue": "100000000"}


def set_margin_type(desk: Desk, params: Params) -> Json:
    """``POST marginType``."""
    symbol, kind = params.text("symbol"), params.text("marginType")
    desk.engine.market(symbol)
    if kind not in {"ISOLATED", "CROSSED"}:
        raise Rejection(-4005, "Invalid marginType.")
    account = desk.engine.account
    if (kind == "ISOLATED") == (symbol in account.isolated):
        raise Rejection(-4046, "No need to change margin type.")
    if account.position(symbol).qty:
        raise Rejection(-4048, "Margin type cannot be changed if there exists position.")
    if kind == "ISOLATED":
        account.isolated.add(symbol)
    else:
        account.isolated.discard(symbol)
    return {"code": 200, "msg": "success"}


def brackets(desk: Desk, params: Params) -> Json:
    """``GET leverageBracket``."""
    symbol = params.optional("symbol")
    tiers: list[Json] = [
        {
            "bracket": 1,
            "initialLeverage": 125,
            "notionalCap": 50_000,
            "notionalFloor": 0,
            "maintMarginRatio": 0.004,
            "cum": 0.0,
        },
        {
            "bracket": 2,
            "initialLeverage": 50,
            "notionalCap": 100_000_000,
            "notionalFloor": 50_000,
            "maintMarginRatio": 0.01,
            "cum": 300.0,
        },
    ]
    return [
        {"symbol": market_id, "brackets": tiers}
        for market_id in desk.engine.markets
        if symbol in {None, market_id}
    ]


def commission_rate(desk: Desk, params: Params) -> Json:
    """``GET commissionRate`` of one contract."""
    symbol = params.text("symbol")
    desk.engine.market(symbol)
    rate = text(desk.engine.account.fee_rate)
    return {"symbol": symbol, "makerCommissionRate": rate, "takerCommissionRate": rate}


def get_position_mode(desk: Desk, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET positionSide/dual``: one-way mode."""
    return {"dualSidePosition": False}


def set_position_mode(desk: Desk, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``POST positionSide/dual``: there is one-way mode only."""
    if params.flag("dualSidePosition"):
        raise Rejection(-4084, "Method is not allowed currently. Coming soon.")
    raise Rejection(-4059, "No need to change position side.")
