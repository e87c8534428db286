"""Workers of Celery: ``celery -A celery_bot worker``. Tasks are synchronous, the bot is not."""

import asyncio
from functools import cache

from celery import Celery
from one_order import Bot, TryAgainError

from lockguard import AcquireError, LeaseLost
from lockguard_ccxt import Side

app = Celery("bot")
app.config_from_object("celeryconfig")  # broker_url and so on


@cache
def worker() -> tuple[asyncio.Runner, Bot]:
    """One event loop and one bot for each worker process: made by its first task, after the fork."""
    runner = asyncio.Runner()
    return runner, runner.run(Bot.connect())


@app.task(
    name="open_position",
    acks_late=True,  # delivered again if the worker dies: the job runs twice
    reject_on_worker_lost=True,
    autoretry_for=(TryAgainError, AcquireError, LeaseLost),
    retry_backoff=True,
    max_retries=10,
)
def open_position(signal: str, symbol: str, side: Side, quantity: str) -> None:
    runner, bot = worker()
    print(runner.run(bot.open_position(signal, symbol, side, quantity)), flush=True)
