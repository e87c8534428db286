"""One attempt to connect to a server and to log in.

A connection may die silently while it is being made, as any other may. A time limit for the whole log-in
cannot be short, because one to another continent takes several long round trips. A lease whose renewal waits
for it may not have that long. So each step is reported, and ``connection.py`` gives up what says nothing.

An attempt fails as soon as one of its connections ends, wherever the other one is in its log-in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from lockguard._clock import SYSTEM_CLOCK
from lockguard._nodes.address import Address
from lockguard._nodes.dial import STAGGER_S, Resolver, first_of, keep_alive
from lockguard._nodes.login import Identity, LogIn
from lockguard._nodes.wire import Wire

__all__ = ["NewWire", "OnLogin", "Opening"]

_RESP3 = 3

OnLogin = Callable[[Wire, Address], Awaitable[Callable[[], None] | None]]
"""Examines the server at this address before any other command, and raises if it is unsuitable. What it
returns is called if this connection is kept."""


class NewWire(Protocol):
    """Makes a wire."""

    def __call__(self, on_push: Callable[[Any], None], *, listens: bool) -> Wire:
        """See :class:`Wire`."""
        ...


class Opening:
    """One attempt.

    Args:
        to: the server's address.
        inbox: the channel to subscribe to.
        resolver: looks up the server's name.
        new_wire: makes each wire.
        on_login: examines the server.
        on_push: called with each message that is no part of the log-in.
        on_heard: called at the beginning and at each sign of life, with the seconds that the next may take
            longer than any other.
        on_known: called once with the identity of this connection, when those that it kills have ended.

    Attributes:
        to: the server's address.
        wires: all that were opened.
        wire: carries the commands, once it is open.
        listener: carries the messages, with RESP2, which cannot mix them with replies.
        on_kept: to be called if this connection is kept.
        slowest_s: the longest time between two signs of life, in seconds.
    """

    def __init__(
        self,
        to: Address,
        *,
        inbox: str,
        resolver: Resolver,
        new_wire: NewWire,
        on_login: OnLogin,
        on_push: Callable[[Any], None],
        on_heard: Callable[[float], None],
        on_known: Callable[[Identity | None], None],
    ) -> None:
        self.to = to
        self.wires: list[Wire] = []
        self.wire: Wire | None = None
        self.listener: Wire | None = None
        self.on_kept: Callable[[], None] | None = None
        self.slowest_s = 0.0
        self._heard_at = SYSTEM_CLOCK.now()
        self._inbox = inbox
        self._resolver = resolver
        self._new_wire = new_wire
        self._on_login = on_login
        self._on_push = on_push
        self._on_heard = on_heard
        self._on_known = on_known
        self._subscribed: asyncio.Future[None] | None = None

    async def log_in(self, login: Address, *, kills: tuple[Identity, ...]) -> None:
        """Connect and log in.

        Args:
            login: the address with the credentials.
            kills: connections of before, which the server is told to end.

        Raises:
            NodeRefused: the server is not ready.
            ConfigurationError: the server refused the log-in, or is unsuitable.
            OSError: the server cannot be reached, or a connection ended.
        """
        self._heard()
        log_in = LogIn(login, self._inbox)
        self.wire = wire = await self._open(login)
        protocol = await log_in.authenticate(wire)
        self._heard()
        self.on_kept = await self._on_login(wire, self.to)
        self._heard()
        log_in.load_scripts(wire)
        log_in.kill(wire, *kills)
        log_in.identify(wire, self._on_known)
        self._subscribed = asyncio.get_running_loop().create_future()
        if protocol == _RESP3:
            log_in.track_wipes(wire)
            await log_in.subscribe(wire, self._subscribed, protocol=protocol)
        else:
            self.listener = listener = await self._open(login, listens=True)
            await log_in.authenticate(listener)
            self._heard()
            await log_in.subscribe(listener, self._subscribed, protocol=protocol)
        self._heard()
        for one in (wire, self.listener):
            if one is not None and not one.open:  # ended since its last answer came
                raise ConnectionError("the connection ended in its log-in")

    def ended(self, ended: Wire, cause: str) -> None:
        """End the attempt if the wire that ended is one of its two."""
        if ended not in (self.wire, self.listener):  # one to an address that was too slow
            return
        for wire in self.wires:
            wire.end(cause)
        subscribed = self._subscribed
        if subscribed is not None and not subscribed.done():
            subscribed.set_exception(ConnectionError(cause))
            subscribed.exception()  # retrieved, since nobody may have come so far as to wait for it

    def _heard(self, *, allow_s: float = 0.0) -> None:
        now = SYSTEM_CLOCK.now()
        self.slowest_s = max(self.slowest_s, now - self._heard_at)
        self._heard_at = now
        self._on_heard(allow_s)

    async def _open(self, to: Address, *, listens: bool = False) -> Wire:
        loop = asyncio.get_running_loop()

        def new_wire() -> Wire:
            wire = self._new_wire(self._pushed, listens=listens)
            self.wires.append(wire)
            return wire

        if to.path:
            _, wire = await loop.create_unix_connection(new_wire, to.path)
            return wire

        async def connect(place: str) -> Wire:
            transport, wire = await loop.create_connection(new_wire, place, to.port)
            keep_alive(transport)
            if to.tls is not None:
                # Not with the connection: no socket would be known yet that could be closed while TLS begins.
                self._heard()
                over = await loop.start_tls(transport, wire, to.tls, server_hostname=to.host)
                if over is None:
                    raise ConnectionError("the connection ended as TLS began")
                wire.connection_made(over)
            return wire

        before, places = len(self.wires), await self._resolver.addresses(to.host, to.port)
        self._heard(allow_s=STAGGER_S * (len(places) - 1))  # the last place is tried so much later
        wire = await first_of(places, connect)
        self._heard()
        for other in self.wires[before:]:
            if other is not wire:
                other.end("another address answered first")
        return wire

    def _pushed(self, message: list[Any] | Exception) -> None:
        subscribed = self._subscribed
        if subscribed is None or subscribed.done():
            self._on_push(message)
        elif isinstance(message, Exception):
            subscribed.set_exception(message)
        elif message[0] == b"subscribe":
            subscribed.set_result(None)
        else:
            self._on_push(message)
