"""What asks before something is done, and the page of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from lockguard_ops._top._writing import span

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lockguard.ports import Inspection
    from lockguard_ops._top._writing import Writing

__all__ = ["Decision", "Help", "facts"]

REASON_MAX = 200


def facts(lock: Inspection) -> dict[str, str]:
    """What is known of a held lock, by name."""
    wanted = {"wanted": lock.wanted} if lock.wanted else {}
    late = f", its renewal is {span(lock.renewal_late_ms)} late!" if lock.renewal_late_ms else ""
    return {
        "holder": lock.holder,
        "operation": lock.operation or "-",
        "token": str(lock.token),
        "grant": lock.grant,
        "held for": f"{span(lock.age_ms)}, renewed {lock.renewals} times",
        "ends in": f"{span(lock.remaining_ms)} unless it is renewed (ttl {span(lock.ttl_ms)}){late}",
        **wanted,
    }


class Decision(ModalScreen[str | None]):
    """Shows what would be done to whom, and wants a reason and a confirmation; gives the reason.

    Args:
        title: what would be done.
        lock: the lock as it was seen, which is what the decision is about.
        notes: what the operator has to know.
        writing: what the terminal can show.
    """

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss(None)", "leave")]

    def __init__(self, title: str, lock: Inspection, notes: str, writing: Writing) -> None:
        super().__init__(classes="dialog")
        self._title, self._lock, self._notes, self._writing = title, lock, notes, writing

    def compose(self) -> ComposeResult:
        """The parts of the dialog."""
        told = Text()
        told.append(self._writing.text(self._title) + "\n", "bold")
        for name, value in {**facts(self._lock), "waiters": str(len(self._lock.waiters))}.items():
            told.append(f"{name:<10} {self._writing.text(value)}\n")
        told.append(self._writing.text(self._notes))
        with Vertical():
            yield Static(told)
            yield Static(Text("Reason, for its history and the audit:", "bold"))
            yield Input(id="reason", max_length=REASON_MAX, select_on_focus=False)
            yield Static(Text(self._writing.text(f"Type y or {self._lock.resource} to do it:"), "bold"))
            yield Input(id="sure", select_on_focus=False)
            yield Static(Text("Enter: go on   Esc: leave it"), id="complaint")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go on from the reason to the confirmation, and from there do it."""
        reason, sure = self.query_one("#reason", Input), self.query_one("#sure", Input)
        if not reason.value.strip():
            self._complain("say why, for the operator who reads the history")
            reason.focus()
        elif event.input is reason:
            self._complain("")
            sure.focus()
        elif sure.value.strip() not in ("y", "Y", self._lock.resource):
            self._complain("that is neither y nor its name; Esc leaves it as it is")
        else:
            self.dismiss(reason.value.strip())

    def _complain(self, what: str) -> None:
        told = Text(f"! {what}", "bold red") if what else Text("Enter: do it   Esc: leave it")
        self.query_one("#complaint", Static).update(told)


_HELP = """\
up down    select a lock, as do k j, page up, page down
Enter      open it: waiters, story, refused writes
/          filter: a part, or a pattern with * and ?
Esc        no filter; in a page: back
A W T L R  sort by age, waiters, time left, lateness,
           resource; again: the other way; s: the next
a          ask: its holder ends when it can
b          break: the holder's writes are refused,
           then the lock is free
p  + -     pause; read less often, more often
q          leave

LATE       since when its renewal has been due
WANT       a hand-over was requested
FENCE      open, or closed: whether Postgres accepts
           writes; ahead!: not those of this holder
refused/h  refused writes of the last hour
no stop    positions that may be without a stop
"""


class Help(ModalScreen[None]):
    """The page of keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,question_mark,q,enter", "dismiss(None)", "back"),
        ("down,j", "scroll(1)", "down"),
        ("up,k", "scroll(-1)", "up"),
    ]

    def __init__(self) -> None:
        super().__init__(classes="dialog")

    def compose(self) -> ComposeResult:
        """The page."""
        with Vertical():
            yield Static(Text(_HELP))

    def action_scroll(self, lines: int) -> None:
        """Show what is further down, or up."""
        self.query_one(Vertical).scroll_relative(y=lines, animate=False)
