"""Positions of a trading bot: opened, reconciled, recovered and closed across processes and crashes.

Needs ``pip install 'lockguard[positions]'``.
"""

from __future__ import annotations

from importlib.util import find_spec

if _missing := [name for name in ("asyncpg", "ccxt", "tenacity") if find_spec(name) is None]:
    raise ImportError(f"lockguard_positions needs {', '.join(_missing)}; pip install 'lockguard[positions]'")

from lockguard_positions._diagnosis import Diagnosis, Finding, FindingKind, StatusFigures, diagnose
from lockguard_positions._errors import (
    DuplicatePosition,
    ExchangeUnreadable,
    IllegalTransition,
    MigrationRefused,
    PositionChanged,
    PositionError,
    ServerUnreachable,
)
from lockguard_positions._events import (
    Alert,
    CommitResolved,
    DoubtResolved,
    LogPositions,
    Looked,
    Moved,
    PositionEvent,
    PositionObserver,
    WriteRefused,
)
from lockguard_positions._manager import AtomicPositionManager
from lockguard_positions._model import (
    Adopt,
    AlreadyOpen,
    Intent,
    IntentOutcome,
    NotOpened,
    Opened,
    OpenResult,
    Position,
    PositionSide,
    SyncAction,
    SyncOutcome,
    SyncReport,
)
from lockguard_positions._pace import Pace
from lockguard_positions._schema import LATEST, Migrated, migrate, protect_positions, version
from lockguard_positions._status import OPEN, TERMINAL, TRANSITIONS, PositionStatus
from lockguard_positions._store import PositionStore

__all__ = [
    "LATEST",
    "OPEN",
    "TERMINAL",
    "TRANSITIONS",
    "Adopt",
    "Alert",
    "AlreadyOpen",
    "AtomicPositionManager",
    "CommitResolved",
    "Diagnosis",
    "DoubtResolved",
    "DuplicatePosition",
    "ExchangeUnreadable",
    "Finding",
    "FindingKind",
    "IllegalTransition",
    "Intent",
    "IntentOutcome",
    "LogPositions",
    "Looked",
    "Migrated",
    "MigrationRefused",
    "Moved",
    "NotOpened",
    "OpenResult",
    "Opened",
    "Pace",
    "Position",
    "PositionChanged",
    "PositionError",
    "PositionEvent",
    "PositionObserver",
    "PositionSide",
    "PositionStatus",
    "PositionStore",
    "ServerUnreachable",
    "StatusFigures",
    "SyncAction",
    "SyncOutcome",
    "SyncReport",
    "WriteRefused",
    "diagnose",
    "migrate",
    "protect_positions",
    "version",
]
