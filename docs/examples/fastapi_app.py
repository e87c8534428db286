"""A webhook that opens positions, in any number of processes: ``uvicorn fastapi_app:app --workers 2``."""

import math
import os
from contextlib import asynccontextmanager
from datetime import timedelta

import ccxt.async_support as ccxt
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from lockguard import AcquireError, LeaseLost, LockGuard, ResourceBusy, StaleToken, current_lease
from lockguard_asyncpg import PostgresFence, create_pool
from lockguard_lab.exchange import point_at


class Alert(BaseModel):
    symbol: str  # APTUSDT
    quantity: float


@asynccontextmanager
async def lifespan(app: FastAPI):
    keys = {
        "apiKey": os.environ["LOCKGUARD_EXCHANGE_API_KEY"],
        "secret": os.environ["LOCKGUARD_EXCHANGE_SECRET"],
    }
    async with (
        create_pool(os.environ["LOCKGUARD_DATABASE_URL"], min_size=1) as app.state.pool,
        ccxt.binanceusdm(keys) as app.state.exchange,
        guard,
    ):
        if local := os.environ.get("LOCKGUARD_EXCHANGE_URL"):
            point_at(app.state.exchange, local)
        await app.state.exchange.load_markets()
        yield


app = FastAPI(lifespan=lifespan)
guard = LockGuard.from_env(fence=PostgresFence(lambda: app.state.pool))


@app.exception_handler(AcquireError)  # the symbol is busy, or Redis or Postgres cannot be reached
@app.exception_handler(LeaseLost)
@app.exception_handler(StaleToken)
async def deliver_again(_, error):
    after = error.retry_after if isinstance(error, ResourceBusy) else None
    seconds = max(1, math.ceil(after.total_seconds())) if after else 1
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(seconds)})


@app.post("/alerts")
async def on_alert(alert: Alert) -> str:
    return await open_position(alert.symbol, alert.quantity)


@guard.exclusive("binance:{symbol}", wait=timedelta(seconds=3))
async def open_position(symbol: str, quantity: float) -> str:
    exchange = app.state.exchange
    if any(position["contracts"] for position in await exchange.fetch_positions([symbol])):
        done = "open already"
    else:
        current_lease().ensure(timedelta(seconds=5))  # no exchange refuses an order that comes too late
        await exchange.create_order(symbol, "market", "buy", quantity)
        done = "opened"
    await app.state.pool.execute("insert into positions values ($1, 'active') on conflict do nothing", symbol)
    return done
