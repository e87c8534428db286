"""Measures the cost of holding many leases, and the cost of the decorator."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import timedelta
from types import FrameType
from typing import Any, Self

from lockguard._clock import SYSTEM_CLOCK
from lockguard._exclusive import exclusive
from lockguard._guard import LockGuard
from lockguard._nodes.wire import Wire
from lockguard._renewal import Keeper
from lockguard._scripts import EXTEND
from lockguard.events import Event, Renewed
from lockguard_lab.bench.figures import Renewal, Sizes
from lockguard_lab.bench.speed import in_turns

__all__ = ["decorator_us", "renewal"]

_TTL_S = 30
_RENEWAL = EXTEND.sha.encode()
_RENEWALS_PER_TTL = 3
_CALLS = 2000
_POLL_S = 0.01


class _Ticks:
    """Counts the rounds of renewal: a round is over when all leases have been renewed once more."""

    def __init__(self, leases: int) -> None:
        self.rounds = 0
        self.renewals = 0
        self._leases = leases
        self._next_round = asyncio.Event()

    def on(self, event: Event) -> None:
        """Count a renewal."""
        if not isinstance(event, Renewed):
            return
        self.renewals += 1
        if self.renewals % self._leases == 0:
            self.rounds += 1
            self._next_round.set()
            self._next_round.clear()

    async def more(self, rounds: int) -> None:
        """Wait for ``rounds`` more rounds."""
        before = self.rounds
        while self.rounds < before + rounds:
            await self._next_round.wait()


class _Sent:
    """What this thread's event loop sends to renew leases on the servers at these ports, in its block."""

    def __init__(self, ports: Collection[int], leases: int) -> None:
        self._ports = ports
        self._leases = leases
        self._seen: set[tuple[int, bytes]] = set()
        self.writes = 0
        """Writes with the renewal of a lease that had not been sent in this block."""
        self.repeated = False
        """Whether a renewal was sent to a server twice."""
        self.all = asyncio.Event()
        """Set when the renewals of all leases have been sent."""

    def __enter__(self) -> Self:
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        # Each flush with data is one write; the transport's own writes cannot be seen on uvloop.
        if event != "call" or frame.f_code is not Wire.flush.__code__:
            return
        wire = frame.f_locals["self"]
        if wire._transport is None:
            return
        port = wire._transport.get_extra_info("peername")[1]
        if port in self._ports:
            self._count([(port, command) for command in wire._unsent if _RENEWAL in command])

    def _count(self, renewals: Sequence[tuple[int, bytes]]) -> None:
        new = set(renewals) - self._seen
        self.repeated |= len(new) < len(renewals)
        self.writes += bool(new)
        self._seen |= new
        if len({command for _, command in self._seen}) == self._leases:
            self.all.set()


async def _writes_of_a_tick(keeper: Keeper, leases: int, ports: Collection[int]) -> int:
    """How many writes renew all leases, once they are due at one time.

    Leases that were granted over a longer time than a tick allows for are renewed in several ticks for ever,
    and so are leases of which some had to be asked for twice, which a slow answer is enough for.
    """
    apart = True
    while apart:
        with _Sent(ports, leases) as together:
            keeper.renew_now()
            while any(kept.asked is not None for kept in keeper._kept.values()):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(_POLL_S)
        apart = together.repeated
    with _Sent(ports, leases) as due:
        await due.all.wait()
    return due.writes


async def renewal(urls: Sequence[str], sizes: Sizes, ports: Collection[int]) -> Renewal:
    """Hold many leases and measure their renewal, and the checks between, on the servers at ``ports``."""
    long = timedelta(seconds=_TTL_S)
    async with LockGuard.from_urls(urls, ttl=long) as guard, _all_held(guard, sizes.leases):
        began, cpu_s = SYSTEM_CLOCK.now(), _cpu_s()
        await asyncio.sleep(sizes.watch_s)
        checking_share = (_cpu_s() - cpu_s) / (SYSTEM_CLOCK.now() - began)
    ticks = _Ticks(sizes.leases)
    ttl = timedelta(milliseconds=sizes.renewal_ttl_ms)
    async with LockGuard.from_urls(urls, ttl=ttl, observers=[ticks]) as guard, _all_held(guard, sizes.leases):
        await ticks.more(1)
        cpu_s, renewals = _cpu_s(), ticks.renewals
        await ticks.more(sizes.ticks)
        per_renewal_s = (_cpu_s() - cpu_s) / (ticks.renewals - renewals)
        return Renewal(
            writes_per_tick=await _writes_of_a_tick(guard._core.keeper, sizes.leases, ports),
            cpu_share=checking_share + per_renewal_s * sizes.leases * _RENEWALS_PER_TTL / _TTL_S,
        )


@asynccontextmanager
async def _all_held(guard: LockGuard, number: int) -> AsyncIterator[None]:
    done = asyncio.Event()
    held = asyncio.Semaphore(0)

    async def hold(name: str) -> None:
        async with guard.hold(name):
            held.release()
            await done.wait()

    async with asyncio.TaskGroup() as group:
        for lease in range(number):
            group.create_task(hold(f"bench:renewal:{lease}"))
        for _ in range(number):
            await held.acquire()
        try:
            yield
        finally:
            done.set()


async def decorator_us(sizes: Sizes) -> float:
    """How many microseconds a decorated call takes longer than ``hold`` around it; no server is asked."""
    free = _NoLock()

    async def plain(symbol: str, exchange: str, quantity: int = 1) -> int:  # noqa: ARG001 - as users have them
        return quantity

    async def by_hand(symbol: str, exchange: str) -> int:
        async with free.hold(f"{exchange}:{symbol}"):
            return await plain(symbol, exchange)

    decorated = exclusive("{exchange}:{symbol}", guard=lambda *_: free)(plain)

    def turn(call: Callable[..., Awaitable[int]]) -> Callable[[], Awaitable[float]]:
        async def calls() -> float:
            began = SYSTEM_CLOCK.now()
            for _ in range(_CALLS):
                await call("BTCUSDT", exchange="binance")
            return (SYSTEM_CLOCK.now() - began) / _CALLS * 1e6

        return calls

    took_us = await in_turns(sizes.rounds, {"decorated": turn(decorated), "by hand": turn(by_hand)})
    return took_us["decorated"] - took_us["by hand"]


class _NoLock:
    """Grants every lock at once."""

    def hold(self, resource: str, **_: Any) -> AbstractAsyncContextManager[Any]:  # noqa: ARG002 - as a guard's
        return nullcontext()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
