"""The manager on Bybit's ways: an entry that carries its stop, and ids that are taken for good."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import asyncpg
import pytest

from lockguard import LockGuard
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import PostgresFence, install
from lockguard_ccxt import Refusal
from lockguard_ccxt._classify import REFUSED_BY_CODE
from lockguard_positions import (
    Alert,
    AtomicPositionManager,
    ExchangeUnreadable,
    NotOpened,
    Opened,
    OpenResult,
    Pace,
    PositionEvent,
    PositionStatus,
    SyncAction,
    diagnose,
    migrate,
)
from tests.integration.test_ccxt_bybit import APT, Bybit, Lost, Rejection, connected

MS = timedelta(milliseconds=1)


@dataclass
class Stage:
    server: Bybit
    manager: AtomicPositionManager
    pool: asyncpg.Pool[Any]
    heard: Heard

    async def open(self, price: str = "8.5") -> OpenResult:
        return await self.manager.open_position_atomic("s", APT, "bybit", "long", "10", price, "2")

    def waiting(self, *, attached: bool = False) -> list[str]:
        """Where stops of a name of their own wait, or those that an entry brought along."""
        return [
            order["triggerPrice"]
            for order in self.server.orders
            if order["orderStatus"] == "Untriggered" and attached == bool(order.get("stopOrderType"))
        ]

    def by_hand(self, symbol: str, *, stop: str | None = None) -> None:
        """A long position, and perhaps a stop, of which no table knows."""
        self.server.nets[symbol] = Decimal(10)
        if stop is not None:
            self.server.create(
                {
                    "category": "linear",
                    "symbol": symbol,
                    "orderType": "Market",
                    "side": "Sell",
                    "qty": "10",
                    "orderLinkId": "a-person",
                    "reduceOnly": True,
                    "triggerPrice": stop,
                    "triggerDirection": 2,
                }
            )

    def move_by_hand(self, stop: str) -> None:
        """Set the position's own stop, as a person does on the exchange's page."""
        setting = {"category": "linear", "symbol": "APTUSDT", "tpslMode": "Full", "positionIdx": 0}
        self.server.trading_stop({**setting, "stopLoss": stop})

    def sold(self) -> list[str]:
        """The orders that made a position smaller at once."""
        return [o["orderLinkId"] for o in self.server.orders if o["reduceOnly"] and not o["triggerPrice"]]

    async def sync(self) -> dict[str, SyncAction]:
        report = await self.manager.sync_exchange_positions("bybit")
        return {outcome.symbol: outcome.action for outcome in report.outcomes}


class Heard:
    """An observer that keeps the alerts."""

    def __init__(self) -> None:
        self.alerts: list[str] = []

    def on(self, event: PositionEvent) -> None:
        if isinstance(event, Alert):
            self.alerts.append(f"{event.resource}: {event.message}")


@pytest.fixture
async def stage(request: pytest.FixtureRequest, redis_url: str, database_url: str) -> AsyncIterator[Stage]:
    """With the library's own deadline for a stop, which no slow machine passes, or the test's parameter."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=4))
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
        guard = await stack.enter_async_context(LockGuard.from_url(redis_url, fence=PostgresFence(pool)))
        server = Bybit()
        exchange = await stack.enter_async_context(connected(server))
        pace = Pace(poll=20 * MS, retry_pause=20 * MS, grace=0 * MS, attempts=2)
        pace = replace(pace, stop_deadline=getattr(request, "param", pace.stop_deadline))
        heard = Heard()
        manager = AtomicPositionManager(guard, pool, [exchange], pace=pace, observers=[heard])
        yield Stage(server, manager, pool, heard)


async def test_a_position_is_opened_kept_and_closed(stage: Stage) -> None:
    opened = await stage.open()
    assert isinstance(opened, Opened)
    assert (stage.server.net, stage.waiting()) == (10, ["8.33"])
    assert stage.server.created[0]["stopLoss"] == "8.33"
    report = await stage.manager.sync_exchange_positions("bybit")
    assert [outcome.action for outcome in report.outcomes] == [SyncAction.IN_STEP]
    closed = await stage.manager.close_position(APT, "bybit")
    assert closed is not None
    assert closed.status is PositionStatus.CLOSED
    assert (stage.server.net, stage.waiting()) == (0, [])


@pytest.mark.parametrize("lost", list(Lost))
async def test_a_lost_answer_neither_doubles_nor_loses_the_position(stage: Stage, lost: Lost) -> None:
    stage.server.lose = lost
    assert isinstance(await stage.open(), Opened)
    assert (stage.server.net, stage.waiting()) == (10, ["8.33"])


