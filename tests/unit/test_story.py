"""One resource's story: in order, on one clock, with the ends that no line tells."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from lockguard._history import HistoryEntry
from lockguard._lease import Resource
from lockguard._records import AuditLine, FenceState, Refusal
from lockguard._story import story
from lockguard.ports import Inspection

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def granted(second: float, grant: str, holder: str = "") -> HistoryEntry:
    return HistoryEntry(at(second), "granted", 100 + int(second), grant, holder or f"h-{grant}", "open")


FREE = Inspection(
    Resource("r"), False, "", 0, "", "", 0, 0, 0, 0, (), server_ms=int(at(60).timestamp() * 1000)
)
HELD = replace(FREE, held=True, grant="b", token=103, holder="h-b")


def test_a_grant_behind_one_without_an_end_tells_that_it_had_ended_by_then() -> None:
    lines = story([granted(3, "b"), granted(1, "a")], HELD, None, (), ())
    assert [(line.event, line.grant, line.at, line.inferred) for line in lines] == [
        ("granted", "a", at(1), False),
        ("ended", "a", at(3), True),
        ("granted", "b", at(3), False),
    ]
    assert lines[1].text == (
        "the lease of h-a (open) had ended without a release: it expired, or its key was deleted"
    )


def test_what_was_released_or_broken_has_no_inferred_end() -> None:
    entries = [
        HistoryEntry(at(4), "broken", grant="b", reason="stuck"),
        granted(3, "b"),
        HistoryEntry(at(2), "released", grant="a"),
        granted(1, "a"),
    ]
    lines = story(entries, FREE, None, (), ())
    assert [line.event for line in lines] == ["granted", "released", "granted", "broken"]
    assert lines[1].text == "released by h-a (open)"
    assert (lines[3].text, lines[3].token) == ("the lock of h-b (open) was broken: stuck", 103)


def test_a_break_is_told_by_the_fence_first_though_clocks_differ_by_milliseconds() -> None:
    entries = [HistoryEntry(at(4), "broken", grant="b", reason="stuck"), granted(3, "b")]

    def told(second: float, reason: str = "stuck") -> list[str]:
        audit = [AuditLine(at(second), "operator", "break", "r", reason)]
        return [line.event for line in story(entries, FREE, None, audit, ())]

    assert told(3.999) == told(4) == told(4.004) == ["granted", "break", "broken"]
    assert told(9) == told(4.004, "another") == ["granted", "broken", "break"]


def test_the_last_grant_has_ended_if_the_lock_is_free_and_nothing_is_said_where_redis_is_silent() -> None:
    assert [line.event for line in story([granted(1, "a")], FREE, None, (), ())] == ["granted", "ended"]
    assert [line.event for line in story([granted(1, "b")], HELD, None, (), ())] == ["granted"]
    assert [line.event for line in story([granted(1, "a")], None, None, (), ())] == ["granted"]
    assert story([granted(1, "a")], FREE, None, (), ())[1].at == at(60)


def test_what_the_database_tells_stands_in_its_place_on_redis_s_clock() -> None:
    ahead = timedelta(seconds=100)
    refusal = Refusal("r", 101, 150, "LG001", "superseded", "h-a", "open", "bot", "app", 3, at(105), at(107))
    state = FenceState("r", 103, "b", "h-b", "open", False, at(103.5), at(108))
    audit = [AuditLine(at(102), "ops", "break", "r", "ann@host: stuck")]
    lines = story([granted(3, "b"), granted(1, "a")], HELD, state, audit, [refusal], ahead=ahead)
    assert [(line.source, line.event, line.at) for line in lines] == [
        ("redis", "granted", at(1)),
        ("fence", "break", at(2)),
        ("redis", "ended", at(3)),
        ("redis", "granted", at(3)),
        ("fence", "sealed", at(3.5)),
        ("fence", "refused", at(5)),
        ("fence", "closed", at(8)),
    ]
    assert lines[1].text == "broken in the fence by role ops: ann@host: stuck"
    assert lines[5].text == (
        "a write of h-a (open) with token 101 was refused 3 times, the last time at 12:00:07: superseded,"
        " token 150 was in force (LG001)"
    )


def test_a_seal_does_not_come_before_its_grant_though_the_clocks_are_not_exact() -> None:
    state = FenceState("r", 103, "b", "h-b", "open", True, at(2.9), None)
    assert [line.event for line in story([granted(3, "b")], HELD, state, (), ())] == ["granted", "sealed"]


def test_a_broken_or_recovered_fence_is_told_by_its_audit_alone() -> None:
    state = FenceState("r", 103, "b", "ops", "break: stuck", False, at(3), at(3))
    assert story([], FREE, state, (), ()) == []
    audit = [AuditLine(at(1), "owner", "recover", "a to z", "restored")]
    (line,) = story([], FREE, replace(state, operation="recover: restored"), audit, ())
    assert line.text == "recover by role owner, a to z: restored"


def test_braces_and_unknown_words_are_text() -> None:
    entries = [HistoryEntry(at(2), "frobbed", grant="a", reason="{who}"), granted(1, "a", "{0}[/x]")]
    lines = story(entries, None, None, (), ())
    assert [line.text for line in lines] == ["granted to {0}[/x] (open), token 101", "frobbed: {who}"]
