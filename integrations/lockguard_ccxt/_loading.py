"""Loads an exchange's markets once for all who wait for them, so that who gives up ends nobody else's wait.

In ccxt all callers of ``load_markets`` await one task. One that is cancelled, or whose time is up, cancels
that task, and with it every other caller, who sees a cancel that nobody asked for. In older versions of ccxt
each order is such a caller, and waits while markets are reloaded: a stop that was about to be placed would be
cut off with the pass that reloaded them.
"""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["SharedLoading"]


class SharedLoading:
    """The ``load_markets`` of one ccxt exchange, to be called in place of its own.

    Args:
        exchange: from ``ccxt.async_support``.
        forget: what each load does first, in a context of its own: one caller's lease must not bound it.
    """

    def __init__(self, exchange: Any, forget: Iterable[Callable[[], object]]) -> None:
        self._exchange = exchange
        self._load = exchange.load_markets
        self._forget = tuple(forget)
        self._running: asyncio.Task[Any] | None = None
        self._waiting = 0
        self._loaded = False

    async def __call__(self, reload: bool = False, params: Any = None) -> Any:  # noqa: FBT001, FBT002 - as ccxt's
        """As ccxt's; markets that are loaded are given at once, also while they are reloaded."""
        if self._loaded and not reload and self._exchange.markets:
            return self._exchange.markets
        task = self._running
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            task = self._running = self._begin(reload, params)
            self._waiting = 0
        self._waiting += 1
        try:
            await asyncio.wait([task])
        finally:
            if task is self._running:
                self._waiting -= 1
                if not self._waiting and not task.done():
                    task.cancel()
                    self._running = None
        return task.result()

    def _begin(self, reload: bool, params: Any) -> asyncio.Task[Any]:  # noqa: FBT001 - as ccxt's
        context = copy_context()
        for forget in self._forget:
            context.run(forget)
        task = asyncio.get_running_loop().create_task(
            self._run(reload, {} if params is None else params), name="lockguard-markets", context=context
        )
        # Those who waited may all have been cancelled: nobody else retrieves its error then.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _run(self, reload: bool, params: Any) -> Any:  # noqa: FBT001 - as ccxt's
        task = asyncio.current_task()
        assert task is not None
        while True:
            try:
                loaded = await self._load(reload, params)
            except asyncio.CancelledError:
                if task.cancelling():
                    raise
                continue  # ccxt gave the end of an earlier load, whose last caller had left
            self._loaded = True
            return loaded
