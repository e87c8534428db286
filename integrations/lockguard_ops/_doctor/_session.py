"""One session of the bot's role in the database, and lines with which an administrator mends things there."""

from __future__ import annotations

import shlex
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import asyncpg

from lockguard.text import first_line
from lockguard_asyncpg._dsn import arguments, reason_of, shown
from lockguard_asyncpg._errors import CONNECT_ERRORS, unreachable
from lockguard_ops._doctor._findings import Report, Severity, advice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["CONNECT_S", "Session", "open_session"]

CONNECT_S = 10.0
_ANSWER_S = 30.0
_PORT = 5432
_REFUSALS = ("28", "3D", "42")
"""SQLSTATEs of a server that refuses a log-in: the user or the password, the database, the right to it."""

_LOGIN = advice("set the right user, password and database in the URL; lockguard doctor never shows them")


class Session:
    """A session, see :func:`open_session`.

    Attributes:
        conn: the connection.
        server: the database for display; without credentials.
    """

    def __init__(self, conn: asyncpg.Connection[Any], url: str, name: str) -> None:
        self.conn = conn
        self.server = f"Postgres {shown(url)}"
        self._url = url
        self._name = name
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or _PORT

    async def another(self) -> asyncpg.Connection[Any]:
        """A second connection by the same URL.

        Raises:
            asyncpg.PostgresError, OSError: the database does not answer any more.
        """
        return await _connect(self._url)

    async def clock(self) -> float:
        """One round trip; the server's clock in seconds since 1970."""
        told = await self.conn.fetchval("select extract(epoch from clock_timestamp())::float8")
        return float(told)

    def psql(self, *statements: str) -> str:
        """How to run statements as an administrator, who is named by PGUSER and PGPASSWORD."""
        where = [*(["-h", self._host] if self._host else []), "-p", str(self._port), "-d", self._name]
        return shlex.join(["psql", *where, *(word for one in statements for word in ("-c", one))])

    def lockguard(self, command: str) -> str:
        """A command of ``lockguard``, for this database and as the role that PGUSER and PGPASSWORD name."""
        option = "--url" if command.startswith("lockguard fence") else "--database"
        host = f"[{self._host}]" if ":" in self._host else self._host
        url = f"postgresql://{host}:{self._port}/{quote(self._name, safe='')}"
        return f"{command} {option} {shlex.quote(url)}"


async def _connect(url: str) -> asyncpg.Connection[Any]:
    # Without a cache of statements, which another session behind a pooler would not have.
    given = {**arguments(url), "statement_cache_size": 0, "command_timeout": _ANSWER_S}
    conn: asyncpg.Connection[Any] = await asyncpg.connect(**given, timeout=CONNECT_S)
    return conn


@asynccontextmanager
async def open_session(url: str, report: Report) -> AsyncIterator[Session | None]:
    """Connect to the database; ``None`` if it does not answer or refuses the log-in, which are findings.

    Raises:
        ConfigurationError: the URL is malformed.
    """
    arguments(url)
    server = f"Postgres {shown(url)}"
    try:
        conn = await _connect(url)
        name = await conn.fetchval("select current_database()")
    except CONNECT_ERRORS as exc:
        if str(getattr(exc, "sqlstate", None)).startswith(_REFUSALS):
            report.add("postgres.login", Severity.ERROR, server, first_line(exc), _LOGIN)
        else:
            told, remedy = reason_of(exc, within_s=CONNECT_S), advice("see that it runs, and its log")
            report.add("postgres.unreachable", Severity.ERROR, server, told, remedy, unread=unreachable(exc))
        yield None
        return
    try:
        yield Session(conn, url, name)
    finally:
        await conn.close(timeout=CONNECT_S)
