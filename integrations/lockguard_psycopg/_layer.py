"""Fences psycopg's connections: each statement under a lease carries the lease's token.

psycopg runs everything as generators that send and await messages; its synchronous and its asynchronous
connection only differ in how ``wait`` drives them. So the layer is one class for both. It adds to

- ``_exec_command``, through which psycopg sends BEGIN, COMMIT, ROLLBACK and FETCH: BEGIN leaves in one
  message with the check of the leases, and COMMIT is sent only while they last;
- ``_start_query``, which psycopg calls before each statement of a cursor: a transaction that has not
  presented the leases yet presents them, and in autocommit mode the statement gets one of its own;
- ``wait``, around each operation: ends that transaction, and says what an error means to the leases.

What was presented is forgotten with the row lock that proves it: at the end of the transaction, and after an
error or a rollback to a savepoint, which may have released the fence's row.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators
from psycopg._cursor_base import BaseCursor
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.sql import Composable

from lockguard._context import current_leases
from lockguard.errors import ConfigurationError, LockguardError
from lockguard.text import kind_of as kind_of_value
from lockguard_postgres._claims import Limits, Presentation, first_of, presentation_for
from lockguard_postgres._errors import Meaning, NotCommitted
from lockguard_postgres._in_force import is_unfenced, leases_in_force
from lockguard_postgres._numbers import NUMBERS
from lockguard_postgres._presented import Presented
from lockguard_postgres._statements import (
    Kind,
    ends_in_savepoint,
    is_commit,
    kind_of,
    may_write_after,
    read_only_after,
)
from lockguard_postgres._unsealed import UNSEALED
from lockguard_psycopg._errors import ERRORS

if TYPE_CHECKING:
    from collections.abc import Generator

    from lockguard._lease import Lease

__all__ = ["FenceLayer"]

_LIMITS = Limits()
_OPEN_ATTEMPTS_MAX = 5
_IDLE, _ACTIVE = TransactionStatus.IDLE, TransactionStatus.ACTIVE
_IN_ERROR = TransactionStatus.INERROR
_OPEN = {TransactionStatus.INTRANS, _IN_ERROR}
_FETCH = "fetch"
# psycopg's generators that end a transaction, and so present nothing.
_ENDS = {"_commit_gen", "_rollback_gen", "_exit_gen"}
_END_WORK = {"_commit_gen", "_exit_gen", "_sync_gen"}
_PIPELINES = (psycopg.Pipeline, psycopg.AsyncPipeline)


class FenceLayer:
    """What fencing adds to a connection class of psycopg: a mixin in front of it."""

    if TYPE_CHECKING:
        pgconn: Any
        """The connection of libpq, which psycopg wraps."""
        _autocommit: bool
        _num_transactions: int
        _pipeline: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._presented = Presented()
        self._own = False
        """Whether the open transaction is the layer's, around one statement in autocommit mode."""
        self._text: str | None = None
        """The statement that a cursor is about to send."""
        self._bare = False
        """Whether the next BEGIN presents nothing, because what follows has to come before any query."""
        self._answered = False
        """Whether a COMMIT in a pipeline was answered, and nothing was sent since."""
        self._commits = 0
        """How many commits were answered."""
        self._in_doubt: Presentation | None = None
        """What is presented by the transaction whose COMMIT is under way."""
        self._swallowed: BaseException | None = None
        """The error that is raised once a COMMIT sent as text turns out to have been a rollback."""

    # -- What psycopg calls.

    if not TYPE_CHECKING:  # type checkers see psycopg's own signatures

        def _exec_command(self, command: Any, *args: Any, **options: Any) -> Generator[Any, Any, Any]:
            def sent() -> Generator[Any, Any, Any]:
                return super(FenceLayer, self)._exec_command(command, *args, **options)

            self._answered = False
            text = _as_text(self, command)
            match text.upper().split(maxsplit=2)[:2]:
                case ["BEGIN", *_]:
                    yield from self._begin(text, sent)
                case ["COMMIT"]:
                    yield from self._commit(sent)
                case ["ROLLBACK"]:
                    numbers = self._presented.numbers_taken()
                    self._presented.clear()
                    yield from sent()
                    NUMBERS.give_back(numbers)
                case ["ROLLBACK", "TO"]:
                    self._presented.forget()
                    yield from sent()
                case ["PREPARE", "TRANSACTION"] | ["COMMIT", "PREPARED"]:
                    if self._presented.leases or leases_in_force():
                        kind_of(text)  # which refuses it
                    yield from sent()
                case ["FETCH" | "MOVE", *_]:
                    if (
                        self.pgconn.transaction_status != _IDLE
                    ):  # a query that writes does so as it is fetched
                        yield from self._present(leases_in_force())
                    return (yield from sent())
                case _:
                    return (yield from sent())

        def _start_query(self) -> Generator[Any, Any, None]:
            text, self._text = self._text, None
            self._answered = False
            leases = leases_in_force()
            if not leases:
                yield from self._start_plainly(text)
            else:
                if text is None:
                    raise ConfigurationError(
                        f"psycopg {psycopg.__version__} sends a statement that the fence has not seen: use"
                        " another version"
                    )
                yield from self._start_fenced(text, leases)

    # -- Before a statement.

    def _start_plainly(self, text: str | None) -> Generator[Any, Any, None]:
        """Before a statement without a lease, perhaps in a transaction that began under one."""
        self._presented.forget()  # it may be a ROLLBACK TO that frees the fence's rows
        if self._presented.leases and text is not None and is_commit(text):
            yield from self._before_commit_as_text()
            return
        yield from super()._start_query()  # type: ignore[misc]
        if text is not None:
            self._note_mode(text)

    def _start_fenced(self, text: str, leases: tuple[Lease, ...]) -> Generator[Any, Any, None]:
        kind = kind_of(text)
        if kind is not Kind.ROLLBACK:  # a rollback is right whatever became of the lease
            for lease in leases:
                lease.ensure()
        if self._autocommit and self._pipeline and not self._num_transactions and self._has_sent():
            yield from self._settle()  # what went before is a transaction of its own
        if self.pgconn.transaction_status == _IDLE and not self._has_sent():
            yield from self._outside(kind, text, leases)
        else:
            self._note_mode(text)
            yield from self._inside(kind, text, leases)

    def _outside(self, kind: Kind, text: str, leases: tuple[Lease, ...]) -> Generator[Any, Any, None]:
        """Before a statement outside of any transaction."""
        con: Any = self
        if self._autocommit:
            self._presented.read_only = kind is Kind.BEGIN and read_only_after(text) is True
            if kind is Kind.ORDINARY and text.strip():
                self._own = True
                yield from con._exec_command(b"BEGIN")
            return
        self._bare = kind is not Kind.ORDINARY
        try:
            yield from super()._start_query()  # type: ignore[misc]
        finally:
            self._bare = False
        self._note_mode(text)
        if kind is Kind.ORDINARY:
            yield from self._present(leases)  # has been done with BEGIN, unless that was READ ONLY

    def _note_mode(self, text: str) -> None:
        """Before ``text`` in a transaction that is READ ONLY as far as is known."""
        if self._presented.read_only and may_write_after(text):
            self._presented.read_only = False

    def _inside(self, kind: Kind, text: str, leases: tuple[Lease, ...]) -> Generator[Any, Any, None]:
        """Before a statement in a transaction."""
        match kind:
            case Kind.COMMIT:
                yield from self._before_commit_as_text()
            case Kind.ROLLBACK if ends_in_savepoint(text):
                self._presented.forget()
            case Kind.ROLLBACK:
                self._presented.clear()  # with AND CHAIN the next one is open already
            case Kind.ORDINARY:
                yield from self._present(leases)
            case _:
                pass

    def _present(self, leases: tuple[Lease, ...]) -> Generator[Any, Any, None]:
        """Present ``leases``, unless this transaction has presented them already or is read-only."""
        tx = self._presented
        if not leases or tx.read_only or self.pgconn.transaction_status == _IN_ERROR:
            return
        sequence = NUMBERS.alone() if tx.presentation is None else None
        presentation = presentation_for(leases, sequence=sequence, limits=_LIMITS)
        if tx.claims.issuperset(presentation.claims):
            return
        tx.unaccepted = True  # before anything is sent: what interrupts it need not be an error of psycopg's
        if self._pipeline:
            yield from self._queue(presentation.piped_sql())
        else:
            try:
                yield from self._send(presentation.sql())
            except psycopg.Error as exc:
                self._tell_of_the_check(exc, leases)
                raise
        tx.note(presentation, leases)

    # -- Transactions.

    def _begin(self, text: str, sent: Any) -> Generator[Any, Any, None]:
        tx = self._presented
        tx.clear()
        leases = leases_in_force()
        for lease in leases:
            lease.ensure()
        tx.read_only = read_only_after(text) is True
        if not leases or tx.read_only or self._bare:
            yield from sent()
            return
        for attempt in range(_OPEN_ATTEMPTS_MAX):
            sequence = NUMBERS.take(first_of(leases))
            presentation = presentation_for(leases, sequence=sequence, limits=_LIMITS)
            if self._pipeline:
                yield from sent()
                yield from self._queue(presentation.piped_sql())
            else:
                try:
                    yield from self._send(f"{text};{presentation.sql()}")
                except psycopg.Error as exc:
                    yield from self._roll_back()
                    NUMBERS.give_back((sequence,))
                    # No statement of the caller has run yet, so a snapshot that a seal overtook is renewed.
                    if attempt + 1 < _OPEN_ATTEMPTS_MAX and ERRORS.meaning_of(exc) is Meaning.RETRY:
                        continue
                    self._tell_of_the_check(exc, leases)
                    raise
            tx.note(presentation, leases, begins=True)
            return

    def _before_commit(self) -> Generator[Any, Any, None]:
        """Refuse to commit under a lease that has ended; the transaction is rolled back."""
        tx = self._presented
        if self._pipeline:  # only the answers tell whether the transaction has failed
            yield from self._settle()
        try:
            for lease in tx.leases.values():
                lease.ensure()
        except LockguardError:
            yield from self._roll_back()
            raise
        if tx.doubt and tx.leases and self.pgconn.transaction_status != _IN_ERROR:
            # The record of the outcome may have been rolled back with a savepoint: record it anew.
            leases = tuple(tx.leases.values())
            presentation = presentation_for(leases, sequence=NUMBERS.alone(), limits=_LIMITS)
            yield from self._queue(presentation.piped_sql())
            tx.note(presentation, leases)

    def _before_commit_as_text(self) -> Generator[Any, Any, None]:
        yield from self._before_commit()
        self._in_doubt = self._presented.presentation
        is_known = self._in_doubt is not None or self._presented.unaccepted
        if is_known and self.pgconn.transaction_status == _IN_ERROR:
            self._swallowed = _not_committed()

    def _commit(self, sent: Any) -> Generator[Any, Any, None]:
        tx = self._presented
        if not tx.leases and not tx.unaccepted:
            yield from sent()
            self._commits += not self._pipeline  # there it is not answered yet
            return
        yield from self._before_commit()
        failed, refusal = self.pgconn.transaction_status == _IN_ERROR, tx.refusal
        if self.pgconn.status != ConnStatus.BAD:  # where it is, nothing is sent
            self._in_doubt = tx.presentation
        yield from sent()
        if self._pipeline:
            yield from self._settle()
        self._committed()
        if failed:
            # The server reports this only in the command tag, which psycopg does not examine.
            raise _not_committed() from refusal

    def _committed(self) -> None:
        numbers, self._in_doubt = self._presented.numbers_taken(), None
        self._answered = bool(self._pipeline)
        self._commits += 1
        self._presented.clear()
        NUMBERS.give_back(numbers)

    def _roll_back(self) -> Generator[Any, Any, None]:
        """Roll back with nothing added; a connection that cannot has lost the transaction anyway."""
        self._presented.clear()
        if self.pgconn.transaction_status in _OPEN:
            try:
                yield from self._queue("ROLLBACK")
                if self._pipeline:
                    yield from self._settle()
            except psycopg.Error:
                self.pgconn.finish()  # or it would return to its pool inside the transaction

    # -- Around each operation.

    def _guarded(self, operation: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """``operation``, which ``wait`` drives, with what has to follow it."""
        owner = _owner(operation)
        if isinstance(owner, BaseCursor):
            _add_layer(owner)
        if self._own and self.pgconn.transaction_status in _OPEN:
            # Ctrl-C came between two steps of a statement: the next one must not commit what it has left.
            self._own = False
            yield from self._roll_back()
        if self.pgconn.transaction_status == _IDLE and not self._has_sent():
            self._presented.clear()
        try:
            result = yield from operation
            yield from self._end_own()
        except Exception as raised:
            if self._is_over(operation) and isinstance(raised, psycopg.Error):
                raise  # to ``wait``
            exc = _first_of(raised)
            if (said := (yield from self._what_ended(exc))) is not None:
                raise said from exc
            raise
        waits = self._in_doubt is not None or self._swallowed is not None
        if waits and self.pgconn.transaction_status != _ACTIVE:
            swallowed, self._swallowed = self._swallowed, None
            self._committed()
            if swallowed is not None:
                raise swallowed
        return result

    def _is_over(self, operation: Generator[Any, Any, Any]) -> bool:
        """Whether all work is committed, and ``operation`` only brings a pipeline to its end.

        If it fails, the connection is closed, and that must not look like a failure of the work, or it is
        done twice. Nor must psycopg's leaving of pipeline mode, which it tries next on an open connection.
        """
        return self._answered and getattr(operation, "__name__", "") in _END_WORK

    def _is_done(self, operation: Generator[Any, Any, Any]) -> bool:
        """Whether it ends a pipeline whose work is committed, on a connection that was lost since.

        psycopg would raise before it comes to :meth:`_guarded`.
        """
        lost = self.pgconn.status == ConnStatus.BAD
        return lost and self._is_over(operation) and isinstance(_owner(operation), _PIPELINES)

    def _what_ended(self, exc: Exception) -> Generator[Any, Any, LockguardError | None]:
        """Bring the connection in order after ``exc``; returns the error to raise in its place, if any."""
        unknown, self._in_doubt, self._swallowed = self._in_doubt, None, None
        self._text = None
        leases = self._leases()
        if isinstance(exc, psycopg.Error):
            self._presented.forget()
            self._presented.refusal = ERRORS.stale(exc) or self._presented.refusal
        yield from self._end_own(failed=True)
        if unknown is not None and isinstance(exc, psycopg.Error) and _leaves_in_doubt(exc):
            return unknown.unknown()
        return ERRORS.ended(exc, leases)

    def _end_own(self, *, failed: bool = False) -> Generator[Any, Any, None]:
        """End the transaction around a statement in autocommit mode, once that statement is over."""
        if not self._own:
            return
        try:
            if self._pipeline:
                yield from self._settle()
        except psycopg.Error:
            if not failed:
                raise
        status = self.pgconn.transaction_status
        if status == _ACTIVE:  # a COPY or a stream goes on; what ends it comes through here too
            return
        self._own = False
        if failed or status == _IN_ERROR:
            yield from self._roll_back()
        elif status == TransactionStatus.INTRANS:
            con: Any = self
            yield from con._exec_command(b"COMMIT")
        else:  # psycopg has read the statement's answer, and perhaps the end of the connection behind it
            raise NotCommitted("the connection was lost before COMMIT was sent: nothing was committed")

    def _unsealed(self, operation: Any) -> tuple[Lease, ...]:
        """The leases in force that have to be sealed before ``operation``, which may present them."""
        over = is_unfenced() or getattr(operation, "__name__", "") in _ENDS
        leases = () if over else current_leases()
        return tuple(lease for lease in leases if UNSEALED.waits(lease.grant.id))

    def _leases(self) -> tuple[Lease, ...]:
        """All leases that the current statement, or the transaction around it, may have presented."""
        found = {**self._presented.leases}
        if not is_unfenced():
            found |= {lease.grant.id: lease for lease in current_leases()}
        return tuple(found.values())

    def _tell_of_the_check(self, exc: BaseException, leases: tuple[Lease, ...]) -> None:
        if ERRORS.meaning_of(exc) is Meaning.CONFIGURATION:
            raise ERRORS.set_up_error(exc) from exc
        ERRORS.note_on_check(exc, leases)

    # -- Messages.

    def _has_sent(self) -> bool:
        """Whether the pipeline, if there is one, has commands or answers under way."""
        pipeline = self._pipeline
        return bool(pipeline and (pipeline.command_queue or pipeline.result_queue))

    def _send(self, query: str) -> Generator[Any, Any, None]:
        """Send several statements as one simple query."""
        self._check_connection_ok()  # type: ignore[attr-defined]
        self.pgconn.send_query(query.encode())
        for result in (yield from generators.execute(self.pgconn)):
            if result.status == ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result)

    def _queue(self, query: str) -> Generator[Any, Any, None]:
        """Send one statement, or give it to the pipeline, with nothing added."""
        parent: Any = super()
        yield from parent._exec_command(query.encode())

    def _settle(self) -> Generator[Any, Any, None]:
        """Have the server answer all that the pipeline has sent; raises the first error."""
        pipeline, first = self._pipeline, None
        pipeline._enqueue_sync()
        for step in (pipeline._communicate_gen(), pipeline._fetch_gen(flush=True)):
            try:
                yield from step
            except psycopg.Error as exc:
                first = first or exc
        if first is not None:
            raise first


