"""Plays the three acts, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.demo.history import peek
from lockguard_lab.demo.paused import BotProcesses, PausedResult, Watch, play, prepare
from lockguard_lab.demo.report import DemoResult, claims
from lockguard_lab.race.run import RaceSettings, run_race

if TYPE_CHECKING:
    from lockguard_lab.demo.console import Screen
    from lockguard_lab.demo.stage import Stage
    from lockguard_lab.race.settings import RaceResult

__all__ = ["Load", "play_all"]

_SYMBOLS = ("APTUSDT", "SUIUSDT", "ARBUSDT")
_ATTEMPTS_MAX = 3

_UNGUARDED = (
    "One process opens positions on signals: row, market order, wait, stop order, row. Another syncs: what"
    " the exchange has and the table has not gets a row and a stop. The unique index and the checks look at"
    " active rows only, as they did before."
)
_GUARDED = (
    "The same load. Each symbol's decision is made under its lease, on state that is read again under it;"
    " every write carries the lease's token, and Postgres checks it."
)
_PAUSED = (
    "A bot opens a position and is stopped (SIGSTOP) after its entry was filled, before its stop is placed,"
    " for longer than its lease lives. A standby takes over and finishes. Then the first one wakes up and"
    " sends the write that it had ready, with its old token."
)


@dataclass(frozen=True, slots=True)
class Load:
    """The load of the races.

    Attributes:
        opens: how many positions to open.
        time_scale: the factor for the flow's own fixed waits.
    """

    opens: int
    time_scale: float


async def play_all(stage: Stage, load: Load, screen: Screen, *, began: float) -> DemoResult:
    """Play the three acts and print their results; ``began`` is when the whole demo began.

    Raises:
        ConfigurationError: a server or a process fails.
    """
    await prepare(stage.database_url)
    cast = BotProcesses(stage.part, len(_SYMBOLS))
    try:
        # Started now, so that the third act need not wait for them: until then they are idle.
        await cast.start()
        unguarded = await _unguarded(stage, load, screen)
        guarded = await _guarded(screen, against=unguarded)
        async with peek(stage.race_redis_url) as looking:
            history = tuple(await looking.histories())
        paused = await _paused(stage, cast, screen)
    finally:
        await cast.aclose()
    result = DemoResult(
        unguarded=unguarded,
        guarded=guarded,
        guarded_history=history,
        paused=paused,
        servers=stage.servers,
        seconds=SYSTEM_CLOCK.now() - began,
    )
    screen.verdict(claims(result), result.seconds)
    return result


async def _unguarded(stage: Stage, load: Load, screen: Screen) -> RaceResult:
    """Play the first act until duplicates appear."""
    screen.act(1, "without the guard", _UNGUARDED)
    settings = RaceSettings(
        redis_url=stage.race_redis_url,
        database_url=stage.postgres.url,
        exchange_url=stage.trading.url,
        scenario="B",
        guard=False,
        processes=2,
        opens=load.opens,
        time_scale=load.time_scale,
    )
    result = await _race(settings, screen)
    for seed in range(settings.seed + 1, settings.seed + _ATTEMPTS_MAX):
        if result.duplicates:
            break
        result = await _race(replace(settings, seed=seed), screen)
    screen.race(result)
    return result


async def _guarded(screen: Screen, *, against: RaceResult) -> RaceResult:
    """Play the second act with the load of the first."""
    screen.act(2, "with the guard", _GUARDED)
    result = await _race(replace(against.settings, guard=True), screen)
    screen.race(result, against)
    return result


async def _race(settings: RaceSettings, screen: Screen) -> RaceResult:
    with screen.progress("starting two processes") as update:
        return await run_race(settings, on_progress=lambda done, total: update(done, total, "opening"))


async def _paused(stage: Stage, cast: BotProcesses, screen: Screen) -> PausedResult:
    """Play the third act."""
    screen.act(3, "the paused holder", _PAUSED)
    shown = False

    def show(_: str, watch: Watch) -> None:
        nonlocal shown
        if not shown:
            shown = True
            screen.watch(watch, stage.redis_cli)

    with screen.progress("the holder opens a position") as update:
        result = await play(
            cast,
            list(_SYMBOLS),
            postgres=stage.postgres,
            exchange=stage.calm,
            on_stopped=show,
            on_progress=lambda done, what: update(done, len(_SYMBOLS), what),
        )
    screen.paused(result)
    return result