async def test_a_stop_that_disappeared_is_placed_anew(stage: Stage) -> None:
    await stage.open()
    stage.server.take_stops_back()
    report = await stage.manager.sync_exchange_positions("bybit")
    assert [outcome.action for outcome in report.outcomes] == [SyncAction.STOP_PLACED]
    assert (stage.server.net, stage.waiting()) == (10, ["8.33"])


async def test_a_stop_that_the_price_has_passed_is_refused_before_the_entry(stage: Stage) -> None:
    refused = await stage.open(price="9")
    assert isinstance(refused, NotOpened)
    assert "beyond the stop at 8.82" in refused.reason
    assert stage.server.created == []


async def test_a_pass_takes_over_the_stops_of_every_coin_and_asks_no_symbol_twice(stage: Stage) -> None:
    """The person's own stops stand far away; a contract in USDC is no other case than one in USDT."""
    for symbol in ("APTUSDT", "BTCPERP"):
        stage.by_hand(symbol, stop="7" if symbol == "BTCPERP" else None)
    assert await stage.sync() == {"APTUSDT": SyncAction.ADOPTED, "BTCUSDC": SyncAction.ADOPTED}
    rows = await stage.pool.fetch("select market, stop_price from monitoring.positions order by market")
    assert [(row["market"], row["stop_price"]) for row in rows] == [
        (APT, Decimal("8.33")),
        ("BTC/USDC:USDC", Decimal(7)),
    ]
    before = len(stage.server.asked)
    assert await stage.sync() == {"APTUSDT": SyncAction.IN_STEP, "BTCUSDC": SyncAction.IN_STEP}
    assert stage.server.asked[before:] == ["/v5/order/realtime"] * 4 + ["/v5/position/list"] * 2
    assert stage.sold() == []


async def test_a_usdc_contract_is_opened_protected_and_closed_by_its_own_name(stage: Stage) -> None:
    opened = await stage.manager.open_position_atomic("s", "BTCPERP", "bybit", "short", "10", "8.5", "2")
    assert isinstance(opened, Opened)
    assert (stage.server.nets["BTCPERP"], stage.waiting()) == (-10, ["8.67"])
    await stage.manager.close_position("BTCPERP", "bybit")
    assert (stage.server.nets["BTCPERP"], stage.waiting()) == (0, [])


@pytest.mark.parametrize(("side", "by_hand"), [("long", "8.2"), ("short", "8.9")])
async def test_a_stop_that_covers_all_is_never_told_as_one_that_covers_a_part(
    stage: Stage, side: str, by_hand: str
) -> None:
    """Neither right after it was placed, nor in a pass; nor when a person has moved the other one."""
    opened = await stage.manager.open_position_atomic("s", APT, "bybit", side, "10", "8.5", "2")
    assert isinstance(opened, Opened)
    assert await stage.sync() == {"APTUSDT": SyncAction.IN_STEP}
    stage.move_by_hand(by_hand)
    assert await stage.sync() == {"APTUSDT": SyncAction.IN_STEP}
    assert [alert for alert in stage.heard.alerts if "part" in alert] == []


async def test_a_stop_is_moved_without_a_moment_without(stage: Stage) -> None:
    await stage.open()
    moved = await stage.manager.move_stop(APT, "bybit", "8.4")
    assert moved.action is SyncAction.STOP_MOVED
    created = [body["triggerPrice"] for body in stage.server.created if body.get("triggerPrice")]
    assert (created, stage.waiting()) == (["8.33", "8.4"], ["8.4"])
    assert await stage.sync() == {"APTUSDT": SyncAction.IN_STEP}


@pytest.mark.parametrize("to", ["8.4", "8.1"])
async def test_after_a_move_the_only_stop_that_fires_is_the_new_one(stage: Stage, to: str) -> None:
    """Also the stop that the entry brought along, which waits at the old price."""
    await stage.open()
    await stage.manager.move_stop(APT, "bybit", to)
    assert stage.server.pass_price("APTUSDT", Decimal("8.05")) == [to]
    assert stage.server.net == 0
    assert await stage.sync() == {"APTUSDT": SyncAction.CLOSED}
    row = await stage.pool.fetchrow("select exit_reason, stop_price from monitoring.positions")
    assert (row["exit_reason"], row["stop_price"]) == ("stop", Decimal(to))


async def test_a_move_takes_the_stop_that_came_along_back_only_once_the_new_one_stands(stage: Stage) -> None:
    await stage.open()
    asked = len(stage.server.asked)
    await stage.manager.move_stop(APT, "bybit", "8.1")
    after = stage.server.asked[asked:]
    assert after.index("/v5/order/create") < after.index("/v5/order/cancel")
    assert (stage.waiting(), stage.waiting(attached=True)) == (["8.1"], [])
    assert await stage.sync() == {"APTUSDT": SyncAction.IN_STEP}
    assert stage.heard.alerts == []


