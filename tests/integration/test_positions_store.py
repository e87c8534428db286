"""What each statement of the positions' tables writes and reads, one by one, on a real Postgres."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any
from unittest.mock import ANY

import asyncpg
import pytest

from lockguard._lease import Lease, Resource
from lockguard_asyncpg import install
from lockguard_ccxt import OrderState, PlacedOrder, Step
from lockguard_lab.servers import PostgresServer
from lockguard_positions import PositionStatus, migrate
from lockguard_positions._errors import PositionChanged
from lockguard_positions._model import Intent, IntentOutcome, NewPosition, Position, PositionSide, Progress
from lockguard_positions._rows import PART
from lockguard_positions._store import PositionStore
from tests.integration.fence_leases import held
from tests.unit.positions_in_memory import order, own_stop


@pytest.fixture(scope="module")
def tables_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with the tables; each test has a symbol of its own."""
    name = f"test_{secrets.token_hex(6)}"
    url = postgres_server.create_database(name)

    async def prepare() -> None:
        conn = await asyncpg.connect(url)
        await install(conn)
        await migrate(conn)
        await conn.close()

    asyncio.run(prepare())
    yield url
    postgres_server.drop_database(name)


class Symbol:
    """One symbol's rows, and the lease on it."""

    def __init__(self, pool: asyncpg.Pool[Any], lease: Lease, symbol: str) -> None:
        self.pool = pool
        self.store = PositionStore(pool)
        self.lease = lease
        self.symbol = symbol

    async def begin(self, side: PositionSide = PositionSide.LONG, **more: Any) -> Progress:
        new = NewPosition(
            *("binance", self.symbol, side, Decimal(10), Decimal(100), Decimal(2)), "s", market="X/USDT:USDT"
        )
        return await self.store.begin(self.lease, new, **more)

    async def entered(self, side: PositionSide = PositionSide.LONG) -> Progress:
        """With the fill of six at 101 and the intent of its stop."""
        begun = await self.begin(side)
        return await self.store.record_entry(
            self.lease,
            begun.position,
            begun.intent,
            order_id="e1",
            price=Decimal(101),
            quantity=Decimal(6),
            stop=Decimal(99),
        )

    async def active(self, side: PositionSide = PositionSide.LONG) -> Position:
        progress = await self.entered(side)
        assert progress.intent is not None
        return await self.store.activate(self.lease, progress.position, progress.intent, "s1")

    async def intents(self) -> list[asyncpg.Record]:
        return await self.pool.fetch(
            "select * from monitoring.position_intents where symbol = $1 order by number", self.symbol
        )


@pytest.fixture
async def symbol(tables_url: str) -> AsyncIterator[Symbol]:
    async with asyncpg.create_pool(tables_url, min_size=1, max_size=4) as pool:
        name = f"S{secrets.token_hex(4).upper()}USDT"
        yield Symbol(pool, await held(pool, 7, Resource(f"binance:{name}")), name)


@pytest.mark.parametrize(
    ("side", "enters", "leaves"), [(PositionSide.LONG, "buy", "sell"), (PositionSide.SHORT, "sell", "buy")]
)
async def test_each_intent_has_its_side_its_amount_and_a_number_of_its_own(
    symbol: Symbol, side: PositionSide, enters: str, leaves: str
) -> None:
    row = await symbol.active(side)
    moving = await symbol.store.expect_move(symbol.lease, row, Decimal(98))
    closing = await symbol.store.expect_close(symbol.lease, row, "exit", asked=True)
    assert moving.intent is not None
    assert closing.intent is not None
    assert (moving.intent.side, closing.intent.side) == (leaves, leaves)
    found = await symbol.intents()
    assert [(one["step"], one["side"], one["amount"]) for one in found] == [
        ("entry", enters, Decimal(10)),
        ("stop", leaves, Decimal(6)),
        ("stop", leaves, Decimal(6)),
        ("close", leaves, Decimal(6)),
    ]
    assert len({one["number"] for one in found}) == 4
    assert len({one["client_id"] for one in found}) == 4
    assert await symbol.store.stop_ids(row) == {one["client_id"] for one in found if one["step"] == "stop"}


async def test_no_number_is_given_twice_also_by_a_table_of_before_or_a_clock_that_was_set_back(
    symbol: Symbol,
) -> None:
    now_us = await symbol.pool.fetchval("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")
    assert await symbol.store.next_intent("binance", symbol.symbol) >= now_us
    await symbol.begin(number=now_us + 10**12)
    assert await symbol.store.next_intent("binance", symbol.symbol) == now_us + 10**12 + 1


