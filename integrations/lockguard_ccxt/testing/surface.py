"""Which path of the REST API is answered by what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from lockguard_ccxt.testing import accounting, public, trading
from lockguard_ccxt.testing.desk import Desk
from lockguard_ccxt.testing.faults import Operation
from lockguard_ccxt.testing.params import Params
from lockguard_ccxt.testing.render import Json

__all__ = ["ROUTES", "Answer", "Route"]

Answer: TypeAlias = Callable[[Desk, Params], Json]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    Attributes:
        private: whether it wants a key and a signature.
    """

    method: str
    path: str
    operation: Operation
    answer: Answer
    private: bool = True


def _public(path: str, operation: Operation, answer: Answer) -> Route:
    return Route("GET", path, operation, answer, private=False)


ROUTES: tuple[Route, ...] = (
    _public("/fapi/v1/ping", Operation.TIME, public.ping),
    _public("/fapi/v1/time", Operation.TIME, public.server_time),
    _public("/dapi/v1/time", Operation.TIME, public.server_time),
    _public("/api/v3/time", Operation.TIME, public.server_time),
    _public("/fapi/v1/exchangeInfo", Operation.EXCHANGE_INFO, public.exchange_info),
    _public("/dapi/v1/exchangeInfo", Operation.EXCHANGE_INFO, public.coin_exchange_info),
    _public("/api/v3/exchangeInfo", Operation.EXCHANGE_INFO, public.spot_exchange_info),
    _public("/fapi/v1/ticker/24hr", Operation.TICKER, public.ticker_24h),
    _public("/fapi/v1/ticker/price", Operation.TICKER, public.ticker_price),
    _public("/fapi/v2/ticker/price", Operation.TICKER, public.ticker_price),
    _public("/fapi/v1/ticker/bookTicker", Operation.TICKER, public.book_ticker),
    _public("/fapi/v1/premiumIndex", Operation.TICKER, public.premium_index),
    _public("/fapi/v1/klines", Operation.TICKER, public.klines),
    _public("/fapi/v1/depth", Operation.TICKER, public.depth),
    Route("POST", "/fapi/v1/order", Operation.CREATE_ORDER, trading.create_order),
    Route("GET", "/fapi/v1/order", Operation.GET_ORDER, trading.get_order),
    Route("DELETE", "/fapi/v1/order", Operation.CANCEL_ORDER, trading.cancel_order),
    Route("DELETE", "/fapi/v1/allOpenOrders", Operation.CANCEL_ALL, trading.cancel_all),
    Route("GET", "/fapi/v1/openOrders", Operation.OPEN_ORDERS, trading.open_orders),
    Route("GET", "/fapi/v1/openOrder", Operation.GET_ORDER, trading.get_order),
    Route("GET", "/fapi/v1/allOrders", Operation.ALL_ORDERS, trading.all_orders),
    Route("POST", "/fapi/v1/algoOrder", Operation.CREATE_ALGO, trading.create_algo),
    Route("GET", "/fapi/v1/algoOrder", Operation.GET_ALGO, trading.get_algo),
    Route("DELETE", "/fapi/v1/algoOrder", Operation.CANCEL_ALGO, trading.cancel_algo),
    Route("DELETE", "/fapi/v1/algoOpenOrders", Operation.CANCEL_ALL_ALGOS, trading.cancel_all_algos),
    Route("GET", "/fapi/v1/openAlgoOrders", Operation.OPEN_ALGOS, trading.open_algos),
    Route("GET", "/fapi/v1/allAlgoOrders", Operation.ALL_ALGOS, trading.all_algos),
    Route("GET", "/fapi/v2/positionRisk", Operation.POSITIONS, accounting.positions_v2),
    Route("GET", "/fapi/v3/positionRisk", Operation.POSITIONS, accounting.positions_v3),
    Route("GET", "/fapi/v2/account", Operation.ACCOUNT, accounting.account),
    Route("GET", "/fapi/v3/account", Operation.ACCOUNT, accounting.account),
    Route("GET", "/fapi/v2/balance", Operation.BALANCE, accounting.balance),
    Route("GET", "/fapi/v3/balance", Operation.BALANCE, accounting.balance),
    Route("GET", "/fapi/v1/userTrades", Operation.TRADES, accounting.user_trades),
    Route("POST", "/fapi/v1/leverage", Operation.LEVERAGE, accounting.set_leverage),
    Route("POST", "/fapi/v1/marginType", Operation.MARGIN_TYPE, accounting.set_margin_type),
    Route("GET", "/fapi/v1/leverageBracket", Operation.BRACKETS, accounting.brackets),
    Route("GET", "/fapi/v1/commissionRate", Operation.ACCOUNT, accounting.commission_rate),
    # What ccxt's binance, as against binanceusdm, asks for while it loads its markets.
    Route("GET", "/sapi/v1/capital/config/getall", Operation.EXCHANGE_INFO, public.nothing),
    _public("/sapi/v1/margin/allPairs", Operation.EXCHANGE_INFO, public.nothing),
    _public("/sapi/v1/margin/isolated/allPairs", Operation.EXCHANGE_INFO, public.nothing),
    _public("/sapi/v1/equity/market/exchangeInfo", Operation.EXCHANGE_INFO, public.exchange_info_of_nothing),
    Route("GET", "/fapi/v1/positionSide/dual", Operation.POSITION_MODE, accounting.get_position_mode),
    Route("POST", "/fapi/v1/positionSide/dual", Operation.POSITION_MODE, accounting.set_position_mode),
)
