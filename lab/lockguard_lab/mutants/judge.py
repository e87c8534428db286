"""Plants mutants one at a time, and runs tests until one fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from grimp import ImportGraph, build_graph

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.mutants.copied import Copied
from lockguard_lab.mutants.mutant import Area, Mutant

__all__ = ["Judge", "JudgeError", "Result", "read_results", "write_results"]

_TEST_TIMEOUT_S = 40.0
_FIRST_MAX = 10
_PACKAGES = (
    *("lockguard", "lockguard_postgres", "lockguard_asyncpg", "lockguard_psycopg", "lockguard_ccxt"),
    *("lockguard_tenacity", "lockguard_positions", "lockguard_metrics", "lockguard_bot", "lockguard_logs"),
    *("lockguard_ops", "lockguard_command", "lockguard_lab"),
)
_READERS = {
    "lockguard/lua": "lockguard._scripts",
    "integrations/lockguard_postgres/sql": "lockguard_postgres._steps",
    "integrations/lockguard_positions/sql": "lockguard_positions._rows",
    "integrations/lockguard_positions/sql/migrations": "lockguard_positions._schema",
}
"""Which module reads the files of a directory that are not Python."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a mutant.

    Attributes:
        area: its area.
        name: its name.
        digest: of its text, so that a mutant that was changed is judged again.
        outcome: ``killed`` by a test, ``survived`` all of them, or ``equivalent`` as its data explain.
        test: the test that failed, or the explanation.
        took_s: how long that took, in seconds.
    """

    area: str
    name: str
    digest: str
    outcome: Literal["killed", "survived", "equivalent"]
    test: str = ""
    took_s: float = 0.0


def read_results(path: Path | None) -> dict[str, Result]:
    """The results of a file that :func:`write_results` wrote, by digest; none if it is not there."""
    if path is None or not path.exists():
        return {}
    return {facts["digest"]: Result(**facts) for facts in json.loads(path.read_text("utf-8"))}


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write results in order; a reader never meets half of them."""
    beside = path.with_name(f"{path.name}.new")
    facts = sorted((asdict(one) for one in results), key=lambda one: (one["area"], one["name"]))
    beside.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    beside.replace(path)


@dataclass(frozen=True, slots=True)
class _Sound:
    left_out: tuple[str, ...] = ()
    took_s: float = 0.0


_NOTHING = _Sound()


class JudgeError(Exception):
    """A mutant could not be judged: pytest itself failed."""


