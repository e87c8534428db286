"""The log-in on a new connection: protocol, credentials, database, client name, subscription.

Commands that do not depend on a reply are sent without waiting for it. The time limit for a log-in is short,
so that a hung server is detected, and a round trip to another continent takes a good part of it.
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
    """The server's id and address of a connection; together they are unique, even across a restart."""

    id: str
    addr: str


@dataclass(frozen=True, slots=True)
class LogIn:
    """Logs in to one server.

    Attributes:
        address: the server and the credentials.
        inbox: the channel to subscribe to.
    """

    address: Address
    inbox: str

    async def authenticate(self, wire: Wire) -> int:
        """Authenticate and select the database.

        Returns:
            The protocol version, 3 or 2.

        Raises:
            NodeRefused: the server is not ready.
            ConfigurationError: the server refused the credentials or the database.
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
        """Load the scripts into the server's cache, if it allows that.

        Otherwise the first call of each script is sent twice, and the second time behind all commands sent
        meanwhile.
        """
        for script in SCRIPTS:
            wire.send(lambda _: None, "SCRIPT", "LOAD", script.source)

    def track_wipes(self, wire: Wire) -> None:
        """Ask the server to report when its data are flushed (FLUSHALL), if it allows that; needs RESP3.

        The server reports flushes to connections that track keys. With OPTIN no key is tracked, so this costs
        the server nothing.
        """
        wire.send(lambda _: None, "CLIENT", "TRACKING", "ON", "OPTIN")

    def kill_predecessor(
        self, wire: Wire, previous: Identity | None, known: Callable[[Identity | None], None]
    ) -> None:
        """Kill the previous connection, if the server allows that, and ask for the identity of this one.

        As ``connection.py`` explains, commands left on the old connection could be executed after ours.
        ``known`` is called once with the new identity, or ``None`` if the server does not tell it. It is not
        called if the connection ends first: the previous connection then still has to be killed.
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
        """Subscribe to the inbox and wait; the caller sets ``done`` on the confirmation or the refusal.

        Raises:
            NodeRefused: the server is not ready.
            ConfigurationError: the server refused the subscription.
        """
        wire.send_unanswered("SUBSCRIBE", self.inbox)
        if protocol == 3:
            # A confirmation is a push and answers no command; a refusal is a reply, taken for the PING's.
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
        """Return if ``reply`` is not an error.

        Raises:
            NodeRefused: the server is not ready.
            ConfigurationError: the server refused the log-in.
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
    """Send one command and return its reply; an error reply is returned, not raised.

    Raises:
        ConnectionError: the connection ended.
    """
    return (await ask_all(wire, command))[0]


async def ask_all(wire: Wire, *commands: Sequence[str | bytes | int]) -> list[Reply]:
    """Send commands together and return all their replies, to save round trips.

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
