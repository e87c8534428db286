"""Leases and servers of the fence's tests."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._context import LeaseScope, enter_scope, exit_scope
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.ports import Sealed
from lockguard_asyncpg import CommitUnknown, PostgresFence
from lockguard_lab.servers.binaries import ServerBinary

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "APT",
    "POSTGRES_15",
    "SOON",
    "blocked",
    "grant_of",
    "held",
    "lease_of",
    "postgres_15",
    "under",
    "unknown",
]

SOON = timedelta(seconds=5)
APT = Resource("binance:APTUSDT")
POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")


def grant_of(token: int = 7, resource: str = APT, holder: str = "host/1") -> Grant:
    return Grant(Resource(resource), new_grant_id(), Token(token), holder, "open", 10_000)


def lease_of(grant: Grant) -> Lease:
    """A lease of a minute."""
    return Lease(grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)


async def held(pool: asyncpg.Pool[Any], token: int = 7, resource: str = APT) -> Lease:
    """A lease that is sealed."""
    grant = grant_of(token, resource)
    assert await PostgresFence(pool).seal(grant, within=SOON) == Sealed(grant.token)
    return lease_of(grant)


@contextmanager
def under(*leases: Lease) -> Iterator[None]:
    """As in the bodies of ``guard.hold`` for these leases, the last one innermost."""
    task = asyncio.current_task()
    assert task is not None
    marks = [enter_scope(LeaseScope(lease, task, object())) for lease in leases]
    try:
        yield
    finally:
        for mark in reversed(marks):
            exit_scope(mark)


def unknown(lease: Lease, sequence: int) -> CommitUnknown:
    """What is raised where the reply to this write is lost."""
    return CommitUnknown(resource=lease.resource, token=lease.token, sequence=sequence)


async def blocked(pool: asyncpg.Pool[Any], what: str = "", count: int = 1) -> None:
    """Until so many sessions wait for a lock in a statement that contains ``what``."""
    query = """
        select count(*) from pg_stat_activity
         where wait_event_type = 'Lock' and query like $1 and datname = current_database()
    """
    async with asyncio.timeout(5):
        while await pool.fetchval(query, f"%{what}%") < count:
            await asyncio.sleep(0.005)


def postgres_15() -> ServerBinary:
    """The oldest version that is supported, or the test is skipped."""
    binary = POSTGRES_15 / "postgres"
    if not binary.exists():
        pytest.skip(f"there is no PostgreSQL 15 on this machine ({binary}): apt-get install postgresql-15")
    return ServerBinary("PostgreSQL", "15", binary, "apt")
