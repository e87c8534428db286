"""An account and its options: a mistake is one line before anything is sent, and no secret is shown."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from lockguard.errors import ConfigurationError
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_ccxt._venues import venue_of
from lockguard_positions._exchange_options import make_client, read_options


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "SECRET"):
        monkeypatch.setenv(f"LOCKGUARD_EXCHANGE_{name}", "hunter2")
    monkeypatch.delenv("LOCKGUARD_EXCHANGE_OPTIONS", raising=False)


def test_options_reach_ccxt_as_json_and_those_of_the_environment_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCKGUARD_EXCHANGE_OPTIONS", '{"recvWindow": 1000, "adjustForTimeDifference": true}')
    given = ["recvWindow=5000", "timeout=7000", "fetchPositions.method=account", "hostname=example.com"]
    settings = read_options([*given, "leverage=5"], name="binanceusdm", account="scalper")
    client = make_client(settings)
    assert client.options["recvWindow"] == 5000
    assert client.options["adjustForTimeDifference"] is True
    assert client.options["fetchPositions"]["method"] == "account"
    assert (client.timeout, client.hostname, settings.leverage) == (7000, "example.com", 5)
    assert "leverage" not in client.options


def signed_window_ms(client: Any) -> int:
    """The receive window that ccxt puts into a signed order."""
    api = ["private"] if client.id == "bybit" else ["fapiPrivate"]
    path = "v5/order/create" if client.id == "bybit" else "order"
    signed = client.sign(path, api, "POST", {"symbol": "APTUSDT"})
    text = f"{signed['headers']} {signed['url']} {signed['body']}"
    found = re.search(r"(?:recvWindow=|RECV-WINDOW': ')(\d+)", text)
    assert found is not None, text
    return int(found[1])


@pytest.mark.parametrize("name", ["binanceusdm", "binance", "bybit"])
@pytest.mark.parametrize("given", [None, 2000, 60_000, "45000"])
def test_an_order_is_in_doubt_for_as_long_as_the_window_that_it_was_signed_with(
    name: str, given: Any
) -> None:
    """With a longer one than that, an order given up as never placed could still be taken."""
    options = [] if given is None else [f"recvWindow={int(given)}"]
    client = make_client(read_options(options, name=name, account=None))
    if isinstance(given, str):
        client.options["recvWindow"] = given  # as a program may set it
    window = timedelta(milliseconds=signed_window_ms(client))
    assert venue_of(client).window == window
    assert GuardedExchange(client).in_doubt_for > window + Patience().search
    if given is not None:
        assert window == timedelta(milliseconds=int(given))


def test_an_exchange_that_needs_a_password_gets_it_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigurationError, match=r"okx needs the account's keys; set .*_PASSWORD"):
        make_client(read_options([], name="okx", account=None))
    monkeypatch.setenv("LOCKGUARD_EXCHANGE_PASSWORD", "hunter3")
    assert make_client(read_options([], name="okx", account=None)).password == "hunter3"


def test_demo_mode_is_ccxts_own() -> None:
    client = make_client(read_options(["demo=true"], name="bybit", account=None))
    assert "demo" in str(client.urls["api"])


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("recvWindow", "--option number 1 is not key=value"),
        ("=5", "--option number 1 is not key=value"),
        ("secret=hunter2", "option secret is a credential.*set LOCKGUARD_EXCHANGE_SECRET instead"),
        ("password=hunter2", "set LOCKGUARD_EXCHANGE_PASSWORD instead"),
        ("maxRetriesOnFailure=3", "not to be set: ccxt would send an order again"),
        ("verbose=true", "ccxt would print signed requests"),
        ("recvwindow=1", "binanceusdm has no option 'recvwindow'; write recvWindow if you mean that"),
        ("hunter2=1", "has no option"),
        ("demo=1", "option demo must be true or false"),
        ("leverage=1e9", "option leverage must be a whole number"),
        ("leverage=0", "must be a whole number from 1 to"),
    ],
)
def test_an_option_that_cannot_work_is_named_with_its_remedy(option: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        make_client(read_options([option], name="binanceusdm", account=None))
    assert "\n" not in str(refused.value)
    assert option == "hunter2=1" or "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("binanceusd", "ccxt has no exchange 'binanceusd'.*if you mean binanceusdm"),
        ("BadSymbol", "ccxt has no exchange"),
        ("Exchange", "ccxt has no exchange"),
        ("__doc__", "ccxt has no exchange"),
        ("../bybit", "ccxt has no exchange"),
        ("binanceusdm@scalper", "has an account's label; give it with --account"),
        ("http://x:y", "is no URL"),
    ],
)
def test_an_exchange_that_is_none_is_named_with_its_remedy(name: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        make_client(read_options([], name=name, account=None))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("label", ["a:b", "a{b", "a b", "Scalper", ""])
def test_a_label_that_cannot_be_one_is_named_before_anything_is_sent(label: str) -> None:
    with pytest.raises(ConfigurationError, match="account label"):
        read_options([], name="binanceusdm", account=label)


_WRONG = ("hunter2", "NaN", "1e400", "[]", "{}", "null", '""', "[" * 100_000, "9" * 5000)
_KNOWN = (
    *("timeout", "rateLimit", "recvWindow", "timeDifference", "leverage", "defaultType", "defaultSubType"),
    *("enableRateLimit", "adjustForTimeDifference", "portfolioMargin", "enableUnifiedAccount", "demo"),
    *("sandbox", "aiohttp_trust_env", "httpProxy", "httpsProxy", "socksProxy"),
)


@pytest.mark.parametrize("key", _KNOWN)
@pytest.mark.parametrize("where", ["argument", "environment"])
def test_a_value_of_another_type_is_one_line_that_names_the_option_and_not_the_value(
    key: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in _WRONG:
        given = [f"{key}={value}"]
        if where == "environment":
            text = value if value in {"NaN", "[]", "{}", "null", '""'} else '"hunter2"'
            monkeypatch.setenv("LOCKGUARD_EXCHANGE_OPTIONS", f'{{"{key}": {text}}}')
            given = []
        with pytest.raises(ConfigurationError, match=f"^option {key} must be ") as refused:
            read_options(given, name="binanceusdm", account=None)
        told = str(refused.value)
        assert "\n" not in told
        assert "hunter2" not in told


@pytest.mark.parametrize(
    ("option", "told"),
    [
        *((f"{key}={value}", "whole number") for key in ("timeout", "recvWindow") for value in (0, -5, 2.5)),
        *(("recvWindow=60001", "to 60000"), ("timeout=true", "whole number"), ("rateLimit=0", "number")),
        *(("defaultType=7", "one of spot"), ("defaultType=swop", "one of spot"), ("brokerId=7", "text")),
        *(
            ("hostname=7", "text"),
            ("userAgent=[]", "text"),
            ("headers=7", "table"),
            ('headers={"a":1}', "table"),
        ),
        *(
            ("timeout.x=5", "no inner table"),
            ("recvWindow.x=5", "no inner table"),
            ("demo.x=1", "no inner table"),
        ),
        *(
            ("fetchPositions.method=5", "text"),
            ("fetchPositions=5", "table"),
            ("fetchMargins=1", "true or false"),
        ),
        *(("httpProxy=http://x:99999", "URL of a proxy"), ("legalMoney=x", "table")),
    ],
)
def test_a_value_out_of_range_or_unlike_ccxts_own_is_refused(option: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        make_client(read_options([option], name="binanceusdm", account=None))
    assert option.partition(".")[0].partition("=")[0] in str(refused.value)


def test_what_works_is_passed_on() -> None:
    given = [
        "rateLimit=8.5",
        "timeout=1",
        "recvWindow=60000",
        "defaultType=future",
        "httpsProxy=http://u:p@h:1",
    ]
    client = make_client(read_options([*given, "leverageBrackets=7"], name="binanceusdm", account=None))
    assert (client.rateLimit, client.timeout, client.httpsProxy) == (8.5, 1, "http://u:p@h:1")
    assert (client.options["defaultType"], client.options["leverageBrackets"]) == ("future", 7)


@pytest.mark.parametrize("name", ["binanceusdm", "http://127.0.0.1:1"])
@pytest.mark.parametrize("variable", ["API_KEY", "SECRET"])
@pytest.mark.parametrize(
    "value", ["hunter3\r", "hunter3\r\n", " hunter3", "hun\x1bter3", "hunter3\u200b", " "]
)
def test_a_key_with_a_character_that_no_key_has_is_refused_in_one_line_that_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"LOCKGUARD_EXCHANGE_{variable}", value)
    with pytest.raises(ConfigurationError, match=f"^LOCKGUARD_EXCHANGE_{variable} has ") as told:
        make_client(read_options([], name=name, account=None))
    assert "\n" not in str(told.value)
    assert "ter3" not in str(told.value)


def test_a_private_key_of_several_lines_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    monkeypatch.setenv("LOCKGUARD_EXCHANGE_SECRET", key)
    assert make_client(read_options([], name="binanceusdm", account=None)).secret == key
