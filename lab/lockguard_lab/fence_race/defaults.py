"""Isolation as the role's default, as administrators set it: also for what says nothing of its own.

A session that is asked for an isolation when it is opened has it on a direct connection only, and only as
long as nobody resets it. A default of the role reaches every session, those of a pooler too, and so it also
reaches the fence's own calls.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard_asyncpg._errors import DATABASE_ERRORS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lockguard_asyncpg._transaction import Isolation

__all__ = ["role_defaults"]

_WITHIN_S = 10.0
# Deferrable has a serializable transaction that only reads wait for a moment without writers: nothing of
# ours may do that.
_SETTINGS = ("default_transaction_isolation", "default_transaction_deferrable")
_ALTER = """
do $$ begin
  execute format('alter role current_user in database %I {change}', current_database());
end $$
"""
_OTHERS = """
select count(pg_terminate_backend(pid)) from pg_stat_activity
 where usename = current_user and datname = current_database() and pid <> pg_backend_pid()
"""


@asynccontextmanager
async def role_defaults(direct: str, url: str, isolation: Isolation) -> AsyncIterator[None]:
    """Make ``isolation``, and deferrable with it, the role's default in a database for the body.

    Every other session of the role there is ended: it would go on as it was opened.

    Args:
        direct: the database, of the caller's own.
        url: the way by which the body goes there, perhaps a pooler.
        isolation: what is to be the default.

    Raises:
        ConfigurationError: it is not in force by way of ``url``.
    """
    level = isolation.replace("_", " ")
    await _alter(direct, [f"set {_SETTINGS[0]} = ''{level}''", f"set {_SETTINGS[1]} = on"])
    try:
        await _require(url, level)
        yield
    finally:
        await _alter(direct, [f"reset {name}" for name in _SETTINGS])


async def _alter(direct: str, changes: list[str]) -> None:
    conn = await asyncpg.connect(direct)
    try:
        for change in changes:
            await conn.execute(_ALTER.format(change=change))
        async with asyncio.timeout(_WITHIN_S):
            while await conn.fetchval(_OTHERS):  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.01)
    finally:
        await conn.close()


async def _require(url: str, level: str) -> None:
    """A pooler may not have heard yet that its sessions have ended."""
    said: Any = None
    try:
        async with asyncio.timeout(_WITHIN_S):
            while (said := await _default(url)) != level:  # noqa: ASYNC110 - a pooler tells nobody
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise ConfigurationError(
            f"the role's default isolation is {said!r} by way of this URL, not {level!r}"
        ) from None


async def _default(url: str) -> Any:
    try:
        conn = await asyncpg.connect(url, statement_cache_size=0)
        try:
            return await conn.fetchval(f"select current_setting('{_SETTINGS[0]}')")
        finally:
            await conn.close()
    except DATABASE_ERRORS as exc:
        return exc
