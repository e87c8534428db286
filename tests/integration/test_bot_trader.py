"""A signal is carried out once, however often it is delivered, and whoever dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from lockguard import LockGuard, ResourceBusy
from lockguard_asyncpg import PostgresFence, install
from lockguard_bot._book import Decision, Outcome, SignalBook
from lockguard_bot._signals import BadSignal, CloseSignal, OpenSignal, Stop
from lockguard_bot._trader import Trader
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_lab.exchange import Execution, Fault, FaultKind, LocalExchange, Operation, Side, connect
from lockguard_positions import AtomicPositionManager, Pace, migrate
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._model import PositionSide
from tests.integration.test_positions_not_ours import OLD_INTENTS

MS = timedelta(milliseconds=1)
SYMBOL = "APT/USDT:USDT"


@dataclass
class Desk:
    """A trader on real servers."""

    trader: Trader
    manager: AtomicPositionManager
    guard: LockGuard
    exchange: LocalExchange
    pool: asyncpg.Pool[Any]

    async def does(self, signal: OpenSignal | CloseSignal) -> tuple[str, bool]:
        decision = await self.trader.carry_out(signal)
        return decision.outcome.value, decision.known

    def held(self) -> Decimal:
        return self.exchange.record().position(SYMBOL)

    def entries(self) -> int:
        return len(self.exchange.record().entries(SYMBOL))


@pytest.fixture
async def desk(redis_url: str, database_url: str) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=10))
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
        guard = await stack.enter_async_context(
            LockGuard.from_url(redis_url, fence=PostgresFence(pool), wait=200 * MS)
        )
        client = connect(exchange.url, config={"options": {"recvWindow": 1000}})
        stack.push_async_callback(client.close)
        guarded = GuardedExchange(client, patience=Patience(needed=100 * MS, search=200 * MS, poll=20 * MS))
        await guarded.load()
        pace = Pace(poll=20 * MS, stop_deadline=500 * MS, retry_pause=20 * MS, grace=0 * MS)
        manager = AtomicPositionManager(guard, pool, [guarded], pace=pace)
        book = SignalBook(pool, guarded.name)
        yield Desk(Trader(guard, manager, guarded, book, age_max=60_000 * MS), manager, guard, exchange, pool)


def instant(ms: int) -> datetime:
    return datetime.now(UTC) + ms * MS


def opening(
    name: str, *, at: datetime | None = None, side: PositionSide = PositionSide.LONG, stop: str = "2"
) -> OpenSignal:
    return OpenSignal(name, "APTUSDT", at, side, Decimal(10), Stop(Decimal(stop), is_percent=True))


def closing(name: str, *, at: datetime | None = None, side: PositionSide | None = None) -> CloseSignal:
    return CloseSignal(name, SYMBOL, at, side)


async def test_a_signal_that_comes_twice_opens_once(desk: Desk) -> None:
    assert await desk.does(opening("s1")) == ("opened", False)
    assert await desk.does(opening("s1")) == ("opened", True)
    assert (desk.held(), desk.entries()) == (10, 1)


async def test_it_does_not_open_again_after_it_was_closed(desk: Desk) -> None:
    await desk.does(opening("s1"))
    assert await desk.does(closing("s2")) == ("closed", False)
    assert await desk.does(opening("s1")) == ("opened", True)
    assert (desk.held(), desk.entries()) == (0, 1)


async def test_a_close_that_comes_twice_leaves_the_next_position_alone(desk: Desk) -> None:
    await desk.does(opening("s1"))
    await desk.does(closing("s2"))
    assert await desk.does(opening("s3")) == ("opened", False)
    assert await desk.does(closing("s2")) == ("closed", True)
    assert desk.held() == 10


async def test_a_refused_open_does_not_come_to_life_when_it_is_delivered_again(desk: Desk) -> None:
    await desk.does(opening("s1"))
    assert await desk.does(opening("s2")) == ("already open", False)
    await desk.does(closing("s3"))
    assert await desk.does(opening("s2")) == ("already open", True)
    assert desk.held() == 0


class Killed(BaseException):
    """The bot ends here."""


@contextmanager
def killed_behind(store: Any, method: str) -> Iterator[None]:
    """Kill the bot behind the commit of a call of its store, which the body comes to."""
    call = getattr(store, method)

    async def deadly(*args: Any, **kwargs: Any) -> Any:
        await call(*args, **kwargs)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(store, method, deadly)
        yield


@pytest.mark.parametrize("first", ["open", "close"])
async def test_the_last_word_stands_in_whatever_order_signals_come(desk: Desk, first: str) -> None:
    earlier, later = instant(-2000), instant(-1000)
    if first == "open":
        assert await desk.does(opening("s2", at=later)) == ("opened", False)
        assert await desk.does(closing("s1", at=earlier)) == ("overtaken", False)
        assert desk.held() == 10
    else:
        assert await desk.does(closing("s2", at=later)) == ("nothing open", False)
        assert await desk.does(opening("s1", at=earlier)) == ("overtaken", False)
        assert desk.held() == 0


@pytest.mark.parametrize("first", ["open", "close"])
async def test_the_last_word_stands_although_who_carried_it_out_did_not_write_it_down(
    desk: Desk, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bot was killed, or its lease had ended, between the order and the book."""

    async def deadly(*_: Any) -> None:
        raise Killed

    earlier, later = instant(-2000), instant(-1000)
    if first == "close":
        assert await desk.does(opening("s0", at=instant(-3000))) == ("opened", False)
    last, before = (
        (opening("s2", at=later), closing("s1", at=earlier))
        if first == "open"
        else (closing("s2", at=later), opening("s1", at=earlier))
    )
    monkeypatch.setattr(SignalBook, "record", deadly)
    with pytest.raises(Killed):
        await desk.trader.carry_out(last)
    monkeypatch.undo()
    assert await desk.does(before) == ("overtaken", False)
    assert await desk.does(last) == ("opened" if first == "open" else "closed", False)
    assert desk.held() == (10 if first == "open" else 0)


