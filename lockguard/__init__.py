"""Lease locks in Redis with fencing tokens that Postgres checks itself."""

from __future__ import annotations

from lockguard._context import current_lease, current_leases, detached
from lockguard._exclusive import Skipped, exclusive
from lockguard._guard import LockGuard
from lockguard._history import HistoryEntry
from lockguard._lease import Grant, GrantId, Lease, LeaseState, Resource, Token
from lockguard.errors import (
    AcquireError,
    ChangedHands,
    ConfigurationError,
    FenceUnavailable,
    LeaseError,
    LeaseLost,
    LeaseNotHeld,
    LockguardError,
    LossReason,
    NodeError,
    NodeRefused,
    NodeUnknown,
    OutcomeUnknown,
    QueueFull,
    QuorumUnavailable,
    ResourceBusy,
    SelfDeadlock,
    StaleToken,
)

__version__ = "0.1.0"

__all__ = [
    "AcquireError",
    "ChangedHands",
    "ConfigurationError",
    "FenceUnavailable",
    "Grant",
    "GrantId",
    "HistoryEntry",
    "Lease",
    "LeaseError",
    "LeaseLost",
    "LeaseNotHeld",
    "LeaseState",
    "LockGuard",
    "LockguardError",
    "LossReason",
    "NodeError",
    "NodeRefused",
    "NodeUnknown",
    "OutcomeUnknown",
    "QueueFull",
    "QuorumUnavailable",
    "Resource",
    "ResourceBusy",
    "SelfDeadlock",
    "Skipped",
    "StaleToken",
    "Token",
    "current_lease",
    "current_leases",
    "detached",
    "exclusive",
]
