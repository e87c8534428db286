"""One reader for all pages: it asks the servers once an interval, and only while a page is open.

A page has no queue. It is woken and takes the newest state; one that is slow misses states and holds up no
other. However many pages are open, an interval costs the servers one snapshot and one resource's story: the
resources that are opened on different pages take turns.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from lockguard.errors import LockguardError
from lockguard.text import first_line, printable
from lockguard_ops._installation import Snapshot
from lockguard_ops._web._seen import Seen, View, lock_facts
from lockguard_ops._web._timeline import Wait, draw, waits_seen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lockguard._story import Line

__all__ = ["PAGES_MAX", "Feed", "Full", "Page", "Source"]

PAGES_MAX = 100
_LINES_MAX = 60
_STORY_S = 5.0


class Full(Exception):
    """As many pages are open as are served at a time."""


class Source(Protocol):
    """What the pages show."""

    @property
    def has_database(self) -> bool:
        """Whether a database is named."""
        ...

    async def snapshot(self) -> Snapshot:
        """Everything now; a server that does not answer is a line in it."""
        ...

    async def story(self, resource: str) -> Sequence[Line]:
        """What happened to one resource, oldest first.

        Raises:
            LockguardError: it cannot be read.
        """
        ...


@dataclass(slots=True)
class _Watched:
    """A resource that is opened on a page."""

    read: int = -1
    """In which round its story was read last."""
    story: Sequence[Line] = ()
    fault: str = ""
    waits: dict[str, Wait] = field(default_factory=dict)


class Page:
    """An open page: iterating over it gives the newest state, as JSON, whenever there is a newer one."""

    def __init__(self, feed: Feed, view: View) -> None:
        self._feed = feed
        self.view = view
        self._round = -1

    def __aiter__(self) -> Page:
        return self

    async def __anext__(self) -> str:
        self._round = await self._feed.after(self._round)
        return self._feed.told(self.view)


class Feed:
    """Reads the servers for all pages.

    Args:
        source: what is read.
        interval_s: the pause between two readings, in seconds. It is as long as the last reading at least.
    """

    def __init__(self, source: Source, *, interval_s: float) -> None:
        self._source = source
        self._interval_s = interval_s
        self._pages: set[Page] = set()
        self._watched: dict[str, _Watched] = {}
        self._seen: Seen | None = None
        self._told: dict[View, str] = {}
        self._round = -1
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @contextmanager
    def page(self, view: View) -> Iterator[Page]:
        """Open a page. The first one starts the reading, and the last one that closes ends it.

        Raises:
            Full: too many are open.
        """
        if len(self._pages) >= PAGES_MAX:
            raise Full
        page = Page(self, view)
        self._pages.add(page)
        if self._task is None or self._task.done():
            self._round = -1  # what was seen before the pause is not shown as if it were news
            self._task = asyncio.create_task(self._read_on())
        try:
            yield page
        finally:
            self._pages.discard(page)

    async def after(self, number: int) -> int:
        """Wait for a round after this one; returns its number.

        Raises:
            StopAsyncIteration: the feed was closed.
        """
        while not self._closed and self._round <= number:
            if self._task is not None and self._task.done():
                self._task.result()  # a bug: the page's request fails with it, and the next one begins anew
            await self._news.wait()
        if self._closed:
            raise StopAsyncIteration
        return self._round

    def told(self, view: View) -> str:
        """The newest state for a view, as JSON; pages with the same view share it."""
        if view not in self._told:
            assert self._seen is not None
            facts = self._seen.told(view)
            facts["opened"] = self._opened(self._seen, view) if view.opened else None
            self._told[view] = json.dumps(facts, separators=(",", ":"))
        return self._told[view]

    async def aclose(self) -> None:
        """End the reading, and every page."""
        self._closed = True
        self._wake()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _read_on(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._pages:
                began = loop.time()
                await self._read()
                self._wake()
                await asyncio.sleep(max(self._interval_s, loop.time() - began))
        finally:
            self._wake()

    async def _read(self) -> None:
        try:
            snapshot = await self._source.snapshot()
        except LockguardError as exc:  # such as a refused password, which may be right again at any time
            why = printable(first_line(exc))
            tables = f"not read: {why}" if self._source.has_database else ""
            snapshot = Snapshot(datetime.now(UTC), redis_fault=why, database_fault=tables)
        self._seen = seen = Seen.of(snapshot, self._seen)
        opened = {page.view.opened for page in self._pages} - {""}
        self._watched = {name: self._watched.get(name) or _Watched() for name in sorted(opened)}
        if self._watched:
            await self._read_story(*min(self._watched.items(), key=lambda item: item[1].read))
        if not seen.redis_fault:
            for name, watched in self._watched.items():
                watched.waits = waits_seen(watched.waits, seen.find(name), seen.at)
        self._told.clear()
        self._round += 1

    async def _read_story(self, resource: str, watched: _Watched) -> None:
        watched.read = self._round + 1
        try:
            async with asyncio.timeout(_STORY_S):
                watched.story, watched.fault = await self._source.story(resource), ""
        except TimeoutError:
            watched.fault = f"no answer within {_STORY_S:g} s"
        except LockguardError as exc:
            watched.fault = printable(first_line(exc))

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _opened(self, seen: Seen, view: View) -> dict[str, Any]:
        found = seen.find(view.opened)
        watched = self._watched.get(view.opened) or _Watched()
        drawing = draw(
            printable(view.opened),
            watched.story,
            found,
            watched.waits.values(),
            now=seen.at,
            span=timedelta(seconds=view.span_s),
            width=view.width,
        )
        return {
            "name": view.opened,
            "lock": None if found is None else lock_facts(found),
            "waiters": seen.waiters(view.opened),
            "fault": watched.fault,
            "reading": watched.read < 0,
            "drawing": drawing.shapes(),
            "lines": [
                {
                    "at": round(each.at.timestamp() * 1000),
                    "told": printable(each.text),
                    "kind": each.event,
                }
                for each in reversed(watched.story[-_LINES_MAX:])
            ],
        }
