"""The account endpoints of the REST APIs of USD-M and COIN-M."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lockguard_lab.exchange.listenkeys import Owner
from lockguard_lab.exchange.model import ZERO, LeverageChange
from lockguard_lab.exchange.rejections import Rejection, malformed
from lockguard_lab.exchange.render import fill_json, position_json, text

if TYPE_CHECKING:
    from lockguard_lab.exchange.desk import RequestContext
    from lockguard_lab.exchange.engine import Engine
    from lockguard_lab.exchange.model import Position
    from lockguard_lab.exchange.params import Params
    from lockguard_lab.exchange.render import Json

__all__ = [
    "account",
    "account_config",
    "adl_quantile",
    "balance",
    "brackets",
    "change_position_margin",
    "change_position_mode",
    "commission_rate",
    "end_listen_key",
    "get_multi_assets",
    "get_position_mode",
    "income",
    "keep_listen_key",
    "key_permissions",
    "positions_v2",
    "positions_v3",
    "set_leverage",
    "set_margin_type",
    "set_multi_assets",
    "set_position_mode",
    "start_listen_key",
    "symbol_config",
    "user_trades",
]

_LEVERAGE_MAX = 125
_INCOME_DEFAULT = 100
_DONE: dict[str, str | int] = {"code": 200, "msg": "success"}
_TRADES_DEFAULT = 500
_TRADES_MAX = 1000


def positions_v2(context: RequestContext, params: Params) -> Json:
    """``GET v2/positionRisk``, and ``dapi/v1/positionRisk``: every contract, flat or not."""
    held = _positions(context, params)
    seen = {(position.symbol, position.side) for position in held}
    account, symbol = context.account, params.optional("symbol")
    flat = [
        account.position(spec.id, side)
        for spec in context.listed()
        for side in account.sides()
        if symbol in {None, spec.id} and (spec.id, side) not in seen
    ]
    # A position that lags is shown flat, as it was.
    flat = [replace(position, qty=ZERO, entry_price=ZERO) for position in flat]
    return [position_json(p, account, version=2) for p in (*held, *flat)]


def positions_v3(context: RequestContext, params: Params) -> Json:
    """``GET v3/positionRisk``: contracts with a position only."""
    return [position_json(p, context.account, version=3) for p in _positions(context, params)]


def _positions(context: RequestContext, params: Params) -> list[Position]:
    """The open positions, including those in contracts that are no longer listed."""
    symbol = params.optional("symbol")
    if symbol is not None:
        context.market(symbol)
    as_of_ms = context.now_ms - context.visibility.positions_ms
    return [
        position
        for position in context.account.positions(as_of_ms)
        if position.qty
        and symbol in {None, position.symbol}
        and context.venue.markets[position.symbol].inverse is context.inverse
    ]


def account(context: RequestContext, params: Params) -> Json:
    """``GET account`` of USD-M version 2 or 3, or of COIN-M."""
    assets = context.account.assets(inverse=context.inverse)
    money = {asset: _money(context, asset) for asset in assets}
    positions = positions_v2(context, params) if context.inverse else positions_v3(context, params)
    common: dict[str, Json] = {
        "feeTier": 0,
        "canTrade": True,
        "canDeposit": True,
        "canWithdraw": False,
        "updateTime": context.now_ms,
        "multiAssetsMargin": context.account.multi_assets,
        "assets": [{"asset": asset, **row, "updateTime": context.now_ms} for asset, row in money.items()],
        "positions": positions,
    }
    if context.inverse:
        return common
    tether = money["USDT"]
    total = {f"total{name[0].upper()}{name[1:]}": value for name, value in tether.items() if name in _TOTALS}
    return {
        **common,
        "totalMaintMargin": "0.00000000",
        "totalOpenOrderInitialMargin": "0.00000000",
        **total,
        "availableBalance": tether["availableBalance"],
        "maxWithdrawAmount": tether["availableBalance"],
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


def _money(context: RequestContext, asset: str) -> dict[str, Json]:
    account = context.account
    wallet, unrealized, available = account.wallet(asset), account.unrealized(asset), account.available(asset)
    tied = wallet + unrealized - available
    return {
        "walletBalance": text(wallet),
        "unrealizedProfit": text(unrealized),
        "marginBalance": text(wallet + unrealized),
        "maintMargin": "0.00000000",
        "initialMargin": text(tied),
        "positionInitialMargin": text(tied),
        "openOrderInitialMargin": "0.00000000",
        "crossWalletBalance": text(wallet),
        "crossUnPnl": text(unrealized),
        "availableBalance": text(available),
        "maxWithdrawAmount": text(available),
    }


def balance(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET balance``, of any version."""
    rows: list[Json] = []
    for asset in context.account.assets(inverse=context.inverse):
        money = _money(context, asset)
        rows.append(
            {
                "accountAlias": "local",
                "asset": asset,
                "balance": money["walletBalance"],
                "crossWalletBalance": money["crossWalletBalance"],
                "crossUnPnl": money["crossUnPnl"],
                "availableBalance": money["availableBalance"],
                "maxWithdrawAmount": money["maxWithdrawAmount"],
                "marginAvailable": True,
                "updateTime": context.now_ms,
            }
        )
    return rows


