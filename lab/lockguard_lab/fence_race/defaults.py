"""Isolation as the role's default, as administrators set it: it reaches code that asks for none.

An isolation that a session asks for when it is opened works on a direct connection only, and only until
it is reset. A default of the role reaches every session, including a pooler's, and so also the fence's
own calls.
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
# Deferrable makes a serializable read-only transaction wait for a moment without writers: none of our
# transactions may be one.
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
    """Make ``isolation``, and deferrable with it, the role's default in a database during the body.

    Every other session of the role there is ended, since it would keep its old default.

    Args:
        direct: the URL of the database, which must be the caller's own.
        url: the URL by which the body reaches it, perhaps a pooler's.
        isolation: the new default.

    Raises:
        ConfigurationError: the default is not in force on connections to ``url``.
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
            while await conn.fetchval(_OTHERS):  # noqa: ASYNC110 - the server does not tell
                await asyncio.sleep(0.01)
    finally:
        await conn.close()


async def _require(url: str, level: str) -> None:
    """Wait until the default is in force: a pooler may not know yet that its sessions have ended."""
    said: Any = None
    try:
        async with asyncio.timeout(_WITHIN_S):
            while (said := await _default(url)) != level:  # noqa: ASYNC110 - a pooler does not tell
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
