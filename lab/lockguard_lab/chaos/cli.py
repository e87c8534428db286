"""``lockguard chaos``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import lockguard
from lockguard import _interrupt as interrupt
from lockguard._cli.mistake import Mistake
from lockguard._cli.numbers import DecimalNumber, WholeNumber
from lockguard._private_files import require_writable, write_private
from lockguard.errors import ConfigurationError
from lockguard_asyncpg._connecting import connected
from lockguard_asyncpg._schema import install
from lockguard_lab.chaos.plan import TOPOLOGIES, ChaosPlan, RoundReport, digest

if TYPE_CHECKING:
    import asyncpg

    from lockguard_lab.chaos.report import Summary

__all__ = ["chaos", "own_directory"]

# A kill may come in the middle of a page, and a commit that is not waited for reaches the disk late.
_SETTINGS = {"full_page_writes": "on", "wal_writer_delay": "2s"}
_ALL = "all"
_ROUND = timedelta(seconds=40)


@click.command(name="chaos")
@click.option(
    "--minutes",
    type=DecimalNumber(0.1, 100_000),
    default=1.0,
    show_default=True,
    help="How long to disturb; a part of a minute is 0.5.",
)
@click.option(
    "--topology",
    type=click.Choice((*TOPOLOGIES, _ALL)),
    default=_ALL,
    show_default=True,
    help="Over which Redis servers; all take turns.",
)
@click.option("--seed", type=WholeNumber(0), default=1, show_default=True, help="Of the faults.")
@click.option("--processes", type=WholeNumber(2, 50), default=4, show_default=True, help="How many bots.")
@click.option(
    "--planted", is_flag=True, help="Also race checks that look sound and are not: all must be convicted."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write what was found."
)
@click.option(
    "--history",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep each round's history here, in a directory that is empty or not there yet.",
)
@click.option(
    "--check",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Run nothing; judge the history of a round, or of all rounds below this directory.",
)
@click.pass_context
def chaos(
    context: click.Context,
    *,
    minutes: float,
    topology: str,
    seed: int,
    processes: int,
    planted: bool,
    json_file: Path | None,
    history: Path | None,
    check: Path | None,
) -> None:
    """Kill, stop, wipe and cut off real processes and servers, and judge all that they did.

    Bots hold leases and write in every documented way, on a Postgres and Redis servers of their own. Every
    call is recorded, and each round judged: whether the lock and the fence of each resource could have acted
    one call after the other, what was stale or lost, who waited beside a free lock, and how long each
    recovery took. In each run the judge must also convict writes and grants that are wrong on purpose.

    Ctrl-C ends the processes and judges what was recorded. Exit code 1 if a law was broken, a round or a
    process failed, an outcome was not found out, or the judge missed what it must convict.
    """
    if check is not None:
        _require_alone(context)
    require_writable(json_file)
    command = shlex.join(["lockguard", *sys.argv[1:]])
    try:
        if check is not None:
            summary = _check(check)
        else:
            summary = _run(
                ChaosPlan(ways=(), length=_ROUND, processes=processes, seed=seed),
                TOPOLOGIES if topology == _ALL else (topology,),
                timedelta(minutes=minutes),
                history=history,
                planted=planted,
            )
    except ConfigurationError as exc:
        raise Mistake(str(exc)) from exc
    if summary.missed:
        click.echo(f"the judge did not convict {', nor '.join(summary.missed)}", err=True)
    summary.show()
    if json_file is not None:
        write_private(json_file, json.dumps(summary.facts(command), indent=2) + "\n")
    if summary.sound and summary.total.counts["interrupted"]:
        raise SystemExit(interrupt.interrupted())
    raise SystemExit(0 if summary.sound else 1)


def _require_alone(context: click.Context) -> None:
    for name in ("minutes", "topology", "seed", "processes", "planted", "history"):
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--check judges what is recorded: leave --{name} out")


def _check(directory: Path) -> Summary:
    from lockguard_lab.chaos.report import UNJUDGED, Summary  # noqa: PLC0415 - with what it imports, an extra
    from lockguard_lab.chaos.selfcheck import self_check  # noqa: PLC0415
    from lockguard_lab.chaos.verdict import judge_round  # noqa: PLC0415

    found = sorted(plan.parent for plan in directory.glob("**/round.json"))
    if not found:
        raise Mistake(f"{directory} has no round: give what --history of an earlier run named")
    summary, whole = Summary(0), 0
    for place in found:
        report, checked, seed, topology = RoundReport(), {}, 0, "unknown"
        try:
            judged = judge_round(place, report)
            checked = self_check(judged)
            seed, topology = judged.plan["seed"], judged.plan["topology"]
            whole += 1
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError) as exc:
            why = str(exc) if type(exc) is ValueError else f"it is damaged or of another version ({exc!r})"
            report = RoundReport()
            report.counts[UNJUDGED] += 1
            report.tell(f"{place} cannot be judged: {why}")
            if len(found) == 1:
                raise Mistake(report.told[0]) from exc
        summary.seed = summary.seed or seed
        summary.add(place.name, topology, seed, report, checked)
    if not whole:
        raise Mistake(f"{directory}: none of its {len(found)} rounds can be judged")
    return summary


def _run(
    plan: ChaosPlan,
    topologies: tuple[str, ...],
    duration: timedelta,
    *,
    history: Path | None,
    planted: bool,
) -> Summary:
    """Start a Postgres and, if installed, PgBouncer; run rounds until ``duration`` is over."""
    try:
        from lockguard_lab.chaos.report import Summary  # noqa: PLC0415 - an extra
        from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer  # noqa: PLC0415 - an extra
        from lockguard_lab.fence_race.series import Route  # noqa: PLC0415 - an extra
        from lockguard_lab.servers import PostgresServer  # noqa: PLC0415 - an extra
    except ImportError as missing:
        raise Mistake(str(missing)) from missing
    summary = Summary(plan.seed)
    with ExitStack() as stack:
        if history is None:
            directory = Path(tempfile.mkdtemp(prefix="lockguard-chaos-"))
            stack.push(partial(_drop, directory, summary))
        else:
            directory = own_directory(history)
        connections = 30 * plan.processes + 40
        postgres = stack.enter_context(PostgresServer(max_connections=connections, settings=_SETTINGS))
        routes = [Route("direct", postgres.url, pooler=False)]
        if find_pgbouncer() is None:
            click.echo("PgBouncer is not installed (apt install pgbouncer): directly only", err=True)
        else:
            bouncer = stack.enter_context(PgBouncer(postgres))
            routes.append(Route("pooler", bouncer.url, pooler=True))
        click.echo(f"trying {Path(lockguard.__file__).parent} on {postgres!r}", err=True)
        connected(postgres.url, _install)
        try:
            interrupt.run(
                _series(
                    plan,
                    topologies,
                    tuple(routes),
                    postgres,
                    directory,
                    duration,
                    summary,
                    planted=planted,
                )
            )
        except KeyboardInterrupt:  # between two rounds: those that are over are told
            if not summary.rounds:
                raise
            summary.total.counts["interrupted"] += 1
    return summary


def _drop(directory: Path, summary: Summary, failed: type[BaseException] | None, *_: object) -> None:
    """Delete the history, unless it shows what happens perhaps once: another run goes another way."""
    if summary.sound or not summary.rounds:
        shutil.rmtree(directory, ignore_errors=True)
        return
    summary.kept = directory
    if failed is not None:  # nobody will show the summary
        summary.tell_kept()


async def _install(conn: asyncpg.Connection[Any]) -> None:
    await install(conn)


def own_directory(path: Path) -> Path:
    """Make the directory of a run's history, for this run alone.

    Raises:
        Mistake: it is not empty, or cannot be used.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        taken = any(path.iterdir())
        if not taken:  # of two runs at once that find it empty, one gets it
            os.close(os.open(path / "run", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        taken = True
    except OSError as exc:
        raise Mistake(f"--history {path} cannot be used: {(exc.strerror or str(exc)).lower()}") from exc
    if taken:
        raise Mistake(f"--history {path} is not empty: name another directory")
    return path.resolve()


async def _series(
    plan: ChaosPlan,
    topologies: tuple[str, ...],
    routes: tuple[Any, ...],
    postgres: Any,
    directory: Path,
    duration: timedelta,
    summary: Summary,
    *,
    planted: bool,
) -> None:
    from lockguard_lab.chaos.judged import read_round  # noqa: PLC0415 - an extra
    from lockguard_lab.chaos.selfcheck import self_check  # noqa: PLC0415 - an extra
    from lockguard_lab.chaos.series import convict_planted, rounds  # noqa: PLC0415 - an extra

    async for round_ in rounds(
        plan, topologies, routes, postgres=postgres, duration=duration, directory=directory
    ):
        report = round_.report
        checked = {} if report.counts["rounds that failed"] else self_check(read_round(round_.place))
        summary.plans[str(round_.plan.seed)] = digest(round_.plan)
        summary.add(round_.name, round_.plan.topology, round_.plan.seed, report, checked)
    if planted and not summary.total.counts["interrupted"]:
        summary.planted, ended = await convict_planted(plan, postgres=postgres, directory=directory)
        summary.total.add(ended)
        summary.violations += [f"{plan.seed} planted: {line}" for line in ended.told]
        for line in ended.told:
            click.echo(f"planted: {line}")
