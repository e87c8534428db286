"""Parses a URL into the address and the credentials of a Redis server.

Errors never quote what could not be parsed: of ``redis://:pa/ss@host`` the host is ``""`` and the port is
``pa``, so an error that quotes a part of the URL would quote a part of the password. An error says which part
is wrong and how to write it. Nothing invalid is ignored either, whereas redis-py takes ``/prod`` for database
0 and ignores unknown options.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qsl, unquote

from lockguard._nodes.credentials import Credentials
from lockguard.errors import ConfigurationError
from lockguard.text import kind_of

__all__ = ["Address", "UrlParts", "split_url"]

_PORT = 6379
_FORMS = (
    "redis://[user:password@]host[:port][/db], rediss:// for TLS, unix:///path/to/socket,"
    " redis+sentinel://host:port,host:port/service or redis+cluster://host:port,host:port"
)
_ENCODE = "in a user or password write %2F for '/', %3F for '?', %23 for '#', %25 for '%' and %40 for '@'"

_LOGIN = ("username", "password")
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs")
_OPTIONS = {
    "redis": ("protocol", "db", *_LOGIN),
    "unix": ("protocol", "db", *_LOGIN),
    "redis+sentinel": ("protocol", "sentinel_username", "sentinel_password"),
    "redis+cluster": ("protocol", *_LOGIN),
}
_TLS_OF = {"rediss": "redis", "rediss+sentinel": "redis+sentinel", "rediss+cluster": "redis+cluster"}
_YES_OR_NO = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class Address:
    """One server.

    Attributes:
        host: name or IP address; empty for a Unix socket.
        port: TCP port; 0 for a Unix socket.
        path: the path of a Unix socket; empty for TCP.
        db: database number.
        username: ACL user; ``None`` for the default user.
        password: the user's password; ``None`` for none.
        tls: the TLS context for ``rediss://``; ``None`` without TLS.
        protocol: the RESP version to begin with: 3, or 2 with ``?protocol=2``.
        credentials: fetches user and password for each log-in; ``None``: they are those above.
    """

    host: str
    port: int
    path: str
    db: int
    username: str | None
    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None = field(repr=False)
    protocol: int = 3
    credentials: Credentials | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Host or socket, port and database for messages; contains no credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = self.path or f"{host}:{self.port}"
        return f"{where}/{self.db}" if self.db else where

    async def with_login(self) -> Address:
        """This address, with the credentials of the log-in that is about to be made.

        Raises:
            NodeRefused: they could not be had.
        """
        if self.credentials is None:
            return self
        user, password = await self.credentials.get(self.name)
        return replace(self, username=user or self.username, password=password)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse a ``redis://``, ``rediss://`` or ``unix://`` URL.

        Raises:
            ConfigurationError: the URL has another scheme, or a part of it is invalid.
        """
        parts = split_url(url)
        options = parts.options
        credentials, _, place = parts.netloc.rpartition("@")
        if parts.scheme == "unix":
            host, port, path = "", 0, _decoded(parts.path, "path")
            if place or not path.strip("/"):
                _refuse("names no socket; write unix:///path/to/socket, with three slashes")
            db = _number(options.get("db", "0"))
        elif parts.scheme in ("redis", "rediss"):
            (host, port), path = _host_and_port(place), ""
            db = _database(parts)
        else:
            _refuse(f"is {parts.scheme}://, and one server is meant here; write redis:// or unix://")
        username, password = _login(credentials, options)
        protocol = options.get("protocol", "3")
        if protocol not in ("2", "3"):
            _refuse("has an option protocol that is neither 2 nor 3")
        return cls(
            host=host,
            port=port,
            path=path,
            db=db,
            username=username,
            password=password,
            tls=_tls_context(options) if parts.scheme == "rediss" else None,
            protocol=int(protocol),
        )


@dataclass(frozen=True, slots=True)
class UrlParts:
    """The parts of a URL that may list several hosts; its structure is checked, the values are not.

    Attributes:
        scheme: a known scheme, in lower case.
        netloc: user, password and host or hosts, as written.
        path: as written, with its slash.
        query: as written.
        options: the query's options; each is known to the scheme, given once and not empty.
    """

    scheme: str
    netloc: str = field(repr=False)
    path: str = field(repr=False)
    query: str = field(repr=False)
    options: Mapping[str, str] = field(repr=False)


def split_url(url: str) -> UrlParts:
    """Split a URL of any known scheme into its parts.

    Raises:
        ConfigurationError: the URL is not a Redis URL, has an unknown option, or contains a character that
            must be encoded.
    """
    if not isinstance(url, str):
        _refuse(
            f"is {kind_of(url)}; write redis://host:port as text, and see whether the variable for it is set"
        )
    if not url.strip():
        _refuse("is empty; write redis://host:port, and see whether the variable that it is read from is set")
    if " " in url or not url.isprintable():
        _refuse("has a blank, a line end or an unprintable character; strip it, and write %20 for a blank")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        _refuse(f"has no scheme; write {_FORMS}")
    if scheme not in _OPTIONS and scheme not in _TLS_OF:
        named = (
            f"begins with {scheme}://"
            if re.fullmatch("[a-z][a-z0-9+.-]{0,20}", scheme)
            else "has another scheme"
        )
        _refuse(f"{named}, which is none of a Redis; write {_FORMS}")
    if "#" in rest:
        _refuse(f"has a '#'; {_ENCODE}")
    before, _, query = rest.partition("?")
    netloc, slash, path = before.partition("/")
    if "@" in path and (scheme != "unix" or netloc):
        _refuse(f"has an '@' behind a '/'; {_ENCODE}")
    return UrlParts(scheme, netloc, slash + path, query, _options(scheme, query))


