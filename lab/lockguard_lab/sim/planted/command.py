"""``lockguard sim --planted``: plants each known mistake, and tells which law convicted it."""

from __future__ import annotations

import difflib
import fnmatch
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from lockguard._cli.mistake import Mistake
from lockguard._cli.tables import Table, console
from lockguard._clock import SYSTEM_CLOCK
from lockguard._private_files import write_private
from lockguard_lab.sim.planted import LAYERS
from lockguard_lab.sim.planted.mistake import Conviction, Planted, convict
from lockguard_lab.sim.planted.raced import Raced, convict_raced

__all__ = ["run_planted"]


@dataclass(frozen=True)
class _Found:
    layer: str
    planted: Planted | Raced
    conviction: Conviction | None
    seconds: float
    again: bool = False
    """Whether a seed convicted it that was known to: that says nothing of how many it takes."""

    def facts(self) -> dict[str, Any]:
        conviction = self.conviction
        return {
            "name": self.planted.name,
            "origin": self.planted.origin,
            "layer": self.layer,
            "file": self.planted.file,
            "judge": self.planted.judge,
            "convicted": conviction is not None,
            "law": conviction.law if conviction else "",
            "told": conviction.told if conviction else "",
            "seed": conviction.seed if conviction and not self.again else None,
            "again": self.again,
            "seconds": round(self.seconds, 2),
        }


def chosen(names: tuple[str, ...]) -> list[tuple[str, Planted | Raced]]:
    """The mistakes of some names, each a pattern, or of all, with the layer of each.

    Raises:
        Mistake: a pattern has none.
    """
    known = [(layer, planted) for layer, catalogue in LAYERS.items() for planted in catalogue]
    for name in names:
        if not any(_fits(name, layer, planted) for layer, planted in known):
            raise Mistake(f"no planted mistake is called {name!r}{_close_to(name)}")
    return [
        (layer, planted)
        for layer, planted in known
        if not names or any(_fits(name, layer, planted) for name in names)
    ]


def _close_to(name: str) -> str:
    """Names that the user may have meant, for the end of a sentence."""
    names = [*LAYERS, *(planted.name for catalogue in LAYERS.values() for planted in catalogue)]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return "; write a part of its name, such as 'quorum', or a layer: " + ", ".join(LAYERS)


def _fits(name: str, layer: str, planted: Planted | Raced) -> bool:
    if name in LAYERS:
        return name == layer
    if not name:  # a variable of a script that was not set would plant all of them
        return False
    pattern = name if any(sign in name for sign in "*?[") else f"*{name}*"
    return fnmatch.fnmatchcase(planted.name.lower(), pattern.lower())


class _Children:
    """The processes that run schedules, to be killed when the command is interrupted."""

    def __init__(self) -> None:
        self._lock, self._over = threading.Lock(), False
        self._all: list[subprocess.Popen[bytes]] = []

    def add(self, child: subprocess.Popen[bytes]) -> None:
        """Keep one; it is killed at once if all were."""
        with self._lock:
            self._all.append(child)
            if self._over:
                child.kill()

    def kill(self) -> None:
        """Kill all, and each that begins from now on."""
        with self._lock:
            self._over = True
            for child in self._all:
                child.kill()


def known_seeds(file: Path | None) -> dict[str, int]:
    """The seed that convicted each mistake in a report of before, by name.

    Raises:
        Mistake: it is no such report.
    """
    if file is None:
        return {}
    try:
        rows = json.loads(file.read_text("utf-8"))["rows"]
        return {row["name"]: row["seed"] for row in rows if row["seed"] is not None}
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise Mistake(f"{file} is no report of `lockguard sim --planted --json`: {exc!r}") from exc


