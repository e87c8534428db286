"""A guarded exchange of ccxt.pro: streams as before, and no order over a websocket without a lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import ccxt
import pytest

from lockguard import LockGuard
from lockguard.errors import ConfigurationError, LeaseLost, LeaseNotHeld, LossReason
from lockguard_ccxt import Executed, GuardedExchange, Step
from lockguard_lab.exchange import Execution, Fault, FaultKind, LocalExchange, Operation, connect

APT = "APT/USDT:USDT"
WITHIN_S = 20


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange(symbols=[APT, "BTCUSDT"]) as server:
        yield server


@pytest.fixture
async def guarded(exchange: LocalExchange) -> AsyncIterator[GuardedExchange]:
    async with connect(exchange.url, streams=True) as pro:
        wrapped = GuardedExchange(pro)
        await wrapped.load([APT])
        yield wrapped


@pytest.fixture
async def guard() -> AsyncIterator[LockGuard]:
    async with LockGuard.in_memory() as made:
        yield made


async def heard_of(guarded: GuardedExchange, client_id: str) -> Any:
    """The filled order of that client id, as the account's stream tells it; a cut stream is opened anew."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                orders = await guarded.watch_orders(APT)
            except ccxt.NetworkError:
                continue
            for order in orders:
                if order["clientOrderId"] == client_id and order["status"] == "closed":
                    return order


async def listened_to(exchange: LocalExchange) -> None:
    async with asyncio.timeout(WITHIN_S):
        while "main" not in {listener.account for listener in exchange.listeners()}:
            await asyncio.sleep(0.01)


async def test_one_client_places_orders_by_intent_and_hears_of_them(
    exchange: LocalExchange, guarded: GuardedExchange, guard: LockGuard
) -> None:
    hearing = asyncio.create_task(heard_of(guarded, guarded.client_id(APT, 1, Step.ENTRY)))
    await listened_to(exchange)
    async with guard.hold(guarded.resource(APT)):
        outcome = await guarded.place_entry(APT, "buy", Decimal(10), intent=1)
    assert isinstance(outcome, Executed)
    assert (await hearing)["filled"] == outcome.order.filled == 10


async def test_after_a_cut_in_the_moment_of_its_fill_a_bot_finds_the_order_and_hears_of_the_next(
    exchange: LocalExchange, guarded: GuardedExchange, guard: LockGuard
) -> None:
    exchange.inject(Fault(FaultKind.DISCONNECT, Operation.STREAM_FILL))
    watching = asyncio.create_task(guarded.watch_my_trades(APT))
    await listened_to(exchange)
    async with guard.hold(guarded.resource(APT)):
        await guarded.place_entry(APT, "buy", Decimal(10), intent=1)
        with pytest.raises(ccxt.NetworkError):
            await asyncio.wait_for(watching, WITHIN_S)
        found = await guarded.find_order(APT, guarded.client_id(APT, 1, Step.ENTRY))
        assert found is not None
        assert found.filled == 10, "the stream never tells of it"
        hearing = asyncio.create_task(heard_of(guarded, guarded.client_id(APT, 1, Step.CLOSE)))
        await listened_to(exchange)
        await guarded.close_position(APT, "sell", Decimal(10), intent=1)
        assert (await hearing)["filled"] == 10


BY_WEBSOCKET: dict[str, Callable[[Any, dict[str, Any]], Awaitable[Any]]] = {
    "create": lambda client, params: client.create_order_ws(APT, "market", "buy", 10, None, params),
    "create in camel case": lambda client, params: client.createOrderWs(
        APT, "market", "buy", 10, None, params
    ),
    "edit": lambda client, params: client.edit_order_ws("1", APT, "limit", "buy", 10, 8, params),
    "cancel": lambda client, params: client.cancel_order_ws("1", APT, params),
    "cancel all": lambda client, params: client.cancel_all_orders_ws(APT, params),
    "a message of one's own": lambda client, params: client.watch(
        client.urls["api"]["ws"]["ws-api"]["linear"],
        "1",
        {"id": "1", "method": "order.place", "params": client.exchange.sign_params(raw(params))},
        "1",
    ),
}


