"""The program of ``lockguard top``: what its keys do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding

from lockguard._cli.ending import signed
from lockguard.errors import LockguardError
from lockguard.text import first_line
from lockguard_ops._top._detail import Detail
from lockguard_ops._top._dialogs import Decision, Help
from lockguard_ops._top._main import Main
from lockguard_ops._top._watching import Watching

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from textual.binding import BindingType

    from lockguard_ops._installation import Installation, LockView

__all__ = ["Top"]


class Top(Watching):
    """The live view.

    Args:
        installation: what is watched, already entered.
        no_break: why locks cannot be broken here; empty if they can.
        no_ask: why no hand-over can be requested here; empty if it can.
        **options: as of :class:`Watching`.
    """

    ENABLE_COMMAND_PALETTE = False
    TITLE = "lockguard top"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave", "quit"),
        Binding("ctrl+c", "interrupt", "interrupt", priority=True),
        Binding("ctrl+z", "suspend_process", "suspend", priority=True),
        Binding("question_mark", "help", "help"),
        Binding("a", "ask", "ask"),
        Binding("b", "break", "break"),
        Binding("p", "pause", "pause"),
        Binding("plus,equals_sign", "interval(1)", "slower"),
        Binding("minus", "interval(-1)", "faster"),
    ]
    CSS = """
    Screen { layout: vertical; overflow: hidden; background: ansi_default; color: ansi_default; }
    .line { height: 1; width: 100%; }
    #message { height: auto; min-height: 1; max-height: 5; width: 100%; }
    #faults { height: auto; width: 100%; display: none; }
    LockTable { height: 1fr; width: 100%; background: ansi_default; color: ansi_default; }
    VerticalScroll { height: 1fr; scrollbar-size: 0 0; background: ansi_default; }
    Input, Input:focus { border: none; height: 1; padding: 0; background: ansi_default; color: ansi_default; }
    #filter { display: none; }
    .dialog { align: center middle; background: ansi_default; }
    .dialog Vertical {
        width: 78; max-width: 100%; height: auto; max-height: 100%; padding: 0 1; border: ascii ansi_default;
        overflow-y: auto; scrollbar-size: 0 0; background: ansi_default;
    }
    .dialog.unicode Vertical { border: round ansi_default; }
    """

    def __init__(
        self, installation: Installation, *, no_break: str = "", no_ask: str = "", **options: Any
    ) -> None:
        super().__init__(installation, **options)
        self.interrupted = False
        self._no_break, self._no_ask = no_break, no_ask
        self._doing = 0
        self._leaving = False

    def on_mount(self) -> None:
        """Show the table."""
        self.push_screen(Main())

    @property
    def _chosen(self) -> LockView | None:
        if isinstance(self.screen, Detail):
            return self.screen.view
        return self.screen.table.selected if isinstance(self.screen, Main) else None

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(self._dialog(Help()))

    def action_ask(self) -> None:
        """Ask the holder for a hand-over, after a confirmation."""
        view = self._held(self._no_ask)
        if view is None:
            return
        notes = (
            "Its holder learns of it within a second and ends when it can; nothing is forced. A holder"
            " that does not look at lease.wanted goes on."
        )
        title = f"Ask for a hand-over of {view.lock.resource}"
        self._decide(title, view, notes, self._ask)

    def action_break(self) -> None:
        """Break the lock, after a confirmation."""
        view = self._held(self._no_break)
        if view is None:
            return
        notes = "From then on Postgres refuses what this grant writes; its body ends within a second."
        if not self.installation.has_database:
            notes = "There is no fence: its holder can go on writing for up to a second."
        notes += " Only this grant is broken: if the lock changes hands before you confirm, it is left alone."
        self._decide(f"Break {view.lock.resource}", view, notes, self._break)

    def _held(self, refused: str) -> LockView | None:
        view = self._chosen
        if view is None:
            return None
        if refused or not view.lock.held:
            self.tell(refused or f"{view.lock.resource} is not held")
            return None
        return view

    def _decide(
        self,
        title: str,
        view: LockView,
        notes: str,
        act: Callable[[LockView, str], Coroutine[None, None, str]],
    ) -> None:
        def decided(reason: str | None) -> None:
            if reason is not None:
                self._doing += 1
                self.work(self._do(act(view, reason)))

        self.push_screen(self._dialog(Decision(title, view.lock, notes, self.writing)), decided)

    async def _do(self, act: Coroutine[None, None, str]) -> None:
        try:
            self.tell(await act)
        except LockguardError as exc:
            self.tell(f"! {first_line(exc)}")
        finally:
            self._doing -= 1
            self._leaving = False
        self.read_now()

    async def _ask(self, view: LockView, reason: str) -> str:
        resource = view.lock.resource
        if await self.installation.ask(resource, grant=view.lock.grant, reason=signed(reason)):
            return f"{resource}: a hand-over was requested of its holder"
        return f"{resource} is free by now; there is no holder to ask"

    async def _break(self, view: LockView, reason: str) -> str:
        resource, grant = view.lock.resource, view.lock.grant
        self.tell(f"breaking {resource} ...")
        broken = await self.installation.break_(resource, grant=grant, reason=signed(reason))
        done = f"was broken; {broken.holder} held it" if broken.grant else "was free by then"
        accepts = f"; Postgres accepts nothing below token {broken.token}" * self.installation.has_database
        return f"{resource} {done}{accepts}"

    def _dialog(self, screen: Decision | Help) -> Decision | Help:
        return screen.set_class(self.writing.unicode, "unicode")

    def action_leave(self) -> None:
        """Leave; not while something is being done, unless the key is pressed again."""
        if self._doing and not self._leaving:
            self._leaving = True
            self.tell("! something is being done; wait for its message, or press q again to leave")
        else:
            self.exit()

    async def action_quit(self) -> None:
        """Leave by Textual's own key, Ctrl-Q, as by ``q``."""
        self.action_leave()

    def action_interrupt(self) -> None:
        """Leave at once, as by Ctrl-C."""
        self.interrupted = True
        self.exit()
