"""A guarded exchange, on the local exchange by ccxt over HTTP."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from typing import Any

from lockguard_ccxt import Executed, GuardedExchange, Patience, Step, client_order_id
from lockguard_lab.exchange import LocalExchange, connect
from tests.cancellation.worlds import Row, World, for_a_day
from tests.integration.fence_leases import grant_of, under

__all__ = ["ExchangeWorld"]

APT = "APT/USDT:USDT"
BTC = "BTC/USDT:USDT"
RESOURCE = "binance:APTUSDT"
TEN, HALF = Decimal(10), Decimal(5)
QUICK = Patience(search=timedelta(milliseconds=400), poll=timedelta(milliseconds=20))
EXCHANGES_OWN = ("RequestHandler", "Throttler", "looper", "local exchange")


class ExchangeWorld(World):
    """One account, whose position each attempt finds flat."""

    noise = ("unclosed <socket.socket",)  # aiohttp's, where a connection is cancelled while it is made

    exchange: LocalExchange
    guarded: GuardedExchange

    async def begin(self, stack: AsyncExitStack) -> None:
        self.numbers = itertools.count(1)
        self.exchange = await stack.enter_async_context(LocalExchange(symbols=[APT, BTC]))
        client = await stack.enter_async_context(connect(self.exchange.url, config={"timeout": 1500}))
        self.guarded = GuardedExchange(client, patience=QUICK)
        await self.guarded.load()
        self.lease = for_a_day(grant_of(7, RESOURCE))

    def strange_tasks(self) -> list[str]:
        """Without those of the local exchange and of ccxt's limiter of requests."""
        return [told for told in super().strange_tasks() if not any(own in told for own in EXCHANGES_OWN)]

    async def works(self) -> None:
        """Look, order, and leave the account flat; one client order id has one order at most."""
        orders = [order.client_id for order in self.exchange.record().orders if order.client_id]
        assert len(orders) == len(set(orders)), f"an order was placed twice: {orders[-5:]}"
        with under(self.lease):
            await self.guarded.holding(APT)
            for stop in await self.guarded.open_orders(APT):
                await self.guarded.cancel(stop)
            held = await self.guarded.holding(APT)
            if held is not None:
                number = next(self.numbers)
                done = await self.guarded.close_position(APT, held.closing_side, held.amount, intent=number)
                assert isinstance(done, Executed), done
        self.exchange.record()
        assert not self.exchange.record().position(APT)


async def numbered(world: ExchangeWorld) -> None:
    """A number for the attempt's intent."""
    world.state = next(world.numbers)


async def in_position(world: ExchangeWorld) -> None:
    await numbered(world)
    with under(world.lease):
        entered = await world.guarded.place_entry(APT, "buy", TEN, intent=world.state)
    assert isinstance(entered, Executed)


async def with_entry(world: ExchangeWorld) -> None:
    await numbered(world)
    with under(world.lease):
        entered = await world.guarded.place_entry(APT, "buy", TEN, intent=world.state)
    assert isinstance(entered, Executed)
    world.state = entered.order


async def with_stop(world: ExchangeWorld) -> None:
    await in_position(world)
    with under(world.lease):
        placed = await world.guarded.place_stop(APT, "sell", TEN, trigger=Decimal(8), intent=world.state)
    assert isinstance(placed, Executed)
    world.state = placed.order


def leased(call: Any) -> Any:
    """A row's call: under the lease of the symbol."""

    async def called(world: ExchangeWorld) -> None:
        with under(world.lease):
            await call(world)

    return called


async def found_again(world: ExchangeWorld) -> list[str]:
    """Who comes next finds the order of the intent, or places it: there is one of it in the end."""
    with under(world.lease):
        done = await world.guarded.place_entry(APT, "buy", TEN, intent=world.state, again=True)
    client_id = client_order_id(world.lease.resource, world.state, Step.ENTRY)
    orders = [order for order in world.exchange.record().orders if order.client_id == client_id]
    return [] if isinstance(done, Executed) and len(orders) == 1 else [f"{done} with orders {orders}"]


async def by_ccxts_own_name(world: ExchangeWorld) -> None:
    client_id = client_order_id(world.lease.resource, world.state, Step.ENTRY)
    await world.guarded.create_order(APT, "market", "buy", 10, None, {"clientOrderId": client_id})


async def prepared(world: ExchangeWorld) -> None:
    def ask() -> Any:
        return world.guarded.place_entry(APT, "buy", TEN, intent=world.state)

    ready = world.guarded.prepare(ask, name="lockguard-test-prepared")
    assert ready is not None
    try:
        await asyncio.sleep(0)
        await ready.send()
        await ready.outcome()
    finally:
        await ready.drop()


async def due_again(world: ExchangeWorld) -> None:
    await numbered(world)
    world.guarded._loaded_at = None


async def not_loaded(world: ExchangeWorld) -> None:
    exchange = world.guarded.exchange
    exchange.markets_loading = exchange.markets = None


async def placing_meanwhile(world: ExchangeWorld) -> None:
    """Who orders while another reloads the markets must not be cut with the other."""
    while not world.guarded._refreshing.locked() and world.guarded._loaded_at is None:
        await asyncio.sleep(0)
    with under(world.lease):
        done = await world.guarded.place_entry(APT, "buy", TEN, intent=world.state)
    assert isinstance(done, Executed), done


async def loading_meanwhile(world: ExchangeWorld) -> None:
    await world.guarded.load([APT])


GUARDED = "lockguard_ccxt.GuardedExchange"
ExchangeWorld.rows = (
    Row((f"{GUARDED}.load",), lambda w: w.guarded.load([APT]), not_loaded, beside=loading_meanwhile),
    Row((f"{GUARDED}.refresh",), lambda w: w.guarded.refresh(), due_again, beside=placing_meanwhile),
    Row((f"{GUARDED}.holding",), lambda w: w.guarded.holding(APT)),
    Row((f"{GUARDED}.holdings",), lambda w: w.guarded.holdings()),
    Row((f"{GUARDED}.open_orders",), lambda w: w.guarded.open_orders()),
    Row((f"{GUARDED}.find_order",), lambda w: w.guarded.find_order(APT, "lg-none")),
    Row((f"{GUARDED}.fills_since",), lambda w: w.guarded.fills_since(APT, w.state.id), with_entry),
    Row(
        (f"{GUARDED}.place_entry",),
        leased(lambda w: w.guarded.place_entry(APT, "buy", TEN, intent=w.state)),
        numbered,
        found_again,
    ),
    Row(
        (f"{GUARDED}.place_stop",),
        leased(lambda w: w.guarded.place_stop(APT, "sell", TEN, trigger=Decimal(8), intent=w.state)),
        in_position,
    ),
    Row(
        (f"{GUARDED}.close_position",),
        leased(lambda w: w.guarded.close_position(APT, "sell", HALF, intent=w.state)),
        in_position,
    ),
    Row((f"{GUARDED}.cancel",), leased(lambda w: w.guarded.cancel(w.state)), with_stop),
    Row((f"{GUARDED}.prepare",), leased(prepared), numbered, found_again),
    Row((f"{GUARDED}.__getattr__",), leased(by_ccxts_own_name), numbered, found_again),
)
