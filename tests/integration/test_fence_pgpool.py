"""pgpool-II before a primary and a standby that is behind."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, create_pool, fenced_fetchval, fenced_transaction, install
from lockguard_asyncpg._cli import fence
from lockguard_lab.child_process import signal_child
from lockguard_lab.servers import PostgresServer
from lockguard_lab.servers.ports import free_port
from tests.integration.test_fence_primaries import APT, INSERT, Standby, connected

PGPOOL = shutil.which("pgpool") or shutil.which("/usr/sbin/pgpool")

pytestmark = pytest.mark.skipif(PGPOOL is None, reason="pgpool-II is not installed: apt-get install pgpool2")


@asynccontextmanager
async def pgpool(
    directory: Path, primary: PostgresServer, standby: PostgresServer, *, balance: str
) -> AsyncIterator[str]:
    """Running; its URL. All reads that it may send elsewhere go to the standby."""
    assert PGPOOL is not None
    port = free_port()
    settings = {
        "backend_clustering_mode": "streaming_replication",
        "listen_addresses": "127.0.0.1",
        "port": port,
        "pcp_port": free_port(),
        **dict.fromkeys(("socket_dir", "pcp_socket_dir", "wd_ipc_socket_dir", "logdir"), directory),
        "pid_file_name": directory / "pgpool.pid",
        "pool_passwd": "",
        "allow_clear_text_frontend_auth": "on",
        "load_balance_mode": balance,
        "num_init_children": 8,
        "sr_check_user": "postgres",
        "sr_check_password": primary.password,
    }
    for number, server in enumerate((primary, standby)):
        settings |= {
            f"backend_hostname{number}": "127.0.0.1",
            f"backend_port{number}": server.port,
            f"backend_weight{number}": number,
        }
    config, hosts, pcp = (directory / name for name in ("pgpool.conf", "hosts", "pcp"))
    config.write_text("".join(f"{name} = '{value}'\n" for name, value in settings.items()))
    config.chmod(0o600)
    hosts.touch()
    pcp.touch()
    arguments = ("-n", "-f", str(config), "-a", str(hosts), "-F", str(pcp))
    with (directory / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(PGPOOL, *arguments, stdout=log, stderr=log)
    try:
        url = primary.url.replace(f":{primary.port}/", f":{port}/") + "?sslmode=disable"
        async with asyncio.timeout(20):
            while True:
                assert process.returncode is None, (directory / "log").read_text()[-500:]
                try:
                    async with connected(url):
                        break
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.05)
        yield url
        assert process.returncode is None, (directory / "log").read_text()[-500:]
    finally:
        signal_child(process, signal.SIGTERM)
        async with asyncio.timeout(20):
            await process.wait()


async def count(conn: Any) -> int:
    return int(await conn.fetchval("select count(*) from trades"))


async def test_a_lease_by_way_of_pgpool_without_load_balancing_reads_what_was_written_and_keeps_its_session(
    tmp_path: Path, redis_url: str
) -> None:
    async with PostgresServer() as primary:
        async with connected(primary.url) as conn:
            await install(conn)
            await conn.execute("create table trades (id int)")
        async with Standby(primary) as standby:
            async with connected(primary.url) as conn:
                await standby.has_all(conn)
            async with connected(standby.url) as conn:
                await conn.execute("select pg_wal_replay_pause()")
            async with pgpool(tmp_path, primary, standby, balance="off") as url:
                await use(url, redis_url)
                told = await asyncio.to_thread(CliRunner().invoke, fence, ["check", "--url", url])
                assert "pgpool-II, for your information" in told.output
                assert told.exit_code == 0
            told = await asyncio.to_thread(CliRunner().invoke, fence, ["check", "--url", primary.url])
            assert "pgpool" not in told.output


async def use(url: str, redis_url: str) -> None:
    async with (
        create_pool(url, min_size=0, max_size=4, statement_cache_size=0) as pool,
        LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard,
        guard.hold(APT),
    ):
        await pool.execute(INSERT, 1)
        assert await count(pool) == 1
        assert await fenced_fetchval(pool, "select count(*) from trades") == 1
        async with fenced_transaction(pool) as conn:  # a read is its first statement
            assert await count(conn) == 1
        async with pool.acquire() as conn, conn.transaction():
            assert await count(conn) == 1
            async with conn.transaction():
                await conn.execute(INSERT, 2)
            with pytest.raises(ZeroDivisionError):
                async with conn.transaction():
                    await conn.execute(INSERT, 3)
                    raise ZeroDivisionError
            assert await count(conn) == 2
