"""A mixture of faults for a race: the same ones, by the same seed, for the guarded and the unguarded flow."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from lockguard_lab.exchange import Execution, Fault, FaultKind, Operation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["mixed_faults"]

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
    """One fault each for a share of the symbols, in the entry or the stop.

    A third are refusals that pass, a third answers that are lost after the order was executed, and a third
    are half orders that were never executed, half answers that come late.
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
