"""What an error of psycopg means to a holder, see :mod:`lockguard_postgres._errors`."""

from __future__ import annotations

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from lockguard_postgres._errors import Errors, Meaning, Said, meaning_of_state

__all__ = ["DATABASE_ERRORS", "ERRORS"]

DATABASE_ERRORS = (psycopg.Error, OSError)
"""What psycopg and its pool raise when a statement fails, or no connection can be had."""


def _meaning_of(exc: BaseException) -> Meaning:
    if isinstance(exc, psycopg.Error) and exc.sqlstate:
        return meaning_of_state(exc.sqlstate, str(exc))
    if isinstance(exc, PoolTimeout | TooManyRequests | TimeoutError):
        return Meaning.UNAVAILABLE
    if isinstance(exc, PoolClosed):
        return Meaning.STATEMENT
    # Without a SQLSTATE it is libpq's own: the connection could not be made, or is gone. In a pipeline a
    # result tells that, of which psycopg makes the plainest error.
    if isinstance(exc, psycopg.OperationalError | OSError) or type(exc) is psycopg.DatabaseError:
        return Meaning.LOST
    return Meaning.STATEMENT


def _heard(exc: BaseException) -> Said | None:
    if not isinstance(exc, psycopg.Error) or not exc.sqlstate:
        return None
    diag = exc.diag
    fields = (diag.message_primary, diag.message_detail, diag.message_hint, diag.severity_nonlocalized)
    return Said(exc.sqlstate, *(field or "" for field in fields))


ERRORS = Errors(_heard, _meaning_of)
