"""The watchdog of ``lockguard run``: a process of its own that starts the command and ends it in time.

``lockguard run`` renews the lease; it may be stopped (SIGSTOP, a debugger), killed, or hang. The watchdog
knows the lease's deadline, so none of that lets the command outlive the lease:

* It is told each deadline that a renewal gained. When one comes near without a later one, the command gets
  TERM, and KILL before the deadline.
* It is told when the lease was lost without notice (a break, a deleted key): TERM at once, KILL soon after.
* When ``lockguard run`` dies, the socket between them ends: the same, at the deadline at the latest.
* When the watchdog is killed, Linux kills the command with it, and ``lockguard run`` ends what is left.

It is the command's parent, so no other process can have the command's id while it looks. On Linux it also
adopts the processes that the command leaves behind, and finds those that began a session of their own.

The file is run by its path, with the standard library only: it must start in no time, and must not depend on
what it watches. Messages are lines of JSON: a word and its facts.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

__all__ = ["adopt_orphans", "descendants", "now"]

_LINUX = sys.platform == "linux"
_LISTED = os.path.isdir("/proc/self")  # whether processes can be looked up
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_IGNORED = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM", "TSTP", "TTIN", "TTOU", "PIPE")
"""Signals that are for the command, or for ``lockguard run``."""

_LOOK_S = 0.1
"""How long to sleep at most: timers stand still while the machine is suspended, and the deadline does not."""

_END_LOOK_S = 0.005
"""How often to look whether processes have ended."""


def now() -> float:
    """Seconds on the clock of the leases, see ``lockguard/_clock.py``."""
    if _LINUX:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends; Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(ancestor: int) -> dict[int, int]:
    """The living descendants of a process and the group of each; empty where there is no ``/proc``."""
    children: dict[int, list[tuple[int, int]]] = {}
    for name in _listed(ancestor):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
            state, parent, leader, *_ = stat.read().rpartition(b")")[2].split()
            # A zombie is dead, but may have children as long as its threads end.
            children.setdefault(int(parent), []).append((int(name), 0 if state in b"ZX" else int(leader)))
    found: dict[int, int] = {}
    unseen = [ancestor]
    while unseen:
        for pid, group in children.get(unseen.pop(), ()):
            unseen.append(pid)
            if group:
                found[pid] = group
    return found


def _listed(ancestor: int) -> Iterator[str]:
    """The ids of all processes, the ancestor's own children again last: they may be new, and soon gone.

    Processes that fork and end faster than all can be listed would otherwise never be found.
    """
    if not _LISTED:
        return
    yield from filter(str.isdigit, os.listdir("/proc"))
    with suppress(OSError), open(f"/proc/{ancestor}/task/{ancestor}/children") as children:
        yield from children.read().split()


class Watchdog:
    """Starts one command and ends it in time.

    Args:
        channel: the socket to ``lockguard run``.
        command: the command and its arguments.
    """

    def __init__(self, channel: socket.socket, command: list[str]) -> None:
        self._channel: socket.socket | None = channel
        self._command = command
        self._unread = b""
        self._was = {name: signal.getsignal(getattr(signal, f"SIG{name}")) for name in _IGNORED}
        self._pid = 0
        self._status: int | None = None
        self._deadline = math.inf
        self._stop_within_s = 0.0
        self._short_s = 0.0
        self._kill_at = math.inf
        self._ending = False
        self._whole = False
        """Whether processes in other groups are ended too."""

    def run(self) -> None:
        """Watch until the command and what it left have ended."""
        for name in _IGNORED:
            signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
        adopt_orphans()
        woken, waking = os.pipe()
        os.set_blocking(waking, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while not self._over():
            sources: list[Any] = [woken]
            if self._channel is not None:
                sources.append(self._channel)
            ready, _, _ = select.select(sources, (), (), self._sleep_s())
            if woken in ready:
                os.read(woken, 512)
            if self._channel in ready:
                self._listen()

    def _over(self) -> bool:
        if not self._pid:
            return self._channel is None  # `lockguard run` ended before it had the lock
        bereft = not self._reap()
        if now() >= self._deadline - self._stop_within_s and not self._whole:
            self._end("deadline", within_s=self._stop_within_s)
        late = now() >= self._kill_at
        if self._status is None and not late:
            return False
        left = self._left()
        # On Linux every descendant has an ancestor among our own children, so without one there is none.
        if self._status is not None and not left and (bereft or not (self._whole and _LINUX)):
            self._tell("ended", self._status)
            return True
        if late:
            self._signal(signal.SIGKILL, left)
        elif not self._ending:  # the command is done, and processes of its group are not
            self._end("rest", within_s=self._stop_within_s, whole=False)
        return False

    def _sleep_s(self) -> float:
        if self._ending or self._status is not None:
            return _END_LOOK_S
        return max(0.0, min(_LOOK_S, self._deadline - self._stop_within_s - now()))

    def _listen(self) -> None:
        assert self._channel is not None
        try:
            received = self._channel.recv(65_536)
        except OSError:
            received = b""
        if not received:
            self._channel.close()
            self._channel = None
            if self._pid:
                self._end("parent", within_s=self._stop_within_s)
            return
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            word, *facts = json.loads(line)
            getattr(self, f"_on_{word}")(*facts)

    def _tell(self, *message: object) -> None:
        if self._channel is not None:
            with suppress(OSError):
                self._channel.sendall(json.dumps(message).encode() + b"\n")

    # What `lockguard run` says.

    def _on_start(
        self,
        environment: dict[str, str],
        deadline: float,
        stop_within_s: float,
        short_s: float,
        foreground: bool,  # noqa: FBT001 - comes as JSON
    ) -> None:
        self._deadline, self._stop_within_s, self._short_s = deadline, stop_within_s, short_s
        failed, failing = os.pipe()
        try:
            pid = os.fork()
        except OSError as exc:  # too many processes
            os.close(failed)
            os.close(failing)
            self._tell("failed", exc.errno)
            self._tell("ended", 1)
            return
        if pid == 0:
            self._become_the_command(environment, failing, foreground=foreground)
        os.close(failing)
        with suppress(OSError):
            os.setpgid(pid, pid)
        self._pid = pid
        with open(failed, "rb") as reason:
            code = reason.read()  # ends when the command runs
        # From here on a reader of the command's output must not wait for this process.
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(nothing, number)
        os.close(nothing)
        if code:
            self._tell("failed", int(code))
        else:
            self._tell("started", pid)

    def _become_the_command(self, environment: dict[str, str], failing: int, *, foreground: bool) -> None:
        try:
            os.setpgid(0, 0)
            if foreground:
                with suppress(OSError):  # SIGTTOU is ignored here
                    os.tcsetpgrp(0, os.getpid())
            watchdog = os.getppid()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != watchdog:
                os._exit(1)  # it died just before
            signal.set_wakeup_fd(-1)
            for name, was in self._was.items():
                ignored = was == signal.SIG_IGN and name != "PIPE"  # Python's own
                signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN if ignored else signal.SIG_DFL)
            for number in (signal.SIGCHLD, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(self._command[0], self._command, {**os.environ, **environment})  # noqa: S606 - no shell
        except OSError as exc:
            os.write(failing, str(exc.errno or errno.EACCES).encode())
        finally:
            os._exit(127)

    def _on_until(self, deadline: float) -> None:
        self._deadline = deadline

    def _on_end(self) -> None:
        if self._pid:
            self._end("lost", within_s=self._short_s)

    def _on_signal(self, number: int) -> None:
        if self._pid and self._status is None:
            self._signal_group(number)

    # Ending.

    def _end(self, why: str, *, within_s: float, whole: bool = True) -> None:
        """Send TERM now, unless it was sent, and KILL after ``within_s``, but before the deadline."""
        self._kill_at = min(self._kill_at, now() + within_s, max(now(), self._deadline - self._short_s))
        if self._ending and (self._whole or not whole):
            return
        self._ending, self._whole = True, self._whole or whole
        self._tell("ending", why)
        left = self._left()
        self._signal(signal.SIGTERM, left)
        self._signal(signal.SIGCONT, left)  # or a stopped process would not see it

    def _left(self) -> dict[int, int]:
        """The living processes to end, and their groups; one stands for all that cannot be listed."""
        if _LISTED:
            found = descendants(os.getpid()).items()
            return {pid: group for pid, group in found if self._whole or group == self._pid}
        with suppress(OSError):
            os.killpg(self._pid, 0)
            return {self._pid: self._pid}
        return {}

    def _signal(self, number: int, left: dict[int, int]) -> None:
        # The whole group at once, while its number cannot be another group's.
        if self._status is None or self._pid in left.values():
            self._signal_group(number)
        for pid, group in left.items():
            if group != self._pid:
                with suppress(OSError):
                    os.kill(pid, number)

    def _signal_group(self, number: int) -> None:
        with suppress(OSError):
            os.killpg(self._pid, number)

    def _reap(self) -> bool:
        """Take note of the children that have ended; returns whether others are left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid != self._pid:
                continue
            if os.WIFSTOPPED(status):
                self._tell("stopped", os.WSTOPSIG(status))
            else:
                self._status = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    # A standard stream that is closed is taken, for this process alone: it would become one of its own pipes.
    while (_taken := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(_taken)
    _channel = socket.socket(fileno=int(sys.argv[1]))
    _channel.set_inheritable(False)  # the command must not hold it open
    Watchdog(_channel, sys.argv[2:]).run()
