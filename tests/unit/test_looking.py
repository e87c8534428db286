"""How an operator's questions are read, and how the answers are."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from lockguard import ConfigurationError, HistoryEntry, LockGuard
from lockguard._history import merged, read_line, read_lines
from lockguard._lease import parse_resource
from lockguard._nodes.scanning import match_for
from lockguard._quorum import prevailing
from lockguard.ports import Inspection, Waiter

HELD = Inspection(parse_resource("r"), True, "ab", 5, "h:1/t", "open", 100, 9_000, 10_000, 0, ())


@pytest.mark.parametrize(
    ("remaining_ms", "late_ms"),
    [(10_000, 0), (6_667, 0), (5_700, 0), (5_600, 1_066), (10, 6_656), (12_000, 0)],
)
def test_a_renewal_is_late_when_it_has_been_due_for_longer_than_until_it_is_sent_again(
    remaining_ms: int, late_ms: int
) -> None:
    assert replace(HELD, remaining_ms=remaining_ms).renewal_late_ms == late_ms


def test_a_free_resource_has_no_late_renewal() -> None:
    assert replace(HELD, held=False, remaining_ms=0).renewal_late_ms == 0


@pytest.mark.parametrize("pattern", ["", None, 7, b"binance:*"])
async def test_a_pattern_that_cannot_match_is_refused(pattern: Any) -> None:
    async with LockGuard.in_memory() as guard:
        with pytest.raises(ConfigurationError, match="pattern"):
            async for _ in guard.list(pattern):
                pass


@pytest.mark.parametrize("limit", [0, -1, 22_001, True, 1.5, None, "7"])
async def test_a_limit_that_cannot_work_is_refused(limit: Any) -> None:
    async with LockGuard.in_memory() as guard:
        with pytest.raises(ConfigurationError, match="limit"):
            await guard.history("r", limit=limit)


class Deaf:
    """A node of a user, written before nodes could be read as a whole."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        if name in ("names", "history"):
            raise AttributeError(name)
        return getattr(self._node, name)


async def test_a_node_that_cannot_list_says_so_in_one_line() -> None:
    async with LockGuard.in_memory() as memory:
        guard = LockGuard([Deaf(memory._core.locks.nodes[0])])
        with pytest.raises(
            ConfigurationError, match=r"^the node memory cannot .* Deaf lacks names\(\) or history"
        ):
            await anext(guard.list())
        with pytest.raises(ConfigurationError, match="Deaf lacks"):
            await guard.history("r")


def test_what_a_server_is_asked_to_match_takes_no_character_of_a_name_for_a_wildcard() -> None:
    assert match_for("lockguard", "") == "lockguard:{*[}e]"
    assert match_for("a*b", r"x[y]?\^") == r"a\*b:{x\[y\]\?\\\^*[}e]"


AT = 1_795_237_912_161_801


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            f"{AT} granted token=7 grant=ab holder=h:1/t operation=a grant=b reason=c",
            (7, "ab", "h:1/t", "a grant=b reason=c", ""),
        ),
        (f"{AT} granted token=7 grant=ab holder=h:1/t operation=", (7, "ab", "h:1/t", "", "")),
        (f"{AT} released grant=ab", (None, "ab", "", "", "")),
        (f"{AT} broken grant=ab reason=it hangs operation=x", (None, "ab", "", "", "it hangs operation=x")),
        (f"{AT} of_a_newer_version grant=ab", (None, "ab", "", "", "")),
    ],
)
def test_a_line_is_read_as_it_was_written(line: str, told: tuple[Any, ...]) -> None:
    entry = read_line(line)
    assert (entry.token, entry.grant, entry.holder, entry.operation, entry.reason) == told
    assert entry.event == line.split()[1]
    assert entry.at == datetime.fromtimestamp(AT // 10**6, UTC).replace(microsecond=AT % 10**6)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "7",
        "7 ",
        "7  released",
        "-7 released",
        "7 released extra",
        f"{'9' * 18} released",
        f"{'9' * 40} released",
        "\uff17 released",
    ],
)
def test_a_line_of_something_else_is_kept_as_it_is(line: str) -> None:
    assert read_line(line) == HistoryEntry(datetime(1970, 1, 1, tzinfo=UTC), "unreadable", reason=line)


def test_a_line_that_cannot_be_read_keeps_its_place() -> None:
    read = read_lines(
        ["newest", "9000000 released grant=ab", "between", "5000000 released grant=cd", "oldest"]
    )
    assert [entry.event for entry in read] == ["unreadable", "released"] * 2 + ["unreadable"]
    assert [entry.at.timestamp() for entry in read] == [9, 9, 5, 5, 0]
    assert merged([read]) == read
    assert merged([read, read[2:], []]) == read


def test_what_several_nodes_tell_is_told_once_with_the_token_of_most() -> None:
    a = read_lines(
        ["9 released grant=ab", "5 rejoined grant=ab", "3 rejoined grant=ab", "1 granted token=7 grant=ab"]
    )
    b = read_lines(["8 released grant=ab", "5 rejoined grant=ab", "2 granted token=8 grant=ab"])
    c = read_lines(["1 granted token=7 grant=ab"])
    told = merged([a, b, c])
    assert [entry.event for entry in told] == ["released", "rejoined", "rejoined", "granted"]
    assert told[-1].token == 7
    assert told[0].at.microsecond == 8


def test_waiters_that_have_not_reached_every_node_are_told_in_order_and_those_of_few_are_not() -> None:
    first, second, gone = (
        Waiter(grant, "i", ticket, 0, "h:1/t") for grant, ticket in (("1", 1), ("2", 2), ("3", 3))
    )
    old = replace(first, holder="")
    seen = [replace(HELD, waiters=waiters) for waiters in [(old, second), (second,), (first, gone)]]
    assert prevailing(seen, nodes=3).waiters == (first, second)
    assert prevailing([replace(one, held=False, grant="") for one in seen], nodes=3).waiters == (
        first,
        second,
    )


def test_a_lock_delay_counts_while_no_majority_is_open() -> None:
    free = replace(HELD, held=False, grant="")
    closed = [replace(free, closed_ms=ms) for ms in (900, 0, 500)]
    assert prevailing(closed, nodes=3).closed_ms == 500
    assert prevailing([closed[0], free, free], nodes=3).closed_ms == 0
    assert prevailing(closed[:2], nodes=3).closed_ms == 900


def test_a_hand_over_that_one_node_knows_of_is_told() -> None:
    assert prevailing([HELD, replace(HELD, wanted="deploy"), HELD], nodes=3).wanted == "deploy"
    assert re.match("deploy", prevailing([replace(HELD, wanted="deploy")], nodes=1).wanted)