async def test_a_fill_settles_the_entry_and_carries_the_intent_of_its_stop(symbol: Symbol) -> None:
    progress = await symbol.entered()
    row = progress.position
    assert (row.status, row.quantity, row.entry_price) == (
        PositionStatus.PENDING_SL,
        Decimal(6),
        Decimal(101),
    )
    assert await symbol.store.in_doubt(row, Step.ENTRY) is None
    doubt = await symbol.store.in_doubt(row, Step.STOP)
    assert doubt is not None
    assert doubt.sent_before
    assert (doubt.trigger, doubt.amount) == (Decimal(99), Decimal(6))
    assert await symbol.store.in_doubt(row, Step.CLOSE) is None


async def test_what_a_person_asked_for_is_still_known_to_the_next_holder(symbol: Symbol) -> None:
    row = await symbol.active()
    for asked in (True, False):
        await symbol.store.expect_close(symbol.lease, row, "exit", asked=asked)
        doubt = await symbol.store.in_doubt(row, Step.CLOSE)
        assert doubt is not None
        assert (doubt.asked, doubt.sent_before) == (asked, True)


async def test_a_settled_intent_does_not_change_again(symbol: Symbol) -> None:
    begun = await symbol.begin()
    assert begun.intent is not None
    for outcome in (IntentOutcome.REFUSED, IntentOutcome.EXECUTED):
        await symbol.store.settle(symbol.lease, begun.position, begun.intent, outcome)
    assert [one["outcome"] for one in await symbol.intents()] == ["refused"]


async def test_a_row_changes_only_from_the_status_that_was_decided_on(symbol: Symbol) -> None:
    row = await symbol.active()
    before = replace(row, status=PositionStatus.PENDING_SL)
    intent = await symbol.store.in_doubt(row, Step.STOP)
    assert intent is None
    made = (await symbol.store.expect_move(symbol.lease, row, Decimal(98))).intent
    assert made is not None
    with pytest.raises(PositionChanged):
        await symbol.store.activate(symbol.lease, before, made, "s2")


async def test_an_ended_row_is_as_old_as_its_end_and_has_the_last_holder_s_token(symbol: Symbol) -> None:
    row = await symbol.active()
    await symbol.pool.execute(
        "update monitoring.positions set opened_at = now() - interval '1 day', token = 3 where id = $1",
        row.id,
    )
    ended = await symbol.store.finish(symbol.lease, row, PositionStatus.CLOSED, reason="exit")
    assert ended.age_ms < 60_000
    assert ended.token == 7
    last = await symbol.store.last_ended("binance", symbol.symbol)
    assert last is not None
    assert (last.id, last.age_ms < 60_000) == (row.id, True)
    assert await symbol.store.open_of("binance", symbol.symbol) is None


@pytest.mark.parametrize("exits", [("5.95",), ("2", "3")])
async def test_an_ended_row_has_what_was_entered_and_an_open_one_what_is_left(
    symbol: Symbol, exits: tuple[str, ...]
) -> None:
    row = await symbol.active()
    closing = await symbol.store.expect_close(symbol.lease, row, "exit", asked=True)
    left = Decimal(6)
    for filled in exits:
        assert closing.intent is not None
        sent = order(closing.intent.client_id, state=OrderState.CLOSED, filled=Decimal(filled))
        closing = await symbol.store.close_rest(symbol.lease, closing.position, closing.intent, sent)
        left -= Decimal(filled)
        assert closing.intent is not None
        assert (closing.position.quantity, closing.intent.amount) == (left, left)
    ended = await symbol.store.finish(
        symbol.lease, closing.position, PositionStatus.CLOSED, intent=closing.intent
    )
    assert ended.quantity == Decimal(6)