def _refuse(why: str) -> NoReturn:
    raise ConfigurationError(f"the Redis URL {why}") from None


def _options(scheme: str, query: str) -> dict[str, str]:
    known = _OPTIONS[_TLS_OF.get(scheme, scheme)] + (_TLS if scheme in _TLS_OF else ())
    try:
        pairs = (
            parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
        )
    except ValueError:
        _refuse(f"has something else than option=value behind its '?'; {_ENCODE}")
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            _refuse(_unknown(name, query, known))
        if name in options:
            _refuse(f"has the option {name} twice; leave one out")
        if not value:
            _refuse(f"has an option {name} without a value; give it one or leave it out")
        options[name] = value
    return options


def _unknown(name: str, query: str, known: tuple[str, ...]) -> str:
    if "@" in query or not re.fullmatch("[A-Za-z_]{1,40}", name):
        return f"has an '@' or an option that is none behind its '?'; {_ENCODE}"
    if name in _TLS:
        return f"has the option {name}, which is for TLS; write rediss:// instead of redis://"
    near = get_close_matches(name, known, 1)
    meant = f"did you mean {near[0]}?" if near else f"leave it out; there are: {', '.join(known)}"
    return f"has the option {name}, which is not known; {meant}"


def _decoded(text: str, what: str) -> str:
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        _refuse(f"has a '%' in its {what} that two hexadecimal digits do not follow; write %25 for it")
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        _refuse(f"has a {what} whose percent signs do not make UTF-8; encode it again")
    if what in ("path", "host") and not decoded.isprintable():
        _refuse(f"has a control or unprintable character in its {what}; leave it out")
    return decoded


def _host_and_port(place: str) -> tuple[str, int]:
    if place.startswith("["):
        host, closed, port = place[1:].partition("]")
        if not closed or port[:1] not in ("", ":"):
            _refuse("has a '[' without its ']'; write an IPv6 address as [::1]:6379")
        port = port[1:]
    else:
        host, _, port = place.partition(":")
    if not host:
        _refuse("names no host; write redis://localhost:6379, and see whether the variable for it is set")
    if not port:
        return _decoded(host, "host").lower(), _PORT
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65_535):
        # The value is not shown: in redis://user:pass/word@host it is a part of the password.
        _refuse(
            "has a port that is no number from 1 to 65535; write redis://host:port, [::1]:port for IPv6;"
            f" {_ENCODE}"
        )
    return _decoded(host, "host").lower(), int(port)


def _number(db: str) -> int:
    if not (db.isascii() and db.isdigit() and len(db) <= 9):
        _refuse("has a database that is no number; write /0 for the first one, as in redis://host:port/0")
    return int(db)


def _database(parts: UrlParts) -> int:
    named = parts.path.removeprefix("/")
    db = _number(named or parts.options.get("db", "0"))
    if db != _number(parts.options.get("db", str(db))):
        _refuse("names two databases; leave the option db out")
    return db


def _login(credentials: str, options: Mapping[str, str]) -> tuple[str | None, str | None]:
    user, _, password = credentials.partition(":")
    username = _decoded(user, "user") or options.get("username")
    secret = _decoded(password, "password") or options.get("password")
    # A user without a password gets the empty one. With None, the log-in would be as the default user.
    return username, "" if username and secret is None else secret


def _tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in options and not Path(options[name]).is_file():
            _refuse(f"has {name}={options[name]!r}, which is no file; give the path of one")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        _refuse("has an ssl_keyfile without an ssl_certfile; give both")
    verify = _choice(options, "ssl_cert_reqs", {"required": True, "optional": True, "none": False})
    check = _choice(options, "ssl_check_hostname", _YES_OR_NO)
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), _no_passphrase)
    except OSError as exc:
        _refuse(f"has TLS files that cannot be read: {exc}")
    context.check_hostname = check and verify
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    return context


def _choice(options: Mapping[str, str], name: str, values: Mapping[str, bool]) -> bool:
    value = options.get(name)
    if value is None:
        return True
    if value.lower() not in values:
        _refuse(f"has an option {name} that is none of {', '.join(values)}")
    return values[value.lower()]


def _no_passphrase() -> str:
    """Refuse an encrypted key: OpenSSL would prompt for the passphrase and block the event loop.

    Raises:
        ConfigurationError: always.
    """
    _refuse("has an ssl_keyfile with a passphrase; give a key without one, which only the bot may read")
