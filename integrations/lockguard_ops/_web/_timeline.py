"""The timeline of one resource: a lane for each holder, with its holds, its waits and its refused writes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lockguard_logs._drawing import Drawing, Scale

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lockguard._story import Line
    from lockguard_ops._installation import LockView

__all__ = ["Wait", "draw", "waits_seen"]

_LANE, _TOP, _BAR = 44, 34, 15
_LANES_MAX = 12
_WAITS_MAX = 200
_LETTER = 6.6
"""The approximate width of a letter of a label, in pixels, to decide whether the label fits."""

_PIXELS_PER_TICK = 105
_UNKNOWN = "unknown writer"
_ENDS = ("released", "broken", "ended")


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait as far as it was seen.

    Attributes:
        holder: who waits.
        operation: what for.
        since: the beginning.
        until: when it was seen last, or was granted.
    """

    holder: str
    operation: str
    since: datetime
    until: datetime


@dataclass(slots=True)
class _Hold:
    grant: str
    holder: str
    token: str
    operation: str
    start: datetime
    end: datetime | None = None
    ending: str = ""

    @property
    def told(self) -> str:
        what = f"{self.operation or 'held'} by {self.holder}, token {self.token or 'unknown'}"
        until = f"{self.ending} {_clock(self.end)}" if self.end else "still held"
        return f"{what}, {_clock(self.start)}, {until}"


@dataclass(slots=True)
class _Lane:
    holder: str
    holds: list[_Hold] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    refused: list[Line] = field(default_factory=list)

    @property
    def holds_now(self) -> bool:
        return any(hold.end is None for hold in self.holds)

    def last(self, now: datetime) -> datetime:
        """When something happened in it last; what goes on is happening now."""
        ends = [hold.end or now for hold in self.holds]
        return max([*ends, *(wait.until for wait in self.waits), *(_last(each) for each in self.refused)])


def waits_seen(before: dict[str, Wait], view: LockView | None, now: datetime) -> dict[str, Wait]:
    """The waits for a resource as far as they were seen, by grant: Redis keeps no history of them."""
    found = dict(before)
    if view is None:
        return found
    for waiter in view.lock.waiters[:_WAITS_MAX]:
        since = now - timedelta(milliseconds=waiter.waiting_ms)
        known = found.get(waiter.grant)
        found[waiter.grant] = (
            Wait(waiter.holder or waiter.inbox, waiter.operation, since, now)
            if known is None
            else replace(known, until=now)
        )
    held = found.get(view.lock.grant)
    if held is not None and view.lock.held:
        granted = now - timedelta(milliseconds=view.lock.age_ms)
        found[view.lock.grant] = replace(held, until=max(held.since, granted))
    return dict(list(found.items())[-_WAITS_MAX:])


def draw(
    resource: str,
    story: Sequence[Line],
    view: LockView | None,
    waits: Iterable[Wait],
    *,
    now: datetime,
    span: timedelta,
    width: float,
) -> Drawing:
    """The timeline of the last ``span``.

    Args:
        resource: its name.
        story: what happened, oldest first.
        view: the resource now; ``None`` if it is neither held nor waited for.
        waits: those that were seen.
        now: the right edge.
        span: how much of it is drawn.
        width: of the picture, in pixels.
    """
    start = now - span
    lanes = _lanes(_holds(story, view, now), waits, story)
    shown = [lane for lane in lanes.values() if lane.last(now) >= start]
    shown.sort(key=lambda lane: (lane.holds_now, lane.last(now)), reverse=True)
    more, shown = len(shown) - _LANES_MAX, shown[:_LANES_MAX]
    height = _TOP + max(1, len(shown)) * _LANE + (18 if more > 0 else 4)
    drawing = Drawing(width, height, f"timeline of {resource}: {_summary(shown)}")
    scale = Scale(0, span / timedelta(milliseconds=1), 0, width - 6)
    place = _Place(drawing, scale, start, now)
    ticks = max(2, int(width / _PIXELS_PER_TICK))
    drawing.clock(scale, start.astimezone(UTC), now, _TOP + max(1, len(shown)) * _LANE, ticks_max=ticks)
    if not shown:
        drawing.text(0, _TOP + 24, "Nothing happened in this time.", "sub")
    for number, lane in enumerate(shown):
        _draw_lane(place, lane, _TOP + number * _LANE)
    if more > 0:
        drawing.text(0, height - 4, f"{more} more holders are not drawn.", "sub")
    return drawing


