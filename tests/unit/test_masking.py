"""What signs a request or logs in is in no text that leaves the process; everything else stays readable."""

from __future__ import annotations

import logging

import pytest

from lockguard_ccxt._masking import mask_error, mask_log, masked

CANARY = "c4n4ryc4n4ry"


class Account:
    """An exchange of ccxt as far as its secrets go."""

    apiKey = CANARY  # noqa: N815 - ccxt's name
    secret = "s3cr3ts3cr3t"
    logger = logging.getLogger("test.masked.exchange")


@pytest.mark.parametrize(
    "text",
    [
        f"binanceusdm GET https://fapi.binance.com/fapi/v3/positionRisk?timestamp=1&signature={CANARY}",
        f"POST /v5/order?api_key={CANARY}&sign={CANARY}&timestamp=1",
        f"{{'X-MBX-APIKEY': '{CANARY}'}}",
        f"('X-BAPI-SIGN', '{CANARY}'), ('X-BAPI-API-KEY', '{CANARY}')",
        f"X-BAPI-API-KEY: {CANARY}",
        f"OK-ACCESS-SIGN={CANARY} OK-ACCESS-PASSPHRASE={CANARY} KC-API-KEY={CANARY}",
        f'{{"listenKey": "{CANARY}"}}',
        f"listenKey={CANARY}",
        f"apiKey={CANARY} secret={CANARY} password={CANARY}",
        f"Authorization: Bearer {CANARY}",
        f"redis://:{CANARY}@localhost:6379/0 postgresql://u:{CANARY}@db/x",
        f"signature%3D{CANARY}",
    ],
)
def test_no_signature_key_or_log_in_is_told(text: str) -> None:
    assert CANARY not in masked(text)
    assert "***" in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "binance:APTUSDT position 1: new -> pending_entry token=1795886160878470 during open long",
        "symbol=APTUSDT&side=BUY&newClientOrderId=lge-ya-g3jz4gpotfbpupcp&timestamp=1795886160878",
        "binance refused the keys; check LOCKGUARD_EXCHANGE_API_KEY and LOCKGUARD_EXCHANGE_SECRET, and so on",
        "https://fapi.binance.com/fapi/v1/order?symbol=APTUSDT",
        "signal s1: assigned to bot 3; design: keys stay",
    ],
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    assert masked(text) == text


def test_an_error_and_all_that_led_to_it_tell_no_key_of_the_account_in_whatever_words() -> None:
    root = ValueError(f"the exchange refuses {CANARY}", 7)
    middle = KeyError("no s3cr3ts3cr3t here")
    middle.__context__ = root
    error = RuntimeError(f"POST https://x/order?signature={CANARY}")
    error.__cause__ = middle
    root.__context__ = error  # a circle, as a handler that raises what it caught makes one
    mask_error(error, Account())
    told = [each.args for each in (error, middle, root)]
    assert CANARY not in str(told)
    assert "s3cr3ts3cr3t" not in str(told)
    assert root.args[1] == 7


def test_the_log_of_an_exchange_tells_no_key_and_no_signature(caplog: pytest.LogCaptureFixture) -> None:
    exchange, logger = Account(), Account.logger
    for _ in range(2):  # again is harmless
        mask_log(exchange)
    with caplog.at_level(logging.DEBUG, logger=logger.name):
        logger.debug("GET %s with %s", f"/order?signature={'f' * 64}", CANARY)
    assert CANARY not in caplog.text
    assert "f" * 64 not in caplog.text
    assert "/order?signature=***" in caplog.text
