"""The checker of histories: on small ones whose verdict is known, on generated ones, and on long ones."""

from __future__ import annotations

import itertools
import math
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockguard_lab.chaos.linearizability import Action, Model, Operation, State, check
from lockguard_lab.chaos.models import Fence, FencedMutex

NEVER = math.inf


def op(begin: float, end: float, *action: object, certain: bool = True) -> Operation:
    return Operation(begin, end, action, certain=certain)


def maybe(begin: float, *action: object, end: float = NEVER) -> Operation:
    return Operation(begin, end, action, certain=False)


def acquire(begin: float, end: float, grant: str, token: int) -> Operation:
    return op(begin, end, "acquire", grant, token)


def release(begin: float, end: float, grant: str) -> Operation:
    return op(begin, end, "release", grant)


def lapse(begin: float, grant: str, token: int) -> Operation:
    return maybe(begin, "lapse", grant, token)


def seal(begin: float, end: float, token: int) -> Operation:
    return op(begin, end, "seal", token)


def write(begin: float, end: float, token: int) -> Operation:
    return op(begin, end, "write", token)


LOCKS = {
    "nothing happened": (True, []),
    "one after the other": (
        True,
        [acquire(0, 1, "a", 1), release(2, 3, "a"), acquire(4, 5, "b", 2), release(6, 7, "b")],
    ),
    "a second holder while the first holds": (
        False,
        [acquire(0, 1, "a", 1), acquire(2, 3, "b", 2), release(4, 5, "a")],
    ),
    "a second holder, and the first never ends": (False, [acquire(0, 1, "a", 1), acquire(2, 3, "b", 2)]),
    "acquired while the release is under way": (
        True,
        [acquire(0, 1, "a", 1), release(2, 5, "a"), acquire(3, 4, "b", 2)],
    ),
    "acquired before the release is asked for": (
        False,
        [acquire(0, 1, "a", 1), acquire(2, 3, "b", 2), release(3.5, 5, "a")],
    ),
    "a waiter that asked long ago": (
        True,
        [acquire(0, 1, "a", 1), acquire(0.5, 4, "b", 2), release(2, 3, "a")],
    ),
    "two waiters served in either order": (
        True,
        [
            acquire(0, 10, "b", 2),
            acquire(0, 10, "c", 3),
            acquire(0, 10, "a", 1),
            release(0, 10, "a"),
            release(0, 10, "b"),
        ],
    ),
    "the token goes back": (False, [acquire(0, 1, "a", 2), release(2, 3, "a"), acquire(4, 5, "b", 1)]),
    "the token is given twice": (False, [acquire(0, 1, "a", 1), release(2, 3, "a"), acquire(4, 5, "b", 1)]),
    "the lower token came first, as it may have": (
        True,
        [acquire(0, 9, "a", 2), acquire(1, 8, "b", 1), release(0, 9, "b")],
    ),
    "confirmed while it holds": (True, [acquire(0, 1, "a", 1), op(2, 3, "confirm", "a")]),
    "confirmed before it holds": (False, [op(0, 1, "confirm", "a"), acquire(2, 3, "a", 1)]),
    "confirmed after its release": (
        False,
        [acquire(0, 1, "a", 1), release(2, 3, "a"), op(4, 5, "confirm", "a")],
    ),
    "confirmed while its release is under way": (
        True,
        [acquire(0, 1, "a", 1), release(2, 5, "a"), op(3, 4, "confirm", "a")],
    ),
    "confirmed although a successor holds": (
        False,
        [acquire(0, 1, "a", 1), lapse(2, "a", 1), acquire(3, 4, "b", 2), op(5, 6, "confirm", "a")],
    ),
    "released by who does not hold": (False, [acquire(0, 1, "a", 1), release(2, 3, "b")]),
    "released twice": (False, [acquire(0, 1, "a", 1), release(2, 3, "a"), release(4, 5, "a")]),
    "expired at its deadline": (True, [acquire(0, 1, "a", 1), lapse(5, "a", 1), acquire(6, 7, "b", 2)]),
    "taken before the deadline": (False, [acquire(0, 1, "a", 1), lapse(5, "a", 1), acquire(3, 4, "b", 2)]),
    "expired, or not": (True, [acquire(0, 1, "a", 1), lapse(2, "a", 1), release(9, 10, "a")]),
    "a release without an answer that freed it": (
        True,
        [acquire(0, 1, "a", 1), maybe(2, "lapse", "a", 1), acquire(3, 4, "b", 2)],
    ),
    "a release without an answer that came late": (
        True,
        [acquire(0, 1, "a", 1), maybe(2, "lapse", "a", 1), op(5, 6, "confirm", "a"), acquire(7, 8, "b", 2)],
    ),
    "a release without an answer frees it once": (
        False,
        [
            acquire(0, 1, "a", 1),
            maybe(2, "lapse", "a", 1),
            acquire(3, 4, "b", 2),
            acquire(5, 6, "c", 3),
        ],
    ),
    "a break frees it": (True, [acquire(0, 1, "a", 1), op(2, 3, "free"), acquire(4, 5, "b", 2)]),
    "a break under way frees it": (True, [acquire(0, 1, "a", 1), op(2, 9, "free"), acquire(4, 5, "b", 2)]),
    "a break ends before it is granted": (
        False,
        [op(0, 0.5, "free"), acquire(1, 2, "a", 1), acquire(4, 5, "b", 2)],
    ),
    "believed after a break": (
        False,
        [acquire(0, 1, "a", 1), op(2, 3, "free"), op(4, 5, "confirm", "a")],
    ),
    "a break that may have failed": (
        True,
        [acquire(0, 1, "a", 1), maybe(2, "free"), op(4, 5, "confirm", "a"), acquire(6, 7, "b", 2)],
    ),
    "one loss of data frees it once": (
        False,
        [
            acquire(0, 1, "a", 1),
            maybe(2, "free", end=3),
            acquire(4, 5, "b", 2),
            acquire(6, 7, "c", 3),
        ],
    ),
    "two losses of data free it twice": (
        True,
        [
            acquire(0, 1, "a", 1),
            maybe(2, "free"),
            maybe(2.5, "free"),
            acquire(4, 5, "b", 2),
            acquire(6, 7, "c", 3),
        ],
    ),
    "a loss of data that was over before": (
        False,
        [acquire(0, 1, "a", 1), maybe(2, "free", end=3), op(4, 5, "confirm", "a"), acquire(6, 7, "b", 2)],
    ),
    "an acquisition without an answer that nobody noticed": (
        True,
        [maybe(0, "acquire", "x", 1), acquire(2, 3, "a", 2)],
    ),
    "an acquisition without an answer that its holder confirmed": (
        True,
        [maybe(0, "acquire", "x", 1), op(2, 3, "confirm", "x")],
    ),
}