@pytest.mark.parametrize("again", [False, True])
async def test_an_adopted_row_whose_stops_have_filled_parts_ends_with_what_was_adopted(
    symbol: Symbol, again: bool
) -> None:
    """A stop that was taken over has no intent that says for how much it was."""
    new = NewPosition(
        *("binance", symbol.symbol, PositionSide.LONG, Decimal(10), Decimal(100), Decimal(2)),
        signal_id=None,
        market="X/USDT:USDT",
    )
    row = await symbol.store.adopt(symbol.lease, new)
    row = await symbol.store.take_over_stop(symbol.lease, row, own_stop(client_id="web_1"))
    row = await symbol.store.stop_filled(symbol.lease, row, Decimal(4), own=True)
    assert (row.quantity, row.stop_client_id) == (Decimal(6), None)
    if again:
        row = await symbol.store.take_over_stop(symbol.lease, row, own_stop(id="s2", client_id="web_2"))
        row = await symbol.store.stop_filled(symbol.lease, row, Decimal(1), own=True)
        assert row.quantity == Decimal(5)
    assert await symbol.store.stops_of(row) == (frozenset({"web_1"}), (ANY,), ())
    ended = await symbol.store.finish(symbol.lease, row, PositionStatus.CLOSED, reason="gone")
    assert ended.quantity == Decimal(10)


async def in_part(symbol: Symbol) -> tuple[Position, Intent]:
    """An active row of which four of ten were filled, with its entry in doubt."""
    begun = await symbol.begin()
    filled = {"order_id": "e1", "price": Decimal(101), "quantity": Decimal(4), "stop": Decimal(99)}
    progress = await symbol.store.record_entry(
        symbol.lease, begun.position, begun.intent, **filled, rests=True
    )
    assert progress.intent is not None
    row = await symbol.store.activate(symbol.lease, progress.position, progress.intent, "s1")
    entry = await symbol.store.in_doubt(row, Step.ENTRY)
    assert entry is not None
    assert (row.quantity, entry.entered_since, entry.amount) == (Decimal(4), Decimal(4), Decimal(10))
    return row, entry


def filled_now(amount: str, price: str = "102") -> PlacedOrder:
    return order("e1", side="buy", filled=Decimal(amount), average=Decimal(price))


async def test_what_an_entry_fills_later_makes_its_row_larger_once(symbol: Symbol) -> None:
    row, _ = await in_part(symbol)
    assert symbol.symbol in await symbol.store.symbols_with_loose_orders("binance")
    before = row
    for said, says in (("7", "7"), ("7", "7"), ("10", "10")):
        row = (await symbol.store.entry_filled(symbol.lease, row, filled_now(said))).position
        assert (row.quantity, row.entry_price, row.token) == (Decimal(says), Decimal(102), 7)
        assert row.age_ms < 60_000
    # A holder that has read the row before all that cannot count a part again.
    again = await symbol.store.entry_filled(symbol.lease, row, filled_now("10"))
    assert again.position.quantity == Decimal(10)
    entry = await symbol.store.in_doubt(before, Step.ENTRY)
    assert entry is not None
    assert entry.entered_since == Decimal(10)
    parts = [one["amount"] for one in await symbol.intents() if one["details"] == PART]
    assert parts == [Decimal(4), Decimal(3), Decimal(3)]
    _, (stop,), _ = await symbol.store.stops_of(row)
    assert (stop.amount, stop.entered_since) == (Decimal(4), Decimal(6))
    await symbol.store.settle(symbol.lease, row, entry, IntentOutcome.EXECUTED)
    assert symbol.symbol not in await symbol.store.symbols_with_loose_orders("binance")


@pytest.mark.parametrize("sold", [True, False])
@pytest.mark.parametrize("again", [True, False])
async def test_what_an_entry_fills_after_all_else_was_closed_is_what_its_row_is_left_with(
    symbol: Symbol, *, sold: bool, again: bool
) -> None:
    row, _ = await in_part(symbol)
    ending = await symbol.store.expect_close(symbol.lease, row, "exit", asked=True)
    assert ending.intent is not None
    by = order(ending.intent.client_id, state=OrderState.CLOSED, filled=Decimal(4)) if sold else None
    left = await symbol.store.entry_filled(
        symbol.lease, ending.position, filled_now("10"), closing=ending.intent, by=by, again=again
    )
    now = left.position
    assert (now.quantity, now.status, now.stop_order_id) == (Decimal(6), PositionStatus.ACTIVE, None)
    assert now.exit_reason == ("exit" if again else None)
    closing = await symbol.store.in_doubt(now, Step.CLOSE)
    assert (closing is not None) is again
    if closing is not None:
        assert left.intent is not None
        assert (closing.asked, closing.amount, closing.number) == (True, Decimal(6), left.intent.number)
    (outcome,) = [one["outcome"] for one in await symbol.intents() if one["number"] == ending.intent.number]
    assert outcome == ("executed" if sold else "absent")
    ended = await symbol.store.finish(symbol.lease, now, PositionStatus.CLOSED, intent=closing)
    assert ended.quantity == Decimal(10)


