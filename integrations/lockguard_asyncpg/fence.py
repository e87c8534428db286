"""The core's Fence port on Postgres: seal on acquire, close on release, break by an operator.

Each is one statement that decides by itself, and each may be repeated: a seal is idempotent per grant,
a close too, and a break only fences once more. So whatever failed for a passing reason (a dropped
connection, a serialization failure) is simply done again until ``within`` is over. What is left then is
:class:`FenceUnavailable`, and the caller closes the grant: a seal that arrives later finds it shut.

Each stands in line behind the transactions that are under way with the resource's lease, and nothing new gets
past it. A seal or a break that still stands there after its *grace* has their sessions ended: a process that
was stopped may hold one for ever, whatever its backend waits for. A close ends nobody; what it could not do
in a second is done in the background when that transaction has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import asyncpg

from lockguard.errors import ConfigurationError, FenceUnavailable, OutcomeUnknown
from lockguard.lease import Grant, GrantId, Resource, Token
from lockguard.ports import Outrun, Sealed
from lockguard.text import kind_of, printable
from lockguard.times import checked_wait
from lockguard_asyncpg.cancels import Cancels
from lockguard_asyncpg.carrying import alone
from lockguard_asyncpg.dsn import checked, shown
from lockguard_asyncpg.errors import (
    DATABASE_ERRORS,
    CommitUnknown,
    Meaning,
    SealUnknown,
    meaning_of,
    set_up_error,
)
from lockguard_asyncpg.listening import Listener
from lockguard_asyncpg.literals import number, text, uuid
from lockguard_asyncpg.schema import SCHEMA_VERSION
from lockguard_asyncpg.wire import CLOSED, bare, give_back, unfenced

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from asyncpg.pool import PoolConnectionProxy

__all__ = ["PostgresFence", "resolve"]

T = TypeVar("T")
_DIGITS = re.compile(r"[0-9]{1,18}")
_LOG = logging.getLogger("lockguard")
_ATTEMPTS_MAX = 20
_PAUSE_FIRST_S = 0.01
_PAUSE_MAX_S = 0.2
# How long a connection may take to give up a cancelled statement before it is thrown away.
_RELEASE_S = 0.5
_LEFT_MIN = timedelta(milliseconds=100)
_GRACE = timedelta(milliseconds=500)
# How long a process that stops between the answer to its seal or break and COMMIT keeps everybody else out.
_IDLE_MS = 1_000
# How long leaving a body waits for the transactions that were begun in it and are open still.
_CLOSE = timedelta(seconds=1)
_CLOSE_AGAIN_FIRST_S = 0.5
_CLOSE_AGAIN_MAX_S = 5.0
# In the message of the call itself, against settings of the role or the database. At SERIALIZABLE, seals and
# closes of resources that have nothing to do with each other would fail, and bodies with them. With a
# statement timeout a seal would lose its place in the line each time, and nobody would ever be evicted;
# lock_timeout and the caller's patience bound it.
_ON_OUR_TERMS = "set transaction isolation level read committed;set local statement_timeout = 0;"
_NOT_DURABLE = ";set local synchronous_commit to off"
_FORGOTTEN = "LG005"
_UNKNOWN_SEAL = "LG007"
_NO_FUNCTION = "42883"
# How often the records of writes that are too old to be asked for are cleared away, and in how many steps.
_PRUNE_S = 60.0
_PRUNE_STEPS_MAX = 50
# The row count of a simple query tells how many there were.
_PRUNE = "select from generate_series(1, lockguard.prune())"
_OLDER = (
    "lockguard: the fence's schema in the database is older than this library, which has version %d: nothing"
    " stale is let in, but who is stopped, or writes in parallel, may keep others out;"
    " run `lockguard fence upgrade`"
)
_AT_THE_GATE = (
    "select pid, role, application, alone, state, clock_timestamp() - since as age"
    " from lockguard.at_the_gate($1) where pid is null or role is not null"
)


# Of a standby that is there a role without rights sees no more than that.
_NO_STANDBY = (
    "select setting from pg_settings where name = 'synchronous_standby_names' and setting <> ''"
    " and not exists (select from pg_stat_replication where coalesce(sync_state, 'sync') <> 'async')"
)


class PostgresFence:
    """Refuses the writes of every grant but the one that sealed last.

    Give it a pool of its own, or one with room to spare: an acquire that has to wait for a connection that
    another body holds is slow, and fails with :class:`FenceUnavailable` in the end. It needs two at a time
    to end the session of a holder that was stopped.

    Args:
        pool: an asyncpg pool on the primary, direct or through a pooler in transaction mode.
        grace: how long a seal or a break waits for the transactions of the grant before it, until it has
            their sessions ended. The bot's roles need no right for it where they are one role.
        listen: the URL of the database, directly and not through a pooler in transaction mode. With it, one
            connection more hears of it at once when a successor supersedes a lease of this process that is
            still open, and that lease ends. Close such a fence: ``async with PostgresFence(...) as fence``.
        durable_close: with ``False`` giving a lease back does not wait for the disk. A crash of the server in
            the moments after it may forget that the lease was given back, not that it was superseded: until
            the next seal or break, code that writes blindly under it is then let in.

    Raises:
        ConfigurationError: a value that cannot work.
    """

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        *,
        grace: timedelta = _GRACE,
        listen: str | None = None,
        durable_close: bool = True,
    ) -> None:
        _require_pool(pool)
        if not isinstance(listen, str | None):
            raise ConfigurationError(f"listen= is {kind_of(listen)}; write the URL of the database as text")
        if not isinstance(durable_close, bool):
            raise ConfigurationError(f"durable_close= is {kind_of(durable_close)}; give True or False")
        self._pool = pool
        checked(listen)
        self._listener = (
            None if listen is None else Listener(partial(asyncpg.connect, listen), at=shown(listen))
        )
        self._close_ends = ")" if durable_close else f"){_NOT_DURABLE}"
        self._grace_s = checked_wait(grace, "grace").total_seconds()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[GrantId] = set()
        self._prune_at: float | None = None
        self._version_asked = False
        self._acquainted = False
        self._name = ""

    async def __aenter__(self) -> Self:
        if self._listener is not None:
            self._listener.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Listen no more, and close nothing in the background any more. The pool stays open."""
        if self._listener is not None:
            await self._listener.aclose()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def listening(self) -> None:
        """Wait until it hears of superseded leases; for ever without ``listen``, or through a pooler."""
        if self._listener is None:
            await asyncio.get_running_loop().create_future()
        else:
            await self._listener.listening()

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        """Make ``grant`` the only one whose writes are accepted; waits for open transactions of the old one.

        Raises:
            FenceUnavailable: not done within ``within``, or nobody knows.
            SealUnknown: this is an old primary, or a database that has lost commits.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        if self._listener is not None:
            self._listener.start()
        self._prune_now_and_then()
        await self._get_acquainted(grant.resource, within)
        loop = asyncio.get_running_loop()
        began = loop.time()
        named, known = text(grant.resource), ""
        if (last := self._last_seal(grant)) is not None:
            # Before the seal, which would hide it: the seal's first argument is what known() gives.
            known, named = f"lockguard.known({named},{last}) resource,", "resource"
        call = (
            f"{known}lockguard.seal({named},{number(grant.token)},{uuid(grant.id)},"
            f"{text(grant.holder)},{text(grant.operation)},"
        )
        # The row count of a simple query tells yes from no in one message.
        accepted_as_it_is = f"accepted and token = {number(grant.token)}"
        if_sealed = _Call(f"select from {call}", f"){self._version_too()} where {accepted_as_it_is}")
        sealing = _call(self._pool, if_sealed, resource=grant.resource, within=within)
        try:
            told = await self._evicting(grant.resource, grant.token, sealing)
        except FenceUnavailable as exc:
            if getattr(exc.__cause__, "sqlstate", None) != _UNKNOWN_SEAL:
                raise
            said = f"{str(exc.__cause__).partition(chr(10))[0]}; {getattr(exc.__cause__, 'hint', '')}"
            raise SealUnknown(said, resource=grant.resource) from exc.__cause__
        if told == "SELECT 2":
            _LOG.warning(_OLDER, SCHEMA_VERSION)
        if told != "SELECT 0":
            return self._sealed(grant.token)
        # Rare, and asking again is harmless: it was outrun, or has sealed before with another token.
        answer = _Call(f"select accepted, token from {call}", ")", rows=True)  # noqa: S608 - hexadecimal digits
        left = max(_LEFT_MIN, within - timedelta(seconds=loop.time() - began))
        accepted, current = await _call(self._pool, answer, resource=grant.resource, within=left)
        return self._sealed(Token(current)) if accepted else Outrun(Token(current))

    def _sealed(self, token: Token) -> Sealed:
        return Sealed(token, f"{self._name} {token:d}" if self._name else "")

    def _last_seal(self, grant: Grant) -> str | None:
        """The resource's last seal, for known(), if the lock remembers it and it was in this fence."""
        name, _, last = grant.seal.partition(" ")
        if not self._name or name != self._name or not _DIGITS.fullmatch(last):
            return None
        return self._named(Token(int(last)))

    def _named(self, token: Token) -> str:
        return f"{uuid(self._name)},{number(token)}"

    async def _get_acquainted(self, resource: Resource, within: timedelta) -> None:
        """Before the first seal: which fence this is, and whether a pooler on the way gives transactions.

        One in statement mode takes seals, and no write.
        """
        if self._acquainted:
            return
        pooled = getattr(self._pool, "_connect_kwargs", {}).get("statement_cache_size") == 0
        ask = _Call("select lockguard.fence_id() where 0 <", "", rows=True, alone=pooled)
        try:
            (told,) = await _call(self._pool, ask, resource=resource, within=within)
            self._name = told.hex
        except ConfigurationError as exc:
            if getattr(exc.__cause__, "sqlstate", None) != _NO_FUNCTION:
                raise  # otherwise it is a schema before version 10, which remembers nothing
        self._acquainted = True

    def _version_too(self) -> str:
        """For the first seal: a second row tells, in the same round trip, that the schema is an older one."""
        if self._version_asked:
            return ""
        self._version_asked = True
        return f" join generate_series(1, 1 + (lockguard.version() < {SCHEMA_VERSION:d})::int) on true"

    async def confirm(self, grant: Grant, *, within: timedelta) -> bool:
        """Whether writes of ``grant`` are accepted now. Waits for nobody.

        Raises:
            FenceUnavailable: no answer within ``within``.
            ConfigurationError: the schema is missing, or the role lacks a right.
        """
        ask = _Call(
            f"select from lockguard.status({text(grant.resource)})"
            f" where token = {number(grant.token)} and grant_id = {uuid(grant.id)} and is_open and ",
            " > 0",
        )
        return bool(await _call(self._pool, ask, resource=grant.resource, within=within) == "SELECT 1")

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        """Accept no more writes of ``grant``; waits for its own open transactions.

        Raises:
            FenceUnavailable: not done within ``within``, or nobody knows.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        if CLOSED.take(grant.id):  # by its last transaction, fenced_transaction(closes=True)
            return
        try:
            await self._close(grant, within=min(within, _CLOSE))
        except FenceUnavailable as exc:
            if grant.id not in self._closing:
                self._closing.add(grant.id)
                task = asyncio.create_task(self._close_later(grant), name="lockguard-close-fence-later")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            raise FenceUnavailable(
                f"{exc}; it is closed in the background as soon as that can be done", resource=grant.resource
            ) from exc.__cause__

    async def _close(self, grant: Grant, *, within: timedelta) -> None:
        named = text(grant.resource)
        if grant.seal:
            await self._get_acquainted(grant.resource, within)
        if (last := self._last_seal(grant)) is not None and last != self._named(grant.token):
            # It was not sealed. Noted as closed, it would hide from the next that a seal is not known here.
            named = f"lockguard.known({named},{last})"
        call = f"select lockguard.close({named},{number(grant.token)},{uuid(grant.id)},"
        try:
            await _call(self._pool, _Call(call, self._close_ends), resource=grant.resource, within=within)
        except FenceUnavailable as exc:
            if getattr(exc.__cause__, "sqlstate", None) != _UNKNOWN_SEAL:
                raise
        self._prune_now_and_then()

    async def _close_later(self, grant: Grant) -> None:
        """Try again until it is done: by us, or by the seal of a successor, which shuts the grant out too."""
        pause_s = _CLOSE_AGAIN_FIRST_S
        try:
            while not self._pool.is_closing():
                await asyncio.sleep(pause_s)
                try:
                    return await self._close(grant, within=_CLOSE)
                except FenceUnavailable:
                    pause_s = min(2 * pause_s, _CLOSE_AGAIN_MAX_S)
        except ConfigurationError:
            return None  # the schema has gone, or the right to it: there is nothing to close
        finally:
            self._closing.discard(grant.id)

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        """Accept no more writes of whoever holds ``resource``; the reason is kept in ``lockguard.audit``.

        Raises:
            FenceUnavailable: not done within ``within``, or nobody knows.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        call = _Call(f"select lockguard.break_({text(resource)},{text(reason)},", ")", rows=True)
        breaking = _call(self._pool, call, resource=resource, within=within)
        (token,) = await self._evicting(resource, None, breaking)
        return Token(token)

    async def _evicting(self, resource: Resource, token: Token | None, call: Coroutine[Any, Any, T]) -> T:
        """Await ``call``; once it has stood in line for the grace, have those before it ended."""
        helpers: list[asyncio.Task[None]] = []

        def help_out() -> None:
            task = asyncio.create_task(self._evict(resource, token), name="lockguard-evict")
            helpers.append(task)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        timer = asyncio.get_running_loop().call_later(self._grace_s, help_out)
        try:
            return await call
        finally:
            timer.cancel()
            for task in helpers:
                task.cancel()

    def _prune_now_and_then(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._prune_at is not None and now >= self._prune_at:
            task = asyncio.create_task(self._prune(), name="lockguard-prune")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif self._prune_at is not None:
            return
        self._prune_at = now + _PRUNE_S

    async def _prune(self) -> None:
        """Clear away in steps that hold up nobody; nothing depends on it but the room on the disk."""
        with contextlib.suppress(*DATABASE_ERRORS):  # a schema before version 5, say
            for _ in range(_PRUNE_STEPS_MAX):
                if await _once(self._pool, await self._pool.acquire(), _PRUNE, rows=False) == "SELECT 0":
                    return

    async def _evict(self, resource: Resource, token: Token | None) -> None:
        query = f"select lockguard.evict({text(resource)},{number(token)})"
        cancels = Cancels()
        while True:
            with contextlib.suppress(*DATABASE_ERRORS):  # a schema before version 3, say: then it waits
                await _once(self._pool, await self._pool.acquire(), query, rows=False)
            cancels.heed()  # or it would end the sessions of those who come after
            await asyncio.sleep(self._grace_s)


def _require_pool(pool: object) -> None:
    """See now what would fail at the first lease, without a word about its cause."""
    if isinstance(pool, type) or not (hasattr(pool, "acquire") and hasattr(pool, "release")):
        raise ConfigurationError(
            f"PostgresFence takes a pool, and this is {kind_of(pool)}; write PostgresFence(pool) with"
            " pool = await asyncpg.create_pool(url)"
        )


async def resolve(
    pool: asyncpg.Pool[Any], error: CommitUnknown, *, within: timedelta = timedelta(seconds=10)
) -> bool:
    """Whether the transaction whose COMMIT reply was lost has committed. If not, it never will.

    Waits for the transaction while the server still has it open.

    Raises:
        ConfigurationError: the fence of this database never accepted the token: it is not the one that the
            write was made in.
        FenceUnavailable: no answer within ``within``; ask again.
        OutcomeUnknown: nobody knows any more: it is more than a day ago, or the reply did come and its writer
            has written on since.
    """
    assert error.token is not None, "a CommitUnknown has the token of its write"
    named = f"{text(error.resource)},{number(error.token)},{number(error.sequence)}"
    call = _Call(f"select where lockguard.resolve({named},", ")")
    try:
        return bool(await _call(pool, call, resource=error.resource, within=within) == "SELECT 1")
    except FenceUnavailable as exc:
        if getattr(exc.__cause__, "sqlstate", None) != _FORGOTTEN:
            raise
        said = f"{str(exc.__cause__).partition(chr(10))[0]}: look at what was written"
        raise OutcomeUnknown(said, resource=error.resource, token=error.token) from exc.__cause__


@dataclass(frozen=True, slots=True)
class _Call:
    """A repeatable call: what stands before its last argument, its bound in ms, and what stands after.

    Attributes:
        rows: whether its row is wanted; otherwise the command tag is the answer.
        alone: a row takes a transaction, but where nothing is written and no pooler is in between.
    """

    before: str
    after: str
    rows: bool = False
    alone: bool = True


async def _call(pool: asyncpg.Pool[Any], call: _Call, *, resource: str, within: timedelta) -> Any:
    """Make a call until it is done or ``within`` is over."""
    failure: Exception | None = None
    connected = True
    cancels = Cancels()
    try:
        async with asyncio.timeout(within.total_seconds()) as scope:
            for attempt in range(_ATTEMPTS_MAX):
                if attempt:
                    await asyncio.sleep(min(_PAUSE_MAX_S, _PAUSE_FIRST_S * 2 ** (attempt - 1)))
                try:
                    connected = False
                    conn = await pool.acquire()
                    connected = True
                    deadline = scope.when()
                    assert deadline is not None, "the timeout that was just entered has a deadline"
                    # A little less than is left, so that the server's own answer, which says why, is first.
                    left_ms = max(1, int((deadline - asyncio.get_running_loop().time()) * 900))
                    query = f"{call.before}{left_ms:d}{call.after}"
                    return await _once(pool, conn, query, rows=call.rows, alone_=call.alone)
                except DATABASE_ERRORS as exc:
                    failure = exc
                    cancels.heed()
                    if not _passing(exc):
                        break
    except TimeoutError as exc:
        failure = failure or exc
    lent_out = pool.get_idle_size() == 0 and pool.get_size() >= pool.get_max_size()
    if not connected and lent_out and isinstance(failure, TimeoutError):
        failure = _NoConnection(f"all {pool.get_size()} connections of its pool were in use")
    said = await _failed(pool, failure, resource=resource, within=within)
    cancels.heed()
    raise said from failure


def _passing(exc: Exception) -> bool:
    match meaning_of(exc):
        case Meaning.CONFIGURATION:
            raise set_up_error(exc) from exc
        case Meaning.STALE | Meaning.STATEMENT:
            return False
        case Meaning.RETRY | Meaning.LOST:
            return True
        case Meaning.UNAVAILABLE:
            # A lock timeout has used the time up; a server that starts or is full may be ready soon.
            return getattr(exc, "sqlstate", None) != "55P03"


async def _failed(
    pool: asyncpg.Pool[Any], failure: Exception | None, *, resource: str, within: timedelta
) -> FenceUnavailable:
    seconds = f"{within.total_seconds():.3g} s"
    if getattr(failure, "sqlstate", None) == "55P03":
        by = (
            await _who(pool, resource)
            or "an open transaction under its lease, or one that has locked its row"
        )
        why = f"kept out for {seconds} by {by}"
    elif isinstance(failure, _NoConnection):
        why = f"{failure} for {seconds}; give PostgresFence a pool of its own, or one with room to spare"
    elif isinstance(failure, TimeoutError) or failure is None:
        why = f"Postgres did not answer within {seconds}{await _unreplicated(pool)}"
    else:
        why = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
    return FenceUnavailable(f"the fence of {resource!r} could not be reached: {why}", resource=resource)


async def _who(pool: asyncpg.Pool[Any], resource: str) -> str:
    """Who is in the way, for people; nothing if nobody can tell, as with a schema before version 4."""
    rows = []
    with contextlib.suppress(*DATABASE_ERRORS):
        async with asyncio.timeout(_RELEASE_S):
            with unfenced():
                rows = await pool.fetch(_AT_THE_GATE, resource)
    return "; ".join(_named(row) for row in rows)


async def _unreplicated(pool: asyncpg.Pool[Any]) -> str:
    """Whether commits wait for a standby that is not there; nothing if nobody can tell."""
    with contextlib.suppress(*DATABASE_ERRORS):
        async with asyncio.timeout(_RELEASE_S):
            with unfenced():
                waiting = await pool.fetchval(_NO_STANDBY)
        if waiting:
            names = f"synchronous_standby_names is {printable(str(waiting))}"
            return f": commits wait for a synchronous standby, and none is there ({names})"
    return ""


def _named(row: asyncpg.Record) -> str:
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
    """Every connection of the pool was lent out."""


async def _once(
    pool: asyncpg.Pool[Any], conn: PoolConnectionProxy[Any], query: str, *, rows: bool, alone_: bool = True
) -> Any:
    clean = False
    try:
        with unfenced():  # a seal under another lease is not that lease's write
            if rows and alone_:
                return await _row(conn, query)
            if rows:
                return await conn.fetchrow(query)
            # Not by COPY, though it gives rows: asyncpg (0.32) drops a future whose error nobody retrieves if
            # the server's word that it ends the session was read, and the end of the connection not yet.
            tag = await conn.execute(_ON_OUR_TERMS + query)
            clean = True
            return tag
    finally:
        # A silent server must not hold the caller beyond its bound: asyncpg then drops the connection.
        await give_back(pool, conn, timeout_s=_RELEASE_S, clean=clean)


async def _row(conn: PoolConnectionProxy[Any], query: str) -> Any:
    """The row of ``query``, in a transaction."""
    con = bare(conn)

    async def ask() -> Any:
        # Until COMMIT it has the gate to itself.
        await con.execute(f"{_ON_OUR_TERMS}select lockguard.bound(0, {_IDLE_MS:d})")
        return await con.fetchrow(query)

    return await alone(con, (), ask, None)
