"""A name leads to one market or is refused in one line, whatever platform it comes from."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import ccxt as sync_ccxt
import ccxt.async_support as ccxt
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.errors import ConfigurationError, LeaseLost
from lockguard_ccxt import GuardedExchange, Step, UnknownMarket, gate_orders
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


LISTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "not loaded": (),
    "spot": (spot("BTC", "USDT"),),
    "perpetual": (contract("BTC", "USDT", "USDT"),),
    "both": (spot("BTC", "USDT"), contract("BTC", "USDT", "USDT")),
    "the exchange's own name of the coin": (contract("BTC", "USDT", "USDT", id="XBTUSDT"),),
}
CLIENTS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "async": (GuardedExchange, ccxt.binance),
    "sync": (gate_orders, sync_ccxt.binance),
}


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("name", ["BTCUSDT", "btcusdt", "XBTUSDT", "BTC/USDT:USDT", "BTC/USDT:USDT-260327"])
def test_a_name_is_one_lock_or_none_whatever_markets_are_loaded(name: str, kind: str) -> None:
    """Else two tasks of one process, one before the load and one after it, would both open the position."""
    guarded, of = CLIENTS[kind]
    client = of()
    names = guarded(client)
    locks = set()
    for markets in LISTINGS.values():
        client.set_markets(list(markets))
        try:
            locks.add(str(names.resource(name)))
        except ConfigurationError as exc:
            assert "\n" not in str(exc)  # noqa: PT017 - whether it is refused depends on the markets
    assert len(locks) <= 1


@pytest.mark.parametrize("kind", CLIENTS)
def test_before_the_markets_are_loaded_only_a_contract_s_unified_symbol_names_a_lock(kind: str) -> None:
    guarded, of = CLIENTS[kind]
    names = guarded(of())
    assert str(names.resource("BTC/USDT:USDT")) == "binance:BTCUSDT"
    for name in ("BTCUSDT", "BTC/USDT"):
        with pytest.raises(ConfigurationError, match="load them first, or write the unified symbol"):
            names.resource(name)


@pytest.mark.parametrize("reduces", [False, True])
def test_an_order_before_the_markets_are_loaded_needs_the_lease_that_the_markets_name(reduces: bool) -> None:
    client = sync_ccxt.binance()
    client.load_markets = lambda: client.set_markets([contract("BTC", "USDT", "USDT", id="XBTUSDT")])
    asked = []

    class Guard:
        def inspect(self, resource: Any) -> Any:
            asked.append(str(resource))
            return SimpleNamespace(held=True, holder="another")

    gate_orders(client, Guard(), leases=tuple)  # type: ignore[arg-type]
    refused = "'binance:BTCUSDT' is held by another" if reduces else "no lease on 'binance:BTCUSDT'"
    with pytest.raises(sync_ccxt.BaseError, match=refused):
        client.create_order("XBTUSDT", "market", "sell", 1, None, {"reduceOnly": reduces})
    assert asked == (["binance:BTCUSDT"] if reduces else [])


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("name", ["XBTUSDT", "BTC/USDT:USDT", "NONE"])
def test_a_lost_lease_is_told_before_anything_about_the_symbol_of_an_order(name: str, loaded: bool) -> None:
    client = sync_ccxt.binance()
    if loaded:
        client.set_markets([contract("BTC", "USDT", "USDT", id="XBTUSDT")])
    sent: list[Any] = []
    client.load_markets = client.fetch = lambda *args, **_: sent.append(args)
    grant = Grant(Resource("binance:BTCUSDT"), new_grant_id(), Token(5), "h", "open", 60_000)
    lost = Lease(grant, deadline=SYSTEM_CLOCK.now() - 1, clock=SYSTEM_CLOCK)
    gate_orders(client, leases=lambda: (lost,))
    with pytest.raises(sync_ccxt.ExchangeError, match="not sent") as refused:
        client.create_order(name, "market", "buy", 1)
    assert isinstance(refused.value.__cause__, LeaseLost)
    assert sent == []


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
