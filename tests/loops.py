"""Event loops of each kind, run to their end in each way, for tests that are no coroutines themselves."""

from __future__ import annotations

import asyncio
import gc
import os
import stat
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

__all__ = ["ENDINGS", "close_only", "open_sockets", "run"]

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``."""
    return asyncio.run(work)


def run_debugging(work: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run`` in debug mode."""
    return asyncio.run(work, debug=True)


def run_uvloop(work: Coroutine[Any, Any, T]) -> T:
    """As ``uvloop.run``."""
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed, so nothing is tried on it here")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def close_only(work: Coroutine[Any, Any, T]) -> T:
    """Run one coroutine in a new loop of asyncio, and close that without a last turn, as much code does."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


ENDINGS: list[Callable[[Coroutine[Any, Any, Any]], Any]] = [run, run_debugging, run_uvloop, close_only]
"""Each runs a coroutine in an event loop of its own, to the end of that loop."""


def open_sockets() -> int:
    """How many sockets this process has open, once what is garbage has been collected."""
    gc.collect()
    found = 0
    for descriptor in range(1024):
        try:
            found += stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        except OSError:
            continue
    return found
