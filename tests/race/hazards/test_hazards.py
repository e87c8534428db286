"""What takes money from an unguarded bot, put on it and on the guarded one: harm there, none here.

Each test runs twice, with the same schedule and the same faults. What is expected of the unguarded bot is the
harm: a test of a hazard that does no harm to anybody would prove nothing.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import nullcontext
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from lockguard.errors import LockguardError
from lockguard_lab.child_process import signal_child
from lockguard_lab.exchange import Execution, FaultKind, Operation
from lockguard_positions import ExchangeUnreadable

APT = "APT/USDT:USDT"
BTC = "BTC/USDT:USDT"
DATED = "BTC/USDT:USDT-301227"

# Of a symbol: the most and the least that was ever held, what is held now, stops that wait, open rows.
SOUND = (10, 0, 10, 1, 1)
FLAT = (10, 0, 0, 0, 0)

RECOVERED_WITHIN_S = 1 + 5
"""The time to live of the killed process's lease, and five seconds."""


# --- two at once ---


async def test_two_instances_with_the_same_signal_open_one_position(world: Any) -> None:
    met = asyncio.Event()
    world.one.wire.before["stop"] = world.two.wire.before["stop"] = met.wait
    more = world.either(naive={}, guarded={"wait": timedelta(0)})
    opens = [asyncio.create_task(bot.open(**more)) for bot in (world.one, world.two)]
    await world.until(lambda: len(bought(world)) == 2 or any(task.done() for task in opens))
    met.set()
    told = sorted([await task for task in opens], key=lambda text: text == "opened")
    assert told[1] == "opened"
    assert world.either("idx_unique_active_position", ": open long") in told[0]
    # The unguarded ones bought twice, and two stops wait for one position.
    assert await world.picture() == world.either(naive=(20, 0, 10, 2, 1), guarded=SOUND)


async def test_a_second_open_in_the_window_of_the_first_buys_nothing(world: Any) -> None:
    met = asyncio.Event()
    world.one.wire.before["stop"] = met.wait
    first = asyncio.create_task(world.one.open())
    await world.until(lambda: bought(world))
    second = asyncio.create_task(world.two.open())
    if world.kind == "naive":
        await second
    else:
        while not (await world.two.guard.inspect("binance:APTUSDT")).waiters:
            await asyncio.sleep(0.005)
    met.set()
    await first
    assert await second == world.either(
        naive="opened", guarded="binance:APTUSDT is open long already (row 1)"
    )
    assert await world.picture() == world.either(naive=(20, 0, 10, 2, 1), guarded=SOUND)


async def test_twenty_five_opens_at_once_all_succeed_though_the_exchange_is_busy(world: Any) -> None:
    """It refuses every other entry three times, as it does in a burst of them."""
    symbols = world.exchange.symbols[:25]
    for symbol in symbols[::2]:
        name = symbol.partition(":")[0].replace("/", "")
        world.fault(FaultKind.RATE_LIMITED, Operation.CREATE_ORDER, symbol=name, times=3)
    told = await asyncio.gather(*(world.one.open(symbol, world.smallest(symbol)) for symbol in symbols))
    assert world.struck(FaultKind.RATE_LIMITED) == 39
    assert told.count("opened") == world.either(naive=12, guarded=25)
    record = world.exchange.record()
    # Rolled back was what had never been entered: sold short, and without a stop.
    assert sum(position.qty < 0 for position in record.positions) == world.either(naive=13, guarded=0)
    assert len(record.without_stop()) == world.either(naive=13, guarded=0)


# --- answers that are lost, processes that are ---


async def test_an_entry_whose_answer_is_lost_is_not_bought_again(world: Any) -> None:
    world.fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, execution=Execution.FIRST)
    assert await world.one.open() == "opened"
    assert world.struck(FaultKind.DISCONNECT) == 1
    (quantity,) = await world.pool.fetchrow("select quantity from monitoring.positions")
    assert (quantity, world.exchange.record().open_stops(APT)[0].qty) == (10, 10)
    assert await world.picture() == world.either(naive=(20, 0, 20, 1, 1), guarded=SOUND)


async def test_a_stop_whose_answer_is_lost_three_times_leaves_no_orphan(world: Any) -> None:
    world.fault(FaultKind.DISCONNECT, Operation.CREATE_ALGO, execution=Execution.FIRST, times=3)
    await world.one.open()
    assert world.struck(FaultKind.DISCONNECT) == world.either(naive=3, guarded=1)
    world.exchange.clear_faults()
    assert len(world.exchange.record().orphan_stops()) == world.either(naive=3, guarded=0)
    await world.one.close()
    # The next position, with its own stop at 8.232, meets what was left of the last one, at 8.33.
    world.exchange.set_price(APT, Decimal("8.4"))
    assert await world.one.open() == "opened"
    world.exchange.set_price(APT, Decimal("8.3"))
    assert await world.picture() == world.either(naive=(10, 0, 0, 1, 1), guarded=SOUND)