@pytest.mark.parametrize("where", ["begin", "record_entry", "activate"])
async def test_a_close_waits_for_what_becomes_of_a_later_open_that_a_dead_bot_had_begun(
    desk: Desk, where: str
) -> None:
    with killed_behind(desk.manager.store, where):
        await desk.trader.carry_out(opening("s2", at=instant(-1000)))
    assert (await until_final(desk, closing("s1", at=instant(-2000)))).outcome is Outcome.OVERTAKEN
    assert (await until_final(desk, opening("s2", at=instant(-1000)))).outcome is Outcome.OPENED
    assert (desk.held(), desk.entries()) == (10, 1)


async def test_an_open_does_not_enter_what_a_later_close_of_an_adopted_position_was_closing(
    desk: Desk,
) -> None:
    """No signal has opened that position, so its row names none."""
    desk.exchange.trade_by_hand(SYMBOL, Side.BUY, Decimal(10))
    await desk.manager.sync_exchange_positions("binance")
    with killed_behind(desk.manager.store, "expect_close"):
        await desk.trader.carry_out(closing("s2", at=instant(-1000)))
    entries = desk.entries()
    assert (await until_final(desk, opening("s1", at=instant(-2000)))).outcome is Outcome.OVERTAKEN
    assert (await until_final(desk, closing("s2", at=instant(-1000)))).outcome is Outcome.CLOSED
    assert (desk.held(), desk.entries()) == (0, entries)


async def dies_before_its_entry_is_sent(desk: Desk) -> None:
    """The bot of an open ends with its intent written, and its order at no exchange."""
    desk.exchange.inject(Fault(FaultKind.HANG, Operation.CREATE_ORDER, Execution.NEVER, hold_ms=60_000))
    first = asyncio.create_task(desk.trader.carry_out(opening("s1")))
    async with asyncio.timeout(5):
        while not await desk.pool.fetchval("select count(*) from monitoring.position_intents"):
            await asyncio.sleep(0.002)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    desk.exchange.clear_faults()