def user_trades(context: RequestContext, params: Params) -> Json:
    """``GET userTrades`` of one contract."""
    symbol = params.text("symbol")
    spec = context.market(symbol)
    order_id = params.whole("orderId")
    start_ms = params.whole("startTime") or 0
    as_of_ms = min(params.whole("endTime") or context.now_ms, context.now_ms - context.visibility.trades_ms)
    fills = [
        fill
        for fill in context.account.fills
        if fill.symbol == symbol and order_id in {None, fill.order_id} and start_ms <= fill.at_ms <= as_of_ms
    ]
    limit = min(params.whole("limit") or _TRADES_DEFAULT, _TRADES_MAX)
    return [fill_json(fill, spec) for fill in fills[-limit:]]


def set_leverage(context: RequestContext, params: Params) -> Json:
    """``POST leverage``."""
    symbol = params.text("symbol")
    context.market(symbol)
    leverage = params.whole("leverage") or 0
    if not 1 <= leverage <= _LEVERAGE_MAX:
        raise Rejection(-4028, f"Leverage {leverage} is not valid")
    context.account.set_leverage(symbol, leverage)
    context.desk.on_change(context.name, LeverageChange(symbol, leverage))
    most = "maxQty" if context.inverse else "maxNotionalValue"
    return {"symbol": symbol, "leverage": leverage, most: "100000000"}


def set_margin_type(context: RequestContext, params: Params) -> Json:
    """``POST marginType``."""
    symbol, kind = params.text("symbol"), params.text("marginType")
    context.market(symbol)
    if kind not in {"ISOLATED", "CROSSED"}:
        raise Rejection(-4005, "Invalid marginType.")
    account = context.account
    if (kind == "ISOLATED") == (symbol in account.isolated):
        raise Rejection(-4046, "No need to change margin type.")
    if any(account.position(symbol, side).qty for side in account.sides()):
        raise Rejection(-4048, "Margin type cannot be changed if there exists position.")
    if kind == "ISOLATED":
        account.isolated.add(symbol)
    else:
        account.isolated.discard(symbol)
    return _DONE


def brackets(context: RequestContext, params: Params) -> Json:
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
    return [{"symbol": spec.id, "brackets": tiers} for spec in context.listed() if symbol in {None, spec.id}]


def commission_rate(context: RequestContext, params: Params) -> Json:
    """``GET commissionRate`` of one contract."""
    symbol = params.text("symbol")
    context.market(symbol)
    rate = text(context.account.fee_rate)
    return {"symbol": symbol, "makerCommissionRate": rate, "takerCommissionRate": rate}


