"""Runs Spin: makes a verifier of a model, compiles and runs it, and reads what it tells."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.models.checks import Check

__all__ = ["SPEC", "Told", "Unusable", "check", "missing", "verifier", "version"]

SPEC = Path(__file__).resolve().parents[3] / "spec"
"""The models, in a checkout."""

_STORES = {
    "exact": (),
    "collapse": ("-DCOLLAPSE",),
    "hash-compact": ("-DHC4",),
    "bitstate": ("-DBITSTATE",),
}
_VERSION = ("spin", "-V")
_DEPTH = 100_000
_SHORT_TABLE, _LONG_TABLE = 20, 26
_BITSTATE_TABLE = 34
_PROGRESS = "progress: nobody waits for ever"
_TAIL = 2000


class Unusable(Exception):
    """A model could not be checked; the text says why."""


@dataclass(frozen=True)
class Told:
    """What a verifier told.

    Attributes:
        check: what was run.
        states: how many different states were visited.
        depth: of the longest path.
        memory_mib: of the verifier.
        seconds: of the search.
        complete: whether nothing was left out but by the store itself.
        broke: the law that was broken, as the model's comment has it; empty if none was.
        trail: the actions that lead there, one a line.
    """

    check: Check
    states: int
    depth: int
    memory_mib: float
    seconds: float
    complete: bool
    broke: str
    trail: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.broke:
            return f"breaks {self.broke}"
        return "clean" if self.complete else "clean as far as it came"

    @property
    def as_expected(self) -> bool:
        """Whether a mistake broke its law, and anything else none."""
        if self.check.mistake:
            return self.broke.startswith(self.check.law)
        return not self.broke


def missing() -> str:
    """The program that is not there; empty if all are."""
    return next((name for name in ("spin", "gcc") if shutil.which(name) is None), "")


def version() -> str:
    """Of Spin."""
    told = subprocess.run(_VERSION, capture_output=True, text=True, check=False).stdout
    found = re.search(r"[0-9]+(\.[0-9]+)+", told)
    return found[0] if found else "unknown"


@contextmanager
def verifier(
    model: str,
    defines: Sequence[str],
    *,
    flags: Sequence[str] = (),
    beside: Sequence[Path] = (),
    spec: Path = SPEC,
) -> Iterator[Path]:
    """A directory, removed afterwards, with the compiled verifier ``pan`` of a model.

    Raises:
        Unusable: Spin or the compiler refuses it.
    """
    with tempfile.TemporaryDirectory(prefix="lockguard-models-") as name:
        directory = Path(name)
        for file in (spec / f"{model}.pml", *beside):
            shutil.copy(file, directory)
        _do(["spin", *(f"-D{one}" for one in defines), "-a", f"{model}.pml"], directory)
        _do(["gcc", "-w", *flags, "-o", "pan", "pan.c"], directory)
        yield directory


def check(
    what: Check, *, memory_mib: int = 6000, within_s: float = 3600.0, trail: bool = False, spec: Path = SPEC
) -> Told:
    """Run one check.

    Args:
        what: the check.
        memory_mib: what the verifier may use.
        within_s: how long the search may take, in seconds; what it has found by then is told.
        trail: whether to look for the shortest way to what is broken, and to tell it.
        spec: where the models are.

    Raises:
        Unusable: the model could not be checked.
    """
    short = what.mistake or not what.long
    # A verifier that runs for a moment takes longer to optimize than to run.
    flags = [
        "-O0" if what.mistake and not what.heavy else "-O1" if short else "-O3",
        f"-DMEMLIM={memory_mib}",
        *_STORES[what.store],
    ]
    flags.append("-DBFS" if what.mistake else "-DNOFAIR")  # the shortest way to what it breaks
    table = _BITSTATE_TABLE if what.store == "bitstate" else _SHORT_TABLE if short else _LONG_TABLE
    run = ["./pan", f"-m{_DEPTH}", f"-w{table}"]
    with verifier(what.model, what.defines, flags=["-DSAFETY", *flags], spec=spec) as directory:
        began = SYSTEM_CLOCK.now()
        text = _bounded(run, directory, within_s)
        took_s = SYSTEM_CLOCK.now() - began
        steps = _actions(what, directory) if trail else []
        return _read(what, text, took_s, steps, spec=spec)


def _do(command: Sequence[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unusable(f"{' '.join(command)}:\n{(done.stdout + done.stderr)[:_TAIL]}")
    return done.stdout


def _bounded(command: Sequence[str], directory: Path, within_s: float) -> str:
    """What it prints; interrupted once its time is over, upon which it tells what it has found."""
    with subprocess.Popen(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        try:
            return running.communicate(timeout=within_s)[0]
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)
            return running.communicate()[0]
        except BaseException:
            running.kill()
            raise


def _read(what: Check, text: str, took_s: float, trail: Sequence[str], *, spec: Path) -> Told:
    stored = re.search(r"^\s*([\d.e+]+) states, stored", text, re.MULTILINE)
    reached = re.search(r"depth reached (\d+)", text)
    memory = re.search(r"^\s*([\d.]+)\s+total actual memory usage", text, re.MULTILINE)
    failed = re.search(r"^pan:\d+: (?:assertion violated (.*)|(.*)) \(at depth", text, re.MULTILINE)
    stuck = failed is not None and failed[2] == "invalid end state"
    if not (stored and reached and memory) or (failed and failed[2] and not stuck):
        raise Unusable(f"the verifier of {what.model} ({what.name}) told:\n{text[:_TAIL]}")
    source = (spec / f"{what.model}.pml").read_text("utf-8")
    return Told(
        what,
        int(float(stored[1])),
        int(reached[1]),
        float(memory[1]),
        took_s,
        complete="Search not completed" not in text and "max search depth too small" not in text,
        broke="" if failed is None else _PROGRESS if stuck else _law(source, failed[1]),
        trail=tuple(trail),
    )


def _law(source: str, failed: str) -> str:
    """The comment behind an assertion, which names its law."""
    for statement, law in re.findall(r"assert(\(.*\));?\s*/\* (.*?) \*/", source):
        if _bare(statement) == _bare(failed):
            return str(law)
    return failed


def _bare(text: str) -> str:
    return re.sub(r"[()\s]", "", text)


_STEP = re.compile(
    r"^\s*(\d+):\s+proc\s+(\d+) \((\w+):\d+\) \w+\.pml:(\d+) \(state \d+\)\s*\[(.*)\]$", re.MULTILINE
)
_PART = re.compile(r"(?:(inline)|(?:active )?proctype) (\w+)")


def _actions(what: Check, directory: Path) -> list[str]:
    """The counterexample: who does what."""
    replay = ["spin", *(f"-D{one}" for one in what.defines), "-t", "-p", f"{what.model}.pml"]
    told = subprocess.run(replay, cwd=directory, capture_output=True, text=True, check=False).stdout
    lines = (directory / f"{what.model}.pml").read_text("utf-8").splitlines()
    parts = [(at, found) for at, line in enumerate(lines, 1) if (found := _PART.match(line))]
    first: dict[str, int] = {}
    for _, pid, name, _, _ in _STEP.findall(told):
        first[name] = min(int(pid), first.get(name, int(pid)))
    steps, before = [], ""
    for number, pid, name, line, text in _STEP.findall(told):
        if number == before:
            continue
        before = number
        one = int(pid) - first[name] + 1
        part = next((found for at, found in reversed(parts) if at <= int(line)), None)
        steps.append(f"{name} {one}: {part[2] if part and part[1] else text}")
    return steps
