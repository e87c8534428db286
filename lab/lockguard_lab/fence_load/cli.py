"""``lockguard fence load``."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lockguard import _interrupt as interrupt
from lockguard._cli.durations import Duration
from lockguard._cli.mistake import Mistake
from lockguard._cli.numbers import WholeNumber
from lockguard._cli.tables import Table, console
from lockguard._private_files import require_writable, write_private
from lockguard.errors import ConfigurationError
from lockguard_lab.fence_load.plan import TASKS, LoadPlan, LoadReport, Phase
from lockguard_lab.own_server import own_server

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["load_command"]

_DURATION = Duration("duration", "smh", "give one such as 90s, 30m or 2h", least=timedelta(seconds=1))
_CONNECTIONS_EACH = 2 * (TASKS + 1)


@click.command(name="load")
@click.option(
    "--processes",
    default=8,
    show_default=True,
    type=WholeNumber(1, 50),
    help="How many write, each with a few bodies at once.",
)
@click.option(
    "--resources",
    default=1_000,
    show_default=True,
    type=WholeNumber(1, 1_000_000),
    help="How many resources they write under.",
)
@click.option("--duration", type=_DURATION, default="60s", show_default=True, help="90s, 30m, 2h.")
@click.option(
    "--seed", type=WholeNumber(), default=1, show_default=True, help="Of the processes' random choices."
)
@click.option(
    "--history",
    default=0,
    type=WholeNumber(0, 50_000_000),
    help="Also measure a hold and a break after so many earlier writes, beside the same after none.",
)
@click.option("--fsync", is_flag=True, help="Have Postgres wait for the disk at each commit.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures."
)
def load_command(*, fsync: bool, json_file: Path | None, **options: Any) -> None:
    """Load servers of its own with many bots at once: throughput, patience, cost and what is left behind.

    Each process runs a few bodies at once, on resources of which some are wanted by many; first without the
    fence, for a fifth of the time, then with it. Exit code 1 if a stale write got in or a body failed.
    """
    require_writable(json_file)
    plan = LoadPlan(**options)
    report = _loaded(plan, settings={"fsync": "on" if fsync else "off"})
    if json_file is not None:
        history = [{**asdict(one), "ratio": one.ratio} for one in report.history]
        told = {**asdict(report), "history": history, "sound": report.sound}
        write_private(json_file, json.dumps(told, indent=2) + "\n")
    out = console()
    _show(report, out)
    if report.history:
        figures = Table("", "after none, us", f"after {plan.history:,}, us", "ratio")
        for one in report.history:
            figures.add_row(one.work, f"{one.none_us:,.0f}", f"{one.after_us:,.0f}", f"{one.ratio:.2f}")
        out.print(figures)
    raise SystemExit(0 if report.sound else 1)


def _loaded(plan: LoadPlan, settings: dict[str, str]) -> LoadReport:
    try:
        from lockguard_lab.fence_load.running import run_load  # noqa: PLC0415 - an extra
        from lockguard_lab.fence_load.server import SETTINGS  # noqa: PLC0415 - an extra
        from lockguard_lab.servers import RedisServer  # noqa: PLC0415 - an extra
    except ImportError as missing:
        raise Mistake(str(missing)) from missing
    connections = _CONNECTIONS_EACH * plan.processes + 20
    with own_server("loading", max_connections=connections, settings={**SETTINGS, **settings}) as postgres:
        try:
            with RedisServer() as redis:
                return interrupt.run(run_load(redis, postgres, plan, progress=_progress))
        except ConfigurationError as exc:
            raise Mistake(str(exc)) from exc


def _progress(what: str) -> None:
    click.echo(f"{what} ...", err=True)


def _show(report: LoadReport, out: Console) -> None:
    phases = Table("", "without the fence", "with it")
    for name, *figures in zip(_ROWS, _figures(report.plain), _figures(report.fenced), strict=True):
        phases.add_row(name, *figures)
    out.print(phases)
    sizes = Table("table", "KB before", "after", "rows before", "after", "dead before", "after")
    for before, after in zip(report.before, report.after, strict=True):
        sizes.add_row(
            after.table,
            *(f"{size.bytes / 1024:,.0f}" for size in (before, after)),
            *(f"{size.live:,}" for size in (before, after)),
            *(f"{size.dead:,}" for size in (before, after)),
        )
    out.print(sizes)
    out.print(
        f"{report.calls:,} calls of the fence, {report.cpu_us_per_call:,.0f} us of server CPU for each;"
        f" {report.late:,} writes after the lease was given back, {report.stale_commits} stale commits"
    )
    for line in report.told:
        out.print(line)


_ROWS = (
    "holds with a write, per second",
    "half of them took less than, ms",
    "99 of 100 took less than, ms",
    "no lease in time",
    "failed",
    "server CPU for each hold, us",
    "of it autovacuum, s of s",
)


def _figures(phase: Phase) -> tuple[str, ...]:
    return (
        f"{phase.writes_per_s:,.0f}",
        f"{phase.p50_ms:,.1f}",
        f"{phase.p99_ms:,.1f}",
        f"{phase.gave_up:,}",
        f"{phase.failed:,}",
        f"{phase.cpu_us_per_hold:,.0f}",
        f"{phase.autovacuum_cpu_s:.2f} of {phase.server_cpu_s:.2f}",
    )
