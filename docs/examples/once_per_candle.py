"""Act once per candle, with as many instances of this program as you like."""

import asyncio
import os
from datetime import timedelta

import asyncpg
import ccxt.async_support as ccxt

from lockguard import LockGuard, LockguardError
from lockguard_lab.exchange import point_at

CANDLE = timedelta(seconds=float(os.environ.get("CANDLE_SECONDS", "60")))

guard = LockGuard.from_env()  # LOCKGUARD_REDIS_URL
exchange = ccxt.binanceusdm()


@guard.exclusive("candle:{symbol}", on_busy="skip", at_least=CANDLE / 2)
async def on_candle(symbol: str, candle: int, pool: asyncpg.Pool) -> None:
    first = await pool.fetchval(  # what must not happen twice even if Redis loses its data
        "insert into candles (symbol, candle) values ($1, $2) on conflict do nothing returning true",
        symbol,
        candle,
    )
    if first:
        print(f"candle {candle}", flush=True)  # your strategy


async def main() -> None:
    if local := os.environ.get("LOCKGUARD_EXCHANGE_URL"):
        point_at(exchange, local)
    async with guard, asyncpg.create_pool(os.environ["LOCKGUARD_DATABASE_URL"], min_size=1) as pool:
        try:
            while True:
                # The exchange's clock, because that of this machine may be wrong.
                candle, age = divmod(await exchange.fetch_time(), int(CANDLE.total_seconds() * 1000))
                if age < CANDLE.total_seconds() * 1000 / 2:  # later, it would close the next candle's begin
                    try:
                        await on_candle("APTUSDT", candle, pool)
                    except LockguardError as error:
                        print(f"candle {candle} not run: {error}", flush=True)
                await asyncio.sleep(CANDLE.total_seconds() - age / 1000)
        finally:
            await exchange.close()


if __name__ == "__main__":
    asyncio.run(main())
