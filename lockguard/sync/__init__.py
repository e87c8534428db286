"""The guard for synchronous code and threads: one background event loop, and calls that block.

The same names as in :mod:`lockguard`, for ``def`` functions::

    from lockguard.sync import LockGuard

    guard = LockGuard.from_url("redis://localhost")

    with guard.hold("binance:APTUSDT") as lease:
        lease.ensure(timedelta(seconds=3))
        ...
"""

from __future__ import annotations

from lockguard.sync._exclusive import exclusive
from lockguard.sync._guard import LockGuard
from lockguard.sync._lease import Lease

__all__ = ["Lease", "LockGuard", "exclusive"]