async def test_a_move_that_the_exchange_drops_after_taking_it_leaves_the_old_stops(stage: Stage) -> None:
    """Its answer says that the order was taken; what it shows is what counts."""
    await stage.open()
    stage.server.drop_created = True
    await stage.manager.move_stop(APT, "bybit", "8.1")
    assert (stage.waiting(), stage.waiting(attached=True)) == (["8.33"], ["8.33"])
    stage.server.drop_created = False
    await stage.sync()
    assert stage.waiting() == ["8.33"]


async def test_what_a_move_could_not_take_back_a_pass_does(stage: Stage) -> None:
    await stage.open()
    stage.server.refuse_cancel = Rejection(10006, "too many visits")
    await stage.manager.move_stop(APT, "bybit", "8.1")
    assert stage.waiting(attached=True) == ["8.33"]
    assert "may still be waiting" in stage.heard.alerts[0]
    stage.server.refuse_cancel = None
    await stage.sync()
    assert (stage.waiting(), stage.waiting(attached=True)) == (["8.1"], [])


async def test_a_stop_that_a_person_gave_the_position_is_told_of_and_never_touched(stage: Stage) -> None:
    """It takes the place of the one that came along, and nothing but its price tells them apart."""
    await stage.open()
    stage.move_by_hand("8.2")
    await stage.manager.move_stop(APT, "bybit", "8.1")
    for _ in range(2):
        assert await stage.sync() == {"APTUSDT": SyncAction.IN_STEP}
    assert (stage.waiting(), stage.waiting(attached=True)) == (["8.1"], ["8.2"])
    (alert,) = stage.heard.alerts
    assert "beside the position's own stop" in alert
    assert "8.2" in alert


@pytest.mark.parametrize("keeps_ids", [False, True], ids=["another order", "the same order"])
async def test_a_stop_that_a_person_moves_right_before_it_is_taken_back_is_never_lost_unsaid(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, *, keeps_ids: bool
) -> None:
    """Between our list and our request: given a new id by the exchange it stays, else a person is told."""
    await stage.open()
    stage.server.keeps_ids = keeps_ids
    moved = False

    def moved_first(answer: Callable[[Any], Any], body: Any) -> Any:
        nonlocal moved
        of_the_position = [o["orderId"] for o in stage.server.orders if o.get("stopOrderType")]
        if not moved and (body.get("orderId") in of_the_position or body.get("stopLoss") == "0"):
            moved = True
            stage.move_by_hand("8.2")
        return answer(body)

    for path in ("/v5/order/cancel", "/v5/position/trading-stop"):
        monkeypatch.setitem(stage.server._answers, path, partial(moved_first, stage.server._answers[path]))
    await stage.manager.move_stop(APT, "bybit", "8.1")
    assert moved
    told = [alert for alert in stage.heard.alerts if "was moved by hand" in alert]
    assert stage.waiting() == ["8.1"]
    assert (stage.waiting(attached=True), len(told)) == (([], 1) if keeps_ids else (["8.2"], 0))
    assert all("at 8.2 by then" in alert for alert in told)
    assert await stage.sync() == {"APTUSDT": SyncAction.IN_STEP}
    assert (stage.server.net, stage.sold()) == (10, [])


