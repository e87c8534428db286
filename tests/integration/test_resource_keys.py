"""Bots that spell one market in several ways lock it once, with ccxt's own markets, asynchronous and not."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any

import ccxt
import pytest

import lockguard.sync
from lockguard import LockGuard
from lockguard_ccxt import UnknownMarket, resource_keys
from lockguard_lab.exchange import LocalExchange, connect, point_at

APT = "APT/USDT:USDT"
SPELLINGS = ("binance:APTUSDT", "Binance:aptusdt", "binance:APT/USDT:USDT", "BINANCE:APTUSDT.P")


async def most_at_once(guards: list[LockGuard], *, each_s: float) -> int:
    """How many bodies ran at the same time, one for each spelling: each until all run, or for ``each_s``."""
    now = most = 0
    all_ran = asyncio.Event()

    async def body(guard: LockGuard, name: str) -> None:
        nonlocal now, most
        async with guard.hold(name, wait=timedelta(seconds=10)):
            now += 1
            most = max(most, now)
            if now == len(SPELLINGS):
                all_ran.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(each_s):
                    await all_ran.wait()
            now -= 1

    await asyncio.gather(*(body(guard, name) for guard, name in zip(guards, SPELLINGS, strict=True)))
    return most


async def test_four_spellings_are_four_locks_without_the_key_and_one_with_it(redis_url: str) -> None:
    async with LocalExchange(symbols=[APT, "BTC/USDT:USDT"]) as server, AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect(server.url))
        await client.load_markets()
        blocking = ccxt.binanceusdm()
        point_at(blocking, server.url)
        await asyncio.to_thread(blocking.load_markets)
        keys: list[Any] = [resource_keys(each) for each in (client, blocking, "binance", client)]

        async def guards(*keys: Any) -> list[LockGuard]:
            return [
                await stack.enter_async_context(LockGuard.from_url(redis_url, resource_key=key))
                for key in keys
            ]

        assert await most_at_once(await guards(*[None] * 4), each_s=30) == 4
        assert await most_at_once(await guards(*keys), each_s=0.1) == 1
        for key in keys[:2]:
            with pytest.raises(UnknownMarket):
                key("binance:WIFUSDT")
        await asyncio.to_thread(_sync_guard_too, redis_url, keys[1])


def _sync_guard_too(redis_url: str, key: Any) -> None:
    with lockguard.sync.LockGuard.from_url(redis_url, resource_key=key) as guard:
        with guard.hold("Binance:aptusdt") as lease:
            assert lease.resource == "binance:APTUSDT"
            with guard.hold("BINANCE:APTUSDT.P") as again:  # the same thread's own hold
                assert again.token == lease.token
            assert guard.inspect("binance:APT/USDT:USDT").grant == lease.grant.id
