"""The endpoints of the REST API, and the function that answers each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from lockguard_lab.exchange import accounting, public, trading
from lockguard_lab.exchange.desk import RequestContext
from lockguard_lab.exchange.faults import Operation
from lockguard_lab.exchange.params import Params
from lockguard_lab.exchange.render import Json

__all__ = ["ROUTES", "Answer", "Endpoint"]

Answer: TypeAlias = Callable[[RequestContext, Params], Json]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint.

    Attributes:
        private: whether it requires a key.
        signed: whether it requires a signature, if it is private.
        inverse: whether it belongs to COIN-M.
    """

    method: str
    path: str
    operation: Operation
    answer: Answer
    private: bool = True
    signed: bool = True
    inverse: bool = False


def _key(method: str, answer: Answer) -> Endpoint:
    return Endpoint(method, "v1/listenKey", Operation.LISTEN_KEY, answer, signed=False)


def _public(path: str, operation: Operation, answer: Answer) -> Endpoint:
    return Endpoint("GET", path, operation, answer, private=False)


_BOTH: tuple[Endpoint, ...] = (
    _public("v1/ping", Operation.TIME, public.ping),
    _public("v1/time", Operation.TIME, public.server_time),
    _public("v1/exchangeInfo", Operation.EXCHANGE_INFO, public.exchange_info),
    _public("v1/ticker/24hr", Operation.TICKER, public.ticker_24h),
    _public("v1/ticker/price", Operation.TICKER, public.ticker_price),
    _public("v1/ticker/bookTicker", Operation.TICKER, public.book_ticker),
    _public("v1/premiumIndex", Operation.TICKER, public.premium_index),
    _public("v1/klines", Operation.TICKER, public.klines),
    _public("v1/markPriceKlines", Operation.TICKER, public.klines),
    _public("v1/depth", Operation.TICKER, public.depth),
    _public("v1/trades", Operation.TICKER, public.trades),
    _public("v1/historicalTrades", Operation.TICKER, public.trades),
    _public("v1/aggTrades", Operation.TICKER, public.agg_trades),
    _public("v1/fundingRate", Operation.TICKER, public.funding_rates),
    _public("v1/fundingInfo", Operation.TICKER, public.funding_info),
    _public("v1/openInterest", Operation.TICKER, public.open_interest),
    Endpoint("POST", "v1/order", Operation.CREATE_ORDER, trading.create_order),
    Endpoint("PUT", "v1/order", Operation.AMEND_ORDER, trading.amend_order),
    Endpoint("GET", "v1/order", Operation.GET_ORDER, trading.get_order),
    Endpoint("DELETE", "v1/order", Operation.CANCEL_ORDER, trading.cancel_order),
    Endpoint("POST", "v1/order/test", Operation.TEST_ORDER, trading.try_order),
    Endpoint("POST", "v1/batchOrders", Operation.CREATE_ORDER, trading.create_batch),
    Endpoint("PUT", "v1/batchOrders", Operation.AMEND_ORDER, trading.amend_batch),
    Endpoint("DELETE", "v1/batchOrders", Operation.CANCEL_ORDER, trading.cancel_batch),
    Endpoint("DELETE", "v1/allOpenOrders", Operation.CANCEL_ALL, trading.cancel_all),
    Endpoint("POST", "v1/countdownCancelAll", Operation.CANCEL_ALL, trading.count_down),
    Endpoint("GET", "v1/openOrders", Operation.OPEN_ORDERS, trading.open_orders),
    Endpoint("GET", "v1/openOrder", Operation.GET_ORDER, trading.get_open_order),
    Endpoint("GET", "v1/allOrders", Operation.ALL_ORDERS, trading.all_orders),
    Endpoint("POST", "v1/algoOrder", Operation.CREATE_ALGO, trading.create_algo),
    Endpoint("GET", "v1/algoOrder", Operation.GET_ALGO, trading.get_algo),
    Endpoint("DELETE", "v1/algoOrder", Operation.CANCEL_ALGO, trading.cancel_algo),
    Endpoint("DELETE", "v1/algoOpenOrders", Operation.CANCEL_ALL_ALGOS, trading.cancel_all_algos),
    Endpoint("GET", "v1/openAlgoOrders", Operation.OPEN_ALGOS, trading.open_algos),
    Endpoint("GET", "v1/allAlgoOrders", Operation.ALL_ALGOS, trading.all_algos),
    Endpoint("GET", "v1/userTrades", Operation.TRADES, accounting.user_trades),
    Endpoint("GET", "v1/income", Operation.TRADES, accounting.income),
    _key("POST", accounting.start_listen_key),
    _key("PUT", accounting.keep_listen_key),
    _key("DELETE", accounting.end_listen_key),
    Endpoint("POST", "v1/leverage", Operation.LEVERAGE, accounting.set_leverage),
    Endpoint("POST", "v1/marginType", Operation.MARGIN_TYPE, accounting.set_margin_type),
    Endpoint("POST", "v1/positionMargin", Operation.POSITION_MARGIN, accounting.change_position_margin),
    Endpoint("GET", "v1/leverageBracket", Operation.BRACKETS, accounting.brackets),
    Endpoint("GET", "v2/leverageBracket", Operation.BRACKETS, accounting.brackets),
    Endpoint("GET", "v1/commissionRate", Operation.ACCOUNT, accounting.commission_rate),
    Endpoint("GET", "v1/adlQuantile", Operation.POSITIONS, accounting.adl_quantile),
    Endpoint("GET", "v1/positionSide/dual", Operation.POSITION_MODE, accounting.get_position_mode),
    Endpoint("POST", "v1/positionSide/dual", Operation.SET_POSITION_MODE, accounting.set_position_mode),
)
"""The endpoints that USD-M and COIN-M have in common."""

