"""With positions open, a server that is gone is an alert; the bot lives on, and no signal is lost.

Real servers are stopped and started again; the times are those of the options, shortened.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis.asyncio

from lockguard_asyncpg import install
from lockguard_lab.exchange import LocalExchange
from lockguard_lab.servers import FaultProxy, PostgresServer, RedisServer
from lockguard_positions import migrate
from tests.integration.test_bot import FAST, OPEN, STREAM, Ended, Process, until

AFTER = ("--alert-after", "1.5")
FIFTEEN = "APT XRP DOGE ADA AVAX LINK DOT SUI LTC TRX NEAR ATOM FIL ARB OP"
SYMBOLS = [f"{base}USDT" for base in FIFTEEN.split()]
EXCHANGE = ("exchange in maintenance", "exchange that refuses connections", "exchange that is silent")


class Outage:
    """One bot with a position open, whose servers can be taken away one by one."""

    def __init__(self, stack: AsyncExitStack, redis_server: RedisServer, postgres: PostgresServer) -> None:
        self.stack, self.redis, self.postgres = stack, redis_server, postgres
        self.said: list[dict[str, Any]] = []

    async def begin(self) -> None:
        self.exchange = await self.stack.enter_async_context(LocalExchange())
        database = self.postgres.create_database("outage")
        conn = await asyncpg.connect(database)
        await install(conn)
        await migrate(conn)
        await conn.close()
        self.proxy = await self.stack.enter_async_context(FaultProxy(urlsplit(self.exchange.url).port or 0))
        for symbol in SYMBOLS:
            await self.send({**OPEN, "id": symbol, "symbol": symbol, "quantity": self.quantity(symbol)})
        env = {
            "LOCKGUARD_REDIS_URL": self.redis.url,
            "LOCKGUARD_DATABASE_URL": database,
            "LOCKGUARD_EXCHANGE_URL": self.proxy.url_for(self.exchange.url),
        }
        self.bot = await Process.start({**os.environ, **env}, "--json", "--stream", STREAM, *FAST, *AFTER)
        self.stack.push_async_callback(self.bot.kill)
        self.reading = asyncio.create_task(self._read())
        await until(self.all_opened)

    def quantity(self, symbol: str) -> str:
        return str(Decimal(1000) / self.exchange.price(symbol) // 1 + 1)

    async def all_opened(self) -> bool:
        return sum(x.get("outcome") == "opened" for x in self.said) == len(SYMBOLS)

    async def send(self, signal: dict[str, str]) -> None:
        async with redis.asyncio.Redis.from_url(self.redis.url) as client:
            await client.xadd(STREAM, signal)  # type: ignore[arg-type]

    async def _read(self) -> None:
        while line := await self.bot.first_line():
            self.said.append(json.loads(line))

    async def heard(self, text: str, field: str = "message", level: str | None = None) -> bool:
        return any(text in str(x.get(field)) and level in (None, x["level"]) for x in self.said)

    async def alerted(self, text: str) -> bool:
        return await self.heard(text, level="ERROR")

    async def end(self) -> Ended:
        self.bot.terminate()
        await asyncio.wait_for(self.reading, 30)
        return Ended((await self.bot.end()).code, "")


@pytest.fixture
async def outage() -> AsyncIterator[Outage]:
    async with AsyncExitStack() as stack:
        redis_server = stack.enter_context(RedisServer(persistence="aof"))
        postgres = stack.enter_context(PostgresServer())
        running = Outage(stack, redis_server, postgres)
        await running.begin()
        yield running


@pytest.mark.parametrize("what", ["redis", "postgres", *EXCHANGE])
async def test_a_server_that_is_gone_under_open_positions_is_an_alert_and_nothing_is_lost(
    outage: Outage, what: str
) -> None:
    second = {**OPEN, "id": "s2", "symbol": "SOLUSDT"}
    await stop(outage, what)
    if what != "redis":
        await outage.send(second)
    told = "not read or decided for longer than 1.5 s"
    if what != "redis":  # without locks each symbol is told of by its name
        told += ", with "  # as many open positions as the last look counted: some were opened after it
    await until(lambda: outage.alerted(told), within_s=40)
    assert outage.bot._process.returncode is None
    await start(outage, what)
    if what == "redis":
        await outage.send(second)
    await until(lambda: outage.heard("s2", "signal"), within_s=40)
    await until(lambda: carried_out(outage), within_s=60)
    assert (await outage.end()).code == 0
    record = outage.exchange.record()
    assert all(len(record.entries(symbol)) == 1 for symbol in (*SYMBOLS, "SOLUSDT"))
    assert (record.without_stop(), record.orphan_stops()) == ((), ())


async def carried_out(outage: Outage) -> bool:
    return any(x.get("signal") == "s2" and x.get("outcome") == "opened" for x in outage.said)


async def stop(outage: Outage, what: str) -> None:
    match what:
        case "redis":
            outage.redis.kill()
        case "postgres":
            outage.postgres.kill()
        case "exchange that refuses connections":
            outage.proxy.refuse()
            outage.proxy.reset()
        case "exchange that is silent":
            outage.proxy.partition()
        case _:
            outage.exchange.set_maintenance(True)


async def start(outage: Outage, what: str) -> None:
    match what:
        case "redis":
            outage.redis.start()
        case "postgres":
            outage.postgres.start()
        case "exchange that refuses connections":
            await outage.proxy.start()
        case "exchange that is silent":
            outage.proxy.heal()
        case _:
            outage.exchange.set_maintenance(False)
