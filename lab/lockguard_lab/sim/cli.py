"""``lockguard sim``."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from lockguard._cli.mistake import Mistake
from lockguard._cli.numbers import WholeNumber
from lockguard._cli.tables import Table, console
from lockguard._clock import SYSTEM_CLOCK
from lockguard._private_files import require_writable, write_private
from lockguard_lab.sim.layers import LAYERS, Layer, OutcomeOf, PlanOf, layer_of, shrunk
from lockguard_lab.sim.plan import TOPOLOGIES
from lockguard_lab.sim.planted.command import known_seeds, run_planted
from lockguard_lab.sim.workers import results

__all__ = ["sim"]

_RANGE = re.compile(r"(\d{1,12})(?:\.\.(\d{1,12}))?", re.ASCII)
_AT_ONCE = 50
"""Fewer are not worth another process."""
_PART = 10
_TRACES_TOLD = 3
_FAILURES_SHOWN = 3
_LISTED = 20


class _Seeds(click.ParamType[range]):
    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        """``7``, or ``1..1000``, both ends counted."""
        if isinstance(value, range):
            return value
        found = _RANGE.fullmatch(str(value))
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            self.fail(f"{value!r} is no range of seeds; write 1..1000, or 7 for one", param, ctx)
        return range(first, last + 1)


@click.command(name="sim")
@click.option(
    "--seeds",
    type=_Seeds(),
    help="Which schedules: 1..1000, or 7.  [default: 1..200; with --planted 1..3000]",
)
@click.option(
    "--layer",
    type=click.Choice(LAYERS),
    default="lock",
    show_default=True,
    help="What is simulated: the lock, the fence in Postgres, or the flow of positions on an exchange.",
)
@click.option(
    "--topology", type=click.Choice(TOPOLOGIES), help="Only these servers; by default the seed chooses."
)
@click.option(
    "--processes",
    type=WholeNumber(1, 64),
    default=os.cpu_count() or 1,
    show_default="the cores",
    help="How many run at once.",
)
@click.option("--trace", is_flag=True, help="Show all that happened, of one seed.")
@click.option(
    "--planted",
    is_flag=True,
    help="Plant known mistakes in copies of the sources, one at a time: each must break a law.",
)
@click.option(
    "--again",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --planted: try first the seeds that convicted in this report, for a quick check.",
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write what was found."
)
def sim(
    *,
    names: tuple[str, ...],
    seeds: range | None,
    layer: str,
    topology: str | None,
    processes: int,
    trace: bool,
    planted: bool,
    again: Path | None,
    json_file: Path | None,
) -> None:
    """Run schedules of a simulated world, each from its seed, and judge them by the guarantees.

    The library and its Lua scripts are the shipped ones; time, the network, the servers and their faults are
    simulated. A failure names its seed, the law that it broke, and the fewest faults that still break it.
    Exit code 1 if any did.

    With --planted, NAME is a part of a mistake's name, a pattern such as '*seal*', or a layer: lock, fence,
    flow or past; without one, all are planted. Exit code 1 if one of them broke no law.
    """
    if planted:
        if trace or topology:
            raise Mistake("each planted mistake has its own servers: leave --trace and --topology out")
        require_writable(json_file)
        known = known_seeds(again)
        raise SystemExit(0 if run_planted(names, seeds or range(1, 3001), processes, json_file, known) else 1)
    if again:
        raise Mistake("--again is for planted mistakes: write --planted too")
    if topology and layer != "lock":
        raise Mistake(f"--topology chooses the servers of the lock; leave it out with --layer {layer}")
    if names:
        raise Mistake(f"{names[0]!r} names a planted mistake: write --planted too")
    seeds = seeds or range(1, 201)
    if trace and len(seeds) > 1:
        raise Mistake("--trace shows one schedule; name it: --seeds 7")
    require_writable(json_file)
    failed = _run_and_tell(layer, seeds, topology, processes, json_file, trace=trace)
    raise SystemExit(1 if failed else 0)


def _run_and_tell(
    layer: str,
    seeds: range,
    topology: str | None,
    processes: int,
    json_file: Path | None,
    *,
    trace: bool,
) -> list[int]:
    """Run the schedules, and tell what was found; returns the seeds that broke a law.

    Raises:
        KeyboardInterrupt: it was interrupted; what was found until then is told.
    """
    began = SYSTEM_CLOCK.now()
    simulated = layer_of(layer)
    outcomes: dict[int, OutcomeOf] = {}
    interrupted: KeyboardInterrupt | None = None
    try:
        _run_all(outcomes, layer, seeds, topology, processes, trace=trace)
    except KeyboardInterrupt as exc:
        if not outcomes:
            raise
        interrupted = exc
    failed = sorted(seed for seed, outcome in outcomes.items() if outcome.violations)
    took_s = SYSTEM_CLOCK.now() - began
    if trace:
        click.echo(f"{simulated.plan(seeds[0], topology)}\n" + "\n".join(outcomes[seeds[0]].lines))
    _show(simulated, outcomes, took_s, processes)
    if json_file is not None:
        facts = _facts(simulated, outcomes, took_s, processes)
        write_private(json_file, json.dumps(facts, indent=2) + "\n")
    if failed:
        click.echo(f"seeds that broke a law: {_listed(failed)}")
    if interrupted is not None:
        raise interrupted
    for seed in failed[:_FAILURES_SHOWN]:
        _show_failure(simulated, simulated.plan(seed, topology))
        servers = f" --topology {topology}" if topology else ""
        click.echo(f"all that happened: lockguard sim --layer {layer}{servers} --seeds {seed} --trace")
    return failed


def _run_all(
    found: dict[int, OutcomeOf],
    layer: str,
    seeds: range,
    topology: str | None,
    processes: int,
    *,
    trace: bool,
) -> None:
    """Run the schedules; ``found`` has the outcome of each that is over."""
    if processes == 1 or len(seeds) < _AT_ONCE:
        simulated = layer_of(layer)
        for seed in seeds:
            outcome = simulated.run(simulated.plan(seed, topology))
            found[seed] = outcome if trace else outcome.without_lines()
        return
    parts = (seeds[at : at + _PART] for at in range(0, len(seeds), _PART))
    with closing(results(partial(_run_part, layer, topology), parts, processes)) as done:
        for part in done:
            found |= part


def _listed(seeds: list[int]) -> str:
    more = f", and {len(seeds) - _LISTED:,} more" if len(seeds) > _LISTED else ""
    return ", ".join(map(str, seeds[:_LISTED])) + more


def _run_part(layer: str, topology: str | None, seeds: range) -> dict[int, OutcomeOf]:
    simulated = layer_of(layer)
    return {seed: simulated.run(simulated.plan(seed, topology)).without_lines() for seed in seeds}


def _show(layer: Layer, outcomes: dict[int, OutcomeOf], took_s: float, processes: int) -> None:
    laws = Counter(
        law for one in outcomes.values() for law in {violation.law for violation in one.violations}
    )
    table = Table("", "")
    table.add_row("schedules", f"{len(outcomes):,}")
    table.add_row("  a second and core", f"{len(outcomes) / took_s / processes:.1f}")
    table.add_row("virtual time", f"{sum(one.virtual_s for one in outcomes.values()) / 3600:.2f} h")
    for name, told in layer.counts.items():
        table.add_row(told, f"{sum(getattr(one, name) for one in outcomes.values()):,}")
    table.add_row("schedules that broke a law", f"{sum(bool(one.violations) for one in outcomes.values()):,}")
    for law, count in laws.most_common():
        table.add_row(f"  {law}", f"{count:,}")
    console().print(table)


def _show_failure(layer: Layer, plan: PlanOf) -> None:
    least, outcome = shrunk(layer, plan)
    click.echo(f"\n{least}")
    for line in outcome.lines[-25:]:
        click.echo(line)
    for violation in outcome.violations[:3]:
        click.echo(f"  {violation}")


def _facts(layer: Layer, outcomes: dict[int, OutcomeOf], took_s: float, processes: int) -> dict[str, Any]:
    return {
        "seeds": [min(outcomes), max(outcomes)],
        "took_s": took_s,
        "counts": {
            "schedules": len(outcomes),
            "core_s": round(took_s * processes, 1),
            "virtual_s": round(sum(one.virtual_s for one in outcomes.values()), 1),
            **{name: sum(getattr(one, name) for one in outcomes.values()) for name in layer.counts},
        },
        "traces": {str(seed): outcomes[seed].trace_hash for seed in sorted(outcomes)[:_TRACES_TOLD]},
        "violations": {
            str(seed): [str(violation) for violation in one.violations]
            for seed, one in sorted(outcomes.items())
            if one.violations
        },
    }
