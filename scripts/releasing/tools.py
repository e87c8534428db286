"""How the parts of a release call other programs and end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class Refused(Exception):
    """Something stands against this release: one line that names it and what to do."""


class ToolFailed(Exception):
    """A program that a release needs has failed; ``output`` is what it said."""

    def __init__(self, what: str, output: str) -> None:
        super().__init__(what)
        self.output = output


def say(text: str) -> None:
    """Tell what happens; beside what is printed for other programs to read."""
    print(f"scripts/release: {text}", file=sys.stderr, flush=True)


def run(*argv: str | Path, cwd: Path, env: Mapping[str, str] | None = None, umask: int = -1) -> str:
    """Run a program to its end and return what it printed; raises `ToolFailed`."""
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env=os.environ | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        umask=umask,
    )
    if done.returncode != 0:
        words = [Path(argv[0]).name, *map(str, argv[1:])]
        command = " ".join(words[:4]) + (" ..." if len(words) > 4 else "")
        said = (done.stdout + done.stderr).strip()
        raise ToolFailed(f"{command} failed with exit code {done.returncode}", said)
    return done.stdout
