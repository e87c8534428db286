"""What observers cost: ``lockguard bench --observers``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from lockguard._audience import Audience
from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard._lease import Grant, Resource, Token, new_grant_id
from lockguard.events import Acquired, Event, Released
from lockguard.observe import LogObserver
from lockguard_lab.bench.speed import in_turns
from lockguard_lab.servers import RedisServer
from lockguard_metrics import OpenTelemetryObserver, PrometheusObserver

if TYPE_CHECKING:
    from lockguard.ports import Observer

__all__ = ["NONE", "Cost", "measure_observers", "own_work"]

NONE = "none"
_LOCKS = 1_000
_CYCLES = 300


@dataclass(frozen=True, slots=True)
class Cost:
    """What one observer costs.

    Attributes:
        observer: its name; ``none`` for a guard without observers.
        own_us: its work for the events of one lock, in microseconds: the least of all rounds.
        hold_us: a hold and its release by one task, in microseconds: the median.
        ratio: to a hold without observers.
    """

    observer: str
    own_us: float
    hold_us: float
    ratio: float


def _observers() -> dict[str, list[Observer]]:
    return {
        NONE: [],
        "log": [LogObserver()],
        "prometheus": [PrometheusObserver(CollectorRegistry())],
        "opentelemetry (no SDK)": [OpenTelemetryObserver()],
    }


async def measure_observers(rounds: int) -> list[Cost]:
    """Measure each observer in turns, on a server of its own."""
    with RedisServer() as server:
        guards = {
            name: LockGuard.from_url(server.url, observers=observers)
            for name, observers in _observers().items()
        }
        try:
            turns: Mapping[str, Callable[[], Awaitable[float]]] = {
                name: _turn(guard, name) for name, guard in guards.items()
            }
            holds_us = await in_turns(rounds, turns)
        finally:
            for guard in guards.values():
                await guard.aclose()
    idle_us = own_work([], rounds)
    return [
        Cost(
            name,
            max(0.0, own_work(observers, rounds) - idle_us) if observers else 0.0,
            holds_us[name],
            holds_us[name] / holds_us[NONE],
        )
        for name, observers in _observers().items()
    ]


def own_work(observers: list[Any], rounds: int) -> float:
    """What telling the events of one lock takes, in microseconds: the least of ``rounds`` and a few more."""
    events = [
        event
        for grant in (
            Grant(Resource(f"binance:A{number}"), new_grant_id(), Token(41), "h:1/T", "open", 10_000)
            for number in range(_LOCKS)
        )
        for event in (Acquired(grant, 0.4, 0.2), Released(grant, 1.2, found=True, margin_ms=9_900.0))
    ]
    tell = Audience[Event](observers, clock=SYSTEM_CLOCK).tell
    least_s = float("inf")
    for _ in range(rounds + 5):
        began = SYSTEM_CLOCK.now()
        for event in events:
            tell(event)
        least_s = min(least_s, SYSTEM_CLOCK.now() - began)
    return least_s / _LOCKS * 1e6


def _turn(guard: LockGuard, name: str) -> Callable[[], Awaitable[float]]:
    async def one_by_one() -> float:
        took_s = []
        for _ in range(_CYCLES):
            began = SYSTEM_CLOCK.now()
            async with guard.hold(f"bench:{name}"):
                pass
            took_s.append(SYSTEM_CLOCK.now() - began)
        took_s.sort()
        return took_s[len(took_s) // 2] * 1e6

    return one_by_one
