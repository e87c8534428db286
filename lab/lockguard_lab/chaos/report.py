"""What a run says: lines and a table for people, and a file of evidence."""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import lockguard
from lockguard._cli.tables import Table, console
from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.chaos.plan import RoundReport, Tally
from lockguard_lab.chaos.recovery import BOUNDS, Bound
from lockguard_lab.chaos.selfcheck import CHECKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["UNJUDGED", "Summary"]

UNJUDGED = "rounds that could not be judged"
_FAILED = ("rounds that failed", "processes that failed", UNJUDGED)
_GIT_S = 10
_NOTE = (
    "The seed decides which faults come when, and for how long; what the processes and servers are doing at"
    " that moment depends on the machine."
)


@dataclass(slots=True)
class Summary:
    """All rounds of a run.

    Attributes:
        seed: the run's.
        total: the sum of all rounds.
        checked: for each self-check, whether it convicted, each time that it was tried.
        by_topology: how many calls were made over each.
        planted: for each planted check, its stale commits; empty if none was raced.
        violations: a line for each violation that is told, with its round's seed first.
        plans: for each round's seed, what stands for its faults.
        rounds: how many there were.
        kept: where the record of a run that found something is kept; ``None`` if its user named a place.
        began: when the run began, in seconds since 1970.
    """

    seed: int
    total: RoundReport = field(default_factory=RoundReport)
    checked: dict[str, list[bool]] = field(default_factory=lambda: {check: [] for check in CHECKS})
    by_topology: Counter[str] = field(default_factory=Counter)
    planted: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    plans: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    kept: Path | None = None
    began: float = field(default_factory=SYSTEM_CLOCK.wall)

    def add(
        self, name: str, topology: str, seed: int, report: RoundReport, checked: Mapping[str, Sequence[bool]]
    ) -> None:
        """Add a round, and tell it in a line."""
        self.rounds += 1
        self.total.add(report)
        self.by_topology[topology] += report.operations
        for check, times in checked.items():
            self.checked[check] += times
        if not _sound(report):
            self.violations += [f"{seed} {topology}: {line}" for line in report.told or ["see the counts"]]
        click.echo(
            f"{name}: {report.operations:,} operations, {sum(report.faults.values())} faults,"
            f" {report.violations} violations"
        )
        for line in report.told:
            click.echo(f"  {line}")

    @property
    def missed(self) -> list[str]:
        """The self-checks that did not convict, or were never possible."""
        # There may have been nothing to try yet, or only what breaks the law already.
        excused = self.total.counts["interrupted"] > 0 or not _sound(self.total)
        missed = [check for check, times in self.checked.items() if not all(times) or not (times or excused)]
        # Whether somebody takes over before a write past the fence is left to the run: once is enough.
        return [check for check in missed if not (check == CHECKS[-1] and any(self.checked[check]))]

    @property
    def sound(self) -> bool:
        """Whether no law was broken, no round failed, and the judge saw what it must see."""
        return _sound(self.total) and not self.missed and all(self.planted.values())

    def show(self) -> None:
        """Print what was done, what was found, and how long each recovery took."""
        table = Table("", "")
        for name, told in (*self._done(), *self._found()):
            table.add_row(name, told if isinstance(told, str) else f"{told:,}")
        console().print(table)
        if self.total.recovery_s:
            console().print(_recovery_table(self.total.recovery_s))
        self.tell_kept()

    def tell_kept(self) -> None:
        """Say where the record is, if it was kept unasked."""
        if self.kept is not None:
            click.echo(
                f"the history is kept in {self.kept}; judge it again: lockguard chaos --check {self.kept}"
            )

    def _sample(self) -> list[dict[str, Any]]:
        """A short run from the same seed: its faults are planned as those of the first round were."""
        topology = next(iter(self.by_topology), "")
        command = f"lockguard chaos --minutes 0.2 --topology {topology} --seed {self.seed}"
        return [{"command": command, "tells": {"violations": []}}] if topology else []

    def _done(self) -> Iterator[tuple[str, int | str]]:
        total = self.total
        yield from ((f"operations, {name}", count) for name, count in self.by_topology.items())
        yield "operations", total.operations
        yield from ((f"  {call}", count) for call, count in sorted(_by_call(total.calls).items()))
        yield "rounds", self.rounds
        yield "faults", sum(total.faults.values())
        yield from ((f"  {kind}", count) for kind, count in sorted(total.faults.items()))
        yield "waits judged for a lost wake-up", total.counts["waits judged"]

    def _found(self) -> Iterator[tuple[str, int | str]]:
        total = self.total
        yield "violations", total.violations
        laws = {**_laws(_sums(total)), **total.broken}
        yield from ((f"  {law}", count) for law, count in sorted(laws.items()))
        failed = {
            **{name: total.counts[name] for name in _FAILED},
            "unknown outcomes not resolved": total.unresolved,
        }
        yield from ((name, count) for name, count in failed.items() if count)
        for check, times in self.checked.items():
            yield check, f"convicted {sum(times)} of {len(times)} times" if times else "was not possible"
        for check, stale in self.planted.items():
            yield f"planted: {check}", "convicted" if stale else "NOT convicted"

    def facts(self, command: str) -> dict[str, Any]:
        """The evidence of the run, as JSON has it."""
        total, sums = self.total, _sums(self.total)
        began = datetime.fromtimestamp(self.began, UTC)
        counts: dict[str, float] = {
            "operations": total.operations,
            "rounds": self.rounds,
            "faults": sum(total.faults.values()),
            "violations": total.violations,
            "unresolved": total.unresolved,
            "waits judged": total.counts["waits judged"],
            **{f"operations, {name}": count for name, count in self.by_topology.items()},
            **asdict(sums),
            **{name: total.counts[name] for name in _FAILED},
            **{f"fault: {kind}": count for kind, count in sorted(total.faults.items())},
            **{f"call: {call}": count for call, count in sorted(total.calls.items())},
        }
        return {
            "command": command,
            "commit": _commit(),
            "began": began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": round(SYSTEM_CLOCK.wall() - self.began, 1),
            "seed": self.seed,
            "seeds": [[self.seed, self.seed + max(0, self.rounds - 1)]],
            "counts": counts,
            "violations": self.violations,
            "self_check": {
                check: {"tried": len(times), "convicted": sum(times)} for check, times in self.checked.items()
            },
            "planted": self.planted,
            "plans": self.plans,
            "sample": self._sample(),
            "rows": [_row(kind, took) for kind, took in sorted(total.recovery_s.items())],
            "notes": [_NOTE],
        }


