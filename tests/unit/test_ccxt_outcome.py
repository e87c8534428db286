"""What each error of ccxt means for a request that changes something."""

from __future__ import annotations

import inspect

import pytest
from ccxt.base import errors as ccxt

from lockguard_ccxt import Doubt, Refusal, classify, exchange_code
from lockguard_ccxt._proxy import is_write

UNKNOWN = (Doubt.OPEN, None)


def no(refusal: Refusal) -> tuple[Doubt, Refusal]:
    return (Doubt.NONE, refusal)


TABLE = [
    (ccxt.DDoSProtection("binanceusdm 429 Too Many Requests {}"), no(Refusal.RATE_LIMITED)),
    (
        ccxt.RateLimitExceeded('binanceusdm {"code":-1003,"msg":"Too many requests"}'),
        no(Refusal.RATE_LIMITED),
    ),
    (ccxt.RateLimitExceeded('bybit {"retCode":10006,"retMsg":"Too many visits"}'), no(Refusal.RATE_LIMITED)),
    (ccxt.InvalidNonce('binanceusdm {"code":-1021,"msg":"Timestamp"}'), no(Refusal.CLOCK)),
    (ccxt.InvalidNonce('bybit {"retCode":10002,"retMsg":"req timestamp"}'), no(Refusal.CLOCK)),
    (ccxt.OperationFailed('binanceusdm {"code":-1008,"msg":"overloaded"}'), no(Refusal.OVERLOADED)),
    (ccxt.ExchangeNotAvailable("binanceusdm POST url 503 Service Unavailable"), UNKNOWN),
    (ccxt.ExchangeNotAvailable("binanceusdm POST url"), UNKNOWN),
    (ccxt.RequestTimeout('binanceusdm {"code":-1007,"msg":"Timeout"}'), UNKNOWN),
    (ccxt.RequestTimeout("binanceusdm POST url"), UNKNOWN),
    (ccxt.OperationFailed('binanceusdm {"code":-1000,"msg":"unknown"}'), UNKNOWN),
    (ccxt.BadResponse('binanceusdm {"code":-1006,"msg":"unexpected"}'), UNKNOWN),
    (ccxt.ExchangeError("binanceusdm POST url"), UNKNOWN),
    (ccxt.ExchangeError('bybit {"retCode":10016,"retMsg":"System error"}'), UNKNOWN),
    (ccxt.NullResponse("binanceusdm parseOrder() returned empty response"), UNKNOWN),
    (TimeoutError(), UNKNOWN),
    (KeyError("status"), UNKNOWN),
    (
        ccxt.InvalidOrder('binanceusdm {"code":-4116,"msg":"ClientOrderId is duplicated."}'),
        (Doubt.DUPLICATE, None),
    ),
    (
        ccxt.InvalidOrder('bybit {"retCode":110072,"retMsg":"OrderLinkedID is duplicate"}'),
        (Doubt.DUPLICATE, None),
    ),
    (ccxt.OrderImmediatelyFillable('binanceusdm {"code":-2021,"msg":"x"}'), no(Refusal.WOULD_TRIGGER)),
    (
        ccxt.OrderImmediatelyFillable("binance Stop price would trigger immediately."),
        no(Refusal.WOULD_TRIGGER),
    ),
    (ccxt.InvalidOrder('bybit {"retCode":110093,"retMsg":"expect Falling"}'), no(Refusal.WOULD_TRIGGER)),
    (ccxt.InvalidOrder('binanceusdm {"code":-2022,"msg":"ReduceOnly"}'), no(Refusal.REDUCE_ONLY)),
    (ccxt.InvalidOrder('bybit {"retCode":110017,"retMsg":"Reduce-only"}'), no(Refusal.REDUCE_ONLY)),
    (ccxt.InsufficientFunds('binanceusdm {"code":-2019,"msg":"Margin"}'), no(Refusal.FUNDS)),
    (ccxt.OrderNotFound('binanceusdm {"code":-2011,"msg":"Unknown order sent."}'), no(Refusal.NOT_FOUND)),
    (ccxt.AuthenticationError('binanceusdm {"code":-2015,"msg":"key"}'), no(Refusal.AUTHENTICATION)),
    (ccxt.InvalidOrder('binanceusdm {"code":-4164,"msg":"notional"}'), no(Refusal.PRICE)),
    (ccxt.InvalidOrder('binanceusdm {"code":-4131,"msg":"PERCENT_PRICE"}'), no(Refusal.PRICE)),
    (ccxt.InvalidOrder('bybit {"retCode":110003,"retMsg":"exceeds the range"}'), no(Refusal.PRICE)),
    (ccxt.InvalidOrder('binanceusdm {"code":-1013,"msg":"Filter failure: X"}'), no(Refusal.UNRECOGNISED)),
    (
        ccxt.AuthenticationError('bybit {"retCode":10003,"retMsg":"API key is invalid."}'),
        no(Refusal.AUTHENTICATION),
    ),
    (ccxt.PermissionDenied('bybit {"retCode":10010,"retMsg":"Unmatched IP"}'), no(Refusal.AUTHENTICATION)),
    (ccxt.DDoSProtection("binanceusdm 418 I'm a teapot {}"), no(Refusal.BANNED)),
    (
        ccxt.RateLimitExceeded('binanceusdm {"code":-1003,"msg":"IP(1.2.3.4) banned until 1700000000000."}'),
        no(Refusal.BANNED),
    ),
    (ccxt.OperationRejected('binanceusdm {"code":-4061,"msg":"position side"}'), no(Refusal.POSITION_MODE)),
    (ccxt.OperationRejected('binanceusdm {"code":-4045,"msg":"max stop orders"}'), no(Refusal.LIMIT)),
    (ccxt.BadRequest('binanceusdm {"code":-1111,"msg":"precision"}'), no(Refusal.INVALID)),
    (ccxt.OnMaintenance("binanceusdm 503 under maintenance"), (Doubt.OPEN, None)),
    (ccxt.ExchangeError('binanceusdm {"code":-9999,"msg":"something new"}'), no(Refusal.UNRECOGNISED)),
    # Where the code is new, or there is none, the class tells: somebody else mends each of these.
    (ccxt.InsufficientFunds('bybit {"retCode":999999,"retMsg":"new"}'), no(Refusal.FUNDS)),
    (ccxt.InsufficientFunds("okx not enough margin"), no(Refusal.FUNDS)),
    (ccxt.AuthenticationError("okx wrong key"), no(Refusal.AUTHENTICATION)),
    (ccxt.PermissionDenied("okx this key may not trade"), no(Refusal.AUTHENTICATION)),
    (ccxt.OrderNotFound("okx no such order"), no(Refusal.NOT_FOUND)),
    (ccxt.MarketClosed("okx closed"), no(Refusal.MARKET_CLOSED)),
]


