"""``lockguard fence race --chaos``: rounds until the time is up, and a summary for each way to write."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from lockguard import _interrupt as interrupt
from lockguard._cli.durations import Duration
from lockguard._cli.mistake import Mistake
from lockguard.errors import ConfigurationError
from lockguard_asyncpg._connecting import connected
from lockguard_asyncpg._schema import install
from lockguard_lab.fence_race.chaos.plan import ChaosPlan, RoundReport, Tally

if TYPE_CHECKING:
    import asyncpg

__all__ = ["DURATION", "run_chaos"]

# A kill may come in the middle of a page, and a commit that is not waited for reaches the disk late.
_SETTINGS = {"full_page_writes": "on", "wal_writer_delay": "2s"}
DURATION = Duration("duration", "smh", "give one such as 90s, 30m or 2h", least=timedelta(seconds=1))


def run_chaos(*, duration: timedelta, processes: int, seed: int, planted: bool) -> bool:
    """Start a Postgres, a Redis and, if installed, PgBouncer; race until ``duration`` is over.

    Returns:
        Whether no law was broken, every round was completed, and each planted check was convicted.
    """
    try:
        from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer  # noqa: PLC0415 - an extra
        from lockguard_lab.fence_race.series import Route  # noqa: PLC0415 - an extra
        from lockguard_lab.servers import PostgresServer, RedisServer  # noqa: PLC0415 - an extra
    except ImportError as missing:
        raise Mistake(str(missing)) from missing
    plan = ChaosPlan(ways=(), processes=processes, seed=seed)
    with ExitStack() as stack:
        try:
            postgres = stack.enter_context(
                PostgresServer(max_connections=40 * processes + 40, settings=_SETTINGS)
            )
            redis = stack.enter_context(RedisServer())
            routes = [Route("direct", postgres.url, pooler=False)]
            if find_pgbouncer() is None:
                click.echo("PgBouncer is not installed (apt install pgbouncer): directly only", err=True)
            else:
                bouncer = stack.enter_context(PgBouncer(postgres))
                routes.append(Route("pooler", bouncer.url, pooler=True))
        except ConfigurationError as exc:
            raise Mistake(str(exc)) from exc
        click.echo(f"racing on servers of its own: {postgres!r}, {redis!r}", err=True)
        connected(postgres.url, _install)
        return interrupt.run(
            _series(plan, tuple(routes), redis, postgres, duration=duration, planted=planted)
        )


async def _install(conn: asyncpg.Connection[Any]) -> None:
    await install(conn)


async def _series(
    plan: ChaosPlan, routes: tuple[Any, ...], redis: Any, postgres: Any, *, duration: timedelta, planted: bool
) -> bool:
    from lockguard_lab.fence_race.chaos.series import convict_planted, rounds  # noqa: PLC0415 - an extra

    total = RoundReport()
    try:
        async for name, report in rounds(plan, routes, redis=redis, postgres=postgres, duration=duration):
            _tell({"round": name, **_facts(report)})
            total.add(report)
    finally:
        for way, tally in sorted(total.ways.items()):
            _tell({"write": way, **asdict(tally)})
        _tell({"all": sum(t.attempted for t in total.ways.values()), "seed": plan.seed, **_facts(total)})
    sound = not total.violations and not total.counts["rounds that failed"]
    sound = sound and not total.counts["processes that failed"]
    sound = sound and not total.unresolved
    if planted:
        seen, count = await convict_planted(plan, redis=redis, postgres=postgres)
        for way, stale in seen.items():
            _tell({"planted": way, "convicted": stale > 0, "stale_commits": stale, "rounds": count})
        sound = sound and all(seen.values())
    return sound


def _facts(report: RoundReport) -> dict[str, Any]:
    sums = Tally()
    for tally in report.ways.values():
        sums.add(tally)
    return {
        **asdict(sums),
        "faults": dict(sorted(report.faults.items())),
        "counts": dict(sorted(report.counts.items())),
        "told": report.told,
    }


def _tell(facts: dict[str, Any]) -> None:
    click.echo(json.dumps(facts))