def _sound(report: RoundReport) -> bool:
    return (
        not report.violations and not report.unresolved and not any(report.counts[name] for name in _FAILED)
    )


def _sums(report: RoundReport) -> Tally:
    sums = Tally()
    for tally in report.ways.values():
        sums.add(tally)
    return sums


def _laws(sums: Tally) -> dict[str, int]:
    return {
        "stale commits": sums.stale_commits,
        "duplicates": sums.duplicates,
        "lost writes": sums.lost_writes,
    }


def _by_call(calls: Mapping[str, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, count in calls.items():
        found[name.partition(" ")[0]] += count
    return found


def _row(kind: str, took: Sequence[float]) -> dict[str, Any]:
    bound = BOUNDS.get(kind, Bound("", 0.0))
    ordered = sorted(took)
    return {
        "recovery": kind,
        "law": bound.law,
        "times": len(ordered),
        "p50_s": round(_at(ordered, 0.5), 3),
        "p99_s": round(_at(ordered, 0.99), 3),
        "max_s": round(ordered[-1], 3),
        "bound_s": bound.seconds,
    }


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _recovery_table(recovery_s: Mapping[str, Sequence[float]]) -> Table:
    table = Table("recovery", "law", "times", "p50", "p99", "max", "bound")
    for kind, took in sorted(recovery_s.items()):
        row = _row(kind, took)
        table.add_row(
            kind,
            row["law"],
            f"{row['times']:,}",
            *(f"{row[name]:.2f} s" for name in ("p50_s", "p99_s", "max_s")),
            f"{row['bound_s']:.2f} s" if row["bound_s"] else "-",
        )
    return table


def _commit() -> str:
    """The commit that is tried; empty where the code is not in a repository."""
    place = Path(lockguard.__file__).parent
    try:
        said = subprocess.run(
            ("git", "-C", str(place), "rev-parse", "HEAD"),  # noqa: S607 - whichever git there is
            capture_output=True,
            text=True,
            timeout=_GIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""
