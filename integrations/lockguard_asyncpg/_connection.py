"""asyncpg's connection, pool and prepared statement with the fence's layer in front of them.

The layer has no state and no slots of its own, so the class of an existing connection can be changed to it:
that is how :func:`fenced` reaches a pool that other code holds. What is known of a connection's transaction
is kept apart from the connection, see :mod:`lockguard_asyncpg._transaction_state`.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg.pool import Pool, PoolConnectionProxy
from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.transaction import Transaction

from lockguard._context import current_leases, outlived_lease
from lockguard_asyncpg._copying import copied
from lockguard_asyncpg._dropin import LIMITS, Pipelined, leases_of, present, run, run_parsed
from lockguard_asyncpg._errors import DATABASE_ERRORS, ended
from lockguard_asyncpg._pipelining import PipelinedCheck, executor_with_check, run_as_text, run_pipelined
from lockguard_asyncpg._pools import require_own_loop
from lockguard_asyncpg._transaction_state import TransactionProxy, bare, sees_all, transaction_state
from lockguard_postgres._in_force import unfenced
from lockguard_postgres._statements import is_lone_write, is_write

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator

    _Connection = asyncpg.Connection[Any]
    _PoolConnectionProxy = PoolConnectionProxy[Any]
    _PreparedStatement = PreparedStatement[Any]
else:
    _Connection, _PreparedStatement = asyncpg.Connection, PreparedStatement
    _PoolConnectionProxy = PoolConnectionProxy

__all__ = [
    "FenceLayer",
    "FencedConnection",
    "add_layer",
    "create_pool",
    "end_loan",
    "fenced",
    "lend",
    "whole",
]

# Methods that run statements, and whether the first argument is the statement's text.
_CARRIERS = {
    "execute": True,
    "executemany": True,
    "fetch": True,
    "fetchval": True,
    "fetchrow": True,
    "fetchmany": True,
    "copy_from_table": False,
    "copy_from_query": False,
    "copy_to_table": False,
    "copy_records_to_table": False,
}
# Methods whose statement asyncpg sends as one Bind and Execute.
_ONE_BY_ONE = {"execute", "fetch", "fetchval", "fetchrow"}
# Where a prepared statement keeps its text, its connection, its state on the server and its last command tag.
# (Its get_query() fails once the connection is gone, and would hide that the lease is too.)
_QUERY = "_query"
_OF = "_connection"
_STATE = "_state"
_STATUS = "_last_status"
_CHECKS_STATUS = b"SELECT 0"
_STATEMENT_CARRIERS = ("fetch", "fetchval", "fetchrow", "fetchmany", "executemany")
# Housekeeping methods, for which asyncpg sends statements of its own.
_PLAIN = ("add_listener", "remove_listener", "set_type_codec", "reset_type_codec", "set_builtin_type_codec")


class FenceLayer:
    """What fencing adds to an asyncpg connection class: a mixin in front of it, without any state.

    Attributes:
        is_lent: whether the connection is fenced for the body of one fenced transaction only.
    """

    __slots__ = ()
    is_lent = False

    def transaction(
        self, *, isolation: Any = None, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        """As asyncpg's; presents the lease together with BEGIN."""
        con: Any = self
        proxy: Any = TransactionProxy(con, lambda: leases_of(con, transaction_state(con)), limits=LIMITS)
        return _Transaction(proxy, isolation, readonly, deferrable)

    async def execute_plain(self, query: str, *, timeout: float | None = None) -> str:
        """Run asyncpg's own ``execute``, for what goes before and after a fenced statement."""
        parent: Any = super()
        return str(await parent.execute(query, timeout=timeout))

    async def _do_execute(
        self, query: str, executor: Any, timeout: float | None, *retry: Any, **options: Any
    ) -> Any:
        """As asyncpg's, which prepares a statement and sends it; sends the check right before it."""
        con: Any = self
        parent: Any = super()
        executor = executor_with_check(transaction_state(con).check, executor)
        return await parent._do_execute(query, executor, timeout, *retry, **options)

    def _time_and_log(self, query: str, args: Any, timeout: float | None) -> Any:
        """As asyncpg's, for its query loggers: they get the caller's text, without the check."""
        con: Any = self
        parent: Any = super()
        return parent._time_and_log(transaction_state(con).caller_text or query, args, timeout)

    def cursor(self, query: str, *args: object, **options: Any) -> Any:
        """As asyncpg's; presents the lease before the first row."""
        parent: Any = super()
        return _Cursor(self, parent.cursor(query, *args, **options))

    async def prepare(self, query: str, **options: Any) -> Any:
        """As asyncpg's; the statement carries the lease that is in force when it is run."""
        parent: Any = super()
        con: Any = self
        for lease in leases_of(
            con, transaction_state(con)
        ):  # a refusal after Parse would leave its locks, see run_parsed()
            lease.ensure()
        with unfenced():
            statement = await parent.prepare(query, **options)
        statement.__class__ = _Statement
        return statement

    async def reset(self, *, timeout: float | None = None) -> None:
        """As asyncpg's, but never under a lease: a lost lease must not cost the pool its connection.

        The pool calls it on release. In a guarded body its error is not raised: after a COMMIT that was
        answered it would look like a failure of the work, which would then be done twice.
        """
        con: Any = self
        tx = transaction_state(con)
        if tx.body is not None:  # a fenced transaction was left open: what follows would escape it
            con.terminate()
            return
        tx.clear()
        parent: Any = super()
        try:
            with unfenced():
                await parent.reset(timeout=timeout)
        except DATABASE_ERRORS:
            if not _begun_in_a_body():
                raise
            con.terminate()