def raw(params: dict[str, Any]) -> dict[str, Any]:
    order = {"symbol": "APTUSDT", "side": "BUY", "type": "MARKET", "quantity": "10"}
    return {**order, "newClientOrderId": params.get("clientOrderId", "")}


@pytest.mark.parametrize("send", BY_WEBSOCKET.values(), ids=BY_WEBSOCKET.keys())
async def test_nothing_is_ordered_over_a_websocket_without_a_lease(
    exchange: LocalExchange,
    guarded: GuardedExchange,
    send: Callable[[Any, dict[str, Any]], Awaitable[Any]],
) -> None:
    sent = exchange.record().requests
    with pytest.raises(LeaseNotHeld):
        await send(guarded, {"clientOrderId": "mine"})
    assert exchange.record().requests == sent


async def test_an_order_over_a_websocket_leaves_under_its_lease_only(
    exchange: LocalExchange, guarded: GuardedExchange, guard: LockGuard
) -> None:
    create = BY_WEBSOCKET["create"]
    with pytest.raises(LeaseLost):
        async with guard.hold(guarded.resource(APT)) as lease:
            with pytest.raises(ConfigurationError, match="without a client order id"):
                await create(guarded, {})
            order = await create(guarded, {"clientOrderId": "first"})
            assert (order["status"], order["filled"]) == ("closed", 10)
            lease.mark_lost(LossReason.EXPIRED)
            await create(guarded, {"clientOrderId": "late"})
    assert [order.client_id for order in exchange.record().orders] == ["first"]


async def test_an_order_over_a_websocket_whose_answer_is_lost_is_found_by_its_id(
    exchange: LocalExchange, guarded: GuardedExchange, guard: LockGuard
) -> None:
    exchange.inject(Fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, Execution.FIRST))
    client_id = guarded.client_id(APT, 1, Step.ENTRY)
    async with guard.hold(guarded.resource(APT)):
        with pytest.raises(ccxt.NetworkError):
            await BY_WEBSOCKET["create"](guarded, {"clientOrderId": client_id})
        found = await guarded.find_order(APT, client_id)
    assert found is not None
    assert found.filled == 10
    assert len(exchange.record().entries(APT)) == 1


async def test_no_order_leaves_over_a_websocket_during_a_ban(
    exchange: LocalExchange, guarded: GuardedExchange, guard: LockGuard
) -> None:
    async with guard.hold(guarded.resource(APT)):
        await BY_WEBSOCKET["create"](guarded, {"clientOrderId": "first"})
        exchange.ban(timedelta(minutes=2))
        with pytest.raises(ccxt.DDoSProtection):
            await guarded.fetch_time()
        with pytest.raises(ccxt.DDoSProtection, match="not sent"):
            await BY_WEBSOCKET["create"](guarded, {"clientOrderId": "second"})
    assert len(exchange.record().banned_requests()) == 1


async def test_a_bot_of_ccxt_pro_is_deaf_after_its_listen_key_expired_until_it_asks_for_a_new_one(
    exchange: LocalExchange, guarded: GuardedExchange, guard: LockGuard
) -> None:
    """ccxt does not know the event; the key's next keep-alive fails, which ends its calls with an error."""
    watching = asyncio.create_task(guarded.watch_orders(APT))
    await listened_to(exchange)
    exchange.expire_listen_keys()
    async with guard.hold(guarded.resource(APT)):
        await guarded.place_entry(APT, "buy", Decimal(10), intent=1)
        await guarded.fetch_time()
        assert not watching.done()
        await guarded.keep_alive_listen_key({"type": "future", "subType": "linear"})
        with pytest.raises(ccxt.AuthenticationError, match="-1125"):
            await asyncio.wait_for(watching, WITHIN_S)
        hearing = asyncio.create_task(heard_of(guarded, guarded.client_id(APT, 1, Step.CLOSE)))
        await listened_to(exchange)
        await guarded.close_position(APT, "sell", Decimal(10), intent=1)
        assert (await hearing)["filled"] == 10
