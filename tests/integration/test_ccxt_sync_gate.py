"""The gate of a synchronous ccxt exchange: no order leaves late, none opens a position without a lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import ccxt
import ccxt.async_support
import pytest
import trustme
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3.util.retry import Retry

import lockguard
from lockguard._clock import SYSTEM_CLOCK
from lockguard._context import LeaseScope, enter_scope, exit_scope
from lockguard._lease import Grant, Lease, Token, new_grant_id, parse_resource
from lockguard.errors import ConfigurationError, LeaseLost, LeaseNotHeld, LossReason, ResourceBusy
from lockguard.sync import LockGuard
from lockguard_ccxt import GuardedExchange, gate_orders
from lockguard_lab.exchange import (
    LOCAL_API_KEY,
    LOCAL_SECRET,
    Execution,
    Fault,
    FaultKind,
    LocalExchange,
    Operation,
    point_at,
)
from lockguard_lab.servers import HOLD, FaultProxy, RedisServer
from tests.tls_files import issued

APT, BTC = "APT/USDT:USDT", "BTC/USDT:USDT"
STOP = {"stopLossPrice": "8", "reduceOnly": True}

Bot = Callable[[Any], Any]


@contextmanager
def lease(resource: str = "binance:APTUSDT", seconds: float = 30) -> Iterator[Lease]:
    grant = Grant(parse_resource(resource), new_grant_id(), Token(1), "test", "", 30_000)
    held = Lease(grant, deadline=SYSTEM_CLOCK.now() + seconds, clock=SYSTEM_CLOCK)
    task = asyncio.current_task()
    assert task is not None
    scope = enter_scope(LeaseScope(held, task, None))
    try:
        yield held
    finally:
        exit_scope(scope)


def client_of(url: str, **settings: Any) -> Any:
    known: dict[str, Any] = {"apiKey": LOCAL_API_KEY, "secret": LOCAL_SECRET, "enableRateLimit": False}
    client = ccxt.binanceusdm({**known, **settings})
    point_at(client, url)
    return client


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange(symbols=[APT, BTC]) as server:
        yield server


@pytest.fixture
async def client(exchange: LocalExchange) -> AsyncIterator[Any]:
    made = client_of(exchange.url)
    await asyncio.to_thread(made.load_markets)
    gate_orders(made)
    yield made
    made.close()


async def refused(call: Callable[[], Any], cause: type[Exception]) -> str:
    """What a call that was not sent raises; its class is what bots answer by giving up this order only."""
    with pytest.raises(ccxt.ExchangeError, match="not sent") as caught:
        await asyncio.to_thread(call)
    assert isinstance(caught.value.__cause__, cause)
    handled_otherwise = (ccxt.InvalidOrder, ccxt.BadRequest, ccxt.OperationRejected, ccxt.InsufficientFunds)
    assert not isinstance(caught.value, (*handled_otherwise, ccxt.OperationFailed))
    return str(caught.value)


OPENING: dict[str, Bot] = {
    "create_order": lambda c: c.create_order(APT, "market", "buy", 1),
    "createOrder": lambda c: c.createOrder(symbol=APT, type="market", side="buy", amount=1),
    "market_buy": lambda c: c.create_market_buy_order(APT, 1),
    "short": lambda c: c.create_market_sell_order(APT, 1),
    "says it does not reduce": lambda c: c.create_order(
        APT, "market", "buy", 1, None, {"reduceOnly": "false"}
    ),
    "a stop that may open": lambda c: c.create_stop_market_order(APT, "sell", 1, 8),
    "with a stop": lambda c: c.create_order_with_take_profit_and_stop_loss(
        APT, "market", "buy", 1, None, 9, 8
    ),
    "several": lambda c: c.create_orders(
        [
            {"symbol": APT, "type": "market", "side": "buy", "amount": 1, "params": {"reduceOnly": True}},
            {"symbol": APT, "type": "market", "side": "buy", "amount": 1},
        ]
    ),
    "edit": lambda c: c.edit_order("1", APT, "limit", "buy", 1, 8),
    "generated": lambda c: c.fapiPrivatePostOrder(
        {"symbol": "APTUSDT", "side": "BUY", "type": "MARKET", "quantity": "1"}
    ),
    "request": lambda c: c.request(
        "order",
        "fapiPrivate",
        "POST",
        {"symbol": "APTUSDT", "side": "BUY", "type": "MARKET", "quantity": "1"},
    ),
    "raw batch": lambda c: c.fapiPrivatePostBatchOrders({"batchOrders": "[]"}),
}


@pytest.mark.parametrize("call", OPENING.values(), ids=OPENING)
async def test_no_order_that_may_open_is_sent_without_a_lease(
    exchange: LocalExchange, client: Any, call: Bot
) -> None:
    before = len(exchange.record().requests)
    with lease("binance:BTCUSDT"):
        text = await refused(lambda: call(client), LeaseNotHeld)
    assert "\n" not in text
    assert len(exchange.record().requests) == before


async def test_an_order_under_its_lease_is_sent_once(exchange: LocalExchange, client: Any) -> None:
    with lease():
        for name in ("create_order", "createOrder", "market_buy", "generated"):
            await asyncio.to_thread(OPENING[name], client)
    assert exchange.record().position(APT) == 4


def holding(client: Any) -> None:
    client.create_order(APT, "market", "buy", 3)
    client.create_order(APT, "limit", "buy", 1, 8)


KEEPING: dict[str, Bot] = {
    "stop": lambda c: c.create_order(APT, "market", "sell", 1, None, STOP),
    "exit": lambda c: c.create_order(APT, "market", "sell", 1, None, {"reduceOnly": True}),
    "reduce only": lambda c: c.create_reduce_only_order(APT, "market", "sell", 1),
    "generated": lambda c: c.fapiPrivatePostOrder(
        {"symbol": "APTUSDT", "side": "SELL", "type": "MARKET", "quantity": "1", "reduceOnly": "true"}
    ),
    "cancel": lambda c: c.cancel_all_orders(APT),
    "leverage": lambda c: c.set_leverage(3, APT),
}


@pytest.mark.parametrize("call", KEEPING.values(), ids=KEEPING)
async def test_what_protects_a_position_needs_no_lease_and_is_refused_only_when_late(
    exchange: LocalExchange, client: Any, call: Bot
) -> None:
    with lease():
        await asyncio.to_thread(holding, client)
    with lease() as lost:
        lost.mark_lost(LossReason.EXPIRED)
        before = len(exchange.record().requests)
        await refused(lambda: call(client), LeaseLost)
        assert len(exchange.record().requests) == before
    await asyncio.to_thread(call, client)
    assert len(exchange.record().requests) > before


async def test_what_somebody_else_holds_is_not_reduced_and_a_server_that_is_down_keeps_nothing_from_it(
    exchange: LocalExchange,
) -> None:
    client = client_of(exchange.url)
    await asyncio.to_thread(client.load_markets)
    with RedisServer() as server:
        guard = LockGuard.from_url(server.url)
        gate_orders(client, guard)
        with lease():
            await asyncio.to_thread(client.create_order, APT, "market", "buy", 3)
        async with lockguard.LockGuard.from_url(server.url) as other:
            async with other.hold("binance:APTUSDT"):
                with lockguard.detached():
                    for name in ("exit", "stop", "generated"):
                        text = await refused(partial(KEEPING[name], client), ResourceBusy)
                        assert "whose position this order may reduce" in text
                    await asyncio.to_thread(KEEPING["cancel"], client)
                    assert exchange.record().position(APT) == 3
        await asyncio.to_thread(KEEPING["exit"], client)
        server.kill()
        await asyncio.to_thread(KEEPING["exit"], client)
        assert exchange.record().position(APT) == 1
        await asyncio.to_thread(guard.close)


async def test_leases_may_be_taken_in_another_thread_than_the_one_that_orders(
    exchange: LocalExchange,
) -> None:
    client = client_of(exchange.url)
    await asyncio.to_thread(client.load_markets)
    mine: list[Lease] = []
    gate_orders(client, leases=lambda: mine)
    await refused(partial(OPENING["create_order"], client), LeaseNotHeld)
    with lease() as held:
        mine.append(held)
    await asyncio.to_thread(OPENING["create_order"], client)
    assert exchange.record().position(APT) == 1


async def test_reads_go_on_whatever_became_of_the_lease(client: Any) -> None:
    with lease() as lost:
        lost.mark_lost(LossReason.EXPIRED)
        assert await asyncio.to_thread(client.fetch_positions, [APT]) == []


async def test_a_lease_with_too_little_left_sends_nothing(exchange: LocalExchange, client: Any) -> None:
    with lease(seconds=0.3):
        await refused(lambda: client.create_order(APT, "market", "buy", 1), LeaseLost)
    assert exchange.record().orders == ()


async def test_each_of_several_orders_needs_its_own_lease(exchange: LocalExchange, client: Any) -> None:
    both = [{"symbol": symbol, "type": "market", "side": "buy", "amount": 1} for symbol in (APT, BTC)]
    with lease():
        assert "binance:BTCUSDT" in await refused(lambda: client.create_orders(both), LeaseNotHeld)
    with lease(), lease("binance:BTCUSDT") as lost:
        lost.mark_lost(LossReason.EXPIRED)
        await refused(lambda: client.create_orders(both), LeaseLost)
    assert exchange.record().orders == ()


async def test_an_order_that_ccxts_rate_limiter_held_back_too_long_is_not_sent(
    exchange: LocalExchange, client: Any
) -> None:
    with lease() as held:
        client.enableRateLimit, client.throttle = True, lambda _: held.mark_lost(LossReason.EXPIRED)
        await refused(lambda: client.create_order(APT, "market", "buy", 1), LeaseLost)
    assert exchange.record().orders == ()


async def test_an_order_whose_connection_took_too_long_is_not_sent(tmp_path: Path) -> None:
    """ccxt waits up to ten seconds for a connection, and for each step of TLS."""
    tls = issued(tmp_path / "tls", trustme.CA())
    async with (
        LocalExchange(symbols=[APT], tls=(tls.certificate, tls.key)) as exchange,
        FaultProxy(int(exchange.url.rpartition(":")[2])) as proxy,
    ):
        client = client_of(f"https://127.0.0.1:{proxy.port}", validateServerSsl=str(tls.authority))
        await asyncio.to_thread(client.load_markets)
        gate_orders(client)
        client.session.close()
        proxy.to_server.set(HOLD)
        already = proxy.to_server.received_bytes
        with lease() as held:
            order = asyncio.create_task(
                refused(lambda: client.create_order(APT, "market", "buy", 1), LeaseLost)
            )
            await proxy.to_server.wait_received(already + 1)  # the first message of the handshake
            held.mark_lost(LossReason.EXPIRED)
            proxy.heal()
            await order
        assert exchange.record().orders == ()
        with lease():
            await asyncio.to_thread(client.create_order, APT, "market", "buy", 1)
        assert exchange.record().position(APT) == 1
        client.close()


def with_repetitions(client: Any) -> None:
    repeat = Retry(3, allowed_methods=None, status_forcelist=[503], backoff_factor=0)
    client.session.mount("http://", HTTPAdapter(max_retries=repeat))


REPEATING: dict[str, tuple[Callable[[Any], None], dict[str, Any]]] = {
    "an adapter": (with_repetitions, {}),
    "an option": (lambda client: client.options.update(maxRetriesOnFailure=3), {}),
    "a parameter": (lambda client: None, {"maxRetriesOnFailure": 3}),
}


@pytest.mark.parametrize("kind", [FaultKind.DISCONNECT, FaultKind.UNAVAILABLE])
@pytest.mark.parametrize(("change", "params"), REPEATING.values(), ids=REPEATING)
async def test_an_order_whose_answer_was_lost_is_not_sent_again(
    exchange: LocalExchange,
    client: Any,
    kind: FaultKind,
    change: Callable[[Any], None],
    params: dict[str, Any],
) -> None:
    """By whatever has been told to repeat requests after the gate was installed."""
    change(client)
    exchange.inject(Fault(kind, Operation.CREATE_ORDER, Execution.FIRST, times=9))
    with lease(), pytest.raises(ccxt.OperationFailed):
        await asyncio.to_thread(client.create_order, APT, "market", "buy", 1, None, params)
    assert exchange.record().position(APT) == 1


async def test_an_order_passes_a_proxys_tunnel(tmp_path: Path) -> None:
    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        to_server = await asyncio.open_connection(*asked.split(":"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(copied(reader, to_server[1]), copied(to_server[0], writer))

    async def copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    tls = issued(tmp_path / "tls", trustme.CA())
    async with (
        LocalExchange(symbols=[APT], tls=(tls.certificate, tls.key)) as exchange,
        await asyncio.start_server(tunnel, "127.0.0.1") as proxy,
    ):
        url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        client = client_of(exchange.url, validateServerSsl=str(tls.authority), httpsProxy=url)
        gate_orders(client)
        with lease():
            await asyncio.to_thread(client.create_order, APT, "market", "buy", 1)
        assert exchange.record().position(APT) == 1
        client.close()


async def test_an_adapter_that_is_mounted_later_checks_too(exchange: LocalExchange, client: Any) -> None:
    class Late(HTTPAdapter):
        def send(self, *args: Any, **kwargs: Any) -> Any:
            held.mark_lost(LossReason.EXPIRED)  # as after a connection that took too long
            return super().send(*args, **kwargs)

    client.session.mount("http://", Late())
    with lease() as held:
        await refused(lambda: client.create_order(APT, "market", "buy", 1), LeaseLost)
    assert exchange.record().orders == ()


async def test_a_request_past_all_of_ccxts_calls_is_checked(exchange: LocalExchange, client: Any) -> None:
    await refused(lambda: client.fetch(f"{exchange.url}/fapi/v1/order", "POST", {}, "a=b"), LeaseNotHeld)


# --- what it is given ---


def test_an_adapter_that_cannot_be_checked_is_refused_in_one_line() -> None:
    class Other(BaseAdapter):
        pass

    client: Any = ccxt.binanceusdm()
    client.session.mount("https://", Other())
    with pytest.raises(ConfigurationError, match="the adapter Other") as refused:
        gate_orders(client)
    assert "\n" not in str(refused.value)


async def test_each_kind_of_client_is_refused_by_the_other_kinds_gate(exchange: LocalExchange) -> None:
    async with ccxt.async_support.binanceusdm() as asyncio_one:
        with pytest.raises(ConfigurationError, match="give it to GuardedExchange") as refused:
            gate_orders(asyncio_one)
        assert "\n" not in str(refused.value)
        with pytest.raises(ConfigurationError, match="give it to GuardedExchange"):
            gate_orders(GuardedExchange(asyncio_one))
    with pytest.raises(ConfigurationError, match=r"give this one to gate_orders\(\)") as refused:
        GuardedExchange(ccxt.binanceusdm())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("what", "options", "remedy"),
    [
        (object(), {}, "is no exchange of ccxt"),
        (ccxt.binanceusdm({"options": {"maxRetriesOnFailure": 3}}), {}, "set it to 0"),
        (ccxt.binanceusdm(), {"account": "Scalper"}, "account label 'Scalper'"),
        (ccxt.binanceusdm(), {"needed": 1}, "needed"),
        (ccxt.binanceusdm(), {"guard": "redis://localhost"}, "give a LockGuard of lockguard.sync"),
        (
            ccxt.binanceusdm(),
            {"guard": lockguard.LockGuard.in_memory()},
            "give a LockGuard of lockguard.sync",
        ),
    ],
)
def test_what_cannot_be_gated_is_refused_in_one_line(what: Any, options: Any, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy) as refused:
        gate_orders(what, **options)
    assert "\n" not in str(refused.value)


def test_a_second_gate_is_the_first_and_for_another_account_it_is_refused() -> None:
    client = ccxt.binanceusdm()
    gate = gate_orders(client, account="scalper")
    assert gate_orders(client, account="scalper") is gate
    assert gate.resource("APT/USDT:USDT") == "binance@scalper:APTUSDT"
    with pytest.raises(ConfigurationError, match="binance@scalper already"):
        gate_orders(client)


def test_a_sale_on_the_spot_market_opens_nothing_unless_it_borrows() -> None:
    client = ccxt.binance()
    client.markets = {"APT/USDT": {"symbol": "APT/USDT", "spot": True}}
    sent: list[Any] = []
    client.create_order = lambda symbol, kind, side, amount, price=None, params=None: sent.append(params)
    gate_orders(client)
    client.create_order("APT/USDT", "market", "sell", 1)
    with pytest.raises(ccxt.ExchangeError, match="not sent"):
        client.create_order("APT/USDT", "market", "sell", 1, None, {"marginMode": "cross"})
    with pytest.raises(ccxt.ExchangeError, match="not sent"):
        client.create_order("APT/USDT", "market", "buy", 1)
    assert sent == [None]


async def test_a_ban_is_kept_to_and_no_error_shows_the_signature(
    exchange: LocalExchange, client: Any
) -> None:
    exchange.ban(timedelta(hours=1))
    for _ in range(3):
        with pytest.raises(ccxt.DDoSProtection):
            await asyncio.to_thread(client.fetch_ticker, APT)
    assert len(exchange.record().banned_requests()) == 1
