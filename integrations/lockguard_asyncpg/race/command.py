"""``lockguard fence race``: every way to write, at every isolation level, directly and through a pooler."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from lockguard import interrupt
from lockguard.errors import ConfigurationError
from lockguard_asyncpg.connecting import Mistake, own_server, reason_of
from lockguard_asyncpg.dsn import checked, shown
from lockguard_asyncpg.errors import DATABASE_ERRORS, unreachable
from lockguard_asyncpg.race import (
    ISOLATIONS,
    PLANTED,
    PLANTED_ISOLATIONS,
    RacePlan,
    RaceReport,
    Way,
    convict,
    present_ways,
    race,
)
from lockguard_asyncpg.race.chaos.command import DURATION, run_chaos

if TYPE_CHECKING:
    from datetime import timedelta

    from lockguard_asyncpg.transaction import Isolation

__all__ = ["race_command"]

_PLANTED_WRITES = 400


@dataclass(frozen=True, slots=True)
class _Route:
    """A way to the database."""

    name: str
    url: str
    pooler: bool


@dataclass(frozen=True, slots=True)
class _Run:
    """One race of the series."""

    route: _Route
    isolation: Isolation
    way: Way


@click.command(name="race")
@click.option("--writes", type=click.IntRange(1), help="Operations for each run.  [default: 2000]")
@click.option(
    "--total", type=click.IntRange(1), help="Operations for all runs together, instead of --writes."
)
@click.option(
    "--way",
    "ways",
    multiple=True,
    metavar="NAME",
    help="Race one way to write only, by the name that its line has; may be repeated.  [default: all]",
)
@click.option("--holders", default=12, show_default=True, type=click.IntRange(2, 200))
@click.option("--seed", default=1, show_default=True, help="Of the holders' random choices.")
@click.option(
    "--embedded",
    is_flag=True,
    help="Race on a Postgres of its own, and PgBouncer where it is installed.  [default without --url]",
)
@click.option("--pooler", is_flag=True, help="The URL is a pooler in transaction mode.")
@click.option(
    "--chaos",
    is_flag=True,
    help="Race processes on servers of their own: they are stopped, killed and robbed of their Redis.",
)
@click.option("--duration", type=DURATION, default="60s", show_default=True, help="Of --chaos: 90s, 30m, 2h.")
@click.option("--processes", default=4, show_default=True, type=click.IntRange(2, 50), help="Of --chaos.")
@click.option(
    "--planted", is_flag=True, help="Also run checks that look sound and are not: all must be seen."
)
@click.option("--url", help="A database with the schema to race on; no environment variable names it.")
def race_command(
    url: str | None,
    writes: int | None,
    total: int | None,
    ways: tuple[str, ...],
    holders: int,
    seed: int,
    *,
    embedded: bool,
    pooler: bool,
    planted: bool,
    chaos: bool,
    duration: timedelta,
    processes: int,
) -> None:
    """Race against the fence: pauses, killed backends, lost replies.

    Starts servers of its own unless --url names a database; what the bot's own variables name is left alone.
    There it makes and drops a schema lockguard_race, and refuses one that it did not make.

    Prints a line of JSON for each run, or with --chaos for each round and each way to write, and one for all.
    Exit code 1 if a stale write got in, an operation was done twice or lost, or a planted check was not seen.
    """
    if chaos:
        if url is not None or pooler or writes is not None or total is not None or ways:
            raise click.UsageError(
                "--chaos empties its Redis and kills backends: it runs on servers of its own, in all ways,"
                " until --duration is over; leave --url, --pooler, --writes, --total and --way out"
            )
        sound = run_chaos(duration=duration, processes=processes, seed=seed, planted=planted)
        raise SystemExit(0 if sound else 1)
    if writes is not None and total is not None:
        raise click.UsageError("give --writes or --total, not both")
    if embedded and url is not None:
        raise click.UsageError("give --url or --embedded, not both")
    if pooler and url is None:
        raise click.UsageError("a server of its own comes with its own pooler: leave --pooler out")
    racers = _racers(ways)
    plan = RacePlan(writes=writes or 2_000, holders=holders, seed=seed)
    checked(url)
    with _routes(url, pooler=pooler) as routes:
        try:
            sound = interrupt.run(_series(routes, racers, plan, total=total, planted=planted))
        except ConfigurationError as exc:
            raise Mistake(str(exc)) from exc
        except (*DATABASE_ERRORS, ValueError) as exc:
            told = f"cannot race on {shown(url)}: {reason_of(exc)}"
            raise click.ClickException(told) if unreachable(exc) else Mistake(told) from exc
    raise SystemExit(0 if sound else 1)


@contextmanager
def _routes(url: str | None, *, pooler: bool) -> Iterator[tuple[_Route, ...]]:
    if url is not None:
        click.echo(f"racing on {shown(url)}", err=True)
        yield (_Route("pooler" if pooler else "direct", url, pooler),)
        return
    with ExitStack() as stack:
        server = stack.enter_context(own_server("racing", max_connections=200))
        from lockguard_asyncpg.race.pooler import PgBouncer, find_pgbouncer  # noqa: PLC0415 - an extra

        routes = [_Route("direct", server.url, pooler=False)]
        if find_pgbouncer() is None:
            click.echo("PgBouncer is not installed (apt install pgbouncer): directly only", err=True)
        else:
            try:
                bouncer = stack.enter_context(PgBouncer(server))
            except ConfigurationError as exc:
                raise Mistake(str(exc)) from exc
            routes.append(_Route("pooler", bouncer.url, pooler=True))
        yield tuple(routes)


def _racers(names: tuple[str, ...]) -> tuple[Way, ...]:
    ways = {way.name: way for way in present_ways()}
    for name in names:
        if name not in ways:
            known = ", ".join(repr(one) for one in ways)
            raise click.BadParameter(f"{name!r} is none of {known}", param_hint="--way")
    return tuple(ways[name] for name in dict.fromkeys(names or ways))


async def _series(
    routes: tuple[_Route, ...], ways: tuple[Way, ...], plan: RacePlan, *, total: int | None, planted: bool
) -> bool:
    runs = [
        _Run(route, isolation, way)
        for route in routes
        for isolation in ISOLATIONS
        for way in ways
        # A pooler gives a lone statement the server's default.
        if way.transacts or not route.pooler or isolation == ISOLATIONS[0]
    ]
    if total is not None:
        plan = replace(plan, writes=-(-total // len(runs)))
    sound, sums = True, Counter[str]()
    for run in runs:
        tried = replace(plan, isolation=run.isolation)
        report = await race(run.route.url, tried, run.way, pooler=run.route.pooler)
        facts = _facts(report)
        click.echo(
            json.dumps({"route": run.route.name, "isolation": run.isolation, "write": run.way.name, **facts})
        )
        sums.update({name: count for name, count in facts.items() if isinstance(count, int)})
        sound = sound and report.sound
    click.echo(json.dumps({"all": len(runs), "seed": plan.seed, **sums}))
    if planted:
        sound = await _planted(routes[0].url, plan) and sound
    return sound


def _facts(report: RaceReport) -> dict[str, object]:
    return {
        "stale_commits": report.stale_commits,
        "duplicates": report.duplicates,
        "lost_writes": report.lost_writes,
        "stray_errors": report.stray_errors,
        "told": report.told,
        **dict(sorted(report.counts.items())),
    }


async def _planted(url: str, plan: RacePlan) -> bool:
    sound = True
    for isolation in PLANTED_ISOLATIONS:
        for way in PLANTED:
            verdict = await convict(url, way, replace(plan, writes=_PLANTED_WRITES, isolation=isolation))
            facts = {
                "planted": way.name,
                "isolation": isolation,
                "convicted": verdict.convicted,
                "races": verdict.races,
                "stale_commits": verdict.report.stale_commits,
            }
            click.echo(json.dumps(facts))
            sound = sound and verdict.convicted
    return sound
