"""What an error of asyncpg means to a holder, see :mod:`lockguard_postgres._errors`."""

from __future__ import annotations

import configparser
from typing import TYPE_CHECKING

import asyncpg

from lockguard_postgres._errors import (
    CommitUnknown,
    Errors,
    Meaning,
    NotCommitted,
    Said,
    SealUnknown,
    VersionConflict,
    meaning_of_state,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lockguard._lease import Lease
    from lockguard.errors import ConfigurationError, LockguardError, StaleToken

__all__ = [
    "CONNECT_ERRORS",
    "DATABASE_ERRORS",
    "ERRORS",
    "CommitUnknown",
    "Meaning",
    "NotCommitted",
    "SealUnknown",
    "VersionConflict",
    "ended",
    "fence_error",
    "leaves_in_doubt",
    "meaning_of",
    "note_on_check",
    "set_up_error",
    "stale",
    "translate",
    "unreachable",
]

DATABASE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What asyncpg raises when a statement fails, its timeouts included."""

CONNECT_ERRORS = (*DATABASE_ERRORS, ValueError, configparser.Error)
"""What asyncpg raises when it cannot connect, or cannot read a part of a URL or a service file."""


def meaning_of(exc: BaseException) -> Meaning:
    """What ``exc``, raised by asyncpg, says about the work."""
    if isinstance(exc, asyncpg.PostgresError) and exc.sqlstate:
        return meaning_of_state(str(exc.sqlstate), str(exc))
    if isinstance(exc, asyncpg.ClientConfigurationError):
        return Meaning.CONFIGURATION
    if isinstance(exc, asyncpg.TargetServerAttributeNotMatched):  # none is there during a failover
        return Meaning.UNAVAILABLE
    if isinstance(exc, asyncpg.InterfaceError):
        # asyncpg reports a closed connection or pool as the caller's misuse, without a class of its own.
        return Meaning.LOST if "closed" in str(exc) or "released" in str(exc) else Meaning.STATEMENT
    if isinstance(exc, TimeoutError):
        return Meaning.UNAVAILABLE
    if isinstance(exc, OSError | EOFError | asyncpg.InternalClientError):
        return Meaning.LOST
    return Meaning.STATEMENT


def _heard(exc: BaseException) -> Said | None:
    if not isinstance(exc, asyncpg.PostgresError):
        return None
    severity = getattr(exc, "severity_en", None) or getattr(exc, "severity", None)
    fields = (exc.sqlstate, exc.message, exc.detail, exc.hint, severity)
    return Said(*(str(field or "") for field in fields))


ERRORS = Errors(_heard, meaning_of)


def leaves_in_doubt(exc: BaseException) -> bool:
    """Whether a COMMIT that failed with ``exc`` may have taken effect all the same."""
    return ERRORS.leaves_in_doubt(exc)


def unreachable(exc: BaseException) -> bool:
    """Whether an attempt to connect failed for a passing reason: no server answers there now."""
    return ERRORS.unreachable(exc)


def stale(exc: BaseException) -> StaleToken | None:
    """The fence's refusal as a :class:`StaleToken` with its facts, or ``None`` for anything else."""
    return ERRORS.stale(exc)


def ended(exc: BaseException, leases: Iterable[Lease]) -> LockguardError | None:
    """What a failed statement says about its leases, see :meth:`lockguard_postgres._errors.Errors.ended`."""
    return ERRORS.ended(exc, leases)


def note_on_check(exc: BaseException, leases: Iterable[Lease]) -> None:
    """Add a note to an error that Postgres itself raised in a check: what it means there."""
    ERRORS.note_on_check(exc, leases)


def set_up_error(exc: BaseException) -> ConfigurationError:
    """For an error that means CONFIGURATION, the error that tells in one line what to change."""
    return ERRORS.set_up_error(exc)


def fence_error(exc: BaseException) -> LockguardError | None:
    """The error to raise for a failed call of the fence's own; ``None`` if it is ``exc`` itself."""
    return ERRORS.fence_error(exc)


def translate(exc: BaseException) -> BaseException:
    """The :class:`StaleToken` for a refusal of the fence; any other error is returned unchanged."""
    return ERRORS.translate(exc)
