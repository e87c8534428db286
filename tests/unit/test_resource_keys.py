"""One name for one market in every spelling; what stands for none, or for several, is refused."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import ccxt
import pytest

from lockguard import ConfigurationError, LockGuard
from lockguard.events import Acquired, Event
from lockguard.testing import MemoryStore
from lockguard_ccxt import UnknownMarket, resource_key, resource_keys

PERPETUAL = "binance:APTUSDT"
SPELLINGS = [
    "binance:APTUSDT",
    "Binance:aptusdt",
    "BINANCE:APTUSDT.P",
    "binance:aptusdt.p",
    "binance:APT/USDT:USDT",
    "binanceusdm:apt/usdt:usdt",
    "binance: APTUSDT",
]


def market(symbol: str, name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"symbol": symbol, "id": name, "type": kind, kind: True, "contract": kind != "spot", **more}


def exchange_of(*markets: dict[str, Any], name: str = "binance") -> Any:
    by_id: dict[str, list[Any]] = {}
    for one in markets:
        by_id.setdefault(one["id"], []).append(one)
    return SimpleNamespace(id=name, markets={one["symbol"]: one for one in markets}, markets_by_id=by_id)


SPOT = market("APT/USDT", "APTUSDT", "spot")
SWAP = market("APT/USDT:USDT", "APTUSDT", "swap", linear=True, settle="USDT", quote="USDT")
COIN = market("APT/USD:APT", "APTUSD_PERP", "swap", inverse=True, settle="APT", quote="USD")
DATED = market("APT/USDT:USDT-261225", "APTUSDT_261225", "future", linear=True)
ONLY_SPOT = market("WIF/USDT", "WIFUSDT", "spot")
TWICE = [market("AB/USDT", "ABU", "spot"), market("AB/USD", "ABU", "spot")]
LINK = market("LINK/USDT:USDT", "LINKUSDT", "swap", linear=True, settle="USDT", quote="USDT")
FF = market("FF/USDT:USDT", "FFUSDT", "swap", linear=True, settle="USDT", quote="USDT")
LISTED = exchange_of(SPOT, SWAP, COIN, DATED, ONLY_SPOT, *TWICE, LINK, FF)


@pytest.mark.parametrize("exchange", [LISTED, "binance", "binanceusdm"], ids=["markets", "id", "variant"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_perpetual_is_one_name(exchange: Any, spelling: str) -> None:
    assert resource_keys(exchange)(spelling) == PERPETUAL


@pytest.mark.parametrize("exchange", [LISTED, "binance"], ids=["markets", "id"])
@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("binance:apt/usdt", "binance:APT/USDT"),
        ("binance:APTUSD_PERP", "binance:APT/USD:APT"),
        ("Binance:APT/USD:APT", "binance:APT/USD:APT"),
        ("binance:aptusdt_261225", "binance:APT/USDT:USDT-261225"),
        ("Binance@scalper:aptusdt", "binance@scalper:APTUSDT"),
    ],
)
def test_every_other_market_keeps_a_name_of_its_own_which_is_given_back(
    exchange: Any, spelling: str, name: str
) -> None:
    key = resource_keys(exchange)
    assert key(spelling) == name
    assert key(name) == name


def test_a_name_means_the_same_with_and_without_markets_whatever_is_listed() -> None:
    """Otherwise the name would change its meaning on the day on which the perpetual is listed."""
    assert resource_keys(LISTED)("binance:WIF/USDT") == resource_keys("binance")("binance:WIF/USDT")
    assert resource_keys("binance")("binance:WIFUSDT") == "binance:WIFUSDT"
    with pytest.raises(ConfigurationError, match="not of one perpetual"):
        resource_keys(LISTED)("binance:WIFUSDT")
    with pytest.raises(UnknownMarket, match="if you mean APT/USDT:USDT"):
        resource_keys(exchange_of(SWAP))("binance:APT/USDT")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("binance:NONE", "has no market 'NONE'"),
        ("binance:NONE/USDT:USDT", "has no market"),
        ("binance:WIF/USDT:USDT", "has no market"),
        ("binance:WIFUSDT.P", "is a name of WIF/USDT, and not of one perpetual"),
        ("binance:APTUSDT_261225.P", "means a perpetual"),
        ("binance:ABU", "is a name of AB/USD and AB/USDT"),
        ("okx:APTUSDT", "names no market of binance"),
        ("APTUSDT", "names no market of binance"),
        ("sync:all", "names no market of binance"),
        ("binance:", "has no market ''"),
        ("binance@Scalper:APTUSDT", "account label"),
        # capitals of letters that are not a to z: a dotless i, a long s, a ligature
        ("binance:aptu\u017fdt", "has no market"),
        ("binance:l\u0131nkusdt", "has no market"),
        ("binance:\ufb00usdt", "has no market"),
    ],
)
def test_what_stands_for_no_market_or_for_several_is_refused(name: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        resource_keys(LISTED)(name)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        *["binance:BTC", "binance:BTCUSD", "binance:APT/USDT.P", "binance:BTC-PERP", "x:y"],
        # a name that is read as that of another market, or not at all
        *["binance:AB/USD:USD", "binance:LINKU/SDT:SDT", "binance:ETH/BTC:BTC"],
        # letters and digits that are none of those in which markets are named
        *["binance:l\u0131nkusdt", "binance:\ufb00/usdt", "binance:\uff2c\uff29\uff2e\uff2b/USDT"],
        *[
            "binance:APT/USDT:\uff35\uff33\uff24\uff34",
            "binance:APTUSDT_\u0662\u0666\u0661\u0662\u0662\u0665",
        ],
        "binance:APT/USDT:USDT-\u0662\u0666\u0661\u0662\u0662\u0665",
        # both cases, as some exchanges name a thousand of a coin
        *["binance:kPEPE/USDC:USDC", "binance:kPEPEUSDC"],
    ],
)
def test_without_markets_only_a_form_that_says_all_is_read(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be read|means a perpetual|names no market"):
        resource_keys("binance")(name)
    if not name.endswith(".P"):  # which is TradingView's, and not for one exchange's own function
        with pytest.raises(ConfigurationError, match="cannot be read"):
            resource_key("binance", name.partition(":")[2])


def test_no_name_has_another_meaning_with_the_markets_than_by_its_form() -> None:
    """Else two processes, of which one has loaded the markets, would lock one market under two names."""
    base = {"linear": True, "settle": "USDC", "quote": "USDC"}
    thousand = market("kPEPE/USDC:USDC", "10", "swap", **base)
    lower = market("BTC/USDT", "btcusdt", "spot")
    perpetual = market("BTC/USDT:USDT", "BTC-USDT", "swap", linear=True, settle="USDT", quote="USDT")
    listed = exchange_of(thousand, lower, perpetual, *LISTED.markets.values(), name="dex")
    with_markets, by_form = resource_keys(listed), resource_keys("dex")
    told = {}
    for one in listed.markets.values():
        symbol = one["symbol"]
        for text in (symbol, one["id"], symbol.partition(":")[0].replace("/", "")):
            for spelling in {text, text.lower(), text.upper(), text.swapcase(), f"{text}.p"}:
                for key in (with_markets, by_form):
                    with contextlib.suppress(ConfigurationError):
                        told.setdefault(spelling, set()).add(key(f"dex:{spelling}"))
    assert len(told) > 30
    assert {spelling: names for spelling, names in told.items() if len(names) > 1} == {}
    assert told["btcusdt"] == {"dex:BTCUSDT"}
    assert with_markets("dex:kPEPE/USDC:USDC") == with_markets("dex:kPEPEUSDC") == "dex:kPEPEUSDC"
    assert with_markets("dex:btcusdt") == "dex:BTCUSDT"  # a spot market's id in small letters


def test_a_market_that_is_listed_later_is_known_after_the_next_load() -> None:
    exchange = exchange_of(SWAP)
    key = resource_keys(exchange)
    with pytest.raises(UnknownMarket):
        key("binance:WIF/USDT")
    exchange.markets = exchange.markets | {"WIF/USDT": ONLY_SPOT}
    assert key("binance:WIF/USDT") == "binance:WIF/USDT"


def test_markets_that_are_not_loaded_yet_are_told_of() -> None:
    with pytest.raises(ConfigurationError, match="load_markets"):
        resource_keys(ccxt.binance())(PERPETUAL)


@pytest.mark.parametrize(
    "exchanges",
    [
        *[(), ("binance", "binanceusdm"), ("binance", LISTED)],
        *[(None,), (5,), (ccxt.binance,), ("",), ("binance@scalper",), ("binance:",), (["binance"],)],
    ],
    ids=str,
)
def test_no_exchange_or_two_of_one_venue_are_refused(exchanges: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigurationError):
        resource_keys(*exchanges)


# --- as a guard's resource_key= ---


async def test_a_guard_locks_one_name_for_all_spellings() -> None:
    store = MemoryStore()
    options: Any = {"resource_key": resource_keys(LISTED), "observers": []}
    guard, other = LockGuard.in_memory(store, **options), LockGuard.in_memory(store, **options)
    async with guard, other:
        for spelling in SPELLINGS:
            async with guard.hold(spelling) as lease:
                assert lease.resource == guard.resource(spelling) == PERPETUAL
                for again in SPELLINGS:
                    assert (await other.inspect(again)).grant == lease.grant.id
                    assert await other.request_handover(again, reason="why not")
                    assert (await guard.hold(again).__aenter__()) is lease  # the same hold, entered again

        @guard.exclusive("{exchange}:{symbol}", on_busy="skip")
        async def opens(exchange: str, symbol: str) -> str:
            return f"{exchange}:{symbol}"

        async with other.hold("Binance:aptusdt"):
            for spelling in SPELLINGS[:-1]:
                assert not await opens(*spelling.split(":", 1))
        async with guard.hold_many(["binance:apt/usdt", *SPELLINGS]) as leases:
            assert [lease.resource for lease in leases] == ["binance:APT/USDT", *[PERPETUAL] * len(SPELLINGS)]
        assert {line.event for line in await other.history("BINANCE:APTUSDT.P")} >= {"granted", "released"}
        assert (await other.break_("BINANCE:APTUSDT.P", reason="why not")).grant == ""
        with pytest.raises(UnknownMarket):
            await opens("binance", "NONE")


async def test_two_guards_with_different_keys_lock_what_each_key_says() -> None:
    store = MemoryStore()
    plain, keyed = LockGuard.in_memory(store), LockGuard.in_memory(store, resource_key=resource_keys(LISTED))
    async with plain, keyed:
        async with plain.hold("Binance:aptusdt"), keyed.hold("Binance:aptusdt") as lease:
            assert lease.resource == PERPETUAL
            assert sorted([found.resource async for found in plain.list()]) == ["Binance:aptusdt", PERPETUAL]


async def test_several_are_taken_in_the_order_of_the_names_that_are_locked() -> None:
    """Else two callers with different spellings would wait for each other."""
    taken: list[str] = []

    class Notes:
        def on(self, event: Event) -> None:
            if isinstance(event, Acquired):
                taken.append(event.grant.resource)

    names = {"1": "z", "2": "a"}
    guard = LockGuard.in_memory(resource_key=lambda name: names.get(name, name), observers=[Notes()])
    async with guard, guard.hold_many(["1", "2"]) as leases:
        assert [lease.resource for lease in leases] == ["z", "a"]
    assert taken == ["a", "z"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda name: name + "x", "leave the names alone"),
        (lambda name: 1 / 0, "failed for 'a': ZeroDivisionError"),
        (lambda name: None, "the resource is None"),
        (lambda name: "", "got an empty one"),
        (lambda name: "a{b}", "has a brace"),
    ],
)
def test_a_key_that_gives_no_name_is_told_in_one_line(wrong: Any, told: str) -> None:
    guard = LockGuard.in_memory(resource_key=wrong)
    with pytest.raises(ConfigurationError) as refused:
        guard.hold("a")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


async def _later(name: str) -> str:
    return name


@pytest.mark.parametrize("wrong", ["{exchange}:{symbol}", 7, str, _later])
def test_what_is_no_plain_function_is_refused_when_the_guard_is_made(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="resource_key="):
        LockGuard.in_memory(resource_key=wrong)
