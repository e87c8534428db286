"""The first screen of ``top``: the table of locks, with counts above it and keys below."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.widgets import Input, Static

from lockguard_ops._top._detail import Detail
from lockguard_ops._top._lines import keys
from lockguard_ops._top._seen import matching
from lockguard_ops._top._table import LockTable
from lockguard_ops._top._watching import Page

if TYPE_CHECKING:
    from datetime import datetime

    from textual.app import ComposeResult
    from textual.binding import BindingType


__all__ = ["Main"]

_KEYS = (
    ("Enter", "open"),
    ("/", "filter"),
    ("A W T L R", "sort"),
    ("a", "ask"),
    ("b", "break"),
    ("?", "help"),
    ("q", "quit"),
    ("p", "pause"),
    ("+ -", "interval"),
)
_FILTER_KEYS = (("Enter", "keep the filter"), ("Esc", "all locks"))


class Main(Page):
    """The table of locks."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("down,j", "move(1)", "down"),
        ("up,k", "move(-1)", "up"),
        ("pagedown,space", "page(1)", "page down"),
        ("pageup", "page(-1)", "page up"),
        ("home", "move(-1000000)", "first"),
        ("end", "move(1000000)", "last"),
        ("enter,right", "open", "open"),
        ("slash", "filter", "filter"),
        ("escape", "no_filter", "all"),
        ("A", "sort('age')", "by age"),
        ("W", "sort('waiters')", "by waiters"),
        ("T", "sort('left')", "by time left"),
        ("L", "sort('late')", "by lateness"),
        ("R", "sort('resource')", "by resource"),
        ("s", "sort('')", "by the next column"),
    ]

    def compose(self) -> ComposeResult:
        """The parts of the screen."""
        yield Static(id="counts", classes="line")
        yield Static(id="faults")
        yield LockTable(self.watching.writing)
        yield Static(id="status", classes="line")
        yield Static(id="message")
        yield Input(id="filter", placeholder="a part of resource, holder or operation", select_on_focus=False)
        yield Static(id="keys", classes="line")

    @property
    def table(self) -> LockTable:
        """The table."""
        return self.query_one(LockTable)

    def on_mount(self) -> None:
        """Show what is known already."""
        self.table.focus()
        self.show()

    def on_resize(self) -> None:
        """Show as much as fits."""
        self._show_keys()
        self.watching.show_lines()

    def show(self) -> None:
        """Draw the locks."""
        seen, order = self.watching.seen, self.watching.order
        found = matching(seen.locks, self.watching.pattern)
        empty = "reading ..." if seen.at is None else "no lock is held, and none is waited for"
        if seen.locks:
            empty = "no lock matches the filter; Esc shows all"
        if seen.locks_at is None and seen.redis_fault:
            empty = "not known yet"
        stale = bool(seen.redis_fault)
        self.table.show(
            order.sort(seen, found), order, stale=stale, fence_known=seen.fence_known, empty=empty
        )

    def show_lines(self, now: datetime) -> None:
        """Draw also which locks are shown, in which order, and how often they are read."""
        super().show_lines(now)
        if not self.query("#status"):
            return
        top = self.watching
        first, last, found = self.table.lines
        parts = [f"{first}-{last} of {found:,}", f"by {top.order.by}", top.pace(now)]
        if top.pattern:
            parts.insert(1, f"filter {top.pattern!r} of {len(top.seen.locks):,}")
        text = top.writing.text(", ".join(parts))
        self.query_one("#status", Static).update(Text(text, "dim", no_wrap=True, overflow="ellipsis"))

    def on_lock_table_moved(self) -> None:
        """Tell which lines are shown now."""
        self.watching.show_lines()

    def action_move(self, lines: int) -> None:
        """Select another lock."""
        self.table.move(lines)

    def action_page(self, pages: int) -> None:
        """Select a lock of the next page, or of the last one."""
        self.table.move_pages(pages)

    def action_sort(self, by: str) -> None:
        """Sort by a column; empty: by the next one."""
        self.watching.sort(by)

    def action_open(self) -> None:
        """Open the selected resource."""
        if self.table.selected is not None:
            self.app.push_screen(Detail(self.table.selected))

    def action_filter(self) -> None:
        """Let the operator type a filter."""
        field = self.query_one("#filter", Input)
        field.display = True
        field.value = self.watching.pattern
        field.cursor_position = len(field.value)
        field.focus()
        self._show_keys()

    def action_no_filter(self) -> None:
        """Show all locks."""
        self._filter("")

    def _show_keys(self) -> None:
        told = _FILTER_KEYS if self.query_one("#filter", Input).display else _KEYS
        self.query_one("#keys", Static).update(keys(told, self.size.width))

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter as it is typed."""
        if event.input.display:
            self.watching.pattern = event.value
            self.watching.show()

    def on_input_submitted(self) -> None:
        """Keep the filter."""
        self._filter(self.query_one("#filter", Input).value)

    def _filter(self, pattern: str) -> None:
        self.query_one("#filter", Input).display = False
        self.table.focus()
        self._show_keys()
        self.watching.pattern = pattern.strip()
        self.watching.show()
