"""The way of one guarded open through the code, counted, so that it does not grow unseen.

What a newcomer has to read to follow an open is the files and functions that it passes. Counted are those of
our own packages, in an open like any other (the second of a process, on a single Redis, with nothing in its
way). The core and the fence are counted apart from the rooms that know of positions and exchanges; the lab
and the tests are not counted.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lockguard
import lockguard_asyncpg
import lockguard_ccxt
import lockguard_positions
import lockguard_postgres
import lockguard_tenacity
from lockguard_ccxt._markets import Listing
from lockguard_positions import Opened
from tests.integration.test_positions_flow import APT, Bot, bot, two_bots

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

__all__ = ["bot", "two_bots"]

TRADING = (lockguard_positions, lockguard_ccxt)
UNDER_IT = (lockguard, lockguard_asyncpg, lockguard_tenacity)


@contextmanager
def passed() -> Iterator[Counter[CodeType]]:
    """How often each function is entered or gone on with in the body."""
    calls: Counter[CodeType] = Counter()

    def seen(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            calls[frame.f_code] += 1

    sys.setprofile(seen)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def of(packages: tuple[Any, ...], calls: Counter[CodeType]) -> tuple[set[str], int]:
    """The files of some packages that were passed, and how many functions in them."""
    homes = [Path(package.__file__).parent for package in packages]
    ours = [code for code in calls if any(Path(code.co_filename).is_relative_to(home) for home in homes)]
    named = [code for code in ours if not code.co_name.startswith("<")]  # a comprehension is none
    return {code.co_filename for code in ours}, len(named)


@pytest.fixture
async def way(bot: Bot) -> Counter[CodeType]:
    """Of the second open."""
    for _ in range(2):
        price = bot.exchange.price(APT)
        with passed() as calls:
            opened = await bot.manager.open_position_atomic("s", APT, "binance", "long", "10", price, "2")
        assert isinstance(opened, Opened)
        await bot.manager.close_position(APT, "binance")
    return calls


async def test_an_open_resolves_its_symbol_once(way: Counter[CodeType]) -> None:
    assert way[Listing.market.__code__] == 1


async def test_an_open_passes_so_many_files(way: Counter[CodeType]) -> None:
    """24 files with 165 functions when this was written, and 51 with 276 with what is under them."""
    files, functions = of(TRADING, way)
    below, functions_below = of(UNDER_IT, way)
    told = f"{functions} functions in {sorted(files)}, {functions_below} in {sorted(below)}"
    assert len(files) <= 25, told
    assert len(files | below) <= 54, told
    # Of these the fence of asyncpg had most inside, before another driver came to share them.
    shared, _ = of((lockguard_postgres,), way)
    assert len(shared) <= 9, sorted(shared)