@pytest.mark.parametrize("answer", ["refused", "without it"])
async def test_a_stop_of_which_it_cannot_be_read_whether_a_person_moved_it_is_told_of(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """It keeps its id when it is moved, perhaps, and the history of orders lags or does not answer."""
    await stage.open()

    def unread(_: Any) -> Any:
        if answer == "refused":
            raise Rejection(10006, "too many visits")
        return {"list": []}

    monkeypatch.setitem(stage.server._answers, "/v5/order/history", unread)
    await stage.manager.move_stop(APT, "bybit", "8.1")
    (told,) = stage.heard.alerts
    assert "may have been moved by hand" in told
    assert "could not be read" in told
    assert (stage.waiting(), stage.waiting(attached=True)) == (["8.1"], [])


async def test_a_stop_whose_rest_the_exchange_has_cancelled_leaves_its_row_with_that_rest(
    stage: Stage,
) -> None:
    """Bybit calls it cancelled, though it has sold a part."""
    await stage.open()
    await stage.manager.move_stop(APT, "bybit", "8.2")  # the one that the entry has brought along goes
    assert stage.server.pass_price("APTUSDT", Decimal("8.1"), most=Decimal(4)) == ["8.2"]
    assert (stage.server.net, stage.waiting()) == (6, [])
    assert await stage.sync() == {"APTUSDT": SyncAction.STOP_PLACED}
    row = await stage.pool.fetchrow("select status, quantity from monitoring.positions")
    assert tuple(row or ()) == ("active", 6)
    assert (stage.server.created[-1]["qty"], stage.waiting()) == ("6", ["8.2"])
    assert await stage.sync() == {"APTUSDT": SyncAction.IN_STEP}


async def test_a_contract_in_hedge_mode_is_refused_before_its_first_order(stage: Stage) -> None:
    """Bybit's mode is one of each contract, and its flat legs tell it; ccxt cannot ask for the account's."""
    stage.server.hedged = frozenset({"APTUSDT"})
    with pytest.raises(ConfigurationError, match="in hedge mode"):
        await stage.open()
    assert (stage.server.created, await stage.sync()) == ([], {})
    stage.server.hedged = frozenset()
    assert isinstance(await stage.open(), Opened)


async def test_a_contract_in_hedge_mode_is_the_trouble_of_its_symbol_and_of_no_other(stage: Stage) -> None:
    """A person has switched one contract over, and holds it; the others' positions are kept as before."""
    await stage.open()
    stage.by_hand("BTCPERP", stop="8")
    stage.server.hedged = frozenset({"BTCPERP"})
    assert await stage.sync() == {"APTUSDT": SyncAction.IN_STEP, "BTCUSDC": SyncAction.FAILED}
    (told,) = stage.heard.alerts
    assert told.startswith(
        "bybit:BTCUSDC: ConfigurationError: the position in BTC/USDC:USDC is in hedge mode"
    )
    stage.server.take_stops_back()
    assert await stage.sync() == {"APTUSDT": SyncAction.STOP_PLACED, "BTCUSDC": SyncAction.FAILED}
    assert stage.waiting() == ["8.33"]
    inside: Any = stage.manager
    found = (await diagnose(stage.pool, [inside._venues["bybit"]._exchange])).findings
    assert [(one.symbol, one.kind.value) for one in found] == [("BTCUSDC", "mismatch")]
    assert "is in hedge mode" in found[0].details


async def test_a_position_whose_contract_is_switched_to_hedge_mode_is_left_as_it_is_and_told_of(
    stage: Stage,
) -> None:
    await stage.open()
    stage.server.hedged = frozenset({"APTUSDT"})
    created = len(stage.server.created)
    assert await stage.sync() == {"APTUSDT": SyncAction.FAILED}
    assert [alert for alert in stage.heard.alerts if "in hedge mode" in alert]
    assert (len(stage.server.created), stage.waiting(), stage.sold()) == (created, ["8.33"], [])
    stage.server.hedged = frozenset()
    assert await stage.sync() == {"APTUSDT": SyncAction.IN_STEP}


@pytest.mark.parametrize("stage", [100 * MS], indirect=True)
@pytest.mark.parametrize("code", [10002, 10003, 10004, 10005, 10006, 10010, 10018])
async def test_a_refusal_of_everything_that_passes_leaves_positions_and_protects_them_afterwards(
    stage: Stage, code: int
) -> None:
    """Refused between the entry and the stop, in a pass, and in a recovery: nothing is sold for it."""
    assert REFUSED_BY_CODE[str(code)] in {Refusal.AUTHENTICATION, Refusal.CLOCK, Refusal.RATE_LIMITED}
    await stage.open()
    stage.server.take_stops_back()
    stage.by_hand("BTCPERP")
    stage.server.refuse_create = Rejection(code, "refused")
    for _ in range(2):
        await stage.manager.recover("bybit")
        assert set((await stage.sync()).values()) == {SyncAction.UNPROTECTED}
    told = [a for a in stage.heard.alerts if str(code) in a and "has no stop" in a]
    assert {alert.partition(": ")[0] for alert in told} == {"bybit:APTUSDT", "bybit:BTCUSDC"}
    stage.server.refuse = Rejection(code, "refused")
    with pytest.raises(ExchangeUnreadable):
        await stage.sync()
    await stage.manager.recover("bybit")
    stage.server.refuse = stage.server.refuse_create = None
    await stage.manager.recover("bybit")
    await stage.sync()
    assert (stage.sold(), stage.server.nets) == ([], {"APTUSDT": 10, "BTCPERP": 10})
    assert sorted(stage.waiting()) == ["8.33", "8.33"]


async def test_a_clock_out_of_step_is_measured_anew_and_the_open_goes_on(stage: Stage) -> None:
    stage.server.clock_ms = -60_000
    assert isinstance(await stage.open(), Opened)
    assert (stage.server.net, stage.waiting()) == (10, ["8.33"])
