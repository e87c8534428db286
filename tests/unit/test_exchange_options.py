"""An account and its options: a mistake is one line before anything is sent, and no secret is shown."""

from __future__ import annotations

import pytest

from lockguard.errors import ConfigurationError
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
        ("leverage=0", "must be from 1 to"),
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
