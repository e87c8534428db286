"""Locks among processes that record evidence in one checkout; whoever ends gives its own back."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["alone", "claimed"]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until nobody else writes runs into a folder: two who read, add and write would lose one's."""
    with (folder / ".saving.lock").open("ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed(folder: Path, command: str, first: int, last: int) -> Iterator[bool]:
    """Whether these seeds of a command are this process's to run, and keep them so meanwhile."""
    name = hashlib.sha256(command.encode()).hexdigest()[:8]
    with (folder / f".seeds-{name}.lock").open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, last - first + 1, first)
        except (BlockingIOError, PermissionError):
            yield False
            return
        yield True
