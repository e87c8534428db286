"""Holders race for the same rows on a real Postgres; nothing stale may get in, and weak checks are seen."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard.clock import SYSTEM_CLOCK
from lockguard.context import Entry, pop_entry, push_entry
from lockguard.errors import StaleToken
from lockguard.lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.testing.ports import free_port
from lockguard_asyncpg import FencedConnection, FencedTransaction, PostgresFence, create_pool, install
from lockguard_asyncpg.race import (
    BUMP,
    ISOLATIONS,
    WRITES,
    Attempt,
    RacePlan,
    Write,
    native_write,
    race,
    transaction_write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard.testing import PostgresServer

# The long runs are made with `lockguard fence race --writes 40000`; see docs/evidence.
WRITES_A_RUN = int(os.environ.get("LOCKGUARD_RACE_WRITES", "500"))


@pytest.fixture
async def url(database_url: str) -> str:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await conn.close()
    return database_url


@pytest.fixture
def bouncer(postgres_server: PostgresServer, url: str) -> Iterator[str]:
    """The URL of the same database through PgBouncer in transaction mode, over few server connections."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed: apt install pgbouncer")
    port = free_port()
    # Not pytest's own directory: PgBouncer refuses to be root, and nobody may not read that one.
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        here.chmod(0o755)
        config, log = here / "pgbouncer.ini", here / "log"
        lines = (
            "[databases]",
            f"* = host=127.0.0.1 port={postgres_server.port} user=postgres",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {port}",
            "unix_socket_dir =",
            "auth_type = any",
            "pool_mode = transaction",
            "default_pool_size = 6",
            "max_client_conn = 200",
            "server_reset_query =",
        )
        config.write_text("\n".join(lines) + "\n")
        who: dict[str, Any] = {}
        if os.geteuid() == 0:
            who = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        with log.open("w") as out:
            process = subprocess.Popen([program, str(config)], stdout=out, stderr=out, **who)
        try:
            _wait_for(port, process, log)
            yield url.replace(f":{postgres_server.port}/", f":{port}/")
        finally:
            process.terminate()
            process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        else:
            return


ways = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
levels = pytest.mark.parametrize("isolation", ISOLATIONS)


@ways
@levels
async def test_no_stale_write_commits(url: str, write: Write, isolation: Any) -> None:
    report = await race(url, RacePlan(writes=WRITES_A_RUN, isolation=isolation), write)
    assert report.violations == 0, report
    assert report.counts["committed"] > 0
    assert report.counts["refused"] > 0


POOLED = [(transaction_write, level) for level in ISOLATIONS] + [(native_write, "read_committed")]


@pytest.mark.parametrize(("write", "isolation"), POOLED, ids=lambda x: getattr(x, "__name__", x))
async def test_no_stale_write_commits_through_a_transaction_pooler(
    bouncer: str, write: Write, isolation: Any
) -> None:
    plan = RacePlan(writes=WRITES_A_RUN, isolation=isolation)
    report = await race(bouncer, plan, write, pooler=True)
    assert report.violations == 0, report
    assert report.counts["committed"] > 0
    assert report.counts["refused"] > 0


async def drop_in_write(attempt: Attempt) -> None:
    """As a bot's code writes that knows nothing of leases."""
    task = asyncio.current_task()
    assert task is not None
    mark = push_entry(Entry(attempt.lease, task, object()))
    try:
        async with attempt.pool.acquire() as conn:
            if attempt.op % 2:
                await conn.execute(BUMP, attempt.lease.resource, attempt.lease.token, attempt.op)
                return
            async with conn.transaction():
                await attempt.pause()
                await conn.execute(BUMP, attempt.lease.resource, attempt.lease.token, attempt.op)
    finally:
        pop_entry(mark)


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooler"])
async def test_no_stale_write_commits_from_code_that_was_not_converted(
    url: str, pooled: bool, request: pytest.FixtureRequest
) -> None:
    target = request.getfixturevalue("bouncer") if pooled else url
    plan = RacePlan(writes=WRITES_A_RUN)
    report = await race(target, plan, drop_in_write, pooler=pooled, connection_class=FencedConnection)
    assert report.violations == 0, report
    assert report.counts["committed"] > 0
    assert report.counts["refused"] > 0


# Checks that look sound and are not. If the race did not see them, it would prove nothing of ours.


async def _weak(attempt: Attempt, check: str, write: str, *args: object) -> None:
    async with attempt.pool.acquire() as conn, conn.transaction(isolation=attempt.isolation):
        lease = attempt.lease
        if check and not await conn.fetchval(check, lease.resource, lease.token):
            raise StaleToken("stale", resource=lease.resource, presented=lease.token, current=None)
        if not check:
            await attempt.pause()
        await asyncio.sleep(0.002)  # the gap that a weak check leaves open
        tag = await conn.execute(write, lease.resource, lease.token, attempt.op, *args)
        if tag == "UPDATE 0":
            raise StaleToken("stale", resource=lease.resource, presented=lease.token, current=None)
        await asyncio.sleep(0.002)  # and the one before its commit
        await attempt.pause()


_IN_FORCE = """
select true from lockguard.fence f where f.resource = $1 and f.token = $2 and f.released_at is null
"""


async def where_exists_write(attempt: Attempt) -> None:
    """The check as a condition of the UPDATE, without a lock."""
    exists = f" and exists ({_IN_FORCE})"
    await _weak(attempt, "", BUMP + exists)


async def row_predicate_write(attempt: Attempt) -> None:
    """Only the row's own token is compared."""
    await _weak(attempt, "", BUMP + " and coalesce(token, 0) <= $2")


async def key_share_write(attempt: Attempt) -> None:
    """A lock that a seal does not wait for."""
    await _weak(attempt, _IN_FORCE + " for key share", BUMP)


async def select_write(attempt: Attempt) -> None:
    """Look, then write."""
    await _weak(attempt, _IN_FORCE, BUMP)


WEAK = [where_exists_write, row_predicate_write, key_share_write, select_write]


@pytest.mark.parametrize("write", WEAK, ids=lambda write: write.__name__)
@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read"])
async def test_a_weak_check_is_seen(url: str, write: Write, isolation: Any) -> None:
    for seed in range(1, 11):
        plan = RacePlan(writes=400, isolation=isolation, kill_every=None, lose_share=0, seed=seed)
        report = await race(url, plan, write)
        if report.stale_commits:
            return
    pytest.fail(f"not one stale commit was seen: {report}")


# The classic interleavings, one by one.


@levels
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooler"])
async def test_an_insert_after_the_successor_has_closed_is_refused(
    url: str, isolation: Any, pooled: bool, request: pytest.FixtureRequest
) -> None:

    target, options = url, {}
    if pooled:
        target, options = request.getfixturevalue("bouncer"), {"statement_cache_size": 0}
    within = timedelta(seconds=5)
    async with create_pool(target, min_size=0, max_size=4, **options) as pool:
        fence = PostgresFence(pool)
        old, new = (Grant(Resource("r"), new_grant_id(), Token(n), "host", "open", 10_000) for n in (1, 2))
        lease = Lease(old, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
        await fence.seal(old, within=within)
        async with FencedTransaction(pool, lease, isolation=isolation):
            pass
        await fence.seal(new, within=within)
        await fence.close(new, within=within)
        with pytest.raises(StaleToken) as caught:
            async with FencedTransaction(pool, lease, isolation=isolation):
                pass
        assert (caught.value.presented, caught.value.current) == (1, 2)
