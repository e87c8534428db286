"""Lease-aware strategies for tenacity.

Requires ``pip install 'lockguard[tenacity]'``.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("tenacity") is None:
    raise ImportError("lockguard_tenacity needs tenacity; pip install 'lockguard[tenacity]'")

from lockguard_tenacity._predicates import retry_if_busy, retry_if_network_failed, retry_if_retryable
from lockguard_tenacity._reads import retry_reads
from lockguard_tenacity._waits import stop_at_lease_end, wait_for_retry_after

__all__ = [
    "retry_if_busy",
    "retry_if_network_failed",
    "retry_if_retryable",
    "retry_reads",
    "stop_at_lease_end",
    "wait_for_retry_after",
]
