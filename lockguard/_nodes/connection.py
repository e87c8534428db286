"""Keeps a process connected to one Redis server: logs in, subscribes and reconnects.

Nothing is sent twice here. A command in flight when the connection ends is reported as an unknown outcome;
only the caller knows how to repeat it idempotently (with the same grant).

On one connection the server executes commands in the order we sent them, so a release queued behind a
cancelled acquire undoes it. Between an old connection and a *new* one there is no such order: bytes of the
old one may still be in the server's socket buffer and be executed after the new one's first commands. An
acquire executed after its own release would keep the lock closed for a whole ttl without a holder. So on each
reconnect the old connection is first killed by its id and address, if the server allows that.

A connection may be dead unnoticed, because a NAT or a firewall has dropped it. That looks the same as a slow
server, so the connection is not ended early. When replies have been outstanding for a while, a second
connection is opened beside the first, and the first of the two to deliver is kept. A server that is merely
slow delivers the outstanding replies before it has answered the several commands of a log-in.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

from lockguard._nodes.address import Address
from lockguard._nodes.channels import Channels
from lockguard._nodes.dial import Resolver, first_of, keep_alive
from lockguard._nodes.login import Identity, LogIn, ask
from lockguard._nodes.wire import NotSent, OnReply, Wire
from lockguard.errors import ConfigurationError, NodeRefused

__all__ = ["AS_WITHOUT_CERTIFICATE", "Connection"]

AS_WITHOUT_CERTIFICATE = "as from a server that asks for a certificate (?ssl_certfile=FILE&ssl_keyfile=FILE)"

_BACKOFF_FIRST_S = 0.05
"""The first pause between attempts to reconnect, before jitter of up to a half; each is twice the last."""

_FAILURES_COUNTED = 10
"""After so many the pause grows no more."""

_LAST_TURNS_S = 0.01
"""An event loop that is ending has ended after this time."""

_NOT_YET = "not connected yet"
_AS_WITHOUT_TLS = "as from a port that speaks none: write redis:// for that"
_NO_TLS_YET = f"no answer to TLS yet, {_AS_WITHOUT_TLS}"
_NO_CREDENTIALS_YET = "credentials= has given none yet"
_RESP3 = 3

_DOUBT_S = 0.25
_DOUBT_TTL_SHARE = 1 / 5
"""Share of the shortest ttl: a renewal begins at a third of it and can be repeated on another connection."""

_DOUBT_MIN_S = 0.1


class OnConnect(Protocol):
    """A callback for when commands can be sent."""

    def __call__(self, *, again: bool) -> None:
        """``again``: whether this is a reconnect and not the first connection."""


class Connection:
    """A wire that is replaced when it breaks.

    Args:
        address: the server.
        inbox: the channel on which this process is woken.
        on_message: called with the payload of each message on the inbox.
        on_login: examines the server before any other command; raises if the server is unsuitable.
        on_connect: called when commands can be sent; ``again`` for each connection but the first.
        on_refused: called when an attempt to reconnect has failed; more attempts follow.
        on_wiped: called when the server reports that its data were flushed.
        connect_timeout_s: the time limit for the TCP connection and the log-in together.
        reply_timeout_s: how long replies may be outstanding without a byte arriving.
        locate: returns the address before each attempt, for a server that moves.
        backoff_max_s: the longest backoff between attempts to reconnect, before jitter.
    """

    def __init__(
        self,
        address: Address,
        *,
        inbox: str,
        on_message: Callable[[bytes], None],
        on_login: Callable[[Wire], Awaitable[None]],
        on_connect: OnConnect,
        on_refused: Callable[[], None],
        on_wiped: Callable[[], None],
        connect_timeout_s: float,
        reply_timeout_s: float,
        locate: Callable[[], Awaitable[Address]] | None = None,
        backoff_max_s: float = 1.0,
    ) -> None:
        self.address = address
        self._inbox = inbox
        self._on_message = on_message
        self._on_login = on_login
        self._on_connect = on_connect
        self._on_refused = on_refused
        self._on_wiped = on_wiped
        self._locate = locate
        self._backoff_max_s = backoff_max_s
        self._connect_timeout_s = connect_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._wire: Wire | None = None
        self._listener: Wire | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._coming_back: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._subscribed: asyncio.Future[None] | None = None
        self._identity: Identity | None = None
        self.connected_before = False
        """Whether a connection has ever been established."""
        self._channels: Channels | None = None
        self._opening: list[Wire] = []
        self._resolver = Resolver()
        self._doubt_s = _DOUBT_S
        self._failures = 0
        self._rests_until = 0.0
        self._cause = _NOT_YET
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether a command would be sent now."""
        return self._wire is not None and self._wire.open

    @property
    def comes_back(self) -> bool:
        """Whether a reconnect is in progress, or will follow when this connection ends."""
        return self.connected_before and not self._closed

    async def connect(self) -> None:
        """Connect unless connected; concurrent callers share one attempt.

        Raises:
            NodeRefused: the server cannot be reached, or the connection is closed.
            ConfigurationError: the server refused the log-in.
        """
        if self.ready:
            return
        if self._closed:
            raise NodeRefused(f"the connection to {self.address.name} is closed", node=self.address.name)
        # Waited for only: the cancellation of one caller must not end an attempt that others wait for, and a
        # close, which cancels the attempt, must not look to them as if they had been cancelled.
        attempt = self._begin_for_caller()
        await asyncio.wait([attempt])
        if not attempt.cancelled():
            attempt.result()
        elif not self.ready:
            raise NodeRefused(
                f"the connection to {self.address.name} was closed while it was made", node=self.address.name
            )

    def send(self, on_reply: OnReply, *command: str | bytes | int, lone: bool = False) -> None:
        """See :meth:`Wire.send`; without a connection ``on_reply`` gets :class:`NotSent` at once."""
        if self._wire is None:
            on_reply(NotSent(self._cause))
        else:
            self._wire.send(on_reply, *command, lone=lone)

    def send_packed(self, on_reply: OnReply, command: bytes, *, lone: bool = False) -> None:
        """See :meth:`Wire.send_packed`; without a connection ``on_reply`` gets :class:`NotSent` at once."""
        if self._wire is None:
            on_reply(NotSent(self._cause))
        else:
            self._wire.send_packed(on_reply, command, lone=lone)

    def allow_silence(self, seconds: float) -> None:
        """See :meth:`Wire.allow_silence`."""
        if self._wire is not None:
            self._wire.allow_silence(seconds)

    def listen(self, channel: str) -> None:
        """Subscribe to a shard channel until the connection ends."""
        if self._channels is not None and self.ready:
            self._channels.add(channel)

    def drop(self, cause: str) -> None:
        """End the connection, even one being opened, and reconnect to the address that ``locate`` returns."""
        self._hang_up(cause, self._wire, self._listener, *self._opening)

    def note_ttl(self, ttl_ms: int) -> None:
        """Note a lease's ttl, so that a dead connection is detected in time to renew the lease."""
        doubt_s = max(_DOUBT_MIN_S, ttl_ms / 1000 * _DOUBT_TTL_SHARE)
        if doubt_s < self._doubt_s:
            self._doubt_s = doubt_s
            if self._wire is not None:
                self._wire.doubt_s = min(self._wire.doubt_s, doubt_s)

    async def aclose(self) -> None:
        """Write what is queued, then close; no task or socket is left when this returns."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        tasks = [t for t in (self._attempt, self._coming_back) if t is not None and not t.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if (wire := self._wire) is not None:
            try:
                # Wait for outstanding replies: after NOSCRIPT a release must be sent again, as text.
                with contextlib.suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(self._reply_timeout_s):
                        while wire.owed:
                            await ask(wire, "PING")
            finally:
                self._hang_up("closed", wire, self._listener)
            await wire.gone.wait()
            if self._listener is not None:
                await self._listener.gone.wait()

    def abandon(self) -> None:
        """Close the sockets after the event loop was closed around them."""
        self._closed = True
        self._hang_up("its event loop was closed", self._wire, self._listener, *self._opening)

    def _begin_for_caller(self) -> asyncio.Task[None]:
        """The attempt that is under way, or a new one.

        Where each attempt fetches credentials, a thousand callers in turn would call their source, and have
        the server refuse its answer, as often as they can. So soon after a failure they share that.
        """
        last = self._attempt
        if last is None or not self._failures or self.address.credentials is None:
            return self._begin()
        return last if asyncio.get_running_loop().time() < self._rests_until else self._begin()

    def _begin(self) -> asyncio.Task[None]:
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.create_task(
                self._connect_once(), name=f"lockguard-connect-{self.address.name}"
            )
            self._attempt.add_done_callback(self._attempted)
        return self._attempt

    def _attempted(self, attempt: asyncio.Task[None]) -> None:
        # Retrieves the exception, since no caller may be waiting for the task.
        if attempt.cancelled() or attempt.exception() is None:
            self._failures = 0
            return
        # Never longer than the shortest pause of a reconnect, which is not to be kept waiting here.
        pause_s = min(_BACKOFF_FIRST_S * 2**self._failures, self._backoff_max_s) / 2
        self._failures = min(self._failures + 1, _FAILURES_COUNTED)
        self._rests_until = attempt.get_loop().time() + pause_s

    def _doubted(self, wire: Wire) -> None:
        if wire is self._wire and not self._closed:
            self._begin()

    def _trusted(self, wire: Wire) -> None:
        if wire is not self._wire or self._closed:
            return
        # The server was only slow, so it is given more time from now on.
        wire.doubt_s = min(2 * wire.doubt_s, self._reply_timeout_s)
        if self._attempt is not None and not self._attempt.done():
            self._attempt.cancel()

    async def _connect_once(self) -> None:
        opened = self._opening = []
        try:
            # Before the time for connecting begins: what fetches credentials has a time of its own.
            if self.address.credentials is not None:
                self._wait_for(_NO_CREDENTIALS_YET)
            logged_in = await self.address.with_login()
            self._wait_for(_NOT_YET if self.address.tls is None else _NO_TLS_YET)
            async with asyncio.timeout(self._connect_timeout_s):
                wire, listener = await self._open_all(opened, logged_in)
        except (OSError, TimeoutError) as exc:
            self._hang_up("not connected", *opened)
            self._cause = self._cause_of(exc)
            raise NodeRefused(
                f"cannot connect to Redis at {self.address.name}: {self._cause};"
                " check the URL and that the server runs",
                node=self.address.name,
            ) from exc
        except BaseException as exc:
            self._hang_up("the log-in did not finish", *opened)
            self._cause = str(exc) or "cancelled"
            raise
        doubted, self._wire = (self._wire, self._listener), None
        self._hang_up("no reply, while the server answers on another connection", *doubted)
        self._wire, self._listener = wire, listener
        wire.doubt_s = self._doubt_s
        self._channels = Channels(listener or wire)
        again, self.connected_before = self.connected_before, True
        self._on_connect(again=again)

    def _wait_for(self, cause: str) -> None:
        """Note what callers are told whose own deadline passes before the first attempt ends."""
        if not self.connected_before and self._cause in (_NOT_YET, _NO_CREDENTIALS_YET):
            self._cause = cause

    def _cause_of(self, exc: Exception) -> str:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"{exc}: give the authority that signed its certificate as ?ssl_ca_certs=FILE"
        if self.address.tls is not None and isinstance(exc, TimeoutError):
            return f"no answer to TLS within {self._connect_timeout_s:g} s, {_AS_WITHOUT_TLS}"
        if self.address.tls is not None and not isinstance(exc, ConnectionRefusedError):
            # TLS 1.3 reports this after the handshake, and a reset may overtake the alert with the reason.
            return f"{exc}, {AS_WITHOUT_CERTIFICATE}"
        if self._resolver.waits:
            return f"nobody told the address of {self.address.host!r} within {self._connect_timeout_s:g} s"
        return str(exc) or f"no answer within {self._connect_timeout_s:g} s"

    async def _open_all(self, opened: list[Wire], logged_in: Address) -> tuple[Wire, Wire | None]:
        """Open one wire, and with RESP2, which cannot mix messages and replies, a second one to listen.

        Args:
            opened: gets each wire.
            logged_in: has the credentials; its server is the last known one.
        """
        if self._locate is not None:
            self.address = await self._locate()
        to = replace(self.address, username=logged_in.username, password=logged_in.password)
        log_in = LogIn(to, self._inbox)
        wire = await self._open(opened)
        protocol = await log_in.authenticate(wire)
        await self._on_login(wire)
        log_in.load_scripts(wire)
        log_in.kill_predecessor(wire, self._identity, self._known_as)
        self._subscribed = asyncio.get_running_loop().create_future()
        if protocol == _RESP3:
            log_in.track_wipes(wire)
            await log_in.subscribe(wire, self._subscribed, protocol=protocol)
            return wire, None
        listener = await self._open(opened, listens=True)
        await log_in.authenticate(listener)
        await log_in.subscribe(listener, self._subscribed, protocol=protocol)
        return wire, listener

    def _known_as(self, identity: Identity | None) -> None:
        self._identity = identity

    async def _open(self, opened: list[Wire], *, listens: bool = False) -> Wire:
        loop, to = asyncio.get_running_loop(), self.address

        def new_wire() -> Wire:
            wire = Wire(
                on_push=self._pushed,
                on_end=self._ended,
                on_doubt=self._doubted,
                on_trust=self._trusted,
                reply_timeout_s=self._reply_timeout_s,
                listens=listens,
            )
            opened.append(wire)
            return wire

        if to.path:
            _, wire = await loop.create_unix_connection(new_wire, to.path)
            return wire

        async def connect(address: str) -> Wire:
            server_hostname = None if to.tls is None else to.host
            transport, wire = await loop.create_connection(
                new_wire, address, to.port, ssl=to.tls, server_hostname=server_hostname
            )
            keep_alive(transport)
            return wire

        before = len(opened)
        wire = await first_of(await self._resolver.addresses(to.host, to.port), connect)
        self._hang_up("another address answered first", *(one for one in opened[before:] if one is not wire))
        return wire

    def _pushed(self, message: list[Any] | Exception) -> None:
        subscribed = self._subscribed
        if isinstance(message, Exception):
            if subscribed is not None and not subscribed.done():
                subscribed.set_exception(message)
            elif self._channels is not None:
                self._channels.refused(message)
        elif message[0] in {b"message", b"smessage"}:
            self._on_message(message[2])
        elif message[0] == b"sunsubscribe" and self._channels is not None and message[1] is not None:
            self._channels.forget(message[1].decode(errors="replace"))
        elif message[0] == b"invalidate":
            self._on_wiped()
        elif message[0] == b"subscribe" and subscribed is not None and not subscribed.done():
            subscribed.set_result(None)

    def _ended(self, ended: Wire, cause: str) -> None:
        """End the other wire when one has ended; both reconnect together."""
        if self._wire is None or self._closed or ended not in (self._wire, self._listener):
            return
        wire, listener, self._wire, self._listener = self._wire, self._listener, None, None
        self._cause = cause
        self._hang_up(cause, wire, listener)
        if self._again is None and (self._coming_back is None or self._coming_back.done()):
            # Not in this iteration of the loop: it may be one of the last, after asyncio.run has cancelled
            # all tasks, and a task started then would be destroyed unfinished. A timer ends with its loop.
            self._again = asyncio.get_running_loop().call_later(_LAST_TURNS_S, self._begin_again)

    def _begin_again(self) -> None:
        self._again = None
        if not self._closed and not self.ready:
            self._coming_back = asyncio.create_task(
                self._come_back(), name=f"lockguard-connect-again-{self.address.name}"
            )

    @staticmethod
    def _hang_up(cause: str, *wires: Wire | None) -> None:
        for wire in wires:
            if wire is not None:
                wire.end(cause)

    async def _come_back(self) -> None:
        backoff_s = _BACKOFF_FIRST_S
        while not self.ready and not self._closed:
            try:
                await self.connect()
            except (NodeRefused, ConfigurationError):
                self._on_refused()
                # Jitter, so that a hundred bots do not all reconnect to a restarted server at once.
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
                backoff_s = min(backoff_s * 2, self._backoff_max_s)
