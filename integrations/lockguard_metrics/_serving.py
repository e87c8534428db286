"""Shows a registry to Prometheus, by the server of prometheus_client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, start_http_server

from lockguard.errors import ConfigurationError

__all__ = ["LOOPBACK", "parse_address", "serving"]

LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+):)?(?P<port>[0-9]{1,5})")
_PORT_MAX = 65_535


def parse_address(text: str, name: str) -> tuple[str, int]:
    """The host and the port of ``[HOST:]PORT``; the host is the loopback if none is named.

    Args:
        text: such as ``9464``, ``0.0.0.0:9464`` or ``[::1]:9464``; port 0 is any free one.
        name: the option's name, for the error.

    Raises:
        ConfigurationError: it is no such address.
    """
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or int(found["port"]) > _PORT_MAX:
        raise ConfigurationError(f"{name} is no [HOST:]PORT; write a port such as 9464, or 0.0.0.0:9464")
    return (found["host"] or LOOPBACK).strip("[]"), int(found["port"])


@asynccontextmanager
async def serving(registry: CollectorRegistry, host: str, port: int, *, name: str) -> AsyncIterator[str]:
    """Serve a registry for the length of the body; gives the URL.

    Args:
        registry: what to show.
        host: where to listen.
        port: 0 for any free one.
        name: the option that named the address, for the error.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as exc:
        why = exc.strerror or "no such host"
        raise ConfigurationError(f"{name} {host}:{port} cannot be used: {why}; name another port") from exc
    shown = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        # Not in the event loop: a scrape that is under way may need it.
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await asyncio.to_thread(thread.join)
