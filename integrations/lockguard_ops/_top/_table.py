"""The table of locks: only the lines on the screen are ever drawn, however many locks there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from lockguard_ops._top._columns import Column, Order, fitting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard_ops._installation import LockView
    from lockguard_ops._top._writing import Writing

__all__ = ["LockTable"]

_HEAD = Style(bold=True, underline=True)
_WARNS = Style(bold=True, color="red")
_MARK_CELLS = 1


class LockTable(Widget, can_focus=True):
    """Locks, one a line. The selection stays on its resource when they change places.

    Each line begins with ``>`` where it is selected, and what is wrong with a lock has a ``!``: neither
    depends on colour.

    Args:
        writing: what the terminal can show.
    """

    class Moved(Message):
        """Another lock is selected, or other lines are shown."""

    def __init__(self, writing: Writing) -> None:
        super().__init__()
        self._writing = writing
        self._rows: Sequence[LockView] = ()
        self._order = Order()
        self._stale = False
        self._fence_known = True
        self._empty = ""
        self._at = 0
        self._first = 0

    @property
    def selected(self) -> LockView | None:
        """The selected lock; ``None`` if there is none."""
        return self._rows[self._at] if self._rows else None

    @property
    def lines(self) -> tuple[int, int, int]:
        """The first and the last lock on the screen, counted from 1, and how many there are."""
        count = len(self._rows)
        return min(self._first + 1, count), min(self._first + self._height, count), count

    def show(
        self, rows: Sequence[LockView], order: Order, *, stale: bool, fence_known: bool, empty: str
    ) -> None:
        """Show other locks, or the same in another state.

        Args:
            rows: the locks, sorted.
            order: how.
            stale: whether Redis does not answer and they are what it said last.
            fence_known: whether the database was asked about them.
            empty: what is said where there are none.
        """
        selected = self.selected
        self._rows, self._order, self._stale = rows, order, stale
        self._fence_known, self._empty = fence_known, empty
        if selected is not None:
            name = selected.lock.resource
            places = (place for place, view in enumerate(rows) if view.lock.resource == name)
            self._at = next(places, self._at)
        self.move(0)

    def move(self, lines: int) -> None:
        """Select the lock that is so many lines further down; negative: up."""
        self._at = max(0, min(self._at + lines, len(self._rows) - 1))
        self._first = min(self._first, self._at, max(len(self._rows) - self._height, 0))
        self._first = max(self._first, self._at - self._height + 1)
        self.refresh()
        self.post_message(self.Moved())

    def move_pages(self, pages: int) -> None:
        """Select a lock that is so many screens further down; negative: up."""
        self.move(pages * self._height)

    def on_resize(self) -> None:
        """Keep the selected lock on the screen."""
        self.move(0)

    @property
    def _height(self) -> int:
        return max(self.size.height - 1, 1)

    def render_line(self, y: int) -> Strip:
        """Draw one line: the headings, or a lock."""
        width = self.size.width
        columns = fitting(width - _MARK_CELLS, self._order.by)
        if y == 0:
            cells = " ".join(self._heading(column, room) for column, room in columns)
            return Strip([Segment(" " * _MARK_CELLS), Segment(cells, _HEAD)]).adjust_cell_length(width)
        place = self._first + y - 1
        if place >= len(self._rows):
            text = self._empty if y == 2 and not self._rows else ""
            return Strip([Segment(self._writing.fit(f" {text}", width))])
        return Strip(self._line(self._rows[place], columns, selected=place == self._at))

    def _heading(self, column: Column, room: int) -> str:
        mark = ""
        if column.name == self._order.by:
            mark = self._writing.up_or_down(down=self._order.down)
        return self._writing.fit(f"{column.title}{mark}", room, right=column.right)

    def _line(
        self, view: LockView, columns: Sequence[tuple[Column, int]], *, selected: bool
    ) -> list[Segment]:
        base = Style(dim=self._stale or not view.lock.held, reverse=selected)
        line = [Segment(">" if selected else " ", base)]
        for column, room in columns:
            unknown = column.name == "fence" and not self._fence_known
            text = "?" if unknown else column.tell(view)
            cell = self._writing.fit(text, room, right=column.right, middle=column.middle)
            warns = text.endswith("!") and column.name in ("late", "fence") and not self._stale
            line.append(Segment(cell, base + _WARNS if warns else base))
            line.append(Segment(" ", base))
        return line[:-1]
