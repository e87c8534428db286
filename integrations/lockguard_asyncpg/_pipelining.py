"""Sends a write of the caller and the check before it in one round trip.

Postgres runs all messages up to the next Sync in one transaction, in the order in which they came, and skips
the rest after an error. asyncpg sends a statement with parameters as Bind, Execute, Sync. So the check is
sent as Parse, Bind, Execute right before it: it comes first, locks the fence's row until the statement is
committed, and if it fails, the statement is not run. The caller's text, parameters, command tag, rows and
errors and asyncpg's cache of prepared statements stay as they are. A text without parameters, which asyncpg
sends as a simple query, is one transaction together with the checks in the text before it.

asyncpg reads past the answers to the check: it skips ParseComplete and BindComplete where it waits for rows,
keeps the last command tag only, and the check gives no row.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from lockguard.errors import ConfigurationError, LockguardError
from lockguard_asyncpg._errors import (
    DATABASE_ERRORS,
    Meaning,
    ended,
    leaves_in_doubt,
    meaning_of,
    note_on_check,
    set_up_error,
)
from lockguard_asyncpg._transaction_state import rolled_back, send_plain
from lockguard_postgres._claims import Limits, Presentation, first_of, presentation_for
from lockguard_postgres._literals import number, text
from lockguard_postgres._numbers import NUMBERS
from lockguard_postgres._unsealed import BY_ITSELF, UNSEALED, in_turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lockguard._lease import Lease

__all__ = [
    "NotPipelined",
    "PipelinedCheck",
    "can_pipeline",
    "executor_with_check",
    "run_as_text",
    "run_pipelined",
]

T = TypeVar("T")
# Parts of asyncpg without public access.
_PROTOCOL = "_protocol"
_TRANSPORT = "_transport"
_HOOK = "_do_execute"
_CANCELLING = "_is_cancelling"
# More parameters than a statement can have: asyncpg refuses them after it has seen the connection to be free.
_TOO_MANY = (None,) * 32_768
_TOO_MANY_SAYS = "cannot exceed 32767"
_RESOLVE_MS = 1_000


class NotPipelined(Exception):
    """Nothing was done: the snapshot is older than the lease's seal, or the seal has to be made by itself."""


class PipelinedCheck:
    """A check that is to be sent right before its statement.

    Attributes:
        left: whether it was sent, and the statement with it.
        executor: asyncpg's own function that sends the statement, once it is known.
    """

    __slots__ = ("_con", "_leases", "_presentation", "executor", "left")

    def __init__(self, con: Any, leases: tuple[Lease, ...], presentation: Presentation) -> None:
        self._con = con
        self._leases = leases
        self._presentation = presentation
        self.left = False
        self.executor: Callable[..., Awaitable[Any]] | None = None

    async def __call__(self, stmt: Any, timeout_s: float | None) -> Any:
        """Called by asyncpg in place of its own executor, once the statement has been prepared."""
        assert self.executor is not None
        return await self.go(stmt, lambda: self.executor(stmt, timeout_s))  # type: ignore[misc]

    async def go(self, stmt: Any, send: Callable[[], Awaitable[T]]) -> T:
        """Send the check, and the statement right after it."""
        con = self._con
        protocol = getattr(con, _PROTOCOL)
        for lease in self._leases:
            lease.ensure()
        # From here on nothing may be sent in between, nor anything while another task waits for an answer.
        try:
            await protocol.bind_execute(stmt, _TOO_MANY, "", 0, False, None)  # noqa: FBT003 - asyncpg's own
        except asyncpg.InterfaceError as exc:
            if _TOO_MANY_SAYS not in str(exc):
                raise
        if not stmt.name:
            stmt.mark_unprepared()  # the check replaces it as the unnamed statement
        sent = protocol.queries_count
        getattr(con, _TRANSPORT).write(_messages(self._presentation.piped_sql()))
        self.left = True
        try:
            return await send()
        except BaseException:
            if protocol.queries_count == sent:
                self.left = False  # only the check was sent: the number that it recorded is of no write
                if not con.is_closed():
                    await _end_group(con, protocol)
            raise


def _messages(query: str) -> bytes:
    parse = b"\0" + query.encode("ascii") + b"\0\0\0"
    return b"".join(
        kind + struct.pack("!i", len(body) + 4) + body
        for kind, body in ((b"P", parse), (b"B", bytes(8)), (b"E", bytes(5)))
    )


async def _end_group(con: Any, protocol: Any) -> None:
    """Send the Sync after a check whose statement was not sent, for a wrong argument or a timeout.

    asyncpg cannot meet the answers to the check before it has written the Sync.
    """
    try:
        async with asyncio.timeout(1.0):
            nothing = await protocol.prepare(
                "", "select where false", None, record_class=protocol.get_record_class()
            )
            await protocol.bind_execute(nothing, (), "", 0, False, None)  # noqa: FBT003 - asyncpg's own
    except asyncpg.PostgresError:
        return  # the check was refused, and asyncpg has sent the Sync itself
    except BaseException:
        con.terminate()
        raise


def can_pipeline(con: Any) -> bool:
    """Whether this version of asyncpg lets a check go before a statement, and no cancel is in flight."""
    protocol = getattr(con, _PROTOCOL)
    return (
        hasattr(asyncpg.Connection, _HOOK)
        and hasattr(protocol, _CANCELLING)
        and not getattr(protocol, _CANCELLING)()
    )


