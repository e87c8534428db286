"""One known mistake: a replacement in a copy of the sources, which a judge has to convict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from shutil import copytree, ignore_patterns

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.sim.judge import Violation

__all__ = ["JUDGES", "Change", "Conviction", "Planted", "convict"]

JUDGES = {
    "sim": "lockguard_lab.sim.run:violations",
    "flow": "lockguard_lab.sim.flow.run:violations",
    "fenced": "lockguard_lab.sim.fenced.run:violations",
    "sequences": "lockguard_lab.sim.fenced.sequences:violations",
}
"""Who runs schedules, by name: ``module:function``. It is called with a seed, and a topology or ``None``, and
returns the laws that were broken, each a ``Violation``."""

_RUN = """
import importlib, json, os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()  # ends with its parent
directory, packages, judge, first, last, topology = sys.argv[1:]
sys.unraisablehook = lambda _: None  # coroutines of processes that never ended
for package in packages.split():
    found = importlib.import_module(package).__file__
    assert found.startswith(directory), found
module, _, name = judge.partition(":")
violations = getattr(importlib.import_module(module), name)
for seed in range(int(first), int(last)):
    if found := violations(seed, topology or None):
        print(json.dumps([seed, found[0].law, found[0].told]))
        break
"""


@dataclass(frozen=True)
class Change:
    """A text that is replaced.

    Attributes:
        file: the file, from its package on: ``lockguard_postgres/sql/rights.sql``.
        old: the text, which occurs once.
        new: what replaces it.
    """

    file: str
    old: str
    new: str

    @property
    def package(self) -> str:
        """The package that the file is of."""
        return self.file.partition("/")[0]

    def applied(self, text: str, name: str) -> str:
        """The file's text with the change made.

        Raises:
            ValueError: the code has changed, so that it does not fit any more.
        """
        if text.count(self.old) != 1:
            raise ValueError(
                f"{name}: {self.file} has its text {text.count(self.old)} times; write it anew: {self.old!r}"
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Planted:
    """One mistake.

    Attributes:
        name: what is wrong.
        origin: where it comes from.
        file: the file, from its package on: ``lockguard/lua/release.lua``.
        old: the text that is replaced; it occurs once.
        new: what replaces it.
        law: the beginning of the law that it breaks; empty where any is as likely.
        topology: the servers on which it shows, or, in the flow, what goes wrong when it shows; empty where
            the seed may choose.
        quick: whether 120 schedules convict it, so that every change is held to that.
        judge: who convicts it: a name in ``JUDGES``.
        more: further replacements that belong to the same mistake.
    """

    name: str
    origin: str
    file: str
    old: str
    new: str
    law: str = ""
    topology: str = ""
    quick: bool = False
    judge: str = "sim"
    more: tuple[Change, ...] = ()

    @property
    def changes(self) -> tuple[Change, ...]:
        """All replacements."""
        return (Change(self.file, self.old, self.new), *self.more)

    def sources(self) -> dict[str, str]:
        """The files with the mistake in them.

        Raises:
            ValueError: the code has changed, so that it does not fit any more.
        """
        changed: dict[str, str] = {}
        for change in self.changes:
            _, _, inside = change.file.partition("/")
            text = changed.get(change.file) or (files(change.package) / inside).read_text("utf-8")
            changed[change.file] = change.applied(text, self.name)
        return changed


@dataclass(frozen=True)
class Conviction(Violation):
    """The law that a mistake broke first, in which schedule, and after how many seconds of searching."""

    seed: int = 0
    seconds: float = 0.0


def convict(
    planted: Planted,
    directory: Path,
    *,
    seeds: range,
    begun: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
) -> Conviction | None:
    """Plant a mistake in copies of its packages in ``directory``; run schedules until one breaks a law.

    Args:
        planted: the mistake.
        directory: where the copies go.
        seeds: which schedules.
        begun: told of the process that runs them, so that it can be killed from another thread.

    Raises:
        subprocess.CalledProcessError: it was killed, or has failed.
    """
    sources = planted.sources()
    packages = sorted({change.package for change in planted.changes})
    for package in packages:
        copytree(Path(str(files(package))), directory / package, ignore=ignore_patterns("__pycache__"))
    for file, text in sources.items():
        (directory / file).write_text(text, "utf-8")
    given = [str(directory), " ".join(packages), JUDGES[planted.judge], str(seeds[0]), str(seeds[-1] + 1)]
    began = SYSTEM_CLOCK.now()
    command = [sys.executable, "-W", "ignore", "-c", _RUN, *given, planted.topology]
    with subprocess.Popen(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory)},
        stdin=subprocess.PIPE,  # open as long as this process lives
        stdout=subprocess.PIPE,
        process_group=0,  # Ctrl-C in the terminal reaches the parent alone
    ) as child:
        begun(child)
        try:
            assert child.stdout is not None
            written = child.stdout.read()
            code = child.wait()
        except BaseException:
            child.kill()
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)
    if not written:
        return None
    seed, law, told = json.loads(written)
    return Conviction(law, told, seed, SYSTEM_CLOCK.now() - began)
