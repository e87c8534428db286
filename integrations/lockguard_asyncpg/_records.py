"""Reads what the fence keeps for operators; a role needs no more than ``lockguard_viewer`` for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._records import AuditLine, FenceState, Refusal
from lockguard.errors import ConfigurationError, FenceUnavailable
from lockguard_asyncpg._connection import whole
from lockguard_asyncpg._dsn import arguments, reason_of, shown
from lockguard_asyncpg._errors import CONNECT_ERRORS, Meaning, meaning_of, set_up_error, unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from datetime import datetime

__all__ = ["FenceRecords", "open_records"]

_WITHIN_S = 5.0
_STATES = "select * from lockguard.states($1, $2)"
_AUDIT = "select at, actor, action, subject, reason from lockguard.audit_lines($1, $2)"
_REFUSALS = "select * from lockguard.refusals($1, $2, $3)"
_NOW = "select clock_timestamp()"


class FenceRecords:
    """The fence's state, audit and refusals, read from a pool; keeps ``lockguard._records.Records``.

    A standby will do.

    Args:
        pool: an asyncpg pool, best without a statement cache, as a pooler may be in between.
        name: the database for messages, without secrets.
    """

    def __init__(self, pool: asyncpg.Pool[Any], *, name: str = "the fence's database") -> None:
        self._pool = pool
        self._name = name

    async def states(
        self, resources: Collection[str] | None = None, *, only_open: bool = False
    ) -> tuple[FenceState, ...]:
        """The fence of each of ``resources`` that has one, in the order of their names; ``None``: of all.

        Raises:
            FenceUnavailable: the database does not answer.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        rows = await self._fetch(_STATES, None if resources is None else list(resources), only_open)
        return tuple(
            FenceState(
                resource=row["resource"],
                token=row["token"],
                grant=row["grant_id"].hex,
                holder=row["holder"],
                operation=row["operation"],
                is_open=row["is_open"],
                sealed_at=row["sealed_at"],
                released_at=row["released_at"],
            )
            for row in rows
        )

    async def audit(self, resource: str | None = None, *, limit: int = 100) -> tuple[AuditLine, ...]:
        """The last lines of the audit, newest first.

        Of one resource, with the recoveries and prunes that may have reached it; ``None``: all lines.

        Raises:
            FenceUnavailable: the database does not answer.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        return tuple(AuditLine(**row) for row in await self._fetch(_AUDIT, resource, limit))

    async def refusals(
        self, resource: str | None = None, *, since: datetime | None = None, limit: int = 100
    ) -> tuple[Refusal, ...]:
        """The last refused writes, newest first: of one resource or of all, since a time if one is given.

        Raises:
            FenceUnavailable: the database does not answer.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        return tuple(Refusal(**row) for row in await self._fetch(_REFUSALS, resource, since, limit))

    async def now(self) -> datetime:
        """The database's clock.

        Raises:
            FenceUnavailable: the database does not answer.
            ConfigurationError: the log-in was refused.
        """
        now: datetime = (await self._fetch(_NOW))[0][0]
        return now

    async def _fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        try:
            async with asyncio.timeout(_WITHIN_S):
                # In a transaction, which a pooler sends to one server.
                async with self._pool.acquire() as conn, whole(conn, readonly=True):
                    return list(await conn.fetch(query, *args))
        except CONNECT_ERRORS as exc:
            if meaning_of(exc) is Meaning.CONFIGURATION:
                raise ConfigurationError(f"{self._name}: {set_up_error(exc)}") from exc
            told = f"{self._name}: {reason_of(exc, within_s=_WITHIN_S)}"
            if not unreachable(exc):
                raise ConfigurationError(told) from exc
            raise FenceUnavailable(told, resource="") from exc


@asynccontextmanager
async def open_records(url: str) -> AsyncIterator[FenceRecords]:
    """What the fence of the database at ``url`` keeps. Connects when it is first asked, and again as needed.

    Raises:
        ConfigurationError: the URL cannot work.
    """
    given: dict[str, Any] = arguments(url) | {"statement_cache_size": 0}
    try:
        pool = asyncpg.create_pool(**given, min_size=0, max_size=2, timeout=_WITHIN_S)
        await pool
    except CONNECT_ERRORS as exc:
        raise ConfigurationError(f"{shown(url)}: {reason_of(exc, within_s=_WITHIN_S)}") from exc
    async with pool:
        yield FenceRecords(pool, name=shown(url))
