"""The comparison as one self-contained SVG file: three groups of bars, each on its own scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from xml.sax.saxutils import escape

from lockguard_lab.bench.figures import Figures

__all__ = ["svg"]

_WIDTH, _LABEL, _BAR, _LINE, _GAP = 760, 190, 420, 24, 46
_COLOURS = {"lockguard": "#1f6feb", "limit": "#8b949e"}
_PEER_COLOUR = "#d0a15c"


def svg(figures: Figures) -> str:
    """The SVG text of the figures."""
    alone, together = figures.uncontended, figures.throughput
    handed = {"lockguard": figures.hand_off, **figures.hand_off_peers}
    groups = [
        _group(
            "Lock and unlock by one task: microseconds, less is better",
            {"lockguard": alone.lockguard_p50_us, "limit": alone.limit_p50_us, **alone.peers},
            lambda value: f"{value:.0f} us",
        ),
        _group(
            f"{figures.about.sizes.tasks} tasks on as many locks: per second, more is better",
            {"lockguard": together.lockguard, "limit": together.limit, **together.peers},
            lambda value: f"{value:,.0f}/s",
        ),
        _group(
            "Hand-off to a waiting process, median: milliseconds on a logarithmic scale, less is better",
            {name: hand_off.p50 for name, hand_off in handed.items()},
            lambda value: f"{value:.2f} ms",
            logarithmic=True,
        ),
    ]
    parts, top = [], 10
    for height, lines in groups:
        parts.append(f'<g transform="translate(10 {top})">{"".join(lines)}</g>')
        top += height + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}"'
        f' font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _group(
    title: str, values: Mapping[str, float], shown: Callable[[float], str], *, logarithmic: bool = False
) -> tuple[int, list[str]]:
    """The height and the elements of one group of bars."""
    most, least = max(values.values()), min(values.values())
    lines = [f'<text y="14" font-weight="bold">{escape(title)}</text>']
    for row, (name, value) in enumerate(values.items()):
        share = math.log1p(9 * value / least) / math.log1p(9 * most / least) if logarithmic else value / most
        top = 24 + row * _LINE
        length = max(1, round(_BAR * share))
        colour = _COLOURS.get(name, _PEER_COLOUR)
        lines += [
            f'<text x="{_LABEL - 8}" y="{top + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABEL}" y="{top}" width="{length}" height="{_LINE - 6}" fill="{colour}"/>',
            f'<text x="{_LABEL + length + 6}" y="{top + 14}">{escape(shown(value))}</text>',
        ]
    return len(values) * _LINE, lines
