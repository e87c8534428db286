"""A process that opens a position with one of the bots, and is killed while it waits for the stop's answer.

Reads JSON from its standard input; see ``test_hazards.py``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace

from conftest import make_bot

from lockguard_ccxt.lean_import import import_lean


async def act(kind: str, price: Decimal, urls: dict[str, str]) -> None:
    async with AsyncExitStack() as stack:
        ticker = SimpleNamespace(price=lambda _: price)
        bot = await make_bot(stack, kind, ticker, urls, timedelta(seconds=1))
        await bot.open()


if __name__ == "__main__":
    orders = json.loads(sys.stdin.read())
    import_lean("binanceusdm")
    asyncio.run(act(orders["kind"], Decimal(orders["price"]), orders["urls"]))
