"""The one drawing of all timelines: the log analyzer's, the demo's and the live page's.

A drawing is a list of shapes. :meth:`Drawing.svg` writes them as SVG for a page that is a file;
:meth:`Drawing.shapes` gives them to a live page, whose script makes the elements itself, so that no text is
ever parsed as markup. Shapes have classes, whose colours ``drawing.css`` sets, light and dark.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from html import escape
from importlib.resources import files
from typing import Any

from lockguard.text import printable

__all__ = ["Drawing", "Scale", "Shape", "style"]

_TICKS_MAX = 12
_CLOCK_TICKS_MAX = 9
_DATE_WIDTH, _CLOCK_WIDTH = 72.0, 56.0
_STEPS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_CLOCK_STEPS_S = (*_STEPS_S, 600.0, 1800.0, 3600.0, 3 * 3600.0, 12 * 3600.0, 86_400.0)


def style() -> str:
    """The style sheet of every page with a drawing: colours, panels, keys and shapes."""
    return (files("lockguard_logs") / "drawing.css").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps a span of time in milliseconds to a span of pixels."""

    start_ms: float
    end_ms: float
    left: float
    right: float

    def x(self, at_ms: float) -> float:
        """The x coordinate of an instant; an instant outside the span is placed at its edge."""
        share = (at_ms - self.start_ms) / max(1.0, self.end_ms - self.start_ms)
        return self.left + min(1.0, max(0.0, share)) * (self.right - self.left)

    def ticks(self) -> list[tuple[float, str]]:
        """The x coordinates of the ticks and their labels in seconds since the start."""
        length_s = (self.end_ms - self.start_ms) / 1000
        step = next((one for one in _STEPS_S if length_s / one <= _TICKS_MAX), _STEPS_S[-1])
        count = int(length_s / step)
        return [(self.x(self.start_ms + n * step * 1000), f"{n * step:g} s") for n in range(count + 1)]


@dataclass(frozen=True, slots=True)
class Shape:
    """One SVG element.

    Attributes:
        tag: its name.
        attributes: its attributes, all of them numbers, paths or classes.
        text: the words that it shows.
        told: its tooltip.
    """

    tag: str
    attributes: dict[str, str]
    text: str = ""
    told: str = ""

    def svg(self) -> str:
        """The element as text."""
        attributes = "".join(f' {name}="{escape(value)}"' for name, value in self.attributes.items())
        inside = (f"<title>{escape(self.told)}</title>" if self.told else "") + escape(self.text)
        return f"<{self.tag}{attributes}>{inside}</{self.tag}>"


@dataclass(slots=True)
class Drawing:
    """Collects the shapes of one picture."""

    width: float
    height: float
    title: str
    _parts: list[Shape] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "start") -> None:
        """Add a line of text."""
        place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": style, "text-anchor": anchor}
        self._add("text", place, words)

    def box(
        self, x: float, y: float, width: float, height: float, style: str, told: str = "", radius: float = 3
    ) -> None:
        """Add a rectangle with ``told`` as its tooltip."""
        place = {
            "x": f"{x:.1f}",
            "y": f"{y:.1f}",
            "width": f"{max(0.0, width):.1f}",
            "height": f"{height:.1f}",
        }
        self._add("rect", {**place, "rx": f"{radius:g}", "class": style}, told=told)

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str, told: str = "") -> None:
        """Add a straight line with ``told`` as its tooltip."""
        (x1, y1), (x2, y2) = start, end
        place = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
        self._add("line", {**place, "class": style}, told=told)

    def cross(self, x: float, y: float, size: float, style: str, told: str = "") -> None:
        """Add a cross, the mark of a refused write or a lost lease, with ``told`` as its tooltip."""
        path = (
            f"M{x - size:.1f} {y - size:.1f}L{x + size:.1f} {y + size:.1f}"
            f"M{x - size:.1f} {y + size:.1f}L{x + size:.1f} {y - size:.1f}"
        )
        self._add("path", {"d": path, "class": style}, told=told)

    def axis(self, scale: Scale, top: float, bottom: float) -> None:
        """Add seconds along the top, with a faint vertical line at each tick."""
        for x, label in scale.ticks():
            self.line((x, top), (x, bottom), "grid")
            self.text(x, top - 6, label, "tick", "middle")

    def clock(
        self,
        scale: Scale,
        first: datetime,
        last: datetime,
        bottom: float,
        *,
        ticks_max: int = _CLOCK_TICKS_MAX,
    ) -> None:
        """Add the time of day along the top, by which a reader compares the picture with logs.

        Args:
            scale: in milliseconds since ``first``.
            first: the instant of the scale's zero.
            last: the last instant that gets a tick.
            bottom: where the vertical lines end.
            ticks_max: how many labels fit.
        """
        length_s = (last - first).total_seconds()
        step_s = next((step for step in _CLOCK_STEPS_S if length_s / step <= ticks_max), _CLOCK_STEPS_S[-1])
        step_s = max(step_s, length_s / ticks_max)
        form = "%m-%d %H:%M" if length_s > 2 * 86_400 else "%H:%M:%S" if step_s >= 1 else "%H:%M:%S.%f"
        midnight = first.replace(hour=0, minute=0, second=0, microsecond=0)
        number = int((first - midnight).total_seconds() / step_s) + 1
        date_ends = _DATE_WIDTH
        while (at := midnight + timedelta(seconds=number * step_s)) <= last:
            x = scale.x((at - first) / timedelta(milliseconds=1))
            date_ends = min(date_ends, x - _CLOCK_WIDTH / 2)
            label = at.strftime(form)
            self.line((x, 26), (x, bottom), "grid")
            self.text(x, 20, label[:-5] if form.endswith("%f") else label, "tick", "middle")
            number += 1
        if date_ends >= _DATE_WIDTH:
            self.text(0, 20, f"{first:%Y-%m-%d}", "tick")

    def _add(self, tag: str, attributes: dict[str, str], text: str = "", *, told: str = "") -> None:
        """Add a shape. Texts are made printable: XML has no place for a terminal's escape sequence."""
        self._parts.append(Shape(tag, attributes, printable(text), printable(told)))

    def svg(self) -> str:
        """The picture as an ``<svg>`` element."""
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.title)}">'
            + "".join(shape.svg() for shape in self._parts)
            + "</svg>"
        )

    def shapes(self) -> dict[str, Any]:
        """The picture for a script: what JSON can say."""
        return {
            "width": self.width,
            "height": self.height,
            "title": self.title,
            "shapes": [[one.tag, one.attributes, one.text, one.told] for one in self._parts],
        }
