"""One resource: its holder, its position, who waits in which order, what was refused, and its story."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.containers import VerticalScroll
from textual.widgets import Static

from lockguard.errors import LockguardError
from lockguard.text import first_line
from lockguard_ops._top._columns import state_of
from lockguard_ops._top._dialogs import facts
from lockguard_ops._top._lines import keys, refusal_line
from lockguard_ops._top._watching import Page
from lockguard_ops._top._writing import span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lockguard._story import Line
    from lockguard_ops._installation import LockView
    from lockguard_ops._top._seen import Seen
    from lockguard_ops._top._writing import Writing

__all__ = ["Detail", "told"]

_KEYS = (
    ("Esc", "back"),
    ("up down", "scroll"),
    ("a", "ask"),
    ("b", "break"),
    ("p", "pause"),
    ("?", "help"),
    ("q", "quit"),
)
_STORY_LINES = 200
_WAITERS_SHOWN = 50


class Detail(Page):
    """One resource, read again every interval.

    Args:
        view: the resource as the table showed it.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,backspace,left", "dismiss(None)", "back"),
        ("down,j", "scroll(1)", "down"),
        ("up,k", "scroll(-1)", "up"),
        ("pagedown,space", "page(1)", "page down"),
        ("pageup", "page(-1)", "page up"),
        ("home", "end(-1)", "to the top"),
        ("end", "end(1)", "to the end"),
    ]

    def __init__(self, view: LockView) -> None:
        super().__init__()
        self.view = view
        self._story: Sequence[Line] | None = None
        self._fault = self._story_fault = ""
        self._reading = False

    @property
    def resource(self) -> str:
        """Which one."""
        return str(self.view.lock.resource)

    def compose(self) -> ComposeResult:
        """The parts of the page."""
        yield Static(id="counts", classes="line")
        yield Static(id="faults")
        with VerticalScroll(can_focus=False):
            yield Static(id="told")
        yield Static(id="message")
        yield Static(id="keys", classes="line")

    def on_mount(self) -> None:
        """Show what is known already, and read the rest."""
        self.show()
        self.read_soon()

    def on_resize(self) -> None:
        """Show as many keys as fit."""
        self.query_one("#keys", Static).update(keys(_KEYS, self.size.width))
        self.watching.show_lines()

    def read_soon(self) -> None:
        """Begin to read it again, unless it is being read: a server that hangs holds up nothing else."""
        if not self._reading:
            self._reading = True
            self.watching.work(self._read())

    async def _read(self) -> None:
        installation = self.watching.installation
        try:
            self.view, self._fault = await installation.show(self.resource), ""
        except LockguardError as exc:
            self._fault = first_line(exc)
        try:
            self._story = await installation.story(self.resource, limit=_STORY_LINES)
            self._story_fault = ""
        except LockguardError as exc:
            self._story_fault = first_line(exc)
        self._reading = False
        self.show()

    def show(self) -> None:
        """Draw it."""
        top = self.watching
        page = told(
            self.view, top.seen, self._story, top.writing, fault=self._fault, story_fault=self._story_fault
        )
        self.query_one("#told", Static).update(page)

    def action_scroll(self, lines: int) -> None:
        """Show what is further down, or up."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_page(self, pages: int) -> None:
        """Show the next page, or the last one."""
        scroll = self.query_one(VerticalScroll)
        scroll.scroll_relative(y=pages * max(scroll.size.height - 1, 1), animate=False)

    def action_end(self, end: int) -> None:
        """Go to the end, or to the top."""
        scroll = self.query_one(VerticalScroll)
        if end > 0:
            scroll.scroll_end(animate=False)
        else:
            scroll.scroll_home(animate=False)


def told(
    view: LockView,
    seen: Seen,
    story: Sequence[Line] | None,
    writing: Writing,
    *,
    fault: str = "",
    story_fault: str = "",
) -> Text:
    """The page of a resource.

    Args:
        view: the resource.
        seen: what was read of all, for refusals and positions.
        story: its lines, the oldest first; ``None``: not read yet.
        writing: what the terminal can show.
        fault: why it could not be read again; empty if it was.
        story_fault: the same of its story.
    """
    page = Text()
    lock = view.lock
    page.append(writing.text(lock.resource) + "\n", "bold")
    if fault:
        page.append(writing.text(f"! what follows is as it was read last: {fault}") + "\n", "bold red")
    rows = facts(lock) if lock.held else {"state": state_of(view), "last token": str(lock.token or "unknown")}
    if view.fence is not None:
        rows["fence"] = f"{view.fence.value}, token {view.fence_token}"
    for name, value in rows.items():
        page.append(f"{name:<11}{writing.text(value)}\n")
    _positions(page, view, seen, writing)
    _waiters(page, view, writing)
    _refusals(page, view, seen, writing)
    _head(page, "Story, the oldest first" if story else "Story")
    if story_fault:
        page.append(writing.text(f"! {story_fault}") + "\n", "bold red")
    elif story is None:
        page.append("  not read yet\n")
    for line in story or ():
        at = f"{'by ' * line.inferred}{line.at.astimezone(UTC):%m-%d %H:%M:%S}"
        page.append(writing.text(f"  {at} {line.source}: {line.text}") + "\n")
    if story is not None and not story:
        page.append("  nothing is recorded\n")
    return page


def _head(page: Text, what: str) -> None:
    page.append(f"\n{what}\n", "bold")


def _positions(page: Text, view: LockView, seen: Seen, writing: Writing) -> None:
    if seen.positions is None:
        return
    _head(page, "Position")
    here = [position for position in seen.positions if position.resource == view.lock.resource]
    for each in here:
        old = f" for {span((seen.at - each.since).total_seconds() * 1000)}" if seen.at else ""
        line = f"  {each.side} {each.quantity:f}, {each.status}{old}, row {each.id}"
        page.append(writing.text(line))
        page.append(" without a stop!\n" if each.without_stop else "\n", "bold red")
    if not here:
        page.append("  none is open\n")


def _waiters(page: Text, view: LockView, writing: Writing) -> None:
    waiters = view.lock.waiters
    _head(page, f"Waiters: {len(waiters)}, the next first" if waiters else "Waiters: none")
    for place, waiter in enumerate(waiters[:_WAITERS_SHOWN], start=1):
        who = waiter.holder or waiter.inbox
        page.append(
            writing.text(f"  {place:>3}. {span(waiter.waiting_ms):>6}  {who}  {waiter.operation or '-'}")
            + "\n"
        )
    if len(waiters) > _WAITERS_SHOWN:
        page.append(f"  and {len(waiters) - _WAITERS_SHOWN} more\n")


def _refusals(page: Text, view: LockView, seen: Seen, writing: Writing) -> None:
    here = [each for each in seen.refusals if each.resource == view.lock.resource]
    if not here:
        return
    _head(page, "Refused writes, the newest first")
    for refusal in here:
        page.append(writing.text(f"  {refusal.at:%Y-%m-%d %H:%M:%S} {refusal_line(refusal)}") + "\n")
