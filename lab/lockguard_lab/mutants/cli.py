"""``scripts/mutants``."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import click

from lockguard._cli.numbers import DecimalNumber, WholeNumber
from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.mutants.judge import Judge, JudgeError, Result, read_results, write_results
from lockguard_lab.mutants.mutant import Area, Mutant, load
from lockguard_lab.mutants.report import promises_in, report, scores

__all__ = ["mutants"]

_DATA = Path("tests/mutants")
_RECORD = _DATA / "results.json"
_PROMISES = Path("docs/explanation/guarantees.md")
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(name="mutants")
@click.option("--area", "areas", multiple=True, help="Only of this area; may be given several times.")
@click.option("--name", "pattern", default="*", help="Only mutants whose name matches, as in '*token*'.")
@click.option("--changed", is_flag=True, help="Only of files that differ from the last tag or origin/main.")
@click.option(
    "--survivors", is_flag=True, help="Only what survived in the results of --state, or else on record."
)
@click.option("--list", "listed", is_flag=True, help="Only list them, and how each ended.")
@click.option("--stages", type=WholeNumber(1), help="Only the first so many lists of tests of each area.")
@click.option("--within", "within_s", type=DecimalNumber(), help="Begin no mutant after this many seconds.")
@click.option("--state", type=_FILE, help="Keep results here, and go on after those that are there.")
@click.option("--json", "json_file", type=_FILE, help="Write the report that scripts/evidence reads.")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="Where the copy is made.")
def mutants(
    *,
    areas: tuple[str, ...],
    pattern: str,
    changed: bool,
    survivors: bool,
    listed: bool,
    stages: int | None,
    within_s: float | None,
    state: Path | None,
    json_file: Path | None,
    directory: Path | None,
) -> None:
    """Plant mistakes one at a time in a copy of the checkout, and see which test notices each.

    Exit code 1 if fewer of an area's mutants are killed than its floor asks for.
    """
    top = Path.cwd()
    known_areas, every = load(top / _DATA)
    record = read_results(top / _RECORD)
    if unknown := set(areas) - set(known_areas):
        raise click.BadParameter(
            f"{unknown.pop()!r} is none of {', '.join(known_areas)}", param_hint="--area"
        )
    results = read_results(state)
    chosen = [one for one in every if (not areas or one.area in areas) and fnmatchcase(one.name, pattern)]
    if changed:
        files = _changed(top)
        chosen = [one for one in chosen if one.file in files]
    if survivors:
        before = results if state else record
        chosen = [one for one in chosen if one.digest in before and before[one.digest].outcome == "survived"]
    if listed:
        _list(chosen, results or record)
        return
    if stages is not None:
        known_areas = {name: replace(one, stages=one.stages[:stages]) for name, one in known_areas.items()}
    with _directory(directory) as made:
        found = _run(top, made, known_areas, chosen, results, record, state, within_s, again=survivors)
    _report(top, known_areas, chosen, found, json_file)


def _run(
    top: Path,
    directory: Path,
    areas: Mapping[str, Area],
    chosen: list[Mutant],
    results: dict[str, Result],
    record: Mapping[str, Result],
    state: Path | None,
    within_s: float | None,
    *,
    again: bool,
) -> dict[str, Result]:
    began = SYSTEM_CLOCK.now()
    known = {**record, **results}
    with Judge(top, directory, areas=areas, mutants=chosen, known=known) as judge:
        for number, mutant in enumerate(chosen, 1):
            if not again and _is_judged(mutant, results):
                continue
            if within_s is not None and SYSTEM_CLOCK.now() - began >= within_s:
                click.echo(f"{len(chosen) - number + 1} were not begun within {within_s:g} s")
                break
            try:
                result = judge.judge(mutant)
            except (JudgeError, ValueError) as exc:
                click.echo(f"{number}/{len(chosen)} not judged: {exc}")
                continue
            results[mutant.digest] = result
            if state is not None:
                write_results(state, results.values())
            click.echo(f"{number}/{len(chosen)} {_told(mutant, result)}")
    return {one.digest: results[one.digest] for one in chosen if one.digest in results}


def _is_judged(mutant: Mutant, results: Mapping[str, Result]) -> bool:
    result = results.get(mutant.digest)
    return result is not None and (result.outcome == "equivalent") == bool(mutant.equivalent)


def _told(mutant: Mutant, result: Result | None) -> str:
    told = f"{mutant.area}: {mutant.name} ({mutant.file})"
    if result is None:
        return f"{'not run':10} {told}"
    return f"{result.outcome:10} {told} {result.took_s:g} s {result.test}".rstrip()


def _list(chosen: Iterable[Mutant], results: Mapping[str, Result]) -> None:
    for mutant in chosen:
        click.echo(_told(mutant, results.get(mutant.digest)))


def _report(
    top: Path,
    areas: Mapping[str, Area],
    chosen: list[Mutant],
    found: Mapping[str, Result],
    json_file: Path | None,
) -> None:
    for score in scores(areas, chosen, found):
        click.echo(str(score))
    for result in found.values():
        if result.outcome == "survived":
            click.echo(f"survived: {result.area}: {result.name}")
    facts = report(areas, chosen, found, promises_in((top / _PROMISES).read_text("utf-8")))
    if json_file is not None:
        json_file.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    if facts["violations"]:
        raise SystemExit("\n".join(facts["violations"]))


def _changed(top: Path) -> set[str]:
    """The files that differ from the last tag; without one, from origin/main."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words],  # noqa: S607 - the user's own git
            cwd=top,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    since = git("describe", "--tags", "--abbrev=0") or git("merge-base", "HEAD", "origin/main")
    if not since:
        raise click.UsageError("--changed: there is neither a tag nor origin/main to compare with")
    return set(git("diff", "--name-only", since).splitlines())


@contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="lockguard-mutants-") as made:
        yield Path(made)


if __name__ == "__main__":
    mutants()
