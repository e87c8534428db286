"""After a failover that may have lost commits, or a restore. What it does is in ``sql/0007_recover.sql``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard_asyncpg._errors import Meaning, meaning_of, set_up_error

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

__all__ = ["Recovered", "shut_out_all"]

_PART = 500
_RECOVER = "select last, raised, were_open from lockguard.recover($1, $2, $3, $4)"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What :func:`shut_out_all` did.

    Attributes:
        raised: how many resources' rows it raised.
        were_open: how many of them this database took for held.
    """

    raised: int
    were_open: int


async def shut_out_all(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], *, reason: str) -> Recovered:
    """Accept no more writes of any grant that was sealed before; again is harmless.

    Args:
        conn: a connection of the role that owns the schema, outside of a transaction.
        reason: why; kept in ``lockguard.audit``.

    Raises:
        ConfigurationError: too little privilege, or no schema.
    """
    raised, were_open, last = 0, 0, ""
    try:
        before = await conn.fetchval("select clock_timestamp()")
        while True:
            row = await conn.fetchrow(_RECOVER, reason, before, last, _PART)
            if row is None or row["last"] is None:
                return Recovered(raised, were_open)
            raised, were_open, last = raised + row["raised"], were_open + row["were_open"], row["last"]
    except asyncpg.InsufficientPrivilegeError as exc:
        raise ConfigurationError(f"{exc.message}; recover as the role that owns lockguard's schema") from exc
    except asyncpg.PostgresError as exc:
        if meaning_of(exc) is Meaning.CONFIGURATION:
            raise set_up_error(exc) from exc
        raise
