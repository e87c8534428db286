"""Pointing the original ccxt at a local exchange, by its URL.

Two things must change: the URLs (of websockets too), and the table of errors. ccxt tells by the start of the
request's URL whether a code belongs to the futures or the spot market. For a URL it does not know it uses
neither table, so that -2021, "would immediately trigger", arrives as a bare ``ExchangeError``. Here the URL
is translated back before ccxt looks it up.

A program that can only be configured, not patched, can be given URLs that *start* like those of Binance's
demo, which ccxt knows: to an HTTP client, the part before the ``@`` in
``https://demo-fapi@127.0.0.1:8443/fapi/v1`` is only a user name. They have to be HTTPS URLs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LOCAL_API_KEY", "LOCAL_SECRET", "ccxt_settings", "connect", "point_at"]

LOCAL_API_KEY = "local-key"
LOCAL_SECRET = "local-secret"  # noqa: S105 - of an exchange without money

_HOSTS = {
    "/api/": "https://api.binance.com",
    "/sapi/": "https://api.binance.com",
    "/fapi/": "https://fapi.binance.com",
    "/futures/": "https://fapi.binance.com",
    "/dapi/": "https://dapi.binance.com",
    "/eapi/": "https://eapi.binance.com",
    "/papi/": "https://papi.binance.com",
}


_PATHS = {
    "public": "api/v3",
    "private": "api/v3",
    "v1": "api/v1",
    "sapi": "sapi/v1",
    "sapiV2": "sapi/v2",
    "sapiV3": "sapi/v3",
    "sapiV4": "sapi/v4",
    "fapiPublic": "fapi/v1",
    "fapiPublicV2": "fapi/v2",
    "fapiPublicV3": "fapi/v3",
    "fapiPrivate": "fapi/v1",
    "fapiPrivateV2": "fapi/v2",
    "fapiPrivateV3": "fapi/v3",
    "fapiData": "futures/data",
    "dapiPublic": "dapi/v1",
    "dapiPrivate": "dapi/v1",
    "dapiPrivateV2": "dapi/v2",
    "dapiData": "futures/data",
    "eapiPublic": "eapi/v1",
    "eapiPrivate": "eapi/v1",
    "papi": "papi/v1",
    "papiV2": "papi/v2",
}
"""Every API that ccxt's Binance classes know: requests to one left out would go to Binance itself."""

_STREAMS: dict[str, Any] = {
    "linear": "ws",
    "inverse": "dstream/ws",
    "ws-api": {
        "linear": "ws-fapi/v1",
        "inverse": "ws-dapi/v1",
        "future": "ws-fapi/v1",
        "delivery": "ws-dapi/v1",
        "spot": "ws-api/v3",
    },
    "future": "ws",  # as older versions of ccxt call them
    "delivery": "dstream/ws",
    # Not served here; none may lead to Binance itself.
    "spot": "spot/ws",
    "margin": "margin/ws",
    "stock": "equity/ws",
    "option": "option/public/ws",
    "optionMarket": "option/market/ws",
    "optionPrivate": "option/private/ws",
    "papi": "pm/ws",
}
"""Every websocket that ccxt.pro's Binance classes know."""


def _streams(base: str, paths: Mapping[str, Any] = _STREAMS) -> dict[str, Any]:
    return {
        name: _streams(base, path) if isinstance(path, dict) else f"{base}/{path}"
        for name, path in paths.items()
    }


