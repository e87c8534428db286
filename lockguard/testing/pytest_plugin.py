"""Fixtures for tests of code that locks.

Ask for them in ``conftest.py``::

    pytest_plugins = ["lockguard.testing.pytest_plugin"]

* ``lockguard_memory``: a guard without a server, for unit tests.
* ``new_lockguard``: makes more such guards, as other processes would have them; all share their locks.
* ``lockguard_redis``: a real server, one for all tests of the process; needs ``lockguard[testing]``.
* ``lockguard_redis_url``: its URL, after its keys were deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lockguard import testing
from lockguard._guard import LockGuard
from lockguard._nodes.memory import MemoryStore

__all__ = ["lockguard_memory", "lockguard_redis", "lockguard_redis_url", "lockguard_store", "new_lockguard"]


@pytest.fixture
def lockguard_store() -> MemoryStore:
    """The store that the guards of one test share."""
    return MemoryStore()


@pytest.fixture
def new_lockguard(lockguard_store: MemoryStore) -> Callable[..., LockGuard]:
    """Makes guards without a server that share their locks; takes the options of ``LockGuard``."""

    def new(**options: Any) -> LockGuard:
        return LockGuard.in_memory(lockguard_store, **options)

    return new


@pytest.fixture
def lockguard_memory(new_lockguard: Callable[..., LockGuard]) -> LockGuard:
    """A guard without a server. It need not be closed: nothing of it is left when its leases have ended."""
    return new_lockguard()


@pytest.fixture(scope="session")
def lockguard_redis() -> Iterator[Any]:
    """A real server for all tests of this process. A test that pauses or kills one starts its own."""
    with testing.RedisServer() as server:
        yield server


@pytest.fixture
def lockguard_redis_url(lockguard_redis: Any) -> str:
    """The URL of a real server without keys."""
    lockguard_redis.command("FLUSHALL")
    url: str = lockguard_redis.url
    return url
