"""The model of the lock and its fence can do what simulated schedules did, and not what must never happen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lockguard_lab.models import spin
from lockguard_lab.models.recording import Do, Step, Trace, record
from lockguard_lab.models.traces import take, taker
from lockguard_lab.sim.plan import Plan

pytestmark = [
    pytest.mark.no_cover,
    pytest.mark.skipif(bool(spin.missing()), reason=f"{spin.missing() or 'nothing'} is not there"),
]

A, B = "a" * 32, "b" * 32


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with taker() as made:
        yield made


def test_the_model_does_what_the_simulator_did(directory: Path) -> None:
    traces = [trace for seed in range(1, 6) for trace in record(Plan.of(seed, "single"))]
    assert sum(step.do is Do.COMMIT for trace in traces for step in trace.steps) > 5
    refused = [str(taken) for taken in take(traces, directory) if not taken.accepted]
    assert not refused


def _two_holders() -> Trace:
    """A holds, writes and expires; its successor seals and writes; A is refused."""
    steps = [
        Step(Do.ACQUIRE, A, 10),
        Step(Do.SEAL_SENT, A, 10),
        Step(Do.SEALED, A, 10),
        Step(Do.ENTER, A),
        Step(Do.PRESENT, A, 10),
        Step(Do.COMMIT, A, 10),
        Step(Do.BUSY, B),
        Step(Do.EXPIRE, A),
        Step(Do.ACQUIRE, B, 20),
        Step(Do.RENEWAL_REFUSED, A),
        Step(Do.SEAL_SENT, B, 20),
        Step(Do.SEALED, B, 20),
        Step(Do.ENTER, B),
        Step(Do.REFUSED, A, 10),
        Step(Do.PRESENT, B, 20),
        Step(Do.COMMIT, B, 20),
        Step(Do.RELEASE, B, 0, 1),
        Step(Do.CLOSE, B, 20),
        Step(Do.RELEASE, A, 0, 0),
    ]
    return Trace(0, "binance:A", steps)


def _but(trace: Trace, at: int, *steps: Step) -> Trace:
    return Trace(0, trace.resource, [*trace.steps[:at], *steps, *trace.steps[at + len(steps) :]])


FALSE = {
    "a grant while another holds the lock": (7, (Step(Do.ACQUIRE, B, 20),)),
    "a token that is no higher": (8, (Step(Do.ACQUIRE, B, 10),)),
    "a renewal of a lease that has expired": (9, (Step(Do.RENEWED, A),)),
    "a body that runs unsealed": (11, (Step(Do.ENTER, B),)),
    "a stale write that is accepted": (13, (Step(Do.PRESENT, A, 10),)),
    "a holder that is refused": (14, (Step(Do.REFUSED, B, 20),)),
    "a commit of what was not accepted": (14, (Step(Do.COMMIT, B, 20),)),
    "a release by somebody else that finds the lock": (16, (Step(Do.RELEASE, A, 0, 1),)),
}


@pytest.mark.parametrize("name", FALSE)
def test_a_trace_that_was_falsified_is_refused_there(directory: Path, name: str) -> None:
    true = _two_holders()
    at, steps = FALSE[name]
    honest, false = take([true, _but(true, at, *steps)], directory)
    assert honest.accepted, str(honest)
    assert false.reached == at, str(false)


def test_a_stale_write_in_what_the_simulator_did_is_refused(directory: Path) -> None:
    traces = [trace for seed in range(1, 6) for trace in record(Plan.of(seed, "single"))]
    trace = next(one for one in traces if sum(step.do is Do.SEALED for step in one.steps) > 1)
    first = next(step for step in trace.steps if step.do is Do.ENTER)
    token = next(step.token for step in trace.steps if step.do is Do.SEALED and step.grant == first.grant)
    after = max(at for at, step in enumerate(trace.steps) if step.do is Do.SEALED) + 1
    assert trace.steps[after - 1].grant != first.grant
    false = replace(trace, steps=[*trace.steps[:after], Step(Do.PRESENT, first.grant, token)])
    (taken,) = take([false], directory)
    assert taken.reached == after, str(taken)


def test_the_close_of_who_never_sealed_leaves_who_is_in_force_alone(directory: Path) -> None:
    begun = _two_holders().steps[:4]
    begun += [Step(Do.EXPIRE, A), Step(Do.ACQUIRE, B, 20), Step(Do.RELEASE, B, 0, 1), Step(Do.CLOSE, B, 20)]
    writes, refused = Step(Do.PRESENT, A, 10), Step(Do.REFUSED, A, 10)
    true, false = take([Trace(0, "x", [*begun, writes]), Trace(0, "x", [*begun, refused])], directory)
    assert true.accepted, str(true)
    assert false.reached == len(begun), str(false)