def ccxt_settings(url: str) -> dict[str, Any]:
    """Settings, JSON-serialisable, with which an unmodified ccxt talks to a local exchange.

    They are for a bot that takes settings for ccxt's constructor, such as freqtrade's ``ccxt_config``.

    Args:
        url: the HTTPS URL of the local exchange; ccxt selects its table of errors by it.

    Raises:
        ConfigurationError: the URL is not an HTTPS URL, or cannot be parsed.
    """
    address: SplitResult | None = None
    try:
        address = urlsplit(url)
        # The settings are printed: a user and password would be printed with them.
        secure = (
            address.scheme == "https"
            and bool(address.hostname)
            and (address.port or 1) > 0
            and "@" not in address.netloc
        )
    except ValueError:
        secure = False
    if address is None or not secure:  # not echoed: it may contain a password
        raise ConfigurationError(
            "ccxt knows Binance's errors by a URL of HTTPS only, such as https://127.0.0.1:8443, and this one"
            " is none; start the exchange with a certificate, or use point_at() in a program of your own"
        ) from None

    netloc = address.netloc

    def named(api: str, path: str) -> str:
        first = {"s": "api", "f": "fapi", "d": "dapi"}.get(api[0], "api")
        return f"https://demo-{first}@{netloc}/{path}"

    urls: dict[str, Any] = {api: named(api, path) for api, path in _PATHS.items()}
    urls["ws"] = _streams(f"wss://{netloc}")
    return {"urls": {"api": urls}, "verify": False}


def point_at(exchange: Any, url: str) -> None:
    """Point an existing ccxt ``binance``, ``binanceusdm`` or ``binancecoinm`` at a local exchange.

    Args:
        exchange: any class of ccxt's Binance family: of ccxt, ``ccxt.async_support`` or ``ccxt.pro``.
        url: where the local exchange listens.

    Raises:
        ConfigurationError: the exchange is not of the Binance family, or the URL is not HTTP or HTTPS.
    """
    name = str(getattr(exchange, "id", exchange))
    if not name.startswith("binance"):
        raise ConfigurationError(f"{name!r} cannot talk to the local exchange; it speaks Binance's API only")
    base = url.rstrip("/")
    if base.partition("://")[0].lower() not in {"http", "https"}:  # not echoed: it may contain a password
        raise ConfigurationError(
            "what was given is not a URL of a local exchange; it looks like http://127.0.0.1:8080"
        )
    exchange.urls["api"] = {
        name: base + urlsplit(old).path
        if isinstance(old, str)
        else _streams(f"ws{base.removeprefix('http')}")
        for name, old in exchange.urls["api"].items()
    }
    original = exchange.get_exceptions_by_url

    def get_exceptions_by_url(asked: str | None, kind: str) -> dict[str, Any]:
        table: dict[str, Any] = original(_official(asked, base), kind)
        return table

    exchange.get_exceptions_by_url = get_exceptions_by_url


def _official(url: str | None, base: str) -> str | None:
    """The URL that the request would have had at Binance."""
    if url is None or not url.startswith(base):
        return url
    path = url[len(base) :]
    return next((host + path for prefix, host in _HOSTS.items() if path.startswith(prefix)), url)


def connect(
    url: str,
    *,
    api_key: str = LOCAL_API_KEY,
    secret: str = LOCAL_SECRET,
    exchange_id: str = "binanceusdm",
    config: Mapping[str, Any] | None = None,
    streams: bool = False,
) -> Any:
    """The original ``ccxt.async_support.binanceusdm``, pointed at a local exchange.

    The caller closes it: ``await client.close()``. ccxt's rate limiter is off, as the local exchange has no
    limit; its retries stay off, as they would send an order again without asking what became of it.

    Args:
        url: where the local exchange listens.
        api_key: the account's key.
        secret: the account's secret.
        exchange_id: ``binanceusdm``, ``binancecoinm`` or ``binance``.
        config: further settings for ccxt's constructor.
        streams: whether to take the class of ``ccxt.pro``, which has the websockets too.

    Raises:
        ConfigurationError: the exchange is not of the Binance family, or the URL is not HTTP or HTTPS.
        ImportError: ccxt is not installed.
    """
    try:
        ccxt = import_module("ccxt.pro" if streams else "ccxt.async_support")
    except ImportError as exc:
        raise ImportError("ccxt is not installed; pip install 'lockguard[ccxt]'") from exc
    factory = getattr(ccxt, exchange_id, None)
    if factory is None:
        raise ConfigurationError(f"ccxt has no exchange {exchange_id!r}; use binanceusdm or binance")
    settings: dict[str, Any] = {
        "apiKey": api_key,
        "secret": secret,
        "enableRateLimit": False,
        **(config or {}),
    }
    exchange = factory(settings)
    point_at(exchange, url)
    return exchange
