"""Bots in a container engine: one of two is paused, killed or cut off in the middle of an open."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.packaging.bots_in_containers import APT, SUI, started

if TYPE_CHECKING:
    from tests.packaging.composition import Composition

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("service", "trouble"),
    [
        ("bot", "paused"),
        ("bot", "killed"),
        ("bot", "disconnected"),
        ("pooled-bot", "paused"),
        ("pooled-bot", "killed"),
    ],
)
async def test_the_other_bot_finishes_what_one_was_doing(
    compose: Composition, service: str, trouble: str
) -> None:
    bots = await started(compose, service)
    network = f"{compose.name}_default"
    async with bots.redis, bots.control:
        # Each request takes a second, so that the trouble comes in the middle of the open.
        await bots.control.set_latency(timedelta(seconds=1))
        await bots.give(APT)
        struck = await bots.holder_of(APT)
        words = {
            "paused": ("pause",),
            "killed": ("kill",),
            "disconnected": ("network", "disconnect", network),
        }
        compose.docker(*words[trouble], struck)
        await bots.control.set_latency(timedelta(0))
        await bots.until_active(APT)  # under the other bot's lease: the paused one is still paused

        if trouble == "paused":
            compose.docker("unpause", struck)
            # It was paused for longer than its lease: what it was doing ends without another write.
            await bots.until_logged(struck, "lease lost: binance:APTUSDT")
        elif trouble == "disconnected":
            compose.docker("network", "connect", network, struck)
        else:
            compose.docker("start", struck)
            await bots.until_logged(struck, "running on binance", times=2)

        # Both are at work again, also the one alone.
        (other,) = set(bots.containers().values()) - {struck}
        compose.docker("pause", other)
        await bots.give(SUI)
        await bots.until_active(APT, SUI)
        compose.docker("unpause", other)
        await bots.all_is_well(APT, SUI)
    compose("stop")
    codes = compose.exit_codes()
    assert codes == dict.fromkeys(codes, 0)
