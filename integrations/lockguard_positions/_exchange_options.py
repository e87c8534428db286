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
from lockguard.text import first_line, printable
from lockguard_ccxt._by_url import LOCAL_API_KEY, LOCAL_SECRET, connect
from lockguard_ccxt._keys import account_label
from lockguard_ccxt._masking import mask_log
from lockguard_positions._ccxt_options import check_as_default, check_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ExchangeSettings", "credentials_told", "make_client", "read_options"]

_PREFIX = "LOCKGUARD_EXCHANGE_"
_PEM = "-----BEGIN "
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
_OWN = frozenset({"demo", "sandbox", "leverage"})
_SHOWN_CHARS = 40


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
        """The name for messages, without the user, password and path of a URL."""
        if "://" not in (self.name or ""):
            return printable((self.name or "")[:_SHOWN_CHARS])
        try:
            return _local_place(self.name or "")
        except ConfigurationError:
            return "given by a URL"

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
    except (ValueError, RecursionError):
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
    if root != key and (root in _ATTRIBUTES or root in _OWN):
        raise ConfigurationError(f"option {root} has no inner table; write {root}=value")
    check_value(key, value)


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
    except (ValueError, RecursionError):
        return text


def _local_place(url: str) -> str:
    """Scheme, host and port of a local exchange's URL.

    Raises:
        ConfigurationError: it cannot be read in exactly one way: a raw ``/`` in a password would make pieces
            of it port and path. No part of it is shown.
    """
    place = ""
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
        login, _, _ = parts.netloc.rpartition("@")
        if url.isprintable() and "@" not in f"{login}{parts.path}{parts.query}{parts.fragment}":
            host = parts.hostname or ""
            place = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}" if host else ""
    except ValueError:  # its text may quote a password
        place = ""
    if not place:
        raise ConfigurationError(
            "what was given as the exchange is no URL (it is not shown, as it may contain a password);"
            " write http://host:port; in a password %2F for '/', %3F for '?', %23 for '#' and %40 for '@'"
        )
    return place


def _credential(name: str) -> str | None:
    """A credential from the environment; ``None`` if it is not set.

    Raises:
        ConfigurationError: it has what no credential has, such as the end of a line of a Windows file. ccxt
            would put it into a header, and fail at the first request. Nothing of it is shown.
    """
    value = os.environ.get(f"{_PREFIX}{name}")
    if value is None or _PEM in value:  # a private key in several lines
        return value
    if not (value.isascii() and value.isprintable()) or value != value.strip():
        raise ConfigurationError(
            f"{_PREFIX}{name} has a space or a line end at one of its ends, or a character that no credential"
            " has; write it anew, and end the lines of a file of variables with LF, not CR LF"
        )
    return value


def _local(url: str) -> Any:
    _local_place(url)
    return connect(
        url,
        api_key=_credential("API_KEY") or LOCAL_API_KEY,
        secret=_credential("SECRET") or LOCAL_SECRET,
    )


def _real(name: str) -> Any:
    ccxt = import_module("ccxt.async_support")
    factory = getattr(ccxt, name, None) if name.isidentifier() else None
    base = import_module("ccxt.async_support.base.exchange").Exchange
    if not isinstance(factory, type) or not issubclass(factory, base) or factory is base:
        close = get_close_matches(name.lower(), getattr(ccxt, "exchanges", ()), n=1)
        meant = f"; if you mean {close[0]}, write that" if close else ""
        # What is no word may be a URL without its scheme, and have a password.
        shown = f"exchange {name[:_SHOWN_CHARS]!r}" if name.isidentifier() else "exchange of that name"
        raise ConfigurationError(
            f"ccxt has no {shown}; write binanceusdm, bybit, or the URL of a local one{meant}"
        )
    given = {key: _credential(name) for key, name in _CREDENTIALS.items()}
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
        raise ConfigurationError(f"{client.id} has no option {root[:_SHOWN_CHARS]!r}; {meant}")
    table = client.options.get(root)
    if not inner:
        check_as_default(client.id, root, value, table)
        client.options[root] = value
        return
    if table is not None and not isinstance(table, dict):
        raise ConfigurationError(f"option {root} has no inner table; write {root}=value")
    check_as_default(client.id, key, value, (table or {}).get(inner))
    client.options[root] = {**(table or {}), inner: value}


def _switch(client: Any, option: str, method: str) -> None:
    try:
        getattr(client, method)(True)  # noqa: FBT003 - as ccxt has it
    except Exception as exc:
        raise ConfigurationError(
            f"{client.id} cannot be used with option {option}: {first_line(exc)}"
        ) from exc