@pytest.mark.parametrize(("exc", "expected"), TABLE, ids=lambda value: str(value)[:60])
def test_each_error_means_what_the_table_says(exc: Exception, expected: tuple[Doubt, Refusal | None]) -> None:
    verdict = classify(exc, sent=True)
    assert (verdict.doubt, verdict.refusal) == expected


@pytest.mark.parametrize(("exc", "_"), TABLE, ids=lambda value: str(value)[:60])
def test_what_was_never_sent_was_never_executed(exc: Exception, _: object) -> None:
    verdict = classify(exc, sent=False)
    assert verdict.doubt is Doubt.NONE
    assert verdict.refusal in {Refusal.NOT_SENT, Refusal.BANNED}


def test_every_error_class_of_ccxt_has_a_meaning() -> None:
    classes = [c for _, c in inspect.getmembers(ccxt, inspect.isclass) if issubclass(c, ccxt.BaseError)]
    assert len(classes) > 35
    for kind in classes:
        without_code, with_code = (classify(kind(text), sent=True) for text in ("x", 'x {"code":-9999}'))
        if issubclass(kind, ccxt.OperationFailed):
            passing = issubclass(kind, (ccxt.DDoSProtection, ccxt.RateLimitExceeded, ccxt.InvalidNonce))
            assert (without_code.doubt is Doubt.NONE) == passing, kind
        elif issubclass(kind, ccxt.ExchangeError):
            assert with_code.doubt is Doubt.NONE, kind
            assert (without_code.doubt is Doubt.OPEN) == (kind is ccxt.ExchangeError), kind
        else:
            assert without_code.doubt is Doubt.OPEN, kind


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('binanceusdm {"code":-2021,"msg":"x"}', "-2021"),
        ('binanceusdm {"code": -2021, "msg": "x"}', "-2021"),
        ('bybit {"retCode":110072,"retMsg":"x"}', "110072"),
        ("binanceusdm POST https://host/fapi/v1/order", None),
    ],
)
def test_the_exchanges_code_is_read_from_the_error(text: str, code: str | None) -> None:
    assert exchange_code(ccxt.ExchangeError(text)) == code


async def coroutine() -> None: ...


def plain() -> None: ...


WRITES = [
    *("create_order", "createOrder", "create_orders", "create_market_buy_order", "edit_order"),
    *(
        "cancel_order",
        "cancelAllOrders",
        "close_all_positions",
        "transfer",
        "withdraw",
        "borrow_cross_margin",
    ),
    *("set_leverage", "setMarginMode", "set_position_mode", "add_margin", "reduceMargin"),
    *("fapiPrivatePostOrder", "fapiprivate_delete_order", "privatePostV5OrderCreate"),
]
OTHERS = [
    *("fetch_order", "fetchPositions", "fetch_transfers", "watch_orders", "load_markets", "close"),
    *("set_sandbox_mode", "set_markets", "amount_to_precision"),
    *("fapiPrivateGetOrder", "fapiprivatev3_get_positionrisk"),
]


@pytest.mark.parametrize("name", WRITES)
def test_calls_that_change_something_are_known_by_name(name: str) -> None:
    assert is_write(name, coroutine)


@pytest.mark.parametrize("name", OTHERS)
def test_reads_and_settings_pass(name: str) -> None:
    assert not is_write(name, coroutine)


def test_helpers_that_send_nothing_pass() -> None:
    assert not is_write("create_order_request", plain)
