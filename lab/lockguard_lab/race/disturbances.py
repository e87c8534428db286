"""The disturbances of a race: faults of the exchange, and leases that end under their holders.

The same seed gives the guarded and the unguarded flow the same faults. A lock is removed in Redis alone, as
by lost data or a failover, so the holder goes on in good faith until its next renewal, and only the fence
protects its successor.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from lockguard import LockGuard
from lockguard_ccxt import resource_key
from lockguard_lab.exchange import Execution, Fault, FaultKind, Operation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from lockguard_lab.race.settings import RaceSettings

__all__ = ["Expiry", "mixed_faults"]

_HOLD_MS = 500
_CALLS = (Operation.CREATE_ORDER, Operation.CREATE_ALGO)
_PASSING = (FaultKind.RATE_LIMITED, FaultKind.OVERLOADED, FaultKind.CLOCK)
_IN_DOUBT = (
    FaultKind.UNAVAILABLE,
    FaultKind.TIMEOUT,
    FaultKind.HANG,
    FaultKind.DISCONNECT,
    FaultKind.TRUNCATED,
)


def mixed_faults(symbols: Sequence[str], share: float, seed: int) -> Iterator[Fault]:
    """One fault for each of a share of the symbols, in the entry or the stop.

    A third are temporary refusals, a third are answers lost after the order was executed; the last third are
    one half orders that were never executed, one half late answers.
    """
    dice = random.Random(f"faults/{seed}")  # noqa: S311 - a schedule
    for symbol in symbols:
        hit, call, sort, half = dice.random(), dice.choice(_CALLS), dice.randrange(3), dice.random()
        passing, lost = dice.choice(_PASSING), dice.choice(_IN_DOUBT)
        if hit >= share:
            continue
        if sort == 0:
            yield Fault(passing, call, Execution.NEVER, symbol=symbol)
        elif sort == 1:
            yield Fault(lost, call, Execution.FIRST, symbol=symbol, hold_ms=_HOLD_MS)
        elif half < 1 / 2:
            yield Fault(lost, call, Execution.NEVER, symbol=symbol, hold_ms=_HOLD_MS)
        else:
            yield Fault(FaultKind.DELAY, call, Execution.FIRST, symbol=symbol, hold_ms=_HOLD_MS)


_GAP_S = 0.02
_VENUE = "binance"


class Expiry:
    """Takes away leases of random symbols while its body runs, if the settings ask for that.

    Args:
        settings: the settings of the race.
        symbols: the symbols of the round.
        seed: the seed of the random choices.

    Attributes:
        count: how many leases were taken from a holder.
    """

    def __init__(self, settings: RaceSettings, symbols: Sequence[str], seed: int) -> None:
        self._settings = settings
        self._resources = [resource_key(_VENUE, symbol) for symbol in symbols]
        self._dice = random.Random(seed)  # noqa: S311 - a schedule
        self._stack = AsyncExitStack()
        self.count = 0

    async def __aenter__(self) -> Self:
        if self._settings.expire_leases:
            guard = await self._stack.enter_async_context(LockGuard.from_urls(self._settings.redis_urls))
            task = asyncio.create_task(self._go_on(guard), name="expiry of leases")
            self._stack.push_async_callback(asyncio.wait, {task})
            self._stack.callback(task.cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _go_on(self, guard: LockGuard) -> None:
        while True:
            await asyncio.sleep(self._dice.uniform(0, 2 * _GAP_S))
            broken = await guard.break_(self._dice.choice(self._resources), reason="race: forced expiry")
            self.count += bool(broken.grant)