def _carrier(name: str, *, has_text: bool) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(getattr(asyncpg.Connection, name))
    async def method(self: Any, first: Any, *args: Any, **options: Any) -> Any:
        parent = getattr(super(FenceLayer, self), name)
        text = first if has_text else ""

        def send() -> Any:
            if name.startswith("copy_"):
                return copied(self, lambda: parent(first, *args, **options))
            return parent(first, *args, **options)

        async def send_pipelined(check: PipelinedCheck) -> Any:
            transaction_state(self).check = check
            try:
                return await send()
            finally:
                transaction_state(self).check = None

        async def with_check(whole: str) -> Any:
            transaction_state(self).caller_text = text
            try:
                return await parent(whole, **options)
            finally:
                transaction_state(self).caller_text = None

        pipelined: Pipelined[Any] | None = None
        if name == "execute" and not args:
            if is_lone_write(text):
                pipelined = functools.partial(run_as_text, self, limits=LIMITS, query=text, send=with_check)
        elif name in _ONE_BY_ONE and is_write(text):
            pipelined = functools.partial(run_pipelined, self, limits=LIMITS, send=send_pipelined)
        return await run(self, text, send, options.get("timeout"), pipelined)

    return method


def _plain(name: str) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(getattr(asyncpg.Connection, name))
    async def method(self: Any, *args: Any, **options: Any) -> Any:
        with unfenced():
            return await getattr(super(FenceLayer, self), name)(*args, **options)

    return method


# Set from outside the class, so that type checkers still see asyncpg's own signatures.
for _name, _has_text in _CARRIERS.items():
    if hasattr(asyncpg.Connection, _name):
        setattr(FenceLayer, _name, _carrier(_name, has_text=_has_text))
for _name in _PLAIN:
    setattr(FenceLayer, _name, _plain(_name))


class _LentLayer(FenceLayer):
    """The layer of a connection that is not fenced, in the body of a fenced transaction."""

    __slots__ = ()
    is_lent = True


def lend(con: Any) -> type[Any] | None:
    """Have every statement of ``con`` pass through the fence's layer; returns what :func:`end_loan` takes."""
    if sees_all(con):
        return None
    kind: Any = type(con)
    con.__class__ = _with_layer(_LentLayer, kind)
    transaction_state(con).clear()
    lent_from: type[Any] = kind
    return lent_from


def end_loan(con: Any, kind: type[Any] | None) -> None:
    """Undo :func:`lend`, and forget the transaction: what an outer one does from here on is not seen."""
    if kind is None:
        return
    transaction_state(con).clear()
    if con.is_lent:
        con.__class__ = kind


class _Transaction(Transaction):
    """asyncpg's transaction, in which a broken connection does not hide a cancel or a lost lease."""

    __slots__ = ()

    async def __aexit__(self, kind: object, exc: object, trace: object) -> None:
        try:
            await super().__aexit__(kind, exc, trace)
        except DATABASE_ERRORS as broken:
            if isinstance(exc, asyncio.CancelledError):  # it propagates, though the connection broke too
                return
            if (said := ended(broken, current_leases())) is not None:
                raise said from broken
            raise


def whole(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    *,
    isolation: Any = None,
    readonly: bool = False,
) -> Transaction:
    """A transaction for statements of ours on a connection of the caller's, with nothing presented.

    Cancelled at whatever await, it leaves the connection in no transaction, or closed. asyncpg's own leaves
    it in one, with all locks, if BEGIN or the ROLLBACK that follows a cancel is cancelled.
    """
    con: Any = bare(conn)
    if sees_all(con):
        return con.transaction(isolation=isolation, readonly=readonly)  # type: ignore[no-any-return]
    proxy: Any = TransactionProxy(con, tuple, limits=LIMITS)
    return _Transaction(proxy, isolation, readonly, False)  # noqa: FBT003 - as asyncpg has it


class _Proxy(_PoolConnectionProxy):
    """The pool's proxy, emptied when the server drops the connection: then a lost lease is raised as such."""

    __slots__ = ()