async def test_a_close_that_meets_an_entry_in_doubt_is_no_decision(desk: Desk) -> None:
    """It may still arrive, and what it enters is to be closed."""
    await dies_before_its_entry_is_sent(desk)
    assert await desk.does(closing("s2")) == ("undecided", False)
    assert (await until_final(desk, closing("s2"))).outcome is Outcome.NOTHING_OPEN
    assert desk.entries() == 0


async def test_a_close_that_meets_an_exit_in_doubt_is_no_decision(desk: Desk) -> None:
    """That exit may be withdrawn, and this close has to close then."""
    await desk.does(opening("s1"))
    desk.exchange.deny(-2015)
    assert await desk.does(closing("s2")) == ("undecided", False)
    assert await desk.does(closing("s3")) == ("undecided", False)
    desk.exchange.allow()
    assert await desk.does(closing("s3")) == ("nothing open", False)
    assert await desk.does(closing("s2")) == ("closed", False)
    assert desk.held() == 0


async def test_a_signal_that_cannot_work_overtakes_nothing(desk: Desk) -> None:
    bad = OpenSignal(
        "s2", "APTUSDT", instant(-1000), PositionSide.LONG, Decimal("1e-9"), Stop(Decimal(2), is_percent=True)
    )
    assert await desk.does(bad) == ("refused", False)
    assert await desk.does(opening("s1", at=instant(-2000))) == ("opened", False)


async def test_an_open_that_is_too_old_or_of_tomorrow_is_refused_and_a_close_is_never_too_old(
    desk: Desk,
) -> None:
    old = await desk.trader.carry_out(opening("s1", at=instant(-61_000)))
    assert (old.outcome, "61 s old and --max-age is 60 s" in old.details) == (Outcome.REFUSED, True)
    ahead = await desk.trader.carry_out(opening("s2", at=instant(3_600_000)))
    assert (ahead.outcome, "set the sender's clock" in ahead.details) == (Outcome.REFUSED, True)
    await desk.does(opening("s3"))
    assert await desk.does(closing("s4", at=instant(-61_000))) == ("closed", False)


async def test_an_open_that_is_too_old_is_refused_whatever_becomes_of_a_later_one(desk: Desk) -> None:
    """It was put off for as long as the later one was in doubt, and its symbol was looked at each time."""
    with killed_behind(desk.manager.store, "begin"):
        await desk.trader.carry_out(opening("s2", at=instant(-1000)))
    desk.exchange.deny(-2015)
    assert await desk.does(opening("s1", at=instant(-59_000))) == ("undecided", False)
    assert await desk.does(opening("s0", at=instant(-61_000))) == ("refused", False)


async def test_an_open_that_becomes_too_old_while_a_later_one_is_finished_is_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_behind(desk.manager.store, "begin"):
        await desk.trader.carry_out(opening("s2", at=instant(-1000)))
    given, finish = instant(-59_500), desk.manager.ensure_stop

    async def slowly(symbol: str, exchange: str) -> Any:
        while datetime.now(UTC) - given < timedelta(seconds=60.1):
            await asyncio.sleep(0.02)
        return await finish(symbol, exchange)

    monkeypatch.setattr(desk.manager, "ensure_stop", slowly)
    assert await desk.does(opening("s1", at=given)) == ("refused", False)


async def test_a_decision_leaves_alone_when_a_signal_of_a_like_name_was_given(desk: Desk) -> None:
    with killed_behind(desk.manager.store, "begin"):
        await desk.trader.carry_out(opening("X", at=instant(-1000)))
    assert await desk.does(opening("given:X", at=instant(-61_000))) == ("refused", False)
    place = await desk.trader._book.place(opening("s1", at=instant(-2000)), "APTUSDT")
    assert place.under_way == "X"


@pytest.mark.parametrize("latency_ms", [0, 400])
async def test_a_position_beyond_its_stop_is_closed_however_slow_the_exchange_is(
    desk: Desk, latency_ms: int
) -> None:
    """The reads that prove whose it is take longer than a proof counts."""
    with killed_behind(desk.manager.store, "begin"):
        await desk.trader.carry_out(opening("s1"))
    price = desk.exchange.price(SYMBOL)
    desk.exchange.set_price(SYMBOL, price * Decimal("0.9"))
    desk.exchange.set_latency(latency_ms * MS)
    await desk.manager.ensure_stop("APTUSDT", "binance")
    assert desk.held() == 0