def get_position_mode(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET positionSide/dual``: tells whether the account is in hedge mode."""
    return {"dualSidePosition": context.account.hedged}


def set_position_mode(context: RequestContext, params: Params) -> Json:
    """``POST positionSide/dual``."""
    params.text("dualSidePosition")
    change_position_mode(context.engine, hedged=params.flag("dualSidePosition"))
    return _DONE


def change_position_mode(engine: Engine, *, hedged: bool) -> None:
    """Turn hedge mode on or off.

    Raises:
        Rejection: the account is in that mode already, or has orders or positions.
    """
    if hedged == engine.account.hedged:
        raise Rejection(-4059, "No need to change position side.")
    if any(engine.open_orders()) or any(engine.open_algo_orders()):
        raise Rejection(-4067, "Position side cannot be changed if there exists open orders.")
    if any(position.qty for position in engine.account.positions()):
        raise Rejection(-4068, "Position side cannot be changed if there exists position.")
    engine.account.hedged = hedged


def get_multi_assets(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET multiAssetsMargin``: whether USDC backs positions in USDT and vice versa."""
    return {"multiAssetsMargin": context.account.multi_assets}


def set_multi_assets(context: RequestContext, params: Params) -> Json:
    """``POST multiAssetsMargin``: stores the mode, but the margins of the assets stay separate."""
    wanted = params.text("multiAssetsMargin").lower() == "true"
    if wanted == context.account.multi_assets:
        raise Rejection(-4171, "No need to change multi-assets mode.")
    context.account.multi_assets = wanted
    return _DONE


def symbol_config(context: RequestContext, params: Params) -> Json:
    """``GET symbolConfig``."""
    account, symbol = context.account, params.optional("symbol")
    specs = context.listed() if symbol is None else [context.market(symbol)]
    return [
        {
            "symbol": spec.id,
            "marginType": "ISOLATED" if spec.id in account.isolated else "CROSSED",
            "isAutoAddMargin": False,
            "leverage": account.leverage(spec.id),
            "maxNotionalValue": "100000000",
        }
        for spec in specs
    ]


def account_config(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET accountConfig``."""
    return {
        "feeTier": 0,
        "canTrade": True,
        "canDeposit": True,
        "canWithdraw": False,
        "dualSidePosition": context.account.hedged,
        "multiAssetsMargin": context.account.multi_assets,
        "updateTime": 0,
        "tradeGroupId": -1,
    }


def key_permissions(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET account/apiRestrictions`` of spot: what the key may do."""
    return {
        "ipRestrict": True,
        "createTime": 0,
        "enableReading": True,
        "enableSpotAndMarginTrading": False,
        "enableWithdrawals": context.account.may_withdraw,
        "enableInternalTransfer": False,
        "permitsUniversalTransfer": False,
        "enableMargin": False,
        "enableFutures": context.account.may_trade_futures,
        "enableVanillaOptions": False,
    }


def income(context: RequestContext, params: Params) -> Json:
    """``GET income``: the profit and the fee of each fill."""
    symbol, kind = params.optional("symbol"), params.optional("incomeType")
    start_ms = params.whole("startTime") or 0
    until_ms = min(params.whole("endTime") or context.now_ms, context.now_ms - context.visibility.trades_ms)
    rows: list[Json] = []
    for fill in context.account.fills:
        spec = context.venue.markets[fill.symbol]
        wanted = spec.inverse is context.inverse and symbol in {None, fill.symbol}
        if not wanted or not start_ms <= fill.at_ms <= until_ms:
            continue
        for name, amount in (("REALIZED_PNL", fill.realized), ("COMMISSION", -fill.commission)):
            if kind in {None, name} and amount:
                rows.append(
                    {
                        "symbol": fill.symbol,
                        "incomeType": name,
                        "income": text(amount),
                        "asset": spec.settle,
                        "info": name,
                        "time": fill.at_ms,
                        "tranId": fill.id,
                        "tradeId": str(fill.id),
                    }
                )
    return rows[-min(params.whole("limit") or _INCOME_DEFAULT, _TRADES_MAX) :]


def adl_quantile(context: RequestContext, params: Params) -> Json:
    """``GET adlQuantile``: this exchange never deleverages a position."""
    symbol = params.optional("symbol")
    if symbol is not None:
        context.market(symbol)
    names = ("LONG", "SHORT") if context.account.hedged else ("BOTH",)
    rows: list[Json] = [
        {"symbol": market_id, "adlQuantile": dict.fromkeys(names, 0)}
        for market_id in dict.fromkeys(position.symbol for position in _positions(context, params))
    ]
    return rows


def change_position_margin(context: RequestContext, params: Params) -> Json:
    """``POST positionMargin``: adds margin to an isolated position, or takes some away."""
    symbol, amount, kind = params.text("symbol"), params.number("amount"), params.text("type")
    context.market(symbol)
    account = context.account
    if amount <= ZERO:
        raise Rejection(-4055, "Amount must be positive.")
    if kind not in {"1", "2"}:
        raise malformed("type")
    position = account.position(symbol, params.position_side())
    if not position.qty:
        raise Rejection(-4054, "Cannot add position margin: position is 0.")
    if symbol not in account.isolated:
        raise Rejection(-4046, "No need to change margin type.")
    before = account.added_margin.get(symbol, ZERO)
    if kind == "2" and amount > before:
        raise Rejection(-4051, "Isolated balance insufficient.")
    account.added_margin[symbol] = before + (amount if kind == "1" else -amount)
    return {
        "amount": float(amount),
        "code": 200,
        "msg": "Successfully modify position margin.",
        "type": int(kind),
    }


def start_listen_key(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``POST listenKey``: the key of the account's stream; the same as long as it is valid."""
    return {"listenKey": context.desk.listen_keys.start(_owner(context), context.now_ms)}


def keep_listen_key(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``PUT listenKey``: makes the key valid for another hour."""
    return {"listenKey": context.desk.listen_keys.keep(_owner(context), context.now_ms)}


def end_listen_key(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``DELETE listenKey``: its listeners hear no more."""
    context.desk.listen_keys.end(_owner(context))
    return {}


def _owner(context: RequestContext) -> Owner:
    return Owner(context.name, context.inverse)
