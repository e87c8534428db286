"""A model of a Postgres database: versions of rows, transactions, savepoints, time limits.

It says what a statement does, and a :class:`Session` what becomes of it: it waits for a lock, fails, is
cancelled or ended. The fence's own functions are in :mod:`lockguard_lab.sim.fenced.functions`.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

from lockguard_lab.sim.fenced.locks import Key, Locks, Mode, Waiter

__all__ = ["Clock", "Database", "Level", "PgError", "Result", "Session", "Steps", "Transaction", "Wait"]

_DEADLOCK_S = 1.0


class Clock(Protocol):
    """Time, and what happens in it."""

    def now(self) -> float:
        """Seconds."""
        ...

    def wall(self) -> float:
        """Seconds since 1970."""
        ...

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have ``action`` called later."""
        ...


class PgError(Exception):
    """An error that the server sends."""

    def __init__(
        self, state: str, message: str, *, detail: str = "", hint: str = "", fatal: bool = False
    ) -> None:
        super().__init__(message)
        self.state, self.message, self.detail, self.hint, self.fatal = state, message, detail, hint, fatal


@dataclass(frozen=True)
class Result:
    """What a statement gives: its command tag, and its rows with the types of their columns."""

    tag: str
    columns: tuple[tuple[str, str], ...] = ()
    rows: tuple[tuple[object, ...], ...] = ()


@dataclass(frozen=True)
class Wait:
    """What a statement needs before it goes on."""

    key: Key
    mode: Mode


Steps = Generator[Wait, None, Any]
"""A statement under way: it yields what it waits for."""


@dataclass
class Level:
    """What was done since a savepoint."""

    name: str
    locks: list[tuple[Key, Mode]] = field(default_factory=list)
    writes: dict[Key, object] = field(default_factory=dict)


class Transaction:
    """One transaction."""

    def __init__(self, session: Session, number: int, isolation: str, *, implicit: bool) -> None:
        self.session, self.number, self.isolation, self.implicit = session, number, isolation, implicit
        self.levels = [Level("")]
        self.snapshot: int | None = None
        self.failed = False
        self.lock_ms = session.lock_ms
        self.idle_ms = 0
        self.name = f"transaction {number}"

    @property
    def repeatable(self) -> bool:
        """Whether all its statements see one state."""
        return self.isolation != "read committed"

    @property
    def writes(self) -> dict[Key, object]:
        """What it has written."""
        return {key: value for level in self.levels for key, value in level.writes.items()}

    def holds(self, key: Key, mode: Mode) -> bool:
        """Whether it has a lock."""
        return any((key, mode) in level.locks for level in self.levels)

    def own(self, key: Key) -> tuple[bool, object]:
        """Whether it has written a row, and what."""
        for level in reversed(self.levels):
            if key in level.writes:
                return True, level.writes[key]
        return False, None


class Database:
    """The committed rows, and who works on them.

    Args:
        clock: time.

    Attributes:
        committed: called with each transaction that has written, when it commits.
        sessions: the open ones.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.locks = Locks()
        self.sessions: list[Session] = []
        self.committed: Callable[[Transaction], None] = lambda _: None
        self._versions: dict[Key, list[tuple[int, object]]] = {}
        self._commits = 0
        self._numbers = itertools.count(1)
        self._pids = itertools.count(4_001)
        self._ready: list[tuple[int, Session]] = []
        self._pumping = False

    @property
    def commits(self) -> int:
        """How many transactions have committed."""
        return self._commits

    def connect(self) -> Session:
        """A new session."""
        session = Session(self, next(self._pids))
        self.sessions.append(session)
        return session

    def begin(self, session: Session, isolation: str, *, implicit: bool) -> Transaction:
        """A new transaction."""
        return Transaction(session, next(self._numbers), isolation, implicit=implicit)

    # Rows.

    def latest(self, key: Key) -> object:
        """The committed row; ``None`` if there is none."""
        versions = self._versions.get(key)
        return versions[-1][1] if versions else None

    def changed_since(self, key: Key, snapshot: int) -> bool:
        """Whether a row was committed after a snapshot."""
        versions = self._versions.get(key)
        return bool(versions) and versions[-1][0] > snapshot  # type: ignore[index]

    def as_of(self, key: Key, snapshot: int) -> object:
        """The row as a snapshot shows it."""
        for number, value in reversed(self._versions.get(key, ())):
            if number <= snapshot:
                return value
        return None

    def keys(self, kind: Hashable) -> list[Key]:
        """The keys of all committed rows of a table."""
        return [key for key in self._versions if key[0] == kind]

    def commit(self, transaction: Transaction) -> None:
        """Make what a transaction has written seen, and let go of its locks."""
        writes = transaction.writes
        if writes:
            self._commits += 1
            for key, value in writes.items():
                self._versions.setdefault(key, []).append((self._commits, value))
            self.committed(transaction)
        self.unlock(transaction, transaction.levels)

    def unlock(self, transaction: Transaction, levels: list[Level]) -> None:
        """Let go of what was locked in some levels and in no other."""
        kept = Counter(lock for level in transaction.levels if level not in levels for lock in level.locks)
        for level in levels:
            for key, mode in level.locks:
                if not kept[key, mode]:
                    self.locks.release(transaction, key, mode)
            level.locks.clear()

    # Sessions whose lock was granted go on one after the other, and not inside each other.

    def resume(self, session: Session) -> None:
        """Have a session go on."""
        heapq.heappush(self._ready, (next(self._numbers), session))

    def pump(self) -> None:
        """Have all sessions go on that can."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._ready:
                heapq.heappop(self._ready)[1].advance()
        finally:
            self._pumping = False


