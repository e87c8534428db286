"""The fence's own calls: each is repeated until it succeeds or the caller's time bound is reached.

A call that fails for a passing reason is made again, so every call has to be safe to repeat. If none
succeeds, a :class:`FenceUnavailable` says why, and which session was in the way if that is known.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lockguard.errors import ConfigurationError, FenceUnavailable
from lockguard.text import printable
from lockguard_postgres._errors import Meaning
from lockguard_postgres._literals import text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lockguard_postgres._database import Database

__all__ = ["SETTINGS", "Call", "CancelWatch", "bounded", "make"]

_ATTEMPTS_MAX = 20
_PAUSE_FIRST_S = 0.01
_PAUSE_MAX_S = 0.2
# How long to ask why a call failed.
_ASK_S = 0.5
# How long a process that stops between the answer to its seal or break and COMMIT keeps all others out.
_IDLE_MS = 1_000
# Sent in a call's own message, to override settings of the role or the database. At SERIALIZABLE, seals and
# closes of unrelated resources would fail, and bodies with them. With a statement timeout, a seal would lose
# its place in the line each time, and no session would ever be evicted; lock_timeout and the caller's time
# bound limit it.
SETTINGS = "set transaction isolation level read committed;set local statement_timeout = 0;"
_LOCK_HOLDERS = (
    "select pid, role, application, alone, state, clock_timestamp() - since as age"
    " from lockguard.at_the_gate({resource}) where pid is null or role is not null"
)
# A role without rights sees only that a standby is there; its sync_state is null.
_NO_STANDBY = (
    "select setting from pg_settings where name = 'synchronous_standby_names' and setting <> ''"
    " and not exists (select from pg_stat_replication where coalesce(sync_state, 'sync') <> 'async')"
)
_READ_ONLY = "25006"
_WHOSE_READ_ONLY = (
    "select pg_is_in_recovery() as standby, setting = 'on' as read_only, source,"
    " quote_ident(session_user) as role, quote_ident(current_database()) as database"
    " from pg_settings where name = 'default_transaction_read_only'"
)
_SETTING = "default_transaction_read_only"


class CancelWatch:
    """Notices a cancel of the running task since this object was made.

    A task that is cancelled in the middle of a statement cleans up the connection, and an error of that is
    raised in place of the ``CancelledError``. A loop that retries after errors of the database would then go
    on, even past its own timeout, and no second cancel would stop it.
    """

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._before = 0 if self._task is None else self._task.cancelling()

    def raise_if_cancelled(self) -> None:
        """Raise the cancel that a clean-up has swallowed, if any; a timeout's own cancel counts too.

        Raises:
            asyncio.CancelledError: the task was cancelled meanwhile.
        """
        if self._task is not None and self._task.cancelling() > self._before:
            raise asyncio.CancelledError


@dataclass(frozen=True, slots=True)
class Call:
    """A repeatable call: its SQL before and after the last argument, which is its time bound in ms.

    Attributes:
        rows: whether its row is wanted; otherwise the command tag is the answer.
        alone: whether the row is fetched in a transaction of its own; not needed where nothing is written and
            no pooler is in between.
    """

    before: str
    after: str
    rows: bool = False
    alone: bool = True


def bounded() -> str:
    """What goes before a call in a transaction of several messages: until COMMIT it keeps all others out."""
    return f"{SETTINGS}select lockguard.bound(0, {_IDLE_MS:d})"


async def make(database: Database, call: Call, *, resource: str, within: timedelta) -> Any:
    """Repeat ``call`` until it succeeds or ``within`` is over; returns its row or its command tag.

    Raises:
        FenceUnavailable: it did not succeed; the text says why.
        ConfigurationError: it cannot succeed until an operator has changed something.
    """
    database.require_usable()
    failure: Exception | None = None
    connected = True
    cancels = CancelWatch()
    try:
        async with asyncio.timeout(within.total_seconds()) as scope:
            for attempt in range(_ATTEMPTS_MAX):
                if attempt:
                    await asyncio.sleep(min(_PAUSE_MAX_S, _PAUSE_FIRST_S * 2 ** (attempt - 1)))
                try:
                    connected = False
                    conn = await database.acquire()
                    connected = True
                    deadline = scope.when()
                    assert deadline is not None, "the timeout that was just entered has a deadline"
                    # A little less than the time left, so that the server's error, which says why, is first.
                    left_ms = max(1, int((deadline - asyncio.get_running_loop().time()) * 900))
                    query = f"{call.before}{left_ms:d}{call.after}"
                    return await database.once(conn, query, rows=call.rows, alone=call.alone)
                except database.failures as exc:
                    failure = exc
                    cancels.raise_if_cancelled()
                    if attempt == 0 and getattr(exc, "sqlstate", None) == _READ_ONLY:
                        await _require_writable(database, exc)
                    if not _passing(database, exc):
                        break
    except TimeoutError as exc:
        failure = failure or exc
    if not connected and not database.has_room() and isinstance(failure, TimeoutError):
        failure = _NoConnection(f"all {database.size()} connections of its pool were in use")
    said = await _failed(database, failure, resource=resource, within=within)
    cancels.raise_if_cancelled()
    raise said from failure


def _passing(database: Database, exc: Exception) -> bool:
    match database.errors.meaning_of(exc):
        case Meaning.CONFIGURATION:
            raise database.errors.set_up_error(exc) from exc
        case Meaning.STALE | Meaning.STATEMENT:
            return False
        case Meaning.RETRY | Meaning.LOST:
            return True
        case Meaning.UNAVAILABLE:
            # A lock timeout has used up the time; a server that is starting or full may be ready soon.
            return getattr(exc, "sqlstate", None) != "55P03"


async def _failed(
    database: Database, failure: Exception | None, *, resource: str, within: timedelta
) -> FenceUnavailable:
    seconds = f"{within.total_seconds():.3g} s"
    if getattr(failure, "sqlstate", None) == "55P03":
        by = (
            await _who(database, resource)
            or "an open transaction under its lease, or one that has locked its row"
        )
        why = f"kept out for {seconds} by {by}"
    elif isinstance(failure, _NoConnection):
        why = f"{failure} for {seconds}; give PostgresFence a pool of its own, or one with room to spare"
    elif isinstance(failure, TimeoutError) or failure is None:
        why = f"Postgres did not answer within {seconds}{await _unreplicated(database)}"
    elif getattr(failure, "sqlstate", None) == _READ_ONLY:
        why = f"{str(failure).partition(chr(10))[0]}{_read_only(await _whose_read_only(database))}"
    elif why_not := database.why_not(failure):
        why = why_not
    else:
        why = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
    return FenceUnavailable(f"the fence of {resource!r} could not be reached: {why}", resource=resource)


async def _who(database: Database, resource: str) -> str:
    """The sessions in the way, as text; empty if they are not known, as with a schema before version 4."""
    rows: Sequence[Mapping[str, Any]] = ()
    with contextlib.suppress(*database.failures):
        async with asyncio.timeout(_ASK_S):
            rows = await database.fetch(_LOCK_HOLDERS.format(resource=text(resource)))
    return "; ".join(_named(row) for row in rows)


async def _unreplicated(database: Database) -> str:
    """The text that commits wait for a standby that is not there; empty if they do not, or if unknown."""
    with contextlib.suppress(*database.failures):
        async with asyncio.timeout(_ASK_S):
            waiting = await database.fetch(_NO_STANDBY)
        if waiting:
            names = f"synchronous_standby_names is {printable(str(waiting[0]['setting']))}"
            return f": commits wait for a synchronous standby, and none is there ({names})"
    return ""


async def _require_writable(database: Database, exc: BaseException) -> None:
    """Refuse a read-only default that the role, its database or the connection itself has set.

    Raises:
        ConfigurationError: there is one; the text says where it is set, and the remedy.
    """
    row = await _whose_read_only(database)
    if row is None or row["standby"] or not row["read_only"]:
        return
    role, name = printable(row["role"]), printable(row["database"])
    match row["source"]:
        case "user":
            by = f"ALTER ROLE {role}"
        case "database user":
            by = f"ALTER ROLE {role} IN DATABASE {name}"
        case "database":
            by = f"ALTER DATABASE {name}"
        case "global":
            by = "ALTER ROLE ALL"
        case "client" | "session":
            raise ConfigurationError(
                f"the fence cannot write: {_SETTING} is on in the connection's own settings; leave it out of"
                " server_settings, of options= in the URL and of PGOPTIONS"
            ) from exc
        case _:  # set for the whole server, as by a provider for as long as its disk is full
            return
    raise ConfigurationError(
        f"the fence cannot write: {_SETTING} is on for {by.removeprefix('ALTER ')}; run"
        f" `{by} RESET {_SETTING}` and connect anew"
    ) from exc


async def _whose_read_only(database: Database) -> Mapping[str, Any] | None:
    """Where a read-only default is set, if any; ``None`` if the database does not answer."""
    with contextlib.suppress(*database.failures):
        async with asyncio.timeout(_ASK_S):
            return (await database.fetch(_WHOSE_READ_ONLY))[0]
    return None


def _read_only(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["standby"]:
        return (
            "; this server is a standby: name the primary in the URL, or several hosts and"
            " target_session_attrs=read-write"
        )
    if row["read_only"]:
        return f"; {_SETTING} is on for the whole server, as some providers have it while its disk is full"
    return ""


def _named(row: Mapping[str, Any]) -> str:
    began = "" if row["age"] is None else f" begun {row['age'].total_seconds():.1f} s ago"
    does = "which has its gate to itself" if row["alone"] else f"an open transaction under its lease{began}"
    if row["pid"] is None:
        return f"a prepared transaction: {does}; end it with ROLLBACK PREPARED, see pg_prepared_xacts"
    facts = (
        printable(row["role"]),
        printable(row["application"] or "no application_name"),
        row["state"] or "in a state that this role may not see",
    )
    return f"session {row['pid']} ({', '.join(facts)}), {does}"


class _NoConnection(TimeoutError):
    """All connections of the pool were in use."""
