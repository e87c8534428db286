"""A command that runs under a lease, seen from ``lockguard run``: its watchdog, its signals, its terminal.

The command is in a process group of its own, so that it can be signalled and ended as a whole. A terminal
that ``lockguard run`` has is lent to it: then Ctrl-C and Ctrl-Z reach the command from the terminal, once,
and it can read what is typed. Every other signal that this process is sent is passed on.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lockguard._cli import watchdog

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Command", "Outcome"]

_PASSED_ON = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM", "WINCH", "TSTP", "CONT")

_ANSWER_S = 1.0
"""How much longer than it needs the watchdog may take before what is left is killed without it."""


@dataclass(slots=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: its exit code, or minus the signal that killed it; ``None`` if that is not known.
        errno: why it could not be executed; 0 if it was.
        why: why the watchdog ended it; empty if it ended by itself.
        watched: whether the watchdog saw its end.
    """

    status: int | None = None
    errno: int = 0
    why: str = ""
    watched: bool = True


class Command:
    """A command, its watchdog already running: a context manager, for one use.

    Args:
        words: the command and its arguments.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._unread = b""
        self._pid = 0
        self._deadline = 0.0
        self._outcome = Outcome()
        self._lent = False
        self._terminal = _own_terminal()
        self._in_front = os.isatty(0) and os.isatty(1) and self._has_terminal()

    def __enter__(self) -> Self:
        """Start the watchdog, which takes as long as connecting does.

        Raises:
            OSError: it could not be started.
        """
        watchdog.adopt_orphans()  # those of a watchdog that was killed
        self._channel, theirs = socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            script = str(Path(watchdog.__file__))
            # Nothing is closed for it: what this process was given beyond 0, 1 and 2 is for the command.
            self._watchdog = subprocess.Popen(
                [sys.executable, "-I", "-S", script, str(theirs.fileno()), *self._words],
                close_fds=False,
                process_group=0,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()  # the watchdog ends what may be left, and itself
        with suppress(subprocess.TimeoutExpired):
            self._watchdog.wait(_ANSWER_S)
        if self._watchdog.returncode is None:
            self._watchdog.kill()
            self._watchdog.wait()
        if self._terminal is not None:
            os.close(self._terminal)

    def until(self, deadline: float) -> None:
        """Tell that the lease was renewed.

        Args:
            deadline: its new deadline on the clock of the leases, in seconds.
        """
        self._deadline = deadline
        self._tell("until", deadline)

    async def run(
        self, environment: dict[str, str], *, deadline: float, stop_within_s: float, short_s: float
    ) -> Outcome:
        """Run the command; returns when no process of its group is left. A cancel ends it.

        Args:
            environment: variables that it gets in addition to those of this process.
            deadline: that of the lease, on the clock of the leases, in seconds.
            stop_within_s: how long it may take to end after TERM, in seconds.
            short_s: the same once its lease is lost; and by how much KILL comes before a deadline.
        """
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = loop.create_future()
        self._deadline = deadline
        loop.add_reader(self._channel, self._listen)
        self._pass_signals_on(loop)
        self._lent = self._in_front
        self._tell("start", environment, deadline, stop_within_s, short_s, self._in_front)
        try:
            await asyncio.wait([self._over])
        except asyncio.CancelledError:
            self._tell("end")
            # A watchdog that is stopped itself is not waited for beyond the deadline.
            left_s = max(0.0, self._deadline - watchdog.now())
            await asyncio.wait([self._over], timeout=min(short_s + _ANSWER_S, left_s))
            raise
        finally:
            loop.remove_reader(self._channel)
            if not self._over.done() or not self._outcome.watched:
                await self._end_without_watchdog()
            self._take_terminal()
        return self._outcome

    def _tell(self, *message: object) -> None:
        with suppress(OSError):
            self._channel.sendall(json.dumps(message).encode() + b"\n")

    # What the watchdog says.

    def _listen(self) -> None:
        try:
            received = self._channel.recv(65_536)
        except OSError:
            received = b""
        if not received:
            self._outcome.watched = False
            self._end()
            return
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            word, fact = json.loads(line)
            getattr(self, f"_on_{word}")(fact)

    def _on_started(self, pid: int) -> None:
        self._pid = pid

    def _on_failed(self, errno: int) -> None:
        self._outcome.errno = errno

    def _on_ending(self, why: str) -> None:
        if why != "rest":
            self._outcome.why = why

    def _on_ended(self, status: int) -> None:
        self._outcome.status = status
        self._end()

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)
        if not self._over.done():
            self._over.set_result(None)

    async def _end_without_watchdog(self) -> None:
        """Kill what is left, and the watchdog: it was killed or stopped itself."""
        if self._pid:
            with suppress(OSError):
                os.killpg(self._pid, signal.SIGKILL)
        while left := watchdog.descendants(os.getpid()):
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.005)

    # Signals and the terminal.

    def _pass_signals_on(self, loop: asyncio.AbstractEventLoop) -> None:
        for name in _PASSED_ON:
            number = getattr(signal, f"SIG{name}")
            if signal.getsignal(number) != signal.SIG_IGN:  # as by nohup, or in the background of a script
                loop.add_signal_handler(number, self._continued if name == "CONT" else self._pass_on, number)

    def _pass_on(self, number: int) -> None:
        self._tell("signal", number)

    def _on_stopped(self, number: int) -> None:
        """The command was stopped: stop this job too, as its shell expects.

        The lease is not renewed meanwhile. If it is continued too late, the watchdog has ended the command.
        """
        if self._terminal is None or number == signal.SIGSTOP:
            return
        if number in (signal.SIGTTIN, signal.SIGTTOU) and self._has_terminal():
            self._lent = True
            self._continued(signal.SIGCONT)
            return
        self._take_terminal(keep=True)
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGTSTP)
        os.kill(0, signal.SIGTSTP)  # the whole job, and not in a session without a shell to continue it
        loop.add_signal_handler(signal.SIGTSTP, self._pass_on, signal.SIGTSTP)

    def _continued(self, number: int) -> None:
        if self._lent and self._has_terminal():
            self._set_terminal(self._pid)
        self._pass_on(number)

    def _has_terminal(self) -> bool:
        return self._terminal is not None and _in_front(self._terminal) == os.getpgrp()

    def _take_terminal(self, *, keep: bool = False) -> None:
        """Take the terminal back if it is the command's; ``keep``: it gets it again when it goes on."""
        if self._lent and self._terminal is not None and _in_front(self._terminal) == self._pid:
            self._set_terminal(os.getpgrp())
        self._lent = self._lent and keep

    def _set_terminal(self, group: int) -> None:
        assert self._terminal is not None
        with _unstopped(), suppress(OSError):
            os.tcsetpgrp(self._terminal, group)


def _own_terminal() -> int | None:
    """The terminal of this session, opened; ``None`` if it has none."""
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None


def _in_front(terminal: int) -> int:
    """The process group in the foreground of a terminal; 0 if there is none any more."""
    try:
        return os.tcgetpgrp(terminal)
    except OSError:
        return 0


@contextmanager
def _unstopped() -> Iterator[None]:
    """Block SIGTTOU, which stops a process in the background that changes its terminal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
