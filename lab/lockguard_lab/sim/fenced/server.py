"""A simulated Postgres server: the wire protocol over the model of a database."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from lockguard_lab.sim.fenced.database import Database, PgError, Result, Session, Transaction
from lockguard_lab.sim.fenced.functions import copied, execute
from lockguard_lab.sim.fenced.sql import Literal_, Unknown, parameters_of, split
from lockguard_lab.sim.world import EPOCH_S, World

__all__ = ["Backend", "PostgresServer", "WorldClock"]

_OIDS = {"text": 25, "int8": 20, "bigint": 20, "uuid": 2950, "bool": 16, "int4": 23, "int": 23}
_SIZES = {20: 8, 2950: 16, 16: 1, 23: 4}
_PROTOCOL = 196_608
_CANCEL = 80_877_102
_COPY_HEAD = 19
_SETTINGS = {
    "server_version": "17.2",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "integer_datetimes": "on",
    "TimeZone": "UTC",
}


class WorldClock:
    """The schedule's time, as the database needs it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        """Seconds."""
        return self._world.now

    def wall(self) -> float:
        """Seconds since 1970."""
        return EPOCH_S + self._world.now

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have ``action`` called later."""
        self._world.after(seconds, action)


class PostgresServer:
    """One server.

    Args:
        world: the schedule.
        name: ``host:port``, by which processes connect to it.

    Attributes:
        lose_answers: the share of answers to a COMMIT that are lost with their connection.
        evictions_to_lose: how many calls that end sessions are lost on their way, with their connections.
        parsed: told of each session that has parsed a statement and waits for what is to be done with it.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.up = True
        self.database = Database(WorldClock(world))
        self.lose_answers = 0.0
        self.evictions_to_lose = 0
        self.parsed: Callable[[Session], None] = lambda _: None
        self.executed = 0
        self._backends: list[Backend] = []
        self._stopped = False
        self._late: list[Callable[[], None]] = []

    def accept(self, answer: Callable[[bytes], None], hang_up: Callable[[], None], address: str) -> Backend:
        """Take a connection."""
        del address
        backend = Backend(self, answer, hang_up)
        self._backends.append(backend)
        return backend

    def cancel(self, pid: int) -> None:
        """Cancel what a session does."""
        for session in list(self.database.sessions):
            if session.pid == pid:
                session.cancel()

    def kill_one(self) -> None:
        """End a session, as an administrator does."""
        sessions = self.database.sessions
        if sessions:
            victim = self.world.dice.choice(sessions)
            self.world.tell(f"{victim.name} is ended")
            victim.terminate(
                PgError("57P01", "terminating connection due to administrator command", fatal=True)
            )

    def freeze_one(self, seconds: float) -> None:
        """Stop the process of a session for a while."""
        sessions = [session for session in self.database.sessions if not session.frozen]
        if sessions:
            victim = self.world.dice.choice(sessions)
            self.world.tell(f"{victim.name} is frozen for {seconds:.3f} s")
            victim.frozen = True
            self.world.after(seconds, victim.thaw)

    def crash(self, down_s: float) -> None:
        """End, and come back with all that was committed."""
        self.world.tell(f"{self.name} crashes for {down_s:.3f} s")
        self.up = False
        for session in list(self.database.sessions):
            session.close()
        backends, self._backends = self._backends, []
        for backend in backends:
            backend.die()

        def again() -> None:
            self.up = True

        self.world.after(down_s, again)

    def forget(self, backend: Backend) -> None:
        """A connection is over."""
        if backend in self._backends:
            self._backends.remove(backend)