class CursorLayer:
    """What fencing adds to a cursor: the connection learns the statement before it is sent."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def _start_query(self, query: Any = None) -> Generator[Any, Any, None]:
            con = self._conn
            if query is not None:
                con._text = _as_text(con, query)
            elif con._text is None:
                con._text = _FETCH  # a server-side cursor that other code has declared
            yield from super()._start_query(query)

        def _start_copy_gen(self, statement: Any, *args: Any, **options: Any) -> Generator[Any, Any, Any]:
            self._conn._text = _as_text(self._conn, statement)
            return (yield from super()._start_copy_gen(statement, *args, **options))


def _owner(operation: Generator[Any, Any, Any]) -> Any:
    """Whose generator this is: a cursor's, a transaction's, a pipeline's, the connection's."""
    frame = getattr(operation, "gi_frame", None)
    return None if frame is None else frame.f_locals.get("self")


def _add_layer(cursor: Any) -> None:
    """Put the layer on a cursor, however it was made."""
    if not isinstance(cursor, CursorLayer):
        kind: Any = type(cursor)
        cursor.__class__ = _with_layer(kind)


@functools.cache
def _with_layer(base: Any) -> Any:
    """A subclass of ``base`` with the cursor's layer first; stateless, so that a cursor can be made one."""
    return type(base)(
        f"Fenced{base.__name__}", (CursorLayer, base), {"__slots__": (), "__module__": __name__}
    )


def _as_text(con: Any, query: object) -> str:
    """A statement as text.

    Raises:
        ConfigurationError: it is of a kind that cannot be examined.
    """
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(con.info.encoding)
    if isinstance(query, Composable):
        return query.as_string(con)
    raise ConfigurationError(
        "a statement on a fenced connection is text, bytes or made by psycopg.sql, and this is"
        f" {kind_of_value(query)}"
    )


def _leaves_in_doubt(exc: psycopg.Error) -> bool:
    """Whether a COMMIT that failed with ``exc`` may have taken effect: nobody denied it."""
    return not exc.sqlstate or ERRORS.leaves_in_doubt(exc)


def _first_of(exc: Exception) -> Exception:
    """The error behind a pipeline's abort: psycopg raises the last of several answers."""
    found: BaseException | None = exc
    while isinstance(found, psycopg.errors.PipelineAborted):
        found = found.__context__
    return found if isinstance(found, psycopg.Error) else exc


def _not_committed() -> NotCommitted:
    return NotCommitted(
        "Postgres rolled the transaction back: a statement in it failed and the error was swallowed;"
        " let it through, or use a savepoint (conn.transaction()) around what may fail"
    )
