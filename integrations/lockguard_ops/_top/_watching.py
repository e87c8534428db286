"""Reads the servers every interval, keeps what they said last, and tells the pages that show it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from rich.text import Text
from textual.app import App
from textual.screen import Screen
from textual.widgets import Static

from lockguard.errors import LockguardError
from lockguard.text import first_line
from lockguard_ops._installation import Snapshot
from lockguard_ops._top._columns import SORTS, Order
from lockguard_ops._top._lines import counts, faults, refusal_line
from lockguard_ops._top._seen import Seen
from lockguard_ops._top._writing import Writing, span

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from lockguard_ops._installation import Installation

__all__ = ["Page", "Watching"]

_INTERVALS_S = (1, 2, 5, 10, 30, 60)

_READING_SHARE = 4
"""Pause at least so many times as long as the last reading took: 10,000 locks take a second to read."""

_SLOW_S = 2.0


class Page(Screen[None]):
    """What fills the terminal. It has places for counts, faults and the last message."""

    @property
    def watching(self) -> Watching:
        """The program."""
        return cast("Watching", self.app)

    def read_soon(self) -> None:
        """Begin to read what only this page needs."""

    def show(self) -> None:
        """Draw what was read."""

    def show_lines(self, now: datetime) -> None:
        """Draw the lines with counts, faults and the last message."""
        if not self.query("#counts"):  # told between the page's birth and its first drawing
            return
        top = self.watching
        tables = top.installation.has_database
        first = counts(top.seen, servers=top.servers, tables=tables, now=now, width=self.size.width)
        self.query_one("#counts", Static).update(first)
        fault = faults(top.seen, top.writing, now=now)
        line = self.query_one("#faults", Static)
        line.display = bool(fault)
        line.update(fault)
        self.query_one("#message", Static).update(Text(top.message))


class Watching(App[None]):
    """The part of the program that reads.

    Args:
        installation: what is watched, already entered.
        servers: how many servers are named.
        writing: what the terminal can show.
        interval_s: how often it is read, in seconds.
        sort: the column by which is sorted.
        pattern: the filter.
    """

    def __init__(
        self,
        installation: Installation,
        *,
        servers: int,
        writing: Writing,
        interval_s: float = 1,
        sort: str = "age",
        pattern: str = "",
    ) -> None:
        super().__init__(ansi_color=True)  # the terminal's own colours, be it light or dark
        self.installation, self.servers, self.writing = installation, servers, writing
        self.seen, self.order, self.pattern = Seen(), Order(sort), pattern
        self.interval_s, self.paused = interval_s, False
        self.message = ""
        self.bug: Exception | None = None
        self._reading_since: datetime | None = None
        self._due = asyncio.Event()

    def on_mount(self) -> None:
        """Begin to read."""
        # Textual sets a factory of eager tasks, and what reads the servers was not made for them.
        asyncio.get_running_loop().set_task_factory(None)
        self.work(self._read())
        self.set_interval(1, self.show_lines)

    async def _read(self) -> None:
        while True:
            self._due.clear()
            before, self._reading_since = self.seen, datetime.now(UTC)
            read, answering = await asyncio.gather(self._snapshot(), self.installation.answering())
            self._reading_since = None
            if self.paused and before.at is not None:  # what is being looked at would change under the eyes
                await self._pause()
                continue
            silent = tuple(name for name, answers in answering.items() if not answers)
            minority = len(answering) > 1 and not read.redis_fault  # else its fault tells of them
            self.seen = replace(before.after(read), silent=silent if minority else ())
            for page in self._pages:
                page.read_soon()
            for refusal in self.seen.new_refusals(before):
                self.tell(f"{refusal.resource}: {refusal_line(refusal)}")
            self.show()
            await self._pause()

    async def _snapshot(self) -> Snapshot:
        try:
            return await self.installation.snapshot()
        except LockguardError as exc:  # such as a password that was changed meanwhile
            why = first_line(exc)
            tables = why if self.installation.has_database else ""
            return Snapshot(datetime.now(UTC), redis_fault=why, database_fault=tables)

    def work(self, task: Coroutine[Any, Any, None]) -> None:
        """Do something beside what keys do; a bug in it ends the program.

        Textual would print a bug with the variables of each function, a database's password among them.
        """

        async def guarded() -> None:
            try:
                await task
            except Exception as bug:  # noqa: BLE001 - it is raised again where the terminal is as it was
                self.bug = bug
                self.exit()

        self.run_worker(guarded())

    async def _pause(self) -> None:
        while not self._due.is_set():
            try:
                async with asyncio.timeout(None if self.paused else self._pause_s):
                    await self._due.wait()
            except TimeoutError:
                if not self.paused:  # else it was paused since
                    return

    @property
    def _pause_s(self) -> float:
        """How long it waits before it reads again; longer than the interval where reading takes long."""
        return (
            self.interval_s if self.seen.faults else max(self.interval_s, _READING_SHARE * self.seen.took_s)
        )

    @property
    def _pages(self) -> list[Page]:
        return [screen for screen in self.screen_stack if isinstance(screen, Page) and screen.is_mounted]

    def read_now(self) -> None:
        """Read at once, unless it is paused."""
        if not self.paused:
            self._due.set()

    def show(self) -> None:
        """Draw what was read."""
        for page in self._pages:
            page.show()
        self.show_lines()

    def show_lines(self) -> None:
        """Draw what has the time in it."""
        now = datetime.now(UTC)
        for page in self._pages:
            page.show_lines(now)

    def tell(self, what: str) -> None:
        """Show a message, with the time, until the next one."""
        self.message = self.writing.text(f"{datetime.now(UTC):%H:%M:%S} {what}")
        self.show_lines()

    def pace(self, now: datetime) -> str:
        """How often it is read, in words."""
        if self.paused:
            return "PAUSED, p goes on"
        if self._reading_since is not None and (now - self._reading_since).total_seconds() > _SLOW_S:
            return f"reading for {span((now - self._reading_since).total_seconds() * 1000)}"
        if self._pause_s > self.interval_s:
            return f"every {self._pause_s:.0f}s, as reading takes {self.seen.took_s:.1f}s"
        return f"every {self.interval_s:g}s"

    def sort(self, by: str) -> None:
        """Sort by a column; by the same again: the other way round; empty: by the next column."""
        names = list(SORTS)
        following = names[(names.index(self.order.by) + 1) % len(names)]
        self.order = self.order.then(by) if by else Order(following)
        self.show()

    def action_pause(self) -> None:
        """Read no more, or again."""
        self.paused = not self.paused
        self.read_now()
        self.show_lines()

    def action_interval(self, step: int) -> None:
        """Read less often, or more often."""
        if step > 0:
            self.interval_s = next((s for s in _INTERVALS_S if s > self.interval_s), self.interval_s)
        else:
            self.interval_s = next((s for s in _INTERVALS_S[::-1] if s < self.interval_s), self.interval_s)
        self.read_now()
        self.show_lines()
