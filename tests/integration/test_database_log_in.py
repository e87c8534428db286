"""A log-in that Postgres refuses is told with the server and with what to do, by whatever logs in."""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from lockguard import ConfigurationError, LockGuard
from lockguard.ports import Sealed
from lockguard_asyncpg import PostgresFence, fenced_transaction, install
from lockguard_asyncpg._database import AsyncpgDatabase
from tests.integration.fence_leases import SOON, grant_of, lease_of
from tests.integration.test_bot_least_privilege import with_user
from tests.integration.test_cli import lockguard

REMEDY = "; check the user and the password of the database URL, and the server's pg_hba.conf"


@pytest.fixture
async def wrong(database_url: str) -> str:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await conn.close()
    return with_user(database_url, "nobody_here", "wrong-secret")


async def test_a_refused_log_in_names_the_server_and_the_remedy(redis_url: str, wrong: str) -> None:
    where = f"127.0.0.1:{urlsplit(wrong).port}"
    options = ("--redis", redis_url, "--database", wrong)
    for command in (
        ("history", "apt", *options),  # what Redis tells is shown, so it exits with 3
        ("break", "apt", "--reason", "x", "--yes", *options),
        ("run", "apt", *options, "--", "true"),
        ("fence", "status", "--url", wrong),
        ("positions", "migrate", "--database", wrong),
    ):
        code, _, err = await lockguard(*command)
        expected = 3 if command[0] == "history" else 2
        assert (code, err.count("\n")) == (expected, 1), (command, err)
        assert where in err, command
        assert REMEDY in err, command
        assert err.count("; check") == 1, command
        assert "wrong-secret" not in err


async def test_a_bot_whose_log_in_is_refused_later_names_the_server_too(redis_url: str, wrong: str) -> None:
    where = f"127.0.0.1:{urlsplit(wrong).port}"
    for given in ({"dsn": wrong}, _arguments(wrong)):
        async with asyncpg.create_pool(**given, min_size=0) as pool:
            guard = LockGuard.from_url(redis_url, fence=PostgresFence(pool), wait=timedelta(seconds=1))
            async with guard:
                with pytest.raises(ConfigurationError) as refused:
                    async with guard.hold("apt"):
                        pass
        assert str(refused.value).startswith(where)
        assert str(refused.value).endswith(REMEDY)


async def test_a_session_in_the_way_is_ended_though_a_log_in_was_refused_meanwhile(
    conn: asyncpg.Connection[Any], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a password is changed: the seal has the one connection, ending the session takes another."""
    refused, log_in, role = asyncio.Event(), AsyncpgDatabase.acquire, f"bot_{secrets.token_hex(6)}"

    async def watched(database: AsyncpgDatabase) -> Any:
        try:
            return await log_in(database)
        except Exception:
            refused.set()
            raise

    monkeypatch.setattr(AsyncpgDatabase, "acquire", watched)
    await install(conn)
    await conn.execute(f"create role {role} login password 'secret'; grant lockguard_app to {role}")
    url = with_user(database_url, role, "secret")
    async with asyncpg.create_pool(database_url) as of_old, asyncpg.create_pool(url, min_size=1) as pool:
        old, fence = grant_of(7), PostgresFence(pool, grace=timedelta(milliseconds=50))
        await PostgresFence(of_old).seal(old, within=SOON)
        await fenced_transaction(of_old, lease_of(old)).__aenter__()  # and is left open
        await conn.execute(f"alter role {role} nologin")
        sealing = asyncio.create_task(fence.seal(grant_of(8), within=SOON))
        try:
            async with asyncio.timeout(SOON.total_seconds()):
                await refused.wait()
            await conn.execute(f"alter role {role} login")
            assert await sealing == Sealed(grant_of(8).token)
        finally:
            of_old.terminate()
            pool.terminate()
    await conn.execute(f"drop owned by {role}; drop role {role}")


def _arguments(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    named = {"host": parts.hostname, "port": parts.port, "database": parts.path.strip("/")}
    return {**named, "user": parts.username, "password": parts.password}
