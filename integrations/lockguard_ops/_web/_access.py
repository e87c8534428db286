"""Who may see the page: those who have the URL with its token, from a page of our own, under a name of ours.

Every request is judged here before anything else looks at it. One that is not admitted gets the same 404
whatever it asked for, after the same comparisons, so that it does not even learn what there is.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from enum import Enum, auto
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["HEADERS", "SCRIPT_HEADER", "TOKEN_MIN", "Access", "Admission", "is_loopback"]

TOKEN_MIN = 22
"""The shortest token that is accepted, in characters: 128 bits in base64."""

SCRIPT_HEADER = "X-Lockguard"
"""Only a script of our own page can send it: of a foreign one, the browser would ask first and be refused."""

_TOKEN = re.compile(rf"[A-Za-z0-9_-]{{{TOKEN_MIN},200}}")
_SESSION_S = 7 * 86_400

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""They are on every response."""


class Admission(Enum):
    """What a request has shown."""

    NONE = auto()
    URL = auto()
    """The token in the URL, which is now used up."""
    COOKIE = auto()


class Access:
    """The secrets of one run, and what is asked of a request.

    Args:
        host: the address that is listened on; other names than those of the loopback are only accepted
            where it is not one of the loopback.
        token: a token that stays valid, also over restarts; empty for random ones that each work once.

    Raises:
        ConfigurationError: the token is too short, or cannot stand in a URL.
    """

    def __init__(self, *, host: str, token: str = "") -> None:
        if token and not _TOKEN.fullmatch(token):
            raise ConfigurationError(
                f"LOCKGUARD_WEB_TOKEN (not shown) has to be {TOKEN_MIN} letters, digits, - and _ or more;"
                " python -c 'import secrets; print(secrets.token_urlsafe(24))' makes one"
            )
        self._host = host
        self._lasts = bool(token)
        self._token = token or secrets.token_urlsafe(24)
        seed = token or secrets.token_urlsafe(24)
        self._session = hmac.new(seed.encode(), b"lockguard web session", hashlib.sha256).hexdigest()
        self._key = secrets.token_bytes(32)

    @property
    def token(self) -> str:
        """What the URL has to show; a new one each time that it was used."""
        return self._token

    @property
    def lasts(self) -> bool:
        """Whether the token may be used again and again."""
        return self._lasts

    def judge(self, request: web.BaseRequest) -> Admission:
        """Whether a request is admitted. The token of a URL is not used up yet, see :meth:`use`."""
        # All three are always looked at: how long this takes must not tell which of them failed.
        ours = self._is_ours(request.headers.get("Host", ""))
        by_url = self._same(request.query.get("token", ""), self._token)
        by_cookie = self._same(request.cookies.get(cookie_name(request), ""), self._session)
        if not ours:
            return Admission.NONE
        if by_cookie:
            return Admission.COOKIE
        return Admission.URL if by_url and request.path == "/" and request.method == "GET" else Admission.NONE

    def use(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Move the admission from the URL into a cookie; the URL's token has been used up."""
        response.set_cookie(
            cookie_name(request),
            self._session,
            path="/",
            httponly=True,
            samesite="Strict",
            max_age=_SESSION_S,
        )
        if not self._lasts:
            self._token = secrets.token_urlsafe(24)

    def is_from_our_page(self, request: web.BaseRequest) -> bool:
        """Whether a request that changes something was sent by a script of our own page."""
        origin = urlsplit(request.headers.get("Origin", ""))
        return (
            origin.scheme in ("http", "https")
            and origin.netloc == request.headers.get("Host", "")
            and request.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
            and request.headers.get(SCRIPT_HEADER) == "1"
            and request.content_type == "application/json"
        )

    def _is_ours(self, host: str) -> bool:
        """Whether the name by which we were called is ours.

        A page of ``evil.example`` is of the same origin as this one if that name is made to point to
        127.0.0.1: it could read all that its visitor's browser may see here.
        """
        try:
            parts = urlsplit(f"//{host}")
            name, _port = parts.hostname or "", parts.port  # which raises where it is no number
        except ValueError:
            return False
        if "@" in host:
            return False
        if is_loopback(self._host):
            return is_loopback(name)
        return name == self._host.lower() or is_loopback(name) or _is_address(name)

    def _same(self, given: str, secret: str) -> bool:
        """Compare in a time that depends neither on the content nor on the length of ``secret``."""
        one, other = (
            hmac.digest(self._key, text.encode(errors="replace"), "sha256") for text in (given, secret)
        )
        return hmac.compare_digest(one, other)


def cookie_name(request: web.BaseRequest) -> str:
    """The cookie of the address by which the page was called: ports share their cookies."""
    try:
        port = urlsplit(f"//{request.headers.get('Host', '')}").port
    except ValueError:
        port = None  # is refused by its name
    return f"lockguard-web-{80 if port is None else port}"


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine and cannot be reached from another."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
