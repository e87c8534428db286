"""Fenced engines of SQLAlchemy 2 over its asyncpg dialect.

SQLAlchemy's dialect calls asyncpg's own methods, in the task and the context of its caller, so a connection
whose class carries the lease is all that its ORM needs. This module gives the engine's connections that
class, and tells SQLAlchemy what it cannot know: that a connection is gone with its lease, and that its pool's
own ping is not part of the body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from sqlalchemy import event
    from sqlalchemy.exc import DisconnectionError
except ModuleNotFoundError as exc:
    if exc.name != "sqlalchemy":
        raise
    raise ImportError(
        "lockguard_asyncpg.sqlalchemy needs SQLAlchemy 2, which is not installed:"
        " pip install 'lockguard[sqlalchemy]'"
    ) from exc

from lockguard.errors import ConfigurationError, LockguardError
from lockguard_asyncpg._connection import add_layer
from lockguard_asyncpg._transaction_state import sees_all
from lockguard_postgres._in_force import unfenced

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["fenced_engine"]


def fenced_engine(engine: AsyncEngine) -> AsyncEngine:
    """Have every connection of ``engine`` carry the lease from now on, also for code that has it already.

    Connections that are open at the moment are replaced when they are next taken from the pool. Calling it
    again changes nothing. Errors of lockguard, such as :class:`~lockguard.errors.StaleToken`, are raised as
    they are: SQLAlchemy wraps only those of its driver.

    Returns:
        The same engine.

    Raises:
        ConfigurationError: the engine's driver is not asyncpg.
    """
    pooled = getattr(engine, "sync_engine", None)
    if pooled is None or pooled.dialect.driver != "asyncpg":
        raise ConfigurationError(
            "fenced_engine() takes the engine of create_async_engine('postgresql+asyncpg://...'), and this"
            f" is {type(engine).__name__}"
            + (f" of {engine.dialect.name}+{engine.dialect.driver}" if hasattr(engine, "dialect") else "")
        )
    if not event.contains(pooled, "connect", _connected):
        # After SQLAlchemy's own queries on a new connection: they are not part of the body, and where they
        # were refused, SQLAlchemy 2.0 would leave the connection open for ever.
        event.listen(pooled, "connect", _connected)
        event.listen(pooled, "checkout", _taken)
        event.listen(pooled, "handle_error", _failed)
        _ping_unfenced(pooled.dialect)
    return engine


def _connected(connection: Any, _: object) -> None:
    add_layer(connection.driver_connection)


def _taken(connection: Any, _: object, __: object) -> None:
    if not sees_all(connection.driver_connection):
        raise DisconnectionError("opened before its engine was fenced: it may keep prepared statements")


def _ping_unfenced(dialect: Any) -> None:
    ping = dialect.do_ping

    def do_ping(connection: Any) -> Any:
        with unfenced():  # a lost lease must not cost the pool its connection
            return ping(connection)

    dialect.do_ping = do_ping


def _failed(context: ExceptionContext) -> None:
    connection = context.connection
    if not isinstance(context.original_exception, LockguardError) or connection is None:
        return
    if connection.closed or connection.invalidated:
        return
    driver: Any = connection.connection.driver_connection
    if driver.is_closed():
        # SQLAlchemy asks only for its driver's errors, and its pool would give the connection out once more.
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
