"""Synchronous tasks of Celery, and guards made at module level: ``celery -A celery_tasks worker``."""

import asyncio

from celery import Celery

from lockguard import LockGuard
from lockguard.sync import LockGuard as SyncGuard

app = Celery("bot")
app.config_from_object("celeryconfig")
guard, sync_guard = LockGuard.from_env(), SyncGuard.from_env()  # each worker process connects for itself


@app.task(name="with_asyncio_run")
def with_asyncio_run(symbol: str) -> None:
    asyncio.run(guarded(symbol))


@guard.exclusive("binance:{symbol}")
async def guarded(symbol: str) -> None:
    print(f"{symbol} is ours", flush=True)


@app.task(name="with_sync")
@sync_guard.exclusive("binance:{symbol}")
def with_sync(symbol: str) -> None:
    print(f"{symbol} is ours", flush=True)