async def test_the_entry_in_doubt_of_a_row_that_has_ended_is_no_reason_to_look_at_its_symbol_for_ever(
    symbol: Symbol,
) -> None:
    row, _ = await in_part(symbol)
    assert symbol.symbol in await symbol.store.symbols_with_loose_orders("binance")
    await symbol.store.finish(symbol.lease, row, PositionStatus.CLOSED)
    assert await symbol.store.in_doubt(row, Step.ENTRY) is not None
    assert symbol.symbol not in await symbol.store.symbols_with_loose_orders("binance")


async def test_stops_in_doubt_are_loose_only_once_their_position_has_ended(symbol: Symbol) -> None:
    row = await symbol.active()
    await symbol.store.expect_move(symbol.lease, row, Decimal(98))
    assert await symbol.store.loose_stops("binance", symbol.symbol) == ()
    assert symbol.symbol in await symbol.store.symbols_with_loose_orders("binance")
    await symbol.store.finish(symbol.lease, row, PositionStatus.CLOSED)
    (loose,) = await symbol.store.loose_stops("binance", symbol.symbol)
    assert (loose.trigger, loose.sent_before) == (Decimal(98), True)


async def test_a_move_leaves_the_row_with_its_old_stop_until_the_new_one_stands(symbol: Symbol) -> None:
    row = await symbol.active()
    moving = await symbol.store.expect_move(symbol.lease, row, Decimal(98))
    assert (moving.position.stop_price, moving.position.stop_order_id) == (Decimal(99), "s1")
    assert moving.intent is not None
    stands = own_stop("98", id="s2", client_id=moving.intent.client_id)
    moved = await symbol.store.move_stop(symbol.lease, moving.position, moving.intent, stands)
    assert (moved.stop_price, moved.stop_order_id) == (Decimal(98), "s2")
    assert await symbol.store.in_doubt(row, Step.STOP) is None


async def test_a_stop_in_doubt_that_is_taken_over_may_have_another_copy_on_its_way(symbol: Symbol) -> None:
    """Its row must not end before that: Binance takes the id again once its order has ended."""
    row = await symbol.active()
    moving = await symbol.store.expect_move(symbol.lease, row, Decimal(98))
    assert moving.intent is not None
    await symbol.pool.execute(
        "update monitoring.position_intents set recorded_at = recorded_at - interval '1 minute'"
        " where symbol = $1",
        symbol.symbol,
    )
    standing = own_stop(id="s2", client_id=moving.intent.client_id)
    taken = await symbol.store.take_over_stop(symbol.lease, row, standing)
    assert taken.stop_client_id == moving.intent.client_id
    assert await symbol.store.in_doubt(row, Step.STOP) is None
    _, _, (unanswered,) = await symbol.store.stops_of(row)
    assert (unanswered.number, unanswered.may_arrive(10_000)) == (moving.intent.number, True)


async def test_that_a_position_has_ended_is_known_to_the_next_holder_and_no_order_of_it_can_arrive(
    symbol: Symbol,
) -> None:
    row = await symbol.active()
    ended = await symbol.store.expect_close(symbol.lease, row, "gone", ended=True)
    found = await symbol.store.in_doubt(row, Step.CLOSE)
    assert ended.intent is not None
    assert found is not None
    for intent in (ended.intent, found):
        assert (intent.unsent, intent.void, intent.ended, intent.asked) == (True, True, True, False)
        assert not intent.may_arrive(10_000)
    await symbol.store.note_gone(symbol.lease, row, found)  # as by hand, where its market is gone
    assert await symbol.store.in_doubt(row, Step.CLOSE) == replace(found, age_ms=ANY)


async def test_the_profit_of_a_short_is_what_the_price_has_fallen(symbol: Symbol) -> None:
    for side, profit in ((PositionSide.LONG, Decimal(-6)), (PositionSide.SHORT, Decimal(6))):
        row = await symbol.active(side)
        assert await symbol.store.tick(row.id, Decimal(100))
        query = "select unrealized_pnl from monitoring.positions where id = $1"
        assert await symbol.pool.fetchval(query, row.id) == profit
        await symbol.store.finish(symbol.lease, row, PositionStatus.CLOSED)
        assert not await symbol.store.tick(row.id, Decimal(100))
