"""A simulated Redis server: the protocol, connections, messages, and what befalls a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hiredis

from lockguard_lab.sim.scripting import Scripts
from lockguard_lab.sim.store import ReplyError, Status, Store
from lockguard_lab.sim.world import EPOCH_S, World

__all__ = ["RedisServer"]

_INFO = (
    "# Server\r\nredis_version:7.2.4\r\nredis_mode:standalone\r\nrun_id:{run:040x}\r\n"
    "# Replication\r\nrole:master\r\nmaster_replid:{replication:040x}\r\n"
    "# Persistence\r\nloading:0\r\n# Memory\r\nmaxmemory:0\r\n"
)
_NO_MORE = object()


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
        self.on_command: Callable[[str, tuple[bytes, ...], Any], None] = lambda *_: None
        self._number, self._starts = number, 0
        self._stopped = False
        self._waiting: list[Callable[[], None]] = []
        self._sessions: list[_Session] = []
        self._ids = 0

    def accept(self, answer: Callable[[bytes], None], hang_up: Callable[[], None], address: str) -> _Session:
        """Take a connection."""
        self._ids += 1
        session = _Session(self, self._ids, address, answer, hang_up)
        self._sessions.append(session)
        return session

    @property
    def info(self) -> str:
        """The reply to INFO."""
        run = self._number * 1000 + self._starts + 1
        return _INFO.format(run=run, replication=run)

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
        """End, and come back after ``down_s`` with ``data``: a snapshot, or ``None`` for none."""
        self.world.tell(f"{self.name} crashes for {down_s:.3f} s, {'with old data' if data else 'empty'}")
        self.up = False
        self._waiting.clear()
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.hang_up()
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

    # What its sessions ask of it.

    def execute(self, session: _Session, words: tuple[bytes, ...]) -> None:
        """Execute a command of a session, now or when the server goes on."""
        if self._stopped:
            self._waiting.append(lambda: self.execute(session, words))
        elif session in self._sessions:
            self.executed += 1
            session.execute(words)

    def kill(self, id_: bytes) -> int:
        """CLIENT KILL ID."""
        found = [one for one in self._sessions if one.id == int(id_)]
        for session in found:
            self._sessions.remove(session)
            session.hang_up()
        return len(found)

    def forget(self, session: _Session) -> None:
        """A connection has ended."""
        if session in self._sessions:
            self._sessions.remove(session)

    def _publish(self, channel: bytes, message: bytes, *, shard: bool) -> int:
        kind = b"smessage" if shard else b"message"
        had = [one for one in self._sessions if (shard, channel) in one.channels]
        for session in had:
            session.push([kind, channel, message])
        return len(had)


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
        self._reader = hiredis.Reader(notEnoughData=_NO_MORE)

    def received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (words := self._reader.gets()) is not _NO_MORE:
            self.server.execute(self, tuple(words))

    def lost(self) -> None:
        self.server.forget(self)

    def push(self, parts: list[Any]) -> None:
        self.answer(b">%d\r\n%b" % (len(parts), b"".join(_encoded(part) for part in parts)))

    def execute(self, words: tuple[bytes, ...]) -> None:
        name = words[0].upper().decode()
        if name == "SUBSCRIBE":
            self.channels.add((False, words[1]))
            self.push([b"subscribe", words[1], len(self.channels)])
            return
        try:
            reply = self._reply(name, words)
        except ReplyError as error:
            reply = error
        self.server.on_command(name, words, reply)
        self.answer(_encoded(reply))

    def _reply(self, name: str, words: tuple[bytes, ...]) -> Any:
        server = self.server
        match name:
            case "HELLO":
                return {b"server": b"redis", b"proto": 3}
            case "PING":
                return Status(b"PONG")
            case "INFO":
                return server.info.encode()
            case "SCRIPT":
                return server.scripts.load(words[2])
            case "EVALSHA" | "EVAL":
                sha = words[1].decode() if name == "EVALSHA" else server.scripts.load(words[1]).decode()
                keys = int(words[2])
                return server.scripts.run(sha, list(words[3 : 3 + keys]), list(words[3 + keys :]))
            case "CLIENT":
                return self._client(words[1].upper().decode(), words)
            case "SELECT":
                return Status(b"OK")
            case _:
                return server.store.do(*words)

    def _client(self, what: str, words: tuple[bytes, ...]) -> Any:
        match what:
            case "INFO":
                return f"id={self.id} addr={self.address} name=lockguard".encode()
            case "TRACKING":
                self.tracks = True
                return Status(b"OK")
            case "KILL":
                return self.server.kill(words[3])
            case _:
                return Status(b"OK")


def _encoded(reply: Any) -> bytes:
    match reply:
        case None:
            return b"_\r\n"
        case Status():
            return b"+%b\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case int():
            return b":%d\r\n" % reply
        case ReplyError():
            return b"-%b\r\n" % str(reply).replace("\n", " ").encode()
        case dict():
            parts = [_encoded(part) for pair in reply.items() for part in pair]
            return b"%%%d\r\n%b" % (len(reply), b"".join(parts))
        case _:
            return b"*%d\r\n%b" % (len(reply), b"".join(_encoded(part) for part in reply))
