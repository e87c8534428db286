"""A table that logical replication fills."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from lockguard.errors import ConfigurationError
from lockguard_asyncpg import findings, install, protect, protections, unprotect
from lockguard_asyncpg._cli import fence
from lockguard_lab.servers import PostgresServer

TABLES = (
    "create table trades (id int primary key, name text); create table late (id int primary key, name text)"
)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    # So little memory that a change of some thousand rows is streamed under way, to a second worker.
    settings = {"wal_level": "logical", "logical_decoding_work_mem": "64kB"}
    with PostgresServer(settings=settings) as server:
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
        assert found.remedy == (
            "lockguard fence unprotect public.late,"
            " or: lockguard fence protect public.late --resource '{name}' --subscriber"
        )
        assert [p.enabled for p in await protections(subscriber)] == [False]
        await protect(publisher, "trades", resource="{name}")  # as the page says
        assert await findings(publisher) == ()
    finally:
        await subscriber.execute("drop subscription if exists told")
        await publisher.close()
        await subscriber.close()


SEVERAL = """
create table plain (id int primary key, name text);
create table parted (id int, name text, primary key (id)) partition by range (id);
create table parted_low partition of parted for values from (0) to (100);
create table parted_high partition of parted for values from (100) to (10000);
create table whole (id int, name text, primary key (id)) partition by range (id);
create table whole_low partition of whole for values from (0) to (100);
"""
FED = ("plain", "parted", "whole")


@pytest.fixture(scope="module")
def other() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@asynccontextmanager
async def subscribed(
    server: PostgresServer, other: PostgresServer, *, subscriber: bool
) -> AsyncIterator[tuple[asyncpg.Connection[Any], asyncpg.Connection[Any], str]]:
    """A publisher and a subscriber of three kinds of tables, protected there, on two servers."""
    name = f"fed_{secrets.token_hex(4)}"
    source, url = server.create_database(name), other.create_database(name)
    publisher, conn = await asyncpg.connect(source), await asyncpg.connect(url)
    try:
        await install(conn)
        for one in (publisher, conn):
            await one.execute(SEVERAL)
        for table in FED:
            await publisher.execute(f"insert into {table} values (1, 'a'), (2, 'b')")
            await protect(conn, table, resource="{name}", subscriber=subscriber)
        await publisher.execute(f"create publication {name} for table plain, parted_low, parted_high")
        await publisher.execute(
            f"create publication {name}_root for table whole with (publish_via_partition_root)"
        )
        streaming = "parallel" if conn.get_server_version().major >= 16 else "true"
        await conn.execute(
            f"create subscription {name} connection '{source}' publication {name}, {name}_root"
            f" with (streaming = {streaming})"
        )
        yield publisher, conn, url
    finally:
        await conn.execute(f"drop subscription if exists {name}")
        await publisher.close()
        await conn.close()
        other.drop_database(name)


async def reached(conn: asyncpg.Connection[Any], query: str) -> None:
    async with asyncio.timeout(20):
        while not await conn.fetchval(query):
            await asyncio.sleep(0.02)


async def test_the_workers_of_a_subscription_fill_what_is_protected_for_it_and_nobody_else_does(
    server: PostgresServer, other: PostgresServer
) -> None:
    async with subscribed(server, other, subscriber=True) as (publisher, conn, url):
        for table in FED:  # the first copy
            await reached(conn, f"select count(*) = 2 from {table}")
        for table in FED:  # the changes since
            await publisher.execute(f"insert into {table} select n, 'c' from generate_series(3, 50) n")
            await publisher.execute(f"update {table} set name = 'd' where id = 1")
            await publisher.execute(f"delete from {table} where id = 2")
        await publisher.execute("insert into parted select n, 'e' from generate_series(100, 3098) n")
        await publisher.execute("update parted set id = 3099 where id = 3")
        for table in FED:
            await reached(conn, f"select exists (select from {table} where name = 'd') from {table}")
            await reached(conn, f"select not exists (select from {table} where id = 2)")
        await reached(conn, "select count(*) = 3000 from parted_high")
        assert await findings(conn) == ()
        assert {(p.table, p.enabled, p.subscriber) for p in await protections(conn)} == {
            (f"public.{table}", True, True) for table in FED
        }
        # Everybody else is refused, also who says of himself that he were a worker.
        for role in ("origin", "replica"):
            await conn.execute(f"set session_replication_role = {role}")
            for table in FED:
                for statement in (
                    f"insert into {table} values (99, 'x')",
                    f"update {table} set name = 'x'",
                    f"delete from {table}",
                    f"truncate {table}",
                ):
                    with pytest.raises(asyncpg.PostgresError) as caught:
                        await conn.execute(statement)
                    assert caught.value.sqlstate == "LG002", statement
        await conn.execute("reset session_replication_role")
        await publisher.execute("truncate plain, whole")
        await reached(conn, "select not exists (select from plain) and not exists (select from whole)")
        shown = await asyncio.to_thread(CliRunner().invoke, fence, ["status", "--url", url])
        assert shown.output.count("a subscription") == len(FED)


async def test_what_a_trigger_does_in_a_worker_needs_a_lease_and_so_does_a_worker_on_other_tables(
    server: PostgresServer, other: PostgresServer
) -> None:
    async with subscribed(server, other, subscriber=True) as (publisher, conn, _):
        for table in FED:
            await reached(conn, f"select count(*) = 2 from {table}")
        await conn.execute(
            """
            create table seen (why text);
            create function public.further() returns trigger language plpgsql as $$
            begin
              begin
                update public.parted set name = 'by a trigger';
              exception when sqlstate 'LG002' then
                insert into public.seen values (sqlerrm);
              end;
              return null;
            end $$;
            create trigger further after insert on plain for each row execute function public.further();
            alter table plain enable replica trigger further;
            """
        )
        await publisher.execute("insert into plain values (3, 'c')")
        await reached(conn, "select count(*) = 1 from seen")
        assert await conn.fetchval("select count(*) from parted where name = 'by a trigger'") == 0


async def test_without_being_told_so_a_subscription_fills_nothing_that_is_protected(
    server: PostgresServer, other: PostgresServer
) -> None:
    async with subscribed(server, other, subscriber=False) as (_, conn, _url):
        await reached(conn, "select count(*) = 3 from lockguard.findings() f where f.grave")
        assert [await conn.fetchval(f"select count(*) from {table}") for table in FED] == [0, 0, 0]
        (first, *_) = await findings(conn)
        assert "--subscriber" in first.remedy
        for table in FED:
            await protect(conn, table, resource="{name}", subscriber=True)
        for table in FED:
            await reached(conn, f"select count(*) = 2 from {table}")
        with pytest.raises(ConfigurationError, match="--subscriber"):
            await protect(conn, "parted", resource="{name}")
        await conn.execute(f"drop subscription {await conn.fetchval('select subname from pg_subscription')}")
        assert [(f.table, f.grave) for f in await findings(conn)] == [
            (f"public.{table}", False) for table in sorted(FED)
        ]
        for table in FED:
            await unprotect(conn, table)
