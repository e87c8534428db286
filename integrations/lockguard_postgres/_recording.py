"""Records refused writes in the database, in transactions of their own and never in anybody's way.

Equal refusals are counted and sent as one, at most once a second, over a connection of the fence's pool that
is free. Whatever goes wrong costs the record and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextvars import Context
from typing import TYPE_CHECKING

from lockguard._clock import SYSTEM_CLOCK
from lockguard.text import first_line, printable
from lockguard_postgres._calling import CancelWatch
from lockguard_postgres._errors import Meaning
from lockguard_postgres._literals import number, text
from lockguard_postgres._refusals import REFUSALS, Refused

if TYPE_CHECKING:
    from lockguard_postgres._database import Database

__all__ = ["Recorder"]

_LOG = logging.getLogger("lockguard")
_PAUSE_S = 1.0
_SEND_S = 2.0
_ATTEMPTS_MAX = 30
_KEYS_MAX = 100


class _Times:
    """How often one write was refused, and between which instants of the clock, in seconds."""

    __slots__ = ("count", "first", "last")

    def __init__(self, now: float) -> None:
        self.count = 0
        self.first = self.last = now


class Recorder:
    """Records the refusals of one fence.

    Args:
        database: the fence's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._fence = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: dict[Refused, _Times] = {}
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._disabled = False

    def begin(self, fence: str) -> None:
        """Take the refusals of the fence of this name from now on, in the running event loop."""
        self._fence = fence
        self._loop = asyncio.get_running_loop()
        REFUSALS.join(self)

    def take(self, fence: str, refused: Refused) -> bool:
        """Note one refusal, if it is of this fence; returns whether it is.

        It is noted in the fence's own event loop, or from a thread without one.
        """
        loop, here = self._loop, asyncio._get_running_loop()
        if fence != self._fence or loop is None or here not in {None, loop}:
            return False
        if here is loop:
            self.note(refused)
            return True
        try:
            loop.call_soon_threadsafe(self.note, refused)
        except RuntimeError:  # it has ended
            return False
        return True

    def note(self, refused: Refused) -> None:
        """Note one refusal, to be sent soon. Never waits."""
        if self._loop is None or self._disabled or self._closing.is_set():
            return
        now = SYSTEM_CLOCK.now()
        times = self._pending.get(refused)
        if times is None:
            if len(self._pending) >= _KEYS_MAX:
                return  # the storm itself is on record
            times = self._pending[refused] = _Times(now)
        times.count += 1
        times.last = now
        if self._task is None or self._task.done():
            # In a context of its own: no lease of the refused body is presented, or cut, here.
            self._task = self._loop.create_task(self._record(), name="lockguard-refusals", context=Context())

    async def aclose(self) -> None:
        """Send what is noted, if that can be done within a moment; then stop."""
        self._closing.set()
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task], timeout=_PAUSE_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _record(self) -> None:
        attempts, cancels = 0, CancelWatch()
        while self._pending and attempts < _ATTEMPTS_MAX and not self._database.is_closing():
            attempts += 1
            if self._database.has_room():
                noted, self._pending = self._pending, {}
                sent = await self._sent(noted)
                cancels.raise_if_cancelled()  # or the end of the event loop would wait for all attempts
                if sent:
                    attempts = 0
                else:
                    self._pending |= noted
            if self._disabled or self._closing.is_set():
                break
            with contextlib.suppress(TimeoutError):  # what is refused meanwhile is counted, and sent as one
                async with asyncio.timeout(_PAUSE_S):
                    await self._closing.wait()
        self._pending.clear()

    async def _sent(self, noted: dict[Refused, _Times]) -> bool:
        try:
            async with asyncio.timeout(_SEND_S):
                conn = await self._database.acquire()
                if self._database.is_closing():  # it does not wait for a connection that was being made
                    self._database.drop(conn)
                    return False
                await self._database.once(conn, _sql(noted), rows=False)
        except self._database.failures as exc:
            if (
                self._database.errors.meaning_of(exc) is Meaning.CONFIGURATION
            ):  # an older schema, or rights that were given before it
                self._disabled = True
                _LOG.info(
                    "lockguard: refused writes are not recorded (%s); run `lockguard fence upgrade`, and"
                    " `lockguard fence install --grant-to` where the rights were given by that",
                    printable(first_line(exc)),
                )
            return False
        return True


def _sql(noted: dict[Refused, _Times]) -> str:
    now = SYSTEM_CLOCK.now()
    return ";".join(
        f"select lockguard.note_refusal({text(r.resource)},{number(r.presented)},{number(r.current)},"
        f"{text(r.sqlstate)},{text(r.reason)},{text(r.holder)},{text(r.operation)},{number(t.count)},"
        f"{number(round((now - t.first) * 1000))},{number(round((now - t.last) * 1000))})"
        for r, t in noted.items()
    )
