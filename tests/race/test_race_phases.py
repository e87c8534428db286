"""Scenario B at each phase of the window: opens without the guard are doubled there, those with it are not.

The sizes are small here; the documentation has the commands and figures of the large ones.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from lockguard_lab.race.run import RaceResult, RaceSettings, run_race
from lockguard_lab.race.settings import PHASES, Phase

OPENS = 12
WINDOW: list[Phase] = ["after-order", "before-stop", "after-stop"]
"""From the execution of the entry to the row that is active."""


def nothing_happened(result: RaceResult) -> None:
    assert result.clean, result.as_json()
    assert (result.duplicates, result.double_entries, result.without_stop, result.orphan_stops) == (
        0,
        0,
        0,
        0,
    )
    assert (result.rolled_back, result.not_opened) == (0, 0)


@pytest.mark.parametrize("phase", WINDOW)
async def test_a_pass_at_a_phase_of_the_window_doubles_only_what_is_unguarded(
    urls: dict[str, str], phase: Phase
) -> None:
    settings = RaceSettings(**urls, scenario="B", phase=phase, opens=OPENS, stagger_ms=10)
    naive = await run_race(replace(settings, guard=False))
    assert naive.duplicates > OPENS / 2
    assert naive.errors == ()
    guarded = await run_race(settings)
    nothing_happened(guarded)
    # It did meet them: each was held by its open, and left alone.
    assert guarded.skipped == OPENS


async def test_before_the_window_a_pass_meets_the_row_and_leaves_it_alone(urls: dict[str, str]) -> None:
    settings = RaceSettings(**urls, scenario="B", phase="before-order", opens=OPENS, stagger_ms=10)
    guarded = await run_race(settings)
    nothing_happened(guarded)
    assert guarded.skipped == OPENS
    # Nothing is on the exchange yet that a pass without the guard could take for unknown.
    assert (await run_race(replace(settings, guard=False))).duplicates == 0


async def test_passes_at_random_moments_double_only_what_is_unguarded(urls: dict[str, str]) -> None:
    settings = RaceSettings(**urls, scenario="B", phase="random", opens=2 * OPENS, stagger_ms=60)
    assert (await run_race(replace(settings, guard=False))).duplicates > 0
    nothing_happened(await run_race(settings))


async def test_twenty_five_staggered_opens_in_four_processes_stay_single(urls: dict[str, str]) -> None:
    # Waits that are long beside the pauses of a busy machine: else its passes come too late for some opens.
    settings = RaceSettings(
        **urls, scenario="B", opens=25, symbols=25, processes=4, stagger_ms=60, time_scale=0.15
    )
    naive = await run_race(replace(settings, guard=False))
    assert naive.duplicates > settings.opens / 2
    nothing_happened(await run_race(settings))


async def test_opens_at_a_phase_that_lose_their_lease_are_finished_by_others(urls: dict[str, str]) -> None:
    result = await run_race(
        RaceSettings(**urls, scenario="B", phase="after-order", opens=OPENS, expire_leases=True, ttl_ms=2_000)
    )
    assert result.clean, result.as_json()
    assert result.leases_expired > 0
    assert (result.duplicates, result.double_entries, result.without_stop, result.orphan_stops) == (
        0,
        0,
        0,
        0,
    )
    assert result.stale_writes.committed == 0


def test_every_phase_has_its_test() -> None:
    assert set(PHASES) == {"all", "random", "before-order", *WINDOW}
