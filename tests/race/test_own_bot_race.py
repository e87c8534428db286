"""Two processes of a bot as people write it: what happens without the guard does not happen with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockguard_lab.own_bot import Counted, race, stage

BOTS = Path(__file__).parents[2] / "docs/examples/own_bot"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # three bots with 25 symbols, on whatever machine


async def run(redis_url: str, database_url: str, *, guarded: bool) -> tuple[Counted, str]:
    async with stage(BOTS, redis_url, database_url, guarded=guarded) as on:
        found = await race(on)
        return found, "\n".join(line for bot in on.bots for line in bot.lines)


async def test_without_the_guard_positions_are_doubled_and_rows_left_half_done(redis_url, database_url):
    found, _ = await run(redis_url, database_url, guarded=False)
    assert found.duplicates > found.symbols / 2
    assert found.wrong_orders > found.duplicates
    assert found.half_done > 0
    assert found.violations > 0


async def test_with_the_guard_around_it_nothing_happens(redis_url, database_url):
    found, said = await run(redis_url, database_url, guarded=True)
    assert set(found.harm.values()) == {0}, f"{found.harm}\n{said}"
    assert found.opened == found.symbols == 25, said
    assert found.broken > 0
    assert found.lost > 0, "the stopped bot was told of its losses"
    assert "UniqueViolationError" not in said
    assert "no token for" not in said, "every writer of the table has its lease, or writes exempt columns"
