"""Stop requests: the first SIGTERM or SIGINT stops the bot in good order, the second ends it at once.

SIGHUP, as when the terminal is closed, is a request too. It never ends the bot at once: a shell sends it
after the terminal has, and an init system beside SIGTERM. Where it is ignored, as by ``nohup``, it stays so.

Stopping must complete even if something hangs: after a deadline the process is ended by force. That leaves
what a kill leaves: leases that expire by their ttl, and rows that the next bot finishes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import timedelta
    from types import TracebackType
    from typing import Any

__all__ = ["StopRequest", "unless_stopped"]

T = TypeVar("T")

_LOG = logging.getLogger("lockguard.bot")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_INSISTED = 130
_HUNG = 1


class StopRequest(asyncio.Event):
    """An event that is set when the process is asked to stop; listens for the signals as a context manager.

    Args:
        at_last: how long after the request the process is ended, whatever it is doing.
    """

    def __init__(self, *, at_last: timedelta) -> None:
        super().__init__()
        self._at_last = at_last
        self._handlers: dict[int, Any] = {}
        self._insisting = False

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        found: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
        if found[signal.SIGHUP] == signal.SIG_IGN:
            del found[signal.SIGHUP]
        self._handlers = found
        for number in self._handlers:
            loop.add_signal_handler(number, self._heard, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number, handler in self._handlers.items():
            loop.remove_signal_handler(number)
            late = number == signal.SIGHUP and self.is_set()  # what follows must not be broken off either
            signal.signal(
                number, signal.SIG_IGN if late else handler
            )  # asyncio has restored Python's default

    def _heard(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._insisting and number != signal.SIGHUP:
            _LOG.warning("%s again: ending at once; the next bot finishes what was begun", name)
            _end(_INSISTED)
        self._insisting = self._insisting or number != signal.SIGHUP
        if self.is_set():
            return
        _LOG.info("%s: taking no more signals, finishing what was begun", name)
        self.set()
        asyncio.get_running_loop().call_later(self._at_last.total_seconds(), self._give_up)

    def _give_up(self) -> None:
        _LOG.error("not stopped within %s: ending at once", self._at_last)
        _end(_HUNG)


async def unless_stopped(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Await ``work`` and return its result; if stopping begins first, cancel it and return ``None``."""
    doing = asyncio.ensure_future(work)
    asked = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({doing, asked}, return_when=asyncio.FIRST_COMPLETED)
        return await doing if doing.done() else None
    finally:
        asked.cancel()
        if not doing.done():
            doing.cancel()
            await asyncio.wait({doing})


def _end(code: int) -> None:
    logging.shutdown()
    os._exit(code)
