"""The event loops of the benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from lockguard import _interrupt as interrupt
from lockguard.errors import ConfigurationError

__all__ = ["LOOPS", "current_loop", "loop_factory", "run_on"]

T = TypeVar("T")

LOOPS = ("asyncio", "uvloop")


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of the event loop of this name.

    Raises:
        ConfigurationError: that event loop is not installed.
    """
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop  # noqa: PLC0415 - only who asks for it needs it
    except ImportError as exc:
        raise ConfigurationError("uvloop is not installed: pip install uvloop, or --loop asyncio") from exc
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def run_on(name: str, work: Coroutine[Any, Any, T]) -> T:
    """Like :func:`lockguard._interrupt.run`, on the event loop of this name."""
    return interrupt.run(work, loop_factory=loop_factory(name))


def current_loop() -> str:
    """The name of the running event loop."""
    module = type(asyncio.get_running_loop()).__module__
    return "uvloop" if module.partition(".")[0] == "uvloop" else "asyncio"