async def test_an_id_that_is_used_for_something_else_is_refused(desk: Desk) -> None:
    await desk.does(opening("s1"))
    decision = await desk.trader.carry_out(closing("s1"))
    assert decision.outcome is Outcome.REFUSED
    assert decision.details == "its id was used before, to open APTUSDT; give each signal its own"
    assert desk.held() == 10


async def test_a_close_of_the_other_side_is_refused(desk: Desk) -> None:
    await desk.does(opening("s1"))
    decision = await desk.trader.carry_out(closing("s2", side=PositionSide.SHORT))
    assert (decision.outcome, decision.details) == (Outcome.REFUSED, "the open position is long")
    assert await desk.does(closing("s3", side=PositionSide.LONG)) == ("closed", False)


async def test_an_unknown_market_is_the_signals_fault(desk: Desk) -> None:
    signal = CloseSignal("s1", "NOPE", None, None)
    with pytest.raises(BadSignal, match="has no market 'NOPE'"):
        await desk.trader.carry_out(signal)


async def test_an_open_that_is_refused_for_a_reason_that_passes_is_no_decision(desk: Desk) -> None:
    """On 8290112 a key that was denied for a second was a refusal for good, and the signal was lost."""
    desk.exchange.deny()
    denied = await desk.trader.carry_out(opening("s1"))
    assert (denied.outcome, denied.final) == (Outcome.UNDECIDED, False)
    assert "-2015" in denied.details
    desk.exchange.allow()
    assert await desk.does(opening("s1")) == ("opened", False)
    assert desk.entries() == 1


async def test_a_busy_symbol_is_not_a_decision(desk: Desk, redis_url: str) -> None:
    async with desk.guard.hold("binance:APTUSDT"):
        pass
    async with LockGuard.from_url(redis_url) as other, other.hold("binance:APTUSDT"):
        with pytest.raises(ResourceBusy):
            await desk.trader.carry_out(opening("s1"))
    assert await desk.does(opening("s1")) == ("opened", False)


async def test_an_exchange_without_a_price_is_not_a_decision(desk: Desk) -> None:
    for _ in range(3):
        desk.exchange.inject(Fault(FaultKind.UNAVAILABLE, Operation.TICKER))
    with pytest.raises(ExchangeUnreadable):
        await desk.trader.carry_out(opening("s1"))
    assert await desk.does(opening("s1")) == ("opened", False)
    assert desk.entries() == 1


@pytest.mark.parametrize("where", ["begin", "record_entry", "activate"])
async def test_what_a_dead_bot_had_begun_is_finished_and_not_begun_again(desk: Desk, where: str) -> None:
    """Killed behind a commit of the flow; the next delivery finds its row."""
    with killed_behind(desk.manager.store, where):
        await desk.trader.carry_out(opening("s1"))
    decision = await until_final(desk, opening("s1"))
    assert decision.outcome is Outcome.OPENED
    assert (desk.held(), desk.entries()) == (10, 1)


async def test_a_close_that_a_dead_bot_had_begun_is_finished(desk: Desk) -> None:
    await desk.does(opening("s1"))
    with killed_behind(desk.manager.store, "expect_close"):
        await desk.trader.carry_out(closing("s2"))
    assert await desk.does(closing("s2")) == ("undecided", False)  # its order may still arrive
    await desk.pool.execute(OLD_INTENTS)
    await desk.manager.recover("binance")  # somebody else was quicker
    assert await desk.does(closing("s2")) == ("closed", False)
    assert desk.held() == 0
    assert (
        await desk.pool.fetchrow("select outcome, position_id from monitoring.signals where signal_id = 's2'")
    )["outcome"] == "closed"


