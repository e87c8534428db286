"""An order is placed: what is sent again, what is looked for, and what its outcome is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from ccxt.base import errors as ccxt

from lockguard._clock import SYSTEM_CLOCK
from lockguard_ccxt import Executed, OrderState, PlacedOrder, Refusal, Refused, Step, Unknown
from lockguard_ccxt._placing import Placer, Plan
from lockguard_ccxt._venues import (
    UNREAD,
)
from tests.unit.exchanges_in_memory import GONE, NAME, PATIENCE, SYMBOL, answer, lease, placed

LOST = ccxt.RequestTimeout("binanceusdm POST https://x/fapi/v1/order?symbol=APT&signature=abc")
BUSY = ccxt.RateLimitExceeded('binanceusdm {"code":-1003,"msg":"Too many requests"}')
TOO_CLOSE = ccxt.OrderImmediatelyFillable('binanceusdm {"code":-2021,"msg":"x"}')


class Exchange:
    """Gives the answers of a list to what changes something; each request leaves under the caller's lease."""

    id = "binanceusdm"

    def __init__(self, *answers: Any, timeout_ms: int = 10_000) -> None:
        self.answers = list(answers)
        self.sent = 0
        self.timeout = timeout_ms

    async def create_order(self, *_: Any) -> Any:
        return await self._next()

    async def _next(self) -> Any:
        from lockguard_ccxt import _gate

        running = _gate._current.get()
        assert running is not None
        now = self.answers.pop(0)
        if isinstance(now, ccxt.InvalidAddress):  # raised before anything is sent
            raise now
        running.leaves()
        self.sent += 1
        if callable(now):
            now = await now()
        if isinstance(now, BaseException):
            raise now
        return now


class Books:
    """What is found by a client order id: the next of a list, the last one for good."""

    ids_unique_for_good = False

    def __init__(self, *found: Any, unique: bool = False) -> None:
        self.found = list(found) or [None]
        self.ids_unique_for_good = unique
        self.looks = 0

    async def find(self, exchange: Any, symbol: str, client_id: str, *, conditional: bool) -> Any:
        self.looks += 1
        now = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        if isinstance(now, BaseException):
            raise now
        return now

    async def cancel(self, exchange: Any, order: PlacedOrder) -> Any:
        return await exchange._next()


def placer(exchange: Exchange, books: Books) -> Placer:
    venue: Any = books
    return Placer(exchange, venue, PATIENCE, SYSTEM_CLOCK)


def plan(step: Step = Step.STOP) -> Plan:
    return Plan(step, SYMBOL, "sell", Decimal(10), NAME, {"clientOrderId": NAME})


@pytest.mark.parametrize(
    ("step", "unique", "sent"),
    [
        (Step.ENTRY, False, 1),
        (Step.ENTRY, True, 3),
        (Step.STOP, False, 3),
        (Step.CLOSE, False, 1),
        (Step.CLOSE, True, 3),
    ],
)
async def test_an_order_without_an_answer_is_sent_again_only_where_two_do_no_harm(
    step: Step, unique: bool, sent: int
) -> None:
    exchange, books = Exchange(*[LOST] * 3), Books(unique=unique)
    outcome = await placer(exchange, books).place(plan(step), lease())
    assert isinstance(outcome, Unknown)
    assert exchange.sent == sent


async def test_an_order_that_is_to_be_sent_once_is_not_sent_again_wherever_it_may_be() -> None:
    exchange, books = Exchange(*[LOST] * 3), Books(unique=True)
    outcome = await placer(exchange, books).place(replace(plan(Step.CLOSE), once=True), lease())
    assert isinstance(outcome, Unknown)
    assert exchange.sent == 1


async def test_an_order_whose_answer_was_lost_is_looked_for_for_as_long_as_reads_lag() -> None:
    late = [None, ccxt.RequestTimeout("x"), None, placed()]
    exchange, books = Exchange(LOST), Books(*late)
    outcome = await placer(exchange, books).place(plan(Step.ENTRY), lease())
    assert outcome == Executed(placed(), found=True)
    assert exchange.sent == 1


async def test_a_stop_is_looked_for_once_before_it_is_sent_again_and_longer_afterwards() -> None:
    exchange, books = Exchange(LOST, answer()), Books(None)
    outcome = await placer(exchange, books).place(plan(), lease())
    assert isinstance(outcome, Executed)
    assert (exchange.sent, books.looks) == (2, 1)
    exchange, books = Exchange(LOST, LOST), Books(None, None, None, placed())
    found = Executed(placed(), found=True, copied=True)
    assert await placer(exchange, books).place(plan(), lease()) == found
    assert (exchange.sent, books.looks) == (2, 4)


async def test_a_certain_refusal_is_the_answer_and_nothing_is_looked_for() -> None:
    exchange, books = Exchange(TOO_CLOSE), Books(placed())
    outcome = await placer(exchange, books).place(plan(), lease())
    assert isinstance(outcome, Refused)
    assert outcome.refusal is Refusal.WOULD_TRIGGER
    assert books.looks == 0