class Session:
    """One backend. A statement is begun by :meth:`run`, and ends by a call of what was given there.

    Attributes:
        pid: its number.
        lock_ms: its default bound on waiting for a lock, in ms; 0 for none.
        ended: called when the server ends the session, with the error that it sends.
        frozen: whether it executes nothing for now, as a process that was stopped.
        copying: whether a COPY of its waits for rows.
        changed_at: since when it is in its state.
    """

    def __init__(self, database: Database, pid: int) -> None:
        self.database, self.pid = database, pid
        self.transaction: Transaction | None = None
        self.lock_ms = 0
        self.isolation = "read committed"
        self.ended: Callable[[PgError], None] = lambda _: None
        self.frozen = False
        self.copying = False
        self.over = False
        self.changed_at = database.clock.now()
        self._steps: Steps | None = None
        self._done: Callable[[Any], None] = lambda _: None
        self._waiter: Waiter | None = None
        self._turn = 0
        self._to_end: PgError | None = None
        self._advance_later = False

    @property
    def name(self) -> str:
        """For people."""
        return f"session {self.pid}"

    @property
    def busy(self) -> bool:
        """Whether a statement is under way that does not wait for its client."""
        return self._steps is not None

    @property
    def waits_for(self) -> Wait | None:
        """The lock that it waits for."""
        return None if self._waiter is None else Wait(self._waiter.key, self._waiter.mode)

    @property
    def status(self) -> str:
        """As ReadyForQuery tells it: idle, in a transaction, in a failed one."""
        transaction = self.transaction
        if transaction is None or transaction.implicit:
            return "I"
        return "E" if transaction.failed else "T"

    def run(self, steps: Steps, done: Callable[[Any], None]) -> None:
        """Begin a statement; ``done`` is called with what it gives, or with its error."""
        assert self._steps is None, f"{self.name} is busy"
        self._steps, self._done = steps, done
        self._turn += 1
        self.changed_at = self.database.clock.now()
        self.advance()
        self.database.pump()

    def advance(self) -> None:
        """Go on until the next wait, or the end of the statement."""
        if self._steps is None:
            return
        if self.frozen:
            self._advance_later = True
            return
        result: Any
        try:
            while True:
                wait = next(self._steps)
                if not self._have(wait):
                    return
        except StopIteration as stop:
            result = stop.value
        except PgError as error:
            result = error
        self._finish(result)

    def _have(self, wait: Wait) -> bool:
        transaction = self.transaction
        assert transaction is not None
        if not transaction.holds(wait.key, wait.mode) and not self.database.locks.try_(
            transaction, wait.key, wait.mode
        ):
            self._stand_in_line(transaction, wait)
            return False
        transaction.levels[-1].locks.append((wait.key, wait.mode))
        return True

    def _stand_in_line(self, transaction: Transaction, wait: Wait) -> None:
        database, turn, level = self.database, self._turn, transaction.levels[-1]

        def granted() -> None:
            self._waiter = None
            level.locks.append((wait.key, wait.mode))
            database.resume(self)

        waiter = database.locks.wait(transaction, wait.key, wait.mode, granted)
        if not database.locks.waits(waiter):
            return  # it was granted at once
        self._waiter = waiter
        if transaction.lock_ms:
            late = PgError("55P03", "canceling statement due to lock timeout")
            database.clock.after(transaction.lock_ms / 1000, lambda: self._stop_waiting(turn, waiter, late))
        database.clock.after(_DEADLOCK_S, lambda: self._look_for_deadlock(turn, waiter))

    def _stop_waiting(self, turn: int, waiter: Waiter, error: PgError) -> None:
        if self._turn == turn and self._waiter is waiter and not self.frozen:
            self.database.locks.give_up(waiter)
            self._waiter = None
            self._finish(error)
            self.database.pump()

    def _look_for_deadlock(self, turn: int, waiter: Waiter) -> None:
        if self._turn != turn or self._waiter is not waiter:
            return
        seen: set[int] = set()

        def leads_here(one: Any) -> bool:
            session = one.session
            if session._waiter is None or id(session) in seen:
                return False
            seen.add(id(session))
            return any(
                other.session is self or leads_here(other)
                for other in self.database.locks.blockers(session._waiter)
            )

        if any(leads_here(other) for other in self.database.locks.blockers(waiter)):
            self._stop_waiting(turn, waiter, PgError("40P01", "deadlock detected"))

    def _finish(self, result: Any) -> None:
        self._steps = None
        self._turn += 1
        self.changed_at = self.database.clock.now()
        transaction = self.transaction
        if isinstance(result, PgError) and transaction is not None:
            if transaction.implicit:
                self.roll_back()
            else:
                # Postgres lets go at once of what was locked since the last savepoint.
                transaction.failed = True
                transaction.levels[-1].writes.clear()
                self.database.unlock(transaction, [transaction.levels[-1]])
        done, self._done = self._done, lambda _: None
        done(result)
        self.database.pump()

    def roll_back(self) -> None:
        """Undo the transaction."""
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            levels, transaction.levels = transaction.levels, []
            self.database.unlock(transaction, levels)
            self.database.pump()

    def commit(self) -> None:
        """Commit the transaction."""
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            self.database.commit(transaction)
            self.database.pump()

    def idles(self) -> None:
        """The client has been answered: from now on its time to idle in a transaction runs."""
        transaction = self.transaction
        if transaction is None or transaction.implicit or not transaction.idle_ms:
            return
        turn = self._turn
        error = PgError("25P03", "terminating connection due to idle-in-transaction timeout", fatal=True)
        self.database.clock.after(
            transaction.idle_ms / 1000, lambda: self.terminate(error) if self._turn == turn else None
        )

    def parsed(self) -> None:
        """A statement was parsed: Postgres takes a snapshot for it, and is not idle until it is run."""
        self._turn += 0 if self.busy else 1
        self.changed_at = self.database.clock.now()
        transaction = self.transaction
        if transaction is not None and not transaction.failed and transaction.snapshot is None:
            transaction.snapshot = self.database.commits

    def cancel(self) -> None:
        """Stop the statement, as a cancel request does."""
        if self._steps is not None and self._waiter is not None:
            self._stop_waiting(
                self._turn, self._waiter, PgError("57014", "canceling statement due to user request")
            )

    def terminate(self, error: PgError) -> None:
        """End the session; one that is frozen ends when it goes on."""
        if self.over:
            return
        if self.frozen:
            self._to_end = error
            return
        self.close()
        self.ended(error)

    def close(self) -> None:
        """The session is over; what was not committed is undone."""
        if self.over:
            return
        self.over = True
        self._turn += 1
        self._steps = None
        if self._waiter is not None:
            self.database.locks.give_up(self._waiter)
            self._waiter = None
        self.roll_back()
        if self in self.database.sessions:
            self.database.sessions.remove(self)
        self.database.pump()

    def thaw(self) -> None:
        """Go on after having been frozen."""
        self.frozen = False
        if self._to_end is not None:
            error, self._to_end = self._to_end, None
            self.terminate(error)
        elif self._advance_later:
            self._advance_later = False
            self.advance()
            self.database.pump()
