"""The log-in on a new connection: protocol, credentials, database, client name, subscription.

Commands that do not depend on a reply are sent without waiting for it. The time limit for a log-in is short,
so that a hung server is detected, and a round trip to another continent takes a good part of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hiredis

from lockguard._nodes.address import Address
from lockguard._nodes.remedies import AGAIN, no_right
from lockguard._nodes.wire import Reply, Wire
from lockguard._scripts import SCRIPTS
from lockguard.errors import ConfigurationError, NodeRefused
from lockguard.text import hidden

__all__ = ["NOT_READY", "Identity", "LogIn", "ServerFacts", "ask", "ask_all", "require", "warn_of_eviction"]

_LOG = logging.getLogger("lockguard")

CLIENT_NAME = "lockguard"

VERSION_MIN = (6, 2)
"""The first version with CLIENT INFO; the scripts need only 5.0."""

NOT_READY = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "ERR max number of clients")
"""How a server refuses what it would not refuse at another moment."""
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
            replies = await _answers(wire, (*words, "SETNAME", CLIENT_NAME), *select)
            if isinstance(replies[0], Exception) and str(replies[0]).startswith(_NO_RESP3):
                protocol = 2
        if protocol == 2:
            auth = [] if password is None else [("AUTH", *((user, password) if user else (password,)))]
            replies = await _answers(wire, *auth, ("CLIENT", "SETNAME", CLIENT_NAME), *select)
        for reply in replies:  # in their order: a server that refuses the first may close before the next
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

    def kill(self, wire: Wire, *connections: Identity) -> None:
        """Kill connections of before, if the server allows that.

        As ``connection.py`` explains, commands left on an old connection could be executed after ours.
        """
        for previous in connections:
            wire.send(lambda _: None, "CLIENT", "KILL", "ID", previous.id, "ADDR", previous.addr)

    def identify(self, wire: Wire, known: Callable[[Identity | None], None]) -> None:
        """Ask for the identity of this connection.

        ``known`` is called once with it, or ``None`` if the server does not tell it. If the connection ends
        first, or the server is not ready, it is not: those that were to be killed before still have to be.
        """

        def told(info: Reply) -> None:
            if isinstance(info, bytes):
                facts = dict(
                    part.split("=", 1) for part in info.decode(errors="replace").split() if "=" in part
                )
                known(Identity(facts["id"], facts["addr"]) if "id" in facts and "addr" in facts else None)
            elif isinstance(info, hiredis.ReplyError) and not str(info).startswith(NOT_READY):
                known(None)

        wire.send(told, "CLIENT", "INFO")

    async def subscribe(self, wire: Wire, done: asyncio.Future[None], *, protocol: int) -> None:
        """Subscribe to the inbox and wait; the caller sets ``done`` on the confirmation or the refusal.

        Raises:
            NodeRefused: the server is not ready.
            ConfigurationError: the server refused the subscription.
            ConnectionError: the connection ended.
        """
        wire.send_unanswered("SUBSCRIBE", self.inbox)
        if protocol == 3:
            # A confirmation is a push and answers no command; a refusal is a reply, taken for the PING's.
            answer = await ask(wire, "PING")
            # Behind a refusal the PING's own reply is one too many, and ends the connection and ``done``.
            if not done.done() or done.exception() is not None:
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
            NodeRefused: the server is not ready, or refused credentials that are fetched anew.
            ConfigurationError: the server refused the log-in.
            ConnectionError: the connection ended before the reply.
        """
        if not isinstance(reply, Exception):
            return
        if not isinstance(reply, hiredis.ReplyError):
            raise ConnectionError(str(reply))
        # A server that does not know AUTH quotes its arguments, and old ones, and proxies, do so with HELLO.
        text, name = hidden(str(reply), self.address.password), self.address.name
        if text.startswith(NOT_READY):
            raise NodeRefused(f"Redis at {name} is not ready: {text}{AGAIN}", node=name)
        if text.startswith("WRONGPASS") and self.address.credentials is not None:
            # They may have been changed since they were fetched, and are fetched anew for the next attempt.
            raise NodeRefused(
                f"Redis at {name} refused what credentials= gave: {text}; it is asked again each time",
                node=name,
            )
        remedy = "check the user, the password and the database number in the URL"
        if no_right(text):
            remedy = "give its ACL user the commands that docs/howto/least-privilege.md lists"
            if self.inbox:  # the user of another namespace is the usual case
                namespace = self.inbox.partition(":inbox:")[0]
                remedy += (
                    f", and the channel {namespace}:inbox:*; or name the namespace that it has rights to"
                )
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
    replies = await _answers(wire, *commands)
    for reply in replies:
        if isinstance(reply, Exception) and not isinstance(reply, hiredis.ReplyError):
            raise ConnectionError(str(reply))
    return replies


