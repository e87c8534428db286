"""Whether the model of the lock and its fence can do what simulated schedules did.

One verifier is compiled for all traces. It takes each through the model, step by step: a step that is not
possible where the one before has led, or that breaks a law, ends it there.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lockguard_lab.models import spin
from lockguard_lab.models.recording import Do, Trace

__all__ = ["GRANTS_MAX", "Taken", "take", "taker"]

GRANTS_MAX = 250
"""A trace with more grants is cut before the first that is one too many."""

_PAN = ("./pan", "-m1000000", "-c0", "-w20")
_TAIL = 2000


@dataclass(frozen=True)
class Taken:
    """How far the model could follow a trace.

    Attributes:
        trace: what was followed.
        steps: how many there were.
        reached: how many the model took.
    """

    trace: Trace
    steps: int
    reached: int

    @property
    def accepted(self) -> bool:
        """Whether it took all."""
        return self.reached == self.steps

    def __str__(self) -> str:
        where = f"seed {self.trace.seed}, {self.trace.resource}"
        if self.accepted:
            return f"{where}: {self.steps} steps taken"
        at = self.trace.steps[self.reached]
        what = f"{at.do.name} {at.grant[:8]} {at.token}"
        return f"{where}: step {self.reached + 1} of {self.steps} is refused: {what}"


@contextmanager
def taker() -> Iterator[Path]:
    """A directory, removed afterwards, with the verifier that takes traces.

    Raises:
        Unusable: Spin or the compiler refuses the model.
    """
    defines, flags = ("REPLAY", f"GRANTS={GRANTS_MAX}"), ("-O1", "-DSAFETY", "-DNOREDUCE", "-DVECTORSZ=16384")
    here = Path(__file__).parent
    with spin.verifier("lock_and_fence", defines, flags=flags, beside=sorted(here.glob("*.h"))) as directory:
        yield directory


def take(traces: Sequence[Trace], directory: Path) -> list[Taken]:
    """Follow each trace with the verifier in ``directory``.

    Raises:
        Unusable: the verifier failed.
    """
    lists = [_lines(trace) for trace in traces]
    file = directory / "traces"
    head = [f"{len(lists)} {sum(map(len, lists))}"]
    file.write_text("\n".join([*head, *(line for each in lists for line in (str(len(each)), *each))]) + "\n")
    done = subprocess.run(
        _PAN,
        cwd=directory,
        env={**os.environ, "TRACES": str(file)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = {
        int(one): int(many) for one, many in re.findall(r"^reached (\d+) (\d+) of", done.stdout, re.MULTILINE)
    }
    if len(told) != len(traces) or "max search depth too small" in done.stdout:
        raise spin.Unusable(f"the verifier of the traces told:\n{(done.stdout + done.stderr)[-_TAIL:]}")
    return [
        Taken(trace, len(lines), told[number])
        for number, (trace, lines) in enumerate(zip(traces, lists, strict=True))
    ]


def _lines(trace: Trace) -> list[str]:
    numbers = {grant: number for number, grant in enumerate(trace.grants, 1)}
    steps = trace.steps
    for at, step in enumerate(steps):
        if numbers.get(step.grant, 0) > GRANTS_MAX:
            steps = steps[:at]
            break
    # Tokens are microseconds: only their order counts.
    tokens = sorted({0} | {step.token for step in steps} | {s.more for s in steps if s.do is Do.REPLACED})
    rank = {token: at for at, token in enumerate(tokens)}
    return [
        f"{step.do} {numbers.get(step.grant, 0)} {rank[step.token]}"
        f" {rank[step.more] if step.do is Do.REPLACED else step.more}"
        for step in steps
    ]
