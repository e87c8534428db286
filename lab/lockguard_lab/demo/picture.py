"""The timeline as one self-contained page: the holders of the lock, their tokens, and what was refused."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from lockguard_lab.demo.history import Tenure, overlaps, tenures
from lockguard_logs._drawing import Drawing, Scale, style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard_lab.demo.paused import CommittedWrite, PausedResult, Round
    from lockguard_lab.demo.report import DemoResult
    from lockguard_lab.demo.serverlog import RefusedWrite

__all__ = ["page"]

_WIDTH = 1000.0
_LEFT = 150.0
_RIGHT = 980.0
_LETTER = 6.6
"""The approximate width of a letter of a label, in pixels, to decide whether the label fits."""

_LANE_HEIGHT = 17.0
_LANES_MAX = 40


def page(result: DemoResult) -> str:
    """The result as the text of an HTML page."""
    template = Template((files("lockguard_lab.demo") / "picture.html").read_text(encoding="utf-8"))
    return template.substitute(
        style=style(),
        servers=_servers(result),
        tiles=_tiles(result),
        rounds="\n".join(_round_panel(one, result.paused) for one in result.paused.rounds),
        race=_race_text(result),
        lanes=_lanes(tenures(result.guarded_history)),
    )


def _servers(result: DemoResult) -> str:
    redis, postgres = result.servers.redis, result.servers.postgres
    return escape(
        f"{redis.product} {redis.version}, {postgres.product} {postgres.version},"
        f" ccxt {result.servers.ccxt} on a local exchange; {result.seconds:.0f} s in all"
    )


def _tiles(result: DemoResult) -> str:
    unguarded, guarded, paused = result.unguarded, result.guarded, result.paused
    refused = len(paused.refusals)
    tiles = [
        ("bad", unguarded.duplicates, unguarded.opens, "opens ended in a duplicate, without the guard"),
        (
            "good" if not guarded.duplicates else "bad",
            guarded.duplicates,
            guarded.opens,
            "ended in one under the same load, with the guard",
        ),
        (
            "good" if refused == paused.attempted and not paused.committed else "bad",
            refused,
            paused.attempted,
            "writes of a paused holder refused by Postgres",
        ),
    ]
    return "".join(
        f'<div class="tile {kind}"><b>{count} of {total}</b>{escape(text)}</div>'
        for kind, count, total, text in tiles
    )


def _race_text(result: DemoResult) -> str:
    guarded = result.guarded
    return escape(
        f"{guarded.opens} positions, opened by one process while another syncs: {guarded.duplicates}"
        f" duplicates, {guarded.without_stop} positions without a stop. Each line is one symbol, each bar one"
        f" lease; {_count(overlaps(tenures(result.guarded_history)), 'bar')} overlap another of their line."
    )


def _count(number: int, noun: str) -> str:
    return f"no {noun}s" if number == 0 else f"{number} {noun}s"


# --- a paused holder ---


@dataclass(frozen=True, slots=True)
class _Round:
    """The facts of one round, selected from the whole result."""

    played: Round
    first: Tenure
    second: Tenure | None
    writes: tuple[CommittedWrite, ...]
    refusal: RefusedWrite | None

    @property
    def scale(self) -> Scale:
        ends = [self.played.resumed_at_ms, *(write.at_ms for write in self.writes)]
        ends += [self.refusal.at_ms] if self.refusal is not None else []
        start_ms = self.first.start_ms
        end_ms = max(ends)
        return Scale(start_ms, end_ms + 0.22 * (end_ms - start_ms), _LEFT, _RIGHT)


def _round_panel(played: Round, paused: PausedResult) -> str:
    mine = [tenure for tenure in tenures(paused.history) if tenure.resource == played.resource]
    first = next((tenure for tenure in mine if tenure.token == played.first_token), None)
    if first is None:
        return ""
    found = _Round(
        played=played,
        first=first,
        second=next((tenure for tenure in mine if tenure.token > played.first_token), None),
        writes=tuple(write for write in paused.writes if write.symbol == played.symbol),
        refusal=next((one for one in paused.refusals if one.presented == played.first_token), None),
    )
    words = "" if found.refusal is None else f"{found.refusal.sqlstate} {found.refusal.text}"
    return (
        f'<div class="panel"><h3>{escape(played.resource)}</h3>{_round_drawing(found)}'
        f'<p class="soft">Postgres: <code>{escape(words or "nothing was refused")}</code></p></div>'
    )


def _round_drawing(found: _Round) -> str:
    drawing = Drawing(_WIDTH, 262, f"timeline of {found.played.resource}")
    scale = found.scale
    drawing.axis(scale, 26, 252)
    for y in (104, 168):
        drawing.line((0, y), (_RIGHT, y), "rule")
    _draw_holder(drawing, scale, found)
    _draw_successor(drawing, scale, found)
    _draw_row(drawing, scale, found)
    return drawing.svg()


def _draw_holder(drawing: Drawing, scale: Scale, found: _Round) -> None:
    played, first = found.played, found.first
    _lane_name(drawing, 54, "holder", f"process {first.pid}")
    end_ms = first.end_ms or scale.end_ms
    left, right = scale.x(first.start_ms), scale.x(end_ms)
    drawing.box(left, 38, right - left, 26, "first", _told(first))
    drawing.text(left + 8, 55.5, f"lease, token {first.token}", "in-first")
    drawing.text(right + 6, 55.5, first.ending or "", "label")
    stopped, resumed = scale.x(played.stopped_at_ms), scale.x(played.resumed_at_ms)
    drawing.box(stopped, 72, resumed - stopped, 16, "pause", "stopped by SIGSTOP", radius=2)
    pause_s = (played.resumed_at_ms - played.stopped_at_ms) / 1000
    drawing.text(resumed + 8, 84.5, f"stopped for {pause_s:.2f} s", "label")
    drawing.text(_RIGHT, 55.5, f"ends: {played.last_line.partition(':')[0]}", "say-bad", "end")


def _draw_successor(drawing: Drawing, scale: Scale, found: _Round) -> None:
    second = found.second
    if second is None:
        _lane_name(drawing, 134, "successor", "never came")
        return
    _lane_name(drawing, 134, "successor", f"process {second.pid}")
    left, right = scale.x(second.start_ms), scale.x(second.end_ms or scale.end_ms)
    waits_from = scale.x(found.played.stopped_at_ms)
    drawing.line((waits_from, 136), (left - 4, 136), "waits")
    drawing.text(waits_from, 126, "waits for the lease", "label")
    drawing.box(left, 123, max(3.0, right - left), 26, "second", _told(second))
    drawing.text(left - 8, 126, f"token {second.token}", "say-second", "end")


def _draw_row(drawing: Drawing, scale: Scale, found: _Round) -> None:
    """Draw the row's states, each in the colour of its token's holder, and the refused write."""
    _lane_name(drawing, 204, "row in Postgres", "state and writer")
    states = _states(found.writes)
    ends = [state.at_ms for state in states[1:]] + [scale.end_ms]
    label_from = 0.0
    for state, end_ms in zip(states, ends, strict=True):
        left, right = scale.x(state.at_ms), scale.x(end_ms)
        owner = "first" if state.token == found.played.first_token else "second"
        told = f"{state.status}, written with token {state.token}"
        drawing.box(left, 188, max(1.5, right - left), 26, f"{owner}-soft", told, radius=1)
        width = len(state.status) * _LETTER
        if width + 10 < right - left:
            drawing.text(left + 6, 205.5, state.status, f"on-{owner}-soft")
        else:
            at = max(label_from, left - 2)
            drawing.line((left + 1, 214), (at + 4, 224), "leader")
            drawing.text(at, 235, state.status, "label")
            label_from = at + width + 8
    if found.refusal is not None:
        x = scale.x(found.refusal.at_ms)
        drawing.line((x, 90), (x, 184), "throw")
        drawing.cross(x, 201, 7, "cross", found.refusal.text)
        drawing.text(x + 8, 126, "wakes up and writes", "label")
        drawing.text(x + 8, 180, "its write is refused", "say-bad")


def _states(writes: Sequence[CommittedWrite]) -> list[CommittedWrite]:
    """The writes that changed the status or its writer."""
    found: list[CommittedWrite] = []
    for write in writes:
        if not found or (write.status, write.token) != (found[-1].status, found[-1].token):
            found.append(write)
    return found


def _lane_name(drawing: Drawing, y: float, name: str, sub: str) -> None:
    drawing.text(0, y, name, "lane")
    drawing.text(0, y + 16, sub, "sub")


def _told(tenure: Tenure) -> str:
    return f"{tenure.operation} by {tenure.holder}, token {tenure.token}, {tenure.ending or 'still held'}"


# --- the guarded race ---


def _lanes(found: Sequence[Tenure]) -> str:
    """Draw one line for each symbol and one bar for each lease."""
    symbols = list(dict.fromkeys(tenure.resource for tenure in found))[:_LANES_MAX]
    if not symbols:
        return "<p>Redis kept no history of this race.</p>"
    last_ms = max(tenure.end_ms or tenure.start_ms for tenure in found)
    first_ms = found[0].start_ms
    scale = Scale(first_ms, last_ms + 0.02 * (last_ms - first_ms) + 1, _LEFT, _RIGHT)
    bottom = 30 + len(symbols) * _LANE_HEIGHT
    drawing = Drawing(_WIDTH, bottom + 8, "leases of the guarded race")
    drawing.axis(scale, 26, bottom)
    for number, symbol in enumerate(symbols):
        drawing.text(0, 30 + number * _LANE_HEIGHT + 11.5, symbol, "sub")
    for tenure in found:
        if tenure.resource not in symbols:
            continue
        y = 30 + symbols.index(tenure.resource) * _LANE_HEIGHT + 2.5
        left, right = scale.x(tenure.start_ms), scale.x(tenure.end_ms or last_ms)
        kind = "first" if tenure.operation.startswith("open") else "second"
        drawing.box(left, y, max(2.0, right - left), _LANE_HEIGHT - 5, kind, _told(tenure), radius=2)
    return drawing.svg()
