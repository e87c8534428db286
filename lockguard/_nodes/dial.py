"""Resolves a server's name and connects to the first of its addresses that answers.

asyncio resolves names in the process's shared thread pool, and waits for its threads at exit. A hanging
resolver would fill that pool, one thread for each attempt to connect, and then block all other work that the
bot does in threads, as well as its exit. Here a hanging name costs one daemon thread, which delays no exit.

The first of a name's addresses may be dead. So the addresses are tried a quarter of a second apart, and the
first that answers is used (RFC 8305). uvloop's ``create_connection`` cannot do that.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from lockguard.errors import ConfigurationError

__all__ = ["STAGGER_S", "Resolver", "close_abandoned", "first_of", "keep_alive"]

C = TypeVar("C")
T = TypeVar("T")

STAGGER_S = 0.25

_IDLE_S = 15
_PROBE_S = 5
_PROBES_MAX = 3


class Resolver:
    """Resolves names; concurrent callers for the same name share one lookup."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[list[str]] | None = None
        self._question: tuple[str, int] | None = None

    @property
    def waits(self) -> bool:
        """Whether a lookup is in progress."""
        return self._answer is not None and not self._answer.done()

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, alternating between IPv6 and IPv4 if it has both.

        Raises:
            OSError: the name cannot be resolved.
        """
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host.partition("%")[0])
            return [host]
        if not self.waits or self._question != (host, port):
            self._question = (host, port)
            self._answer = _look_up(host, port)
        assert self._answer is not None
        # Shielded: a caller that gives up leaves the lookup to the next caller.
        return await asyncio.shield(self._answer)


def _look_up(host: str, port: int) -> asyncio.Future[list[str]]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()
    answer.add_done_callback(
        lambda _: answer.cancelled() or answer.exception()
    )  # retrieved, since no caller may still be waiting

    def tell(found: list[str] | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def work() -> None:
        found: list[str] | OSError
        try:
            found = _in_turns(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as exc:
            found = exc
        except ValueError as exc:  # a label that is empty or longer than 63 characters
            found = OSError(f"{host!r} is not a name that can be looked up: {exc}")
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=work, name=f"lockguard-resolve-{host}", daemon=True).start()
    return answer


def _in_turns(infos: Sequence[tuple[Any, ...]]) -> list[str]:
    families: dict[Any, list[str]] = {}
    for family, _, _, _, (address, *_) in infos:
        families.setdefault(family, []).append(address)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*families.values()))
    return list(dict.fromkeys(address for address in turns if address is not None))


async def first_of(candidates: Sequence[C], connect: Callable[[C], Awaitable[T]]) -> T:
    """Connect to each candidate, the next after a short delay or a failure; returns the first success.

    Raises:
        ConfigurationError: all attempts failed, and each of them with this error.
        Exception: all attempts failed: the error of the first to fail in another way, which may pass. The
            refusal of another candidate, if there is one, is its ``__cause__``.
    """
    if len(candidates) == 1:
        return await connect(candidates[0])
    untried, trying, faults = list(candidates), list[asyncio.Task[T]](), list[BaseException]()
    try:
        while untried or trying:
            if untried:
                trying.append(asyncio.ensure_future(connect(untried.pop(0))))
            patience_s = STAGGER_S if untried else None
            await asyncio.wait(trying, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            # In the candidates' order, not in that of a set: of two that are done the preferred one is used.
            done, trying = [one for one in trying if one.done()], [one for one in trying if not one.done()]
            for attempt in done:
                if (fault := attempt.exception()) is None:
                    return attempt.result()
                faults.append(fault)
    finally:
        for attempt in trying:
            attempt.cancel()
        await asyncio.gather(*trying, return_exceptions=True)
    refusal = next((fault for fault in faults if isinstance(fault, ConfigurationError)), None)
    passing = next((fault for fault in faults if not isinstance(fault, ConfigurationError)), None)
    if passing is None or refusal is None:
        raise faults[0]
    raise passing from refusal


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Have the kernel probe an idle TCP connection, and end it when the probes are not answered.

    A NAT or a firewall silently drops a connection that has been idle for a while.
    """
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family == getattr(socket, "AF_UNIX", None):
        return
    idle = getattr(socket, "TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE", None)
    with contextlib.suppress(OSError):  # the connection has already ended
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (idle, _IDLE_S),
            (getattr(socket, "TCP_KEEPINTVL", None), _PROBE_S),
            (getattr(socket, "TCP_KEEPCNT", None), _PROBES_MAX),
        ):
            if option is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)


def close_abandoned(transport: asyncio.BaseTransport | None) -> None:
    """Close the socket of a transport whose event loop was closed around it.

    Its own ``abort()`` needs the loop: without this, the socket would stay open until the transport is
    collected, with a warning. uvloop has closed it with the loop.
    """
    # Private names, of asyncio's transports in Python 3.11 to 3.13. There is no public way.
    inner: Any = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None) or transport
    if getattr(inner, "_sock", None) is not None and hasattr(inner, "_call_connection_lost"):
        inner._closing = True  # or a stream over it would warn
        with contextlib.suppress(RuntimeError):  # what it would schedule; the socket is closed all the same
            inner._call_connection_lost(None)
