"""The local exchange can be brought into the states in which bots have lost money.

Bans, refused keys, a clock that is off, hedge mode, contracts that come and go, several accounts, a person at
the same account, orders that are not filled in full.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import aiohttp
import ccxt.async_support as ccxt
import pytest

from lockguard.errors import ConfigurationError
from lockguard_lab.exchange import (
    AlgoStatus,
    ControlClient,
    Execution,
    Fault,
    FaultKind,
    Listing,
    LocalExchange,
    MarketSpec,
    Operation,
    OrderStatus,
    Origin,
    PositionSide,
    Side,
    connect,
)

APT = "APT/USDT:USDT"
BTC = "BTC/USDT:USDT"
NEW = "NEWCOIN/USDT:USDT"
HOUR = timedelta(hours=1)


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange(symbols=[APT, BTC, "BTC/USDC:USDC", "BTC/USD:BTC"]) as server:
        yield server


@pytest.fixture
async def client(exchange: LocalExchange) -> AsyncIterator[Any]:
    async with connect(exchange.url) as ccxt_client:
        await ccxt_client.load_markets()
        yield ccxt_client


async def stop(client: Any, trigger: str = "8.0", symbol: str = APT) -> Any:
    params = {"stopLossPrice": trigger, "reduceOnly": True}
    return await client.create_order(symbol, "market", "sell", "10", None, params)


# --- bans ---


@pytest.mark.parametrize("status", [418, 429])
async def test_a_ban_tells_until_when_and_counts_who_asks_all_the_same(
    client: Any, exchange: LocalExchange, status: int
) -> None:
    until_ms = exchange.ban(HOUR, status=status)
    for _ in range(3):
        with pytest.raises(ccxt.DDoSProtection, match=f"{status}.*banned until {until_ms}"):
            await stop(client)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{exchange.url}/fapi/v1/time") as response,
    ):
        assert response.status == status
        assert 3_590 <= int(response.headers["Retry-After"]) <= 3_600
    assert len(exchange.record().banned_requests()) == 4
    exchange.lift_ban()
    await client.create_order(APT, "market", "buy", "10")
    assert len(exchange.record().banned_requests()) == 4


async def test_a_ban_ends_by_itself(client: Any, exchange: LocalExchange) -> None:
    exchange.ban(timedelta(milliseconds=50))
    async with asyncio.timeout(5):
        while True:
            try:
                await client.create_order(APT, "market", "buy", "10")
                break
            except ccxt.DDoSProtection:
                continue
    assert exchange.record().position(APT) == 10


# --- keys ---


@pytest.mark.parametrize("code", [-2014, -2015])
async def test_a_refused_key_reads_and_does_not_order(
    client: Any, exchange: LocalExchange, code: int
) -> None:
    await client.create_order(APT, "market", "buy", "10")
    placed = await stop(client)
    exchange.deny(code)
    with pytest.raises(ccxt.AuthenticationError, match=str(code)):
        await client.create_order(APT, "market", "buy", "10")
    with pytest.raises(ccxt.AuthenticationError, match=str(code)):
        await stop(client, "7.9")
    with pytest.raises(ccxt.AuthenticationError, match=str(code)):
        await client.cancel_order(placed["id"], APT, {"trigger": True})
    assert [p["contracts"] for p in await client.fetch_positions()] == [10.0]
    assert len(await client.fetch_open_orders(APT, None, None, {"trigger": True})) == 1
    exchange.allow()
    await stop(client, "7.9")
    assert len(exchange.record().open_stops(APT)) == 2


async def test_a_key_may_be_refused_some_requests_only(client: Any, exchange: LocalExchange) -> None:
    exchange.deny(operations=[Operation.CREATE_ALGO], account="main")
    await client.create_order(APT, "market", "buy", "10")
    with pytest.raises(ccxt.AuthenticationError, match="-2015"):
        await stop(client)


async def test_conditions_that_are_not_the_exchanges_are_refused(exchange: LocalExchange) -> None:
    with pytest.raises(ConfigurationError, match="not 500"):
        exchange.ban(HOUR, status=500)
    with pytest.raises(ConfigurationError, match="not -1"):
        exchange.deny(-1)
    with pytest.raises(ConfigurationError, match="no account 'nobody'; there are main"):
        exchange.deny(account="nobody")
    with pytest.raises(ConfigurationError, match="a day off at most"):
        exchange.set_clock_offset(timedelta(days=2))


# --- maintenance and the clock ---


async def test_maintenance_refuses_everything_until_it_is_over(client: Any, exchange: LocalExchange) -> None:
    exchange.set_maintenance(True)
    for ask in (client.fetch_time, client.fetch_positions):
        with pytest.raises(ccxt.OnMaintenance):
            await ask()
    exchange.set_maintenance(False)
    await client.fetch_time()


@pytest.mark.parametrize("seconds", [-90, 90])
async def test_a_clock_that_is_off_refuses_until_the_client_asks_for_the_time(
    client: Any, exchange: LocalExchange, seconds: int
) -> None:
    exchange.set_clock_offset(timedelta(seconds=seconds))
    with pytest.raises(ccxt.InvalidNonce, match="-1021"):
        await client.create_order(APT, "market", "buy", "10")
    await client.load_time_difference()
    await client.create_order(APT, "market", "buy", "10")
    assert exchange.record().position(APT) == 10


@pytest.mark.parametrize("seconds", [-90, 90])
async def test_a_step_of_the_clock_hides_nothing_and_shows_nothing_early(
    client: Any, exchange: LocalExchange, seconds: int
) -> None:
    """What lists show is as of a moment ago, by whichever clock: set back, they said flat for 90 s."""
    await client.create_order(APT, "market", "buy", "10")
    stop = {"stopLossPrice": "8", "reduceOnly": True}
    await client.create_order(APT, "market", "sell", "10", None, stop)
    exchange.set_visibility(positions=timedelta(seconds=30))
    exchange.trade_by_hand(APT, Side.BUY, Decimal(5))
    exchange.set_clock_offset(timedelta(seconds=seconds))
    await client.load_time_difference()
    assert await client.fetch_positions([APT]) == []
    assert len(await client.fetch_open_orders(APT, None, None, {"trigger": True})) == 1
    exchange.set_visibility(positions=timedelta(0))
    (position,) = await client.fetch_positions([APT])
    assert position["contracts"] == 15


# --- hedge mode ---


async def test_in_one_way_mode_an_order_for_one_side_is_refused(client: Any, exchange: LocalExchange) -> None:
    for side in ("LONG", "SHORT"):
        with pytest.raises(ccxt.ExchangeError, match="-4061"):
            await client.create_order(APT, "market", "buy", "10", None, {"positionSide": side})
    assert exchange.record().orders == ()


async def test_in_hedge_mode_the_two_sides_are_apart(client: Any, exchange: LocalExchange) -> None:
    exchange.set_hedge_mode(True)
    assert (await client.fetch_position_mode())["hedged"] is True
    for refused in ({}, {"reduceOnly": True}):
        with pytest.raises(ccxt.ExchangeError, match="-4061"):
            await client.create_order(APT, "market", "buy", "10", None, refused)
    long, short = {"positionSide": "LONG"}, {"positionSide": "SHORT"}
    await client.create_order(APT, "market", "buy", "10", None, long)
    await client.create_order(APT, "market", "sell", "4", None, short)
    positions = {p["side"]: p["contracts"] for p in await client.fetch_positions([APT])}
    assert positions == {"long": 10.0, "short": 4.0}
    with pytest.raises(ccxt.ExchangeError, match="-1106"):
        await client.create_order(APT, "market", "sell", "1", None, {**long, "reduceOnly": True})
    with pytest.raises(ccxt.ExchangeError, match="-2022"):
        await client.create_order(APT, "market", "sell", "11", None, long)
    await client.create_order(APT, "market", "sell", "10", None, {**long, "stopLossPrice": "8.0"})
    assert [p.side for p in exchange.record().without_stop()] == [PositionSide.SHORT]
    exchange.set_price(APT, Decimal("7.9"))
    assert [(p.side, p.qty) for p in exchange.record().positions] == [(PositionSide.SHORT, -4)]
    with pytest.raises(ccxt.ExchangeError, match="-4068"):
        await client.set_position_mode(False)


async def test_hedge_mode_cannot_be_left_with_orders_open(client: Any, exchange: LocalExchange) -> None:
    exchange.set_hedge_mode(True)
    await client.create_order(APT, "limit", "buy", "10", "8.0", {"positionSide": "LONG"})
    with pytest.raises(ccxt.ExchangeError, match="-4067"):
        await client.set_position_mode(False)
    with pytest.raises(ConfigurationError, match="-4067"):
        exchange.set_hedge_mode(False)


# --- contracts ---


async def test_a_contract_may_be_listed_while_the_exchange_runs(client: Any, exchange: LocalExchange) -> None:
    with pytest.raises(ccxt.BadSymbol):
        await client.create_order(NEW, "market", "buy", "10")
    exchange.list_contract(MarketSpec("NEWCOIN", price=Decimal(3), step=Decimal(1)))
    await client.load_markets(True)
    await client.create_order(NEW, "market", "buy", "10")
    assert exchange.record().position(NEW) == 10


async def test_a_contract_that_is_gone_takes_no_orders_and_its_position_stays(
    client: Any, exchange: LocalExchange
) -> None:
    await client.create_order(APT, "market", "buy", "10")
    await stop(client)
    exchange.delist_contract(APT)
    with pytest.raises(ccxt.BadSymbol, match="-1121"):
        await client.create_order(APT, "market", "sell", "10", None, {"reduceOnly": True})
    assert [(p["info"]["symbol"], p["contracts"]) for p in await client.fetch_positions()] == [
        ("APTUSDT", 10.0)
    ]
    assert [a.status for a in exchange.record().algo_orders] == [AlgoStatus.EXPIRED]
    await client.load_markets(True)
    assert APT not in client.markets
    exchange.list_contract(APT)
    await client.load_markets(True)
    await client.create_order(APT, "market", "sell", "10", None, {"reduceOnly": True})
    assert exchange.record().positions == ()


async def test_a_contract_that_is_settling_is_listed_and_takes_no_orders(
    client: Any, exchange: LocalExchange
) -> None:
    exchange.delist_contract(APT, listing=Listing.SETTLING)
    await client.load_markets(True)
    assert client.market(APT)["active"] is False
    with pytest.raises(ccxt.ExchangeError, match="-4108"):
        await client.create_order(APT, "market", "buy", "10")
    with pytest.raises(ccxt.ExchangeError, match="-4108"):
        await stop(client)


# --- accounts ---


async def test_accounts_share_the_prices_and_nothing_else(client: Any, exchange: LocalExchange) -> None:
    exchange.add_account("scalper", api_key="other-key", secret="other-secret")
    exchange.set_hedge_mode(True, account="scalper")
    async with connect(exchange.url, api_key="other-key", secret="other-secret") as scalper:
        params = {"clientOrderId": "same"}
        await client.create_order(APT, "market", "buy", "10", None, params)
        await scalper.create_order(APT, "market", "sell", "4", None, {**params, "positionSide": "SHORT"})
        exchange.deny(account="main")
        with pytest.raises(ccxt.AuthenticationError):
            await client.create_order(APT, "market", "buy", "10")
        await scalper.create_order(APT, "market", "sell", "4", None, {"positionSide": "SHORT"})
        assert [p["contracts"] for p in await client.fetch_positions()] == [10.0]
        assert [p["contracts"] for p in await scalper.fetch_positions()] == [8.0]
        assert len(await client.fetch_my_trades(APT)) == 1
    record = exchange.record()
    assert record.of("main").position(APT) == 10
    assert record.of("scalper").position(APT) == -8
    assert {order.account for order in record.of("scalper").orders} == {"scalper"}
    assert record.position(APT) == 2
    with pytest.raises(ConfigurationError, match="name of its own"):
        exchange.add_account("scalper", api_key="x", secret="y")
    with pytest.raises(ConfigurationError, match="key of its own"):
        exchange.add_account("third", api_key="other-key", secret="y")


async def test_a_fault_may_wait_for_one_account(client: Any, exchange: LocalExchange) -> None:
    exchange.add_account("scalper", api_key="other-key", secret="other-secret")
    exchange.inject(Fault(FaultKind.UNAVAILABLE, Operation.CREATE_ORDER, account="scalper"))
    await client.create_order(APT, "market", "buy", "10")
    async with connect(exchange.url, api_key="other-key", secret="other-secret") as scalper:
        with pytest.raises(ccxt.ExchangeNotAvailable):
            await scalper.create_order(APT, "market", "buy", "10")


# --- a person ---


async def test_what_a_person_does_is_told_apart_from_what_a_program_does(
    client: Any, exchange: LocalExchange
) -> None:
    await client.create_order(APT, "market", "buy", "10")
    bots_stop = await stop(client)
    exchange.trade_by_hand(APT, Side.SELL, Decimal(4), reduce_only=True)
    hands_stop = exchange.stop_by_hand(APT, Side.SELL, Decimal("8.1"))
    exchange.cancel_by_hand(int(bots_stop["id"]))
    record = exchange.record()
    assert record.position(APT) == 6
    assert [order.origin for order in record.orders] == [Origin.API, Origin.PERSON]
    assert [order.reduced for order in record.orders] == [0, 4]
    assert [stop.id for stop in record.open_stops(APT)] == [hands_stop.id]
    assert record.reductions(origin=Origin.API) == ()
    exchange.set_price(APT, Decimal("8.0"))
    record = exchange.record()
    assert record.position(APT) == 0
    assert [(o.origin, o.reduced) for o in record.reductions(APT)] == [(Origin.PERSON, 4), (Origin.PERSON, 6)]
    assert len(record.by_hand(APT)) == 3
    with pytest.raises(ConfigurationError, match="-2022"):
        exchange.trade_by_hand(APT, Side.SELL, Decimal(4), reduce_only=True)


async def test_a_fired_stop_is_a_reduction_by_whoever_placed_it(client: Any, exchange: LocalExchange) -> None:
    exchange.trade_by_hand(APT, Side.BUY, Decimal(10))
    await stop(client)
    exchange.set_price(APT, Decimal("7.9"))
    (fired,) = exchange.record().reductions(origin=Origin.API)
    assert (fired.reduced, fired.algo_id is None) == (10, False)


# --- orders that are not filled in full ---


async def test_a_market_order_may_be_filled_in_part_and_expire(client: Any, exchange: LocalExchange) -> None:
    exchange.inject(Fault(FaultKind.EXPIRES, share=Decimal("0.55")))
    order = await client.create_order(APT, "market", "buy", "10.1")
    assert (order["status"], order["filled"], order["remaining"]) == ("expired", 5.5, 4.6)
    assert exchange.record().position(APT) == Decimal("5.5")


async def test_a_market_order_may_expire_without_a_fill(client: Any, exchange: LocalExchange) -> None:
    exchange.inject(Fault(FaultKind.EXPIRES, Operation.CREATE_ORDER))
    assert (await client.create_order(APT, "market", "buy", "10"))["filled"] == 0
    assert exchange.record().fills == ()


async def test_a_market_order_may_stay_new_until_it_is_cancelled_or_released(
    client: Any, exchange: LocalExchange
) -> None:
    exchange.inject(Fault(FaultKind.RESTS, times=3))
    first, second = [await client.create_order(APT, "market", "buy", "10") for _ in range(2)]
    assert (first["status"], first["info"]["status"], first["filled"]) == ("open", "NEW", 0)
    exchange.set_price(APT, Decimal("8.4"))
    assert exchange.record().fills == ()
    assert (await client.cancel_order(first["id"], APT))["status"] == "canceled"
    exchange.release()
    found = await client.fetch_order(second["id"], APT)
    assert (found["status"], found["average"]) == ("closed", 8.4)


async def test_a_partial_fill_stays_open_with_its_average(client: Any, exchange: LocalExchange) -> None:
    exchange.inject(Fault(FaultKind.RESTS, share=Decimal("0.5")))
    order = await client.create_order(APT, "market", "buy", "10")
    assert (order["status"], order["info"]["status"], order["filled"]) == ("open", "PARTIALLY_FILLED", 5)
    exchange.set_price(APT, Decimal("9.5"))
    exchange.release(APT)
    found = await client.fetch_order(order["id"], APT)
    assert (found["status"], found["average"], found["filled"]) == ("closed", 9.0, 10.0)
    assert len(await client.fetch_my_trades(APT)) == 2


async def test_a_fired_stop_may_be_filled_in_part(client: Any, exchange: LocalExchange) -> None:
    await client.create_order(APT, "market", "buy", "10")
    await stop(client)
    exchange.inject(Fault(FaultKind.EXPIRES, Operation.TRIGGER, share=Decimal("0.3")))
    exchange.set_price(APT, Decimal("7.9"))
    record = exchange.record()
    assert record.position(APT) == 7
    assert record.orders[-1].status is OrderStatus.EXPIRED


async def test_a_shortage_and_a_lost_answer_may_come_together(client: Any, exchange: LocalExchange) -> None:
    exchange.inject(Fault(FaultKind.EXPIRES, share=Decimal("0.5")))
    exchange.inject(Fault(FaultKind.TIMEOUT, Operation.CREATE_ORDER, Execution.FIRST))
    with pytest.raises(ccxt.RequestTimeout):
        await client.create_order(APT, "market", "buy", "10")
    assert exchange.record().position(APT) == 5


# --- USDC, and contracts that are not one coin ---


async def test_usdc_contracts_are_settled_in_usdc(client: Any, exchange: LocalExchange) -> None:
    await client.create_order("BTC/USDC:USDC", "market", "buy", "0.01")
    balance = await client.fetch_balance()
    assert balance["USDC"]["used"] == 31.0
    assert balance["USDT"]["used"] == 0
    assert [p["symbol"] for p in await client.fetch_positions()] == ["BTC/USDC:USDC"]


async def test_inverse_contracts_are_traded_counted_and_settled_in_their_coin(
    exchange: LocalExchange,
) -> None:
    async with connect(
        exchange.url, exchange_id="binance", config={"options": {"defaultType": "swap"}}
    ) as client:
        await client.load_markets()
        symbol = "BTC/USD:BTC"
        market = client.market(symbol)
        assert (market["inverse"], market["settle"], market["contractSize"]) == (True, "BTC", 100.0)
        params = {"type": "swap", "subType": "inverse"}
        order = await client.create_order(symbol, "market", "buy", "62")
        assert (order["status"], order["filled"]) == ("closed", 62.0)
        trigger = {"stopLossPrice": "50000", "reduceOnly": True}
        await client.create_order(symbol, "market", "sell", "62", None, trigger)
        (position,) = await client.fetch_positions([symbol], params)
        assert (position["symbol"], position["contracts"], position["side"]) == (symbol, 62.0, "long")
        assert await client.fetch_positions([BTC]) == []
        assert len(await client.fetch_open_orders(symbol, None, None, {"trigger": True})) == 1
        assert exchange.record().without_stop() == ()
        exchange.set_price(symbol, Decimal(40_000))
        (closed,) = exchange.record().reductions(symbol)
        # 6,200 dollars' worth of coins: at 62,000 a tenth of one, at 40,000 0.155.
        assert exchange.record().fills[-1].realized == Decimal("-0.055")
        assert closed.reduced == 62
        with pytest.raises(ccxt.BadSymbol, match="-1121"):
            await client.fapiPrivatePostOrder(
                {"symbol": "BTCUSD_PERP", "side": "BUY", "type": "MARKET", "quantity": "1"}
            )


async def test_a_linear_contract_may_stand_for_many_coins() -> None:
    spec = MarketSpec("LOT", price=Decimal(2), step=Decimal(1), contract_size=Decimal(100))
    async with LocalExchange(symbols=[spec]) as exchange, connect(exchange.url) as client:
        await client.load_markets()
        assert client.market("LOT/USDT:USDT")["contractSize"] == 100.0
        await client.create_order("LOT/USDT:USDT", "market", "buy", "3")
        exchange.set_price("LOTUSDT", Decimal(3))
        await client.create_order("LOT/USDT:USDT", "market", "sell", "3")
        assert exchange.record().fills[-1].realized == 300


# --- from another process ---


async def test_every_state_can_be_brought_about_from_another_process(
    client: Any, exchange: LocalExchange
) -> None:
    async with ControlClient(exchange.url) as control:
        await control.add_account("scalper", api_key="other-key", secret="other-secret")
        await control.set_hedge_mode(True, account="scalper")
        with pytest.raises(ConfigurationError, match="-4061"):
            await control.trade_by_hand(APT, Side.BUY, Decimal(10), account="scalper")
        traded = await control.trade_by_hand(
            APT, Side.BUY, Decimal(10), account="scalper", position_side=PositionSide.LONG
        )
        assert (traded.account, traded.origin) == ("scalper", Origin.PERSON)
        placed = await control.stop_by_hand(
            APT, Side.SELL, Decimal(8), qty=Decimal(10), account="scalper", position_side=PositionSide.LONG
        )
        await control.cancel_by_hand(placed.id, account="scalper")
        await control.list_contract(MarketSpec("NEWCOIN", price=Decimal(3), contract_size=Decimal(10)))
        await control.list_contract("OTHERUSDT")
        await control.delist_contract(BTC, listing=Listing.SETTLING)
        await control.set_clock_offset(timedelta(milliseconds=-1))
        await control.deny(-2014, operations=[Operation.CREATE_ORDER], account="main")
        with pytest.raises(ccxt.AuthenticationError):
            await client.create_order(APT, "market", "buy", "10")
        await control.allow("main")
        await control.inject(Fault(FaultKind.RESTS, share=Decimal("0.5")))
        await client.create_order(APT, "market", "buy", "10")
        await control.release()
        await control.set_maintenance(True)
        with pytest.raises(ccxt.OnMaintenance):
            await client.fetch_time()
        await control.set_maintenance(False)
        until_ms = await control.ban(HOUR, status=429)
        with pytest.raises(ccxt.DDoSProtection, match=str(until_ms)):
            await client.fetch_time()
        await control.lift_ban()
        record = await control.record()
        assert record == exchange.record()
        assert len(record.banned_requests()) == 1
        assert "NEWCOINUSDT" in await control.symbols()
        await control.reset()
        assert "NEWCOINUSDT" not in await control.symbols()
        assert (await control.record()).orders == ()
        with pytest.raises(ConfigurationError, match="'nobody'"):
            await control.deny(account="nobody")
