"""``lockguard sim``."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click

from lockguard._cli.mistake import Mistake
from lockguard._cli.tables import Table, console
from lockguard._clock import SYSTEM_CLOCK
from lockguard._private_files import require_writable, write_private
from lockguard_lab.sim.layers import LAYERS, Layer, OutcomeOf, PlanOf, layer_of, shrunk
from lockguard_lab.sim.plan import TOPOLOGIES
from lockguard_lab.sim.planted.command import run_planted

__all__ = ["sim"]

_RANGE = re.compile(r"(\d{1,12})(?:\.\.(\d{1,12}))?")
_AT_ONCE = 50
_TRACES_TOLD = 3


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
    type=click.IntRange(1, 64),
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
        raise SystemExit(0 if run_planted(names, seeds or range(1, 3001), processes, json_file) else 1)
    if topology and layer != "lock":
        raise Mistake(f"--topology chooses the servers of the lock; leave it out with --layer {layer}")
    if names:
        raise Mistake(f"{names[0]!r} names a planted mistake: write --planted too")
    seeds = seeds or range(1, 201)
    if trace and len(seeds) > 1:
        raise Mistake("--trace shows one schedule; name it: --seeds 7")
    require_writable(json_file)
    began = SYSTEM_CLOCK.now()
    simulated = layer_of(layer)
    outcomes = _run_all(layer, seeds, topology, processes)
    failed = {seed: outcome for seed, outcome in outcomes.items() if outcome.violations}
    took_s = SYSTEM_CLOCK.now() - began
    if trace:
        click.echo(f"{simulated.plan(seeds[0], topology)}\n" + "\n".join(outcomes[seeds[0]].lines))
    _show(simulated, outcomes, took_s, processes)
    for seed in sorted(failed)[:3]:
        _show_failure(simulated, simulated.plan(seed, topology))
    if json_file is not None:
        facts = _facts(simulated, seeds, outcomes, took_s, processes)
        write_private(json_file, json.dumps(facts, indent=2) + "\n")
    raise SystemExit(1 if failed else 0)


def _run_all(layer: str, seeds: range, topology: str | None, processes: int) -> dict[int, OutcomeOf]:
    if processes == 1 or len(seeds) < _AT_ONCE:
        simulated = layer_of(layer)
        return {seed: simulated.run(simulated.plan(seed, topology)) for seed in seeds}
    parts = [seeds[at : at + _AT_ONCE] for at in range(0, len(seeds), _AT_ONCE)]
    found: dict[int, OutcomeOf] = {}
    with ProcessPoolExecutor(processes) as pool:
        for part in pool.map(_run_part, [layer] * len(parts), parts, [topology] * len(parts)):
            found |= part
    return found


def _run_part(layer: str, seeds: range, topology: str | None) -> dict[int, OutcomeOf]:
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


def _facts(
    layer: Layer, seeds: range, outcomes: dict[int, OutcomeOf], took_s: float, processes: int
) -> dict[str, Any]:
    return {
        "seeds": [seeds[0], seeds[-1]],
        "took_s": took_s,
        "counts": {
            "schedules": len(outcomes),
            "core_s": round(took_s * processes, 1),
            "virtual_s": round(sum(one.virtual_s for one in outcomes.values()), 1),
            **{name: sum(getattr(one, name) for one in outcomes.values()) for name in layer.counts},
        },
        "traces": {str(seed): outcomes[seed].trace_hash for seed in seeds[:_TRACES_TOLD]},
        "violations": {
            str(seed): [str(violation) for violation in one.violations]
            for seed, one in sorted(outcomes.items())
            if one.violations
        },
    }
