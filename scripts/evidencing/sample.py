"""Runs a sample of the evidence again, and compares what it tells with what is recorded."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evidencing.kinds import KINDS
from evidencing.runs import ROOT, Run
from evidencing.sources import digest

__all__ = ["argv", "differs", "of_models", "of_planted", "of_sim", "repeat"]

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
    """Run samples of the newest run of each kind; yields what was run and how it differs.

    Where the sources have changed since, only what is recorded under ``tells`` is compared: an outcome, such
    as that no law is broken. What is under ``exactly``, such as a hash of what happened, holds for that code.

    Args:
        runs: the newest first.
        budget_s: nothing is begun after so many seconds.
        each: how many samples of a run.
    """
    ends = time.monotonic() + budget_s
    newest: dict[str, Run] = {}
    for run in runs:
        if run.sample:
            newest.setdefault(run.kind, run)
    for kind, run in newest.items():
        same = digest(ROOT, KINDS[kind].sources) == run.sources
        for sample in run.sample[:each]:
            if time.monotonic() > ends:
                yield f"{sample['command']}: not run, the time is up", []
                continue
            wanted = [sample.get("tells", {}), *([sample.get("exactly", {})] if same else [])]
            with tempfile.TemporaryDirectory(prefix="lockguard-evidence.") as folder:
                file = Path(folder) / "report.json"
                done = subprocess.run(
                    [*argv(sample["command"]), "--json", str(file)],
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    check=False,
                )
                told = json.loads(file.read_text("utf-8")) if file.exists() else None
            compared = "as recorded" if same else "its outcome, as the sources have changed since"
            if told is None:
                yield sample["command"], [f"it wrote nothing: {done.stdout.strip()[-300:]}"]
            else:
                wrong = [line for one in wanted for line in differs(one, told)]
                yield f"{sample['command']}: {compared}", wrong


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