def executor_with_check(check: PipelinedCheck | None, executor: Any) -> Any:
    """``executor`` with the check before it; unchanged if there is no check, or it is in use already."""
    if check is None or executor is check or check.executor is not None:
        return executor  # asyncpg's second try, or its own question about a type
    check.executor = executor
    return check


async def run_pipelined(
    con: Any,
    leases: tuple[Lease, ...],
    limits: Limits,
    send: Callable[[PipelinedCheck], Awaitable[T]],
    *,
    last: bool = False,
) -> T:
    """Run one statement by the extended protocol; ``send`` passes the check on to what asyncpg calls.

    With ``last`` its commit also closes the leases.

    Raises:
        NotPipelined: nothing was done; run the statement in a transaction.
        CommitUnknown: the reply was lost.
        ConfigurationError: asyncpg sent the statement without the check, or the fence's set-up is wrong.
    """
    async with in_turn(leases):
        presentation = presentation_for(
            leases, sequence=NUMBERS.take(first_of(leases)), limits=limits, first=True, last=last
        )
        check = PipelinedCheck(con, leases, presentation)
        result = await _concluded(con, leases, presentation, lambda: send(check), has_left=lambda: check.left)
    if not check.left:
        raise ConfigurationError(
            f"asyncpg {asyncpg.__version__} sent a statement without the check of its lease: it may have been"
            " written past the fence; use another version of asyncpg"
        )
    return result


async def run_as_text(
    con: Any,
    leases: tuple[Lease, ...],
    limits: Limits,
    query: str,
    send: Callable[[str], Awaitable[T]],
) -> T:
    """Run one statement without parameters, as a simple query.

    Raises:
        NotPipelined: nothing was done; run the statement in a transaction.
        CommitUnknown: the reply was lost.
    """
    async with in_turn(leases):
        presentation = presentation_for(
            leases, sequence=NUMBERS.take(first_of(leases)), limits=limits, first=True
        )
        before = presentation.piped_sql() + ";"

        async def sent() -> T:
            try:
                return await send(before + query)
            except asyncpg.PostgresError as exc:
                _as_of(exc, query, len(before))
                raise

        return await _concluded(con, leases, presentation, sent)


def _as_of(exc: asyncpg.PostgresError, query: str, shift: int) -> None:
    """Make an error refer to the caller's text, without the check before it."""
    told: Any = exc
    told.query = query
    position = getattr(exc, "position", None)
    if position is not None and position.isdecimal() and int(position) > shift:
        told.position = str(int(position) - shift)


async def _concluded(
    con: Any,
    leases: tuple[Lease, ...],
    presentation: Presentation,
    work: Callable[[], Awaitable[T]],
    has_left: Callable[[], bool] = lambda: True,
) -> T:
    assert presentation.sequence is not None
    unknown = presentation.unknown()
    closed = con.is_closed()
    try:
        result = await work()
    except asyncio.CancelledError as exc:
        if has_left():
            exc.add_note(f"cancelled during a write: {unknown}")
        raise
    except LockguardError:  # before anything was sent
        if not con.is_closed():
            await rolled_back(con, send_plain(con, "select"))  # frees what Parse has locked
        NUMBERS.give_back((presentation.sequence,))
        raise
    except DATABASE_ERRORS as exc:
        # A statement that failed in Parse was never run, whatever became of the connection.
        known = (
            closed
            or not has_left()
            or (isinstance(exc, TimeoutError) and await _ended_without(con, presentation))
        )
        if not known and leaves_in_doubt(exc):
            raise unknown from exc
        NUMBERS.give_back((presentation.sequence,))
        overtaken = meaning_of(exc) is Meaning.RETRY and _is_the_checks(exc)
        if overtaken or getattr(exc, "sqlstate", None) in BY_ITSELF:
            raise NotPipelined from exc
        if (said := ended(exc, leases)) is not None:
            raise said from exc
        if _is_the_checks(exc):
            _tell_of_the_check(exc, leases)
        raise
    NUMBERS.give_back((presentation.sequence,))
    UNSEALED.sealed(leases)
    return result


def _tell_of_the_check(exc: BaseException, leases: tuple[Lease, ...]) -> None:
    if meaning_of(exc) is Meaning.CONFIGURATION:
        raise set_up_error(exc) from exc
    note_on_check(exc, leases)


def _is_the_checks(exc: BaseException) -> bool:
    said = f"{exc} {getattr(exc, 'context', None) or ''}"
    return "lockguard." in said or 'schema "lockguard"' in said or "schema lockguard" in said


async def _ended_without(con: Any, presentation: Presentation) -> bool:
    """Whether a write that timed out is known not to have committed, and never to commit."""
    first = presentation.claims[0]
    ask = (
        f"select where lockguard.{'resolve' if first.seals is None else 'resolve_first'}("
        f"{text(first.resource)},{number(first.token)},{number(presentation.sequence)},{_RESOLVE_MS})"
    )
    try:
        async with asyncio.timeout(2 * _RESOLVE_MS / 1000):
            return await send_plain(con, ask) == "SELECT 0"
    except DATABASE_ERRORS:
        return False
