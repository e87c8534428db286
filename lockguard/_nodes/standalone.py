"""A lock node that is one Redis or Valkey server."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import hiredis

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import GrantId, Resource
from lockguard._namespace import NAMESPACE, Namespace
from lockguard._nodes.address import Address
from lockguard._nodes.connection import Connection
from lockguard._nodes.login import NOT_READY, ServerFacts, ask_all, require, warn_of_eviction
from lockguard._nodes.remedies import AGAIN, with_rights
from lockguard._nodes.scanning import scan
from lockguard._nodes.scripted import UNREADABLE, ScriptedNode, not_connected, reason_of
from lockguard._nodes.wire import Cut, NotSent, Reply, Wire
from lockguard._scripts import ACQUIRE, EXTEND, HISTORY, INSPECT, RELEASE, SETTLE, Script
from lockguard.errors import ConfigurationError, NodeRefused, NodeUnknown
from lockguard.ports import AcquireVote, Answer, Granted, MaybeExecuted, NotExecuted, NoVote

__all__ = ["SAME_AGAIN", "Call", "StandaloneNode"]

T = TypeVar("T")

_OWED_RELEASES_MAX = 10_000
_OWED_PAUSE_S = 0.25
_OWED_FOR_MIN_S = 30.0
"""A place in a queue has no ttl of its own."""
_VOID = -1.0
_WAIT_MS_MAX = 1_000

_WITH_TTL = (ACQUIRE, EXTEND)
_TTL = 1  # its index among their arguments

SAME_AGAIN = (ACQUIRE, SETTLE, EXTEND, INSPECT, HISTORY)
"""Idempotent scripts, which also give the same reply when run twice. A second break would report no holder. A
release with an unknown outcome is repeated too, but its second reply is not trusted."""

_ELSEWHERE = ("READONLY", "MASTERDOWN", "LOADING")
"""Errors of a server that is no longer the master, or not yet again. The command was not executed."""

_PASSING = (*_ELSEWHERE, "BUSY", "MISCONF", "CLUSTERDOWN", "TRYAGAIN", "OOM", "NOREPLICAS")
"""Errors of a server that would take the same command at another moment."""


class Call:
    """A script call in flight; it is its own reply callback on the wire.

    A closure that sends itself again would be a reference cycle, and each command would leave one behind for
    the garbage collector.

    Attributes:
        script: the script to run.
        decode: turns the reply into a vote.
        keys: the script's keys.
        args: the script's arguments.
        future: what the caller waits for; done if it no longer waits.
        node: the node that sent the call last and gets its reply.
        tries: how often it was sent again.
        began_at: when the call was created, by the clock, in seconds; a cluster bounds the call by it.
        fault: why it was sent again last.
        owed_until: until when a release that failed is worth another try, by the clock, in seconds; 0 before
            it failed, negative if it must not be sent again.
    """

    __slots__ = (
        "__weakref__",
        "args",
        "began_at",
        "decode",
        "fault",
        "future",
        "keys",
        "node",
        "owed_until",
        "script",
        "tries",
    )

    def __init__(
        self,
        node: StandaloneNode,
        script: Script,
        decode: Callable[[Any], Any],
        keys: tuple[str, ...],
        args: tuple[str | int, ...],
        future: Answer,
        *,
        began_at: float = 0.0,
    ) -> None:
        self.node = node
        self.script = script
        self.decode = decode
        self.keys = keys
        self.args = args
        self.future: Any = future
        self.tries = 0
        self.began_at = began_at
        self.fault = ""
        self.owed_until = 0.0

    @property
    def withdrawn(self) -> bool:
        """Whether it must not be sent again."""
        return self.owed_until < 0

    def withdraw(self) -> None:
        """Have a release not sent again: its grant is asked for once more, or another release follows."""
        self.owed_until = _VOID

    def __call__(self, reply: Reply) -> None:
        """Pass the reply to the node that sent the call."""
        self.node.answered(self, reply)


class StandaloneNode(ScriptedNode):
    """Keeps locks in one server.

    A release that was lost with its connection is sent again before any other command on the next one, so
    that neither a cancelled acquire nor a body that ended leaves the lock closed for its ttl. One that the
    server refused for a moment is sent again after a pause: one release tries, and the others follow once it
    was taken.

    Any other idempotent call that was lost is sent once more, with the same grant, if the first attempt to
    reconnect succeeds and its caller still waits. So a caller is not refused because a NAT dropped an idle
    connection.

    When a server reports that it is no longer the master, the node drops the connection and looks its name up
    again.

    Args:
        address: the server.
        inbox: this process's wake-up channel.
        namespace: the first part of every key.
        connect_timeout_s: the time limit for connecting and logging in.
        reply_timeout_s: how long the server may leave a reply outstanding.
        min_replicas: how many replicas must have the lock before it counts as granted. All other commands of
            this process wait meanwhile, up to a quarter of the ttl or 1 s, whichever is shorter.
        mode: the required mode of the server, ``standalone`` or ``cluster``.
        locate: returns the address before each attempt to connect, for a server that moves.
        backoff_max_s: the longest backoff between attempts to reconnect, before jitter.
        redirect: called as ``redirect(fault, call)`` before a failed call becomes a vote; returns whether it
            took the call over.
    """

    def __init__(
        self,
        address: Address,
        *,
        inbox: str,
        namespace: Namespace = NAMESPACE,
        connect_timeout_s: float = 2.0,
        reply_timeout_s: float = 2.0,
        min_replicas: int = 0,
        mode: str = "standalone",
        locate: Callable[[], Awaitable[Address]] | None = None,
        backoff_max_s: float = 1.0,
        redirect: Callable[[Exception, Call], bool] = lambda *_: False,
    ) -> None:
        super().__init__(inbox=inbox, namespace=namespace)
        self._mode = mode
        self._alone = True
        self._min_replicas = min_replicas
        self._redirect = redirect
        self._facts = ServerFacts()
        self._evicts = ""
        self._owed_releases: deque[Call] = deque(maxlen=_OWED_RELEASES_MAX)
        self._owed_for_s = _OWED_FOR_MIN_S
        self._paying: asyncio.TimerHandle | None = None
        self._one_tries = False
        self._lost: list[tuple[Call, Exception]] = []
        self._ttl_ms: str | int = 0
        self._connection = Connection(
            address,
            inbox=inbox,
            on_message=lambda payload: self._wake(GrantId(payload.decode(errors="replace"))),
            on_login=self._examine,
            on_connect=self._connected,
            on_refused=self._give_up,
            on_wiped=lambda: self._wake(None),
            connect_timeout_s=connect_timeout_s,
            reply_timeout_s=reply_timeout_s,
            locate=locate,
            backoff_max_s=backoff_max_s,
        )

    @property
    def name(self) -> str:
        """Host, port and database for messages; contains no credentials."""
        return self._name_at(self._connection.address)

    def _name_at(self, address: Address) -> str:
        return address.name

    @property
    def address(self) -> Address:
        """The server's address, or its last known one."""
        return self._connection.address

    @property
    def ready(self) -> bool:
        """Whether a command would be sent now."""
        return self._connection.ready

    async def connect(self) -> None:
        """Connect, so that commands can be sent.

        Raises:
            NodeRefused: the server cannot be reached.
            ConfigurationError: the server refused the log-in, or is of another kind.
        """
        if not self._connection.ready:
            await self._connection.connect()

    async def aclose(self) -> None:
        """Send what is queued, and the releases that are owed, then close the connection."""
        await self._connection.aclose(owes=lambda: self._owed_releases)
        if self._paying is not None:
            self._paying.cancel()
        self._give_up()

    def abandon(self) -> None:
        """Close the sockets after the event loop was closed around them; send nothing."""
        self._connection.abandon()

    async def ask(self, *command: str | bytes | int) -> Reply:
        """Send any other command; returns the reply, which may be an exception object."""
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._connection.send(lambda reply: None if answer.done() else answer.set_result(reply), *command)
        return await answer

    async def names(self, prefix: str) -> AsyncIterator[list[Resource]]:
        """The resources in use on this server, see :meth:`lockguard.ports.ReadableNode.names`."""
        try:
            async for names in self._scan(prefix):
                yield names
        except (
            NodeUnknown
        ):  # an idle connection may have been dropped; from the start, on any master there is now
            await self.connect()
            async for names in self._scan(prefix):
                yield names

    def _scan(self, prefix: str) -> AsyncIterator[list[Resource]]:
        return scan(self.ask, name=self.name, namespace=self._namespace, prefix=prefix)

    def run(
        self,
        script: Script,
        decode: Callable[[Any], T],
        keys: tuple[str, ...],
        *args: str | int,
        lone: bool = False,
        answer: Answer | None = None,
    ) -> asyncio.Future[Any]:
        """Send a script by its SHA, and by its text if the server does not know it (L5).

        Args:
            script: the script to run.
            decode: turns the reply into a vote.
            keys: the script's keys.
            *args: the script's arguments.
            lone: as for :meth:`Wire.send`.
            answer: receives the vote instead of a new future.

        Returns:
            ``answer``, or a new future for the vote.
        """
        asked: Any = self._loop.create_future() if answer is None else answer
        self.send_call(Call(self, script, decode, keys, args, asked), lone=lone)
        if script is ACQUIRE and self._min_replicas:
            return self._replicated(asked, int(args[_TTL]))
        return asked  # type: ignore[no-any-return]

    def send_call(self, call: Call, *, lone: bool = False) -> None:
        """Send a call by its script's SHA; see :meth:`run`."""
        script, args = call.script, call.args
        if script in _WITH_TTL and args[_TTL] != self._ttl_ms:
            self._ttl_ms = args[_TTL]
            self._connection.note_ttl(int(self._ttl_ms))
            self._owed_for_s = max(self._owed_for_s, int(self._ttl_ms) / 1000)
        head, skipped = _head(script.sha, call.keys, len(args))
        packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]  # its stub takes one word
        self._connection.send_packed(call, head + packed[skipped:], lone=lone)

    def answered(self, call: Call, reply: Reply) -> None:
        """Turn the reply to a call into its vote, or send the call again."""
        future = call.future
        if not isinstance(reply, Exception):
            try:
                vote = call.decode(reply)  # even if no caller waits: the node learns from it
            except UNREADABLE as exc:  # a foreign client wrote to our keys, or it is no Redis
                text = f"{self.name}: {call.script.name}: unreadable reply {reply!r:.200}: {exc}"
                vote = MaybeExecuted(NodeUnknown(text, node=self.name))
        elif isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            # Not executed, so it can be sent again, but not for a cancelled caller: its release is already
            # in flight and would run first. A release itself has no later command to overtake, unless its
            # grant is asked for once more: then it would take that vote away.
            if not call.withdrawn and (not future.done() or call.script is RELEASE):
                self._send_text(call)
                return
            vote = self._no_vote(call, reply)
        elif self._redirect(reply, call) or self._again_soon(reply, call):
            return
        else:
            vote = self._no_vote(call, reply)
        if not future.done():
            future.set_result(vote)

    _run = run

    def take_over(self, call: Call, *, asking: bool = False) -> None:
        """Send a call that another server redirected to this one.

        Args:
            call: the redirected call.
            asking: whether the redirection was ASK: it holds for this call only, while the slot moves here.
        """
        call.node = self
        if asking:
            self._connection.send(lambda _: None, "ASKING")
        # As text: after a NOSCRIPT the call would be sent again without ASKING.
        self._send_text(call)

    def listen(self, channel: str) -> None:
        """Subscribe to a shard channel as well."""
        self._connection.listen(channel)

    def drop(self, cause: str) -> None:
        """End the connection and reconnect."""
        self._connection.drop(cause)

    def _replicated(self, asked: asyncio.Future[AcquireVote], ttl_ms: int) -> asyncio.Future[AcquireVote]:
        """Hold back a granted vote until ``min_replicas`` have the lock; it is unknown if they do not."""
        future: asyncio.Future[AcquireVote] = self._loop.create_future()

        def counted(reply: Reply) -> None:
            if future.done():
                return
            if isinstance(reply, int) and reply >= self._min_replicas:
                future.set_result(asked.result())
                return
            told = (
                f"only {reply} of {self._min_replicas} replicas have it"
                if isinstance(reply, int)
                else with_rights("WAIT", str(reply), "a bot that has min_replicas")
            )
            text = f"{self.name}: granted, but not replicated: {told}"
            future.set_result(MaybeExecuted(NodeUnknown(text, node=self.name)))

        def answered(_: object) -> None:
            if future.done() or asked.cancelled():
                return
            if isinstance(asked.result(), Granted):
                wait_ms = min(_WAIT_MS_MAX, ttl_ms // 4)
                self._connection.send(counted, "WAIT", self._min_replicas, wait_ms)
                self._connection.allow_silence(wait_ms / 1000)
            else:
                future.set_result(asked.result())

        asked.add_done_callback(answered)
        # A cancelled caller's command must not be sent again (see answered).
        future.add_done_callback(lambda _: asked.cancel())
        return future

    def _send_text(self, call: Call) -> None:
        self._connection.send(call, "EVAL", call.script.source, len(call.keys), *call.keys, *call.args)

    def _no_vote(self, call: Call, fault: Exception) -> NoVote:
        """The vote for a failed call: an error is never a yes (S12)."""
        text = f"{self.name}: {reason_of(call.script, call.keys, call.args, fault)}"
        if call.script is RELEASE and self._connection.connected_before and _passes(fault):
            self._owe(call)
        if isinstance(fault, Cut):
            return MaybeExecuted(NodeUnknown(text, node=self.name))
        if isinstance(fault, NotSent):
            text = not_connected(self.name, fault)
        return NotExecuted(NodeRefused(text, node=self.name))

    def _again_soon(self, fault: Exception, call: Call) -> bool:
        """Keep a call to send once more on the next connection; returns whether it was kept."""
        moved = isinstance(fault, hiredis.ReplyError) and _told(fault, _ELSEWHERE)
        if moved:
            self.drop(f"it says {fault}")
        if not (moved or isinstance(fault, Cut)) or call.tries or call.script not in SAME_AGAIN:
            return False
        if not self._connection.comes_back:
            return False
        call.tries += 1
        self._lost.append((call, fault))
        return True

    def _give_up(self) -> None:
        lost, self._lost = self._lost, []
        for call, fault in lost:
            if not call.future.done():
                call.future.set_result(self._no_vote(call, fault))

    def _connected(self, *, again: bool) -> None:
        if not again:
            return
        self._pay_all()
        lost, self._lost = self._lost, []
        for call, _ in lost:
            # Not for a cancelled caller: its release was sent before.
            if not call.future.done():
                self._send_text(call)
        self._wake(None)

    def _owe(self, release: Call) -> None:
        """Keep a release that failed, to send it again while the lock may still be closed by it."""
        now = SYSTEM_CLOCK.now()
        if not release.owed_until:
            release.owed_until = now + self._owed_for_s
        elif now >= release.owed_until:
            return
        release.decode = self._taken  # nobody waits for what it finds
        self._owed_releases.append(release)
        self._pay_soon()

    def _pay_soon(self) -> None:
        if self._paying is None and self._owed_releases and self._connection.comes_back:
            pause_s = _OWED_PAUSE_S * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
            self._paying = self._loop.call_later(pause_s, self._pay_one)

    def _pay_one(self) -> None:
        self._paying = None
        if self._connection.ready:  # else the next connection begins with all
            self._one_tries = True
            while self._owed_releases and not self._send_owed():
                pass
            self._pay_soon()  # for the others, if this one is refused for good

    def _taken(self, _: Reply) -> None:
        if self._one_tries:  # not for each of those that follow it
            self._one_tries = False
            self._pay_all()

    def _pay_all(self) -> None:
        for _ in range(len(self._owed_releases)):
            self._send_owed()

    def _send_owed(self) -> bool:
        release = self._owed_releases.popleft()
        if release.withdrawn:
            return False
        self.send_call(release)
        return True

    async def _examine(self, wire: Wire, address: Address) -> Callable[[], None]:
        member = f"{self._namespace}:member"
        info, nodes = await ask_all(wire, ("INFO",), ("HGET", member, "nodes"))
        # In a cluster the second key means nothing, and its slot may be without an owner.
        for reply, passes in ((info, NOT_READY), (nodes, ("LOADING", "BUSY"))):
            if isinstance(reply, hiredis.ReplyError) and str(reply).startswith(passes):
                # On this connection nobody would ask again in which run the server is, and whether it is one
                # of several that decide together.
                name = self._name_at(address)
                raise NodeRefused(f"Redis at {name} is not ready: {reply}{AGAIN}", node=name)
        facts = ServerFacts.parse(info)
        if not self.ready:  # also of a server that is refused: they tell that it replicates another
            self._facts = facts
        require(facts, name=self._name_at(address), mode=self._mode)
        if facts.evicts and facts.evicts != self._evicts:  # once, and not at each new connection
            warn_of_eviction(facts, name=self._name_at(address))
        self._evicts = facts.evicts
        if self._alone and isinstance(nodes, bytes) and nodes.isdigit() and int(nodes) > 1:
            # A lock that this server grants by itself may be held on the others.
            raise ConfigurationError(
                f"Redis at {self._name_at(address)} is one of the {int(nodes)} servers that decide together,"
                " and only it is named: name all, with --redis several times, apart by blanks in"
                " LOCKGUARD_REDIS_URL, or with LockGuard.from_urls() (where it decides alone by now: DEL"
                f" {member} on it)"
            )

        def keep() -> None:
            # Once more: another connection that was being made may have reached a server that restarted.
            self._facts = facts

        return keep


@lru_cache(maxsize=8192)
def _head(sha: str, keys: tuple[str, ...], args: int) -> tuple[bytes, int]:
    """The encoded call up to its arguments, and the length of the word count to strip from the arguments.

    It is cached per resource, because encoding it took longer than encoding the arguments.
    """
    words: tuple[str | int, ...] = ("EVALSHA", sha, len(keys), *keys)
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]
    head = b"*%d\r\n%b" % (len(words) + args, packed.partition(b"\r\n")[2])
    return head, len(b"*%d\r\n" % args)


def _told(fault: Exception, codes: Sequence[str]) -> bool:
    text = str(fault)
    # Redis 6 prefixes the error of a command within a script with its own text.
    return text.startswith(tuple(codes)) or any(f": -{code} " in text for code in codes)


def _passes(fault: Exception) -> bool:
    if isinstance(fault, hiredis.ReplyError):
        return _told(fault, _PASSING)
    return isinstance(fault, Cut | NotSent)