async def test_a_second_copy_that_is_refused_says_nothing_while_the_first_may_have_been_taken() -> None:
    exchange, books = Exchange(LOST, TOO_CLOSE), Books(None, placed())
    assert isinstance(await placer(exchange, books).place(plan(), lease()), Executed)
    exchange, books = Exchange(LOST, TOO_CLOSE), Books(None)
    assert isinstance(await placer(exchange, books).place(plan(), lease()), Refused)
    exchange, books = Exchange(LOST, BUSY), Books(None)  # a refusal of the moment: the first may be in flight
    assert isinstance(await placer(exchange, books).place(plan(), lease()), Unknown)


async def test_an_outcome_tells_whether_another_copy_without_an_answer_may_still_arrive() -> None:
    cases = [
        (Exchange(answer()), Books(), False),
        (Exchange(LOST), Books(placed()), False),  # the only copy, found
        (Exchange(LOST, answer()), Books(None), True),
        (Exchange(LOST, LOST), Books(None, placed()), True),
        (Exchange(LOST, TOO_CLOSE), Books(None, placed()), False),  # of two, one is found and one refused
        (Exchange(LOST, LOST, TOO_CLOSE), Books(*[None] * 5, placed()), True),
        (Exchange(TOO_CLOSE), Books(), False),
        (Exchange(LOST, TOO_CLOSE), Books(None), True),
    ]
    for exchange, books, copied in cases:
        outcome = await placer(exchange, books).place(plan(), lease())
        assert isinstance(outcome, Executed | Refused)
        assert outcome.copied is copied, exchange


async def test_an_error_after_sending_is_an_outcome_and_one_before_it_is_the_caller_s() -> None:
    exchange, books = Exchange(KeyError("status")), Books(placed())
    assert await placer(exchange, books).place(plan(), lease()) == Executed(placed(), found=True)
    exchange, books = Exchange(ccxt.InvalidAddress("x")), Books()
    outcome = await placer(exchange, books).place(plan(), lease())
    assert isinstance(outcome, Refused)
    assert outcome.refusal is Refusal.NOT_SENT


async def test_an_answer_that_names_no_order_leaves_it_in_doubt() -> None:
    exchange, books = Exchange({"id": None}), Books(placed())
    assert await placer(exchange, books).place(plan(Step.ENTRY), lease()) == Executed(placed(), found=True)


async def test_no_request_lasts_longer_than_its_lease_or_the_exchange_s_own_bound() -> None:
    async def hangs() -> Any:
        await asyncio.sleep(30)  # as an exchange that does not answer

    async with asyncio.timeout(5):
        exchange = Exchange(hangs)
        started = SYSTEM_CLOCK.now()
        await placer(exchange, Books(placed())).place(plan(Step.ENTRY), lease(0.3))
        exchange = Exchange(hangs, timeout_ms=200)
        await placer(exchange, Books(placed())).place(plan(Step.ENTRY), lease())
    assert SYSTEM_CLOCK.now() - started < 3


async def test_an_order_that_was_only_accepted_is_told_as_it_ended() -> None:
    filled = placed(OrderState.CLOSED, filled="10", trigger=None)
    exchange, books = Exchange(answer(status="")), Books(filled)
    assert await placer(exchange, books).place(plan(Step.ENTRY), lease()) == Executed(filled)


@pytest.mark.parametrize(("filled", "executed"), [("0", False), ("4", True)])
async def test_an_order_that_ended_is_refused_only_if_nothing_of_it_filled(
    filled: str, executed: bool
) -> None:
    exchange = Exchange(answer("canceled", filled=filled))
    outcome = await placer(exchange, Books()).place(plan(Step.ENTRY), lease())
    assert isinstance(outcome, Executed) is executed


async def test_a_read_is_repeated_while_the_exchange_does_not_answer() -> None:
    books = Books(ccxt.RequestTimeout("x"), ccxt.RequestTimeout("x"), placed())
    assert await placer(Exchange(), books).find(SYMBOL, NAME, conditional=True) == placed()


@pytest.mark.parametrize(
    ("shown", "executed"),
    [(placed(OrderState.CANCELED), True), (placed(OrderState.CLOSED), False), (None, False)],
)
async def test_an_order_that_a_cancel_does_not_find_was_cancelled_only_if_it_is_shown_so(
    shown: Any, executed: bool
) -> None:
    outcome = await placer(Exchange(GONE), Books(shown)).cancel(placed(), lease())
    assert isinstance(outcome, Executed) is executed


@pytest.mark.parametrize("shown", [placed(), replace(placed(OrderState.CLOSED), filling=True)])
async def test_an_order_that_may_still_be_filled_is_not_gone_though_a_cancel_does_not_find_it(
    shown: PlacedOrder,
) -> None:
    """A stop that has just fired is no longer among the stops, and reads may lag."""
    assert isinstance(await placer(Exchange(GONE), Books(shown)).cancel(placed(), lease()), Unknown)


@pytest.mark.parametrize(
    ("told", "trigger"),
    [(answer(), "98"), (answer(triggerPrice="90"), "90"), ({**answer(), UNREAD: True}, None)],
)
async def test_a_cancelled_stop_is_told_with_the_price_where_it_was_by_then(
    told: Any, trigger: str | None
) -> None:
    outcome = await placer(Exchange(told), Books()).cancel(placed(), lease())
    assert isinstance(outcome, Executed)
    assert outcome.order.trigger == (None if trigger is None else Decimal(trigger))
    assert outcome.order.state is OrderState.CANCELED
