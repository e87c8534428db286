"""What the live page shows of a snapshot, and the timeline that it draws."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lockguard._story import Line
from lockguard_ops._web._seen import SHOWN_MAX, Seen, View
from lockguard_ops._web._timeline import draw, waits_seen
from tests.integration.web_pages import GRANT, HOSTILE, busy_story, lock, position, refusal, snapshot, waiter

NOW = datetime(2026, 11, 29, 3, 0, tzinfo=UTC)
TEN_MINUTES = timedelta(minutes=10)


def drawn(story: list[Line], view: Any = None, waits: Any = (), span: timedelta = TEN_MINUTES) -> list[Any]:
    found = draw("binance:APTUSDT", story, view, waits, now=NOW, span=span, width=500)
    ET.fromstring(found.svg())  # well-formed, whatever the texts are
    shapes: list[Any] = found.shapes()["shapes"]
    return shapes


def of(shapes: list[Any], tag: str, *styles: str) -> list[Any]:
    return [shape for shape in shapes if shape[0] == tag and shape[1].get("class") in styles]


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def granted(seconds: float, grant: str, holder: str) -> Line:
    return Line(ago(seconds), "redis", "granted", token=7, grant=grant, holder=holder, operation="open")


def ended(seconds: float, grant: str, holder: str, event: str = "released") -> Line:
    return Line(ago(seconds), "redis", event, grant=grant, holder=holder)


def test_a_write_that_is_refused_again_and_again_is_drawn_where_it_was_last() -> None:
    refused = Line(ago(3000), "fence", "refused", holder="one", times=9, until=ago(300))
    (cross,) = of(drawn([refused]), "path", "cross")
    assert cross[1]["d"].startswith("M241.5 ")
    assert "9 times" in cross[3]


def test_each_holder_has_a_lane_with_its_holds_its_break_and_its_refused_write() -> None:
    shapes = drawn(busy_story(NOW), lock("binance:APTUSDT"))
    lanes = [shape[2] for shape in of(shapes, "text", "sub")]
    assert lanes == ["bot-1:5999/Task-1", "bot-2:8102/sync", "bot-2:8101/Task-4"]  # the latest first
    assert len(of(shapes, "rect", "first", "second")) == 4
    assert len(of(shapes, "line", "broken")) == 1
    (cross,) = of(shapes, "path", "cross")
    assert "was refused" in cross[3]


def test_a_hold_reaches_from_its_grant_to_its_end() -> None:
    story = [granted(300, "a", "one"), ended(150, "a", "one")]
    (box,) = of(drawn(story), "rect", "second")
    left, width = float(box[1]["x"]), float(box[1]["width"])
    assert left == pytest.approx(494 / 2, abs=1)
    assert width == pytest.approx(494 / 4, abs=1)
    assert "released 02:57:30" in box[3]


def test_a_lease_that_ended_without_a_release_ends_where_the_story_says() -> None:
    story = [granted(300, "a", "one"), ended(100, "a", "one", "ended"), granted(100, "b", "two")]
    told = [box[3] for box in of(drawn(story, lock("x", grant="b")), "rect", "first", "second")]
    assert any("ended 02:58:20" in each for each in told)
    assert any("still held" in each for each in told)


def test_a_grant_without_an_end_that_holds_no_more_is_not_drawn_as_held() -> None:
    (box,) = of(drawn([granted(300, "a", "one")], None), "rect", "first", "second")
    assert "still held" not in box[3]


def test_a_hold_that_no_history_tells_is_drawn_by_its_age() -> None:
    (box,) = of(drawn([], lock("x", age_ms=300_000)), "rect", "first")
    assert float(box[1]["x"]) == pytest.approx(494 / 2, abs=1)


def test_what_was_before_the_span_is_left_out_and_what_reaches_into_it_is_cut() -> None:
    story = [granted(3000, "a", "one"), ended(2000, "a", "one")]
    story += [granted(1900, "b", "two"), ended(30, "b", "two")]
    shapes = drawn(story, span=timedelta(minutes=1))
    (box,) = of(shapes, "rect", "first", "second")
    assert float(box[1]["x"]) == 0
    assert of(drawn([]), "rect", "first") == []


def test_a_wait_is_followed_until_it_is_granted() -> None:
    waiting = lock("x", waiters=(waiter(1, waiting_ms=60_000),))
    waits = waits_seen({}, waiting, ago(60))
    waits = waits_seen(waits, waiting, ago(30))
    waits = waits_seen(waits, lock("x", grant=waiter(1).grant, age_ms=10_000), NOW)
    (wait,) = waits.values()
    assert (wait.since, wait.until) == (ago(120), ago(10))
    assert len(of(drawn([], None, waits.values()), "line", "waits")) == 1


def test_waits_are_bounded() -> None:
    waits: dict[str, Any] = {}
    for step in range(50):
        waits = waits_seen(waits, lock("x", waiters=tuple(waiter(step * 1000 + n) for n in range(100))), NOW)
    assert len(waits) <= 200


def test_many_holders_are_counted_and_not_drawn() -> None:
    story = [granted(500 - n, f"g{n}", f"bot-{n}") for n in range(100)]
    shapes = drawn(story)
    assert len(of(shapes, "rect", "first", "second")) == 12
    assert any("88 more holders" in shape[2] for shape in shapes)


def test_a_picture_is_told_in_words_too() -> None:
    found = draw("APT", busy_story(NOW), lock("APT"), (), now=NOW, span=TEN_MINUTES, width=500)
    assert found.title == (
        "timeline of APT: held by bot-1:5999/Task-1 since 02:59:55; 4 leases, 0 waits, 1 refused writes"
    )


def test_hostile_texts_do_not_break_the_picture() -> None:
    texts = {"holder": HOSTILE, "operation": HOSTILE, "reason": HOSTILE}
    story = [
        Line(ago(60), "redis", "granted", grant="a", **texts),
        Line(ago(30), "fence", "refused", **texts),
    ]
    shapes = drawn(story, None)
    assert {shape[0] for shape in shapes} == {"line", "text", "rect", "path"}


# --- snapshots ---


def test_what_a_silent_server_said_last_stays_with_its_time() -> None:
    first = Seen.of(snapshot(lock("x"), refusals=(refusal("x"),), positions=(position(1),)), None)
    later = Seen.of(snapshot(redis_fault="no answer", database_fault="no answer"), first)
    told = later.told(View())
    assert [one["name"] for one in told["locks"]] == ["x"]
    assert (told["locksAt"], told["tablesAt"]) == (first.told(View())["at"],) * 2
    assert told["at"] >= told["locksAt"]
    assert len(told["naked"]) == 1
    assert len(told["refusals"]) == 1
    again = Seen.of(snapshot(), later).told(View())
    assert again["locks"] == []
    assert again["redisFault"] == ""
    assert again["naked"] == []


def test_a_server_that_never_answered_is_not_taken_for_an_idle_one() -> None:
    told = Seen.of(snapshot(redis_fault="no", database_fault="no"), None).told(View())
    assert (told["locksAt"], told["tablesAt"], told["positions"]) == (None, None, None)


def test_of_ten_thousand_locks_a_bounded_number_is_shown_and_all_can_be_found() -> None:
    seen = Seen.of(snapshot(*(lock(f"binance:S{n}USDT") for n in range(10_000))), None)
    told = seen.told(View())
    assert (told["held"], told["matching"], len(told["locks"])) == (10_000, 10_000, SHOWN_MAX)
    assert len(json.dumps(told)) < 150_000
    (found,) = seen.told(View.read({"filter": " s9876USDT "}))["locks"]
    assert found["name"] == "binance:S9876USDT"


@pytest.mark.parametrize(
    ("field", "words"), [("holder", "BOT-7"), ("operation", "Close Short"), ("resource", "apt")]
)
def test_the_filter_looks_at_what_people_remember(field: str, words: str) -> None:
    seen = Seen.of(
        snapshot(lock("binance:APTUSDT", holder="bot-7:1/x", operation="close short"), lock("o")), None
    )
    told = seen.told(View.read({"filter": words}))
    assert [one["name"] for one in told["locks"]] == ["binance:APTUSDT"], field
    assert told["held"] == 2


def test_a_query_that_makes_no_sense_is_no_error() -> None:
    assert View.read({"width": "9" * 400, "span": "-1", "filter": "x" * 9999, "open": ""}).width == 1000
    assert View.read({"width": "٣"}) == View.read({}) == View.read({"width": "1e3", "span": "61"})
    assert View.read({"width": "1"}).width == 320


def test_hostile_texts_are_made_printable_before_they_are_sent() -> None:
    hostile = lock(
        "x", holder=HOSTILE, operation=HOSTILE, wanted=HOSTILE, waiters=(waiter(1, holder=HOSTILE),)
    )
    rows = (refusal("y", holder=HOSTILE, reason=HOSTILE, application=HOSTILE),)
    seen = Seen.of(
        snapshot(hostile, refusals=rows, positions=(position(1, symbol=HOSTILE),), redis_fault=""), None
    )
    sent = json.dumps([seen.told(View()), seen.waiters("x")], ensure_ascii=False)
    assert not {"\u202e", "\u2066", "\x1b"} & set(sent)
    assert GRANT in sent