FENCES = {
    "writes of the one in force": (True, [seal(0, 1, 1), write(2, 3, 1), write(2, 4, 1)]),
    "written before any seal": (False, [write(0, 1, 1), seal(2, 3, 1)]),
    "written while the seal is under way": (True, [seal(0, 5, 1), write(1, 2, 1)]),
    "a stale write": (False, [seal(0, 1, 1), seal(2, 3, 2), write(4, 5, 1)]),
    "a late write that began before the seal": (True, [seal(0, 1, 1), write(2, 5, 1), seal(3, 4, 2)]),
    "a late write, and one that shows that it was too late": (
        False,
        [seal(0, 1, 1), seal(2, 3, 2), write(2.5, 9, 2), write(4, 8, 1)],
    ),
    "of the next before the last one's": (
        False,
        [seal(0, 1, 1), seal(2, 6, 2), write(3, 4, 2), write(5, 7, 1)],
    ),
    "sealed in the wrong order": (False, [seal(0, 1, 2), seal(2, 3, 1)]),
    "sealed twice": (False, [seal(0, 1, 1), seal(2, 3, 1)]),
    "written after its close": (False, [seal(0, 1, 1), op(2, 3, "close", 1), write(4, 5, 1)]),
    "written while it closes": (True, [seal(0, 1, 1), op(2, 5, "close", 1), write(3, 4, 1)]),
    "a close that may have failed": (True, [seal(0, 1, 1), maybe(2, "close", 1), write(4, 5, 1)]),
    "closed late, when another is in force": (
        True,
        [seal(0, 1, 1), seal(2, 3, 2), op(4, 5, "close", 1), write(6, 7, 2)],
    ),
    "written after a break": (False, [seal(0, 1, 1), op(2, 3, "break"), write(4, 5, 1)]),
    "sealed and written after a break": (
        True,
        [seal(0, 1, 1), op(2, 3, "break"), seal(4, 5, 2), write(6, 7, 2)],
    ),
    "a write without an answer that nobody found": (
        True,
        [seal(0, 1, 1), maybe(2, "write", 1), seal(3, 4, 2), write(5, 6, 2)],
    ),
    "a write that was found in the table, whenever it committed": (
        True,
        [seal(0, 1, 1), write(2, 99, 1), seal(3, 4, 2), write(5, 6, 2)],
    ),
    "a write that was found, and began after the seal of the next": (
        False,
        [seal(0, 1, 1), seal(3, 4, 2), write(5, 99, 1)],
    ),
    "a seal that travels with the first write, of which there is none": (
        True,
        [seal(0, 1, 1), maybe(2, "seal", 2), write(3, 4, 1), seal(5, 6, 3)],
    ),
    "a seal that travels with the first write": (
        True,
        [seal(0, 1, 1), write(2.5, 3, 1), seal(2, 6, 2), write(4, 6, 2)],
    ),
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_s_history_is_accepted_if_and_only_if_calls_one_after_the_other_explain_it(name: str) -> None:
    accepted, operations = LOCKS[name]
    verdict = check(operations, FencedMutex())
    assert verdict.accepted is accepted, str(verdict)
    assert explained(operations, FencedMutex()) is accepted


@pytest.mark.parametrize("name", FENCES)
def test_a_fence_s_history_is_accepted_if_and_only_if_calls_one_after_the_other_explain_it(name: str) -> None:
    accepted, operations = FENCES[name]
    verdict = check(operations, Fence())
    assert verdict.accepted is accepted, str(verdict)
    assert explained(operations, Fence()) is accepted


def test_a_refusal_names_the_call_that_nothing_explains_and_what_was_before_it() -> None:
    stale = Operation(4, 5, ("write", 1), name="the late write")
    verdict = check([seal(0, 1, 1), seal(2, 3, 2), stale], Fence())
    assert verdict.at is stale
    assert verdict.states == ((2, True),)
    assert str(verdict) == "the late write cannot have happened; before it: (2, True)"
    assert str(check([], Fence())) == "linearizable"


@pytest.mark.parametrize(("begin", "end"), [(2, 1), (math.nan, 1), (0, math.nan), (-math.inf, 0)])
def test_an_operation_ends_after_it_begins(begin: float, end: float) -> None:
    with pytest.raises(ValueError, match="begins at"):
        Operation(begin, end, ("free",))


@pytest.mark.parametrize("model", [FencedMutex(), Fence()])
def test_an_action_that_a_model_does_not_know_is_an_error(model: Model) -> None:
    with pytest.raises(ValueError, match="is no action of"):
        check([op(0, 1, "dance")], model)


def explained(operations: list[Operation], model: Model) -> bool:
    """Whether some order explains the operations: all of them are tried."""

    def follows(state: State, left: frozenset[int]) -> bool:
        pending = [operations[n] for n in left]
        if not any(one.certain for one in pending):
            return True
        earliest = min(one.end for one in pending if one.certain)
        for n in left:
            one = operations[n]
            # Before it there may be nothing left that certainly ended before it began.
            if one.begin > earliest:
                continue
            after = model.step(state, one.action)
            # An uncertain one that has ended by now cannot happen any more.
            if after is not None and follows(after, frozenset(m for m in left if m != n and possible(m, n))):
                return True
        return False

    def possible(other: int, chosen: int) -> bool:
        return operations[other].certain or operations[other].end >= operations[chosen].begin

    return follows(model.initial, frozenset(range(len(operations))))


@st.composite
def lock_runs(draw: st.DrawFn) -> list[Operation]:
    """What a lock did one call after the other, each call then widened to the time that it may have taken."""
    holder: str | None = None
    token, operations = 0, list[Operation]()
    for number in range(draw(st.integers(1, 9))):
        at = float(number)
        if holder is None:
            token += draw(st.integers(1, 3))
            holder = f"g{number}"
            action: Action = ("acquire", holder, token)
        else:
            action = draw(
                st.sampled_from(
                    [("confirm", holder), ("release", holder), ("lapse", holder, token), ("free",)]
                )
            )
            holder = holder if action[0] == "confirm" else None
        certain = action[0] != "lapse" and draw(st.booleans() if action[0] == "free" else st.just(True))
        late = NEVER if not certain and draw(st.booleans()) else at + draw(st.floats(0, 4))
        operations.append(Operation(at - draw(st.floats(0, 4)), late, action, certain=certain))
    return operations


@st.composite
def fence_runs(draw: st.DrawFn) -> list[Operation]:
    token, is_open, operations = 0, False, list[Operation]()
    for number in range(draw(st.integers(1, 9))):
        at = float(number)
        choices: list[Action] = [("seal", token + draw(st.integers(1, 3))), ("break",)]
        choices += [("write", token), ("close", token)] if is_open else [("close", max(0, token - 1))]
        action = draw(st.sampled_from(choices))
        match action:
            case ("seal", int(raised)):
                token, is_open = raised, True
            case ("break",) | ("close", _) if action != ("close", max(0, token - 1)):
                is_open = False
        certain = draw(st.booleans() if action[0] in ("close", "break") else st.just(True))
        late = NEVER if not certain and draw(st.booleans()) else at + draw(st.floats(0, 4))
        operations.append(Operation(at - draw(st.floats(0, 4)), late, action, certain=certain))
    return operations


@settings(max_examples=150, deadline=None)
@given(lock_runs(), st.randoms(use_true_random=False))
def test_what_a_lock_did_is_accepted_however_long_each_call_took(
    operations: list[Operation], rng: random.Random
) -> None:
    rng.shuffle(operations)
    assert check(operations, FencedMutex()).accepted


@settings(max_examples=150, deadline=None)
@given(fence_runs(), st.randoms(use_true_random=False))
def test_what_a_fence_did_is_accepted_however_long_each_call_took(
    operations: list[Operation], rng: random.Random
) -> None:
    rng.shuffle(operations)
    assert check(operations, Fence()).accepted


def changed(operations: list[Operation], rng: random.Random) -> list[Operation]:
    """The history with one call in another place, of another grant or token, missing, or made twice."""
    operations = list(operations)
    at = rng.randrange(len(operations))
    one = operations[at]
    match rng.randrange(5):
        case 0:
            operations[at] = replace(one, begin=one.begin + (by := rng.choice((-3, 3))), end=one.end + by)
        case 1:
            operations[at] = replace(one, action=rng.choice(operations).action)
        case 2:
            del operations[at]
        case 3:
            operations.append(replace(one, begin=one.begin + 1, end=one.end + 1))
        case _:
            middle = one.begin + (min(one.end, one.begin + 1) - one.begin) / 2
            operations[at] = replace(one, begin=middle, end=max(middle, min(one.end, middle + 0.01)))
    return operations


@settings(max_examples=200, deadline=None)
@given(lock_runs(), st.randoms(use_true_random=False))
def test_a_changed_history_of_a_lock_gets_the_verdict_that_trying_all_orders_gives(
    operations: list[Operation], rng: random.Random
) -> None:
    history = changed(operations, rng)
    assert check(history, FencedMutex()).accepted is explained(history, FencedMutex())


@settings(max_examples=200, deadline=None)
@given(fence_runs(), st.randoms(use_true_random=False))
def test_a_changed_history_of_a_fence_gets_the_verdict_that_trying_all_orders_gives(
    operations: list[Operation], rng: random.Random
) -> None:
    history = changed(operations, rng)
    assert check(history, Fence()).accepted is explained(history, Fence())


def long_run(count: int) -> list[Operation]:
    """Holders one after the other, eight waiters at any time; some expire, some confirm, some are broken."""
    rng = random.Random(1)
    operations: list[Operation] = []
    for token in itertools.count(1):
        at, grant = float(token), f"g{token}"
        asked = at - rng.uniform(0, 8)
        operations.append(acquire(asked, at + 0.1, grant, token))
        operations += [op(at + 0.2, at + 0.2 + rng.uniform(0, 0.4), "confirm", grant) for _ in range(2)]
        match rng.randrange(10):
            case 0:
                operations.append(lapse(at + 0.7, grant, token))
            case 1:
                operations.append(op(at + 0.65, at + 0.9, "free"))
                operations.append(lapse(at + 0.7, grant, token))
            case _:
                operations.append(release(at + 0.65, at + 0.9, grant))
        if len(operations) >= count:
            return operations
    raise AssertionError


def test_the_cost_grows_with_the_length_of_a_history_and_not_faster() -> None:
    took: dict[int, float] = {}
    for count in (2_000, 16_000):
        operations = long_run(count)
        began = time.process_time()
        assert check(operations, FencedMutex()).accepted
        took[count] = time.process_time() - began
    assert took[16_000] < 8 * 2.5 * took[2_000], took
