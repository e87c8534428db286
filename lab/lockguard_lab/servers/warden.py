"""The warden: a small process that starts the servers and outlives their owner just long enough to end them.

A server must not survive the program that started it, however that program ends: return, exception, Ctrl-C,
``kill -9``. Code inside the program cannot ensure that in the last case, so the servers are children of this
second process. It holds one end of a socket pair; the kernel closes the other end when the owner dies, in any
way, on every system. On that end-of-file the warden kills all servers and deletes their directories.

Details, each of which prevents a leak:

- The warden is a session of its own: Ctrl-C in the terminal reaches the owner alone, which may still use its
  servers while it cleans up.
- It spawns the servers itself. If the owner spawned them and registered them afterwards, a kill between the
  two steps would leave a server running.
- It has one thread, so ``PR_SET_PDEATHSIG`` (which watches the parent's *thread*, and is set last because a
  change of user resets it) ends the servers if the warden itself is killed.
- It is their reaper (``PR_SET_CHILD_SUBREAPER``): Postgres backends whose postmaster was killed become its
  children and are found. On other systems than Linux the tree is frozen and listed before it is killed.
- It locks each directory. A directory without that lock is a leftover, and the next run deletes it.

The file is run by its path, does not import the library, and needs psutil only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path += sys.argv[1:]  # where psutil is, if the isolated interpreter does not look there

import psutil

OWNER_FILE = "owner"
PIDS_FILE = "pids"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KILL_WAIT_S = 10.0
_SWEEPS_MAX = 50


def process_tree(root: psutil.Process) -> list[psutil.Process]:
    """The process and all its descendants, the root first; empty when it is gone."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def suspend_tree(root: psutil.Process) -> list[psutil.Process]:
    """Stop the process and all its descendants; returns them.

    A process group is not enough: Postgres backends are sessions of their own. The list is taken again
    until it does not grow, since a process that is not yet stopped may fork.
    """
    stopped: dict[int, psutil.Process] = {}
    for _ in range(_SWEEPS_MAX):
        fresh = [process for process in process_tree(root) if process.pid not in stopped]
        if not fresh:
            break
        for process in fresh:
            stopped[process.pid] = process
            _signal(process, signal.SIGSTOP)
    return list(stopped.values())


def kill_tree(root: psutil.Process) -> list[psutil.Process]:
    """Kill the process and all its descendants; returns those still there after a bounded wait."""
    doomed = suspend_tree(root)
    for process in doomed:
        _signal(process, signal.SIGKILL)
    _, alive = psutil.wait_procs(doomed, timeout=_KILL_WAIT_S)
    return alive


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def drop_shared_memory(data_directory: Path) -> None:
    """Remove the System V segment that a killed Postgres left (its ``postmaster.pid`` names it).

    Nothing else removes it once the data directory is gone. Linux only: elsewhere it is not certain that no
    process is attached to the segment, and 56 bytes stay until the next boot.
    """
    try:
        shared = (data_directory / "postmaster.pid").read_text().splitlines()[6].split()
        segments = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    except (OSError, IndexError):
        return
    for segment in segments:
        unattached = segment[6] == "0"
        if unattached and [int(segment[0]), int(segment[1])] == [int(number) for number in shared]:
            ctypes.CDLL(None).shmctl(int(segment[1]), 0, None)


def remove_directory(directory: Path) -> None:
    """Delete a server's directory and what the server left outside of it."""
    drop_shared_memory(directory / "data")
    shutil.rmtree(directory, ignore_errors=True)


class _Warden:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._held: dict[str, int] = {}
        self._prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def run(self) -> None:
        """Serve requests until the owner is gone, then end everything."""
        if self._prctl is not None:
            self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reaped by the kernel: a zombie would look alive
        try:
            with self._connection.makefile("r") as requests:
                for line in requests:
                    request = json.loads(line)
                    reply = {"id": request["id"], "reply": self._answer(request["ask"])}
                    self._connection.sendall(json.dumps(reply).encode() + b"\n")
        except OSError:
            pass  # the owner died between its request and our answer: the same as end-of-file
        finally:
            self._end()

    def _answer(self, request: dict[str, object]) -> dict[str, object]:
        match request:
            case {"hold": str(directory)}:
                return self._hold(directory)
            case {"release": str(directory)}:
                descriptor = self._held.pop(directory, None)
                if descriptor is not None:
                    os.close(descriptor)
                return {}
            case {
                "spawn": list(argv),
                "log": str(log),
                "cwd": str(cwd),
                "env": dict(env),
                "uid": uid,
                "gid": gid,
            }:
                return self._spawn([str(word) for word in argv], log, cwd, env, uid, gid)
            case _:
                return {"error": f"unknown request {sorted(request)}"}

    def _hold(self, directory: str) -> dict[str, object]:
        try:
            descriptor = os.open(Path(directory, OWNER_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return {"error": f"{directory}: {error.strerror}"}
        self._held[directory] = descriptor
        return {}

    def _spawn(
        self, argv: list[str], log: str, cwd: str, env: dict[str, str], uid: object, gid: object
    ) -> dict[str, object]:
        # For the owner alone: a server's log may quote what clients sent.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        user = uid if isinstance(uid, int) else None
        group = gid if isinstance(gid, int) else None
        try:
            with open(os.open(log, flags, 0o600), "ab") as output:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=cwd,
                    env=env,
                    user=user,
                    group=group,
                    extra_groups=None if user is None else [],
                    preexec_fn=self._in_child,  # noqa: PLW1509 - this process has one thread
                )
        except OSError as error:
            return {"error": f"{argv[0]}: {error.strerror}"}
        try:
            created = psutil.Process(process.pid).create_time()
        except psutil.NoSuchProcess:
            created = 0.0  # it ended at once; its log says why
        with open(os.open(Path(cwd, PIDS_FILE), flags, 0o600), "a") as pids:
            pids.write(f"{process.pid} {created}\n")
        return {"pid": process.pid, "created": created}

    def _in_child(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        if self._prctl is not None:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def _end(self) -> None:
        me = psutil.Process()
        for _ in range(_SWEEPS_MAX):
            children = me.children()
            if not children:
                break
            for child in children:
                kill_tree(child)
        for directory in self._held:
            remove_directory(Path(directory))


if __name__ == "__main__":
    _Warden(socket.socket(fileno=0)).run()
