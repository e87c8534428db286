"""Where a guard lives: in one event loop of one process at a time.

A guard is often made where its module is imported, before any event loop runs, and outlives several: one for
each ``asyncio.run``, test, task of Celery or lifespan of an application. What it is made of (connections,
timers, renewals) lives in one loop and ends with it. So a guard makes these parts anew whenever it is first
used in a loop after its last one was closed, or in a process after a fork.

What must never happen:

* Two loops use one set of parts. While the last loop is not closed, another one is refused.
* Two processes use one connection: they would read each other's replies. The parts from before a fork are
  kept for ever in the child and never touched again: to finalize a copy of the parent's event loop would
  change what the parent's own loop listens to, for they share it in the kernel.
* A lease of a loop that is gone passes for held. It is marked as lost; its lock in Redis runs out.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from lockguard._context import note_task
from lockguard._lease import PROCESS, Lease
from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from lockguard._core import Core

__all__ = ["Binding"]

_inherited: list[Core] = []
"""The parts that were in use when this process was forked; see above."""

_lock = threading.Lock()
"""Held while a guard is bound: two threads that begin at the same time must not both have it."""


def _forget_lock() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it during the fork
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


class Binding:
    """The parts of one guard, and the event loop and process that they are bound to.

    Args:
        make: makes a set of parts.
        again: whether it can make another one.

    Attributes:
        core: the present parts.
    """

    def __init__(self, make: Callable[[], Core], *, again: bool) -> None:
        self._make = make
        self._again = again
        self._closed = False
        self.core = make()
        self.lease_type: type[Lease] = Lease
        """The class of the leases that holds give."""

    def enter(self) -> tuple[Core, asyncio.Task[Any]]:
        """The parts for the running event loop, and the running task.

        Raises:
            ConfigurationError: no task runs, the guard is closed, or it is in use in another event loop.
        """
        task = note_task()
        if task is None:
            raise _no_task()
        core, loop = self.core, task.get_loop()
        # As Core.serves(), without the call: each hold comes here.
        if core.loop is loop and core.pid == PROCESS.id and not core.closed:
            return core, task
        if self._closed:
            raise ConfigurationError(
                "this guard is closed; `async with guard:` opens it again, or make a new one"
            )
        return self._bind(loop), task

    async def open(self) -> Core:
        """As :meth:`enter`, but opens a closed guard again.

        Raises:
            ConfigurationError: no task runs, or the guard is in use in another event loop.
        """
        if (task := note_task()) is None:
            raise _no_task()
        loop = task.get_loop()
        if self.core.closed and self.core.in_own_loop:
            await self.core.aclose()  # which may be under way
        core = self.core if self.core.serves(loop) else self._bind(loop)
        self._closed = False
        return core

    async def aclose(self) -> None:
        """Close the guard. In another loop than its own there is nothing to close, once its own has ended.

        Raises:
            ConfigurationError: no task of asyncio runs, or it is in use in another event loop.
        """
        core = self.core
        if core.loop is None and note_task() is None:  # as under trio, which would end it half way
            raise _no_task()
        if core.loop is None or core.in_own_loop:
            self._closed = True
            await core.aclose()
        elif core.pid != PROCESS.id:  # its parts are the parent's
            self._closed = True
        else:
            self._leave(core, "close it there, as `async with guard:` does")
            self._closed = True

    def _bind(self, loop: asyncio.AbstractEventLoop) -> Core:
        with _lock:
            core = self.core
            if core.serves(loop):
                return core
            if core.loop is None and not core.closed and (core.pid == PROCESS.id or not self._again):
                core.bind(loop)
                return core
            if not self._again:
                raise ConfigurationError(_once_only(core))
            if core.pid != PROCESS.id:
                _inherit(core, loop)
            elif core.loop is not None:
                self._leave(
                    core,
                    "make one guard for each loop that runs at the same time, take lockguard.sync, which"
                    " serves every thread, or let that one be closed first, as asyncio.run() does",
                )
            self.core = self._make()
            self.core.bind(loop)
            return self.core

    def _leave(self, core: Core, remedy: str) -> None:
        """Give up the parts of a loop that has ended.

        Raises:
            ConfigurationError: it has not ended.
        """
        assert core.loop is not None
        if core.loop.is_closed():
            core.abandon()
        elif not core.ended:
            raise ConfigurationError(f"this guard belongs to another event loop{_where(core)}; {remedy}")


def _no_task() -> ConfigurationError:
    return ConfigurationError(
        "a guard is used inside a running asyncio task, for example under asyncio.run(); in code without one,"
        " use lockguard.sync"
    )


def _once_only(core: Core) -> str:
    what = (
        "was first used before a fork"
        if core.pid != PROCESS.id
        else "is closed"
        if core.closed
        else f"belongs to another event loop{_where(core)}"
    )
    return (
        f"this guard {what}, and it was made of nodes, which cannot be made again: give LockGuard() a"
        " function that returns new nodes, or make one guard for each event loop and process"
    )


def _inherit(core: Core, loop: asyncio.AbstractEventLoop) -> None:
    if core.loop is loop:
        raise ConfigurationError(
            "this guard was first used before a fork, in the event loop that runs here too, as a copy of the"
            " parent's: run a new one in the child process, as asyncio.run() does"
        )
    if core.loop is not None:
        _inherited.append(core)


def _where(core: Core) -> str:
    assert core.loop is not None
    if core.closed:
        return ", in which it is being closed"
    if core.loop.is_closed():
        return ", which was closed"
    if not core.loop.is_running():
        return ", which was stopped and not closed"
    held = len(core.keeper)
    return f", which still runs and in which it holds {held} lease(s)" if held else ", which still runs"