class Judge:
    """Judges mutants in one copy of the checkout; a context manager.

    Args:
        top: the checkout.
        directory: where the copy and the logs are.
        areas: which tests judge what.
        known: earlier results: the tests that killed mutants of a file are run first for others of it.
        timeout_s: how long the tests of one stage may take; a mutant that takes longer is killed.
    """

    def __init__(
        self,
        top: Path,
        directory: Path,
        *,
        areas: Mapping[str, Area],
        mutants: Iterable[Mutant],
        known: Mapping[str, Result],
        timeout_s: float = 400.0,
    ) -> None:
        self._directory = directory
        self._areas = areas
        self._timeout_s = timeout_s
        self._copied = Copied(top, directory / "copy")
        self._killers: dict[str, Counter[str]] = {}
        self._own: dict[str, str] = {}
        self._sound: dict[tuple[str, tuple[str, ...]], _Sound] = {}
        self._sound_tests: set[str] = set()
        self._graph: ImportGraph | None = None
        self._nursery: subprocess.Popen[str] | None = None
        for mutant in mutants:
            result = known.get(mutant.digest)
            if result is not None and result.outcome == "killed":
                self._note_killer(mutant, result.test)

    def __enter__(self) -> Self:
        """Start the process that runs the tests, before anything is planted."""
        copy = self._copied.directory
        places = os.pathsep.join(str(copy / part) for part in ("", "integrations", "lab"))
        inherited = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
        with (self._directory / "nursery.log").open("w") as log:
            self._nursery = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "lockguard_lab.mutants.nursery", str(copy)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=copy,  # which comes before PYTHONPATH
                env={**inherited, "PYTHONPATH": places},
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._nursery is not None:
            self._nursery.communicate()
            self._nursery = None

    def judge(self, mutant: Mutant) -> Result:
        """Plant a mutant and run tests until one fails that passes on the code as it is."""
        began = SYSTEM_CLOCK.now()
        if mutant.equivalent:
            return Result(mutant.area, mutant.name, mutant.digest, "equivalent", mutant.equivalent)
        area, changed = self._areas[mutant.area], self._changed_by(mutant.file)
        first = self._first_of(mutant)
        own = first[:1] if mutant.killer or mutant.digest in self._own else []
        for stage in (own, *area.stages_for(mutant.file)):
            if not stage:
                continue
            sound = self._sound_of(tuple(stage), area)
            with self._copied.planted(mutant):
                answer = self._request(stage, first, [*area.left_out, *sound.left_out], changed)
            if answer["failed"]:
                killer = str(answer["failed"][0])
                self._note_killer(mutant, killer)
                took_s = round(SYSTEM_CLOCK.now() - began - sound.took_s, 1)
                return Result(mutant.area, mutant.name, mutant.digest, "killed", killer, took_s)
            if answer["code"] not in {0, 4, 5}:  # passed; a test that is no longer there; none was left
                raise JudgeError(f"{mutant.name}: pytest ended with {answer['code']}, see {self._log}")
        took_s = round(SYSTEM_CLOCK.now() - began, 1)
        return Result(mutant.area, mutant.name, mutant.digest, "survived", "", took_s)

    def _sound_of(self, stage: tuple[str, ...], area: Area) -> _Sound:
        """What of a stage fails on the code as it is, and so convicts nothing; run once."""
        if len(stage) == 1 and "::" in stage[0] and stage[0] in self._sound_tests:
            return _NOTHING
        known = self._sound.get((area.name, stage))
        if known is None:
            began = SYSTEM_CLOCK.now()
            answer = self._request(stage, [], list(area.left_out), [], stop=False)
            failed = tuple(name.replace("[", "[[]") for name in answer["failed"] if "::" in name)
            self._sound_tests.update(name for name in answer["passed"] if name not in answer["failed"])
            known = _Sound(failed, SYSTEM_CLOCK.now() - began)
            self._sound[area.name, stage] = replace(known, took_s=0.0)
        return known

    def _changed_by(self, file: str) -> list[str]:
        """The modules to import anew where a file is changed."""
        module = _READERS.get(file.rpartition("/")[0], "") or (
            file.removeprefix("integrations/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        )
        if self._graph is None:
            self._graph = build_graph(*_PACKAGES)
        if module not in self._graph.modules:
            return []
        return [module, *sorted(self._graph.find_downstream_modules(module))]

    def _first_of(self, mutant: Mutant) -> list[str]:
        counted = self._killers.get(mutant.file, Counter())
        own = [mutant.killer, self._own.get(mutant.digest, "")]
        found = [*own, *(name for name, _ in counted.most_common(_FIRST_MAX))]
        return [name for name in dict.fromkeys(found) if "::" in name and self._is_there(name)]

    def _is_there(self, name: str) -> bool:
        file, _, test = name.partition("::")
        path = self._copied.directory / file
        return path.exists() and f"def {test.partition('[')[0].rpartition('::')[2]}(" in path.read_text(
            "utf-8"
        )

    def _note_killer(self, mutant: Mutant, killer: str) -> None:
        self._own[mutant.digest] = killer
        if "::" in killer:
            self._killers.setdefault(mutant.file, Counter())[killer] += 1

    @property
    def _log(self) -> Path:
        return self._directory / "tests.log"

    def _request(
        self,
        tests: Iterable[str],
        first: Iterable[str],
        left_out: Iterable[str],
        changed: Iterable[str],
        *,
        stop: bool = True,
    ) -> dict[str, Any]:
        request = {
            "tests": list(tests),
            "first": list(first),
            "left_out": list(left_out),
            "changed": list(changed),
            "options": ["-x"] if stop else [],
            "timeout_s": self._timeout_s,
            "test_timeout_s": _TEST_TIMEOUT_S,
            "log": str(self._log),
            "answer": str(self._directory / "answer.json"),
        }
        assert self._nursery is not None
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(json.dumps(request) + "\n")
        self._nursery.stdin.flush()
        line = self._nursery.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the process that runs the tests has ended, see {self._directory / 'nursery.log'}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer
