"""A mutant as data, and the areas that mutants belong to."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

__all__ = ["Area", "Mutant", "load"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake in one file.

    Attributes:
        area: the area of the product, such as ``lua``.
        name: what is wrong, in words; unique.
        file: the file, below the top directory.
        old: the text that is replaced; it occurs once in the file.
        new: what replaces it.
        equivalent: why no caller can see a difference; empty for a mutant that a test has to see.
        killer: the test that is run first, if it is known which one states the law.
    """

    area: str
    name: str
    file: str
    old: str
    new: str
    equivalent: str = ""
    killer: str = ""

    @property
    def digest(self) -> str:
        """Changes with the text of the mutant, not with its name."""
        return hashlib.sha256("\0".join((self.file, self.old, self.new)).encode()).hexdigest()[:16]

    def source(self, top: Path) -> str:
        """The file with the mistake in it.

        Raises:
            ValueError: the code has changed, so that the mutant does not fit any more.
        """
        text = (top / self.file).read_text("utf-8")
        if (found := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.area}: {self.name}: {self.file} has its text {found} times; write it anew"
            )
        if self.old == self.new:
            raise ValueError(f"{self.area}: {self.name}: it changes nothing")
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Area:
    """A part of the product, and the tests that judge it.

    Attributes:
        name: what ``--area`` calls it.
        floor: the least share of its mutants, of those not equivalent, that tests have to kill.
        stages: lists of test files, the fastest first; each is run until a test fails.
        left_out: patterns of tests that are not run, such as those over many servers.
        also: for files that match a pattern, test files that are run before the stages.
    """

    name: str
    floor: float
    stages: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...] = ()
    also: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def stages_for(self, file: str) -> tuple[tuple[str, ...], ...]:
        """The lists of test files that judge a mutant of ``file``, in order."""
        first = tuple(test for pattern, tests in self.also if fnmatchcase(file, pattern) for test in tests)
        rest = tuple(tuple(test for test in stage if test not in first) for stage in self.stages)
        return tuple(stage for stage in (first, *rest) if stage)


def load(directory: Path) -> tuple[dict[str, Area], tuple[Mutant, ...]]:
    """The areas of ``areas.toml`` and the mutants of the other files of a directory, one for each area.

    Raises:
        ValueError: two mutants have one name, or a field is unknown.
    """
    areas = {name: _area(name, facts) for name, facts in _read(directory / "areas.toml").items()}
    mutants = tuple(
        _mutant(name, facts)
        for name in areas
        for facts in _read(directory / f"{name}.toml").get("mutant", [])
    )
    seen: set[tuple[str, str]] = set()
    for one in mutants:
        if (one.area, one.name) in seen:
            raise ValueError(f"{one.area}: two mutants are called {one.name!r}")
        seen.add((one.area, one.name))
    return areas, mutants


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8")) if path.exists() else {}


def _mutant(area: str, facts: dict[str, Any]) -> Mutant:
    try:
        return Mutant(area=area, **facts)
    except TypeError as exc:
        raise ValueError(f"{area}: {facts.get('name')!r}: {exc}") from exc


def _area(name: str, facts: dict[str, Any]) -> Area:
    return Area(
        name,
        floor=facts["floor"],
        stages=tuple(tuple(stage) for stage in facts["stages"]),
        left_out=tuple(facts.get("left_out", ())),
        also=tuple((pattern, tuple(tests)) for pattern, tests in facts.get("also", {}).items()),
    )
