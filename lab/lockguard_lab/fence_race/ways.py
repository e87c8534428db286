"""Every documented way to write."""

from __future__ import annotations

from importlib.util import find_spec

from lockguard_lab.fence_race.plan import Way
from lockguard_lab.fence_race.writes import (
    CLOSING,
    CLOSING_STATEMENT,
    FOREIGN,
    LAZY,
    NATIVE,
    SAVEPOINTS,
    TRANSACTION,
)
from lockguard_lab.fence_race.writes_dropin import (
    BEGUN_BEFORE,
    COPY,
    CURSOR,
    DROP_IN,
    DROP_IN_SAVEPOINTS,
    EXECUTEMANY,
    LONE,
    PREPARED,
    PROTECTED,
)
from lockguard_lab.fence_race.writes_first import FIRST
from lockguard_lab.fence_race.writes_psycopg import PSYCOPG
from lockguard_lab.fence_race.writes_sqlalchemy import SQLALCHEMY

__all__ = ["WAYS", "present_ways"]

WAYS: tuple[Way, ...] = (
    TRANSACTION,
    CLOSING,
    FOREIGN,
    SAVEPOINTS,
    NATIVE,
    LAZY,
    CLOSING_STATEMENT,
    DROP_IN,
    LONE,
    FIRST,
    BEGUN_BEFORE,
    DROP_IN_SAVEPOINTS,
    PREPARED,
    EXECUTEMANY,
    CURSOR,
    COPY,
    SQLALCHEMY,
    PSYCOPG,
    PROTECTED,
)
"""The ways to write that must never break a law."""


def present_ways() -> tuple[Way, ...]:
    """The ways whose packages are installed; SQLAlchemy and psycopg are extras of lockguard."""
    missing = [way for way, package in _PACKAGES if find_spec(package) is None]
    return tuple(way for way in WAYS if way not in missing)


_PACKAGES = ((SQLALCHEMY, "sqlalchemy"), (PSYCOPG, "psycopg_pool"))
