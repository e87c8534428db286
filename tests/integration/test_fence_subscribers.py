"""A table that logical replication fills."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from lockguard.errors import ConfigurationError
from lockguard.testing import PostgresServer
from lockguard_asyncpg import findings, install, protect, protections

TABLES = (
    "create table trades (id int primary key, name text); create table late (id int primary key, name text)"
)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"wal_level": "logical"}) as server:
        yield server


async def connected(url: str) -> Any:
    conn = await asyncpg.connect(url)
    await install(conn)
    await conn.execute(TABLES)
    return conn


async def test_a_table_that_a_subscription_fills_is_refused_at_protect_and_found_afterwards(
    server: PostgresServer,
) -> None:
    source = server.create_database("source")
    publisher, subscriber = await connected(source), await connected(server.create_database("target"))
    try:
        await publisher.execute("create publication told for table trades")
        await publisher.execute("select pg_create_logical_replication_slot('told', 'pgoutput')")
        await subscriber.execute(
            f"create subscription told connection '{source}' publication told with (create_slot = false)"
        )
        with pytest.raises(ConfigurationError, match=r"a subscription fills public\.trades"):
            await protect(subscriber, "trades", resource="{name}")
        await protect(subscriber, "late", resource="{name}")
        assert await findings(subscriber) == ()
        await publisher.execute("alter publication told add table late")
        await subscriber.execute("alter subscription told refresh publication with (copy_data = false)")
        (found,) = await findings(subscriber)
        assert (found.table, found.grave) == ("public.late", True)
        assert found.remedy == "lockguard fence unprotect public.late"
        assert [p.enabled for p in await protections(subscriber)] == [False]
        await protect(publisher, "trades", resource="{name}")  # as the page says
        assert await findings(publisher) == ()
    finally:
        await subscriber.execute("drop subscription if exists told")
        await publisher.close()
        await subscriber.close()
