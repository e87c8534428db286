"""The core's Fence port on Postgres: seal on acquire, close on release, break by an operator.

Each is one statement that decides by itself and may be repeated: a seal and a close are idempotent per grant,
and a break only fences once more. So a call that failed for a passing reason (a dropped connection, a
serialization failure) is repeated until ``within`` is over. Then it raises :class:`FenceUnavailable`, and the
caller closes the grant: a seal that arrives later is refused.

Each waits in line behind the transactions that are under way with the resource's lease, and no new one gets
past it. A seal or a break that still waits after its *grace* has their sessions ended: a process that was
stopped may keep one open for ever, whatever its backend waits for. A close ends no session; if it is not done
within a second, it is done in the background when that transaction has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from lockguard._lease import Grant, GrantId, Resource, Token
from lockguard.errors import ConfigurationError, FenceUnavailable, OutcomeUnknown
from lockguard.ports import Outrun, Sealed
from lockguard.text import first_line
from lockguard_postgres._calling import Call, CancelWatch, make
from lockguard_postgres._errors import CommitUnknown, SealUnknown
from lockguard_postgres._literals import number, text, uuid
from lockguard_postgres._presented import CLOSED
from lockguard_postgres._recording import Recorder
from lockguard_postgres._refusals import Refused
from lockguard_postgres._steps import SCHEMA_VERSION
from lockguard_postgres._unsealed import UNSEALED

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from lockguard_postgres._database import Database

__all__ = ["FenceOver", "resolve_over"]

T = TypeVar("T")
_DIGITS = re.compile(r"[0-9]{1,18}")
_LOG = logging.getLogger("lockguard")
_LEFT_MIN = timedelta(milliseconds=100)
# How long leaving a body waits for transactions that were begun in it and are still open.
_CLOSE = timedelta(seconds=1)
# How long an ended grant waits for its successor's seal to begin. The successor has asked Redis already.
_SUCCESSOR = timedelta(milliseconds=100)
_CLOSE_AGAIN_FIRST_S = 0.5
_CLOSE_AGAIN_MAX_S = 5.0
_NOT_DURABLE = ";set local synchronous_commit to off"
_FORGOTTEN = "LG005"
_UNKNOWN_SEAL = "LG007"
_NO_FUNCTION = "42883"
# How often records of writes that are too old to be looked up are removed, and in how many steps at most.
_PRUNE_S = 60.0
_PRUNE_STEPS_MAX = 50
# The row count of a simple query tells how many were removed.
_PRUNE = "select from generate_series(1, lockguard.prune())"
_OLDER = (
    "lockguard: the fence's schema in the database is older than this library, which has version %d: nothing"
    " stale is let in, but who is stopped, or writes in parallel, may keep others out;"
    " run `lockguard fence upgrade`"
)


class _Handed:
    """The close of a grant, to be sent in the transaction of its successor's seal.

    Attributes:
        sql: the SQL of the close without its last argument.
        closed: whether that transaction has closed the grant, once that is known.
        begun: whether that seal has taken the close along.
    """

    __slots__ = ("begun", "closed", "sql")

    def __init__(self, sql: str) -> None:
        self.sql = sql
        self.closed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.begun = False

    def begin(self, within: timedelta) -> str:
        """Have a seal take the close along; returns the SQL that goes before it, bounded by ``within``."""
        self.begun = True
        return f"{self.sql}{within / timedelta(milliseconds=1):.0f});"

    def finish(self, *, closed: bool) -> None:
        """Record whether the seal has closed the grant; only the first call counts."""
        if not self.closed.done():
            self.closed.set_result(closed)


class FenceOver:
    """The fence over one pool, in one event loop; for the arguments see the driver's fence."""

    def __init__(
        self,
        database: Database,
        *,
        grace_s: float,
        durable_close: bool,
        seal_with_first_write: bool = False,
    ) -> None:
        self._database = database
        self._close_ends = ")" if durable_close else f"){_NOT_DURABLE}"
        self._grace_s = grace_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[GrantId] = set()
        self._handed: dict[GrantId, _Handed] = {}
        self._prune_at: float | None = None
        self._version_asked = False
        self._identified = False
        self._name = ""
        self._recorder = Recorder(database)
        self._first = seal_with_first_write
        # Resources that were outrun at a first write: their next grant is sealed at once, because only then
        # can Redis be asked for a higher token.
        self._outrun: set[Resource] = set()

    def start(self) -> None:
        """Begin what it does by itself."""

    async def aclose(self) -> None:
        """Stop closing grants in the background. The pool stays open."""
        await self._recorder.aclose()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        """Make ``grant`` the only one whose writes are accepted; waits for the previous one's transactions.

        With ``seal_with_first_write`` the seal is only noted here, and made with the first write.

        Raises:
            FenceUnavailable: not done within ``within``, or the outcome is unknown.
            SealUnknown: this is an old primary, or a database that has lost commits.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        if self._first:
            await self._identify(grant.resource, within)
        # A schema that gives the fence no id cannot seal with a first write either.
        if self._first and self._name and grant.resource not in self._outrun:
            self._version_asked = True
            UNSEALED.note(
                grant,
                seal=partial(self._seal_late, within=within),
                first_sql=self._first_sql(grant),
                remembered=self._sealed(grant.token).seal,
            )
            return Sealed(grant.token)  # not sealed yet, so the nodes go on remembering the last seal
        self._outrun.discard(grant.resource)
        return await self._seal(grant, within=within)

    def _first_sql(self, grant: Grant) -> str:
        # In another database whose pool is fenced too, the token is 0, which is no higher: the grant is then
        # sealed by itself, in this database, and the write is refused in the other, as any write would be.
        here = f"case lockguard.fence_id() when {uuid(self._name)} then {number(grant.token)} else 0 end"
        return (
            f"lockguard.check_first({self._where_known(grant)},{here},{uuid(grant.id)},"
            f"{text(grant.holder)},{text(grant.operation)},"
        )

    async def _seal_late(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        answer = await self._seal(grant, within=within)
        if isinstance(answer, Outrun):
            self._outrun.add(grant.resource)
            about = (grant.token, answer.current, "LG001", "outrun", grant.holder, grant.operation)
            self._recorder.note(Refused(grant.resource, *about))
        return answer

    async def _seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        self._prune_now_and_then()
        await self._identify(grant.resource, within)
        loop = asyncio.get_running_loop()
        began = loop.time()
        call = (
            f"lockguard.seal({self._where_known(grant)},{number(grant.token)},{uuid(grant.id)},"
            f"{text(grant.holder)},{text(grant.operation)},"
        )
        # The row count of a simple query tells yes from no in one message.
        accepted_as_it_is = f"accepted and token = {number(grant.token)}"
        # One transaction, so that it commits once and no other grant gets in between.
        handed = self._handed.pop(grant.id, None)
        before = handed.begin(within) if handed is not None else ""
        if_sealed = Call(f"{before}select from {call}", f"){self._version_too()} where {accepted_as_it_is}")
        sealing = make(self._database, if_sealed, resource=grant.resource, within=within)
        try:
            told = await self._evicting(grant.resource, grant.token, sealing)
            if handed is not None:
                handed.finish(closed=True)  # also if the seal was refused: that is an answer, and commits
        except FenceUnavailable as exc:
            cause = exc.__cause__
            if cause is None or getattr(cause, "sqlstate", None) != _UNKNOWN_SEAL:
                raise
            raise SealUnknown(
                f"{first_line(cause)}; {getattr(cause, 'hint', '')}. Where that does not help, the token is"
                f" of a clock that was ahead: lockguard break {grant.resource} --reason ...",
                resource=grant.resource,
            ) from cause
        finally:
            if handed is not None:
                handed.finish(closed=False)
        if told == "SELECT 2":
            _LOG.warning(_OLDER, SCHEMA_VERSION)
        if told != "SELECT 0":
            return self._sealed(grant.token)
        # Rare, and asking again is harmless: the grant was outrun, or was sealed before with another token.
        answer = Call(f"select accepted, token from {call}", ")", rows=True)  # noqa: S608 - hexadecimal digits
        left = max(_LEFT_MIN, within - timedelta(seconds=loop.time() - began))
        accepted, current = await make(self._database, answer, resource=grant.resource, within=left)
        return self._sealed(Token(current)) if accepted else Outrun(Token(current))

    def _sealed(self, token: Token) -> Sealed:
        return Sealed(token, f"{self._name} {token:d}" if self._name else "")

    def _where_known(self, grant: Grant) -> str:
        """The resource as an SQL argument; the call is refused if the database lacks its last seal."""
        named, last = text(grant.resource), self._last_seal(grant)
        return named if last is None else f"lockguard.known({named},{last})"

    def _last_seal(self, grant: Grant) -> str | None:
        """The resource's last seal as arguments of known(), if the lock remembers one of this fence."""
        name, _, last = grant.seal.partition(" ")
        if not self._name or name != self._name or not _DIGITS.fullmatch(last):
            return None
        return self._named(Token(int(last)))

    def _named(self, token: Token) -> str:
        return f"{uuid(self._name)},{number(token)}"

    async def _identify(self, resource: Resource, within: timedelta) -> None:
        """Before the first seal, ask which fence this is, and whether a pooler in between has transactions.

        A pooler in statement mode would let seals through, but no writes.
        """
        if self._identified:
            return
        alone = self._database.is_pooled()
        ask = Call("select lockguard.fence_id() where 0 <", "", rows=True, alone=alone)
        try:
            (told,) = await make(self._database, ask, resource=resource, within=within)
            self._name = told.hex
            self._recorder.begin(self._name)
        except ConfigurationError as exc:
            if getattr(exc.__cause__, "sqlstate", None) != _NO_FUNCTION:
                raise  # without the function it is a schema before version 10, which remembers nothing
        self._identified = True

    def _version_too(self) -> str:
        """SQL by which the first seal gives, in the same round trip, a second row if the schema is older."""
        if self._version_asked:
            return ""
        self._version_asked = True
        return f" join generate_series(1, 1 + (lockguard.version() < {SCHEMA_VERSION:d})::int) on true"

    async def confirm(self, grant: Grant, *, within: timedelta) -> bool:
        """Whether writes of ``grant`` are accepted now.

        Waits for no other transaction, except to seal a grant whose first write is still to come.

        Raises:
            FenceUnavailable: no answer within ``within``.
            ConfigurationError: the schema is missing, or the role lacks a right.
        """
        if UNSEALED.waits(grant.id):  # the caller relies on no other holder writing from here on
            try:
                async with asyncio.timeout(within.total_seconds()):
                    answer = await UNSEALED.seal(grant)
            except TimeoutError as exc:
                raise FenceUnavailable(
                    f"the first write under {grant.resource!r}, with which it is sealed, is still under way",
                    resource=grant.resource,
                ) from exc
            if answer is not None:
                return isinstance(answer, Sealed)
        ask = Call(
            f"select from lockguard.status({text(grant.resource)})"
            f" where token = {number(grant.token)} and grant_id = {uuid(grant.id)} and is_open and ",
            " > 0",
        )
        return bool(await make(self._database, ask, resource=grant.resource, within=within) == "SELECT 1")

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        """Accept no more writes of ``grant``; waits for its open transactions.

        Raises:
            FenceUnavailable: not done within ``within``, or the outcome is unknown.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        if not _is_closed(grant):
            await self._close_or_later(grant, within=within)

    async def hand_on(self, grant: Grant, successor: GrantId, *, within: timedelta) -> None:
        """As :meth:`close`, but in the transaction of the seal of ``successor``, if that comes at once.

        A close by itself would keep that seal waiting for a commit that the seal makes superfluous.

        Raises:
            FenceUnavailable: not done within ``within``, or the outcome is unknown.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        if _is_closed(grant):
            return
        # A seal with the first write takes no close along, and a close that may fail must not fail a seal.
        plain = not self._first and self._last_seal(grant) == self._named(grant.token)
        if plain and successor not in self._handed:
            within /= 3  # or no time would be left for a close by itself
            if await self._closed_by(successor, grant, within):
                return
        await self._close_or_later(grant, within=within)

    async def _closed_by(self, successor: GrantId, grant: Grant, within: timedelta) -> bool:
        handed = self._handed[successor] = _Handed(self._close_sql(grant))
        try:
            await asyncio.wait([handed.closed], timeout=min(_SUCCESSOR, within).total_seconds())
            if handed.begun:
                await asyncio.wait([handed.closed], timeout=min(_CLOSE, within).total_seconds())
        finally:
            if self._handed.get(successor) is handed:
                del self._handed[successor]
        return handed.closed.done() and handed.closed.result()

    async def _close_or_later(self, grant: Grant, *, within: timedelta) -> None:
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
        if grant.seal:
            await self._identify(grant.resource, within)
        call = Call(self._close_sql(grant), self._close_ends)
        try:
            await make(self._database, call, resource=grant.resource, within=within)
        except FenceUnavailable as exc:
            if getattr(exc.__cause__, "sqlstate", None) != _UNKNOWN_SEAL:
                raise
        self._prune_now_and_then()

    def _close_sql(self, grant: Grant) -> str:
        """The SQL of the close of ``grant`` without its last argument."""
        named = text(grant.resource)
        if (last := self._last_seal(grant)) is not None and last != self._named(grant.token):
            # It was not sealed. Recorded as closed, it would hide from the next grant that a seal is missing.
            named = f"lockguard.known({named},{last})"
        return f"select lockguard.close({named},{number(grant.token)},{uuid(grant.id)},"

    async def _close_later(self, grant: Grant) -> None:
        """Retry until the grant is closed here, or by the seal of a successor, which shuts it out too."""
        pause_s = _CLOSE_AGAIN_FIRST_S
        try:
            while not self._database.is_closing():
                await asyncio.sleep(pause_s)
                try:
                    return await self._close(grant, within=_CLOSE)
                except FenceUnavailable:
                    pause_s = min(2 * pause_s, _CLOSE_AGAIN_MAX_S)
        except ConfigurationError:
            return None  # the schema is gone, or the right to use it: there is nothing to close
        finally:
            self._closing.discard(grant.id)

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        """Accept no more writes of the holder of ``resource``; the reason is kept in ``lockguard.audit``.

        Raises:
            FenceUnavailable: not done within ``within``, or the outcome is unknown.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        UNSEALED.broken(resource)
        call = Call(f"select lockguard.break_({text(resource)},{text(reason)},", ")", rows=True)
        breaking = make(self._database, call, resource=resource, within=within)
        (token,) = await self._evicting(resource, None, breaking)
        return Token(token)

    async def break_grant(self, grant: Grant, *, reason: str, within: timedelta) -> Token | Outrun:
        """As :meth:`break_`, but leaves a newer grant than ``grant`` alone.

        With a token of 0 any other grant that the fence knows counts as newer.

        Returns:
            The token in force from now on; ``Outrun`` if a newer grant is in force, and stays so.

        Raises:
            FenceUnavailable: not done within ``within``, or the outcome is unknown.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        UNSEALED.broken(grant.resource)
        named, which = text(grant.resource), f"{number(grant.token)},{uuid(grant.id)}"
        call = Call(
            f"select broken, token from lockguard.break_grant({named},{which},{text(reason)},",  # noqa: S608 - literals
            ")",
            rows=True,
        )
        breaking = make(self._database, call, resource=grant.resource, within=within)
        broken, token = await self._evicting(
            grant.resource, None, breaking, f"lockguard.evict_before({named},{which})"
        )
        return Token(token) if broken else Outrun(Token(token))

    async def _evicting(
        self,
        resource: Resource,
        token: Token | None,
        call: Coroutine[Any, Any, T],
        evict: str = "",
    ) -> T:
        """Await ``call``; once it has waited in line for the grace, have the sessions before it ended."""
        evict = evict or f"lockguard.evict({text(resource)},{number(token)})"
        helpers: list[asyncio.Task[None]] = []

        def help_out() -> None:
            task = asyncio.create_task(self._evict(f"select {evict}"), name="lockguard-evict")
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
        """Remove old records of writes, in steps that block no session; only disk space depends on it."""
        with contextlib.suppress(*self._database.failures):  # such as a schema before version 5
            for _ in range(_PRUNE_STEPS_MAX):
                if await self._call_once(_PRUNE) == "SELECT 0":
                    return

    async def _evict(self, query: str) -> None:
        cancels = CancelWatch()
        while True:
            # Such as a schema before version 3: then the call waits.
            with contextlib.suppress(*self._database.failures):
                await self._call_once(query)
            cancels.raise_if_cancelled()  # or it would end the sessions of later transactions
            await asyncio.sleep(self._grace_s)

    async def _call_once(self, query: str) -> Any:
        return await self._database.once(await self._database.acquire(), query, rows=False)


