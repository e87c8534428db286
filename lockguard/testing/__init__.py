"""For tests of code that locks: a guard without a server, a clock that tests move, and real servers.

The servers and their faults are those of :mod:`lockguard_lab.servers`, found by the entry point
``lockguard.testing``: ``pip install 'lockguard[testing]'`` brings them.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from lockguard._nodes.memory import MemoryStore
from lockguard.testing._clock import FakeClock

__all__ = ["FakeClock", "MemoryStore"]

_GROUP = "lockguard.testing"


def __getattr__(name: str) -> Any:
    """A server, or another name that an installed package offers to tests.

    Raises:
        AttributeError: no package offers that name.
        ImportError: no package that offers names to tests is installed; the text names the extra.
    """
    if name.startswith("_"):
        raise AttributeError(name)
    offered = [point.load() for point in entry_points(group=_GROUP)]
    for package in offered:
        if name in package.__all__:
            return getattr(package, name)
    if not offered:
        raise ImportError(
            f"lockguard.testing has no {name!r} without lockguard-lab; pip install 'lockguard[testing]'"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