async def test_a_decision_that_was_not_written_down_is_found_in_the_row(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deadly(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(SignalBook, "record", deadly)
    with pytest.raises(Killed):
        await desk.trader.carry_out(opening("s1"))
    with pytest.raises(Killed):
        await desk.trader.carry_out(closing("s2"))
    monkeypatch.undo()
    assert await desk.does(opening("s1")) == ("opened", False)
    assert await desk.does(closing("s2")) == ("closed", False)
    assert (desk.held(), desk.entries()) == (0, 1)


async def test_an_entry_without_an_answer_is_in_doubt_and_then_found(desk: Desk) -> None:
    desk.exchange.inject(Fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, Execution.FIRST))
    decision = await until_final(desk, opening("s1"))
    assert decision.outcome is Outcome.OPENED
    assert desk.entries() == 1


async def test_a_signal_that_meets_an_entry_of_another_that_may_never_come_is_no_decision(desk: Desk) -> None:
    """Its bot died before it was sent, so that nothing is open in the end: this one has to open."""
    await dies_before_its_entry_is_sent(desk)
    assert await desk.does(opening("s2")) == ("undecided", False)
    assert await until_decided(desk, opening("s2")) == ("opened", False)
    assert (desk.held(), desk.entries()) == (10, 1)


async def test_a_signal_that_meets_an_exit_in_doubt_is_no_decision(desk: Desk) -> None:
    await desk.does(opening("s1"))
    desk.exchange.deny(-2015)
    assert await desk.does(closing("s2")) == ("undecided", False)
    assert await desk.does(opening("s3")) == ("undecided", False)
    desk.exchange.allow()
    assert await until_decided(desk, opening("s3")) == ("opened", False)
    assert await desk.does(closing("s2")) == ("closed", False)
    assert (desk.held(), desk.entries()) == (10, 2)


async def until_decided(desk: Desk, signal: OpenSignal) -> tuple[str, bool]:
    async with asyncio.timeout(10):
        while (decided := await desk.does(signal))[0] == "undecided":
            await asyncio.sleep(0.1)
    return decided


async def test_a_rolled_back_open_is_refused_with_its_reason_and_not_tried_again(desk: Desk) -> None:
    refusal = "Order would immediately trigger."
    desk.exchange.inject(Fault(FaultKind.REJECTED, Operation.CREATE_ALGO, code=-2021, message=refusal))
    decision = await desk.trader.carry_out(opening("s1"))
    assert (decision.outcome, decision.details) == (Outcome.REFUSED, "the price is beyond the stop already")
    assert await desk.does(opening("s1")) == ("refused", True)
    assert (desk.held(), desk.entries()) == (0, 1)


async def until_final(desk: Desk, signal: OpenSignal | CloseSignal) -> Decision:
    while not (decision := await desk.trader.carry_out(signal)).final:
        pass
    return decision


@pytest.mark.parametrize("first", ["a pass", "the signal again"])
async def test_a_close_that_could_not_be_sent_closes_nothing_that_came_after_it(
    desk: Desk, first: str
) -> None:
    """Its word was about the position of then; once that has changed, each try would be a new decision."""
    await desk.does(opening("s1"))
    row = await desk.manager.store.open_of("binance", "APTUSDT")
    assert row is not None
    async with desk.guard.hold("binance:APTUSDT") as lease:  # its bot dies before it sends the exit
        await desk.manager.store.expect_close(lease, row, "signal s2", asked=True)
    desk.exchange.trade_by_hand(SYMBOL, Side.SELL, Decimal(10), reduce_only=True)
    desk.exchange.trade_by_hand(SYMBOL, Side.BUY, Decimal(25))
    await desk.pool.execute(OLD_INTENTS)  # what died is not on its way any more
    if first == "a pass":
        await desk.manager.sync_exchange_positions("binance")
    decision = await desk.trader.carry_out(closing("s2"))
    assert (decision.outcome, desk.held()) == (Outcome.REFUSED, 25)
    assert "give the close anew" in decision.details
    assert await desk.does(closing("s2")) == ("refused", True)
    assert await desk.does(closing("s3")) == ("closed", False)
