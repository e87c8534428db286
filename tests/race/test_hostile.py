"""A short form of the hostile run, and what its judge convicts; the long form is a command of its own."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lockguard_lab.exchange import LocalExchange, Side, connect
from tests.race.hostile import Bot, Hostile, Score, Sent, hostile

APT = "APT/USDT:USDT"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_bots_harm_nothing_of_a_person_at_the_same_accounts_and_lose_no_signal(tmp_path: Path) -> None:
    score = await hostile(24, 7, tmp_path)
    assert score.good, json.dumps(asdict(score), indent=2)
    assert score.entries > 5
    assert score.by_hand > 5
    assert score.troubles["restored"] == 1


class Said:
    """A bot that has said something."""

    label = "one"

    def __init__(self, *lines: dict[str, Any] | str) -> None:
        self._lines = lines

    def lines(self) -> tuple[dict[str, Any] | str, ...]:
        return self._lines


async def judged(exchange: LocalExchange, sent: list[Sent], *lines: dict[str, Any] | str) -> Score:
    race = Hostile(exchange, None, None, opens=1, seed=1)  # type: ignore[arg-type]
    race.sent = sent
    bots: list[Bot] = [Said(*lines)]  # type: ignore[list-item]
    race.judge(bots)
    return race.score


def now_ms() -> int:
    return round(time.time() * 1000)


async def some_milliseconds() -> None:
    """The record counts in milliseconds, by a clock of its own."""
    before_ms = now_ms()
    while now_ms() < before_ms + 20:
        await asyncio.sleep(0)


async def test_the_judge_convicts_a_bot_that_sells_what_a_person_has_bought() -> None:
    async with LocalExchange() as exchange, connect(exchange.url) as bot:
        exchange.trade_by_hand(APT, Side.BUY, Decimal(10))
        await bot.create_order(APT, "market", "sell", 10, None, {"reduceOnly": True})
        assert len((await judged(exchange, [])).unasked) == 1
        asked = [Sent("c", "one", "close", "APTUSDT", now_ms())]
        assert (await judged(exchange, asked)).unasked == []


async def test_the_judge_sets_an_entry_apart_only_if_a_person_traded_after_the_last_look() -> None:
    async with LocalExchange() as exchange, connect(exchange.url) as bot:
        await bot.fetch_positions()
        await some_milliseconds()
        exchange.trade_by_hand(APT, Side.BUY, Decimal(10))
        await bot.create_order(APT, "market", "sell", 10)
        score = await judged(exchange, [])
        assert (len(score.met), score.unasked) == (1, [])
    async with LocalExchange() as exchange, connect(exchange.url) as bot:
        exchange.trade_by_hand(APT, Side.BUY, Decimal(10))
        await some_milliseconds()
        await bot.fetch_positions()
        before_ms = now_ms()
        await bot.create_order(APT, "market", "sell", 10)
        assert len((await judged(exchange, [])).unasked) == 1
        # A look at other symbols came between: the lease began before the person traded, or only after that.
        assert (await judged(exchange, [], began(before_ms - 5_000))).unasked == []
        assert len((await judged(exchange, [], began(before_ms))).unasked) == 1


def began(at_ms: int) -> dict[str, Any]:
    message = f"binance@one:APTUSDT position 1: new -> pending_entry token={at_ms}000 during open"
    return {"logger": "lockguard.positions", "level": "INFO", "message": message}


async def test_the_judge_convicts_an_entry_upon_an_entry_and_acquits_one_after_the_end() -> None:
    async with LocalExchange() as exchange, connect(exchange.url) as bot:
        await bot.create_order(APT, "market", "buy", 10)
        exchange.trade_by_hand(APT, Side.SELL, Decimal(10))
        await bot.create_order(APT, "market", "buy", 10)
        assert (await judged(exchange, [])).doubled == []
        await bot.create_order(APT, "market", "buy", 10)
        assert len((await judged(exchange, [])).doubled) == 1


async def test_the_judge_misses_signals_lines_and_alerts() -> None:
    async with LocalExchange() as exchange, connect(exchange.url) as bot:
        await bot.create_order(APT, "market", "buy", 10)
        line = {"signal": "a", "outcome": "undecided", "logger": "lockguard.bot", "level": "ERROR"}
        score = await judged(exchange, [Sent("a", "one", "open", "APTUSDT", 0)], line, "Traceback (most")
        assert (score.lost, score.not_json) == (["a open APTUSDT"], ["Traceback (most"])
        race = Hostile(exchange, None, None, opens=1, seed=1)  # type: ignore[arg-type]
        late = [(0, 20_000)]
        race._judge_stops("one:APTUSDT", exchange.record(), "APTUSDT", late, [])
        assert len(race.score.untold) == 1
        assert race.score.unprotected_s == 20


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ("binance@one:APTUSDT position 1: without a stop for longer than 10 s", True),
        ("binance@one:APTUSDT position 1: over: without a stop for longer than 10 s", False),
        (
            "binance@one:APTUSDT position None: not read or decided for longer than 10 s: unreadable: 418",
            True,
        ),
        ("binance@one:APTUSDT position None: not closed: its order is still open", False),
        (
            "binance@one position None: not read or decided for longer than 10 s, with 3 open positions: 418",
            True,
        ),
        ("binance@one position None: not read or decided for longer than 10 s: 418", False),
        (
            "binance@two position None: not read or decided for longer than 10 s, with 3 open positions: 418",
            False,
        ),
        ("binance@one:ADAUSDT position 2: without a stop for longer than 10 s", False),
    ],
)
async def test_the_judge_hears_what_tells_a_person_that_a_stop_may_be_missing(
    said: str, counts: bool
) -> None:
    async with LocalExchange() as exchange, connect(exchange.url) as bot:
        await bot.create_order(APT, "market", "buy", 10)
        race = Hostile(exchange, None, None, opens=1, seed=1)  # type: ignore[arg-type]
        race._judge_stops("one:APTUSDT", exchange.record(), "APTUSDT", [(0, 20_000)], [(12_000.0, said)])
        assert (len(race.score.told), len(race.score.untold)) == ((1, 0) if counts else (0, 1))
