"""Free TCP ports on the loopback address."""

from __future__ import annotations

import errno
import secrets
import socket
from urllib.parse import urlsplit, urlunsplit

from lockguard.errors import ConfigurationError

__all__ = ["LOOPBACK", "PORT_ATTEMPTS_MAX", "check_free", "free_port", "url_at"]

LOOPBACK = "127.0.0.1"
PORT_ATTEMPTS_MAX = 8
"""How often to retry: another process may take a free port before the server binds it."""

# Below the range of outgoing connections, which would take our ports at random; a cluster's bus, at
# port + 10,000, still fits.
_FIRST = 20_000
_LAST = 32_000
_LOOKS_MAX = 200


def free_port() -> int:
    """A port on the loopback address on which no process listens now.

    Raises:
        ConfigurationError: no free port was found.
    """
    for _ in range(_LOOKS_MAX):
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        if _is_free(port):
            return port
    raise ConfigurationError(f"no free port between {_FIRST} and {_LAST} on {LOOPBACK}: end what takes them")


def check_free(port: int) -> None:
    """Refuse a port on which a process listens.

    Raises:
        ConfigurationError: the port is taken, or the number is not a port.
    """
    if not 0 < port < 65_536:
        raise ConfigurationError(
            f"port {port} does not exist: give one between 1 and 65535, or 0 for a free one"
        )
    if not _is_free(port):
        raise ConfigurationError(
            f"port {port} on {LOOPBACK} is in use: end what listens there, or give port 0 for a free one"
        )


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: a port with connections that linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except PermissionError as error:
            raise ConfigurationError(f"port {port} is for root only: give one above 1023") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def url_at(port: int, url: str) -> str:
    """The same URL, with this port of the loopback address for its host and port."""
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}{at}{LOOPBACK}:{port}"))
