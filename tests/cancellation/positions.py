"""Positions: what is written in the table, and the flow on an exchange."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from dataclasses import replace
from decimal import Decimal
from typing import Any

import asyncpg

from lockguard._lease import Resource
from lockguard_asyncpg import install
from lockguard_ccxt import GuardedExchange, OrderState, PlacedOrder
from lockguard_lab.cancellation import Point, cancelled_at
from lockguard_lab.exchange import LocalExchange
from lockguard_lab.fence_race.running import NOISE_OF_CONNECTING
from lockguard_positions import (
    Position,
    PositionSide,
    PositionStatus,
    PositionStore,
    diagnose,
    migrate,
    protect_positions,
    version,
)
from lockguard_positions._model import Intent, IntentOutcome, NewPosition
from lockguard_positions.alerts import AppriseAlerts
from tests.cancellation.exchanges import APT, EXCHANGES_OWN
from tests.cancellation.fences import EmptyDatabaseWorld, PostgresWorld
from tests.cancellation.worlds import Row, World, for_a_day
from tests.integration.fence_leases import held
from tests.integration.test_positions_flow import make_bot

__all__ = ["AlertsWorld", "FlowWorld", "MigrationWorld", "StoreWorld"]

RESOURCE = Resource("binance:APTUSDT")
TEN, PRICE, STOP = Decimal(10), Decimal("8.5"), Decimal("8.33")
NEW = NewPosition("binance", "APTUSDT", PositionSide.LONG, TEN, PRICE, Decimal(2), "s", APT)
AN_ORDER = PlacedOrder(
    "3", "lgs-3", APT, "sell", OrderState.OPEN, TEN, Decimal(4), None, Decimal("8.4"), reduce_only=True
)
_ROWS = """
    select status, quantity, stop_price, stop_order_id, entry_order_id, exit_reason, exit_price, error_details
      from monitoring.positions order by id
"""
_INTENTS = """
    select step, outcome, settled_at is not null, trigger_price, details
      from monitoring.position_intents order by number
