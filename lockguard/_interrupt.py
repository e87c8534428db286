"""Ctrl-C and SIGTERM end a command of ours in one way, at whatever moment they come.

Python answers Ctrl-C by raising ``KeyboardInterrupt`` between any two instructions: also in a destructor,
where it is printed and lost; while an event loop starts or ends, which leaves tasks undone; and on the way
out, where nobody catches it. Where Ctrl-C is ignored, as in a background job, asyncio does not prepare for it
either, and what SIGTERM raises then cuts the loop in two. Each is a traceback instead of one line, and
something that was not cleaned up. So:

* The first one ends the command in order. Plain code gets a ``KeyboardInterrupt``; in an event loop that was
  started by :func:`run` the main task is cancelled, and nothing is raised anywhere.
* The second one ends the process at once, as a kill would: what cleans up may hang.
* When the command has ended, nothing is raised any more.

What comes before :func:`catch`, while this package is imported, is answered by ``lockguard_command``; by
Python where a command is run as a module (``python -m lockguard``), and while Python itself starts.
"""

from __future__ import annotations

import _thread
import asyncio
import atexit
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["INTERRUPTED", "catch", "interrupted", "over", "run"]

T = TypeVar("T")

INTERRUPTED = 130
"""The exit code, as shells have it for Ctrl-C."""

_TOLD = b"lockguard: interrupted\n"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Interruption:
    """What has been asked of this process, and what it is doing."""

    def __init__(self) -> None:
        self.signals: tuple[signal.Signals, ...] = ()
        """Those that it answers."""
        self.asked = 0
        self.in_loop = False
        self.main: asyncio.Task[Any] | None = None
        self.delivered = False
        """Whether the main task was told: what it makes of that is its own affair."""
        self.told = False
        self.code: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what signal() wants
        if frame is not None and frame.f_code is _Interruption.lost.__code__:
            _again_soon()
            return
        self.asked += 1
        if self.code is not None:
            self._end(self.code)
        if self.asked > 1:
            self._end(INTERRUPTED)
        if not self.in_loop:
            raise KeyboardInterrupt
        if self.main is not None:
            self.main.get_loop().call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        self.delivered = self.main is not None and self.main.cancel()

    def listen(self) -> None:
        """Be called for each of the signals."""
        for number in self.signals:
            signal.signal(number, self)

    def lost(self, ignored: sys.UnraisableHookArgs) -> None:
        """An exception that nobody can catch: in a destructor, or what a collector calls."""
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            self.asked = 0
            _again_soon()
        else:
            sys.__unraisablehook__(ignored)

    def tell(self) -> None:
        """Say it once, whatever comes meanwhile."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        if not self.told:
            with suppress(OSError):
                os.write(2, _TOLD)  # not through a buffer that the signal may have found in use
            self.told = True
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _end(self, code: int) -> NoReturn:
        if code == INTERRUPTED:
            self.tell()
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _again_soon() -> None:
    """Ask again from another thread: where we are now, nobody could catch what the handler raises."""
    _thread.start_new_thread(_thread.interrupt_main, (signal.SIGTERM,))


_interruption = _Interruption()


def catch() -> None:
    """From now on Ctrl-C and SIGTERM are answered as told above, in this process."""
    global _interruption  # noqa: PLW0603 - a process has one set of signal handlers
    _interruption = _Interruption()
    in_background = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    _interruption.signals = (signal.SIGTERM,) if in_background else _SIGNALS
    _interruption.listen()
    sys.unraisablehook = _interruption.lost
    atexit.register(_ignore)


def interrupted() -> int:
    """Say that it was interrupted; gives the exit code."""
    over(INTERRUPTED)
    _interruption.tell()
    return INTERRUPTED


def over(code: int) -> None:
    """The command has ended with this exit code: all that is left is to leave."""
    _interruption.code = code


def run(
    work: Coroutine[Any, Any, T], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> T:
    """As ``asyncio.run``; whoever interrupts it cancels ``work`` and never the loop.

    Raises:
        KeyboardInterrupt: it was interrupted, when everything is closed.
    """
    interruption = _interruption

    async def main() -> T:
        interruption.main = asyncio.current_task()
        try:
            if interruption.asked:
                work.close()
                raise asyncio.CancelledError
            return await work
        finally:
            interruption.main = None

    interruption.in_loop = True
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            done = runner.run(main())
    except asyncio.CancelledError:
        if not interruption.asked:
            raise
        raise KeyboardInterrupt from None
    finally:
        work.close()  # if it did not come to that
        interruption.listen()  # where the work had handlers of its own, asyncio has put Python's
        interruption.in_loop = False
    if interruption.asked and not interruption.delivered:
        raise KeyboardInterrupt  # it came too late for the work, and not too late for what follows
    return done


def _ignore() -> None:
    """Python takes itself apart from here on: no handler of its own may run."""
    for number in _SIGNALS:
        with suppress(ValueError):  # another thread ends the process
            signal.signal(number, signal.SIG_IGN)
