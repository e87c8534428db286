"""Draws a log's duplicates and races as one self-contained page: a lane per symbol, a mark per event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from html import escape
from importlib.resources import files as resources
from pathlib import PurePath
from string import Template
from typing import TYPE_CHECKING

from lockguard_logs._analysis import Analysis, Finding, FindingKind, Told
from lockguard_logs._drawing import Drawing, Scale, style
from lockguard_logs._sightings import Sighting, SightingKind

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["draw"]

_WIDTH, _LEFT, _RIGHT = 1000.0, 160.0, 990.0
_LANE, _TOP = 26, 34
_LANES_MAX = 60
_MARKS_MAX = 5_000
_ROWS_MAX = 1_000

_STYLES = {
    SightingKind.CREATED: "made",
    SightingKind.OPENED: "made",
    SightingKind.ENTERED: "moved",
    SightingKind.MOVED: "moved",
    SightingKind.ENDED: "ended",
    SightingKind.BUSY: "busy",
    SightingKind.RENEWAL: "busy",
    SightingKind.RELEASED_LATE: "busy",
    SightingKind.ALERT: "busy",
}


def draw(found: Analysis, *, files: Sequence[str], symbol: str | None) -> str:
    """The analysis as a self-contained HTML page."""
    page = Template(resources("lockguard_logs").joinpath("picture.html").read_text(encoding="utf-8"))
    span = (
        "" if found.first is None or found.last is None else f", {_told(found.first)} to {_told(found.last)}"
    )
    lanes, left = _lanes(found)
    records = f"{found.records} record{'' if found.records == 1 else 's'}"
    about = f"{', '.join(files)}: {records}{span}" + (f", {symbol}" if symbol else "")
    return page.substitute(
        style=style(),
        source=escape(f"{about}. There is more: {found.cut_off}." if found.cut_off else about),
        tiles=_tiles(found),
        lanes=lanes,
        left=escape(left),
        hidden="" if left else " hidden",
        findings=_findings(found.findings),
        timeline=_timeline(found, symbol),
    )


def _tiles(found: Analysis) -> str:
    duplicates = sum(finding.kind.duplicate for finding in found.findings)
    tiles = [
        ("duplicates", duplicates, "bad" if duplicates else "good"),
        *(
            (kind.value, len(found.of(kind)), "bad" if kind.duplicate else "stopped")
            for kind in FindingKind
            if found.of(kind)
        ),
        ("times found busy", sum(found.busy.values()), ""),
    ]
    return "".join(
        f'<div class="tile {style}"><b>{count}</b>{escape(name)}</div>' for name, count, style in tiles
    )


# --- lanes ---


def _lanes(found: Analysis) -> tuple[str, str]:
    marks = [sighting for sighting in found.seen if sighting.named is not None]
    wrong = {finding.symbol for finding in found.findings}
    symbols = list(dict.fromkeys(str(sighting.named.symbol) for sighting in marks if sighting.named))
    symbols.sort(key=lambda name: name not in wrong)  # what went wrong comes first
    shown = symbols[:_LANES_MAX]
    if not shown or found.first is None:
        return "No message tells of a position, a lease or a refused write.", ""
    # Draw the worst last, so that it lies on top.
    among = [sighting for sighting in marks if sighting.named and sighting.named.symbol in shown]
    drawn = sorted(among[:_MARKS_MAX], key=lambda sighting: sighting.kind not in _STYLES)
    undrawn_from = among[_MARKS_MAX].at if len(among) > _MARKS_MAX else None
    first = min(sighting.at for sighting in marks)
    last = max(sighting.at for sighting in marks)
    drawing = Drawing(_WIDTH, _TOP + len(shown) * _LANE + 8, "events by symbol")
    edge_ms = max(1.0, 0.02 * _ms(last - first))
    scale = Scale(-edge_ms, _ms(last - first) + edge_ms, _LEFT, _RIGHT)
    drawing.clock(scale, first, last, _TOP + len(shown) * _LANE)
    for number, name in enumerate(shown):
        drawing.line((0, _TOP + number * _LANE), (_RIGHT, _TOP + number * _LANE), "rule")
        drawing.text(0, _TOP + number * _LANE + 17, name, "sub")
    place = {name: _TOP + number * _LANE for number, name in enumerate(shown)}
    for finding in found.findings:
        if undrawn_from is not None and finding.until >= undrawn_from:
            continue
        if finding.kind in {FindingKind.CREATED_TWICE, FindingKind.ENTERED_TWICE} and finding.symbol in place:
            x1, x2 = (scale.x(_ms(at - first)) for at in (finding.at, finding.until))
            told = f"{finding.kind.value}: {finding.details}"
            drawing.box(x1 - 6, place[finding.symbol] + 3, x2 - x1 + 12, _LANE - 6, "pair", told, radius=9)
    for sighting in drawn:
        assert sighting.named is not None
        _mark(drawing, scale.x(_ms(sighting.at - first)), place[sighting.named.symbol], sighting)
    left = ["Point at a mark to see its words."]
    left += [f"{len(symbols) - len(shown)} more symbols are not drawn."] if len(symbols) > len(shown) else []
    if undrawn_from is not None:
        left += [f"{len(among) - _MARKS_MAX} more marks, from {_told(undrawn_from)}, are not drawn."]
    return drawing.svg(), " ".join(left)


def _mark(drawing: Drawing, x: float, y: float, sighting: Sighting) -> None:
    told = f"{_told(sighting.at)} {sighting.kind.value}: {sighting.details} ({sighting.file}:{sighting.line})"
    if (style := _STYLES.get(sighting.kind)) is not None:
        drawing.box(x - 4, y + _LANE / 2 - 5, 8, 10, style, told, radius=2)
        return
    bad = sighting.kind is SightingKind.UNIQUE_VIOLATION
    drawing.cross(x, y + _LANE / 2, 5, "bad" if bad else "stopped", told)


# --- tables ---


def _findings(found: Sequence[Finding]) -> str:
    if not found:
        return "No duplicates, no races."
    rows = [
        f"<tr><td>{_told(one.at)}</td>"
        f'<td class="{"duplicate" if one.kind.duplicate else "stopped"}">{escape(one.kind.value)}</td>'
        f'<td>{escape(one.resource)}</td><td class="words">{escape(one.details)}</td>'
        f"<td>{'<br>'.join(map(_place, one.sightings[:4]))}</td></tr>"
        for one in found[:_ROWS_MAX]
    ]
    head = "<tr><th>when</th><th>what</th><th>symbol</th><th>details</th><th>where</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _timeline(found: Analysis, symbol: str | None) -> str:
    if symbol is None or not found.timeline:
        return ""
    rows = [
        f"<tr><td>{_told(told.at)}</td><td>{escape(', '.join(kind.value for kind in told.what))}</td>"
        f'<td class="words">{escape(told.text)}</td><td>{_place(told)}</td></tr>'
        for told in found.timeline[:_ROWS_MAX]
    ]
    head = "<tr><th>when</th><th>what</th><th>told</th><th>where</th></tr>"
    title = escape(f"The story of {symbol}")
    return f'<h2>{title}</h2><div class="panel"><table>{head}{"".join(rows)}</table></div>'


def _place(told: Sighting | Told) -> str:
    """The file's name and the line, with the whole path as a tooltip."""
    return f'<span title="{escape(told.file)}">{escape(PurePath(told.file).name)}:{told.line}</span>'


def _told(at: datetime) -> str:
    zone = "" if at.utcoffset() == UTC.utcoffset(None) else at.strftime(" %z")
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + zone


def _ms(span: timedelta) -> float:
    return span / timedelta(milliseconds=1)
