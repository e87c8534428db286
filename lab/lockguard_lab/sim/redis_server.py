"""A simulated Redis server: the protocol, connections, messages, and what befalls a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import hiredis

from lockguard_lab.sim.scripting import Scripts
from lockguard_lab.sim.store import ReplyError, Status, Store, copied
from lockguard_lab.sim.world import EPOCH_S, World

__all__ = ["RedisServer", "encoded"]

_INFO = (
    "# Server\r\nredis_version:7.2.4\r\nredis_mode:{mode}\r\nrun_id:{run:040x}\r\n"
    "# Replication\r\n{role}master_replid:{replication:040x}\r\n"
    "# Persistence\r\nloading:0\r\n# Memory\r\nmaxmemory:0\r\n"
)
_NO_MORE = object()
_REFUSED = ("PING", "SUBSCRIBE", "SSUBSCRIBE")
_REFUSE_PING = ("LOADING", "MISCONF", "BUSY")
"""What refuses PING as well as scripts; only BUSY refuses a subscription too."""


class Cluster(Protocol):
    """What a server asks of the cluster that it is part of."""

    @property
    def servers(self) -> Sequence[RedisServer]:
        """All of its servers."""
        ...

    def slots(self, by: RedisServer) -> list[Any]:
        """The reply to CLUSTER SLOTS."""
        ...

    def elsewhere(self, server: RedisServer, keys: Sequence[bytes], *, asking: bool) -> str:
        """Why a server does not execute a command for these keys; empty if it does."""
        ...


class RedisServer:
    """One server. It executes a command the moment that its bytes arrive, unless it is stopped.

    Args:
        world: the schedule.
        name: ``host:port``, by which processes connect to it.
        number: tells it apart from the others of the schedule.
    """

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world, self.name = world, name
        self.up = True
        self.jumped_s = 0.0
        self.store = Store(lambda: (EPOCH_S + world.now + self.jumped_s) * 1000, self._publish)
        self.scripts = Scripts(self.store)
        self.executed = 0
        self.before_command: Callable[[str, tuple[bytes, ...]], Any] = lambda *_: None
        self.on_command: Callable[[str, tuple[bytes, ...], Any, Any, _Session], None] = lambda *_: None
        self.refuses = ""
        """The error by which every script is refused, and PING by some; empty for none."""
        self.mute = False
        """Whether messages are lost."""
        self.master: RedisServer | None = None
        """Whose replica it is."""
        self.replica: RedisServer | None = None
        self.lag_s = 0.0
        self.cluster: Cluster | None = None
        self._number, self._starts = number, 0
        self._stopped = False
        self._waiting: list[Callable[[], None]] = []
        self._sessions: list[_Session] = []
        self._newest: dict[str, _Session] = {}
        self._ids = 0

    def accept(self, answer: Callable[[bytes], None], hang_up: Callable[[], None], address: str) -> _Session:
        """Take a connection."""
        self._ids += 1
        session = _Session(self, self._ids, address, answer, hang_up)
        self._sessions.append(session)
        return session

    @property
    def epoch_s(self) -> float:
        """What its clock says at the beginning of the schedule, in seconds since 1970."""
        return EPOCH_S + self.jumped_s

    @property
    def info(self) -> str:
        """The reply to INFO."""
        run = self._number * 1000 + self._starts + 1
        role = "role:master\r\n"
        if self.master is not None:
            host, _, port = self.master.name.rpartition(":")
            role = f"role:slave\r\nmaster_host:{host}\r\nmaster_port:{port}\r\n"
        mode = "standalone" if self.cluster is None else "cluster"
        return _INFO.format(run=run, replication=run, role=role, mode=mode)

    # What befalls it.

    def stop_for(self, seconds: float) -> None:
        """Execute nothing for a while, as a server that was stopped or swaps."""
        if not self._stopped and self.up:
            self._stopped = True
            self.world.tell(f"{self.name} is stopped for {seconds:.3f} s")
            self.world.after(seconds, self._go_on)

    def _go_on(self) -> None:
        self._stopped = False
        self.world.tell(f"{self.name} goes on")
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()

    def wipe(self) -> None:
        """Forget all data, as FLUSHALL; who tracks keys is told."""
        self.world.tell(f"{self.name} is wiped")
        self.store.wipe()
        for session in list(self._sessions):
            if session.tracks:
                session.push([b"invalidate", None])

    def crash(self, down_s: float, data: Any) -> None:
        """End, and come back after ``down_s`` with ``data``: a snapshot, or ``None`` for none.

        One that is down already cannot end again: it would come back twice, the second time with the data of
        before the first.
        """
        if not self.up:
            return
        self.world.tell(f"{self.name} crashes for {down_s:.3f} s, {'with old data' if data else 'empty'}")
        self.up = False
        self._waiting.clear()
        self.end_sessions()
        self.scripts.known.clear()
        self._starts += 1

        def again() -> None:
            self.up, self._stopped = True, False
            if data is None:
                self.store.wipe()
            else:
                self.store.restore(data)
            self.world.tell(f"{self.name} is up again")

        self.world.after(down_s, again)

    def heard_again(self) -> None:
        """Lose no more messages."""
        self.mute = False

    def lock_vanishes(self, lock: bytes) -> None:
        """Delete one key, as an eviction or an operator does."""
        self.store.do(b"DEL", lock)
        self.replicate((lock,))

    def replicate(self, keys: tuple[bytes, ...]) -> None:
        """Have the replica learn, a while later, what a command left in these keys."""
        replica, store = self.replica, self.store
        if replica is None:
            return
        left = [(key, copied(store.values.get(key)), store.ends_ms.get(key)) for key in keys]

        def learn() -> None:
            if replica.master is self:
                for key, value, end_ms in left:
                    replica.store.put(key, value, end_ms)

        self.world.after(self.lag_s, learn)

    def becomes_replica_of(self, master: RedisServer) -> None:
        """Give up what only it knows, and end all connections."""
        self.world.tell(f"{self.name} is a replica of {master.name}")
        self.master, self.replica, master.replica = master, None, self
        self.store.restore(master.store.snapshot())
        self.end_sessions()

    def end_sessions(self) -> None:
        """End all connections."""
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.hang_up()

    @property
    def connected(self) -> list[str]:
        """The addresses of those that are connected."""
        return [session.address for session in self._sessions]

    @property
    def replaced(self) -> list[str]:
        """The addresses of those that are connected, though their process knows them and has newer ones.

        A process cannot kill a connection that died in its log-in, before it was told its id.
        """
        known = [session for session in self._sessions if session.identified]
        return [session.address for session in known if self._newest[session.host] is not session]

    def identified(self, session: _Session) -> None:
        """A process was told the id of a connection."""
        self._newest[session.host] = session

    # What its sessions ask of it.

    def execute(self, session: _Session, words: tuple[bytes, ...]) -> None:
        """Execute a command of a session, now or when the server goes on."""
        if self._stopped:
            self._waiting.append(lambda: self.execute(session, words))
        elif session in self._sessions:
            self.executed += 1
            session.execute(words)

    def kill(self, id_: bytes, address: bytes) -> int:
        """CLIENT KILL ID ADDR."""
        found = [one for one in self._sessions if (one.id, one.address) == (int(id_), address.decode())]
        for session in found:
            self._sessions.remove(session)
            session.hang_up()
        return len(found)

    def forget(self, session: _Session) -> None:
        """A connection has ended."""
        if session in self._sessions:
            self._sessions.remove(session)

    def _publish(self, channel: bytes, message: bytes, *, shard: bool) -> int:
        if self.cluster is not None and not shard:
            for other in self.cluster.servers:
                if other is not self:
                    other.deliver(channel, message, shard=False)
        return self.deliver(channel, message, shard=shard)

    def deliver(self, channel: bytes, message: bytes, *, shard: bool) -> int:
        """Deliver a message to those that are connected here."""
        kind = b"smessage" if shard else b"message"
        had = [one for one in self._sessions if (shard, channel) in one.channels]
        if not self.mute:
            for session in had:
                session.push([kind, channel, message])
        return len(had)

    def end_channels(self, gone: Callable[[bytes], bool]) -> None:
        """Tell those that listen to a shard channel whose slot has moved that they do no longer."""
        for session in list(self._sessions):
            for shard, channel in sorted(session.channels):
                if shard and gone(channel):
                    session.channels.discard((True, channel))
                    session.push([b"sunsubscribe", channel, 0])


class _Session:
    def __init__(
        self,
        server: RedisServer,
        id_: int,
        address: str,
        answer: Callable[[bytes], None],
        hang_up: Callable[[], None],
    ) -> None:
        self.server, self.id, self.address = server, id_, address
        self.answer, self.hang_up = answer, hang_up
        self.channels: set[tuple[bool, bytes]] = set()
        self.tracks = False
        self.resp3 = False
        self.host = address.partition(":")[0]
        self.identified = False
        self._asking = False
        self._reader = hiredis.Reader(notEnoughData=_NO_MORE)

    def received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (words := self._reader.gets()) is not _NO_MORE:
            self.server.execute(self, tuple(words))

    def heard(self, data: bytes) -> None:
        if b" addr=" in data:  # of the reply to CLIENT INFO
            self.identified = True
            self.server.identified(self)

    def lost(self) -> None:
        self.server.forget(self)

    def push(self, parts: list[Any]) -> None:
        self.answer(b">%d\r\n%b" % (len(parts), b"".join(encoded(part) for part in parts)))

    def execute(self, words: tuple[bytes, ...]) -> None:
        name, server = words[0].upper().decode(), self.server
        if (
            name in ("SUBSCRIBE", "SSUBSCRIBE")
            and not server.refuses.startswith("BUSY")
            and not (
                name == "SSUBSCRIBE"
                and server.cluster is not None
                and server.cluster.elsewhere(server, words[1:2], asking=False)
            )
        ):
            self.channels.add((name == "SSUBSCRIBE", words[1]))
            self.push([name.lower().encode(), words[1], len(self.channels)])
            return
        if name == "SUNSUBSCRIBE":
            self.channels.discard((True, words[1]))
            self.push([b"sunsubscribe", words[1], len(self.channels)])
            return
        before = server.before_command(name, words)
        try:
            if name in _REFUSED and server.refuses.startswith(_REFUSE_PING):
                raise ReplyError(server.refuses)
            reply = self._reply(name, words)
        except ReplyError as error:
            reply = error
        server.on_command(name, words, reply, before, self)
        self.answer(encoded(reply, self.resp3))

    def _reply(self, name: str, words: tuple[bytes, ...]) -> Any:
        server = self.server
        match name:
            case "HELLO":
                self.resp3 = True
                return {b"server": b"redis", b"proto": 3}
            case "PING":
                return Status(b"PONG")
            case "INFO":
                return server.info.encode()
            case "SCRIPT":
                return server.scripts.load(words[2])
            case "EVALSHA" | "EVAL":
                return self._run(name, words)
            case "CLIENT":
                return self._client(words[1].upper().decode(), words)
            case "SELECT" | "ASKING":
                self._asking = name == "ASKING"
                return Status(b"OK")
            case "CLUSTER" if server.cluster is not None:
                return server.cluster.slots(server)
            case "SSUBSCRIBE" | "HGET":
                self._only_here(words[1:2])
                return server.store.do(*words)
            case _:
                return server.store.do(*words)

    def _only_here(self, keys: tuple[bytes, ...]) -> None:
        asking, self._asking = self._asking, False
        cluster = self.server.cluster
        if cluster is not None and (refusal := cluster.elsewhere(self.server, keys, asking=asking)):
            raise ReplyError(refusal)

    def _run(self, name: str, words: tuple[bytes, ...]) -> Any:
        server, count = self.server, int(words[2])
        keys, args = words[3 : 3 + count], words[3 + count :]
        if server.refuses:
            raise ReplyError(server.refuses)
        self._only_here(keys)
        sha = words[1].decode() if name == "EVALSHA" else server.scripts.load(words[1]).decode()
        if server.master is not None and sha in server.scripts.known:
            raise ReplyError("READONLY You can't write against a read only replica.")
        try:
            return server.scripts.run(sha, keys, args)
        finally:
            server.replicate(keys)

    def _client(self, what: str, words: tuple[bytes, ...]) -> Any:
        match what:
            case "INFO":
                return f"id={self.id} addr={self.address} name=lockguard".encode()
            case "TRACKING":
                self.tracks = True
                return Status(b"OK")
            case "KILL":
                return self.server.kill(words[3], words[5])
            case _:
                return Status(b"OK")


def encoded(reply: Any, resp3: bool = True) -> bytes:  # noqa: FBT001, FBT002 - called for each part
    """A reply in bytes."""
    kind = type(reply)
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if kind is int:
        return b":%d\r\n" % reply
    if kind is list:
        return b"*%d\r\n%b" % (len(reply), b"".join([encoded(part, resp3) for part in reply]))
    if reply is None:
        return b"_\r\n" if resp3 else b"$-1\r\n"
    if kind is Status:
        return b"+%b\r\n" % reply
    if kind is ReplyError:
        return b"-%b\r\n" % str(reply).replace("\n", " ").encode()
    assert kind is dict, f"no reply of Redis: {reply!r}"
    parts = [encoded(part, resp3) for pair in reply.items() for part in pair]
    begin, size = (b"%", len(reply)) if resp3 else (b"*", len(parts))
    return b"%b%d\r\n%b" % (begin, size, b"".join(parts))
