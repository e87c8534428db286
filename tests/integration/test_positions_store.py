"""What each statement of the positions' tables writes and reads, one by one, on a real Postgres."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from lockguard._lease import Lease, Resource
from lockguard_asyncpg import install
from lockguard_ccxt import Step
from lockguard_lab.servers import PostgresServer
from lockguard_positions import PositionStatus, migrate
from lockguard_positions._errors import PositionChanged
from lockguard_positions._model import IntentOutcome, NewPosition, Position, PositionSide, Progress
from lockguard_positions._store import PositionStore
from tests.integration.fence_leases import held
from tests.unit.positions_in_memory import own_stop


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


async def test_stops_in_doubt_are_loose_only_once_their_position_has_ended(symbol: Symbol) -> None:
    row = await symbol.active()
    await symbol.store.expect_move(symbol.lease, row, Decimal(98))
    assert await symbol.store.loose_stops("binance", symbol.symbol) == ()
    assert symbol.symbol in await symbol.store.symbols_with_loose_stops("binance")
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


async def test_the_profit_of_a_short_is_what_the_price_has_fallen(symbol: Symbol) -> None:
    for side, profit in ((PositionSide.LONG, Decimal(-6)), (PositionSide.SHORT, Decimal(6))):
        row = await symbol.active(side)
        assert await symbol.store.tick(row.id, Decimal(100))
        query = "select unrealized_pnl from monitoring.positions where id = $1"
        assert await symbol.pool.fetchval(query, row.id) == profit
        await symbol.store.finish(symbol.lease, row, PositionStatus.CLOSED)
        assert not await symbol.store.tick(row.id, Decimal(100))
