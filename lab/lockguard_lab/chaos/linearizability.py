"""A checker for linearizability: whether concurrent calls could have happened one after the other.

A history is a set of :class:`Operation`, each with the time at which it was called and the time at which it
was answered. It is linearizable if every operation can be given one instant between these two, so that a
sequential :class:`Model` accepts the operations in the order of their instants.

An operation that was never answered has no end. One whose outcome is unknown is ``certain=False``: it may
have happened, at any time after its call, or not at all.

The search is that of Wing and Gong (1993) as Lowe made it fast ("Testing for linearizability", 2017): it goes
through the calls and answers in the order of time, and keeps every state that the object may be in, with the
pending operations that this state already contains. Only an answer forces a decision. So its cost grows with
the length of the history, and exponentially only with the number of operations that are pending at once.

Four rules keep that number small. Each leaves the verdict as it is:

* An operation that only reads, and is possible now, happens now.
* Of operations that never end, are uncertain and do the same, the first happens first.
* Of two ways to one state, that which used fewer uncertain operations stands for both.
* An uncertain operation that the model calls spent is forgotten.

::

    from lockguard_lab.chaos.linearizability import Operation, check
    from lockguard_lab.chaos.models import FencedMutex

    verdict = check(
        [
            Operation(0.0, 0.1, ("acquire", "a", 1)),
            Operation(0.2, 0.3, ("acquire", "b", 2)),
        ],
        FencedMutex(),
    )
    assert not verdict.accepted  # a has not released
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

__all__ = ["Action", "Model", "Operation", "State", "Verdict", "check"]

Action: TypeAlias = tuple[Hashable, ...]
"""What an operation does, as its model reads it, such as ``("acquire", grant, token)``."""

State: TypeAlias = Hashable
"""A state of a model."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call.

    Attributes:
        begin: when it was called, in seconds on any clock that all operations share.
        end: when it was answered; infinity if it never was.
        action: what it does, answer included.
        certain: whether it happened; ``False``: it may have, or not.
        name: what a report calls it.

    Raises:
        ValueError: it ends before it begins, or one of both is not a time.
    """

    begin: float
    end: float
    action: Action
    certain: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        if math.isnan(self.begin) or math.isinf(self.begin) or not self.begin <= self.end:
            raise ValueError(f"{self.name or self.action} begins at {self.begin} and ends at {self.end}")


class Model(Protocol):
    """A sequential object."""

    @property
    def initial(self) -> State:
        """The state that it begins in."""
        ...

    def step(self, state: State, action: Action) -> State | None:
        """The state after ``action``; ``None`` if that is not possible in ``state``."""
        ...

    def reads(self, action: Action) -> bool:
        """Whether ``action`` changes no state, whichever it is possible in."""
        ...

    def spent(self, state: State, action: Action) -> bool:
        """Whether ``action`` can change nothing in ``state``, nor in any state that may follow."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a history.

    Attributes:
        accepted: whether it is linearizable.
        at: the first operation whose answer nothing explains; ``None`` if the history is accepted.
        states: the states that the object may have been in right before that answer.
        pending: the operations that were under way then and had not happened in one of these states.
        widest: how many combinations of state and pending operations there were at most.
    """

    accepted: bool
    at: Operation | None = None
    states: tuple[State, ...] = ()
    pending: tuple[Operation, ...] = ()
    widest: int = 1

    def __str__(self) -> str:
        if self.at is None:
            return "linearizable"
        states = " or ".join(sorted(map(str, self.states))[:4])
        return f"{self.at.name or self.at.action} cannot have happened; before it: {states}"


_Done: TypeAlias = frozenset[int]
_Way: TypeAlias = tuple[State, _Done]
_BEGIN, _END = 0, 1


def check(operations: Iterable[Operation], model: Model) -> Verdict:
    """Whether ``model`` explains the operations, whatever their order in the iterable.

    Operations that touch, one ending at the very time at which another begins, count as concurrent.
    """
    listed = sorted(operations, key=lambda operation: (operation.begin, operation.end))
    return _Search(listed, model).run()


class _Search:
    def __init__(self, operations: Sequence[Operation], model: Model) -> None:
        self._operations = operations
        self._model = model
        self._pending: dict[int, Operation] = {}
        self._forgettable: set[int] = set()
        """The pending operations that are uncertain and never end."""
        self._reading: set[int] = set()
        """The pending operations that are certain and only read."""
        self._ways: set[_Way] = {(model.initial, frozenset())}
        self._widest = 1

    def run(self) -> Verdict:
        events = [(one.begin, _BEGIN, number) for number, one in enumerate(self._operations)]
        events += [(one.end, _END, n) for n, one in enumerate(self._operations) if one.end < math.inf]
        for _, kind, number in sorted(events):
            if kind == _BEGIN:
                self._begin(number)
            elif (verdict := self._end(number)) is not None:
                return verdict
        for number in [n for n, one in self._pending.items() if one.certain]:
            if (verdict := self._end(number)) is not None:
                return verdict
        return Verdict(accepted=True, widest=self._widest)

    def _begin(self, number: int) -> None:
        operation = self._operations[number]
        self._pending[number] = operation
        if not operation.certain and operation.end == math.inf:
            self._forgettable.add(number)
        if operation.certain and self._model.reads(operation.action):
            self._reading.add(number)
            self._ways = {self._settled(state, done) for state, done in self._ways}

    def _end(self, number: int) -> Verdict | None:
        operation = self._operations[number]
        found: set[_Way] = set()
        for state, done in self._ways:
            if number in done:
                found.add((state, done - {number}))
                continue
            if not operation.certain:
                found.add((state, done))
            found |= self._through(state, done, number)
        if not found:
            waiting = {n for _, done in self._ways for n in self._pending if n not in done and n != number}
            return Verdict(
                accepted=False,
                at=operation,
                states=tuple(state for state, _ in self._ways),
                pending=tuple(self._operations[n] for n in sorted(waiting)),
                widest=self._widest,
            )
        del self._pending[number]
        self._reading.discard(number)
        self._ways = self._fewest(found)
        self._forget()
        self._widest = max(self._widest, len(self._ways))
        return None

    def _through(self, state: State, done: _Done, last: int) -> set[_Way]:
        """Every way from here that ends with ``last``, without it among what is done."""
        found: set[_Way] = set()
        seen: set[_Way] = {(state, done)}
        stack = [(state, done)]
        while stack:
            state, done = stack.pop()
            for number in self._candidates(done, last):
                after = self._model.step(state, self._pending[number].action)
                if after is None:
                    continue
                way = self._settled(after, done | {number})
                if number == last or last in way[1]:
                    found.add((way[0], way[1] - {last}))
                elif way not in seen:
                    seen.add(way)
                    stack.append(way)
        return found

    def _candidates(self, done: _Done, last: int) -> list[int]:
        """The pending operations that may happen next."""
        found: list[int] = []
        twins: set[Action] = set()
        for number, operation in self._pending.items():
            if number in done:
                continue
            if number in self._forgettable and number != last:
                if operation.action in twins:
                    continue
                twins.add(operation.action)
            found.append(number)
        return found

    def _settled(self, state: State, done: _Done) -> _Way:
        """The same way, with all that may happen at once and only reads."""
        read = [
            number
            for number in self._reading
            if number not in done and self._model.step(state, self._pending[number].action) is not None
        ]
        return (state, done | frozenset(read)) if read else (state, done)

    def _fewest(self, ways: set[_Way]) -> set[_Way]:
        """The ways that no other stands for."""
        if len(ways) == 1 or not self._forgettable:
            return ways
        kept: dict[tuple[State, _Done], list[_Done]] = {}
        for state, done in sorted(ways, key=lambda way: len(way[1])):
            used = done & self._forgettable
            others = kept.setdefault((state, done - used), [])
            if not any(fewer <= used for fewer in others):
                others.append(used)
        return {(state, done | used) for (state, done), all_used in kept.items() for used in all_used}

    def _forget(self) -> None:
        gone = [
            number
            for number in self._forgettable
            if all(
                number in done or self._model.spent(state, self._operations[number].action)
                for state, done in self._ways
            )
        ]
        if gone:
            for number in gone:
                del self._pending[number]
            self._forgettable.difference_update(gone)
            self._ways = {(state, done.difference(gone)) for state, done in self._ways}
