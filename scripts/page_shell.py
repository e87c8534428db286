"""One shell for the console sessions of a page, so that what a command exports is there for the next."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

__all__ = ["LONGEST_S", "Shell", "end_processes", "tool"]

LONGEST_S = 60.0
"""A command that runs for longer fails its page."""


class Shell:
    """A bash that runs commands one by one, each with its output in a file of its own.

    Args:
        where: the directory in which the page's commands run.
        scratch: for the shell's own files.
        environment: of the commands.
    """

    def __init__(self, where: Path, scratch: Path, environment: Mapping[str, str]) -> None:
        self._scratch = scratch
        self._number = 0
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=where,
            env=dict(environment),
            text=True,
            start_new_session=True,
        )
        self._tell("set -m")  # a job gets Ctrl-C as in a terminal, where a script's would ignore it

    def run(self, code: str) -> tuple[str, int]:
        """What a command printed, and its exit status."""
        script, output, status = self._files(code)
        self._tell(f". {script} < /dev/null > {output} 2>&1; {self._told(status)}")
        self._wait(status.exists, code, output)
        return output.read_text("utf-8", "replace"), int(status.read_text())

    def until(self, code: str, enough: Callable[[str], bool]) -> tuple[str, int]:
        """What a command had printed when it was enough, and its exit status after Ctrl-C."""
        script, output, status = self._files(code)
        self._tell(f"(. {script}) < /dev/null > {output} 2>&1 &")
        deadline = time.monotonic() + LONGEST_S / 3
        while time.monotonic() < deadline:
            if output.exists() and enough(output.read_text("utf-8", "replace")):
                break
            time.sleep(0.02)
        printed = output.read_text("utf-8", "replace")
        self._tell(f"kill -INT %%; wait %%; {self._told(status)}")
        self._wait(status.exists, code, output)
        return printed, int(status.read_text())

    def close(self) -> None:
        """End the shell and whatever it has left in the background."""
        with contextlib.suppress(psutil.NoSuchProcess):
            left = psutil.Process(self._bash.pid).children(recursive=True)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            for process in psutil.wait_procs(left, timeout=5)[1]:
                process.kill()
        self._bash.kill()
        self._bash.wait()
        assert self._bash.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._bash.stdin.close()

    @staticmethod
    def _told(status: Path) -> str:
        return f"echo $? > {status}.new; mv {status}.new {status}"

    def _files(self, code: str) -> tuple[Path, Path, Path]:
        self._number += 1
        script, output, status = (
            self._scratch / f"{self._number}.{kind}" for kind in ("sh", "output", "status")
        )
        script.write_text(f"{code}\n", "utf-8")
        return script, output, status

    def _tell(self, line: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{line}\n")
        self._bash.stdin.flush()

    def _wait(self, done: Callable[[], bool], code: str, output: Path) -> None:
        deadline = time.monotonic() + LONGEST_S
        while not done():
            if self._bash.poll() is not None or time.monotonic() > deadline:
                why = "ended the shell" if self._bash.poll() is not None else f"took {LONGEST_S:.0f} s"
                printed = output.read_text("utf-8", "replace") if output.exists() else ""
                raise TimeoutError(f"{code!r} {why}; it printed:\n{printed}")
            time.sleep(0.01)


def end_processes(home: Path, within: float = 5) -> list[str]:
    """Kill what still runs with this home directory after some seconds; returns the commands."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("HOME") == str(home):
                left.append(process)
    told = []
    for process in psutil.wait_procs(left, timeout=within)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            told.append(" ".join(process.cmdline())[:100])
            process.kill()
    return told


def tool(folder: Path, name: str, program: str, arguments: str) -> None:
    """Put a command on the path that calls another with more arguments."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec {program} {arguments} "$@"\n')
    os.chmod(path, 0o700)
