"""A database URL as the user gave it: checked before asyncpg reads it, and shown without its secrets.

A raw ``/``, ``?``, ``#`` or ``@`` in a password makes a URL that can be read, but wrongly: pieces of the
password become port, path and options, and errors of asyncpg and of lockguard would quote them. Such a URL is
refused first, and no part of it is shown.
"""

from __future__ import annotations

import configparser
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from lockguard.errors import ConfigurationError
from lockguard.text import first_line
from lockguard_postgres._errors import LOGIN_REMEDY

if TYPE_CHECKING:
    from urllib.parse import SplitResult

__all__ = ["arguments", "checked", "reason_of", "shown"]

_SCHEMES = ("postgresql", "postgres")
_CACHE = "statement_cache_size"
_DATABASE = "the database of the PG* environment variables (or give its URL)"
_UNREADABLE = (
    "the database URL cannot be read (it is not shown, as it may contain a password): write"
    " postgresql://user:password@host:port/name; in a user or password write %2F for '/', %3F for '?',"
    " %23 for '#', %25 for '%' and %40 for '@'"
)


def checked(url: str | None) -> None:
    """Refuse a URL that cannot be read in exactly one way; ``None`` passes.

    Raises:
        ConfigurationError: it cannot; no part of it is quoted.
    """
    if url is not None:
        _read(url)


def arguments(url: str | None) -> dict[str, Any]:
    """What ``asyncpg.connect`` and ``asyncpg.create_pool`` are given for ``url``.

    ``statement_cache_size`` becomes an argument. asyncpg would send it to the server as a setting, which
    Postgres and PgBouncer refuse, and behind a pooler in transaction mode a command needs it.

    Raises:
        ConfigurationError: the URL cannot be read, or the size is no whole number; neither is quoted.
    """
    if url is None or _CACHE not in url:
        checked(url)
        return {"dsn": url}
    parts = _read(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    others = urlencode([(name, value) for name, value in options if name != _CACHE])
    given: dict[str, Any] = {"dsn": parts._replace(query=others).geturl()}
    for size in (value for name, value in options if name == _CACHE):
        if not re.fullmatch("[0-9]{1,6}", size):
            raise ConfigurationError(
                f"{_CACHE} in the database URL must be a whole number; behind a pooler in transaction mode"
                " write 0"
            )
        given[_CACHE] = int(size)
    return given


def _read(url: str) -> SplitResult:
    parts: SplitResult | None = None
    try:
        parts = urlsplit(url)
        _ = parts.port
        credentials, _, _ = parts.netloc.rpartition("@")
        clear = (
            parts.scheme in _SCHEMES
            and url.isprintable()
            and "@" not in f"{credentials}{parts.path}{parts.query}{parts.fragment}"
            and not parts.fragment
            and "%" not in _without_escapes(credentials)
            and parts.path.count("/") < 2
        )
        parse_qsl(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        clear = False
    if parts is None or not clear:
        # Without a cause, whose text would quote a part of it.
        raise ConfigurationError(_UNREADABLE) from None
    return parts


def _without_escapes(text: str) -> str:
    """``"%"`` if a ``%`` in ``text`` is not part of a valid escape, else empty."""
    pieces = text.split("%")[1:]
    broken = any(len(piece) < 2 or not _is_hex(piece[:2]) for piece in pieces)
    return "%" if broken else ""


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdefABCDEF" for c in text)


def shown(url: str | None) -> str:
    """The URL for display: host, port and name of the database, without user, password and options."""
    if url is None:
        return _DATABASE
    try:
        parts = _read(url)
    except ConfigurationError:
        return "the database"
    host = parts.hostname or "the local server"
    return f"{host}:{parts.port or 5432}{unquote(parts.path)}"


def reason_of(exc: BaseException, *, within_s: float) -> str:
    """Why a connection failed, in one line.

    Args:
        exc: what asyncpg raised.
        within_s: the time bound that the connection was given, in seconds.
    """
    if isinstance(exc, TimeoutError):
        return f"no answer within {within_s:g} s; check host and port"
    if isinstance(exc, OSError):
        return f"{exc.strerror or type(exc).__name__}; check that the server runs there"
    if isinstance(exc, configparser.Error):
        # Its text quotes the line, which may hold a password.
        return "the service file has a line that cannot be read; write key=value, and %% for '%'"
    if isinstance(exc, ValueError):
        # The texts of asyncpg and ssl quote the option's value, which may be a password.
        return "an option of the URL, or a PG* variable, has a value that cannot be read"
    said, state = first_line(exc), getattr(exc, "sqlstate", None) or ""
    if state.startswith("28"):
        return f"{said}; {LOGIN_REMEDY}"
    if state == "25006":
        return (
            f"{said}; this is a standby, or default_transaction_read_only is on there: name the primary (or"
            " several hosts and target_session_attrs=read-write), or switch it off"
        )
    return said
