"""The fault proxy does to real connections what it says."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest

from lockguard_lab.servers import DROP, HOLD, PASS, FaultProxy, Flow, PostgresServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PING = b"*1\r\n$4\r\nPING\r\n"
PONG = b"+PONG\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module")
def open_server() -> Iterator[RedisServer]:
    """Without a password, so that bare bytes can be counted."""
    with RedisServer(password="") as server:
        yield server


@pytest.fixture
async def proxy(open_server: RedisServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(open_server.port) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ping(streams: Streams) -> bytes:
    reader, writer = streams
    writer.write(PING)
    return await reader.readexactly(len(PONG))


async def test_what_passes_arrives_unchanged(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        assert await ping(streams) == PONG
        assert proxy.to_server.received_bytes == len(PING)
        assert proxy.to_client.received_bytes == len(PONG)


async def test_a_held_reply_arrives_when_the_link_heals(proxy: FaultProxy) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.to_client.set(HOLD)
        writer.write(PING)
        reply = asyncio.create_task(reader.readexactly(len(PONG)))
        await proxy.to_client.wait_received(len(PONG))
        assert not reply.done()
        proxy.heal()
        assert await reply == PONG


async def test_a_dropped_reply_never_arrives_though_the_command_ran(proxy: FaultProxy) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.to_client.set(DROP)
        writer.write(PING)
        await proxy.to_client.wait_received(len(PONG))
        proxy.heal()
        writer.write(PING)
        assert await reader.readexactly(len(PONG)) == PONG
        assert proxy.to_client.received_bytes == 2 * len(PONG)


async def test_a_partition_holds_both_ways_until_it_heals(proxy: FaultProxy) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.partition()
        writer.write(PING)
        await proxy.to_server.wait_received(len(PING))
        assert proxy.to_client.received_bytes == 0
        proxy.heal()
        assert await reader.readexactly(len(PONG)) == PONG


async def test_a_cut_delivers_exactly_so_many_bytes_and_closes(proxy: FaultProxy) -> None:
    proxy.to_client.set(Flow(cut_after_bytes=3))
    async with connected(proxy) as (reader, writer):
        writer.write(PING)
        assert await reader.read() == PONG[:3]


async def test_a_reset_reaches_the_client_as_a_reset(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        await ping(streams)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await streams[0].read()


async def test_a_reset_ends_connections_that_are_held(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        await ping(streams)
        proxy.partition()
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await streams[0].read()
        proxy.heal()
    async with connected(proxy) as streams:
        assert await ping(streams) == PONG


async def test_refusing_leaves_open_connections_alone_and_ends_with_start(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        await ping(streams)
        port = proxy.port
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert await ping(streams) == PONG
        await proxy.start()
        assert proxy.port == port
    async with connected(proxy) as streams:
        assert await ping(streams) == PONG


async def test_fragments_arrive_one_byte_at_a_time(proxy: FaultProxy) -> None:
    proxy.to_client.set(Flow(fragment_bytes_max=1))
    async with connected(proxy) as streams:
        assert await ping(streams) == PONG


async def test_latency_delays_each_delivery(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        proxy.to_client.set(Flow(latency=timedelta(milliseconds=50)))
        loop = asyncio.get_running_loop()
        begun = loop.time()
        assert await ping(streams) == PONG
        assert loop.time() - begun >= 0.05
        proxy.to_client.set(PASS)


async def test_a_server_that_is_gone_is_seen_as_a_reset() -> None:
    with RedisServer() as server:
        port = server.port
    async with FaultProxy(port) as proxy, connected(proxy) as (reader, _):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_postgres_works_through_it(postgres_server: PostgresServer) -> None:
    async with FaultProxy(postgres_server.port) as proxy:
        connection = await asyncpg.connect(proxy.url_for(postgres_server.url))
        assert await connection.fetchval("select 40 + 2") == 42
        await connection.close()


async def test_credentials_stay_in_the_url() -> None:
    async with FaultProxy(1) as proxy:
        url = proxy.url_for("redis://bot:s%40@127.0.0.1:6379/3?x=y")
        assert url == f"redis://bot:s%40@127.0.0.1:{proxy.port}/3?x=y"


async def test_nothing_is_left_open_when_the_proxy_stops(open_server: RedisServer) -> None:
    async with FaultProxy(open_server.port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await ping((reader, writer))
        proxy.partition()
    assert proxy.connections == 0
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