"""
_EMPTIED = "truncate monitoring.positions, monitoring.position_intents cascade"


class StoreWorld(PostgresWorld):
    """The tables of positions, and the lease on one symbol."""

    open_for_rows = (*PostgresWorld.open_for_rows, RESOURCE)
    position: Position
    intent: Intent

    async def driver(self, stack: AsyncExitStack) -> None:
        await super().driver(stack)
        await migrate(self.look)
        self.lease = for_a_day((await held(self.plain, 7, RESOURCE)).grant)
        self.store = PositionStore(self.plain)

    async def seen(self) -> tuple[Any, ...]:
        """What the tables have, without numbers and times."""
        return tuple([tuple(row) for query in (_ROWS, _INTENTS) for row in await self.look.fetch(query)])

    async def note(self, progress: Any) -> None:
        self.position = progress.position
        self.intent = progress.intent or self.intent


# Where a position is in its life


async def nowhere(world: StoreWorld) -> None:
    """There is none."""


async def entering(world: StoreWorld) -> None:
    await world.note(await world.store.begin(world.lease, NEW))


async def entered(world: StoreWorld) -> None:
    await entering(world)
    await world.note(await recorded(world))


async def stopping(world: StoreWorld) -> None:
    await entering(world)
    await world.note(await recorded(world, STOP))


async def active(world: StoreWorld) -> None:
    await stopping(world)
    world.position = await world.store.activate(world.lease, world.position, world.intent, "2")


async def moving(world: StoreWorld) -> None:
    await active(world)
    await world.note(await world.store.expect_move(world.lease, world.position, Decimal("8.4")))


async def closing(world: StoreWorld) -> None:
    await active(world)
    await world.note(await world.store.expect_close(world.lease, world.position, "exit"))


async def recorded(world: StoreWorld, stop: Decimal | None = None) -> Any:
    return await world.store.record_entry(
        world.lease, world.position, world.intent, order_id="1", price=PRICE, quantity=TEN, stop=stop
    )


class Whole:
    """Judges that a call has written all that it writes, or nothing.

    Args:
        state: brings the tables where the call finds them.
    """

    def __init__(self, state: Any) -> None:
        self._state = state
        self._before: tuple[Any, ...] = ()
        self._after: tuple[Any, ...] | None = None

    async def before(self, world: StoreWorld) -> None:
        """Make the tables ready."""
        await world.look.execute(_EMPTIED)
        await self._state(world)
        self._before = await world.seen()

    async def judge(self, world: StoreWorld) -> list[str]:
        """Compare with what the first call, which is not cancelled, has written."""
        found = await world.seen()
        if self._after is None:
            self._after = found
        return [] if found in (self._before, self._after) else [f"half of it: {found}"]


def row(name: str, state: Any, call: Any) -> Row:
    """A row of the store."""
    whole = Whole(state)
    return Row((f"lockguard_positions.PositionStore.{name}",), call, whole.before, whole.judge)


StoreWorld.rows = (
    row("begin", nowhere, lambda w: w.store.begin(w.lease, NEW)),
    row("refuse", nowhere, lambda w: w.store.refuse(w.lease, NEW, "no")),
    row("adopt", nowhere, lambda w: w.store.adopt(w.lease, NEW)),
    row("record_entry", entering, recorded),
    row("record_entry", entering, lambda w: recorded(w, STOP)),
    row("expect_stop", entered, lambda w: w.store.expect_stop(w.lease, w.position, STOP)),
    row("take_over_stop", entered, lambda w: w.store.take_over_stop(w.lease, w.position, AN_ORDER)),
    row("activate", stopping, lambda w: w.store.activate(w.lease, w.position, w.intent, "2")),
    row("expect_move", active, lambda w: w.store.expect_move(w.lease, w.position, Decimal("8.4"))),
    row("move_stop", moving, lambda w: w.store.move_stop(w.lease, w.position, w.intent, AN_ORDER)),
    row("expect_close", active, lambda w: w.store.expect_close(w.lease, w.position, "exit")),
    row(
        "withdraw_close",
        closing,
        lambda w: w.store.withdraw_close(w.lease, w.position, w.intent, IntentOutcome.ABSENT, "not held"),
    ),
    row(
        "renew_intent",
        closing,
        lambda w: w.store.renew_intent(w.lease, w.position, replace(w.intent, refused=True)),
    ),
    row("note_gone", closing, lambda w: w.store.note_gone(w.lease, w.position, replace(w.intent, void=True))),
    row("close_rest", closing, lambda w: w.store.close_rest(w.lease, w.position, w.intent, AN_ORDER)),
    row("entry_filled", active, lambda w: w.store.entry_filled(w.lease, w.position, AN_ORDER)),
    row(
        "entry_filled",
        closing,
        lambda w: w.store.entry_filled(w.lease, w.position, AN_ORDER, closing=w.intent, by=AN_ORDER),
    ),
    row("stop_filled", active, lambda w: w.store.stop_filled(w.lease, w.position, Decimal("0.1"), own=True)),
    row(
        "stop_filled",
        moving,
        lambda w: w.store.stop_filled(w.lease, w.position, Decimal("0.1"), fired=(w.intent, "9")),
    ),
    row(
        "finish",
        closing,
        lambda w: w.store.finish(w.lease, w.position, PositionStatus.CLOSED, intent=w.intent, price=PRICE),
    ),
    row("settle", moving, lambda w: w.store.settle(w.lease, w.position, w.intent, IntentOutcome.ABSENT)),
    row("note_error", active, lambda w: w.store.note_error(w.lease, w.position, "hindered")),
    row("tick", active, lambda w: w.store.tick(w.position.id, PRICE)),
    row("get", active, lambda w: w.store.get(w.position.id)),
    row("in_doubt", moving, lambda w: w.store.in_doubt(w.position)),
    row("attached_stop", active, lambda w: w.store.attached_stop(w.position)),
    row("stop_ids", active, lambda w: w.store.stop_ids(w.position)),
    row("stops_of", active, lambda w: w.store.stops_of(w.position)),
    row("open_on", active, lambda w: w.store.open_on("binance")),
    row("symbols_with_loose_orders", active, lambda w: w.store.symbols_with_loose_orders("binance")),
    *(
        row(name, active, lambda w, name=name: getattr(w.store, name)("binance", "APTUSDT"))
        for name in (
            "all_open_of",
            "last_ended",
            "loose_stops",
            "next_intent",
            "open_of",
            "open_under_other_labels",
        )
    ),
)


# Migrations


class MigrationWorld(EmptyDatabaseWorld):
    """A database with the fence, on which the tables of positions come and go."""

    rows = ()

    async def begin(self, stack: AsyncExitStack) -> None:
        await super().begin(stack)
        await install(self.look)


async def without_tables(world: MigrationWorld) -> None:
    await migrate(world.look, to=0)


async def with_tables(world: MigrationWorld) -> None:
    await migrate(world.look)


MigrationWorld.rows = (
    Row(("lockguard_positions.migrate",), lambda w: migrate(w.conn), without_tables),
    Row(("lockguard_positions.version",), lambda w: version(w.conn), with_tables),
    Row(("lockguard_positions.protect_positions",), lambda w: protect_positions(w.conn), with_tables),
)


# The flow


class FlowWorld(World):
    """A bot on one symbol, which each attempt finds flat."""

    needs = frozenset({"database_url"})
    noise = (NOISE_OF_CONNECTING, "unclosed <socket.socket")

    async def begin(self, stack: AsyncExitStack) -> None:
        self.cuts = itertools.cycle(range(8, 24))
        self.look = await asyncpg.connect(self.servers.database_url)
        stack.push_async_callback(self.look.close)
        await install(self.look)
        await migrate(self.look)
        exchange = await stack.enter_async_context(LocalExchange(symbols=[APT]))
        self.bot = await make_bot(stack, self.servers.redis_url, self.servers.database_url, exchange)
        self.bot.client.timeout = 5000  # ms: a busy machine is no fault
        self.guarded = GuardedExchange(self.bot.client)

    def strange_tasks(self) -> list[str]:
        return [told for told in super().strange_tasks() if not any(own in told for own in EXCHANGES_OWN)]

    async def left(self) -> list[str]:
        held_now = [found async for found in self.bot.guard.list()]
        busy = await self.look.fetch(
            "select format('%s %s', state, left(query, 60)) from pg_stat_activity where datname ="
            " current_database() and pid <> pg_backend_pid() and state <> 'idle'"
            " and backend_type = 'client backend'"
        )
        lent = self.bot.pool.get_size() - self.bot.pool.get_idle_size()
        return [
            *(f"lock {found.resource}" for found in held_now),
            *(row[0] for row in busy),
            *(["a connection"] if lent else []),
        ]

    async def works(self) -> None:
        """What passes after it makes the account true again; then all is taken away by hand."""
        async with asyncio.timeout(10):
            found = await self.bot.sync()
        rows = await self.look.fetch("select status from monitoring.positions where closed_at is null")
        in_doubt = any(row["status"] == "pending_entry" for row in rows)
        try:
            assert self.bot.is_sound() or in_doubt, f"not sound after {found}"
        finally:
            await self.clean()

    async def clean(self) -> None:
        client, record = self.bot.client, self.bot.exchange.record()
        for params in ({}, {"trigger": True}):
            for order in await client.fetch_open_orders(APT, None, None, params):
                await client.cancel_order(order["id"], APT, params)
        if held_now := record.position(APT):
            side = "sell" if held_now > 0 else "buy"
            await client.create_order(
                APT,
                "market",
                side,
                float(abs(held_now)),
                None,
                {"reduceOnly": True, "clientOrderId": "byhand"},
            )
        await self.look.execute(_EMPTIED)


async def orders_have_intents(world: FlowWorld) -> list[str]:
    """An order that left has its intent in the table, and none left twice."""
    known = {row[0] for row in await world.look.fetch("select client_id from monitoring.position_intents")}
    ordered = [order.client_id for order in world.bot.exchange.record().orders if order.client_id]
    ours = [client_id for client_id in ordered if client_id.startswith("lg")]
    fresh = [client_id for client_id in ours if client_id not in world.state]
    twice = {client_id for client_id in fresh if fresh.count(client_id) > 1}
    return [f"order {one} without an intent" for one in fresh if one not in known] + [
        f"order {one} twice" for one in twice
    ]


async def flat(world: FlowWorld) -> None:
    world.state = {order.client_id for order in world.bot.exchange.record().orders}


async def opened(world: FlowWorld) -> None:
    await flat(world)
    await world.bot.open()


async def half_open(world: FlowWorld) -> None:
    """An open that was cut somewhere after its intent, each time at another step."""
    await flat(world)
    await cancelled_at(world.bot.open, Point(next(world.cuts)))


async def unprotected(world: FlowWorld) -> None:
    await opened(world)
    for order in await world.bot.client.fetch_open_orders(APT, None, None, {"trigger": True}):
        await world.bot.client.cancel_order(order["id"], APT, {"trigger": True})


MANAGER = "lockguard_positions.AtomicPositionManager"
FlowWorld.rows = tuple(
    Row((name,), call, before, orders_have_intents, thorough=True)
    for name, call, before in (
        (f"{MANAGER}.open_position_atomic", lambda w: w.bot.open(), flat),
        (f"{MANAGER}.close_position", lambda w: w.bot.manager.close_position("APTUSDT", "binance"), opened),
        (
            f"{MANAGER}.move_stop",
            lambda w: w.bot.manager.move_stop("APTUSDT", "binance", Decimal("8.4")),
            opened,
        ),
        (f"{MANAGER}.ensure_stop", lambda w: w.bot.manager.ensure_stop("APTUSDT", "binance"), unprotected),
        (f"{MANAGER}.clean_up", lambda w: w.bot.manager.clean_up("APTUSDT", "binance"), opened),
        (f"{MANAGER}.half_done", lambda w: w.bot.manager.half_done("binance"), half_open),
        (f"{MANAGER}.recover", lambda w: w.bot.manager.recover("binance"), half_open),
        (
            f"{MANAGER}.sync_exchange_positions",
            lambda w: w.bot.manager.sync_exchange_positions("binance"),
            unprotected,
        ),
        ("lockguard_positions.diagnose", lambda w: diagnose(w.bot.pool, [w.guarded]), flat),
    )
)


# Alerts


class AlertsWorld(World):
    """Alerts to a service that nobody listens for."""

    async def begin(self, stack: AsyncExitStack) -> None:
        """Nothing is needed."""

    async def works(self) -> None:
        """There is nothing to work."""


async def alerted(_world: AlertsWorld) -> None:
    async with AppriseAlerts(["json://127.0.0.1:1/"]):
        await asyncio.sleep(0)


AlertsWorld.rows = (
    Row(
        tuple(f"lockguard_positions.alerts.AppriseAlerts.{name}" for name in ("__aenter__", "__aexit__")),
        alerted,
    ),
)
