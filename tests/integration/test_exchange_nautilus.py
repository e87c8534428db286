"""nautilus_trader runs on the local exchange, unmodified but for its two addresses.

It is taken from another environment: ``LOCKGUARD_NAUTILUS_PYTHON`` names an interpreter that has it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lockguard_lab.child_process import signal_child
from lockguard_lab.exchange import LocalExchange, Side

APT = "APT/USDT:USDT"
WITHIN_S = 90

NODE = '''
import json, sys
from decimal import Decimal

from nautilus_trader.adapters.binance import (
    BINANCE, BinanceAccountType, BinanceDataClientConfig, BinanceExecClientConfig,
    BinanceLiveDataClientFactory, BinanceLiveExecClientFactory,
)
from nautilus_trader.config import InstrumentProviderConfig, LoggingConfig, StrategyConfig, TradingNodeConfig
from nautilus_trader.live.node import TradingNode
from nautilus_trader.model.enums import OrderSide
from nautilus_trader.model.identifiers import InstrumentId, TraderId
from nautilus_trader.trading.strategy import Strategy

url = sys.argv[1]
APT = InstrumentId.from_str("APTUSDT-PERP.BINANCE")


def tell(what, **facts):
    print(json.dumps({"what": what, **{name: str(value) for name, value in facts.items()}}), flush=True)


class EnterAndWait(Strategy):
    """Buys at market at its first quote, then leaves a limit order to sell at 9."""

    def on_start(self):
        self.entered = False
        self.subscribe_quote_ticks(APT)
        self.subscribe_trade_ticks(APT)
        self.subscribe_order_book_deltas(APT)

    def on_trade_tick(self, tick):
        tell("trade", price=tick.price)

    def on_order_book_deltas(self, deltas):
        tell("book", count=len(deltas.deltas))

    def on_quote_tick(self, tick):
        if not self.entered:
            self.entered = True
            size = self.cache.instrument(APT).make_qty(Decimal(10))
            self.submit_order(self.order_factory.market(APT, OrderSide.BUY, size))

    def on_order_accepted(self, event):
        tell("accepted", id=event.client_order_id)

    def on_order_filled(self, event):
        tell("filled", quantity=event.last_qty, price=event.last_px, fee=event.commission)
        if event.order_side == OrderSide.BUY:
            at = self.cache.instrument(APT).make_price(Decimal(9))
            self.submit_order(self.order_factory.limit(APT, OrderSide.SELL, event.last_qty, at))

    def on_position_closed(self, event):
        tell("closed", profit=event.realized_pnl)


settings = {
    "api_key": "local-key",
    "api_secret": "local-secret",
    "account_type": BinanceAccountType.USDT_FUTURES,
    "base_url_http": url,
    "base_url_ws": url.replace("http", "ws", 1),
    "instrument_provider": InstrumentProviderConfig(load_all=True),
}
node = TradingNode(
    config=TradingNodeConfig(
        trader_id=TraderId("TESTER-001"),
        logging=LoggingConfig(log_level="WARNING", log_colors=False),
        data_clients={BINANCE: BinanceDataClientConfig(**settings)},
        exec_clients={BINANCE: BinanceExecClientConfig(**settings)},
        timeout_disconnection=3.0,
        timeout_post_stop=1.0,
    )
)
node.trader.add_strategy(EnterAndWait(StrategyConfig()))
node.add_data_client_factory(BINANCE, BinanceLiveDataClientFactory)
node.add_exec_client_factory(BINANCE, BinanceLiveExecClientFactory)
node.build()
try:
    node.run()
finally:
    node.dispose()
'''


async def test_a_trading_node_hears_of_its_fills_also_after_a_cut(tmp_path: Path) -> None:
    python = os.environ.get("LOCKGUARD_NAUTILUS_PYTHON")
    if python is None:
        pytest.skip("nautilus_trader is not here; LOCKGUARD_NAUTILUS_PYTHON names an interpreter that has it")
    script, log = tmp_path / "node.py", tmp_path / "output.log"
    script.write_text(NODE, encoding="utf-8")
    async with LocalExchange(symbols=[APT, "BTCUSDT"]) as exchange:
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                python, str(script), exchange.url, cwd=tmp_path, stdout=output, stderr=output
            )

        def told(what: str) -> list[dict[str, Any]]:
            lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
            return [fact for fact in map(json.loads, lines) if fact["what"] == what]

        async def until(done: Callable[[], bool], what: str) -> None:
            try:
                async with asyncio.timeout(WITHIN_S):
                    while not done():
                        assert process.returncode is None, f"it ended: {log.read_text()[-3000:]}"
                        await asyncio.sleep(0.05)
            except TimeoutError:
                pytest.fail(f"it did not {what}: {log.read_text()[-3000:]}")

        def listens() -> bool:
            return "main" in {listener.account for listener in exchange.listeners()}

        try:
            await until(lambda: len(told("accepted")) == 2, "enter and leave its limit order")
            assert told("filled") == [
                {"what": "filled", "quantity": "10.0", "price": "8.5000", "fee": "0.03400000 USDT"}
            ]
            await until(lambda: bool(told("trade") and told("book")), "hear of the market")
            exchange.cut_streams()
            await until(lambda: not listens(), "lose its stream")
            await until(listens, "connect again")
            exchange.set_price(APT, Decimal(9))
            await until(lambda: bool(told("closed")), "hear that its position is closed")
        finally:
            if process.returncode is None:
                signal_child(process, signal.SIGINT)
                try:
                    async with asyncio.timeout(30):
                        await process.wait()
                except TimeoutError:
                    signal_child(process, signal.SIGKILL)
                    await process.wait()
        record = exchange.record()
        assert [(order.side, order.executed) for order in record.orders] == [(Side.BUY, 10), (Side.SELL, 10)]
        assert record.positions == ()
