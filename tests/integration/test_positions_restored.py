"""A database that was restored, whose rows are of before: nothing is sold on their word."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from lockguard_lab.exchange import Execution, FaultKind, Operation, Side
from lockguard_positions import (
    AlreadyOpen,
    NotOpened,
    Opened,
    PositionStatus,
    SyncAction,
)
from tests.integration.test_positions_flow import APT, Bot, bot, two_bots
from tests.integration.test_positions_not_ours import OLD_INTENTS, by_hand, passes, sold

__all__ = ["bot", "two_bots"]


# --- the table of before: a restored database ---


@dataclass
class Dump:
    positions: list[Any]
    intents: list[Any]


async def dump(bot: Bot) -> Dump:
    select = "select to_jsonb(t)::text from monitoring.{} t"
    return Dump(
        [row[0] for row in await bot.pool.fetch(select.format("positions"))],
        [row[0] for row in await bot.pool.fetch(select.format("position_intents"))],
    )


async def restore(bot: Bot, of: Dump) -> None:
    """As a restored database is: the rows of then, all ten minutes old."""
    async with bot.pool.acquire() as conn, conn.transaction():
        await conn.execute("set local session_replication_role = replica")
        await conn.execute("delete from monitoring.position_intents")
        await conn.execute("delete from monitoring.positions")
        for table, rows in (("positions", of.positions), ("position_intents", of.intents)):
            for row in rows:
                await conn.execute(
                    f"insert into monitoring.{table} overriding system value"
                    f" select * from jsonb_populate_record(null::monitoring.{table}, $1::jsonb)",
                    row,
                )
        ago = "interval '10 minutes'"
        await conn.execute(
            f"update monitoring.positions set created_at = created_at - {ago},"
            f" opened_at = opened_at - {ago}, closed_at = closed_at - {ago}"
        )
        await conn.execute(f"update monitoring.position_intents set recorded_at = recorded_at - {ago}")


async def stages_of_an_open(bot: Bot, monkeypatch: pytest.MonkeyPatch) -> dict[str, Dump]:
    """The table as it was after each commit of an open."""
    dumps = {"nothing": await dump(bot)}
    store = bot.manager.store
    write = store._until_done

    async def keep(*args: Any) -> Any:
        result = await write(*args)
        (status,) = {row["status"] for row in await bot.rows()}
        dumps[status] = await dump(bot)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(store, "_until_done", keep)
        assert isinstance(await bot.open(), Opened)
    return dumps


@pytest.mark.parametrize("fall", ["8.5", "8.4", "8.2"])
async def test_a_database_of_any_stage_of_the_open_sells_nothing_and_finds_the_stop(
    bot: Bot, monkeypatch: pytest.MonkeyPatch, fall: str
) -> None:
    """Opened with a stop 10 % away, then restored to each of the commits on the way."""
    opened = bot.manager.open_position_atomic
    monkeypatch.setattr(bot, "open", lambda: opened("s", APT, "binance", "long", "10", "8.5", "10"))
    dumps = await stages_of_an_open(bot, monkeypatch)
    assert set(dumps) == {"nothing", "pending_entry", "pending_sl", "active"}
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.set_price(APT, Decimal(fall))
    for stage, then in dumps.items():
        await restore(bot, then)
        await passes(bot, 2)
        rows = [row for row in await bot.rows() if row["status"] == "active"]
        assert [(row["stop_order_id"], row["stop_price"]) for row in rows] == [
            (str(stop.id), stop.trigger)
        ], stage
        record = bot.exchange.record()
        assert (sold(bot), record.position(APT)) == ([], 10), stage
        assert record.open_stops(APT) == (stop,), stage


async def test_a_row_of_before_whose_position_has_ended_does_not_touch_the_one_that_a_person_opened_since(
    bot: Bot,
) -> None:
    await bot.open()
    then = await dump(bot)
    await bot.manager.close_position(APT, "binance")
    bot.exchange.set_price(APT, Decimal("8.6"))
    by_hand(bot)
    bot.exchange.set_price(APT, Decimal("8.1"))
    before = sold(bot)
    await restore(bot, then)
    await passes(bot, 4)
    record = bot.exchange.record()
    assert (sold(bot), record.position(APT)) == (before, 10)
    assert any("not closed without a person's word" in alert for alert in bot.watch.alerts)


async def test_a_row_of_before_and_a_flat_exchange_end_the_row(bot: Bot) -> None:
    await bot.open()
    then = await dump(bot)
    await bot.manager.close_position(APT, "binance")
    await restore(bot, then)
    orders = bot.exchange.record().orders
    assert await bot.sync() == {"APTUSDT": SyncAction.CLOSED}
    assert bot.exchange.record().orders == orders


async def test_a_row_of_before_with_another_stop_gets_the_one_that_stands(bot: Bot) -> None:
    await bot.open()
    then = await dump(bot)
    await bot.manager.move_stop(APT, "binance", "8.45")
    (stop,) = bot.exchange.record().open_stops(APT)
    await restore(bot, then)
    assert await bot.sync() == {"APTUSDT": SyncAction.STOP_TAKEN_OVER}
    (row,) = await bot.rows()
    assert (row["stop_client_id"], row["stop_price"]) == (stop.client_id, Decimal("8.45"))
    assert bot.exchange.record().open_stops(APT) == (stop,)


@pytest.mark.parametrize("asked", [True, False])
async def test_an_exit_of_before_does_not_close_what_is_held_now(bot: Bot, asked: bool) -> None:
    """The intent to close was in doubt when the backup was made; by now another position is there."""
    await bot.open()
    await leave_an_exit(bot, asked=asked)
    then = await dump(bot)
    bot.exchange.trade_by_hand(APT, Side.SELL, Decimal(10), reduce_only=True)
    bot.exchange.trade_by_hand(APT, Side.BUY, Decimal(25))
    await restore(bot, then)
    await passes(bot)
    assert (sold(bot), bot.exchange.record().position(APT)) == ([], 25)


async def leave_an_exit(bot: Bot, *, asked: bool) -> None:
    """As a holder does that dies right before it sends the exit."""
    store = bot.manager.store
    row = await store.open_of("binance", "APTUSDT")
    assert row is not None
    async with bot.guard.hold("binance:APTUSDT") as lease:
        await store.expect_close(lease, row, "a reason", asked=asked)


async def test_an_exit_that_a_person_asked_for_is_finished_by_whoever_comes_next(bot: Bot) -> None:
    await bot.open()
    await leave_an_exit(bot, asked=True)
    await bot.manager.recover("binance")
    assert bot.exchange.record().position(APT) == 10  # the order of who died may still arrive
    await bot.pool.execute(OLD_INTENTS)
    await bot.manager.recover("binance")
    assert bot.exchange.record().position(APT) == 0
    assert (await bot.rows())[0]["status"] == "closed"


async def test_an_exit_that_was_the_flows_own_idea_is_judged_again_and_a_stop_is_better(bot: Bot) -> None:
    await bot.open()
    await leave_an_exit(bot, asked=False)
    await bot.pool.execute(OLD_INTENTS)
    await bot.manager.recover("binance")
    assert (sold(bot), bot.exchange.record().position(APT)) == ([], 10)
    (row,) = await bot.rows()
    assert (row["status"], row["exit_reason"]) == ("active", None)
    assert bot.is_sound()
    assert await bot.sync() == {"APTUSDT": SyncAction.IN_STEP}


async def test_a_second_request_to_close_orders_no_second_exit_beside_one_in_doubt(bot: Bot) -> None:
    """The first could still arrive, and would reduce what is opened once the second has closed the row."""
    await bot.open()
    bot.fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, times=100)
    for reason in ("exit", "exit", "another"):
        row = await bot.manager.close_position(APT, "binance", reason=reason)
        assert row is not None
        assert row.status is PositionStatus.ACTIVE
    requests = bot.exchange.record().requests
    assert len({one.client_id for one in requests if (one.client_id or "").startswith("lgc-")}) == 1
    bot.exchange.clear_faults()
    await bot.pool.execute(OLD_INTENTS)
    await passes(bot)
    assert (bot.exchange.record().position(APT), bot.is_sound()) == (0, True)
    in_doubt = "select count(*) from monitoring.position_intents where settled_at is null"
    assert await bot.pool.fetchval(in_doubt) == 0


def arrived(bot: Bot) -> list[Any]:
    """The exits that have reached the exchange."""
    requests = bot.exchange.record().requests
    return [
        one
        for one in requests
        if one.operation is Operation.CREATE_ORDER and (one.client_id or "").startswith("lgc-")
    ]


async def test_an_exit_that_arrives_late_reduces_nothing_that_was_opened_since(bot: Bot) -> None:
    """The exchange takes an id again once its order has filled: only waiting keeps a second copy away."""
    await bot.open()
    copies = 0
    create = bot.client.create_order

    async def counted(*args: Any) -> Any:
        nonlocal copies
        copies += 1
        return await create(*args)

    bot.client.create_order = counted
    late = {"execution": Execution.LATE, "hold_ms": 700}
    bot.fault(FaultKind.UNAVAILABLE, Operation.CREATE_ORDER, times=3, **late)
    await bot.manager.close_position(APT, "binance")
    async with asyncio.timeout(10):
        while (await bot.rows())[0]["status"] == "active":
            await bot.manager.recover("binance")
    bot.exchange.clear_faults()
    bot.client.create_order = create
    assert isinstance(await bot.open(), Opened)
    async with asyncio.timeout(10):
        while len(arrived(bot)) < copies:
            await asyncio.sleep(0.02)
    assert (bot.exchange.record().position(APT), bot.is_sound()) == (10, True)
    assert len(sold(bot)) == 1


@pytest.mark.parametrize("gone", ["closed by hand", "stopped", "turned", "made smaller"])
async def test_an_exit_is_never_sent_again_once_a_pass_has_seen_that_its_position_is_gone(
    bot: Bot, gone: str
) -> None:
    await bot.open()
    bot.fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, times=3)
    await bot.manager.close_position(APT, "binance")
    bot.exchange.clear_faults()
    match gone:
        case "stopped":
            bot.exchange.set_price(APT, Decimal("8.2"))
            bot.exchange.set_price(APT, Decimal("8.5"))
        case "turned":
            by_hand(bot, "15", Side.SELL)
        case "closed by hand" | "made smaller" as by_person:
            by_hand(bot, "10" if by_person == "closed by hand" else "3", Side.SELL, reduce_only=True)
    await bot.manager.recover("binance")
    (row,) = await bot.rows()
    assert row["status"] == "active"  # the order may still arrive
    (signal,) = [await bot.open()]
    assert signal.passing  # type: ignore[union-attr]
    before = sold(bot)
    by_hand(bot, str(10 - bot.exchange.record().position(APT)))
    await bot.pool.execute(OLD_INTENTS)
    await passes(bot)
    assert (sold(bot), bot.exchange.record().position(APT)) == (before, 10)
    (row, *_) = await bot.rows()
    assert row["status"] == ("active" if gone == "made smaller" else "closed")
    in_doubt = "select count(*) from monitoring.position_intents where settled_at is null"
    assert (await bot.pool.fetchval(in_doubt), bot.is_sound()) == (0, True)


@pytest.mark.parametrize("end", ["an exit", "by hand", "fired"])
@pytest.mark.parametrize("stop", ["first", "moved"])
async def test_a_stop_that_arrives_late_cuts_nothing_short_that_was_opened_since(
    two_bots: tuple[Bot, Bot], stop: str, end: str
) -> None:
    """Its second copy was placed, and its id is free again as soon as that one has ended."""
    first, bot = two_bots
    if stop == "moved":
        await first.open()
    late = {"execution": Execution.LATE, "hold_ms": 1200}
    first.fault(FaultKind.DISCONNECT, Operation.CREATE_ALGO, **late)
    if stop == "moved":
        await first.manager.move_stop(APT, "binance", Decimal("8.4"))
    else:
        await first.open()
    match end:
        case "an exit":
            await first.manager.close_position(APT, "binance")
        case "by hand":
            bot.exchange.trade_by_hand(APT, Side.SELL, Decimal(10), reduce_only=True)
        case _:
            bot.exchange.set_price(APT, Decimal("8.2"))
            bot.exchange.set_price(APT, Decimal("8.5"))
    meanwhile = await bot.open()
    async with asyncio.timeout(20):
        while (await bot.rows())[0]["status"] == "active":
            await bot.sync()
    assert isinstance(meanwhile, Opened) or isinstance(await bot.open(), Opened)
    async with asyncio.timeout(10):
        while not late_stops(bot):
            await asyncio.sleep(0.02)
    assert (bot.exchange.record().position(APT), bot.is_sound()) == (10, True)
    assert isinstance(meanwhile, AlreadyOpen | NotOpened)
    assert meanwhile.passing


def late_stops(bot: Bot) -> list[str]:
    """The requests for a stop that arrived after their sender had given them up."""
    requests = bot.exchange.record().requests
    made = [one.outcome for one in requests if one.operation is Operation.CREATE_ALGO]
    return [outcome for outcome in made if outcome.endswith("late")]


async def test_an_exit_that_was_made_and_is_not_listed_yet_is_not_recorded_as_refused(bot: Bot) -> None:
    """Its holder died after the exchange had carried it out; its successor finds nothing to close."""
    await bot.open()
    await leave_an_exit(bot, asked=True)
    exit_id = await bot.pool.fetchval("select exit_client_id from monitoring.positions")
    bot.exchange.set_visibility(orders=timedelta(milliseconds=250))
    params = {"reduceOnly": True, "clientOrderId": exit_id}
    order = await bot.client.create_order(APT, "market", "sell", 10, None, params)
    await bot.pool.execute(OLD_INTENTS)
    await bot.manager.recover("binance")
    (row,) = await bot.rows()
    assert (row["status"], row["exit_order_id"]) == ("closed", order["id"])
    settled = "select outcome from monitoring.position_intents where step = 'close'"
    assert await bot.pool.fetchval(settled) == "executed"
