from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from lockguard.errors import ConfigurationError
from lockguard.testing import FakeClock

if TYPE_CHECKING:
    from lockguard._clock import Clock


def test_it_stands_still_until_told() -> None:
    clock: Clock = FakeClock(now_s=5.0, wall_s=10.0)
    assert (clock.now(), clock.wall()) == (5.0, 10.0)
    assert (clock.now(), clock.wall()) == (5.0, 10.0)


def test_advancing_moves_both_clocks() -> None:
    clock = FakeClock(now_s=5.0, wall_s=10.0)
    clock.advance(timedelta(milliseconds=1500))
    assert (clock.now(), clock.wall()) == (6.5, 11.5)


def test_only_the_wall_clock_goes_back() -> None:
    clock = FakeClock(now_s=5.0, wall_s=10.0)
    clock.set_wall_back(timedelta(seconds=3))
    assert (clock.now(), clock.wall()) == (5.0, 7.0)
    with pytest.raises(ConfigurationError, match="cannot advance"):
        clock.advance(timedelta(seconds=-1))
