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

The new connection may die as silently as the one that it replaces, while a lease waits for its renewal. So
an attempt to reconnect that gives no sign of life is given up, and the next one begins with twice the
patience. The patience is learnt from the last log-in, so that a server that is far away is not given up.
There is one attempt at a time: with two beside each other, the failure of either could end the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

from lockguard._nodes.address import Address
from lockguard._nodes.channels import Channels
from lockguard._nodes.dial import Resolver
from lockguard._nodes.login import Identity, ask
from lockguard._nodes.opening import OnLogin, Opening
from lockguard._nodes.pauses import PAUSE_FIRST_S, Pauses
from lockguard._nodes.remedies import or_check
from lockguard._nodes.wire import NotSent, OnReply, Wire
from lockguard.errors import ConfigurationError, NodeRefused

__all__ = ["AS_WITHOUT_CERTIFICATE", "Connection"]

AS_WITHOUT_CERTIFICATE = "as from a server that asks for a certificate (?ssl_certfile=FILE&ssl_keyfile=FILE)"

_LAST_TURNS_S = 0.01
"""An event loop that is ending has ended after this time."""

_NOT_YET = "not connected yet"
_AS_WITHOUT_TLS = "as from a port that speaks none: write redis:// for that"
_NO_TLS_YET = f"no answer to TLS yet, {_AS_WITHOUT_TLS}"
_NO_CREDENTIALS_YET = "credentials= has given none yet"

_DOUBT_S = 0.25
_DOUBT_TTL_SHARE = 1 / 5
"""Share of the shortest ttl: a renewal begins at a third of it and can be repeated on another connection."""

_DOUBT_MIN_S = 0.1

