"""What signs a request or logs in is in no text that leaves the process; everything else stays readable."""

from __future__ import annotations

import pytest

from lockguard_ccxt._masking import masked

CANARY = "c4n4ryc4n4ry"


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