class Backend:
    """One connection: messages in, answers out, one after the other."""

    def __init__(
        self, server: PostgresServer, answer: Callable[[bytes], None], hang_up: Callable[[], None]
    ) -> None:
        self.server, self.hang_up = server, hang_up
        self._answer = answer
        self._bytes = b""
        self._inbox: deque[tuple[str, bytes]] = deque()
        self.session: Session | None = None
        self._working = False
        self._skipping = False
        self._closed = False
        self._texts: dict[bytes, str] = {}
        self._portal: tuple[str, list[Literal_]] = ("", [])
        self._lost_answer = False
        self._copied = b""

    # Peer

    def received(self, data: bytes) -> None:
        """Take bytes."""
        self._bytes += data
        while (message := self._message()) is not None:
            self._inbox.append(message)
        self._go_on()

    def heard(self, data: bytes) -> None:
        """Nothing depends on it here."""

    def lost(self) -> None:
        """The connection has ended: seen behind what was sent before."""
        self._inbox.append(("end", b""))
        self._go_on()

    def die(self) -> None:
        """The server has crashed: what was not executed yet never is, not by a frozen backend either."""
        self._closed = True
        self.hang_up()

    def _message(self) -> tuple[str, bytes] | None:
        started = self.session is not None or any(kind == "start" for kind, _ in self._inbox)
        head = 1 if started else 0
        if len(self._bytes) < head + 4:
            return None
        (length,) = struct.unpack_from("!i", self._bytes, head)
        if len(self._bytes) < head + length:
            return None
        body = self._bytes[head + 4 : head + length]
        kind = self._bytes[:1].decode() if started else "start"
        self._bytes = self._bytes[head + length :]
        return kind, body

    def _go_on(self) -> None:
        while self._inbox and not self._working and not self._closed:
            session = self.session
            if session is not None and session.frozen:
                self.server.world.after(0.01, self._go_on)
                return
            kind, body = self._inbox.popleft()
            if self._skipping and kind not in ("S", "end", "X"):
                continue
            self._handle(kind, body)

    def _handle(self, kind: str, body: bytes) -> None:  # noqa: C901 - one branch for each message
        match kind:
            case "start":
                self._start(body)
            case "Q":
                self._simple(list(split(body.rstrip(b"\0").decode())))
            case "P":
                name, _, rest = body.partition(b"\0")
                self._texts[name] = rest.partition(b"\0")[0].decode()
                assert self.session is not None
                self.session.parsed()
                self._send("1")
                self.server.parsed(self.session)
            case "D":
                self._describe(self._texts[body[1:].rstrip(b"\0")])
            case "B":
                self._bind(body)
            case "E":
                self._execute()
            case "S":
                self._sync()
            case "C":
                self._send("3")
            case "d" | "c" | "f":
                self._copies(kind, body)
            case "H":
                pass
            case "X" | "end":
                self._end()
                self.hang_up()

    def _start(self, body: bytes) -> None:
        (code,) = struct.unpack_from("!i", body)
        if code == _CANCEL:
            self.server.cancel(struct.unpack_from("!ii", body, 4)[0])
            self._end()
            self.hang_up()
            return
        assert code == _PROTOCOL, code
        self.session = session = self.server.database.connect()
        session.ended = self._ended
        self._send("R", struct.pack("!i", 0))
        for name, value in _SETTINGS.items():
            self._send("S", f"{name}\0{value}\0".encode())
        self._send("K", struct.pack("!ii", session.pid, session.pid))
        self._ready()

    def _ended(self, error: PgError) -> None:
        """The server ends the session."""
        self._error(error)
        self._end()
        self.hang_up()

    def _end(self) -> None:
        self._closed = True
        self.server.forget(self)
        if self.session is not None:
            self.session.close()

    # Statements

    def _transaction(self) -> Transaction:
        session = self.session
        assert session is not None
        if session.transaction is None:
            session.transaction = session.database.begin(session, session.isolation, implicit=True)
        return session.transaction

    def _run(self, text: str, params: Sequence[Literal_], done: Callable[[Result | PgError], None]) -> None:
        session = self.session
        assert session is not None
        self._transaction()
        self.server.executed += 1
        self._working = True

        def finished(result: Result | PgError) -> None:
            self._working = False
            if not self._closed:
                done(result)
                self._go_on()

        session.run(execute(session, text, params), finished)

    def _simple(self, statements: list[str]) -> None:
        session = self.session
        assert session is not None
        if not statements:
            self._send("I")
            self._conclude()
            return

        if self.server.evictions_to_lose and "lockguard.evict" in statements[0]:
            self.server.evictions_to_lose -= 1
            self.server.world.tell("an eviction is lost with its connection")
            self._end()
            self.hang_up()
            return

        def done(result: Result | PgError) -> None:
            if isinstance(result, PgError):
                self._error(result)
                self._ready()
                return
            if session.copying:
                self._copied = b""
                self._send("G", struct.pack("!bh", 1, 3) + struct.pack("!hhh", 1, 1, 1))
                return
            if result.tag.startswith("COPY"):
                raise Unknown("COPY TO, for which asyncpg has its transport hold back what it reads")
            self._rows(result, binary=False, described=False)
            if len(statements) > 1:
                self._simple(statements[1:])
            else:
                self._conclude()

        self._run(statements[0], (), done)

    def _copies(self, kind: str, body: bytes) -> None:
        """Take a message of a COPY. Of one that was refused they still come, and nobody answers them."""
        session = self.session
        assert session is not None
        if not session.copying:
            return
        if kind == "d":
            self._copied += body
            return
        self._working = True

        def done(result: Result | PgError) -> None:
            self._working = False
            if self._closed:
                return
            if isinstance(result, PgError):
                self._error(result)
                self._ready()
            else:
                self._rows(result, binary=False, described=False)
                self._conclude()
            self._go_on()

        session.run(copied(session, self._rows_copied() if kind == "c" else None), done)

    def _rows_copied(self) -> list[list[Literal_]]:
        rows: list[list[Literal_]] = []
        at = _COPY_HEAD
        while (fields := struct.unpack_from("!h", self._copied, at)[0]) >= 0:
            at += 2
            rows.append([])
            for kind in ("text", "int8", "text")[:fields]:
                (length,) = struct.unpack_from("!i", self._copied, at)
                rows[-1].append(_decoded(kind, self._copied[at + 4 : at + 4 + length]))
                at += 4 + length
        return rows

    def _conclude(self) -> None:
        """The end of a message's own transaction."""
        session = self.session
        assert session is not None
        if session.transaction is not None and session.transaction.implicit:
            self._loses_answer(session.transaction)
            session.commit()
        self._ready()

    def _loses_answer(self, transaction: Transaction) -> None:
        if transaction.writes and self.server.world.dice.random() < self.server.lose_answers:
            self._lost_answer = True

    def _describe(self, text: str) -> None:
        types = [_OIDS[kind] for kind in parameters_of(text)]
        self._send("t", struct.pack("!h", len(types)) + b"".join(struct.pack("!i", oid) for oid in types))
        columns = _columns(text)
        if columns:
            self._send("T", _row_description(columns, binary=True))
        else:
            self._send("n")

    def _bind(self, body: bytes) -> None:
        _, _, rest = body.partition(b"\0")
        name, _, rest = rest.partition(b"\0")
        text = self._texts[name]
        (formats,) = struct.unpack_from("!h", rest)
        at = 2 + 2 * formats
        (count,) = struct.unpack_from("!h", rest, at)
        at += 2
        params: list[Literal_] = []
        for kind in parameters_of(text)[:count]:
            (length,) = struct.unpack_from("!i", rest, at)
            at += 4
            raw = None if length < 0 else rest[at : at + length]
            at += max(0, length)
            params.append(_decoded(kind, raw))
        self._portal = (text, params)
        self._send("2")

    def _execute(self) -> None:
        text, params = self._portal

        def done(result: Result | PgError) -> None:
            if isinstance(result, PgError):
                self._error(result)
                self._skipping = True
                return
            self._rows(result, binary=True, described=True)

        statements = split(text)
        if not statements:
            self._send("I")
            return
        self._run(statements[0], params, done)

    def _sync(self) -> None:
        self._skipping = False
        self._conclude()

    # Answers

    def _send(self, kind: str, body: bytes = b"") -> None:
        if not self._closed and not self._lost_answer:
            self._answer(kind.encode() + struct.pack("!i", len(body) + 4) + body)

    def _ready(self) -> None:
        session = self.session
        assert session is not None
        if self._lost_answer:
            self.server.world.tell(f"an answer to {session.name} is lost")
            self._end()
            self.hang_up()
            return
        self._send("Z", session.status.encode())
        session.idles()

    def _rows(self, result: Result, *, binary: bool, described: bool) -> None:
        if result.tag == "COMMIT" and self.session is not None and self.session.transaction is None:
            self._commit_answered()
        if result.columns and not described:
            self._send("T", _row_description(result.columns, binary=binary))
        for row in result.rows:
            cells = [
                _encoded(kind, value, binary=binary)
                for (_, kind), value in zip(result.columns, row, strict=True)
            ]
            self._send("D", struct.pack("!h", len(cells)) + b"".join(cells))
        self._send("C", result.tag.encode() + b"\0")

    def _commit_answered(self) -> None:
        if self.server.world.dice.random() < self.server.lose_answers:
            self._lost_answer = True

    def _error(self, error: PgError) -> None:
        severity = "FATAL" if error.fatal else "ERROR"
        fields = {"S": severity, "V": severity, "C": error.state, "M": error.message}
        fields |= {name: text for name, text in (("D", error.detail), ("H", error.hint)) if text}
        self._send("E", b"".join(f"{name}{text}\0".encode() for name, text in fields.items()) + b"\0")


