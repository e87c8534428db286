"""What cannot work is refused before any order, in one line that names the value."""

from __future__ import annotations

import pytest

from lockguard.errors import ConfigurationError
from lockguard_positions import AlreadyOpen, ExchangeUnreadable
from tests.integration.test_positions_flow import APT, Bot, bot, two_bots

__all__ = ["bot", "two_bots"]


async def test_an_unknown_symbol_is_named_and_nothing_is_ordered(bot: Bot) -> None:
    with pytest.raises(ConfigurationError, match="NOPE"):
        await bot.manager.open_position_atomic("s", "NOPE/USDT:USDT", "binance", "long", "10", "8", "2")
    assert not bot.exchange.record().entries(APT)


@pytest.mark.parametrize("side", ["long", "short"])
@pytest.mark.parametrize("distance", ["-2", "0", "100"])
async def test_a_stop_on_the_wrong_side_is_refused(bot: Bot, side: str, distance: str) -> None:
    with pytest.raises(ConfigurationError, match="stop_loss_percent"):
        await bot.manager.open_position_atomic("s", APT, "binance", side, "10", "8.5", distance)
    assert not bot.exchange.record().entries(APT)
    assert not await bot.rows()


async def test_the_other_direction_of_an_open_symbol_orders_nothing(bot: Bot) -> None:
    await bot.open(side="long")
    before = bot.exchange.record().entries(APT)
    result = await bot.open(side="short")
    assert isinstance(result, AlreadyOpen)
    assert result.position.side.value == "long"
    assert bot.exchange.record().entries(APT) == before


async def test_missing_api_keys_are_named_and_nothing_is_ordered(bot: Bot) -> None:
    bot.client.apiKey = ""
    with pytest.raises(ExchangeUnreadable, match="apiKey"):
        await bot.open()
    assert not bot.exchange.record().entries(APT)
    assert not await bot.rows()
