"""What cannot work is refused before any order, in one line that names the value."""

from __future__ import annotations

import asyncio

import pytest

from lockguard.errors import ConfigurationError
from lockguard_lab.exchange import FaultKind, Operation
from lockguard_positions import AlreadyOpen, NotOpened, Opened
from tests.integration.test_positions_flow import APT, Bot, bot, two_bots

__all__ = ["bot", "two_bots"]


async def test_an_unknown_symbol_is_named_and_nothing_is_ordered(bot: Bot) -> None:
    with pytest.raises(ConfigurationError, match="NOPE"):
        await bot.manager.open_position_atomic("s", "NOPE/USDT:USDT", "binance", "long", "10", "8", "2")
    assert not bot.exchange.record().entries(APT)
    assert not await bot.rows()


@pytest.mark.parametrize("side", ["long", "short"])
@pytest.mark.parametrize("distance", ["-2", "0", "100"])
async def test_a_stop_on_the_wrong_side_is_refused(bot: Bot, side: str, distance: str) -> None:
    with pytest.raises(ConfigurationError, match="stop_loss_percent"):
        await bot.manager.open_position_atomic("s", APT, "binance", side, "10", "8.5", distance)
    assert not bot.exchange.record().entries(APT)
    assert not await bot.rows()


async def test_the_other_direction_of_an_open_symbol_orders_nothing_and_says_so(bot: Bot) -> None:
    await bot.open(side="long")
    before = bot.exchange.record().entries(APT)
    result = await bot.open(side="short")
    assert isinstance(result, AlreadyOpen)
    row = result.position.id
    told = f"binance:APTUSDT is open long already (row {row}); close it before it is opened short"
    assert result.reason == told
    assert bot.exchange.record().entries(APT) == before


@pytest.mark.parametrize("key", ["apiKey", "secret"])
async def test_a_missing_api_key_is_named_and_nothing_is_ordered(bot: Bot, key: str) -> None:
    setattr(bot.client, key, "")
    with pytest.raises(
        ConfigurationError, match=f"^binance has no {key}; give the ccxt exchange its API keys$"
    ):
        await bot.open()
    assert not bot.exchange.record().entries(APT)
    assert not await bot.rows()


@pytest.mark.parametrize("ability", ["createStopOrder", "createReduceOnlyOrder", "fetchPositions"])
async def test_an_exchange_that_cannot_protect_a_position_gets_no_order(
    bot: Bot, ability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bot.client.has, ability, False)
    with pytest.raises(ConfigurationError, match=f"no {ability} for it; use an exchange that has"):
        await bot.open()
    assert not bot.exchange.record().entries(APT)
    assert not await bot.rows()


@pytest.mark.parametrize(("side", "given", "stop"), [("long", "9", "8.82"), ("short", "8", "8.16")])
async def test_a_stop_that_the_price_has_passed_is_refused_before_the_entry(
    bot: Bot, side: str, given: str, stop: str
) -> None:
    """The stop of a signal of then is beyond the price of now, 8.5: the entry would be closed at once."""
    refused = await bot.manager.open_position_atomic("s", APT, "binance", side, "10", given, "2")
    assert isinstance(refused, NotOpened)
    assert f"APTUSDT trades at 8.5, beyond the stop at {stop} already" in refused.reason
    assert f"2 % from {given}; give the price of now as entry_price" in refused.reason
    assert not bot.exchange.record().entries(APT)
    (row,) = await bot.rows()
    assert (row["status"], row["error_details"]) == ("failed", refused.reason)
    assert isinstance(await bot.open(side=side), Opened)


async def test_a_price_that_is_not_told_refuses_nothing(bot: Bot) -> None:
    bot.fault(FaultKind.OVERLOADED, Operation.TICKER)
    assert isinstance(await bot.open(), Opened)


async def test_a_price_that_does_not_come_holds_nothing_up(bot: Bot) -> None:
    bot.client.timeout = 60_000
    bot.fault(FaultKind.HANG, Operation.TICKER, hold_ms=60_000)
    async with asyncio.timeout(20):
        assert isinstance(await bot.open(), Opened)


async def test_an_account_switched_to_hedge_mode_meanwhile_is_told_what_to_do(bot: Bot) -> None:
    bot.exchange.set_hedge_mode(True)
    refused = await bot.open()
    assert isinstance(refused, NotOpened)
    assert "-4061" in refused.reason
    assert "set_position_mode(False)" in refused.reason