def _columns(text: str) -> tuple[tuple[str, str], ...]:
    """The columns that a statement gives, before it is run."""
    if text.startswith('SELECT "resource"'):
        return (("resource", "text"), ("token", "int8"), ("op", "text"))
    if "select w.*" in text or text.startswith("select version") or text.endswith("returning version"):
        return (("version", "int8"),)
    if text.startswith("select accepted"):
        return (("accepted", "bool"), ("token", "int8"))
    if text.startswith("select broken"):
        return (("broken", "bool"), ("token", "int8"))
    if text.startswith("select lockguard.fence_id()"):
        return (("fence_id", "uuid"),)
    if text.startswith(("select lockguard.", "with lockguard_write")):
        return (("value", "int8"),)
    return ()


def _row_description(columns: Sequence[tuple[str, str]], *, binary: bool) -> bytes:
    described = [struct.pack("!h", len(columns))]
    for name, kind in columns:
        oid = _OIDS[kind]
        described.append(
            name.encode() + b"\0" + struct.pack("!ihihih", 0, 0, oid, _SIZES.get(oid, -1), -1, int(binary))
        )
    return b"".join(described)


def _decoded(kind: str, raw: bytes | None) -> Literal_:
    if raw is None:
        return None
    match kind:
        case "text":
            return raw.decode()
        case "uuid":
            return str(UUID(bytes=raw))
        case _:
            return int.from_bytes(raw, "big", signed=True)


def _encoded(kind: str, value: Any, *, binary: bool) -> bytes:
    if value is None:
        return struct.pack("!i", -1)
    if not binary:
        raw = str(value).encode()
    elif kind == "bool":
        raw = bytes([value])
    elif kind == "uuid":
        raw = value.bytes
    elif kind == "text":
        raw = str(value).encode()
    else:
        raw = struct.pack("!q", value)
    return struct.pack("!i", len(raw)) + raw
