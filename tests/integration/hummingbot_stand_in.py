"""Runs a script as hummingbot does, without hummingbot: ``hummingbot_stand_in.py FILE``.

What it keeps of the interface: ``on_tick`` is a plain function and called in an event loop that runs; ``buy``
returns an id at once, and the connector sends the order later, in a task of its own; the connector reads the
positions from time to time; ``stop`` is called when the script is stopped. Ticks come ten times a second.
"""

from __future__ import annotations

import asyncio
import logging
import os
import runpy
import signal
import sys
import types

from lockguard_lab.exchange import connect

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)


class Connector:
    def __init__(self, client):
        self.client = client
        self.account_positions = {}
        self.sending = set()

    def buy(self, pair, amount):
        task = asyncio.get_running_loop().create_task(self.send(pair, amount))
        self.sending.add(task)
        return "an-order-of-ours"

    async def send(self, pair, amount):
        await asyncio.sleep(0.05)  # an order leaves a little after buy() has returned
        await self.client.create_order(pair.replace("-USDT", "/USDT:USDT"), "market", "buy", float(amount))
        print("ordered", flush=True)

    async def read_positions(self):
        found = await self.client.fetch_positions()
        self.account_positions = {one["symbol"]: one for one in found if one["contracts"]}


class ScriptStrategyBase:
    def __init__(self, connectors):
        self.connectors = connectors

    @classmethod
    def logger(cls):
        return logging.getLogger("script")

    def buy(self, connector_name, trading_pair, amount, order_type):
        return self.connectors[connector_name].buy(trading_pair, amount)

    def stop(self, clock):
        pass


for name, content in {
    "hummingbot.core.data_type.common": {"OrderType": types.SimpleNamespace(MARKET="market")},
    "hummingbot.strategy.script_strategy_base": {"ScriptStrategyBase": ScriptStrategyBase},
}.items():
    parts = name.split(".")
    for length in range(1, len(parts)):
        sys.modules.setdefault(".".join(parts[:length]), types.ModuleType(".".join(parts[:length])))
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(content)


async def main(path):
    names = runpy.run_path(path)
    script = next(one for one in names.values() if ScriptStrategyBase in getattr(one, "__bases__", ()))
    client = connect(os.environ["LOCKGUARD_EXCHANGE_URL"])
    await client.load_markets()
    connector = Connector(client)
    made = script({"binance_perpetual": connector})
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    while not stopped.is_set():
        await connector.read_positions()
        made.on_tick()
        await asyncio.sleep(0.1)
    made.stop(None)
    print("stopped", flush=True)
    await asyncio.Event().wait()  # hummingbot's client runs on


asyncio.run(main(sys.argv[1]))
