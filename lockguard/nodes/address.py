"""Where a Redis is and how to log in, from a URL.

redis-py reads the URL (its forms are the ones that people know); what it gives becomes one frozen value
whose ``repr`` has no secret.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio.connection import parse_url

from lockguard.errors import ConfigurationError

__all__ = ["Address", "UrlParts", "shown_url", "split_url"]


@dataclass(frozen=True, slots=True)
class Address:
    """One server.

    Attributes:
        host: name or IP address; empty for a Unix socket.
        port: TCP port; 0 for a Unix socket.
        path: of a Unix socket; empty for TCP.
        db: database number.
        username: ACL user, ``None`` for the default one.
        password: its password.
        tls: the context for ``rediss://``.
        protocol: the RESP version to begin with: 3, or 2 with ``?protocol=2``.
    """

    host: str
    port: int
    path: str
    db: int
    username: str | None
    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None = field(repr=False)
    protocol: int = 3

    @property
    def name(self) -> str:
        """For people and logs; has no credentials."""
        where = self.path or f"{self.host}:{self.port}"
        return f"{where}/{self.db}" if self.db else where

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read ``redis://``, ``rediss://`` or ``unix://``.

        Raises:
            ConfigurationError: it is none of these, or a part of it makes no sense.
        """
        shown = shown_url(url)
        try:
            options: dict[str, Any] = dict(parse_url(url))
            port = int(options.get("port", 6379))
            db = int(options.get("db", 0))
            protocol = int(options.get("protocol", 3))
        except (ValueError, TypeError) as exc:
            raise ConfigurationError(
                f"{shown!r} is not a Redis URL; write redis://[user:password@]host[:port][/db],"
                " rediss:// for TLS, or unix:///path/to/socket"
            ) from exc
        path = str(options.get("path", ""))
        tls = _tls_context(options) if urlsplit(url).scheme == "rediss" else None
        return cls(
            host="" if path else str(options.get("host", "localhost")),
            port=0 if path else port,
            path=path,
            db=db,
            username=options.get("username"),
            password=options.get("password"),
            tls=tls,
            protocol=protocol,
        )


@dataclass(frozen=True, slots=True)
class UrlParts:
    """A URL whose place may list several hosts."""

    scheme: str
    netloc: str
    path: str
    query: str


def split_url(url: str) -> UrlParts:
    """Take a URL apart. Newer ``urllib`` refuses an IPv6 address behind another host of a list."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    netloc, slash, path = rest.partition("/")
    return UrlParts(scheme.lower(), netloc, slash + path, query)


def _tls_context(options: dict[str, Any]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as exc:
        raise ConfigurationError(f"the TLS files of the Redis URL cannot be read: {exc}") from exc
    if str(options.get("ssl_check_hostname", "true")).lower() in {"false", "0", "no"}:
        context.check_hostname = False
    if str(options.get("ssl_cert_reqs", "required")) == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def shown_url(url: str) -> str:
    """A URL for messages: without user and password."""
    before, at, after = url.rpartition("@")
    if not at:
        return url
    scheme, sep, _ = before.partition("://")
    return f"{scheme}{sep}***@{after}"
