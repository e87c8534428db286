"""Evidence: what was tried, how often, on which code, and what was found.

Without arguments the tables of docs/evidence are written from docs/evidence/runs. What a run's file has is in
docs/evidence/index.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evidencing import running, sample, sources, tables, track_record
from evidencing.claims import claimed
from evidencing.kinds import KINDS
from evidencing.runs import (
    ROOT,
    RUNS,
    Run,
    Unusable,
    load,
    machine,
    ranges_without,
    replace,
    save,
    versions,
    without_seeds,
)

_SAMPLED = {"planted": sample.of_planted, "models": sample.of_models}
_UNITS = {"s": 1, "m": 60, "h": 3600}
_FULL_S, _QUICK_S = 45.0, 12.0


def main() -> int:
    """Do what the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare pages with runs and runs with their commits, and run a sample again, in under a minute",
    )
    parser.add_argument("--quick", action="store_true", help="with --check: the smaller sample that CI runs")
    orders = parser.add_subparsers(dest="order")
    run = orders.add_parser("run", help="run something and keep what it found")
    run.add_argument("kind", choices=KINDS)
    run.add_argument("--seeds", metavar="A..B", help="those of the range that are not recorded yet, in order")
    run.add_argument(
        "--for", dest="lasts", metavar="10m", help="begin nothing more after so long: 90s, 10m, 2h"
    )
    add = orders.add_parser(
        "add", help="keep what a command wrote that was run by hand, on the commit checked out"
    )
    add.add_argument("kind", choices=KINDS)
    add.add_argument("file", type=Path)
    add.add_argument("--command", required=True, help="what was typed")
    add.add_argument("--began", help="as 2026-11-30T12:00:00Z, if the file does not tell")
    add.add_argument("--seconds", type=float, help="how long it took, if the file does not tell")
    arguments, further = parser.parse_known_args()
    if arguments.quick and not arguments.check:
        parser.error("--quick goes with --check")
    if arguments.check and arguments.order:
        parser.error(f"--check or {arguments.order}, not both")
    if further and arguments.order != "run":
        parser.error(f"unknown: {' '.join(further)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its child's servers are stopped then too
    try:
        if arguments.order == "run":
            return _run(
                arguments.kind, arguments.seeds, arguments.lasts, [one for one in further if one != "--"]
            )
        if arguments.order == "add":
            return _add(arguments)
        return _check(quick=arguments.quick) if arguments.check else _write()
    except Unusable as failed:
        print(f"scripts/evidence: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/evidence: interrupted; what had ended is recorded", file=sys.stderr)
        return 130


def _write() -> int:
    runs = list(load().values())
    for page in tables.pages():
        text = page.read_text("utf-8")
        if (new := tables.written(text, runs)) != text:
            replace(page, new)
    return 0


def _run(kind: str, seeds: str | None, lasts: str | None, further: list[str]) -> int:
    about = KINDS[kind]
    _refuse_changes(kind)
    command = shlex.join([*about.command.split(), *further])
    if not about.seeds_at_once:
        if lasts:
            raise Unusable(f"{kind} is run once, and has no sittings: --for is for those with seeds")
        return _once(kind, command + (f" --seeds {seeds}" if seeds else ""))
    found = re.fullmatch(r"(\d+)\.\.(\d+)", seeds or "")
    if not found or int(found[1]) > int(found[2]):
        raise Unusable(f"{kind} needs its seeds, the first and the last: --seeds 1..300000")
    wanted = int(found[1]), int(found[2])
    ends = time.monotonic() + (_seconds(lasts) if lasts else float("inf"))
    failed = 0
    digest = sources.digest(ROOT, about.sources)
    left = ranges_without(wanted, _recorded(kind, command, digest))
    if not left:
        print(f"{command}: all seeds of {seeds} are recorded")
    for first, last in left:
        for begin in range(first, last + 1, about.seeds_at_once):
            if time.monotonic() > ends:
                return 1 if failed else 0
            end = min(begin + about.seeds_at_once - 1, last)
            with claimed(RUNS, without_seeds(command), begin, end) as mine:
                if not mine:
                    print(f"{command}: seeds {begin}..{end} are being run by another process", flush=True)
                    continue
                for one, other in ranges_without((begin, end), _recorded(kind, command, digest)):
                    failed += _once(kind, f"{command} --seeds {one}..{other}")
    return 1 if failed else 0


def _recorded(kind: str, command: str, digest: str) -> list[list[int]]:
    """The seeds that sittings of this code, machine and command have run."""
    here, programs = machine(), versions().items()  # what the command itself will tell is not known yet
    return [
        one
        for run in load().values()
        if run.sources == digest and run.kind == kind and run.machine == here
        if without_seeds(run.command) == without_seeds(command) and programs <= run.versions.items()
        for one in run.seeds
    ]


def _once(kind: str, command: str) -> int:
    """Run one command and keep what it found; returns 1 if it found violations."""
    about = KINDS[kind]
    digest = sources.digest(ROOT, about.sources)
    commit = sources.published(ROOT, about.sources, digest)
    began, clock = datetime.now(UTC), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lockguard-evidence.") as folder:
        file = Path(folder) / "report.json"
        status = running.run([*sample.argv(command), "--json", str(file)], cwd=ROOT)
        if not file.exists():
            raise Unusable(f"{command} ended with {status} and wrote nothing")
        if status not in (0, 1):  # 1 tells of violations
            raise Unusable(f"{command} ended with {status}, which is not the end of a run")
        report = _json(file)
    took_s = time.monotonic() - clock
    _refuse_changes(kind)  # whoever edits while it runs has tried neither the one code nor the other
    if sources.digest(ROOT, about.sources) != digest:
        raise Unusable(f"the sources of {kind} changed while it ran")
    if "traces" in report:
        report["sample"] = sample.of_sim(without_seeds(command), report)
    if kind in _SAMPLED and "sample" not in report:
        report["sample"] = _SAMPLED[kind](report)
    run = Run.of(
        kind,
        report,
        command=command,
        commits=[commit],
        sources=digest,
        began=f"{began:%Y-%m-%dT%H:%M:%SZ}",
        seconds=round(took_s, 1),
    )
    path = save(run)
    print(
        f"{command}: {len(run.violations)} violations in {took_s:.0f} s, in {path.relative_to(ROOT)}",
        flush=True,
    )
    return 1 if run.violations else 0


def _add(arguments: Any) -> int:
    kind = arguments.kind
    _refuse_changes(kind)
    report = _json(arguments.file)
    began, seconds = arguments.began or report.get("began"), arguments.seconds or report.get("seconds")
    if not began or seconds is None:
        raise Unusable(
            f"{arguments.file} does not tell when it began and how long it took: --began, --seconds"
        )
    digest = sources.digest(ROOT, KINDS[kind].sources)
    run = Run.of(
        kind,
        report,
        command=arguments.command,
        commits=[sources.published(ROOT, KINDS[kind].sources, digest)],
        sources=digest,
        began=began,
        seconds=float(seconds),
    )
    print(save(run).relative_to(ROOT))
    return 0


def _json(file: Path) -> dict[str, Any]:
    try:
        # A failure may quote where a file of the checkout lies, which is nobody else's business.
        report = json.loads(file.read_text("utf-8").replace(f"{ROOT}/", ""))
    except (OSError, ValueError) as failed:
        raise Unusable(f"{file} is no report of a run: {failed}") from None
    if not isinstance(report, dict):
        raise Unusable(f"{file} is no report of a run: its JSON is no object")
    return report


def _check(*, quick: bool) -> int:
    found = load()
    runs = list(found.values())
    wrong = []
    for page in tables.pages():
        text = page.read_text("utf-8")
        if tables.written(text, runs) != text:
            wrong.append(f"{page.relative_to(ROOT)} is not what the runs tell: run scripts/evidence")
    if not quick:
        wrong += _wrong_commits(found.items())
        for line in _not_in_the_history(found.items()):
            print(f"not compared: {line}")
    print(f"{len(runs)} runs, {len(tables.pages())} pages")
    for what, differences in sample.repeat(
        runs, budget_s=_QUICK_S if quick else _FULL_S, each=1 if quick else 3
    ):
        print(what)
        wrong += [f"{what}: {line}" for line in differences]
    for line in wrong:
        print(f"scripts/evidence: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _wrong_commits(found: Iterable[tuple[Path, Run]]) -> list[str]:
    """Runs whose commit does not have the sources that they tell: the newest run of each kind is looked at.

    A history that is cut off cannot tell.
    """
    if sources.is_shallow(ROOT):
        return []
    wrong, seen = [], set()
    for path, run in found:
        if run.kind in seen:
            continue
        seen.add(run.kind)
        commit = run.commits[-1]
        if (
            sources.exists(ROOT, commit)
            and (has := sources.digest_at(ROOT, commit, KINDS[run.kind].sources)) != run.sources
        ):
            wrong.append(f"{path.name}: commit {commit[:7]} has sources {has}, not {run.sources}")
    return wrong


def _not_in_the_history(found: Iterable[tuple[Path, Run]]) -> list[str]:
    """Commits that are named and not there: a history that was rewritten, such as by a rebase, has other ids.

    That is no fault of the evidence: the digest tells what was tried, and is computed from the files here.
    """
    if sources.is_shallow(ROOT):
        return ["commits, as the history here is cut off or not there"]
    told = []
    for path, run in found:
        if lacking := [commit[:7] for commit in run.commits if not sources.exists(ROOT, commit)]:
            same = sources.digest(ROOT, KINDS[run.kind].sources) == run.sources
            here = "; the files here are those that it tried" if same else ""
            told.append(f"{path.name}: commit {', '.join(lacking)} is not in the history{here}")
    fixes = track_record.not_in_the_history(ROOT)
    return told + [f"{track_record.PAGE}: commit {one} is not in the history" for one in fixes]


def _refuse_changes(kind: str) -> None:
    if changed := sources.changed(ROOT, KINDS[kind].sources):
        raise Unusable(f"commit first what the run tries: {', '.join(changed[:5])}")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)([smh])", text)
    if not found:
        raise Unusable(f"{text!r} is no duration: 90s, 10m, 2h")
    return int(found[1]) * _UNITS[found[2]]


if __name__ == "__main__":
    RUNS.mkdir(parents=True, exist_ok=True)
    sys.exit(main())
