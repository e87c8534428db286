"""The first words on a new connection: protocol, credentials, database, name, subscription.

What does not depend on an answer is said without waiting for it. The time for a log-in is short, because a
hung server has to be found out, and a trip to another continent takes a good part of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hiredis

from lockguard._nodes.address import Address
from lockguard._nodes.wire import Reply, Wire
from lockguard._scripts import SCRIPTS
from lockguard.errors import ConfigurationError, NodeRefused

__all__ = ["Identity", "LogIn", "ask", "ask_all"]

CLIENT_NAME = "lockguard"
_NOT_READY = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "ERR max number of clients")
_NO_RESP3 = ("NOPROTO", "ERR unknown command")


@dataclass(frozen=True, slots=True)
class Identity:
    """How the server knows a connection: both together name no other one, also after a restart."""

    id: str
    addr: str


@dataclass(frozen=True, slots=True)
class LogIn:
    """Logs in on wires to one server.

    Attributes:
        address: the server and the credentials.
        inbox: the channel to subscribe to.
    """

    address: Address
    inbox: str

    async def authenticate(self, wire: Wire) -> int:
        """Authenticate and choose the database; gives the protocol version, 3 or 2.

        Raises:
            NodeRefused: the server is not ready.
            ConfigurationError: it refuses the credentials or the database.
            ConnectionError: the connection ended.
        """
        password, user, protocol = self.address.password, self.address.username, self.address.protocol
        select = [("SELECT", self.address.db)] if self.address.db else []
        replies: list[Reply] = []
        if protocol == 3:
            words = ["HELLO", "3", *(() if password is None else ("AUTH", user or "default", password))]
            replies = await ask_all(wire, (*words, "SETNAME", CLIENT_NAME), *select)
            if isinstance(replies[0], Exception) and str(replies[0]).startswith(_NO_RESP3):
                protocol = 2
        if protocol == 2:
            auth = [] if password is None else [("AUTH", *((user, password) if user else (password,)))]
            replies = await ask_all(wire, *auth, ("CLIENT", "SETNAME", CLIENT_NAME), *select)
        for reply in replies:
            self.accept(reply)
        return protocol

    def load_scripts(self, wire: Wire) -> None:
        """Have the server know the scripts, as far as it allows.

        Otherwise each is sent twice the first time, and the second time behind what was sent meanwhile.
        """
        for script in SCRIPTS:
            wire.send(lambda _: None, "SCRIPT", "LOAD", script.source)

    def track_wipes(self, wire: Wire) -> None:
        """Have the server say when its data are gone (FLUSHALL), as far as it allows; needs RESP3.

        It says so to whoever tracks keys. With OPTIN none is tracked, so this costs it nothing.
        """
        wire.send(lambda _: None, "CLIENT", "TRACKING", "ON", "OPTIN")

    def kill_predecessor(
        self, wire: Wire, previous: Identity | None, known: Callable[[Identity | None], None]
    ) -> None:
        """Kill the connection that this one follows, as far as the server allows, and ask for our identity.

        See the theory in ``connection.py``: what is left of the old connection could be executed after us.
        ``known`` is told once; not at all if the connection ends before: then the old one is still to be
        killed.
        """
        if previous is not None:
            wire.send(lambda _: None, "CLIENT", "KILL", "ID", previous.id, "ADDR", previous.addr)

        def told(info: Reply) -> None:
            if isinstance(info, bytes):
                facts = dict(
                    part.split("=", 1) for part in info.decode(errors="replace").split() if "=" in part
                )
                known(Identity(facts["id"], facts["addr"]) if "id" in facts and "addr" in facts else None)
            elif isinstance(info, hiredis.ReplyError):
                known(None)

        wire.send(told, "CLIENT", "INFO")

    async def subscribe(self, wire: Wire, done: asyncio.Future[None], *, protocol: int) -> None:
        """Listen to the inbox; ``done`` is set by the message that confirms it, or by the refusal."""
        wire.send_unanswered("SUBSCRIBE", self.inbox)
        if protocol == 3:
            # The confirmation is a push and takes no place; a refusal is a reply and takes that of the PING.
            answer = await ask(wire, "PING")
            if not done.done():
                self.accept(
                    answer if isinstance(answer, Exception) else hiredis.ReplyError("NOPERM SUBSCRIBE")
                )
            return
        try:
            await done
        except hiredis.ReplyError as exc:
            self.accept(exc)

    def accept(self, reply: Reply) -> None:
        """Go on unless it is an error reply.

        Raises:
            NodeRefused: the server is not ready.
            ConfigurationError: it refuses us.
        """
        if not isinstance(reply, Exception):
            return
        text, name = str(reply), self.address.name
        if text.startswith(_NOT_READY):
            raise NodeRefused(f"Redis at {name} is not ready: {text}", node=name)
        remedy = "check the user, the password and the database number in the URL"
        if text.startswith("NOPERM"):
            remedy = "give its ACL user the commands and the channel that the documentation lists"
        raise ConfigurationError(f"Redis at {name} refused the log-in: {text}; {remedy}")


async def ask(wire: Wire, *command: str | bytes | int) -> Reply:
    """Send one command and wait; an error reply is a value.

    Raises:
        ConnectionError: the connection ended.
    """
    return (await ask_all(wire, command))[0]


async def ask_all(wire: Wire, *commands: Sequence[str | bytes | int]) -> list[Reply]:
    """Send commands at once and wait for all their replies: on a long way, each trip counts.

    Raises:
        ConnectionError: the connection ended.
    """
    replies: list[Reply] = []
    last: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(reply: Reply) -> None:
        replies.append(reply)
        if len(replies) == len(commands) and not last.done():
            last.set_result(None)

    for command in commands:
        wire.send(take, *command)
    await last
    for reply in replies:
        if isinstance(reply, Exception) and not isinstance(reply, hiredis.ReplyError):
            raise ConnectionError(str(reply))
    return replies