_PATIENCE_STEPS = 3
"""An attempt is given up after a silence of so many times the slowest step of the last log-in."""


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
        on_login: examines the server before any other command; raises if the server is unsuitable. What it
            returns is called before ``on_connect`` if this connection is kept.
        on_connect: called when commands can be sent; ``again`` for each connection but the first.
        on_refused: called when an attempt to reconnect has failed; more attempts follow.
        on_wiped: called when the server reports that its data were flushed.
        connect_timeout_s: the time limit for the TCP connection and the log-in together. When reconnecting,
            a silent attempt may be given up within this time, and the last one then has as long again.
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
        on_login: OnLogin,
        on_connect: OnConnect,
        on_refused: Callable[[], None],
        on_wiped: Callable[[], None],
        connect_timeout_s: float,
        reply_timeout_s: float,
        locate: Callable[[], Awaitable[Address]] | None = None,
        backoff_max_s: float = 1.0,
    ) -> None:
        self.address = address
        """Where the last connection was made; before the first, where it was tried last."""
        self._inbox = inbox
        self._on_message = on_message
        self._on_login = on_login
        self._on_connect = on_connect
        self._on_refused = on_refused
        self._on_wiped = on_wiped
        self._locate = locate
        self._pauses = Pauses(backoff_max_s)
        self._connect_timeout_s = connect_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._wire: Wire | None = None
        self._listener: Wire | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._coming_back: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._left: Identity | None = None  # a connection that the server may still have
        self.connected_before = False
        """Whether a connection has ever been established."""
        self._channels: Channels | None = None
        self._opening: Opening | None = None
        self._resolver = Resolver()
        self._doubt_s = _DOUBT_S
        self._slowest_s = 0.0  # of the steps of the last log-in
        self._cause = _NOT_YET
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether a command would be sent now."""
        return self._wire is not None and self._wire.open

    @property
    def _well(self) -> bool:
        return self._wire is not None and self._wire.open and not self._wire.doubted

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
        await self._share(self._begin_for_caller())

    async def _share(self, attempt: asyncio.Task[None]) -> None:
        # Waited for only: the cancellation of one caller must not end an attempt that others wait for, and a
        # close, which cancels the attempt, must not look to them as if they had been cancelled.
        await asyncio.wait([attempt])
        if not attempt.cancelled():
            attempt.result()
        if not self.ready:
            ended = "was closed while it was made"
            if not attempt.cancelled():
                ended = f"ended right behind its log-in: {self._cause}"
            name = self.address.name
            raise NodeRefused(f"the connection to {name} {ended}", node=name)

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

    def drop(self, cause: str, *, unless_to: Address | None = None) -> None:
        """End the connection, even one being opened, and reconnect to the address that ``locate`` returns.

        Args:
            cause: why, for messages.
            unless_to: a connection to this address is left alone.
        """
        if self._opening is not None and self._opening.to != unless_to:
            self._hang_up(cause, *self._opening.wires)
        if self.address != unless_to:
            self._hang_up(cause, self._wire, self._listener)

    def note_ttl(self, ttl_ms: int) -> None:
        """Note a lease's ttl, so that a dead connection is detected in time to renew the lease."""
        doubt_s = max(_DOUBT_MIN_S, ttl_ms / 1000 * _DOUBT_TTL_SHARE)
        if doubt_s < self._doubt_s:
            self._doubt_s = doubt_s
            if self._wire is not None:
                self._wire.doubt_s = doubt_s

    async def aclose(self, *, owes: Callable[[], object] = lambda: False) -> None:
        """Write what is queued, then close; no task or socket is left when this returns.

        Args:
            owes: whether something must still be sent on another connection, since this one was lost with it.
        """
        try:
            with contextlib.suppress(TimeoutError, ConfigurationError):
                async with asyncio.timeout(self._reply_timeout_s):
                    await self._finish(owes)
        finally:
            self._closed = True
            if self._again is not None:
                self._again.cancel()
            tasks = [t for t in (self._attempt, self._coming_back) if t is not None and not t.done()]
            for task in tasks:
                task.cancel()
            self._hang_up("closed", self._wire, self._listener)
        await asyncio.gather(*tasks, return_exceptions=True)
        for wire in (self._wire, self._listener):
            if wire is not None:
                await wire.gone.wait()

    async def _finish(self, owes: Callable[[], object]) -> None:
        """Wait for outstanding replies: a release that was lost, or met NOSCRIPT, must be sent again."""
        while not self._closed and (owes() or (self._wire is not None and self._wire.owed)):
            try:
                await self.connect()
                if self._wire is not None:
                    await ask(self._wire, "PING")
                if owes():  # refused for a moment
                    await asyncio.sleep(PAUSE_FIRST_S)
            except (NodeRefused, ConnectionError):  # the next connection is lost too
                await asyncio.sleep(PAUSE_FIRST_S)

    def abandon(self) -> None:
        """Close the sockets after the event loop was closed around them."""
        self._closed = True
        self._hang_up("its event loop was closed", self._wire, self._listener, *self._being_opened)

    @property
    def _being_opened(self) -> list[Wire]:
        return [] if self._opening is None else self._opening.wires

    @property
    def _tried(self) -> Address:
        return self.address if self._opening is None else self._opening.to

    def _begin_for_caller(self) -> asyncio.Task[None]:
        """The attempt that is under way, or a new one.

        Where each attempt fetches credentials, a thousand callers in turn would call their source, and have
        the server refuse its answer, as often as they can. So soon after a failure they share that.
        """
        last = self._attempt
        if last is None or self.address.credentials is None or not self._pauses.callers_rest:
            return self._begin()
        return last

    def _begin(self) -> asyncio.Task[None]:
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.create_task(
                self._connect_once(), name=f"lockguard-connect-{self.address.name}"
            )
            self._attempt.add_done_callback(self._attempted)
        return self._attempt

    def _attempted(self, attempt: asyncio.Task[None]) -> None:
        # Retrieves the exception, since no caller may be waiting for the task.
        if not attempt.cancelled() and attempt.exception() is not None:
            self._pauses.note_failed()

    def _doubted(self, wire: Wire) -> None:
        if wire is self._wire and not self._closed:
            self._pauses.note_doubted()
            self._begin_again()

    def _trusted(self, wire: Wire) -> None:
        if wire is not self._wire or self._closed:
            return
        wire.be_patient()
        if self._attempt is not None and not self._attempt.done():
            self._attempt.cancel()

    async def _connect_once(self) -> None:
        self._opening = None
        try:
            # Before the time for connecting begins: what fetches credentials has a time of its own.
            if self.address.credentials is not None:
                self._wait_for(_NO_CREDENTIALS_YET)
            logged_in = await self.address.with_login()
            self._wait_for(_NOT_YET if self.address.tls is None else _NO_TLS_YET)
            opening = await self._log_in(logged_in)
        except (OSError, TimeoutError) as exc:
            name = self._tried.name
            self._hang_up("not connected", *self._being_opened)
            self._cause = self._cause_of(exc)
            raise NodeRefused(
                f"cannot connect to Redis at {name}: {or_check(self._cause)}", node=name
            ) from exc
        except BaseException as exc:
            self._hang_up("the log-in did not finish", *self._being_opened)
            self._cause = str(exc) or "cancelled"
            raise
        self._keep(opening)
        again, self.connected_before = self.connected_before, True
        self._on_connect(again=again)

    async def _log_in(self, logged_in: Address) -> Opening:
        """Log in; when reconnecting, once more after each attempt that gave no sign of life.

        None is given up later than ``connect_timeout_s`` after the first began, and each has that time for
        itself. So the last one has as long as a first connection has, and all together at most twice as long.

        Args:
            logged_in: has the credentials; its server is the last known one.
        """
        loop, patience_s = asyncio.get_running_loop(), math.inf
        if self.connected_before:
            patience_s = max(self._doubt_s, _PATIENCE_STEPS * self._slowest_s)
        given_up_by = loop.time() + self._connect_timeout_s
        while (opening := await self._log_in_unless_silent(logged_in, patience_s, given_up_by)) is None:
            patience_s *= 2
        return opening

    async def _log_in_unless_silent(
        self, logged_in: Address, patience_s: float, given_up_by: float
    ) -> Opening | None:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._connect_timeout_s
        limit = asyncio.timeout_at(ends_at)

        def heard(allow_s: float) -> None:
            silent_at = loop.time() + patience_s + allow_s
            if not limit.expired():
                limit.reschedule(min(silent_at, ends_at) if silent_at < given_up_by else ends_at)

        try:
            async with limit:
                return await self._open(logged_in, heard)
        except TimeoutError:
            if not limit.expired() or limit.when() == ends_at:
                raise
        self._hang_up("it gave no sign of life", *self._being_opened)
        return None

    async def _open(self, logged_in: Address, heard: Callable[[float], None]) -> Opening:
        self._opening = None
        to = self.address if self._locate is None else await self._locate()
        if not self.connected_before:
            self.address = to
        self._opening = opening = Opening(
            to,
            inbox=self._inbox,
            resolver=self._resolver,
            new_wire=self._new_wire,
            on_login=self._on_login,
            on_push=self._pushed,
            on_heard=heard,
            on_known=self._known_as,
        )
        login = replace(to, username=logged_in.username, password=logged_in.password)
        await opening.log_in(login, kills=() if self._left is None else (self._left,))
        return opening

    def _keep(self, opening: Opening) -> None:
        doubted, self._wire = (self._wire, self._listener), None
        self._hang_up("no reply, while the server answers on another connection", *doubted)
        assert opening.wire is not None
        self._wire, self._listener, self.address = opening.wire, opening.listener, opening.to
        self._opening, self._slowest_s = None, opening.slowest_s
        self._pauses.note_kept()
        self._wire.doubt_s = self._doubt_s
        self._channels = Channels(self._listener or self._wire)
        if opening.on_kept is not None:
            opening.on_kept()

    def _known_as(self, identity: Identity | None) -> None:
        self._left = identity

    def _new_wire(self, on_push: Callable[[Any], None], *, listens: bool) -> Wire:
        return Wire(
            on_push=on_push,
            on_end=self._ended,
            on_doubt=self._doubted,
            on_trust=self._trusted,
            reply_timeout_s=self._reply_timeout_s,
            listens=listens,
        )

    def _wait_for(self, cause: str) -> None:
        """Note what callers are told whose own deadline passes before the first attempt ends."""
        if not self.connected_before and self._cause in (_NOT_YET, _NO_CREDENTIALS_YET):
            self._cause = cause

    def _cause_of(self, exc: Exception) -> str:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"{exc}; give the authority that signed its certificate as ?ssl_ca_certs=FILE"
        if self.address.tls is not None and isinstance(exc, TimeoutError):
            return f"no answer to TLS within {self._connect_timeout_s:g} s, {_AS_WITHOUT_TLS}"
        if self.address.tls is not None and not isinstance(exc, ConnectionRefusedError):
            # TLS 1.3 reports this after the handshake, and a reset may overtake the alert with the reason.
            return f"{exc}, {AS_WITHOUT_CERTIFICATE}"
        if self._resolver.waits:
            return f"nobody told the address of {self.address.host!r} within {self._connect_timeout_s:g} s"
        return str(exc) or f"no answer within {self._connect_timeout_s:g} s"

    def _pushed(self, message: list[Any] | Exception) -> None:
        if isinstance(message, Exception):
            if self._channels is not None:
                self._channels.refused(message)
        elif message[0] in {b"message", b"smessage"}:
            self._on_message(message[2])
        elif message[0] == b"sunsubscribe" and self._channels is not None and message[1] is not None:
            self._channels.forget(message[1].decode(errors="replace"))
        elif message[0] == b"invalidate":
            self._on_wiped()

    def _ended(self, ended: Wire, cause: str) -> None:
        """End the other wire when one has ended; both reconnect together."""
        if self._opening is not None:
            self._opening.ended(ended, cause)
        if self._wire is None or self._closed or ended not in (self._wire, self._listener):
            return
        wire, listener, self._wire, self._listener = self._wire, self._listener, None, None
        self._cause = cause
        self._hang_up(cause, wire, listener)
        self._pauses.note_doubted()
        if self._again is None and (self._coming_back is None or self._coming_back.done()):
            # Not in this iteration of the loop: it may be one of the last, after asyncio.run has cancelled
            # all tasks, and a task started then would be destroyed unfinished. A timer ends with its loop.
            self._again = asyncio.get_running_loop().call_later(_LAST_TURNS_S, self._begin_again)

    def _begin_again(self) -> None:
        self._again = None
        if self._closed or self._well or not (self._coming_back is None or self._coming_back.done()):
            return
        self._coming_back = asyncio.create_task(
            self._come_back(), name=f"lockguard-connect-again-{self.address.name}"
        )

    @staticmethod
    def _hang_up(cause: str, *wires: Wire | None) -> None:
        for wire in wires:
            if wire is not None:
                wire.end(cause)

    async def _come_back(self) -> None:
        failures = self._pauses.short_lived
        await self._pauses.after(failures)
        while not self._well and not self._closed:
            try:
                await self._share(self._begin())
            except (NodeRefused, ConfigurationError):
                self._on_refused()
                failures += 1
                await self._pauses.after(failures)
