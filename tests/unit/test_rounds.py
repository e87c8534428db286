"""When a question to several nodes is decided, and for how long each node is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from lockguard._rounds import Round, Rounds

SOON, NEVER_S = 0.03, 30.0
YES, NO, NEITHER = True, False, None
Votes = Sequence[tuple[int, Any]]


class Node:
    """Answers a look when a test says so."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.looks: list[asyncio.Future[Any]] = []

    def inspect(self, _: object) -> asyncio.Future[Any]:
        self.looks.append(asyncio.get_running_loop().create_future())
        return self.looks[-1]


def rounds_of(count: int, *, patience_s: float = NEVER_S) -> tuple[Rounds, list[Any]]:
    nodes: list[Any] = [Node(name) for name in "abcde"[:count]]
    return Rounds(nodes, patience_s=patience_s), nodes


def voted(rounds: Rounds, votes: Votes) -> Round[Any]:
    asked: Round[Any] = rounds.begin(lambda vote: vote)
    for index, vote in votes:
        asked.slot(index).set_result(vote)
    return asked


@pytest.mark.parametrize(
    ("votes", "closed", "won"),
    [
        ([(0, YES), (1, YES)], False, False),
        ([(0, YES), (1, YES), (2, YES)], True, True),
        ([(0, NO), (1, NO)], False, False),
        ([(0, NO), (1, NO), (2, NO)], True, False),
        ([(0, NO), (1, NEITHER), (2, NEITHER)], False, False),
        ([(0, NO), (1, NO), (2, NEITHER), (3, YES)], False, False),
        ([(0, NO), (1, NO), (2, YES), (3, YES), (4, YES)], True, True),
        ([(0, NO), (1, NO), (2, NEITHER), (3, YES), (4, YES)], True, False),
    ],
)
def test_five_nodes_decide_once_a_majority_is_for_it_or_none_can_be(
    votes: Votes, *, closed: bool, won: bool
) -> None:
    rounds, _ = rounds_of(5)
    asked = voted(rounds, votes)
    assert (asked.closed, asked.won) == (closed, won)


@pytest.mark.parametrize(("noes", "closed"), [(1, False), (2, True)])
def test_of_four_nodes_two_prevent_a_majority(noes: int, *, closed: bool) -> None:
    rounds, _ = rounds_of(4)
    assert voted(rounds, [(index, NO) for index in range(noes)]).closed is closed


def test_a_vote_that_comes_after_the_decision_changes_nothing() -> None:
    rounds, _ = rounds_of(3)
    asked = voted(rounds, [(0, NO), (1, NO)])
    late = asked.slot(2)
    assert late.done()
    late.set_result(YES)
    assert (asked.votes, asked.yeses) == ([NO, NO, None], 0)


async def test_the_question_of_a_caller_that_was_cancelled_gives_no_vote() -> None:
    rounds, _ = rounds_of(3)
    loop, told = asyncio.get_running_loop(), list[Any]()
    loop.set_exception_handler(lambda _, context: told.append(context))
    asked: list[asyncio.Future[bool]] = [loop.create_future() for _ in range(3)]
    collected = asyncio.create_task(rounds.collect(asked, lambda vote: vote))
    await asyncio.sleep(0)
    asked[0].cancel()
    asked[1].set_result(True)
    asked[2].set_result(True)
    async with asyncio.timeout(5):
        assert await collected == [None, True, True]
    assert told == [], "nothing was raised where nobody awaits it"


async def test_each_round_is_given_up_when_its_own_patience_is_over() -> None:
    rounds, _ = rounds_of(3, patience_s=SOON)
    first, second = rounds.begin(None), rounds.begin(None)
    waits = [asyncio.create_task(first.wait())]
    await asyncio.sleep(SOON / 2)  # so that the second has some of its patience left when the first has none
    waits.append(asyncio.create_task(second.wait()))
    async with asyncio.timeout(5):
        await asyncio.gather(*waits)
    assert (first.timed_out, second.timed_out) == (True, True)


async def test_a_node_that_was_silent_is_not_waited_for_until_it_has_answered_all_that_it_owes() -> None:
    rounds, nodes = rounds_of(3, patience_s=SOON)
    asked = rounds.begin(None)
    for index in (0, 1):
        asked.slot(index).set_result(YES)
    await asked.wait()
    assert (asked.timed_out, rounds.silent) == (True, {2})
    # All the others have answered, so nothing is waited for, whatever they said.
    assert voted(rounds, [(0, YES), (1, NO)]).closed
    nodes[2].looks[0].set_result(None)
    await asyncio.sleep(0)
    assert rounds.silent == set()
    assert not voted(rounds, [(0, YES), (1, NO)]).closed


async def test_where_too_few_others_are_left_a_silent_node_is_waited_for() -> None:
    rounds, _ = rounds_of(3, patience_s=SOON)
    asked = rounds.begin(None)
    asked.slot(0).set_result(YES)
    await asked.wait()
    assert rounds.silent == {1, 2}
    assert not voted(rounds, [(0, YES)]).closed
    assert voted(rounds, [(0, YES), (2, YES)]).won
