"""The tables of docs/evidence, from the files of the runs.

A page has one between ``<!-- evidence NAME KIND -->`` and ``<!-- end -->``; :data:`TABLES` has the names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from evidencing.kinds import KINDS
from evidencing.runs import ROOT, Run

__all__ = ["PAGES", "TABLES", "pages", "written"]

PAGES = ROOT / "docs"
NONE = "No run is recorded yet."
_SIGNS = {"yes": "**yes**", "late": "late", "no": "no", "-": "-"}
_PLACE = re.compile(r"<!-- evidence (\w+)(?: (\w+))? -->\n.*?<!-- end -->", re.DOTALL)
_PROMISE = re.compile(r"\b[SLP]\d+\b")
_GUARANTEE = re.compile(r"^\| \*\*([SLP]\d+)\*\* \| (.*?) \| (.*) \|$", re.MULTILINE)

Runs = list[Run]


def pages() -> list[Any]:
    """Every page that shows a run."""
    return sorted(page for page in PAGES.rglob("*.md") if _PLACE.search(page.read_text("utf-8")))


def written(page: str, runs: Runs) -> str:
    """The page with each table as the runs are."""

    def part(place: re.Match[str]) -> str:
        name, kind = place[1], place[2] or ""
        text = TABLES[name](kind, runs) if name in TABLES else f"unknown table {name}"
        head = f"<!-- evidence {name}{f' {kind}' if kind else ''} -->"
        return f"{head}\n{text}\n<!-- end -->"

    return _PLACE.sub(part, page)


def _summary(_: str, runs: Runs) -> str:
    """One line for each kind: what its newest code was tried with."""
    rows = []
    for name, kind in KINDS.items():
        groups = _groups(name, runs)
        if not groups:
            rows.append([kind.title, "-", "-", "-", "-", "-"])
            continue
        newest = groups[0]
        total = sum(run.counts.get(kind.counted[0], 0) for run in newest)
        rows.append(
            [
                kind.title,
                f"{_number(total)} {kind.counted[1]}",
                _number(sum(len(run.violations) for run in newest)),
                _time(sum(run.seconds for run in newest)),
                f"`{newest[0].commits[-1][:7]}`",
                newest[0].began[:10],
            ]
        )
    return _table(("what", "tried", "violations", "time", "commit", "begun"), rows)


def _runs(kind: str, runs: Runs) -> str:
    """A line for each digest of the sources, the newest first, with what its runs add up to."""
    groups = _groups(kind, runs)
    if not groups:
        return NONE
    counted, unit = KINDS[kind].counted
    rows = []
    for group in groups:
        seeds = [f"{first:,}..{last:,}" for run in group for first, last in run.seeds]
        seconds = sum(run.seconds for run in group)
        tried = sum(run.counts.get(counted, 0) for run in group)
        cores = sum(run.counts.get("core_s", 0) for run in group)
        rows.append(
            [
                f"`{group[0].sources[:8]}`",
                " ".join(
                    f"`{commit[:7]}`" for commit in dict.fromkeys(one for run in group for one in run.commits)
                ),
                ", ".join(sorted(set(seeds), key=seeds.index)) or "-",
                _number(tried),
                _time(seconds),
                f"{tried / cores:.1f}" if cores else "-",
                _number(sum(len(run.violations) for run in group)),
                _machine(group[0]),
            ]
        )
    return _table(
        ("sources", "commits", "seeds", unit, "time", "a second and core", "violations", "machine"), rows
    )


def _counts(kind: str, runs: Runs) -> str:
    """All that the runs of the newest code counted."""
    groups = _groups(kind, runs)
    if not groups:
        return NONE
    total: dict[str, float] = {}
    for run in groups[0]:
        for name, value in run.counts.items():
            before = total.get(name, 0)
            total[name] = max(before, value) if name.endswith("_max") else before + value
    return _table(
        ("counted", "number"),
        [[_words(name), _number(value)] for name, value in total.items() if name != "core_s"],
    )


def _rows(kind: str, runs: Runs) -> str:
    """The kind's own table."""
    rows = _own_rows(kind, runs)
    if not rows:
        return NONE
    keys = KINDS[kind].columns or tuple(rows[0])
    return _table([_words(key) for key in keys], [[_cell(row.get(key)) for key in keys] for row in rows])


def _own_rows(kind: str, runs: Runs) -> list[dict[str, Any]]:
    """The rows of the newest run that has some; of a kind that is tried in parts, all of the same code."""
    for run in _of(kind, runs):
        if run.rows and (by := KINDS[kind].joined):
            found: dict[str, dict[str, Any]] = {}
            for part in reversed(_of(kind, runs)):
                if part.sources == run.sources:
                    found |= {row[by]: row for row in part.rows}
            return list(found.values())
        if run.rows:
            return run.rows
    return []


