"""Runs a command as a child that ends when its parent does."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

__all__ = ["run"]

GRACE_S = 30.0
"""What a command may take to stop its servers once it is interrupted."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def run(
    argv: Sequence[str], *, cwd: Path, output: IO[str] | None = None, at_most_s: float | None = None
) -> int:
    """Run a command to its end; returns its exit status.

    Interrupted, it is interrupted once, whoever else got the signal, and has :data:`GRACE_S` to stop its
    servers. Where this process is killed, the command gets SIGTERM (on Linux).

    Args:
        argv: the command.
        cwd: where it runs.
        output: for what it prints; by default this process's own.
        at_most_s: seconds after which it is interrupted.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``at_most_s``, and was ended.
        OSError: it could not be started.
    """
    told = subprocess.STDOUT if output else None
    with subprocess.Popen(
        argv,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=told,
        process_group=0,
        preexec_fn=_can_be_ended,  # noqa: PLW1509 - no threads run here
    ) as child:
        try:
            return child.wait(at_most_s)
        except BaseException:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(GRACE_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second interrupt is not waited out
                os.killpg(child.pid, signal.SIGKILL)
            raise


def _can_be_ended() -> None:
    # A shell has its jobs in the background, and what they start, ignore SIGINT: all findings would be lost.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
