"""Runs a sample of the evidence again, and compares what it tells with what is recorded."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evidencing.kinds import KINDS
from evidencing.running import run
from evidencing.runs import ROOT, Run
from evidencing.sources import digest

__all__ = ["argv", "differs", "of_models", "of_planted", "of_sim", "repeat"]

STANDING = ROOT / "docs/evidence/samples.json"
"""Samples that belong to no run: a history is judged again, a mistake is planted, schedules are run."""

HANGS_S = 600.0
"""Seconds after which a sample counts as one that never ends."""

AT_MOST = 3
"""Samples of one run."""


def argv(command: str) -> list[str]:
    """A command as a process takes it: this checkout's scripts, and the environment's own ``lockguard``."""
    first, *rest = shlex.split(command)
    place = ROOT / first if "/" in first else Path(sys.executable).with_name(first)
    return [str(place), *rest]


def of_sim(command: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The sample of a run whose report has ``traces``, hashes of some seeds: each of these by itself."""
    return [
        {
            "command": f"{command} --seeds {seed}",
            "tells": {"violations": {}},
            "exactly": {"traces": {seed: trace}},
        }
        for seed, trace in list(report.get("traces", {}).items())[:AT_MOST]
        if str(seed) not in dict(report["violations"] or {})
    ]


def of_models(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The sample of models: the check that took least, which a part of its name finds alone."""
    if "--long" in report.get("command", ""):
        return []  # each takes seconds and gigabytes
    for row in sorted(report["rows"], key=lambda row: float(row["seconds"])):
        alike = [
            one for one in report["rows"] if one["model"] == row["model"] and row["check"] in one["check"]
        ]
        if len(alike) == 1:
            command = f"scripts/models {row['model']} --only {shlex.quote(row['check'])}"
            exactly = {"rows": [{"states": row["states"], "verdict": row["verdict"]}]}
            return [{"command": command, "tells": {"violations": []}, "exactly": exactly}]
    return []


def of_planted(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The sample of planted mistakes: of each layer the one that was convicted soonest."""
    soonest: dict[str, dict[str, Any]] = {}
    for row in sorted(report["rows"], key=lambda row: float(row["seconds"])):
        if row["convicted"] and row["seed"] is not None:
            soonest.setdefault(row["layer"], row)
    return [
        {
            "command": f"lockguard sim --planted {shlex.quote(row['name'])}",
            "tells": {"rows": [{"convicted": True}]},
            "exactly": {"rows": [{"seed": row["seed"], "law": row["law"]}]},
        }
        for row in list(soonest.values())[:AT_MOST]
        if sum(row["name"] in other["name"] for other in report["rows"]) == 1
    ]


def repeat(runs: list[Run], *, budget_s: float, each: int = AT_MOST) -> Iterator[tuple[str, list[str]]]:
    """Run the standing samples and those of each kind's newest run; yields what was run and how it differs.

    Where the sources have changed since, only what is recorded under ``tells`` is compared: an outcome, such
    as that no law is broken. What is under ``exactly``, such as a hash of what happened, holds for that code.

    Args:
        runs: the newest first.
        budget_s: of the processor, as another's work costs wall time; nothing is begun after so many.
        each: how many samples of a run.
    """
    ends = _spent_s() + budget_s
    newest: dict[str, Run] = {}
    for recorded in runs:
        if recorded.sample:
            newest.setdefault(recorded.kind, recorded)
    chosen = [(one, False) for one in json.loads(STANDING.read_text("utf-8"))]
    for kind, recorded in newest.items():
        same = digest(ROOT, KINDS[kind].sources) == recorded.sources
        chosen += [(one, same) for one in recorded.sample[:each]]
    for one, same in chosen:
        if _spent_s() > ends:
            yield f"{one['command']}: not run, the time is up", []
        else:
            yield _again(one, same=same)


def _spent_s() -> float:
    """Seconds of the processor that the commands run so far have taken."""
    times = os.times()
    return times.children_user + times.children_system


def _again(sample: dict[str, Any], *, same: bool) -> tuple[str, list[str]]:
    wanted = [sample.get("tells", {}), *([sample.get("exactly", {})] if same else [])]
    with tempfile.TemporaryDirectory(prefix="lockguard-evidence.") as folder:
        file = Path(folder) / "report.json"
        command = [*argv(sample["command"]), "--json", str(file)]
        with (Path(folder) / "output").open("w+", encoding="utf-8") as output:
            try:
                run(command, cwd=ROOT, output=output, at_most_s=HANGS_S)
                told = json.loads(file.read_text("utf-8"))
            except subprocess.TimeoutExpired:
                return sample["command"], [f"it was not over in {HANGS_S:g} s"]
            except (OSError, ValueError) as failed:
                output.seek(0)
                return sample["command"], [f"it wrote nothing: {output.read().strip()[-300:] or failed}"]
    compared = "as recorded" if same else "its outcome"
    return f"{sample['command']}: {compared}", [line for one in wanted for line in differs(one, told)]


def differs(wanted: Any, told: Any, where: str = "") -> list[str]:
    """Where ``told`` lacks something of ``wanted``; further keys of an object do not matter."""
    if isinstance(wanted, dict) and wanted and isinstance(told, dict):
        return [
            line
            for key, value in wanted.items()
            for line in differs(value, told.get(key), f"{where}.{key}".lstrip("."))
        ]
    if isinstance(wanted, list) and wanted and isinstance(told, list) and len(wanted) == len(told):
        pairs = enumerate(zip(wanted, told, strict=True))
        return [line for at, (one, other) in pairs for line in differs(one, other, f"{where}[{at}]")]
    if wanted == told or (not wanted and not told):
        return []
    return [f"{where}: recorded {wanted!r}, now {told!r}"]
