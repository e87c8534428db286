"""Two synchronous bots on one account: what each guard is worth, and what the gate at the order adds.

freqtrade is tried where ``LOCKGUARD_FREQTRADE_PYTHON`` names an interpreter that has it and lockguard.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from lockguard_lab.exchange import Side
from lockguard_lab.one_account import PAIRS, TTL_S, Bought, End, Guard, race
from lockguard_lab.one_account.freqtrade import freqtrades
from lockguard_lab.one_account.plain_bot import plain_bots

APT = PAIRS[0]
RECIPE = Path(__file__).parents[2] / "docs" / "examples" / "one_account.py"

LATE_S = 0.25
"""By how much a server may be late with dropping a key (L1)."""

CASES: list[tuple[Guard, End, int]] = [
    ("none", "", 10),
    ("full", "", 0),
    ("hooks", "SIGSTOP", 1),
    ("full", "SIGSTOP", 0),
    ("full", "SIGKILL", 0),
]


def freqtrade(test: Any) -> Any:
    """A test with freqtrade itself, which takes half a minute where the processor is free."""
    without = not os.environ.get("LOCKGUARD_FREQTRADE_PYTHON")
    why = "LOCKGUARD_FREQTRADE_PYTHON names no interpreter that has freqtrade and lockguard"
    return pytest.mark.timeout(600)(pytest.mark.skipif(without, reason=why)(test))


def judge(found: Bought, doubled: int) -> None:
    assert found.doubled == doubled
    assert sum(found.entries.values()) == sum(found.positions.values()) == len(PAIRS) + doubled


@pytest.mark.parametrize(("guard", "end", "doubled"), CASES)
async def test_two_bots_buy_no_pair_twice_whatever_became_of_one(
    guard: Guard, end: End, doubled: int
) -> None:
    async with plain_bots(guard) as stage:
        judge(found := await race(stage, end), doubled)
        assert ("not sent: the lease on 'binance:APTUSDT'" in stage.first.log) == (
            end == "SIGSTOP" and not doubled
        )
        if found.ended_at is not None:
            busy = [
                float(at) for at in re.findall(r"^(\S+) APT.* is held by", stage.second.log, re.MULTILINE)
            ]
            assert busy, "the other met its lease"
            assert max(busy) < found.ended_at + TTL_S + LATE_S, "and asked after its ttl it was gone"


@pytest.mark.parametrize("guard", ["hooks", "full"])
async def test_a_late_exit_does_not_sell_what_the_other_bot_has_bought_since(guard: Guard) -> None:
    async with plain_bots(guard) as stage:
        exchange, first, second = stage.exchange, stage.first, stage.second
        first.tell("go")
        await first.until(lambda: bool(exchange.record().position(APT)), "buy")
        await first.goes_round()
        first.tell("end_here", "SIGSTOP")
        first.tell("exit")
        await first.until(lambda: first.has("ended"), "confirm an exit")
        exchange.trade_by_hand(APT, Side.SELL, exchange.record().position(APT), reduce_only=True)  # its stop
        second.tell("go")
        await second.until(lambda: bool(exchange.record().position(APT)), "buy in its turn")
        first.resume()
        await first.goes_round()
        assert bool(exchange.record().position(APT)) is (guard == "full")


@freqtrade
@pytest.mark.parametrize(("guard", "end", "doubled"), CASES)
async def test_two_freqtrades_buy_no_pair_twice_whatever_became_of_one(
    guard: Guard, end: End, doubled: int
) -> None:
    python = Path(os.environ["LOCKGUARD_FREQTRADE_PYTHON"])
    async with freqtrades(python, RECIPE, guard) as stage:
        judge(await race(stage, end), doubled)
        stopped = end == "SIGSTOP" and not doubled
        assert ("not sent: the lease on 'binance:APTUSDT'" in stage.first.log) == stopped
        dropped = "Unable to create trade for APT/USDT:USDT"
        if stopped:  # it says so a moment after the refusal
            await stage.first.until(lambda: dropped in stage.first.log, "drop the entry")
        assert (dropped in stage.first.log) == stopped
        assert stage.exchange.record().reductions() == (), "nothing was sold"


@freqtrade
async def test_a_freqtrade_without_redis_buys_nothing_and_protects_and_sells_what_it_has() -> None:
    python = Path(os.environ["LOCKGUARD_FREQTRADE_PYTHON"])
    async with freqtrades(python, RECIPE, "full") as stage:
        exchange, first = stage.exchange, stage.first
        first.tell("go")
        await first.until(lambda: bool(exchange.record().position(APT)), "buy")
        stage.redis.kill()
        await first.goes_round(1 + TTL_S)
        bought = sum(len(exchange.record().entries(pair)) for pair in PAIRS)
        await first.until(lambda: not exchange.record().without_stop(), "place the stops")
        exchange.set_price(APT, exchange.price(APT) * 20)
        await first.until(lambda: not exchange.record().position(APT), "take its profit")
        await first.goes_round()
        assert sum(len(exchange.record().entries(pair)) for pair in PAIRS) == bought