def _about(kind: str, runs: Runs) -> str:
    """Command, commit, machine and versions of the newest run."""
    for run in _of(kind, runs):
        programs = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        notes = "".join(f"\n{note}" for note in run.notes)
        parts = [run]
        if KINDS[kind].joined:
            parts = [part for part in _of(kind, runs) if part.sources == run.sources]
        command = run.command if len(parts) == 1 else f"{KINDS[kind].command} NAME"
        told = "" if len(parts) == 1 else f" in {len(parts)} parts"
        return (
            f"`{command}`{told}, {run.began[:10]}, {_time(sum(part.seconds for part in parts))} on"
            f" {_machine(run)}, commit `{run.commits[-1][:7]}`.\n{programs}.{notes}"
        )
    return NONE


def _promises(_: str, runs: Runs) -> str:
    """What stands behind each promise."""
    told = json.loads((ROOT / "docs/evidence/promises.json").read_text("utf-8"))
    tests = {
        number: len(set(re.findall(r"`(test_\w+)`", shown)))
        for number, _, shown in _GUARANTEE.findall(
            (ROOT / "docs/explanation/guarantees.md").read_text("utf-8")
        )
    }
    tried = {
        kind: sum(run.counts.get(KINDS[kind].counted[0], 0) for run in (_groups(kind, runs) or [[]])[0])
        for kind in ("sim", "fence", "flow", "chaos")
    }
    convicted = {kind: _by_promise(kind, runs) for kind in ("planted", "mutants")}
    rows = []
    for number, about in told["promises"].items():
        simulated = sum(tried[kind] for kind in about["judged_by"] if kind != "chaos")
        rows.append(
            [
                f"[{number}](../explanation/guarantees.md)",
                about["assumes"] or "nothing further",
                ", ".join(f"[{path.rpartition('/')[2]}](../../{path})" for path in about["mechanism"]),
                str(tests.get(number, 0)),
                _number(simulated) if simulated else "-",
                _number(tried["chaos"]) if "chaos" in about["judged_by"] and tried["chaos"] else "-",
                str(convicted["planted"].get(number, "-")),
                str(convicted["mutants"].get(number, "-")),
            ]
        )
    head = ("", "assumes", "held by", "tests", "schedules", "operations", "planted", "mutants")
    return _table(head, rows)


def _by_promise(kind: str, runs: Runs) -> dict[str, int]:
    """How many rows of the kind's own table were convicted by each promise."""
    found: dict[str, int] = {}
    for row in _own_rows(kind, runs):
        laws = " ".join(_cell(row.get(key, "")) for key in ("law", "laws", "promise", "promises"))
        if row.get("convicted", row.get("killed", True)) not in (False, "no", "", None):
            for number in set(_PROMISE.findall(laws)):
                found[number] = found.get(number, 0) + 1
    return found


def _board(_: str, runs: Runs) -> str:
    """The scoreboard: a line for each way to lock, a column for each case with a verdict."""
    cells = _cells(runs)
    if not cells:
        return NONE
    cases = [case for case in dict.fromkeys(case for _, case in cells) if case != "alone"]
    labels = {way: row["label"] for (way, _), row in cells.items()}
    lines = [
        [label, *[_SIGNS[cells[way, case]["verdict"]] if (way, case) in cells else "" for case in cases]]
        for way, label in labels.items()
    ]
    return _table(("", *cases), lines)


def _case(case: str, runs: Runs) -> str:
    """One case of the scoreboard: what each way did."""
    rows = [row for (_, tried), row in _cells(runs).items() if tried == case.replace("_", "-")]
    lines = [[row["label"], _SIGNS[row["verdict"]], row["told"]] for row in rows]
    return _table(("", "", ""), lines) if rows else NONE


def _cells(runs: Runs) -> dict[tuple[str, str], dict[str, Any]]:
    """What was found of each way and case on the newest code, of which each run may have tried some ways."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in reversed((_groups("scoreboard", runs) or [[]])[0]):
        found |= {(row["way"], row["case"]): row for row in run.rows}
    return found


TABLES: dict[str, Callable[[str, Runs], str]] = {
    "summary": _summary,
    "runs": _runs,
    "counts": _counts,
    "rows": _rows,
    "about": _about,
    "promises": _promises,
    "board": _board,
    "case": _case,
}
"""What writes each table, by its name in a page."""


def _of(kind: str, runs: Runs) -> Runs:
    return [run for run in runs if run.kind == kind]


def _groups(kind: str, runs: Runs) -> list[Runs]:
    """The runs of a kind by the digest of what they tried: only runs of the same code add up."""
    groups: dict[str, Runs] = {}
    for run in _of(kind, runs):
        groups.setdefault(run.sources, []).append(run)
    return list(groups.values())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list):
        return ", ".join(_cell(one) for one in value) or "-"
    return "-" if value is None or value == "" else str(value).replace("\n", " ")


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    whole = timedelta(seconds=round(seconds))
    hours, minutes = divmod(round(whole.total_seconds() / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _machine(run: Run) -> str:
    told = run.machine
    return f"{told['cores']} cores, {told['model']}, {told['memory_gib']} GiB"
