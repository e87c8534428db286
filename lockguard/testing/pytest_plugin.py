"""Fixtures for tests of code that locks.

Ask for them in ``conftest.py``::

    pytest_plugins = ["lockguard.testing.pytest_plugin"]

They are not loaded by themselves: that would import lockguard in every run of pytest wherever it is
installed, and before the coverage of its users is measured.

* ``lockguard_memory``: a guard without a server, for unit tests.
* ``new_lockguard``: makes more such guards, as other processes would have them; all share their locks.
* ``lockguard_store``: what they share; it fails, hangs and loses answers on demand.
* ``lockguard_fence``: a fence in memory, for ``new_lockguard(fence=lockguard_fence)``.
* ``lockguard_clock``: a test that asks for it moves the time of all of these.
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
from lockguard.testing._clock import FakeClock

__all__ = [
    "lockguard_clock",
    "lockguard_fence",
    "lockguard_memory",
    "lockguard_redis",
    "lockguard_redis_url",
    "lockguard_store",
    "new_lockguard",
]


def _clock_of(request: pytest.FixtureRequest) -> FakeClock | None:
    """The clock of a test that asks for one, directly or through another fixture."""
    if "lockguard_clock" not in request.fixturenames:
        return None
    clock: FakeClock = request.getfixturevalue("lockguard_clock")
    return clock


@pytest.fixture
def lockguard_clock() -> FakeClock:
    """The clock of the test's store, fence and guards. It stands still until the test moves it."""
    return FakeClock()


@pytest.fixture
def lockguard_store(request: pytest.FixtureRequest) -> MemoryStore:
    """The store that the guards of one test share."""
    return MemoryStore(_clock_of(request))


@pytest.fixture
def lockguard_fence(request: pytest.FixtureRequest) -> Any:
    """A :class:`~lockguard_postgres.testing.MemoryFence`, for the test's guards and fake repositories."""
    clock = _clock_of(request)
    return testing.MemoryFence() if clock is None else testing.MemoryFence(clock)


@pytest.fixture
def new_lockguard(lockguard_store: MemoryStore, request: pytest.FixtureRequest) -> Callable[..., LockGuard]:
    """Makes guards without a server that share their locks; takes the options of ``LockGuard``."""
    clock = _clock_of(request)

    def new(**options: Any) -> LockGuard:
        if clock is not None:
            options.setdefault("clock", clock)
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