@dataclass(frozen=True, slots=True)
class _Place:
    drawing: Drawing
    scale: Scale
    start: datetime
    now: datetime

    def x(self, at: datetime) -> float:
        return self.scale.x((at - self.start) / timedelta(milliseconds=1))


def _holds(story: Sequence[Line], view: LockView | None, now: datetime) -> dict[str, _Hold]:
    """Every grant in the story and its end."""
    holds: dict[str, _Hold] = {}
    current = view.lock.grant if view is not None and view.lock.held else ""
    for each in story:
        if each.source != "redis":
            continue
        if each.event == "granted":
            holds[each.grant] = _Hold(each.grant, each.holder, str(each.token or ""), each.operation, each.at)
        elif each.event in _ENDS and (hold := holds.get(each.grant)) is not None:
            hold.end, hold.ending = each.at, each.event
    if view is not None and current and current not in holds:
        lock = view.lock
        since = now - timedelta(milliseconds=lock.age_ms)
        holds[current] = _Hold(current, lock.holder, str(lock.token or ""), lock.operation, since)
    for hold in holds.values():
        if hold.end is None and hold.grant != current:  # it ended since the story was read
            hold.end, hold.ending = now, "ended"
    return holds


def _lanes(holds: dict[str, _Hold], waits: Iterable[Wait], story: Sequence[Line]) -> dict[str, _Lane]:
    lanes: dict[str, _Lane] = {}
    for hold in holds.values():
        lanes.setdefault(hold.holder, _Lane(hold.holder)).holds.append(hold)
    for wait in waits:
        lanes.setdefault(wait.holder, _Lane(wait.holder)).waits.append(wait)
    for each in story:
        if each.event == "refused":
            holder = each.holder or _UNKNOWN
            lanes.setdefault(holder, _Lane(holder)).refused.append(each)
    return lanes


def _draw_lane(place: _Place, lane: _Lane, top: float) -> None:
    drawing, middle = place.drawing, top + 22 + _BAR / 2
    drawing.line((0, top), (drawing.width, top), "rule")
    room = int(drawing.width / _LETTER)
    drawing.text(0, top + 15, _cut(lane.holder, room), "sub")
    for wait in lane.waits:
        if wait.until >= place.start:
            told = f"{wait.holder} waits since {_clock(wait.since)}: {wait.operation or 'no operation'}"
            drawing.line((place.x(wait.since), middle), (place.x(wait.until), middle), "waits", told)
    for hold in lane.holds:
        end = hold.end or place.now
        if end < place.start:
            continue
        left, right = place.x(hold.start), place.x(end)
        style = "second" if hold.end else "first"
        drawing.box(left, top + 22, max(3.0, right - left), _BAR, style, hold.told, radius=2)
        words = f"{hold.operation} {hold.token}".strip()
        if len(words) * _LETTER + 12 < right - left:
            drawing.text(left + 6, top + 34, words, f"in-{style}")
        if hold.ending == "broken":
            drawing.line((right, top + 18), (right, top + 41), "broken", f"broken {_clock(end)}")
    for each in lane.refused:
        if _last(each) >= place.start:
            drawing.cross(place.x(_last(each)), middle, 5.5, "cross", f"{_clock(each.at)} {each.text}")


def _summary(lanes: Sequence[_Lane]) -> str:
    """The picture in words, for those who do not see it."""
    holds = sum(len(lane.holds) for lane in lanes)
    held = next((hold for lane in lanes for hold in lane.holds if hold.end is None), None)
    waits = sum(len(lane.waits) for lane in lanes)
    refused = sum(len(lane.refused) for lane in lanes)
    now = f"held by {held.holder} since {_clock(held.start)}" if held else "free"
    return f"{now}; {holds} leases, {waits} waits, {refused} refused writes"


def _cut(words: str, room: int) -> str:
    return words if len(words) <= room else f"{words[: max(1, room - 1)]}…"


def _last(refused: Line) -> datetime:
    return refused.until or refused.at


def _clock(at: datetime) -> str:
    return f"{at.astimezone(UTC):%H:%M:%S}"
