"""One market has one lock in every spelling, on every platform; no two markets have the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lockguard import ConfigurationError
from lockguard_ccxt import resource_key, resource_keys
from tests.fuzz.lines import attempt, one_line
from tests.fuzz.platforms import PLATFORMS, Listed, coins_of, listed


@st.composite
def platforms(draw: st.DrawFn) -> Listed:
    venue = draw(st.sampled_from(sorted(PLATFORMS)))
    coins = draw(st.lists(st.sampled_from(coins_of(venue)), min_size=1, max_size=2, unique=True))
    return listed(venue, coins)


def named(key: Callable[..., str], *given: Any) -> str | None:
    """The name of a lock, or nothing where it is refused."""
    return attempt(lambda: key(*given))[0]


def spellings(text: str) -> set[str]:
    """A name as it may stand in a row, a setting or an alert."""
    return {text, text.lower(), text.upper(), text.swapcase(), f"{text}.P", f" {text.lower()}.p "}


def texts_of(exchange: Listed) -> set[str]:
    """All that anybody may call a market of the exchange."""
    found: set[str] = set()
    for market in exchange.markets.values():
        pair = market["symbol"].partition(":")[0]
        for text in (market["symbol"], market["id"], pair, pair.replace("/", "")):
            found |= spellings(text)
    return found


BITGET = [("OMNI", "omni"), ("DEGEN", "DegenReborn")]


@given(platforms())
@example(listed("bitmex", [("XBT", "BTC")]))
@example(listed("bitget", BITGET))
def test_two_different_markets_never_give_one_lock(exchange: Listed) -> None:
    keys = resource_keys(exchange)
    for ask in (
        lambda symbol: keys(f"{exchange.id}:{symbol}"),
        lambda symbol: resource_key(exchange, symbol),
    ):
        names = [name for symbol in exchange.markets if (name := named(ask, symbol)) is not None]
        assert len(set(names)) == len(names)


@given(platforms())
@example(listed("bitmex", [("XBT", "BTC")]))
@example(listed("bitget", BITGET))
def test_one_market_never_gives_two_locks_by_its_spelling(exchange: Listed) -> None:
    """Also where one process has the markets and another knows the exchange by its id only."""
    by_markets, by_form = resource_keys(exchange), resource_keys(exchange.id)
    names_of: dict[str, set[str]] = {}
    for symbol in exchange.markets:
        if (name := named(by_markets, f"{exchange.id}:{symbol}")) is not None:
            names_of.setdefault(symbol, set()).add(name)
    own = set(itertools.chain.from_iterable(names_of.values()))
    for text in texts_of(exchange):
        found = {named(key, f"{exchange.id}:{text}") for key in (by_markets, by_form)} - {None}
        assert len(found) <= 1, text
        if (name := named(by_markets, f"{exchange.id}:{text}")) is not None:
            assert name in own, text
            assert named(by_markets, f"{exchange.id.upper()}:{text}") == name
        single = {named(resource_key, place, text) for place in (exchange, exchange.id)} - {None}
        assert len(single) <= 1, text


@given(platforms())
def test_the_name_of_a_lock_is_given_back_as_it_is(exchange: Listed) -> None:
    """Else a guard with these keys would refuse the names that it has given."""
    for key in (resource_keys(exchange), resource_keys(exchange.id)):
        for text in texts_of(exchange):
            if (name := named(key, f"{exchange.id}:{text}")) is not None:
                assert key(name) == name


@given(platforms())
def test_a_plain_name_is_that_of_a_perpetual_and_a_unified_symbol_that_of_its_own_market(
    exchange: Listed,
) -> None:
    key = resource_keys(exchange)
    for text in texts_of(exchange):
        if (name := named(key, f"{exchange.id}:{text}")) is None:
            continue
        place, _, rest = name.partition(":")
        assert place == exchange.id
        if "/" not in rest or (text.strip().upper().endswith(".P") and text.strip() not in exchange.markets):
            assert "/" not in rest or exchange.markets[rest]["type"] == "swap"
    for symbol in exchange.markets:
        if (name := named(key, f"{exchange.id}:{symbol}")) is not None:
            assert name.partition(":")[2] in (symbol, symbol.partition(":")[0].replace("/", ""))


COINS = st.sampled_from(
    ["BTC", "btc", "A", "AB", "B", "BUSD", "BC", "C", "USDT", "USDC", "XUSD", "omni", "kP", "1"]
)
PARTS = COINS | st.sampled_from([*"-_./:", "USD", "_PERP", ".P", ".p", "-261225", "_261225", " "])
SYMBOLS = (
    st.builds("{}/{}:{}".format, COINS, COINS, COINS)
    | st.builds("{}{}".format, COINS, COINS)
    | st.lists(PARTS, max_size=7).map("".join)
    | st.text(st.characters(), max_size=8)
)


@given(st.lists(SYMBOLS, min_size=2, max_size=12))
@example(["AB/USD:USD", "A/BUSD:BUSD", "ABUSD", "abusd.p"])
def test_by_the_form_alone_two_symbols_never_give_one_lock(symbols: list[str]) -> None:
    key = resource_keys("binance")
    means: dict[str, str] = {}
    for text in symbols:
        if (name := named(key, f"binance:{text}")) is not None:
            assert means.setdefault(name, resource_of(text)) == resource_of(text)


def resource_of(text: str) -> str:
    """A spelling without what may differ in it: case, blanks around it, and a perpetual's form."""
    plain = text.strip().upper().removesuffix(".P")
    pair, _, settle = plain.partition(":")
    base, slash, quote = pair.partition("/")
    return f"{base}{quote}" if slash and quote == settle else plain.replace("_PERP", "")


@given(SYMBOLS)
def test_what_is_refused_by_its_form_is_named_with_the_remedy_in_one_line(text: str) -> None:
    for key, asked in ((resource_keys("binance"), (f"binance:{text}",)), (resource_key, ("binance", text))):
        _, refusal = attempt(lambda key=key, asked=asked: key(*asked))  # type: ignore[misc]
        if refusal is None:
            continue
        told = str(refusal)
        assert repr(text.strip())[1:-1] in told or repr(text)[1:-1] in told
        assert "write" in told or "means a perpetual" in told or "leave" in told


@pytest.mark.parametrize(
    ("venue", "coin", "text"),
    [
        ("bitmex", ("XBT", "BTC"), "XBTUSDT"),
        ("bitget", ("DEGEN", "DegenReborn"), "DEGENUSDT"),
        ("bitget", ("OMNI", "omni"), "omniusdt"),
    ],
)
def test_an_id_that_reads_as_another_market_where_no_markets_are_loaded_is_refused(
    venue: str, coin: tuple[str, str], text: str
) -> None:
    """Two processes locked bitmex:BTCUSDT and bitmex:XBTUSDT for one market, and both bodies ran."""
    key = resource_keys(listed(venue, [coin]))
    with pytest.raises(ConfigurationError, match=f"write {coin[1]}/USDT:USDT") as refused:
        key(f"{venue}:{text}")
    one_line(refused.value)
    with pytest.raises(ConfigurationError, match=f"write {coin[1]}/USDT:USDT"):
        resource_key(listed(venue, [coin]), text.upper())
    assert key(f"{venue}:{coin[1]}/USDT:USDT") == key(f"{venue}:{coin[1]}USDT") == f"{venue}:{coin[1]}USDT"


def test_a_symbol_that_is_listed_in_small_letters_is_not_read_as_another_one() -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        resource_keys("bitget")("bitget:omni/USDT:USDT")
