"""The hooks of the recipe for freqtrade, ``one_account.py``, called as freqtrade calls them.

freqtrade itself is not there: two names that the recipe imports from it are made here. What the hooks do
inside freqtrade is tried in ``test_one_account.py``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ccxt
import pytest

from lockguard.errors import LossReason
from lockguard_lab.exchange import (
    LOCAL_API_KEY,
    LOCAL_SECRET,
    Fault,
    FaultKind,
    LocalExchange,
    Operation,
    Side,
    point_at,
)
from lockguard_lab.servers import RedisServer

APT, BTC = "APT/USDT:USDT", "BTC/USDT:USDT"
RECIPE = Path(__file__).parents[2] / "docs" / "examples" / "one_account.py"


class RunMode(Enum):
    LIVE = "live"
    BACKTEST = "backtest"


class Strategy:
    """What freqtrade's own class does in these hooks."""

    def bot_start(self, **kwargs: Any) -> None:
        pass

    def bot_loop_start(self, **kwargs: Any) -> None:
        pass

    def confirm_trade_entry(self, pair: str, **kwargs: Any) -> bool:
        return True

    def confirm_trade_exit(self, pair: str, **kwargs: Any) -> bool:
        return True


class Instance:
    """One process of freqtrade: the recipe's module, the table, and a strategy."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, exchange: Any, mode: RunMode = RunMode.LIVE) -> None:
        self.table: list[str] = []
        trade = SimpleNamespace(
            get_trades_proxy=lambda is_open: [SimpleNamespace(pair=pair) for pair in self.table if is_open]
        )
        for name, known in {"enums": {"RunMode": RunMode}, "persistence": {"Trade": trade}}.items():
            made = ModuleType(f"freqtrade.{name}")
            vars(made).update(known)
            monkeypatch.setitem(sys.modules, made.__name__, made)
        monkeypatch.setitem(sys.modules, "freqtrade", ModuleType("freqtrade"))
        spec = importlib.util.spec_from_file_location("one_account", RECIPE)
        assert spec is not None
        assert spec.loader is not None
        self.recipe: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.recipe)
        self.exchange, self.mode = exchange, mode
        self.reload()

    def reload(self) -> None:
        """What ``/reload_config`` does: a strategy made anew in the same process."""
        self.strategy: Any = type("Mine", (self.recipe.OneAccount, Strategy), {})()
        self.strategy.dp = SimpleNamespace(runmode=self.mode, _exchange=SimpleNamespace(_api=self.exchange))
        self.strategy.bot_start()

    async def loop(self) -> None:
        await asyncio.to_thread(self.strategy.bot_loop_start)

    async def enters(self, pair: str = APT) -> bool:
        agreed = await asyncio.to_thread(self.strategy.confirm_trade_entry, pair, side="long")
        if agreed:
            await asyncio.to_thread(self.exchange.create_order, pair, "market", "buy", 1)
            self.table.append(pair)
        return agreed

    async def exits(self, pair: str = APT) -> bool:
        agreed = await asyncio.to_thread(self.strategy.confirm_trade_exit, pair, trade=None)
        if agreed:
            reducing = {"reduceOnly": True}
            await asyncio.to_thread(self.exchange.create_order, pair, "market", "sell", 1, None, reducing)
            self.table.remove(pair)
        return agreed


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange(symbols=[APT, BTC]) as server:
        yield server


def client_of(exchange: LocalExchange) -> Any:
    client = ccxt.binanceusdm({"apiKey": LOCAL_API_KEY, "secret": LOCAL_SECRET, "enableRateLimit": False})
    point_at(client, exchange.url)
    client.load_markets()
    return client


@pytest.fixture
async def both(
    exchange: LocalExchange, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Instance, Instance]]:
    monkeypatch.setenv("LOCKGUARD_REDIS_URL", redis.url)
    monkeypatch.setenv("LOCKGUARD_TTL", "30s")
    clients = [await asyncio.to_thread(client_of, exchange) for _ in range(2)]
    instances = [Instance(monkeypatch, client) for client in clients]
    yield instances[0], instances[1]
    for instance in instances:
        await asyncio.to_thread(instance.recipe.guard().close)
        instance.exchange.close()


async def test_a_pair_belongs_to_the_instance_whose_table_has_it(
    exchange: LocalExchange, both: tuple[Instance, Instance]
) -> None:
    first, second = both
    assert await first.enters()
    for _ in range(2):
        await first.loop()
        assert not await second.enters()
    second.table.append(APT)  # a copy of the first one's database
    await second.loop()
    assert not await second.exits()
    with pytest.raises(
        ccxt.ExchangeError, match="whose position this order may reduce"
    ):  # a stop has no hook
        stop = {"stopLossPrice": "8", "reduceOnly": True}
        await asyncio.to_thread(second.exchange.create_order, APT, "market", "sell", 1, None, stop)
    assert exchange.record().position(APT) == 1
    assert await first.exits()
    assert exchange.record().position(APT) == 0


async def test_an_order_without_a_hook_enlarges_only_what_this_table_has(
    exchange: LocalExchange, both: tuple[Instance, Instance]
) -> None:
    """freqtrade asks no hook before the order of a position adjustment."""
    first, second = both
    assert await first.enters()
    await first.loop()
    await asyncio.to_thread(first.exchange.create_order, APT, "market", "buy", 1)
    with pytest.raises(ccxt.ExchangeError, match="no lease on 'binance:APTUSDT' is held here"):
        await asyncio.to_thread(second.exchange.create_order, APT, "market", "buy", 1)
    assert exchange.record().position(APT) == 2


async def test_a_position_or_an_order_in_no_table_is_not_added_to(
    exchange: LocalExchange, both: tuple[Instance, Instance]
) -> None:
    first, _ = both
    exchange.trade_by_hand(APT, Side.BUY, Decimal(1))
    assert not await first.enters(APT)
    exchange.trade_by_hand(BTC, Side.BUY, Decimal(1), price=exchange.price(BTC) / 2)
    assert not await first.enters(BTC)
    assert first.recipe.leases == {}


async def test_a_read_that_fails_buys_nothing_and_keeps_nothing(
    exchange: LocalExchange, both: tuple[Instance, Instance]
) -> None:
    first, _ = both
    exchange.inject(Fault(FaultKind.UNAVAILABLE, Operation.POSITIONS))
    assert not await first.enters()
    assert first.recipe.leases == {}
    exchange.clear_faults()


async def test_a_strategy_that_is_reloaded_keeps_its_pairs(
    exchange: LocalExchange, both: tuple[Instance, Instance]
) -> None:
    first, second = both
    assert await first.enters()
    first.exchange = await asyncio.to_thread(client_of, exchange)
    first.reload()
    await first.loop()
    assert not await second.enters()
    assert await first.exits()


async def test_without_redis_nothing_is_bought_and_what_there_is_is_sold(
    exchange: LocalExchange, redis: RedisServer, both: tuple[Instance, Instance]
) -> None:
    first, _ = both
    assert await first.enters()
    redis.kill()
    first.recipe.leases[APT].mark_lost(LossReason.EXPIRED)
    assert not await first.enters(BTC)
    assert await first.exits()
    assert exchange.record().orders[-1].reduced == 1


async def test_a_backtest_asks_for_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCKGUARD_REDIS_URL", raising=False)
    instance = Instance(monkeypatch, None, RunMode.BACKTEST)
    await instance.loop()
    assert await asyncio.to_thread(instance.strategy.confirm_trade_entry, APT)
    assert await asyncio.to_thread(instance.strategy.confirm_trade_exit, APT)
