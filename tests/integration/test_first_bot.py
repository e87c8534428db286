"""The tutorial's bot of 60 lines opens one position for each symbol, from two processes at once."""

from __future__ import annotations

import re

import asyncpg

from lockguard_asyncpg import install
from lockguard_lab.exchange import LocalExchange, connect
from tests.integration.examples import EXAMPLES, Stage

SYMBOLS = ("APTUSDT", "ARBUSDT", "SUIUSDT")


async def test_each_symbol_is_opened_once_with_its_stop(redis_url, database_url):
    assert len((EXAMPLES / "first_bot.py").read_text().splitlines()) <= 60  # as its page says
    async with asyncpg.create_pool(database_url, min_size=1) as pool:
        async with pool.acquire() as connection:
            await install(connection)
        async with LocalExchange() as exchange, Stage(redis_url, database_url, exchange.url) as stage:
            bots = [await stage.example("first_bot.py") for _ in range(2)]
            for bot in bots:
                assert await bot.ended() == 0
            async with connect(exchange.url) as client:
                held = await client.fetch_positions()
                stops = [
                    order
                    for one in SYMBOLS
                    for order in await client.fetch_open_orders(one, params={"stop": True})
                ]
        lines = [line for bot in bots for line in bot.lines]
        rows = await pool.fetch("select symbol, status from positions order by symbol")
    assert sorted(re.findall(r"^(\w+): opened 10.0 at ", "\n".join(lines), re.MULTILINE)) == sorted(SYMBOLS)
    assert sum("has a position already" in line for line in lines) == 9
    assert [tuple(row) for row in rows] == [(symbol, "active") for symbol in SYMBOLS]
    assert sorted(one["contracts"] for one in held if one["contracts"]) == [10, 10, 10]
    assert len(stops) == 3