ROUTES: tuple[Endpoint, ...] = (
    *(replace(route, path=f"/fapi/{route.path}") for route in _BOTH),
    *(replace(route, path=f"/dapi/{route.path}", inverse=True) for route in _BOTH),
    _public("/fapi/v2/ticker/price", Operation.TICKER, public.ticker_price),
    Endpoint("GET", "/fapi/v2/positionRisk", Operation.POSITIONS, accounting.positions_v2),
    Endpoint("GET", "/fapi/v3/positionRisk", Operation.POSITIONS, accounting.positions_v3),
    Endpoint("GET", "/dapi/v1/positionRisk", Operation.POSITIONS, accounting.positions_v2, inverse=True),
    Endpoint("GET", "/fapi/v2/account", Operation.ACCOUNT, accounting.account),
    Endpoint("GET", "/fapi/v3/account", Operation.ACCOUNT, accounting.account),
    Endpoint("GET", "/dapi/v1/account", Operation.ACCOUNT, accounting.account, inverse=True),
    Endpoint("GET", "/fapi/v2/balance", Operation.BALANCE, accounting.balance),
    Endpoint("GET", "/fapi/v3/balance", Operation.BALANCE, accounting.balance),
    Endpoint("GET", "/dapi/v1/balance", Operation.BALANCE, accounting.balance, inverse=True),
    Endpoint("GET", "/fapi/v1/multiAssetsMargin", Operation.ACCOUNT, accounting.get_multi_assets),
    Endpoint("POST", "/fapi/v1/multiAssetsMargin", Operation.SET_POSITION_MODE, accounting.set_multi_assets),
    Endpoint("GET", "/fapi/v1/symbolConfig", Operation.ACCOUNT, accounting.symbol_config),
    Endpoint("GET", "/fapi/v1/accountConfig", Operation.ACCOUNT, accounting.account_config),
    _public("/api/v3/ping", Operation.TIME, public.ping),
    _public("/api/v3/time", Operation.TIME, public.server_time),
    _public("/api/v3/exchangeInfo", Operation.EXCHANGE_INFO, public.spot_exchange_info),
    Endpoint("GET", "/sapi/v1/account/apiRestrictions", Operation.ACCOUNT, accounting.key_permissions),
    # What ccxt's binance, as against binanceusdm, asks for while it loads its markets.
    Endpoint("GET", "/sapi/v1/capital/config/getall", Operation.EXCHANGE_INFO, public.nothing),
    _public("/sapi/v1/margin/allPairs", Operation.EXCHANGE_INFO, public.nothing),
    _public("/sapi/v1/margin/isolated/allPairs", Operation.EXCHANGE_INFO, public.nothing),
    _public("/sapi/v1/equity/market/exchangeInfo", Operation.EXCHANGE_INFO, public.exchange_info_of_nothing),
)