def _proxied(name: str) -> Callable[..., Awaitable[Any]]:
    parent: Any = getattr(PoolConnectionProxy, name)

    @functools.wraps(parent)
    async def method(self: Any, *args: Any, **options: Any) -> Any:
        try:
            return await parent(self, *args, **options)
        except asyncpg.InterfaceError as exc:
            if (said := ended(exc, current_leases())) is not None:
                raise said from exc
            raise

    return method


class FencedConnection(FenceLayer, _Connection):
    """Carries the lease; for ``asyncpg.create_pool(..., connection_class=FencedConnection)``."""

    __slots__ = ()


for _name in _CARRIERS:
    if hasattr(PoolConnectionProxy, _name):
        setattr(_Proxy, _name, _proxied(_name))


class _Statement(_PreparedStatement):
    """A prepared statement that carries the lease in force when it is run."""

    __slots__ = ()

    def cursor(self, *args: object, **options: Any) -> Any:
        """As asyncpg's; presents the lease before the first row."""
        con: Any = getattr(self, _OF)
        return _Cursor(con, super().cursor(*args, **options))


def _statement_carrier(name: str) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(getattr(PreparedStatement, name))
    async def method(self: Any, *args: Any, **options: Any) -> Any:
        parent = getattr(super(_Statement, self), name)
        text, con, state = getattr(self, _QUERY), getattr(self, _OF), getattr(self, _STATE)

        def send() -> Any:
            return parent(*args, **options)

        pipelined: Pipelined[Any] | None = None
        if name in _ONE_BY_ONE and is_write(text):
            pipelined = functools.partial(
                run_pipelined, con, limits=LIMITS, send=lambda check: check.go(state, send)
            )
        result = await run_parsed(con, text, send, options.get("timeout"), pipelined)
        if name != "fetch" and getattr(self, _STATUS) == _CHECKS_STATUS:
            setattr(
                self, _STATUS, None
            )  # asyncpg's own value where fetching stopped at a row, before the statement's end
        return result

    return method


for _name in _STATEMENT_CARRIERS:
    if hasattr(PreparedStatement, _name):
        setattr(_Statement, _name, _statement_carrier(_name))


class _Cursor:
    """A cursor that presents the lease before it is opened."""

    __slots__ = ("_con", "_inner")

    def __init__(self, con: Any, inner: Any) -> None:
        self._con = con
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[Any]:
        await self._present()
        async for row in self._inner:
            yield row

    def __await__(self) -> Generator[Any, None, Any]:
        yield from self._present().__await__()
        return (yield from self._inner.__await__())

    async def _present(self) -> None:
        tx = transaction_state(self._con)
        leases = leases_of(self._con, tx)
        if leases and self._con.is_in_transaction():
            await present(self._con, tx, leases)


def fenced(pool: Pool[Any]) -> Pool[Any]:
    """Have every connection of ``pool`` carry the lease from now on, also for code that has the pool already.

    Connections in use at the moment are fenced when they are next acquired. Calling it again changes nothing.

    Returns:
        The same pool.
    """
    if not isinstance(pool, _PoolLayer):
        kind: Any = type(pool)
        pool.__class__ = _with_layer(_PoolLayer, kind)
    return pool


def create_pool(*args: Any, **options: Any) -> Pool[Any]:
    """Create a pool as ``asyncpg.create_pool`` does, and fence it; see :func:`fenced`."""
    return fenced(asyncpg.create_pool(*args, **options))


class _PoolLayer:
    __slots__ = ()

    async def _acquire(self, timeout: float | None) -> PoolConnectionProxy[Any]:
        parent: Any = super()
        pool: Any = self
        require_own_loop(pool)
        with unfenced():  # the pool's init and setup hooks are not part of the body
            proxy: PoolConnectionProxy[Any] = await parent._acquire(timeout)
        if type(proxy) is PoolConnectionProxy:
            proxy.__class__ = _Proxy
        add_layer(bare(proxy))
        return proxy

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """As asyncpg's; in a guarded body it does not raise an error that would look like the work's."""
        parent: Any = super()
        if type(connection) is _Proxy:  # asyncpg takes back only its own class
            proxy: Any = connection
            proxy.__class__ = PoolConnectionProxy
        try:
            await parent.release(connection, timeout=timeout)
        except DATABASE_ERRORS:
            if not _begun_in_a_body():
                raise


def _begun_in_a_body() -> bool:
    """Whether the running code was begun in a guarded body, which may have been left meanwhile.

    Tasks of a body that is cancelled can outlive it: `asyncio.gather` waits only for the first of them.
    """
    return bool(current_leases()) or outlived_lease() is not None


def add_layer(con: Any) -> None:
    """Have every statement of ``con`` carry the lease from now on."""
    if not sees_all(con):
        kind: Any = type(con)
        con.__class__ = _with_layer(FenceLayer, kind)


@functools.cache
def _with_layer(layer: Any, base: Any) -> Any:
    """A subclass of ``base`` with ``layer`` first; stateless, so that an object's class can be set to it."""
    return type(base)(f"Fenced{base.__name__}", (layer, base), {"__slots__": (), "__module__": __name__})
