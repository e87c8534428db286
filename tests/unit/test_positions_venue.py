"""How the flow asks an exchange: how often, in which book, in whose steps, and by which name."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from ccxt.base import errors as ccxt

from lockguard.errors import ConfigurationError
from lockguard_ccxt import Executed, OrderState, Refusal, Step
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._model import Intent, NewPosition
from lockguard_positions._venue import Venue
from tests.unit.positions_in_memory import (
    LONG,
    MARKET,
    PACE,
    RULES,
    SHORT,
    order,
    own_stop,
    position,
    refused,
)

INTENT = Intent(9, 7, Step.STOP, "lgs-1", "sell", Decimal(10), Decimal(98))


class Exchange:
    """A guarded exchange that gives the answers of a list, and says by which arguments it was asked."""

    name = "binance"

    def __init__(self, *answers: Any, orders: dict[str, Any] | None = None, key: str | None = "k") -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, Any]] = []
        self.orders = orders or {}
        self.closed_for = timedelta(0)
        self.in_doubt_for = timedelta(seconds=20)
        self.exchange = SimpleNamespace(id="binanceusdm", apiKey=key)

    async def _next(self, what: str, told: Any) -> Any:
        self.asked.append((what, told))
        now = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(now, BaseException):
            raise now
        return now

    async def place_stop(self, *_: Any, **told: Any) -> Any:
        return await self._next("stop", told)

    async def place_entry(self, *_: Any, **told: Any) -> Any:
        return await self._next("entry", told)

    async def close_position(self, *_: Any, **told: Any) -> Any:
        return await self._next("close", told)

    async def cancel(self, placed: Any) -> Any:
        return await self._next("cancel", placed.id)

    async def find_order(
        self, market: Any, client_id: str, *, conditional: bool, patiently: bool = False
    ) -> Any:
        self.asked.append(("find", (client_id, conditional)))
        found = self.orders.get((client_id, conditional))
        return found.pop(0) if isinstance(found, list) and len(found) > 1 else found[0] if found else None


def venue(exchange: Exchange) -> Venue:
    anything: Any = exchange
    return Venue(anything, PACE)


TAKEN = Executed(own_stop())


async def test_what_is_refused_for_a_moment_is_asked_again_a_bounded_number_of_times() -> None:
    exchange = Exchange(refused(Refusal.RATE_LIMITED), refused(Refusal.OVERLOADED), TAKEN)
    assert await venue(exchange).stop(MARKET, INTENT) is TAKEN
    assert len(exchange.asked) == 3
    exchange = Exchange(refused(Refusal.RATE_LIMITED))
    await venue(exchange).stop(MARKET, INTENT)
    assert len(exchange.asked) == PACE.attempts


@pytest.mark.parametrize(
    "refusal", [Refusal.WOULD_TRIGGER, Refusal.AUTHENTICATION, Refusal.FUNDS, Refusal.UNRECOGNISED]
)
async def test_a_refusal_that_stays_is_asked_once(refusal: Refusal) -> None:
    exchange = Exchange(refused(refusal))
    await venue(exchange).stop(MARKET, INTENT)
    assert len(exchange.asked) == 1


async def test_a_wait_that_is_longer_than_a_symbol_can_be_held_is_left_to_a_later_pass() -> None:
    exchange = Exchange(refused(Refusal.BANNED))
    exchange.closed_for = timedelta(minutes=5)
    await venue(exchange).stop(MARKET, INTENT)
    assert len(exchange.asked) == 1


@pytest.mark.parametrize("still", [True, False, None])
async def test_a_refused_exit_is_sent_again_unless_it_is_not_to_be(still: bool | None) -> None:
    exchange = Exchange(refused(Refusal.OVERLOADED), TAKEN)

    async def renew() -> bool | None:
        return still

    outcome = await venue(exchange).close(MARKET, replace(INTENT, step=Step.CLOSE), renew)
    assert (outcome is TAKEN) is (still is not False)
    assert len(exchange.asked) == (1 if still is False else 2)


@pytest.mark.parametrize("asked", [True, False])
async def test_only_an_exit_that_a_person_asked_for_is_sent_again_for_want_of_an_answer(asked: bool) -> None:
    exchange = Exchange(TAKEN)
    await venue(exchange).close(MARKET, replace(INTENT, step=Step.CLOSE, asked=asked))
    assert exchange.asked == [("close", {"intent": 9, "once": not asked})]


@pytest.mark.parametrize("before", [True, False])
async def test_a_stop_that_may_have_been_sent_is_looked_for_by_its_own_number(before: bool) -> None:
    exchange = Exchange(TAKEN)
    await venue(exchange).stop(MARKET, replace(INTENT, sent_before=before))
    assert exchange.asked[0][1] == {"trigger": Decimal(98), "intent": 9, "again": before}


@pytest.mark.parametrize(
    ("step", "conditional"), [(Step.ENTRY, False), (Step.STOP, True), (Step.CLOSE, False)]
)
async def test_an_order_is_looked_for_in_the_book_of_its_kind(step: Step, conditional: bool) -> None:
    exchange = Exchange()
    await venue(exchange).find(MARKET, replace(INTENT, step=step))
    assert exchange.asked == [("find", ("lgs-1", conditional))]


async def test_an_entry_that_does_not_fill_in_time_is_cancelled_and_told_as_it_ended() -> None:
    waits = order("lge-9", side="buy", reduce_only=False)
    ended = replace(waits, state=OrderState.CANCELED, filled=Decimal(3))
    exchange = Exchange(Executed(waits))
    books: Any = {("lge-9", False): [waits]}
    exchange.orders = books

    async def cancel(placed: Any) -> Any:
        exchange.asked.append(("cancel", placed.id))
        books["lge-9", False] = [ended]
        return Executed(ended)

    exchange.cancel = cancel  # type: ignore[method-assign]
    entry = replace(INTENT, step=Step.ENTRY, client_id="lge-9")
    assert await venue(exchange).done(MARKET, entry, waits) == ended
    assert ("cancel", "lge-9") in exchange.asked


@pytest.mark.parametrize("filled_at_once", [True, False])
async def test_the_rest_of_an_entry_is_waited_for_only_as_long_as_its_filled_part_may_wait(
    filled_at_once: bool,
) -> None:
    whole = order("lge-9", side="buy", reduce_only=False)
    part = replace(whole, filled=Decimal(3))
    exchange = Exchange(Executed(whole))
    books: Any = {("lge-9", False): [whole, part]}
    exchange.orders = books

    async def cancel(placed: Any) -> Any:
        books["lge-9", False] = [replace(part, state=OrderState.CANCELED)]
        return Executed(placed)

    exchange.cancel = cancel  # type: ignore[method-assign]
    seen: list[str] = []

    def filling() -> float:
        seen.append("a part is filled")
        return 0.0

    entry = replace(INTENT, step=Step.ENTRY, client_id="lge-9")
    slow = Venue(exchange, replace(PACE, settle=timedelta(hours=1)))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        ended = await slow.done(MARKET, entry, part if filled_at_once else whole, filling=filling)
    assert (ended.state, ended.filled, len(seen)) == (OrderState.CANCELED, Decimal(3), 1)
    # One read after the cancel, and before it only those up to the one that shows the part.
    assert [what for what, _ in exchange.asked] == ["find"] * (1 if filled_at_once else 3)


async def test_an_error_of_the_exchange_is_unreadable_and_any_other_is_itself() -> None:
    with pytest.raises(ExchangeUnreadable):
        await venue(Exchange(ccxt.RequestTimeout("x"))).stop(MARKET, INTENT)
    with pytest.raises(KeyError):
        await venue(Exchange(KeyError("x"))).stop(MARKET, INTENT)


async def test_the_account_knows_a_position_by_its_entry_or_its_stop() -> None:
    for name, conditional in (("lge-1", False), ("lgs-1", True)):
        exchange = Exchange(orders={(name, conditional): [own_stop()]})  # type: ignore[dict-item]
        assert await venue(exchange).knows(MARKET, position())
    assert not await venue(Exchange()).knows(MARKET, position())


def test_one_key_is_one_account() -> None:
    assert venue(Exchange(key="k")).same_account(venue(Exchange(key="k")))
    for other in ("x", "", None):
        assert not venue(Exchange(key="k")).same_account(venue(Exchange(key=other)))
    assert not venue(Exchange(key=None)).same_account(venue(Exchange(key=None)))


def asked_for(side: Any = LONG, quantity: str = "10") -> NewPosition:
    return NewPosition("binance", "APTUSDT", side, Decimal(quantity), Decimal(100), Decimal(2), "s")


@pytest.mark.parametrize(
    ("side", "price", "beyond"),
    [(LONG, "98", True), (LONG, "98.01", False), (SHORT, "102", True), (SHORT, "101.99", False)],
)
def test_nothing_is_entered_whose_stop_would_trigger_at_once(side: Any, price: str, beyond: bool) -> None:
    if beyond:
        with pytest.raises(ConfigurationError, match="beyond the stop"):
            venue(Exchange()).in_steps(MARKET, asked_for(side), Decimal(price))
    else:
        venue(Exchange()).in_steps(MARKET, asked_for(side), Decimal(price))


@pytest.mark.parametrize(("side", "price"), [(LONG, "100"), (SHORT, "100"), (LONG, "97"), (SHORT, "103")])
def test_a_stop_nearer_than_one_tick_is_told_as_that(side: Any, price: str) -> None:
    coarse = replace(MARKET, steps=lambda: replace(RULES, price_tick=Decimal(5)))
    with pytest.raises(ConfigurationError) as told:
        venue(Exchange()).in_steps(coarse, asked_for(side), Decimal(price))
    near = price == "100"
    assert ("less than one tick, 5; give a wider" in str(told.value)) is near
    assert ("give the price of now" in str(told.value)) is not near


def test_a_quantity_is_in_the_exchange_s_steps_and_worth_what_it_asks_for() -> None:
    assert venue(Exchange()).in_steps(MARKET, asked_for(quantity="10.19"), None).quantity == Decimal("10.1")
    dear = replace(MARKET, steps=lambda: replace(MARKET.rules, cost_min=Decimal(1_000)))
    assert venue(Exchange()).in_steps(dear, asked_for(), None).quantity == Decimal(10)
    with pytest.raises(ConfigurationError, match="smallest order"):
        venue(Exchange()).in_steps(dear, asked_for(quantity="9.9"), None)
