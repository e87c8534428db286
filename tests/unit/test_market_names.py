"""A name leads to one market or is refused in one line, whatever platform it comes from."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import ccxt.async_support as ccxt
import pytest

from lockguard.errors import ConfigurationError
from lockguard_ccxt import GuardedExchange, Step, UnknownMarket
from lockguard_ccxt._venues import every_position

FOREIGN = (
    *(
        "BTCUSDT-PERP",
        "BTC-PERP",
        "BTCUSDT-PERP.BINANCE",
        "BTC-USD-PERP.DYDX",
        "ETH-C",
        "ETH-P",
        "C-ETH",
        "P-ETH",
    ),
    *("BTC-250926-60000-C", "BTC-250926-60000-P", "BTC/USDT:USDT-250926-60000-C", "BTC-27DEC24-60000-P"),
    *(
        "BTCUSDT.P",
        "BINANCE:BTCUSDT.P",
        "BINANCE:BTCUSDTPERP",
        "BTC-USDT",
        "BTC_USDT",
        "BTC-USDT-SWAP",
        "XBTUSD",
    ),
    *(
        "BTC-USDT-250926",
        "PF_XBTUSD",
        "PI_XBTUSD",
        "XXBTZUSD",
        "BTC-PERPETUAL",
        "BTC-PERP-INTX",
        "BTC-USD",
        "BTC",
    ),
    *(
        "@107",
        "kPEPE",
        "UBTC/USDC",
        "btcusdt",
        " BTCUSDT",
        "BTCUSDT ",
        "BTC/USDT:",
        "/",
        ":",
        "BTC/",
        "/USDT",
        "-C",
    ),
    *(
        "-P",
        "C-",
        "P-",
        "",
        " ",
        ".",
        "..",
        "\N{BITCOIN SIGN}USDT",
        "\N{ROCKET}",
        "BTC\N{ROCKET}USDT",
        "\u0412\u0422\u0421USDT",
    ),
    *(
        "BTCUSDT\0",
        "\0",
        "\ud800",
        "A" * 10_000,
        "A" * 10_000 + "-C",
        "BTC/USDT:USDT" * 900,
        "{BTCUSDT}",
        "BTC}USDT",
    ),
    *(
        "'; drop table x; --",
        "%s",
        "${jndi}",
        "../BTC",
        "\u202eTDSU",
        "BTCUSDT\n",
        "\uff11\uff12\uff13",
        "None",
        "null",
    ),
)


def contract(base: str, quote: str, settle: str, **more: Any) -> dict[str, Any]:
    linear = settle == quote
    return {
        "id": f"{base}{quote}",
        "symbol": f"{base}/{quote}:{settle}",
        "base": base,
        "quote": quote,
        "settle": settle,
        "type": "swap",
        "swap": True,
        "spot": False,
        "contract": True,
        "linear": linear,
        "inverse": not linear,
        "contractSize": 1.0,
        "precision": {"amount": 0.001, "price": 0.1},
        "limits": {"amount": {"min": 0.001}},
        **more,
    }


def spot(base: str, quote: str) -> dict[str, Any]:
    return {
        "id": f"{base}{quote}",
        "symbol": f"{base}/{quote}",
        "base": base,
        "quote": quote,
        "type": "spot",
        "spot": True,
        "swap": False,
        "linear": None,
        "inverse": None,
        "precision": {"amount": 0.001, "price": 0.1},
        "limits": {},
    }


def exchange(kind: str, *markets: dict[str, Any], account: str | None = None) -> GuardedExchange:
    client = getattr(ccxt, kind)({"apiKey": "k", "secret": "s"})
    client.set_markets(list(markets))
    return GuardedExchange(client, account=account)


BYBIT = (
    spot("BTC", "USDC"),
    spot("BTC", "USDT"),
    contract("BTC", "USDT", "USDT"),
    contract("BTC", "USDC", "USDC", id="BTCPERP"),
    contract("BTC", "USD", "BTC"),
    contract("ETH", "EUR", "EUR"),
)


@pytest.mark.parametrize("kind", ["binanceusdm", "binance", "bybit", "okx"])
@pytest.mark.parametrize("name", FOREIGN, ids=[str(number) for number in range(len(FOREIGN))])
def test_a_name_that_another_platform_has_is_refused_in_one_line_and_never_ends_the_process(
    kind: str, name: str
) -> None:
    listed = exchange(kind, contract("BTC", "USDT", "USDT"), contract("ETH", "USDT", "USDT"))
    for ask in (listed.market, listed.resource, listed.unified, listed.rules):
        with pytest.raises(ConfigurationError) as refused:
            ask(name)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BTCUSDT-PERP", "BTCUSDT"),
        ("BTCUSDT-PERP.BINANCE", "BTCUSDT"),
        ("BTCUSDT.P", "BTCUSDT"),
        ("BINANCE:BTCUSDT.P", "BTCUSDT"),
        ("BTC-USDT-SWAP", "BTCUSDT"),
        ("BTC-USDT", "BTCUSDT"),
        ("btcusdt", "BTCUSDT"),
        ("BTC-PERP", "BTCUSDT"),
    ],
)
def test_the_refusal_says_what_is_likely_meant_and_trades_nothing(name: str, meant: str) -> None:
    listed = exchange("binanceusdm", contract("BTC", "USDT", "USDT"))
    with pytest.raises(UnknownMarket, match=rf"if you mean BTC/USDT:USDT, write {meant} or"):
        listed.market(name)


def test_what_a_row_or_a_lock_was_called_leads_back_to_the_market_that_it_was_written_for() -> None:
    listed = exchange("bybit", *BYBIT)
    for market in BYBIT:
        name = listed.resource(market["symbol"]).partition(":")[2]
        assert listed.market(name).symbol == market["symbol"]
    assert listed.market("BTCPERP").symbol == "BTC/USDC:USDC"
    assert listed.resource("BTCPERP") == listed.resource("BTC/USDC:USDC") == "bybit:BTCUSDC"


def test_positions_are_asked_for_in_every_coin_that_contracts_are_settled_in() -> None:
    coins = [params["settleCoin"] for params in every_position(exchange("bybit", *BYBIT).exchange)]
    assert coins == ["EUR", "USDC", "USDT"]


@pytest.mark.parametrize(
    ("market", "why"),
    [
        (contract("BTC", "USD", "BTC", contractSize=100.0), "is inverse: a contract is 100 of its quote"),
        (contract("BTC", "USDT", "USDT", contractSize=0.01), "counts in contracts of 0.01"),
        (spot("BTC", "USDT"), "is a market of type spot"),
        (
            contract("BTC", "USDT", "USDT", type="option", swap=False, option=True),
            "is a market of type option",
        ),
    ],
)
def test_a_market_whose_quantities_are_not_in_the_base_currency_is_refused_by_name(
    market: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigurationError, match=why) as refused:
        exchange("okx", market).market(market["symbol"]).check()
    assert str(refused.value).startswith(market["symbol"])


def test_two_markets_that_locks_could_not_tell_apart_are_both_refused() -> None:
    listed = exchange("bybit", contract("AB", "C", "C"), contract("A", "BC", "BC"))
    for name in ("ABC", "AB/C:C", "A/BC:BC"):
        with pytest.raises(ConfigurationError, match="are both called ABC"):
            listed.market(name)


def test_two_accounts_at_one_exchange_have_names_of_their_own() -> None:
    market = contract("BTC", "USDT", "USDT")
    one, two = exchange("binanceusdm", market, account="scalper"), exchange("binanceusdm", market)
    assert (one.name, two.name) == ("binance@scalper", "binance")
    assert one.resource("BTCUSDT") == "binance@scalper:BTCUSDT"
    assert one.client_id("BTCUSDT", 1, Step.ENTRY) != two.client_id("BTCUSDT", 1, Step.ENTRY)


@pytest.mark.parametrize(
    "label", ["", "a:b", "a{b}", "a b", "Scalper", "a@b", "ä", "-a", "a" * 33, "a\n", "a/b"]
)
def test_a_label_that_cannot_be_part_of_a_name_is_refused_in_one_line(label: str) -> None:
    with pytest.raises(ConfigurationError, match=r"account label .* write 1 to 32 of") as refused:
        exchange("binanceusdm", contract("BTC", "USDT", "USDT"), account=label)
    assert "\n" not in str(refused.value)


def test_the_steps_of_a_market_are_those_of_the_last_load() -> None:
    guarded = exchange("binanceusdm", contract("BTC", "USDT", "USDT"))
    assert guarded.rules("BTCUSDT").amount_step == Decimal("0.001")
    finer = contract("BTC", "USDT", "USDT", precision={"amount": 0.0001, "price": 0.1})
    guarded.exchange.set_markets([finer])
    assert guarded.rules("BTCUSDT").amount_step == Decimal("0.0001")
