"""Resource keys, client order ids, steps: pure, and the same in every process."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from lockguard.errors import ConfigurationError
from lockguard_ccxt import MarketRules, Step, client_order_id, decimal_of, resource_key, rules_of


@pytest.mark.parametrize("spelling", ["BTCUSDT", "btcusdt", "BTC/USDT:USDT", " BTC/USDT:USDT "])
def test_every_spelling_of_a_perpetual_gives_one_key(spelling: str) -> None:
    assert resource_key("binanceusdm", spelling) == "binance:BTCUSDT"


@pytest.mark.parametrize(
    ("symbol", "key"),
    [
        ("BTC/USDT", "binance:BTC/USDT"),
        ("BTC/USD:BTC", "binance:BTC/USD:BTC"),
        ("BTCUSD_PERP", "binance:BTC/USD:BTC"),
        ("BTC/USDT:USDT-250926", "binance:BTC/USDT:USDT-250926"),
        ("BTCUSDT_250926", "binance:BTC/USDT:USDT-250926"),
        ("BTCUSDC", "binance:BTCUSDC"),
        ("1000PEPEUSDT", "binance:1000PEPEUSDT"),
    ],
)
def test_what_is_not_the_perpetual_keeps_its_own_key(symbol: str, key: str) -> None:
    assert resource_key("binance", symbol) == key


def test_the_same_symbol_on_another_exchange_is_another_resource() -> None:
    assert resource_key("bybit", "BTCUSDT") == "bybit:BTCUSDT"


def test_a_name_that_is_no_market_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"'BTC' cannot be read.*BTC/USDT:USDT"):
        resource_key("binance", "BTC")


def test_a_ccxt_market_names_itself() -> None:
    assert resource_key("bybit", {"symbol": "APT/USDT:USDT"}) == "bybit:APTUSDT"


def test_a_loaded_exchange_knows_plain_names_of_both_kinds() -> None:
    perpetual = {"symbol": "BTC/USDT:USDT", "swap": True, "linear": True}
    spot = {"symbol": "BTC/USDT", "swap": False, "linear": None}
    exchange = SimpleNamespace(id="bybit", markets={"x": 1}, markets_by_id={"BTCUSDT": [spot, perpetual]})
    assert resource_key(exchange, "BTCUSDT") == "bybit:BTCUSDT"


def test_client_ids_fit_and_use_legal_characters() -> None:
    longest = client_order_id("binance:" + "A" * 180, 2**63 - 1, Step.ENTRY)
    assert len(longest) <= 36
    assert set(longest) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_client_ids_differ_by_resource_intent_and_step() -> None:
    ids = {
        client_order_id(resource, intent, step)
        for resource in ("binance:APTUSDT", "binance:BTCUSDT", "bybit:APTUSDT")
        for intent in (0, 1, 35, 36, 2**53)
        for step in Step
    }
    assert len(ids) == 3 * 5 * 3


def test_client_ids_are_the_same_in_every_process() -> None:
    code = "from lockguard_ccxt import *; print(client_order_id('binance:APTUSDT', 1234, Step.STOP))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {client_order_id("binance:APTUSDT", 1234, Step.STOP)}


def test_the_form_of_client_ids_is_fixed() -> None:
    assert client_order_id("binance:APTUSDT", 1234, Step.ENTRY) == "lge-ya-g3jz4gpotfbpupcp"


@pytest.mark.parametrize("intent", [-1, 2**63])
def test_intents_out_of_range_are_refused(intent: int) -> None:
    with pytest.raises(ConfigurationError, match="from 0 to"):
        client_order_id("binance:APTUSDT", intent, Step.ENTRY)


def rules(step: str = "0.001", tick: str = "0.1", least: str = "0.001") -> MarketRules:
    return MarketRules("BTC/USDT:USDT", Decimal(step), Decimal(tick), Decimal(least), Decimal(120), None)


@pytest.mark.parametrize(
    ("step", "wanted", "rounded"),
    [
        ("0.001", "0.0579", "0.057"),
        ("0.001", "0.057", "0.057"),
        ("1", "12.99", "12"),
        ("10", "99", "90"),
        ("0.00000001", "0.123456789", "0.12345678"),
        ("0.3", "1", "0.9"),
    ],
)
def test_amounts_are_cut_to_whole_steps(step: str, wanted: str, rounded: str) -> None:
    assert rules(step, least="0").amount(Decimal(wanted)) == Decimal(rounded)


def test_a_step_is_not_a_number_of_digits() -> None:
    assert rules("0.001").amount(Decimal("0.057")) == Decimal("0.057")


@pytest.mark.parametrize("wanted", ["0.0009", "0", "-1", "NaN", "Infinity", "121"])
def test_amounts_that_cannot_be_traded_are_refused(wanted: str) -> None:
    with pytest.raises(ConfigurationError, match="BTC/USDT:USDT"):
        rules().amount(Decimal(wanted))


def test_prices_go_to_the_nearest_tick() -> None:
    assert rules(tick="0.1").price(Decimal("60000.17")) == Decimal("60000.2")
    with pytest.raises(ConfigurationError, match="tick"):
        rules(tick="0.1").price(Decimal("0.01"))


def exchange(mode: int) -> Any:
    return SimpleNamespace(id="some", precisionMode=mode)


def market(amount: object, price: object) -> Any:
    return {
        "symbol": "A/B:B",
        "precision": {"amount": amount, "price": price},
        "limits": {"amount": {"min": 1e-8}},
    }


def test_steps_are_read_in_both_ways_of_writing_them() -> None:
    assert rules_of(exchange(4), market(0.001, 0.5)).amount_step == Decimal("0.001")
    assert rules_of(exchange(4), market(1e-08, 0.5)).amount_step == Decimal("0.00000001")
    assert rules_of(exchange(2), market(3, 1)).amount_step == Decimal("0.001")


@pytest.mark.parametrize(("mode", "amount"), [(3, 5), (4, 0), (4, None), (2, 0.001)])
def test_steps_that_cannot_be_understood_are_refused(mode: int, amount: object) -> None:
    with pytest.raises(ConfigurationError, match="some"):
        rules_of(exchange(mode), market(amount, 1))


def test_numbers_are_read_as_the_exchange_sent_them() -> None:
    assert decimal_of(0.1) == Decimal("0.1")
    assert decimal_of("62000.10") == Decimal("62000.10")
    assert decimal_of(1e-08) == Decimal("0.00000001")
    for nothing in (None, "", "abc", float("nan")):
        assert decimal_of(nothing) is None
