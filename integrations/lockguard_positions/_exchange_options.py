"""The account at an exchange and ccxt's options, read from the command line and the environment.

Mistakes are found before anything is sent: an option that ccxt silently ignores would be believed to be in
force, and an account with two names would be traded by two bots at once.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lockguard.errors import ConfigurationError
from lockguard.text import first_line
from lockguard_ccxt._by_url import LOCAL_API_KEY, LOCAL_SECRET, connect
from lockguard_ccxt._keys import account_label
from lockguard_ccxt._masking import mask_log, masked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ExchangeSettings", "credentials_told", "make_client", "read_options"]

_PREFIX = "LOCKGUARD_EXCHANGE_"
_CREDENTIALS = {
    "apiKey": "API_KEY",
    "secret": "SECRET",
    "password": "PASSWORD",
    "uid": "UID",
    "login": "LOGIN",
    "accountId": "ACCOUNT_ID",
    "twofa": "TWOFA",
    "privateKey": "PRIVATE_KEY",
    "walletAddress": "WALLET_ADDRESS",
    "token": "TOKEN",
}
_ATTRIBUTES = frozenset(
    {
        *("timeout", "rateLimit", "enableRateLimit", "hostname", "httpProxy", "httpsProxy", "socksProxy"),
        *("aiohttp_trust_env", "userAgent", "headers"),
    }
)
"""Options that are attributes of a ccxt exchange."""
_OPTIONS = frozenset(
    {
        *("defaultType", "defaultSubType", "defaultSettle", "recvWindow", "adjustForTimeDifference"),
        *(
            "portfolioMargin",
            "fetchPositions",
            "broker",
            "brokerId",
            "enableUnifiedAccount",
            "timeDifference",
        ),
    }
)
"""Options that some exchange accepts although it has no default for them."""
_REFUSED = {
    "maxRetriesOnFailure": "ccxt would send an order again without asking what became of the first one",
    "verbose": "ccxt would print signed requests",
    "hedgeMode": "one position a symbol is kept; use the one-way mode",
}
_OWN = {"demo": bool, "sandbox": bool, "leverage": int}
_LEVERAGE_MAX = 200


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """An account at an exchange, and ccxt's options for it.

    Attributes:
        name: the URL of a local exchange, or ccxt's name of a real one.
        account: the account's label, if there are several at the exchange.
        options: ccxt's options by name; those of an inner table as ``fetchPositions.method``.
    """

    name: str | None = field(repr=False)
    account: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def shown(self) -> str:
        """The name for messages, without the user and password of a URL."""
        return masked(self.name or "")

    @property
    def leverage(self) -> int | None:
        """The leverage to set for a symbol before its first entry; ``None`` leaves it as it is."""
        return self.options.get("leverage")

    @property
    def ccxt_id(self) -> str:
        """The name of the ccxt class for this exchange."""
        return "binanceusdm" if self.name is None or "://" in self.name else self.name


def read_options(given: Sequence[str], *, name: str | None, account: str | None) -> ExchangeSettings:
    """Parse options ``key=value``, with values in JSON or plain text; they override the environment's.

    Raises:
        ConfigurationError: an option has another form, cannot be set or has a wrong value; or the name or
            the label of the account cannot work. An option that could not be parsed is not echoed.
    """
    options = _of_environment()
    for number, item in enumerate(given, start=1):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigurationError(
                f"--option number {number} is not key=value; write it as recvWindow=5000"
            )
        options[key.strip()] = _value(value)
    for key, found in options.items():
        _check(key, found)
    if name is not None and "://" not in name and "@" in name:
        raise ConfigurationError(
            f"exchange {name.partition('@')[0]!r} has an account's label; give it with --account or"
            " LOCKGUARD_ACCOUNT"
            if name.partition("@")[0].isalnum()
            else "the exchange's name has an @; give the account's label with --account or LOCKGUARD_ACCOUNT"
        )
    if account is not None:
        account_label(account)
    return ExchangeSettings(name, account, options)


def _of_environment() -> dict[str, Any]:
    text = os.environ.get(f"{_PREFIX}OPTIONS")
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"{_PREFIX}OPTIONS is no JSON object; write it as '{{\"recvWindow\": 5000}}'"
        )
    return found


def _check(key: str, value: Any) -> None:
    root = key.partition(".")[0]
    if root in _CREDENTIALS:
        raise ConfigurationError(
            f"option {root} is a credential, and everybody can read the arguments of a process;"
            f" set {_PREFIX}{_CREDENTIALS[root]} instead"
        )
    if root in _REFUSED:
        raise ConfigurationError(f"option {root} is not to be set: {_REFUSED[root]}")
    kind = _OWN.get(key)
    if kind is not None and type(value) is not kind:
        raise ConfigurationError(
            f"option {key} must be {'true or false' if kind is bool else 'a whole number'}"
        )
    if key == "leverage" and not 1 <= value <= _LEVERAGE_MAX:
        raise ConfigurationError(f"option leverage={value} must be from 1 to {_LEVERAGE_MAX}")


def make_client(settings: ExchangeSettings) -> Any:
    """Create the ccxt exchange, with its keys from the environment; nothing is sent.

    Raises:
        ConfigurationError: there is no such exchange, a key is missing, or an option is not known.
    """
    name = settings.name
    if not name:
        raise ConfigurationError(
            "no exchange; give --exchange (a local one's URL, or ccxt's name) or set LOCKGUARD_EXCHANGE_URL"
        )
    client = _local(name) if "://" in name else _real(name)
    mask_log(client)
    for key, value in settings.options.items():
        if key not in _OWN:
            _apply(client, key, value)
    if settings.options.get("demo"):
        _switch(client, "demo", "enable_demo_trading")
    if settings.options.get("sandbox"):
        _switch(client, "sandbox", "set_sandbox_mode")
    return client


def credentials_told(exchange: str, exc: BaseException) -> ConfigurationError:
    """The error to raise when the exchange refuses the keys."""
    return ConfigurationError(
        f"{exchange} refused the keys ({type(exc).__name__}); check {_PREFIX}API_KEY and {_PREFIX}SECRET,"
        " and what the key may do"
    )


# --- inside ---


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _local(url: str) -> Any:
    try:
        _ = urlsplit(url).port
    except ValueError:  # neither it nor the error is shown: both may quote a password
        raise ConfigurationError("what was given as the exchange is no URL; write http://host:port") from None
    return connect(
        url,
        api_key=os.environ.get(f"{_PREFIX}API_KEY") or LOCAL_API_KEY,
        secret=os.environ.get(f"{_PREFIX}SECRET") or LOCAL_SECRET,
    )


def _real(name: str) -> Any:
    ccxt = import_module("ccxt.async_support")
    factory = getattr(ccxt, name, None) if name.isidentifier() else None
    base = import_module("ccxt.async_support.base.exchange").Exchange
    if not isinstance(factory, type) or not issubclass(factory, base) or factory is base:
        close = get_close_matches(name.lower(), getattr(ccxt, "exchanges", ()), n=1)
        meant = f"; if you mean {close[0]}, write that" if close else ""
        raise ConfigurationError(
            f"ccxt has no exchange {name[:40]!r}; write binanceusdm, bybit, or the URL of a local one{meant}"
        )
    given = {key: os.environ.get(f"{_PREFIX}{name}") for key, name in _CREDENTIALS.items()}
    client = factory({**{k: v for k, v in given.items() if v}, "enableRateLimit": True})
    needed = [key for key, is_needed in client.requiredCredentials.items() if is_needed]
    missing = [f"{_PREFIX}{_CREDENTIALS[key]}" for key in needed if key in _CREDENTIALS and not given[key]]
    if missing:
        raise ConfigurationError(f"{name} needs the account's keys; set {' and '.join(missing)}")
    return client


def _apply(client: Any, key: str, value: Any) -> None:
    root, _, inner = key.partition(".")
    if root in _ATTRIBUTES and not inner and hasattr(client, root):
        setattr(client, root, value)
        return
    if root not in client.options and root not in _OPTIONS:
        known = sorted({*client.options, *_OPTIONS, *_ATTRIBUTES, *_OWN})
        close = get_close_matches(root, known, n=1, cutoff=0.5)
        meant = f"write {close[0]} if you mean that" if close else "its options are in ccxt's documentation"
        raise ConfigurationError(f"{client.id} has no option {root[:40]!r}; {meant}")
    if not inner:
        client.options[root] = value
        return
    table = client.options.get(root)
    client.options[root] = {**(table if isinstance(table, dict) else {}), inner: value}


def _switch(client: Any, option: str, method: str) -> None:
    try:
        getattr(client, method)(True)  # noqa: FBT003 - as ccxt has it
    except Exception as exc:
        raise ConfigurationError(
            f"{client.id} cannot be used with option {option}: {first_line(exc)}"
        ) from exc
