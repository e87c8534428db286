"""The authentication of a request: the HMAC over its parameters, and the receive window."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lockguard_lab.exchange.rejections import Rejection, illegal, malformed

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Credentials", "verify"]

RECV_WINDOW_MS_DEFAULT = 5_000
RECV_WINDOW_MS_MAX = 60_000
AHEAD_MS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Credentials:
    """An API key and its secret; the secret is not shown."""

    api_key: str
    secret: str = field(repr=False)


def verify(credentials: Credentials, *, payload: str, params: Mapping[str, str], now_ms: int) -> None:
    """Check a private request.

    Args:
        credentials: those of the account whose key came in the ``X-MBX-APIKEY`` header.
        payload: the query string and the body, concatenated as they were sent.
        params: the parsed payload.
        now_ms: the exchange's clock.

    Raises:
        Rejection: as the exchange words it.
    """
    signature = _mandatory(params, "signature")
    signed = "&".join(part for part in payload.split("&") if not part.startswith("signature="))
    expected = hmac.new(credentials.secret.encode(), signed.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(signature.encode(), expected.encode()):
        raise Rejection(-1022, "Signature for this request is not valid.")
    _check_window(params, now_ms)


def _check_window(params: Mapping[str, str], now_ms: int) -> None:
    sent_ms = _whole("timestamp", _mandatory(params, "timestamp"))
    window_ms = _whole("recvWindow", params.get("recvWindow", str(RECV_WINDOW_MS_DEFAULT)))
    if not 0 < window_ms <= RECV_WINDOW_MS_MAX:
        raise Rejection(-1131, f"recvWindow must be less than {RECV_WINDOW_MS_MAX}.")
    if sent_ms > now_ms + AHEAD_MS_MAX:
        raise Rejection(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")
    if now_ms - sent_ms > window_ms:
        raise Rejection(-1021, "Timestamp for this request is outside of the recvWindow.")


def _mandatory(params: Mapping[str, str], name: str) -> str:
    value = params.get(name, "")
    if not value:
        raise malformed(name)
    return value


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise illegal(name, "^[0-9]{1,20}$")
    return int(text)
