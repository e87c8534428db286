"""Ctrl-C and SIGTERM end a command in one way, whenever they arrive.

Python answers Ctrl-C by raising ``KeyboardInterrupt`` between any two instructions: also in a destructor,
where it is printed and lost; while an event loop starts or ends, which leaves tasks unfinished; and during
exit, where no code catches it. Where Ctrl-C is ignored, as in a background job, asyncio does not prepare for
it either, and what SIGTERM raises then breaks off the event loop. Each case shows a traceback instead of one
line, and leaves something that was not cleaned up. So:

* The first signal ends the command in order. Plain code gets a ``KeyboardInterrupt``; in an event loop that
  was started by :func:`run` the main task is cancelled, and nothing is raised anywhere.
* The second signal ends the process at once, as a kill would: the clean-up may hang.
* Once the command has ended, nothing is raised any more.

A signal before :func:`catch`, while this package is imported, is handled by ``lockguard_command``; by Python
where a command is run as a module (``python -m lockguard``), and while Python itself starts.
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
"""The exit code, the same as shells use for Ctrl-C."""

_TOLD = b"lockguard: interrupted\n"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Interruption:
    """The signals that this process got, and what it is doing."""

    def __init__(self) -> None:
        self.signals: tuple[signal.Signals, ...] = ()
        """The signals that it handles."""
        self.asked = 0
        self.in_loop = False
        self.main: asyncio.Task[Any] | None = None
        self.delivered = False
        """Whether the main task was cancelled; how it reacts is left to it."""
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
        """Become the handler of each of the signals."""
        for number in self.signals:
            signal.signal(number, self)

    def lost(self, ignored: sys.UnraisableHookArgs) -> None:
        """Handle an exception that no code can catch: in a destructor, or in a callback of the collector."""
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            self.asked = 0
            _again_soon()
        else:
            sys.__unraisablehook__(ignored)

    def tell(self) -> None:
        """Write the message once, whatever signals arrive meanwhile."""
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
    """Signal again from another thread: what the handler raises here could not be caught."""
    _thread.start_new_thread(_thread.interrupt_main, (signal.SIGTERM,))


_interruption = _Interruption()


def catch() -> None:
    """Handle Ctrl-C and SIGTERM in this process from now on, as the module describes."""
    global _interruption  # noqa: PLW0603 - a process has one set of signal handlers
    _interruption = _Interruption()
    in_background = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    _interruption.signals = (signal.SIGTERM,) if in_background else _SIGNALS
    _interruption.listen()
    sys.unraisablehook = _interruption.lost
    atexit.register(_ignore)


def interrupted() -> int:
    """Write that the command was interrupted; returns the exit code."""
    over(INTERRUPTED)
    _interruption.tell()
    return INTERRUPTED


def over(code: int) -> None:
    """Note that the command has ended with this exit code: a signal from now on only ends the process."""
    _interruption.code = code


def run(
    work: Coroutine[Any, Any, T], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> T:
    """Like ``asyncio.run``, but a signal cancels ``work`` and never breaks off the loop.

    Raises:
        KeyboardInterrupt: it was interrupted; raised when everything is closed.
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
        work.close()  # in case it never started
        interruption.listen()  # where the work had handlers of its own, asyncio has restored Python's
        interruption.in_loop = False
    if interruption.asked and not interruption.delivered:
        raise KeyboardInterrupt  # too late for the work, but not for what follows
    return done


def _ignore() -> None:
    """Ignore the signals while Python shuts down: none of its handlers may run."""
    for number in _SIGNALS:
        with suppress(ValueError):  # another thread ends the process
            signal.signal(number, signal.SIG_IGN)
