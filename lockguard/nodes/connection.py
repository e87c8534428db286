"""Staying connected to one Redis: log in, subscribe, come back.

Nothing is sent twice here. A command that was in flight when the connection ended is reported as unknown;
only the caller can know how to ask again without doing it twice (with the same grant).

On one connection the server runs commands in the order we sent them, which is what makes an undo work that
is queued behind a cancelled acquire. A *new* connection has no such order with the old one: bytes of the
old one may still lie in the server's socket buffer and be executed after the new one's first commands, and
an acquire executed behind its own undo would hold the lock for a whole ttl with no holder. So on each
reconnect the old connection is killed by its id and address first, where the server allows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import hiredis

from lockguard.errors import ConfigurationError, NodeRefused
from lockguard.nodes.address import Address
from lockguard.nodes.wire import NotSent, Reply, Slot, Wire

__all__ = ["Connection"]

_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0


class Connection:
    """A wire that is remade when it breaks.

    Args:
        address: the server.
        inbox: the channel on which this process is woken.
        on_message: called with the payload of each message on the inbox.
        on_reconnect: called after each connection but the first.
        connect_timeout_s: for the TCP connection and the log-in together.
        reply_timeout_s: how long a server may owe a reply without a byte.
    """

    def __init__(
        self,
        address: Address,
        *,
        inbox: str,
        on_message: Callable[[bytes], None],
        on_reconnect: Callable[[], None],
        connect_timeout_s: float,
        reply_timeout_s: float,
    ) -> None:
        self.address = address
        self.inbox = inbox
        self._on_message = on_message
        self._on_reconnect = on_reconnect
        self._connect_timeout_s = connect_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._wire: Wire | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._coming_back: asyncio.Task[None] | None = None
        self._subscribed: asyncio.Future[None] | None = None
        self._previous: tuple[str, str] | None = None
        self._cause = "not connected yet"
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether commands go out now."""
        return self._wire is not None and self._wire.open

    async def connect(self) -> None:
        """Connect unless connected; concurrent callers share one attempt.

        Raises:
            NodeRefused: it cannot be reached.
            ConfigurationError: it refuses the log-in.
        """
        if self.ready:
            return
        if self._closed:
            raise NodeRefused(f"the connection to {self.address.name} is closed", node=self.address.name)
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.create_task(
                self._connect_once(), name=f"lockguard-connect-{self.address.name}"
            )
        # Shielded: one caller's cancellation must not end the attempt that others wait for.
        await asyncio.shield(self._attempt)

    def send(self, slot: Slot, *command: str | bytes | int) -> None:
        """Queue a command; without a connection the slot is told so at once."""
        if self._wire is None:
            slot(NotSent(self._cause))
        else:
            self._wire.send(slot, *command)

    def flush(self) -> None:
        """Write what is queued now."""
        if self._wire is not None:
            self._wire.flush()

    async def aclose(self) -> None:
        """Write what is queued, then close. Nothing of it is left when this returns."""
        self._closed = True
        tasks = [t for t in (self._attempt, self._coming_back) if t is not None and not t.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._wire is not None:
            wire, self._wire = self._wire, None
            try:
                # A PING behind everything else: when it is answered, all of it was received.
                with contextlib.suppress(TimeoutError, ConnectionError):
                    await asyncio.wait_for(_ask(wire, "PING"), self._reply_timeout_s)
            finally:
                wire.end("closed")
            await wire.gone.wait()

    async def _connect_once(self) -> None:
        loop = asyncio.get_running_loop()
        again = self._previous is not None
        wire = Wire(on_push=self._pushed, on_end=self._ended, reply_timeout_s=self._reply_timeout_s)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if self.address.path:
                    await loop.create_unix_connection(lambda: wire, self.address.path)
                else:
                    await loop.create_connection(
                        lambda: wire, self.address.host, self.address.port, ssl=self.address.tls
                    )
                await self._log_in(wire)
        except (OSError, TimeoutError) as exc:
            wire.end("not connected")
            self._cause = str(exc) or f"no answer within {self._connect_timeout_s:g} s"
            raise NodeRefused(
                f"cannot connect to Redis at {self.address.name}: {self._cause};"
                " check the URL and that the server runs",
                node=self.address.name,
            ) from exc
        except BaseException:
            wire.end("the log-in did not finish")
            raise
        if self._closed:
            wire.end("closed")
            return
        self._wire = wire
        if again:
            self._on_reconnect()

    async def _log_in(self, wire: Wire) -> None:
        hello: list[str] = ["HELLO", "3"]
        if self.address.password is not None:
            hello += ["AUTH", self.address.username or "default", self.address.password]
        self._accept(await _ask(wire, *hello, "SETNAME", "lockguard"))
        if self.address.db:
            self._accept(await _ask(wire, "SELECT", self.address.db))
        if self._previous is not None:
            client_id, addr = self._previous
            await _ask(
                wire, "CLIENT", "KILL", "ID", client_id, "ADDR", addr
            )  # best effort: an ACL may forbid it
        info = await _ask(wire, "CLIENT", "INFO")
        self._previous = _identity(info) or self._previous
        # In RESP3 the answer to SUBSCRIBE is a push, not a reply: wait for that.
        self._subscribed = asyncio.get_running_loop().create_future()
        wire.send_unanswered("SUBSCRIBE", self.inbox)
        refused = await _ask(wire, "PING")
        if isinstance(refused, Exception) or not self._subscribed.done():
            self._accept(
                refused if isinstance(refused, Exception) else hiredis.ReplyError("NOPERM SUBSCRIBE")
            )

    def _accept(self, reply: Reply) -> None:
        if not isinstance(reply, Exception):
            return
        self._cause = text = str(reply)
        if text.startswith(("LOADING", "MASTERDOWN", "CLUSTERDOWN", "ERR max number of clients")):
            raise NodeRefused(f"Redis at {self.address.name} is not ready: {text}", node=self.address.name)
        remedy = "check the user, the password and the database number in the URL"
        if text.startswith("NOPERM"):
            remedy = "give its ACL user the commands and the channel that the documentation lists"
        raise ConfigurationError(f"Redis at {self.address.name} refused the log-in: {text}; {remedy}")

    def _pushed(self, message: list[Any]) -> None:
        kind = message[0]
        if kind == b"message":
            self._on_message(message[2])
        elif kind == b"subscribe" and self._subscribed is not None and not self._subscribed.done():
            self._subscribed.set_result(None)

    def _ended(self, cause: str) -> None:
        self._cause = cause
        if self._wire is None or self._closed:
            return
        self._wire = None
        if self._coming_back is None or self._coming_back.done():
            self._coming_back = asyncio.create_task(
                self._come_back(), name=f"lockguard-back-{self.address.name}"
            )

    async def _come_back(self) -> None:
        backoff_s = _BACKOFF_FIRST_S
        while not self.ready and not self._closed:
            try:
                await self.connect()
            except (NodeRefused, ConfigurationError):
                # Jitter, so that a hundred bots do not come back to a restarted server in one instant.
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
                backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)


async def _ask(wire: Wire, *command: str | bytes | int) -> Reply:
    """Send one command of the log-in; gives error replies as values."""
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    wire.send(lambda reply: None if answer.done() else answer.set_result(reply), *command)
    reply = await answer
    if isinstance(reply, Exception) and not isinstance(reply, hiredis.ReplyError):
        raise ConnectionError(str(reply))
    return reply


def _identity(info: Reply) -> tuple[str, str] | None:
    """The (id, addr) by which the server knows this connection."""
    if not isinstance(info, bytes):
        return None
    fields = dict(part.split("=", 1) for part in info.decode(errors="replace").split() if "=" in part)
    return (fields["id"], fields["addr"]) if "id" in fields and "addr" in fields else None