def _is_closed(grant: Grant) -> bool:
    """Whether its last transaction closed it (``closes=True``), or it never was and never will be sealed."""
    untouched = UNSEALED.drop(grant.id)
    return CLOSED.take(grant.id) or untouched


async def resolve_over(database: Database, error: CommitUnknown, *, within: timedelta) -> bool:
    """Whether the transaction whose COMMIT reply was lost has committed. If not, it never will.

    Waits for the transaction while the server still has it open.

    Raises:
        ConfigurationError: the fence of this database never accepted the token: the write was made in
            another one.
        FenceUnavailable: no answer within ``within``; ask again.
        OutcomeUnknown: it can no longer be found out: the write is more than a day old, or its reply did come
            and its writer has made further writes since.
    """
    assert error.token is not None, "a CommitUnknown has the token of its write"
    named = f"{text(error.resource)},{number(error.token)},{number(error.sequence)}"
    function = "resolve_first" if error.first else "resolve"
    call = Call(f"select where lockguard.{function}({named},", ")")
    try:
        return bool(await make(database, call, resource=error.resource, within=within) == "SELECT 1")
    except FenceUnavailable as exc:
        if getattr(exc.__cause__, "sqlstate", None) != _FORGOTTEN:
            raise
        said = f"{str(exc.__cause__).partition(chr(10))[0]}: look at what was written"
        raise OutcomeUnknown(said, resource=error.resource, token=error.token) from exc.__cause__
