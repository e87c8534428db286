"""Text as a terminal can show it: on one line, without markup, in its own characters, cut to a width.

Names, holders, operations and reasons come from any source. An escape sequence among them would reach the
terminal of an operator who is about to break a lock, and a mark that turns the direction of writing would
show him another name.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from lockguard.text import printable

__all__ = ["Writing", "span"]


@dataclass(frozen=True, slots=True)
class Writing:
    """What the terminal can show.

    Attributes:
        encoding: of the terminal, such as ``utf-8`` or ``iso8859-1``.
    """

    encoding: str = "utf-8"

    @property
    def unicode(self) -> bool:
        """Whether lines and arrows can be drawn."""
        return self._has("…↑↓─│╭╮╰╯")

    @property
    def cut(self) -> str:
        """What stands where text was cut."""
        return "…" if self.unicode else "~"

    def up_or_down(self, *, down: bool) -> str:
        """The mark of the column by which is sorted."""
        if self.unicode:
            return "↓" if down else "↑"
        return "v" if down else "^"

    def text(self, value: object) -> str:
        r"""The text of ``value`` with all escaped that is not shown as itself, such as ``\x1b``."""
        text = printable(str(value))
        if self._has(text):
            return text
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def fit(self, value: object, width: int, *, right: bool = False, middle: bool = False) -> str:
        """Text that takes exactly ``width`` cells.

        Args:
            value: what to show.
            width: how wide.
            right: whether it is filled up on the left.
            middle: whether it is cut in the middle, and not at its end.
        """
        text = self.text(value)
        missing = width - cell_len(text)
        if missing >= 0:
            return " " * missing + text if right else text + " " * missing
        tail = (width - 1) // 2 if middle else 0
        end = set_cell_size(text[::-1], tail)[::-1]
        return set_cell_size(text, width - 1 - tail) + self.cut + end

    def _has(self, text: str) -> bool:
        try:
            text.encode(self.encoding)
        except (UnicodeEncodeError, LookupError):
            return False
        return True


def span(ms: float) -> str:
    """A length of time in at most five cells, such as ``4.2s``, ``42s``, ``3m07s``, ``12m``, ``3d04h``."""
    seconds = max(ms, 0) / 1000
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}m{rest:02}s" if minutes < 10 else f"{minutes}m"
    days, hours = divmod(hours, 24)
    if not days:
        return f"{hours}h{minutes:02}m" if hours < 10 else f"{hours}h"
    return f"{days}d{hours:02}h" if days < 10 else f"{days:,}d"
