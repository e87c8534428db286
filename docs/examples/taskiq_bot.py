"""Workers of taskiq: ``taskiq worker taskiq_bot:broker``."""

import os
from typing import Annotated

from one_order import Bot
from taskiq import Context, InMemoryBroker, TaskiqDepends, TaskiqEvents, TaskiqState, ZeroMQBroker

from lockguard_ccxt import Side

if os.environ.get("ENVIRONMENT") == "pytest":
    broker = InMemoryBroker()
else:
    broker = ZeroMQBroker(os.environ["ZMQ_PUBLISH"], os.environ["ZMQ_SUBSCRIBE"])


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def startup(state: TaskiqState) -> None:
    state.bot = await Bot.connect()  # in the worker's process and event loop, which run every task


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def shutdown(state: TaskiqState) -> None:
    await state.bot.close()


@broker.task("open_position")
async def open_position(
    signal: str, symbol: str, side: Side, quantity: str, context: Annotated[Context, TaskiqDepends()]
) -> None:
    print(await context.state.bot.open_position(signal, symbol, side, quantity), flush=True)
