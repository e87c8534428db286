"""The fence and fenced connections for psycopg 3, asynchronous and synchronous."""

from __future__ import annotations

try:
    import psycopg as _psycopg  # noqa: F401 - only to say which extra is missing
    import psycopg_pool as _psycopg_pool  # noqa: F401
except ModuleNotFoundError as exc:
    if exc.name not in {"psycopg", "psycopg_pool"}:
        raise
    raise ImportError(
        f"lockguard_psycopg needs {exc.name}, which is not installed: pip install 'lockguard[psycopg]'"
    ) from exc

from lockguard_postgres._errors import CommitUnknown, NotCommitted, SealUnknown
from lockguard_postgres._in_force import unfenced
from lockguard_postgres._schema_sql import Installed, schema_sql
from lockguard_postgres._steps import SCHEMA_VERSION
from lockguard_postgres._watching import ColumnTrigger, Readiness, WatchedTable, WatchedWrite
from lockguard_psycopg._connection import AsyncFencedConnection, FencedConnection
from lockguard_psycopg._fence import PsycopgFence, resolve
from lockguard_psycopg._setup import install, protect, schema_version, unprotect
from lockguard_psycopg._watching import watched

__all__ = [
    "SCHEMA_VERSION",
    "AsyncFencedConnection",
    "ColumnTrigger",
    "CommitUnknown",
    "FencedConnection",
    "Installed",
    "NotCommitted",
    "PsycopgFence",
    "Readiness",
    "SealUnknown",
    "WatchedTable",
    "WatchedWrite",
    "install",
    "protect",
    "resolve",
    "schema_sql",
    "schema_version",
    "unfenced",
    "unprotect",
    "watched",
]
