"""The few SVG elements that the picture needs. They have classes, whose colours the page's style sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

__all__ = ["Drawing", "Scale"]

_TICKS_MAX = 12
_STEPS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


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


@dataclass(slots=True)
class Drawing:
    """Collects the elements of one SVG picture."""

    width: float
    height: float
    title: str
    _parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "start") -> None:
        """Add a line of text."""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, style: str, told: str = "", radius: float = 3
    ) -> None:
        """Add a rectangle with ``told`` as its tooltip."""
        tip = f"<title>{escape(told)}</title>" if told else ""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}"'
            f' rx="{radius:g}" class="{style}">{tip}</rect>'
        )

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        """Add a straight line."""
        (x1, y1), (x2, y2) = start, end
        self._parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>')

    def cross(self, x: float, y: float, size: float, style: str, told: str = "") -> None:
        """Add a cross, the mark of a refused write or a lost lease, with ``told`` as its tooltip."""
        tip = f"<title>{escape(told)}</title>" if told else ""
        self._parts.append(
            f'<path d="M{x - size:.1f} {y - size:.1f}L{x + size:.1f} {y + size:.1f}'
            f'M{x - size:.1f} {y + size:.1f}L{x + size:.1f} {y - size:.1f}" class="{style}">{tip}</path>'
        )

    def axis(self, scale: Scale, top: float, bottom: float) -> None:
        """Add seconds along the top, with a faint vertical line at each tick."""
        for x, label in scale.ticks():
            self.line((x, top), (x, bottom), "grid")
            self.text(x, top - 6, label, "tick", "middle")

    def svg(self) -> str:
        """The picture as an ``<svg>`` element."""
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.title)}">'
            + "".join(self._parts)
            + "</svg>"
        )
