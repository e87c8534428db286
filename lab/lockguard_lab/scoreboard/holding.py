"""Holders and callers of one way to lock, as tasks of this process, and the links to the lock's servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from urllib.parse import urlsplit

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.bench.holders.choose import EVERY
from lockguard_lab.bench.holders.ways import Place, Way
from lockguard_lab.servers import FaultProxy

__all__ = ["Call", "cut_off", "free_after_s", "linked", "opened", "within"]

_LEAVE_S = 10.0


class Call:
    """One call for a lock, in a task of its own: it enters, stays until it may leave, writes once and leaves.

    Attributes:
        entered_at: when its body began; ``None`` before.
        ended_at: when the call was over; ``None`` before.
        error: what it raised.
        wrote: whether its write was accepted; ``None`` if it made none.
    """

    def __init__(self, way: Way, *, status: str = "", stays: bool = True) -> None:
        self.entered_at: float | None = None
        self.ended_at: float | None = None
        self.error: BaseException | None = None
        self.wrote: bool | None = None
        self._status = status
        self._entered, self._may_leave = asyncio.Event(), asyncio.Event()
        if not stays:
            self._may_leave.set()
        self.task = asyncio.create_task(self._hold(way))

    async def _hold(self, way: Way) -> None:
        try:
            async with way.held() as write:
                self.entered_at = SYSTEM_CLOCK.now()
                self._entered.set()
                await self._may_leave.wait()
                if self._status:
                    await self._write(write)
        except asyncio.CancelledError as cancelled:
            self.error = cancelled
        except Exception as error:  # noqa: BLE001 - whatever a library raises is what is told of it
            self.error = error
        finally:
            self.ended_at = SYSTEM_CLOCK.now()
            self._entered.set()

    async def _write(self, write: object) -> None:
        try:
            await write(self._status)  # type: ignore[operator]
            self.wrote = True
        except Exception:
            self.wrote = False
            raise

    @property
    def inside(self) -> bool:
        """Whether its body runs now."""
        return self.entered_at is not None and self.ended_at is None

    async def entered(self, patience_s: float) -> bool:
        """Wait until its body has begun, or the call is over; whether it began."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._entered.wait()
        return self.entered_at is not None

    def leave(self) -> None:
        """Let its body end."""
        self._may_leave.set()

    async def over(self, patience_s: float = _LEAVE_S) -> None:
        """Let it leave, and wait until it has; what does not end is cancelled."""
        self.leave()
        await asyncio.wait({self.task}, timeout=patience_s)
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=patience_s)

    @property
    def told(self) -> str:
        """The error that it ended with, by its name."""
        return "nothing" if self.error is None else type(self.error).__name__


@asynccontextmanager
async def opened(name: str, place: Place, ttl_s: int, resource: str) -> AsyncIterator[Way]:
    """A client of a way of its own, which locks ``resource``."""
    async with EVERY[name](place, ttl_s) as way:
        way.resource = f"{name}:{resource}"
        yield way


@asynccontextmanager
async def linked(name: str, place: Place) -> AsyncIterator[tuple[Place, list[FaultProxy]]]:
    """The same servers, those that keep the lock behind links that can be cut."""
    server = EVERY[name].server
    async with AsyncExitStack() as stack:
        if name == "lockguard-quorum":
            proxies = [await stack.enter_async_context(FaultProxy(_port(url))) for url in place.quorum]
            urls = [proxy.url_for(url) for proxy, url in zip(proxies, place.quorum, strict=True)]
            yield replace(place, quorum=tuple(urls)), proxies
            return
        proxy = await stack.enter_async_context(FaultProxy(_port(place.url(server))))
        yield place.at(server, proxy.url_for(place.url(server))), [proxy]


@asynccontextmanager
async def cut_off(proxies: list[FaultProxy]) -> AsyncIterator[None]:
    """No connection, and no new one, for the length of the body."""
    for proxy in proxies:
        proxy.refuse()
        proxy.reset()
    try:
        yield
    finally:
        for proxy in proxies:
            await proxy.start()


async def free_after_s(way: Way, bound_s: float) -> float | None:
    """Seconds until another client has the lock; ``None`` if it has not within ``bound_s``."""
    began = SYSTEM_CLOCK.now()
    call = Call(way, stays=False)
    had = await call.entered(bound_s)
    taken = None if call.entered_at is None or not had else call.entered_at - began
    if not had:
        call.task.cancel()
    await call.over()
    return taken


async def within(task: asyncio.Future[None], patience_s: float) -> bool:
    """Whether a task is done within so long."""
    await asyncio.wait({task}, timeout=patience_s)
    return task.done()


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port