def run_planted(
    names: tuple[str, ...], seeds: range, processes: int, json_file: Path | None, known: dict[str, int]
) -> bool:
    """Plant each mistake, show a table, and write it as JSON; returns whether all were convicted.

    Args:
        names: which; all if there is none.
        seeds: the schedules of each, until one convicts it.
        processes: how many mistakes at once.
        json_file: where the report goes.
        known: seeds that are tried first, by the mistake's name.

    Raises:
        KeyboardInterrupt: it was interrupted; what was found until then is shown and written.
    """
    mistakes = chosen(names)
    began, wall, commit = SYSTEM_CLOCK.now(), SYSTEM_CLOCK.wall(), _commit()
    found: list[_Found] = []
    interrupted: KeyboardInterrupt | None = None
    try:
        _search_all(found, mistakes, seeds, processes, known)
    except KeyboardInterrupt as exc:
        if not found:
            raise
        interrupted = exc
    _show(found)
    if json_file is not None:
        facts = {
            "command": _command(names, seeds),
            "commit": commit,
            "began": _date(wall),
            "seconds": round(SYSTEM_CLOCK.now() - began, 1),
            "seeds": [seeds[0], seeds[-1]],
            "rows": [one.facts() for one in found],
        }
        write_private(json_file, json.dumps(facts, indent=2) + "\n")
    if interrupted is not None:
        click.echo(f"{len(mistakes) - len(found)} of {len(mistakes)} were not searched to the end")
        raise interrupted
    return all(one.conviction for one in found)


def _search_all(
    found: list[_Found],
    mistakes: list[tuple[str, Planted | Raced]],
    seeds: range,
    processes: int,
    known: dict[str, int],
) -> None:
    children = _Children()
    with ThreadPoolExecutor(processes) as pool:
        searches = [
            pool.submit(_search, layer, planted, seeds, children, known.get(planted.name))
            for layer, planted in mistakes
        ]
        try:
            for search in searches:
                found.append(search.result())
                _tell(found[-1], len(found), len(searches))
        except BaseException:
            for search in searches:
                search.cancel()
            children.kill()
            raise


def _search(
    layer: str, planted: Planted | Raced, seeds: range, children: _Children, known: int | None
) -> _Found:
    began = SYSTEM_CLOCK.now()
    if isinstance(planted, Raced):
        return _Found(layer, planted, convict_raced(planted), SYSTEM_CLOCK.now() - began)
    conviction = None
    if known is not None:
        conviction = _convict(planted, range(known, known + 1), children)
    again = conviction is not None
    if conviction is None:
        conviction = _convict(planted, seeds, children)
    return _Found(layer, planted, conviction, SYSTEM_CLOCK.now() - began, again=again)


def _convict(planted: Planted, seeds: range, children: _Children) -> Conviction | None:
    with TemporaryDirectory(prefix="lockguard-planted-") as directory:
        return convict(planted, Path(directory), seeds=seeds, begun=children.add)


def _tell(found: _Found, number: int, of: int) -> None:
    told = f"seed {found.conviction.seed}" if found.conviction else "NOT CONVICTED"
    click.echo(f"{number}/{of} {found.planted.name}: {told}, {found.seconds:.1f} s", err=True)


def _show(found: list[_Found]) -> None:
    table = Table("mistake", "origin", "layer", "judge", "law", "first seed", "seconds")
    for one in found:
        law, seed = (
            (one.conviction.law, str(one.conviction.seed)) if one.conviction else ("NOT CONVICTED", "")
        )
        if one.again:
            seed = f"again {seed}"
        table.add_row(
            one.planted.name,
            one.planted.origin,
            one.layer,
            one.planted.judge,
            law,
            seed,
            f"{one.seconds:.1f}",
        )
    console().print(table)
    click.echo(f"{sum(one.conviction is not None for one in found)} of {len(found)} convicted")


def _command(names: tuple[str, ...], seeds: range) -> str:
    return " ".join(
        ("lockguard sim --planted", *(repr(name) for name in names), f"--seeds {seeds[0]}..{seeds[-1]}")
    )


def _commit() -> str:
    """The commit of the sources that were planted in; empty outside of a checkout."""
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607 - whichever git there is
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _date(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
