"""``scripts/models``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from lockguard._cli.numbers import DecimalNumber, WholeNumber
from lockguard._clock import SYSTEM_CLOCK
from lockguard._private_files import require_writable, write_private
from lockguard_lab.models import spin
from lockguard_lab.models.checks import CHECKS, MODELS, Check
from lockguard_lab.models.recording import record
from lockguard_lab.models.spin import Told, Unusable
from lockguard_lab.models.traces import take, taker
from lockguard_lab.sim.plan import Plan

__all__ = ["models"]

_STORED = {
    "exact": "every state",
    "collapse": "every state, compressed",
    "hash-compact": "64 bits of each state",
    "bitstate": "3 bits of each state: not all are visited",
}
_COMMIT = ("git", "rev-parse", "HEAD")
_AT_ONCE = 50
_HEAD = f"{'states':>12}  {'depth':>6}  {'MiB':>6}  {'s':>7}"


@click.command(name="models")
@click.argument("model", type=click.Choice(MODELS), required=False)
@click.option("--long", is_flag=True, help="The larger bounds instead, for minutes or hours.")
@click.option("--only", metavar="TEXT", help="Only checks whose name has this in it.")
@click.option("--trail", metavar="MISTAKE", help="Print the shortest way to what this mistake breaks.")
@click.option(
    "--traces", metavar="A..B", help="Take what these schedules of `lockguard sim` did through the model."
)
@click.option(
    "--memory", type=WholeNumber(256), default=6000, show_default=True, help="MiB for one verifier."
)
@click.option(
    "--within", type=DecimalNumber(1), default=3600.0, show_default=True, help="Seconds for one search."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write what was found."
)
def models(
    *,
    model: str | None,
    long: bool,
    only: str | None,
    trail: str | None,
    traces: str | None,
    memory: int,
    within: float,
    json_file: Path | None,
) -> None:
    """Check the models of spec/ with Spin, all or one, and that each planted mistake is convicted.

    Nothing is written into the tree. Exit code 1 if a model breaks a law or a mistake does not break its own,
    3 if Spin or a C compiler is not there.
    """
    require_writable(json_file)
    if name := spin.missing():
        click.echo(f"{name} is not there: apt-get install spin gcc libc6-dev", err=True)
        raise SystemExit(3)
    if traces is not None:
        _take_traces(_seeds(traces), json_file)
        return
    if trail is not None:
        _show_trail(_named(trail, model), memory)
        return
    chosen = [
        one
        for one in CHECKS
        if model in (None, one.model) and long == one.long and (only is None or only in one.name)
    ]
    began, clock = datetime.now(UTC), SYSTEM_CLOCK.now()
    click.echo(_HEAD)
    told = [_run(one, memory, within) for one in chosen]
    if json_file is not None:
        facts = _facts(told, began=began, seconds=SYSTEM_CLOCK.now() - clock, memory=memory)
        write_private(json_file, json.dumps(facts, indent=2) + "\n")
    wrong = [one for one in told if not one.as_expected]
    click.echo(
        f"\n{sum(one.states for one in told):,} states; {len(told) - len(wrong)} of {len(told)} as expected"
    )
    raise SystemExit(1 if wrong else 0)


def _run(what: Check, memory: int, within: float) -> Told:
    try:
        told = spin.check(what, memory_mib=memory, within_s=within)
    except Unusable as unusable:
        raise click.ClickException(str(unusable)) from unusable
    row = f"{told.states:>12,}  {told.depth:>6,}  {told.memory_mib:>6,.0f}  {told.seconds:>7.1f}  "
    expected = "" if told.as_expected else f"  <-- expected: {what.law or 'clean'}"
    click.echo(f"{row}{what.model}: {what.name}: {told.verdict}{expected}")
    return told


def _named(name: str, model: str | None) -> Check:
    wanted = name.lower().replace("_", " ")
    for one in CHECKS:
        if one.mistake and one.name == wanted and model in (None, one.model):
            return one
    known = ", ".join(one.name for one in CHECKS if one.mistake and model in (None, one.model))
    raise click.BadParameter(f"{name!r} is no mistake; there are: {known}")


def _show_trail(what: Check, memory: int) -> None:
    told = spin.check(what, memory_mib=memory, trail=True)
    for step in told.trail:
        click.echo(step)
    click.echo(f"\n{what.model} with {' '.join(what.defines)} {told.verdict}")
    raise SystemExit(0 if told.as_expected else 1)


def _seeds(text: str) -> range:
    found = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if last < first:
        raise click.BadParameter(f"{text!r} is no range of seeds; write 1..1000, or 7 for one")
    return range(first, last + 1)


def _take_traces(seeds: range, json_file: Path | None) -> None:
    count, steps, refused = 0, 0, []
    with taker() as directory:
        for at in range(0, len(seeds), _AT_ONCE):
            traces = [one for seed in seeds[at : at + _AT_ONCE] for one in record(Plan.of(seed, "single"))]
            for taken in take(traces, directory):
                count, steps = count + 1, steps + taken.reached
                if not taken.accepted:
                    refused.append(str(taken))
                    click.echo(str(taken))
    click.echo(
        f"{len(seeds):,} schedules, {count:,} traces, {steps:,} steps taken, {len(refused):,} traces refused"
    )
    if json_file is not None:
        facts = {"schedules": len(seeds), "traces": count, "steps": steps, "refused": refused}
        write_private(json_file, json.dumps(facts, indent=2) + "\n")
    raise SystemExit(1 if refused else 0)


def _facts(told: list[Told], *, began: datetime, seconds: float, memory: int) -> dict[str, Any]:
    commit = subprocess.run(
        _COMMIT, cwd=spin.SPEC, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "command": " ".join(["scripts/models", *sys.argv[1:]]),
        "commit": commit,
        "began": began.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": round(seconds, 1),
        "counts": {
            "states": sum(one.states for one in told),
            "clean": sum(not one.check.mistake and one.as_expected for one in told),
            "mistakes_convicted": sum(one.check.mistake and one.as_expected for one in told),
        },
        "violations": [
            f"{one.check.model}: {one.check.name}: {one.verdict}" for one in told if not one.as_expected
        ],
        "versions": {"spin": spin.version()},
        "rows": [
            {
                "model": one.check.model,
                "check": one.check.name,
                "bounds": " ".join(one.check.defines),
                "states": one.states,
                "depth": one.depth,
                "MiB": round(one.memory_mib),
                "seconds": round(one.seconds, 1),
                "verdict": one.verdict,
                "kept": _STORED[one.check.store],
            }
            for one in told
        ],
        "notes": [f'A verifier may use {memory:,} MiB. "as far as it came": time or memory was over.'],
    }
