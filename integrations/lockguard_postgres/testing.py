"""A fence in memory, for tests of code that writes under leases: offered by :mod:`lockguard.testing`."""

from __future__ import annotations

from lockguard_postgres._errors import NotCommitted
from lockguard_postgres._in_force import unfenced
from lockguard_postgres._memory_fence import MemoryFence
from lockguard_postgres._memory_tables import MemoryTable
from lockguard_postgres._refusals import Refused

__all__ = ["MemoryFence", "MemoryTable", "NotCommitted", "Refused", "unfenced"]