async def test_what_a_killed_process_left_is_made_true_when_it_is_started_again(world: Any) -> None:
    world.fault(FaultKind.HANG, Operation.CREATE_ALGO, hold_ms=60_000)
    await die_waiting_for_the_stop(world)
    assert await world.picture() == (10, 0, 10, 0, 1)
    await world.one.start(within_s=RECOVERED_WITHIN_S)
    # Adopted, then sold as incomplete: an active row of nothing, with a stop that waits.
    assert await world.picture() == world.either(naive=(10, 0, 0, 1, 1), guarded=SOUND)


async def die_waiting_for_the_stop(world: Any) -> None:
    """Open in a process of its own, which is killed when the exchange has been asked for the stop."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("victim.py")), stdin=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdin is not None
        orders = {"kind": world.kind, "price": str(world.exchange.price(APT)), "urls": world.urls}
        process.stdin.write(json.dumps(orders).encode())
        process.stdin.write_eof()
        await world.until(lambda: world.orders(Operation.CREATE_ALGO) or process.returncode is not None)
    finally:
        signal_child(process, signal.SIGKILL)
        ended = await process.wait()
    assert ended == -signal.SIGKILL


async def test_a_database_that_is_gone_after_the_fill_loses_nothing(mortal: Any) -> None:
    world, server = mortal
    world.one.wire.after["entry"] = lambda: asyncio.to_thread(server.kill)
    with pytest.raises((LockguardError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await world.one.open()
    await asyncio.to_thread(server.restart)
    assert (await world.picture())[2:] == world.either(naive=(0, 0, 1), guarded=(10, 0, 1))
    await world.two.start()
    # It was sold at once, the row did not say so, and so it was sold again.
    assert await world.picture() == world.either(naive=(10, -10, -10, 0, 0), guarded=SOUND)


# --- reads that fail or lag ---


async def test_a_failed_read_of_positions_closes_no_row(world: Any) -> None:
    await world.one.open()
    world.fault(FaultKind.UNAVAILABLE, Operation.POSITIONS, times=3)
    with world.either(nullcontext(), pytest.raises(ExchangeUnreadable)):
        await world.one.sync()
    world.exchange.clear_faults()
    status = await world.pool.fetchval("select status from monitoring.positions")
    assert status == world.either(naive="closed", guarded="active")
    await world.one.open()
    assert await world.picture() == world.either(naive=(20, 0, 20, 2, 1), guarded=SOUND)


async def test_a_fill_that_shows_late_is_no_reason_to_close(world: Any) -> None:
    world.exchange.set_visibility(positions=timedelta(seconds=4.5))
    if world.kind == "naive":
        await open_if_it_shows(world.one.client)
        assert await world.picture() == (10, 0, 0, 0, 0)
        return
    assert await world.one.open() == "opened"
    await world.one.sync()
    assert await world.picture() == SOUND


async def open_if_it_shows(client: Any) -> None:
    """The entry as bots settle it: wait, look at the list, and undo what is not in it."""
    await client.create_order(APT, "market", "buy", 10)
    await asyncio.sleep(0.15)  # for three seconds, in its time
    if not any(position["symbol"] == APT for position in await client.fetch_positions()):
        await client.create_order(APT, "market", "sell", 10)
        return
    await client.create_order(APT, "market", "sell", 10, None, {"stopLossPrice": 8.33, "reduceOnly": True})


# --- ways out ---


async def test_a_position_that_is_gone_before_the_emergency_close_is_not_turned_round(world: Any) -> None:
    async def sell_by_hand() -> None:
        await world.hand.create_order(APT, "market", "sell", 10, None, {"reduceOnly": True})

    never = "Precision is over the maximum defined for this asset."
    world.fault(FaultKind.REJECTED, Operation.CREATE_ALGO, times=3, code=-1111, message=never)
    world.one.wire.before["exit"] = sell_by_hand
    if world.kind == "guarded":
        world.one.manager = world.one.managed(grace=timedelta(seconds=1))
    await world.one.open()
    assert world.one.wire.acted == 1
    if world.kind == "guarded":
        await world.one.start()  # until the row is old enough for one empty list to be believed
    assert await world.picture() == world.either(naive=(10, -10, -10, 0, 0), guarded=FLAT)


async def test_a_stop_that_would_trigger_at_once_is_an_exit_and_not_tried_again(world: Any) -> None:
    falling = iter(["8.2", "8.0", "7.8"])

    async def fall() -> None:
        world.exchange.set_price(APT, Decimal(next(falling)))

    world.one.wire.before["stop"] = fall
    await world.one.open()
    assert world.orders(Operation.CREATE_ALGO) == world.either(naive=3, guarded=1)
    left_at = world.exchange.record().fills[-1].price
    assert left_at == world.either(naive=Decimal("7.8"), guarded=Decimal("8.2"))
    assert await world.picture() == FLAT


async def test_a_stop_and_an_exit_at_once_leave_no_short(world: Any) -> None:
    async def fall() -> None:
        world.exchange.set_price(APT, Decimal(8))

    await world.one.open()
    world.one.wire.before["exit"] = fall
    await world.one.close()
    assert world.one.wire.acted == 1
    assert await world.picture() == world.either(naive=(10, -10, -10, 0, 0), guarded=FLAT)


# --- numbers and names ---


@pytest.mark.parametrize(
    ("symbol", "asked", "naive"), [(BTC, "0.057", "0"), ("ETH/USDT:USDT", "0.7", "1"), (APT, "10.5", "10")]
)
async def test_a_step_is_not_a_number_of_digits(world: Any, symbol: str, asked: str, naive: str) -> None:
    quantity = Decimal(asked)
    if world.kind == "naive":
        quantity = in_digits(world.one.client, symbol, quantity)
    with nullcontext() if quantity else pytest.raises(asyncpg.CheckViolationError):
        await world.one.open(symbol, quantity)
    assert world.exchange.record().position(symbol) == Decimal(world.either(naive, asked))


def in_digits(client: Any, symbol: str, quantity: Decimal) -> Decimal:
    """As bots round that were written when ccxt still gave digits: the precision is a step, 0.001."""
    return Decimal(round(float(quantity), int(client.market(symbol)["precision"]["amount"])))


async def test_one_contract_spelt_two_ways_is_one_position(world: Any) -> None:
    for name in ("APTUSDT", APT):
        if world.kind == "naive":
            await open_by_name(world, name)
        else:
            await world.one.open(name)
    record = world.exchange.record()
    assert (len(record.entries(APT)), record.position(APT)) == world.either(naive=(2, 20), guarded=(1, 10))


async def open_by_name(world: Any, name: str) -> None:
    """Looks for a row of the name that the signal has."""
    find = "select 1 from monitoring.positions where symbol = $1 and status = 'active'"
    if await world.pool.fetchval(find, name):
        return
    await world.one.client.create_order(name, "market", "buy", 10)
    await protect(world.one.client, name, 10)
    await world.pool.execute(
        "insert into monitoring.positions (exchange, symbol, side, quantity, status)"
        " values ('binance', $1, 'long', 10, 'active')",
        name,
    )


async def test_a_dated_future_is_not_taken_for_the_perpetual(world: Any) -> None:
    """The perpetual is open, and somebody buys the future of the same coin: it needs a stop of its own."""
    await world.one.open(BTC, Decimal("0.01"))
    await world.hand.create_order(DATED, "market", "buy", 0.01)
    await (protect_by_name(world) if world.kind == "naive" else world.one.sync())
    without = tuple(position.symbol for position in world.exchange.record().without_stop())
    assert without == world.either(naive=("BTCUSDT_301227",), guarded=())
    rows = await world.pool.fetch(
        "select symbol from monitoring.positions where status = 'active' order by id"
    )
    assert [row[0] for row in rows] == world.either(naive=["BTCUSDT"], guarded=["BTCUSDT", DATED])


async def protect_by_name(world: Any) -> None:
    """A pass that compares names as text, brought to one form as bots do it."""
    known = {row[0] for row in await world.pool.fetch("select symbol from monitoring.positions")}
    for position in await world.one.client.fetch_positions():
        if position["symbol"].replace("/", "").split(":")[0] not in known:
            await protect(world.one.client, position["symbol"], position["contracts"])


async def protect(client: Any, symbol: str, amount: float) -> None:
    trigger = (await client.fetch_ticker(symbol))["last"] * 0.98
    await client.create_order(
        symbol, "market", "sell", amount, None, {"stopLossPrice": trigger, "reduceOnly": True}
    )


def bought(world: Any) -> tuple[Any, ...]:
    entries: tuple[Any, ...] = world.exchange.record().entries(APT)
    return entries
