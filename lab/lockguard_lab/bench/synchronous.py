"""What the guard for synchronous code costs: ``lockguard bench --sync``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import redis

from lockguard import sync
from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard_lab.bench.loops import run_on
from lockguard_lab.servers import RedisServer

__all__ = ["ASYNCHRONOUS", "REDIS_PY", "SYNCHRONOUS", "Speed", "measure_synchronous"]

ASYNCHRONOUS = "lockguard, async with"
SYNCHRONOUS = "lockguard.sync, with"
REDIS_PY = "redis-py, Lock that blocks"

_CYCLES = 300
_WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Speed:
    """How long one contender takes to lock and unlock what nobody else wants.

    Attributes:
        contender: who.
        fast_us: microseconds that one of twenty locks does not exceed: what other work on the machine adds
            is not in it.
        median_us: the median, in microseconds.
        ratio: of the medians, to the asynchronous guard.
    """

    contender: str
    fast_us: float
    median_us: float
    ratio: float


def measure_synchronous(rounds: int, loop: str) -> list[Speed]:
    """Measure the contenders in turns, on a server of their own.

    Args:
        rounds: turns of each.
        loop: the event loop of the asynchronous guard; the synchronous one has its own.
    """
    with (
        RedisServer() as server,
        sync.LockGuard.from_url(server.url) as guard,
        redis.Redis.from_url(server.url) as client,
    ):
        turns: dict[str, Callable[[], list[float]]] = {
            ASYNCHRONOUS: lambda: run_on(loop, _asynchronous(server.url)),
            SYNCHRONOUS: lambda: [_synchronous(guard) for _ in range(_CYCLES)],
            REDIS_PY: lambda: [_redis_py(client) for _ in range(_CYCLES)],
        }
        took_s: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(rounds + 1):  # the first one only warms up
            for name, turn in turns.items():
                took_s[name] += turn() if number else turn()[:0]
    for each in took_s.values():
        each.sort()
    beside = took_s[ASYNCHRONOUS]
    return [
        Speed(
            name,
            each[len(each) // 20] * 1e6,
            each[len(each) // 2] * 1e6,
            each[len(each) // 2] / beside[len(beside) // 2],
        )
        for name, each in took_s.items()
    ]


async def _asynchronous(url: str) -> list[float]:
    took_s = []
    async with LockGuard.from_url(url) as guard:
        for _ in range(_WARM_UP + _CYCLES):
            began = SYSTEM_CLOCK.now()
            async with guard.hold("bench:async"):
                pass
            took_s.append(SYSTEM_CLOCK.now() - began)
    return took_s[_WARM_UP:]


def _synchronous(guard: sync.LockGuard) -> float:
    began = SYSTEM_CLOCK.now()
    with guard.hold("bench:sync"):
        pass
    return SYSTEM_CLOCK.now() - began


def _redis_py(client: redis.Redis) -> float:
    began = SYSTEM_CLOCK.now()
    with client.lock("bench:redis-py", timeout=10):
        pass
    return SYSTEM_CLOCK.now() - began
