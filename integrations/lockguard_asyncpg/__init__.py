"""The fence: Postgres itself refuses the writes of a holder whose lease has ended."""

from __future__ import annotations

try:
    import asyncpg as _asyncpg  # noqa: F401 - only to say which extra is missing
except ModuleNotFoundError as exc:
    if exc.name != "asyncpg":
        raise
    raise ImportError(
        "lockguard_asyncpg needs asyncpg, which is not installed: pip install 'lockguard[postgres]'"
    ) from exc

from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._connection import FencedConnection, create_pool, fenced
from lockguard_asyncpg._errors import CommitUnknown, NotCommitted, SealUnknown, VersionConflict, translate
from lockguard_asyncpg._fence import resolve
from lockguard_asyncpg._native import fenced_execute, fenced_fetch, fenced_fetchrow, fenced_fetchval
from lockguard_asyncpg._protection import Finding, Protection, findings, protect, protections, unprotect
from lockguard_asyncpg._schema import (
    SCHEMA_VERSION,
    Installed,
    install,
    schema_sql,
    schema_version,
    uninstall,
)
from lockguard_asyncpg._transaction import FencedTransaction, Limits, fenced_transaction
from lockguard_asyncpg._versions import update_if_version
from lockguard_asyncpg._watching import watched
from lockguard_postgres._in_force import unfenced
from lockguard_postgres._watching import ColumnTrigger, Readiness, WatchedTable, WatchedWrite

__all__ = [
    "SCHEMA_VERSION",
    "ColumnTrigger",
    "CommitUnknown",
    "FencedConnection",
    "FencedTransaction",
    "Finding",
    "Installed",
    "Limits",
    "NotCommitted",
    "PostgresFence",
    "Protection",
    "Readiness",
    "SealUnknown",
    "VersionConflict",
    "WatchedTable",
    "WatchedWrite",
    "create_pool",
    "fenced",
    "fenced_execute",
    "fenced_fetch",
    "fenced_fetchrow",
    "fenced_fetchval",
    "fenced_transaction",
    "findings",
    "install",
    "protect",
    "protections",
    "resolve",
    "schema_sql",
    "schema_version",
    "translate",
    "unfenced",
    "uninstall",
    "unprotect",
    "update_if_version",
    "watched",
]