async def _answers(wire: Wire, *commands: Sequence[str | bytes | int]) -> list[Reply]:
    """As :func:`ask_all`, but with an exception for each reply that a connection that ended still owed."""
    replies: list[Reply] = []
    last: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(reply: Reply) -> None:
        replies.append(reply)
        if len(replies) == len(commands) and not last.done():
            last.set_result(None)

    for command in commands:
        wire.send(take, *command)
    await last
    return replies


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The facts about one server process; empty if the ACL user may not ask for them.

    Attributes:
        run_id: identifies the process; changes with each start.
        replication_id: shared by a master and its replicas.
        version: the Redis version that the server is compatible with.
        mode: ``standalone``, ``cluster`` or ``sentinel``.
        role: ``master`` or ``slave``.
        master: a replica's master as ``host:port``; empty for a master.
        loading: whether the server is still loading its data.
        evicts: the policy by which a full server drops keys; empty if it drops none.
    """

    run_id: str = ""
    replication_id: str = ""
    version: str = ""
    mode: str = ""
    role: str = ""
    master: str = ""
    loading: bool = False
    evicts: str = ""

    @classmethod
    def parse(cls, info: object) -> ServerFacts:
        """Parse the reply to INFO; anything but ``bytes`` gives empty facts."""
        if not isinstance(info, bytes):
            return cls()
        found = dict(
            line.split(":", 1) for line in info.decode(errors="replace").split("\r\n") if ":" in line
        )
        policy = found.get("maxmemory_policy", "noeviction")
        bounded = found.get("maxmemory", "0") != "0"
        master = f"{found['master_host']}:{found.get('master_port', '')}" if "master_host" in found else ""
        return cls(
            run_id=found.get("run_id", ""),
            replication_id=found.get("master_replid", ""),
            version=found.get("redis_version", ""),
            mode=found.get("redis_mode", found.get("server_mode", "")),
            role=found.get("role", ""),
            master=master,
            loading=found.get("loading", "0") != "0",
            evicts=policy if bounded and policy != "noeviction" else "",
        )


def require(facts: ServerFacts, *, name: str, mode: str) -> None:
    """Refuse a server that cannot keep locks.

    Args:
        facts: what the server reported; unreported facts are not checked.
        name: the server's name for messages.
        mode: the required mode, ``standalone`` or ``cluster``.

    Raises:
        NodeRefused: the server cannot keep locks now, but may later.
        ConfigurationError: the server can never keep locks.
    """
    if facts.mode and facts.mode != mode:
        raise ConfigurationError(f"Redis at {name} is {_OTHER_MODE[facts.mode]}")
    if facts.version and _number(facts.version) < VERSION_MIN:
        raise ConfigurationError(
            f"Redis at {name} is {facts.version}; lockguard needs {'.'.join(map(str, VERSION_MIN))} or newer"
        )
    if facts.role == "slave" and mode != "cluster":  # a cluster's replica tells the map and its master
        raise NodeRefused(f"Redis at {name} is a replica of {facts.master}; give its master", node=name)
    if facts.loading:
        raise NodeRefused(f"Redis at {name} is not ready: it is still loading its data{AGAIN}", node=name)


def warn_of_eviction(facts: ServerFacts, *, name: str) -> None:
    """Log a warning about a server that may drop locks."""
    _LOG.warning(
        "Redis at %s drops keys when it is full (maxmemory-policy %s), so leases may end early:"
        " set noeviction, or give locks a server of their own",
        name,
        facts.evicts,
    )


_OTHER_MODE = {
    "standalone": "a single server; write redis:// for it",
    "cluster": "part of a cluster; write redis+cluster:// for it",
    "sentinel": "a Sentinel; write redis+sentinel://host:port/service for what it watches",
}


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
