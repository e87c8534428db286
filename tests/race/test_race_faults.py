"""Each fault of the exchange at each call of the flow, and the database gone at the worst moment.

Whatever the answer, and whenever the exchange carries the request out, if at all: after recovery there is no
double entry, no stop without a position, no position that was ever turned round, and the table is true.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import asyncpg
import pytest

from lockguard import LockGuard
from lockguard.errors import LeaseLost, LockguardError
from lockguard_asyncpg import PostgresFence, install
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_lab.exchange import Execution, Fault, FaultKind, LocalExchange, Operation, connect
from lockguard_lab.servers import PostgresServer
from lockguard_positions import AtomicPositionManager, Opened, Pace, PositionError, migrate

K, X = FaultKind, Execution
MS = timedelta(milliseconds=1)
HOLD_MS = 400
WITHIN = timedelta(seconds=20)
"""Generous, as the machine may be busy: the exchange takes late orders for two seconds."""

long_leases = pytest.mark.parametrize("stage", [timedelta(seconds=10)], indirect=True, ids=[""])
"""A lease that is lost to a busy machine in an open would keep the faults of the close from being met."""

IN_DOUBT = [K.UNAVAILABLE, K.TIMEOUT, K.HANG, K.DISCONNECT, K.TRUNCATED]
REFUSALS = [K.OVERLOADED, K.RATE_LIMITED, K.CLOCK, K.REJECTED]


class Case(NamedTuple):
    """One fault, as often as it strikes."""

    kind: FaultKind
    execution: Execution
    times: int


CASES = [
    *(Case(kind, execution, 1) for kind in IN_DOUBT for execution in Execution),
    *(Case(kind, X.FIRST, 3) for kind in IN_DOUBT),
    *(Case(kind, X.NEVER, 1) for kind in REFUSALS),
    *(Case(kind, X.NEVER, 3) for kind in REFUSALS[:3]),
    *(Case(K.DELAY, execution, 1) for execution in (X.NEVER, X.FIRST)),
]
"""All kinds, with all that the exchange may have done meanwhile."""


class Call(NamedTuple):
    """A call of the flow: where its faults strike, and what is needed for it to be made at all."""

    operation: Operation
    skip: int = 0
    lost: Operation | None = None


CALLS = {
    "price": Call(Operation.TICKER),
    "entry": Call(Operation.CREATE_ORDER),
    "stop": Call(Operation.CREATE_ALGO),
    "close": Call(Operation.CREATE_ORDER, skip=1),
    "cancel": Call(Operation.CANCEL_ALGO),
    "look for the entry": Call(Operation.GET_ORDER, lost=Operation.CREATE_ORDER),
    "look for the stop": Call(Operation.GET_ALGO, lost=Operation.CREATE_ALGO),
    "list stops": Call(Operation.OPEN_ALGOS),
    "list orders": Call(Operation.OPEN_ORDERS),
}


async def through_the_flow(stage: Any, symbol: str) -> None:
    """Open and close, going on after whatever may be raised as a bot does: by letting recovery finish it."""
    price, quantity = stage.exchange.price(symbol), stage.quantity_of(symbol)
    try:
        opened = await stage.manager.open_position_atomic(
            "s", symbol, "binance", "long", quantity, price, "2"
        )
        if isinstance(opened, Opened):
            await stage.manager.close_position(symbol, "binance")
    except (LeaseLost, PositionError):
        pass


def turned_round(stage: Any, symbol: str) -> bool:
    held = lowest = Decimal(0)
    for fill in stage.exchange.record().fills:
        if fill.symbol == stage.plain(symbol):
            held += fill.qty * fill.side.sign
            lowest = min(lowest, held)
    return lowest < 0


@long_leases
@pytest.mark.parametrize("call", list(CALLS))
async def test_no_fault_of_a_call_doubles_turns_or_orphans(stage: Any, call: str) -> None:
    operation, skip, lost = CALLS[call]
    cases = [case for case in CASES if operation.writes or case.execution is X.NEVER]
    symbols = stage.exchange.symbols[: len(cases)]
    assert len(symbols) == len(cases)
    for symbol, (kind, execution, times) in zip(symbols, cases, strict=True):
        name = stage.plain(symbol)
        if lost is not None:
            stage.exchange.inject(Fault(K.DISCONNECT, lost, X.FIRST, symbol=name))
        stage.exchange.inject(
            Fault(
                kind,
                operation,
                execution,
                symbol=name,
                skip=skip,
                times=times,
                hold_ms=HOLD_MS,
                code=-2019,
                message="Margin is insufficient.",
            )
        )
    await asyncio.gather(*(through_the_flow(stage, symbol) for symbol in symbols))
    await asyncio.sleep(1.5 * HOLD_MS / 1000)  # what is carried out late has arrived
    await stage.recover(WITHIN)
    record = stage.exchange.record()
    struck = {request.outcome for request in record.requests if request.operation is operation}
    assert len(struck) > len({case.kind for case in cases}) / 2, struck
    for symbol in symbols:
        await stage.sound(symbol)
        assert not turned_round(stage, symbol), symbol
    assert record.orphan_stops() == record.without_stop() == ()


@long_leases
async def test_no_fault_of_reading_positions_makes_or_ends_one(stage: Any) -> None:
    """Such a read names no symbol, so the faults strike whoever reads."""
    symbols = stage.exchange.symbols[:10]
    for kind in (*IN_DOUBT, *REFUSALS[:3], K.DELAY):
        stage.exchange.inject(Fault(kind, Operation.POSITIONS, times=4, hold_ms=HOLD_MS))
    await asyncio.gather(*(through_the_flow(stage, symbol) for symbol in symbols))
    while True:
        try:
            await stage.recover(WITHIN)
        except PositionError:
            continue
        break
    for symbol in symbols:
        await stage.sound(symbol)
        assert not turned_round(stage, symbol)


async def test_the_database_gone_right_after_the_fill_loses_nothing(redis_url: str) -> None:
    """The intent is in the table: when the database is back, recovery finds the order and places its stop."""
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        server = await stack.enter_async_context(PostgresServer())
        pool = await stack.enter_async_context(asyncpg.create_pool(server.url, min_size=1, max_size=5))
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
        guard = await stack.enter_async_context(
            LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=timedelta(seconds=2))
        )
        client = connect(exchange.url, config={"options": {"recvWindow": 1000}})
        stack.push_async_callback(client.close)
        guarded = GuardedExchange(client, patience=Patience(needed=100 * MS, search=300 * MS, poll=20 * MS))
        await guarded.load()
        manager = AtomicPositionManager(guard, pool, [guarded], pace=Pace(poll=20 * MS, grace=0 * MS))
        exchange.inject(Fault(K.DELAY, Operation.CREATE_ORDER, X.FIRST, hold_ms=500))
        opening = asyncio.create_task(
            manager.open_position_atomic("s", "APTUSDT", "binance", "long", "10", "8.5", "2")
        )
        while not exchange.record().position("APTUSDT"):
            assert not opening.done(), opening.result()
            await asyncio.sleep(0.005)
        await asyncio.to_thread(server.kill)
        with pytest.raises((LockguardError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await opening
        assert (exchange.record().position("APTUSDT"), exchange.record().algo_orders) == (Decimal(10), ())
        await asyncio.to_thread(server.restart)
        async with asyncio.timeout(WITHIN.total_seconds()):
            while True:
                report = await manager.recover("binance")
                if report.settled and report.outcomes:
                    break
                await asyncio.sleep(0.05)
        assert [outcome.action.value for outcome in report.outcomes] == ["recovered"]
        (row,) = await pool.fetch("select * from monitoring.positions")
        record = exchange.record()
        (stop,) = record.open_stops("APTUSDT")
        assert (row["status"], row["stop_client_id"], stop.qty) == ("active", stop.client_id, Decimal(10))
        assert len(record.entries("APTUSDT")) == 1
