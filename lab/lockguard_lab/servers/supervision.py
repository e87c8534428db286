"""The owner's side of the warden: one warden per process, started with the first server."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_lab.servers import scratch, warden

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ServerProcess",
    "Spawn",
    "hold_directory",
    "pause_s",
    "release_directory",
    "server_environment",
    "spawn",
    "wait_until",
]

_POLL_S = 0.005
_EXIT_WAIT_S = 10.0
_CLOSE_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Spawn:
    """What to start, and as which user.

    Attributes:
        argv: the executable and its arguments.
        log: the file to which its output is appended.
        cwd: its working directory, in which its process id is recorded too.
        env: its whole environment.
        uid: the user to run as; ``None`` for the present one.
        gid: the group to run as; ``None`` for the present one.
    """

    argv: tuple[str, ...]
    log: str
    cwd: str
    env: dict[str, str]
    uid: int | None = None
    gid: int | None = None


class ServerProcess:
    """A running server: the process and all its descendants."""

    __slots__ = ("_process",)

    def __init__(self, process: psutil.Process | None) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The process id of the server itself; 0 if it ended at once."""
        return self._process.pid if self._process is not None else 0

    def alive(self) -> bool:
        """Whether the server still exists (a suspended one does)."""
        return self._process is not None and self._process.is_running()

    def suspend(self) -> None:
        """Stop the whole tree and return when every process of it is stopped."""
        if self._process is None:
            return
        stopped = warden.suspend_tree(self._process)
        wait_until(lambda: all(_stopped(process) for process in stopped), _EXIT_WAIT_S)

    def resume(self) -> None:
        """Resume the whole tree."""
        if self._process is None:
            return
        for process in reversed(warden.process_tree(self._process)):
            try:
                process.send_signal(signal.SIGCONT)
            except psutil.NoSuchProcess:
                continue

    def kill(self) -> None:
        """``kill -9`` for the whole tree; returns when it is gone."""
        if self._process is not None:
            warden.kill_tree(self._process)

    def end(self, number: int) -> None:
        """Ask the server to end by the signal ``number``; kill the tree if that takes over ten seconds."""
        if self._process is None:
            return
        tree = warden.process_tree(self._process)
        try:
            self._process.send_signal(number)
        except psutil.NoSuchProcess:
            return
        _, alive = psutil.wait_procs(tree, timeout=_EXIT_WAIT_S)
        for process in alive:
            warden.kill_tree(process)


def _stopped(process: psutil.Process) -> bool:
    try:
        return process.status() in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_TRACING_STOP}
    except psutil.NoSuchProcess:
        return True


def server_environment() -> dict[str, str]:
    """This process's environment without variables that affect a server, such as PGPORT and PGDATA."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def pause_s(seconds: float) -> None:
    """Let other threads and processes run for ``seconds``."""
    threading.Event().wait(seconds)


def wait_until(condition: Callable[[], bool], within_s: float) -> bool:
    """Poll the condition; returns whether it became true within ``within_s`` seconds."""
    deadline = SYSTEM_CLOCK.now() + within_s
    while not condition():
        if SYSTEM_CLOCK.now() > deadline:
            return False
        pause_s(_POLL_S)
    return True


class _Supervisor:
    def __init__(self) -> None:
        scratch.sweep_leftovers()
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own, so that Ctrl-C in the terminal does not reach the servers. No pipe of ours
            # is inherited, so that `lockguard demo | tee` ends with the demo and not with the warden.
            try:
                self._process = subprocess.Popen(
                    # It is isolated from PYTHONPATH and the user's packages, and needs one of them.
                    [sys.executable, "-I", warden.__file__, str(Path(psutil.__file__).parents[1])],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as exc:  # such as an environment that lies in the home of another user
                ours.close()
                raise ConfigurationError(
                    f"{sys.executable} cannot be started to watch the servers: {exc.strerror}; use a Python"
                    " that this user can execute"
                ) from exc
        self._connection = ours
        self._replies = ours.makefile("r")
        self._lock = threading.Lock()
        self._asked = 0

    def ask(self, request: dict[str, object]) -> dict[str, object]:
        with self._lock:
            self._asked += 1
            try:
                self._connection.sendall(json.dumps({"id": self._asked, "ask": request}).encode() + b"\n")
                reply = self._reply_to(self._asked)
            except OSError:
                reply = None
        if reply is None:
            raise ConfigurationError("the process that watches the embedded servers was killed: start again")
        if "error" in reply:
            raise ConfigurationError(str(reply["error"]))
        return reply

    def _reply_to(self, number: int) -> dict[str, object] | None:
        # Ctrl-C between a request and its reply leaves that reply unread: it must not answer the next one.
        for line in self._replies:
            answer = json.loads(line)
            if answer["id"] == number:
                reply: dict[str, object] = answer["reply"]
                return reply
        return None

    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Have the warden end everything, and wait for it."""
        self._replies.close()
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_WAIT_S)

    def forget(self) -> None:
        """After a fork: the servers are the parent's; holding its socket would keep them alive."""
        self._replies.close()
        self._connection.close()
        self._process.returncode = 0  # not this process's child: never wait for it


_supervisor: _Supervisor | None = None
_supervisor_lock = threading.Lock()


def _get_supervisor() -> _Supervisor:
    global _supervisor  # noqa: PLW0603 - one warden per process
    with _supervisor_lock:
        if _supervisor is not None and not _supervisor.alive():
            _supervisor.close()
            _supervisor = None
        if _supervisor is None:
            _supervisor = _Supervisor()
        return _supervisor


def _after_fork_in_child() -> None:
    global _supervisor, _supervisor_lock  # noqa: PLW0603 - the child has no warden yet
    _supervisor_lock = threading.Lock()
    if _supervisor is not None:
        _supervisor.forget()
        _supervisor = None


def _at_exit() -> None:
    if _supervisor is not None:
        _supervisor.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)


def hold_directory(directory: Path) -> None:
    """Have the warden delete the directory should this process die."""
    _get_supervisor().ask({"hold": str(directory)})


def release_directory(directory: Path) -> None:
    """End what still runs from a held directory, and delete the directory."""
    scratch.kill_named_processes(directory)
    warden.remove_directory(directory)
    if _supervisor is not None and _supervisor.alive():
        _supervisor.ask({"release": str(directory)})


def spawn(what: Spawn) -> ServerProcess:
    """Start a server that ends with this process.

    Raises:
        ConfigurationError: it cannot be executed.
    """
    reply = _get_supervisor().ask(
        {"spawn": what.argv, **{k: v for k, v in asdict(what).items() if k != "argv"}}
    )
    try:
        process = psutil.Process(int(str(reply["pid"])))
        if process.create_time() != reply["created"]:
            return ServerProcess(None)
    except psutil.NoSuchProcess:
        return ServerProcess(None)
    return ServerProcess(process)
