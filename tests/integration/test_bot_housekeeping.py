"""What bots leave behind: decisions that only a holder writes, and names of the dead on a group's list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import redis.asyncio

from lockguard_asyncpg import install
from lockguard_bot import _stream as stream_module
from lockguard_bot._signals import CloseSignal, OpenSignal
from lockguard_bot._stream import StreamSource
from lockguard_positions import migrate, protect_positions
from tests.integration.test_bot_trader import Desk, closing, desk, opening

__all__ = ["desk"]

STREAM, GROUP = "signals", "bots"
FORGE = """
insert into monitoring.signals (exchange, signal_id, symbol, action, outcome, details, token)
values ('binance', 'forged', 'APTUSDT', 'open', 'opened', '', 1)
"""


async def test_protected_decisions_are_written_under_their_lease_only(desk: Desk) -> None:
    async with desk.pool.acquire() as conn:
        assert "monitoring.signals" in await protect_positions(conn)
    assert await desk.does(opening("s1")) == ("opened", False)
    assert await desk.does(closing("s2")) == ("closed", False)
    for forged in (
        FORGE,
        "update monitoring.signals set outcome = 'refused'",
        "delete from monitoring.signals",
    ):
        with pytest.raises(asyncpg.PostgresError, match="no token for binance:APTUSDT") as refused:
            await desk.pool.execute(forged)
        assert refused.value.sqlstate == "LG002"
    assert await desk.does(opening("s1")) == ("opened", True)
    async with desk.pool.acquire() as conn, conn.transaction():
        await conn.execute("select lockguard.maintenance('old signals')")
        assert await conn.execute("delete from monitoring.signals") == "DELETE 2"


async def test_a_schema_without_signals_is_protected_and_migrated_down_as_well(database_url: str) -> None:
    conn = await asyncpg.connect(database_url)
    try:
        await install(conn)
        await migrate(conn, to=8)
        before = await protect_positions(conn)
        assert before == ("monitoring.positions", "monitoring.position_intents")
        await migrate(conn)
        assert await protect_positions(conn) == (*before, "monitoring.signals")
        assert (await migrate(conn, to=8)).after == 8
    finally:
        await conn.close()


async def test_signals_of_one_millisecond_come_in_the_order_of_their_entries(
    desk: Desk, redis_url: str
) -> None:
    """Whoever is quicker: the close that was given before an open must not undo it."""
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as made:
        seconds, _ = await made.time()
        close = {"id": "s1", "action": "close", "symbol": "APTUSDT"}
        entering = {"id": "s2", "action": "open", "symbol": "APTUSDT", "side": "long", "quantity": "10"}
        await made.xadd(STREAM, close, f"{seconds * 1000}-0")  # type: ignore[arg-type]
        await made.xadd(STREAM, {**entering, "stop": "2%"}, f"{seconds * 1000}-1")  # type: ignore[arg-type]
    async with StreamSource.connect(
        redis_url, STREAM, GROUP, claim_after=timedelta(hours=1), follow=False
    ) as source:
        earlier, later = [await source.next(asyncio.Event()) for _ in range(2)]
    assert earlier is not None
    assert later is not None
    assert isinstance(earlier.signal, CloseSignal)
    assert isinstance(later.signal, OpenSignal)
    assert await desk.does(later.signal) == ("opened", False)
    assert await desk.does(earlier.signal) == ("overtaken", False)
    assert desk.held() == 10


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    made: redis.asyncio.Redis = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    await made.xgroup_create(STREAM, GROUP, mkstream=True)
    await made.xgroup_createconsumer(STREAM, GROUP, "dead")
    await made.xadd(STREAM, {"id": "s1"})
    await made.xreadgroup(GROUP, "dead with an entry", {STREAM: ">"})
    yield made
    await made.aclose()


async def consumers_beside_a_bot(client: Any, url: str) -> set[str]:
    async with StreamSource.connect(url, STREAM, GROUP, claim_after=timedelta(hours=1), follow=False):
        return {consumer["name"] for consumer in await client.xinfo_consumers(STREAM, GROUP)}


async def test_a_bot_that_starts_takes_the_dead_off_the_list_but_none_with_an_entry(
    client: redis.asyncio.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_FORGET_AFTER_MS", 0)
    assert await consumers_beside_a_bot(client, redis_url) == {"dead with an entry"}
    (left,) = await client.xpending_range(STREAM, GROUP, "-", "+", 10)
    assert left["consumer"] == "dead with an entry"


async def test_who_was_heard_of_a_moment_ago_stays_on_the_list(
    client: redis.asyncio.Redis, redis_url: str
) -> None:
    assert await consumers_beside_a_bot(client, redis_url) == {"dead", "dead with an entry"}


async def test_a_user_that_may_not_look_at_the_list_reads_signals_all_the_same(
    client: redis.asyncio.Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    rights = ["+@all", "-xinfo|consumers"]
    await client.acl_setuser("lean", enabled=True, passwords=["+pw"], keys=["*"], commands=rights)
    url = f"redis://lean:pw@{redis_url.rpartition('@')[2].removeprefix('redis://')}"
    try:
        assert await consumers_beside_a_bot(client, url) == {"dead", "dead with an entry"}
    finally:
        await client.acl_deluser("lean")
    assert "consumers of killed bots were left in group bots" in caplog.text
