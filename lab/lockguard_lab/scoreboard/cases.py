"""The cases: each does one thing to a way to lock on its servers, and says what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from urllib.parse import unquote, urlsplit

import redis.asyncio

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.bench.figures import percentile
from lockguard_lab.bench.holders.choose import EVERY
from lockguard_lab.bench.holders.measure import cycle_us
from lockguard_lab.bench.holders.scenarios import Scenario
from lockguard_lab.bench.holders.ways import Place
from lockguard_lab.bench.monitor import Keeper, watch
from lockguard_lab.bench.waiting import inversions
from lockguard_lab.scoreboard.found import Found, Verdict, seconds
from lockguard_lab.scoreboard.holding import Call, cut_off, free_after_s, linked, opened, within
from lockguard_lab.scoreboard.strangers import STRANGERS
from lockguard_lab.servers import Flow

__all__ = ["CASES", "Case", "Trial"]

_LATE = Flow(latency=timedelta(milliseconds=40))
_STEPS = 5
_CROWD = 20
_SOON_S = 0.5
_CYCLES = 50
_THREADS = {"python-redis-lock"}
"""Ways that are for threads, whose calls no task can cancel."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to lock, on its servers.

    Attributes:
        way: its name.
        place: the servers; the database has the bot's table, and the fence.
        ttl_s: of its lock, if it has one.
        rounds: of what is measured several times.
    """

    way: str
    place: Place
    ttl_s: int
    rounds: int

    @property
    def bound_s(self) -> float:
        """How long something is waited for that may never come."""
        return 2.0 * self.ttl_s + 2

    @property
    def expires(self) -> bool:
        """Whether its lock has a ttl."""
        return EVERY[self.way].server != "Postgres"

    def found(self, case: str, verdict: Verdict, told: str, taken_s: float | None = None) -> Found:
        """A cell of the board."""
        return Found(self.way, EVERY[self.way].label, case, verdict, told, taken_s)


async def cancel(trial: Trial) -> Found:
    """A caller is cancelled while its request is under way, at one step of it after the other."""
    if trial.way in _THREADS:
        return trial.found("cancel", "-", "for threads, which cannot be cancelled")
    worst = 0.0
    async with linked(trial.way, trial.place) as (place, proxies):
        for step in range(_STEPS):
            resource = f"cancel-{step}"
            async with (
                opened(trial.way, place, trial.ttl_s, resource) as way,
                opened(trial.way, trial.place, trial.ttl_s, resource) as other,
            ):
                await Call(way, stays=False).task
                for proxy in proxies:
                    proxy.to_client.set(_LATE)
                call = Call(way)
                entered = await call.entered(0.02 + 0.04 * step)
                if not entered:
                    call.task.cancel()
                    await within(call.task, trial.bound_s)
                for proxy in proxies:
                    proxy.to_client.set(Flow())
                if entered:
                    await call.over()
                    break
                free_s = await free_after_s(other, trial.bound_s)
                worst = max(worst, trial.bound_s if free_s is None else free_s)
    if worst >= trial.bound_s:
        return trial.found("cancel", "no", f"it stays locked: not free in {seconds(worst)}", worst)
    if worst > _SOON_S:
        return trial.found("cancel", "no", f"the lock is left behind for {seconds(worst)}", worst)
    return trial.found("cancel", "yes", f"free after {seconds(worst)}", worst)


async def lost_reply(trial: Trial) -> Found:
    """The connection breaks when the server has executed a request and its answer is on the way."""
    worst: Found | None = None
    async with linked(trial.way, trial.place) as (place, proxies):
        for step in range(3):
            resource = f"lost-{step}"
            async with (
                opened(trial.way, place, trial.ttl_s, resource) as way,
                opened(trial.way, trial.place, trial.ttl_s, resource) as other,
            ):
                await Call(way, stays=False).task
                for proxy in proxies:
                    proxy.to_client.set(_LATE)
                call = Call(way)
                if await call.entered(0.02 + 0.04 * step):
                    for proxy in proxies:
                        proxy.to_client.set(Flow())
                    await call.over()
                    break
                for proxy in proxies:
                    proxy.reset()
                    proxy.to_client.set(Flow())
                began = SYSTEM_CLOCK.now()
                found = await _after_loss(trial, call, began)
                if found.verdict == "no":
                    free_s = await free_after_s(other, trial.bound_s)
                    left = "locked for good" if free_s is None else f"free after {seconds(free_s)}"
                    found = trial.found("lost-reply", "no", f"{found.told}; {left}", free_s)
                await call.over()
                order = ("yes", "late", "no")
                if worst is None or order.index(found.verdict) > order.index(worst.verdict):
                    worst = found
    return worst or trial.found("lost-reply", "-", "its request was over before it could be cut")


async def _after_loss(trial: Trial, call: Call, began: float) -> Found:
    if await call.entered(trial.bound_s) and call.entered_at is not None:
        took_s = call.entered_at - began
        verdict: Verdict = "yes" if took_s <= _SOON_S else "late"
        return trial.found("lost-reply", verdict, f"the caller has it after {seconds(took_s)}", took_s)
    if call.ended_at is None:
        return trial.found("lost-reply", "no", f"the caller has it not in {seconds(trial.bound_s)}")
    return trial.found("lost-reply", "no", f"the caller gets {call.told}")


async def stopped(trial: Trial) -> Found:
    """A holder is stopped beyond its ttl, and its late write comes when it goes on."""
    found = await Scenario(trial.way, trial.place, trial.ttl_s, trial.ttl_s + 3).stopped(1)
    (late,) = found.late_write
    told = "; ".join(found.told) or "nothing"
    if not found.during_stop[0]:
        said = f"nobody gets in until it goes on ({seconds(found.waited_s)}); its write is {late}"
        return trial.found("stopped", "late", said, found.waited_s)
    verdict: Verdict = "no" if late == "overwrote" else "yes"
    return trial.found(
        "stopped", verdict, f"the late write: {late}; the holder is told: {told}", found.waited_s
    )


async def wiped(trial: Trial) -> Found:
    """All data of the servers in Redis are lost while a lock is held, and somebody asks for it."""
    if EVERY[trial.way].server != "Redis":
        return trial.found(
            "wiped", "-", "its server keeps locks through a crash, or ends them with their sessions"
        )
    urls = trial.place.quorum if trial.way == "lockguard-quorum" else (trial.place.redis,)
    async with (
        opened(trial.way, trial.place, trial.ttl_s, "wiped") as way,
        opened(trial.way, trial.place, trial.ttl_s, "wiped") as other,
    ):
        holder = Call(way, status="late")
        await holder.entered(trial.bound_s)
        for url in urls:
            async with redis.asyncio.from_url(url) as client:
                await client.flushall()
        began = SYSTEM_CLOCK.now()
        successor = Call(other, status="successor", stays=False)
        got_in = await successor.entered(trial.ttl_s + 1.0)
        await within(holder.task, _SOON_S)  # how long may it believe that it holds
        both = got_in and holder.inside
        alone_s = None if holder.ended_at is None else holder.ended_at - began
        await successor.over()
        await holder.over()
        if both:
            late = "overwrites" if holder.wrote else "is refused"
            return trial.found("wiped", "no", f"two hold it at once; the first one's write {late}", None)
        told = "keeps it" if alone_s is None else f"is cut after {seconds(max(alone_s, 0.0))}"
        then = "the next gets in" if got_in else f"nobody gets in for {trial.ttl_s + 1} s"
        verdict: Verdict = "late" if not got_in and alone_s is not None else "yes"
        return trial.found("wiped", verdict, f"the holder {told}; {then}", alone_s)


async def waiter_killed(trial: Trial) -> Found:
    """The first of two waiting processes is killed, and then the lock is given back."""
    took_s = await Scenario(trial.way, trial.place, trial.ttl_s, trial.ttl_s + 3).waiter_killed_s()
    verdict: Verdict = "yes" if took_s <= _SOON_S else "late"
    return trial.found("waiter-killed", verdict, f"the second has it after {seconds(took_s)}", took_s)


async def wake_up(trial: Trial) -> Found:
    """A waiter's connection breaks for 0.3 s, in which the lock is given back."""
    async with linked(trial.way, trial.place) as (place, proxies), AsyncExitStack() as stack:
        holding = await stack.enter_async_context(opened(trial.way, trial.place, trial.ttl_s, "wake-up"))
        waiting = await stack.enter_async_context(opened(trial.way, place, trial.ttl_s, "wake-up"))
        holder = Call(holding)
        await holder.entered(trial.bound_s)
        waiter = Call(waiting)
        await asyncio.sleep(_SOON_S)
        async with cut_off(proxies):
            await holder.over()
            await asyncio.sleep(0.3)
        began = SYSTEM_CLOCK.now()
        await waiter.entered(trial.bound_s)
        entered_at, error = waiter.entered_at, waiter.error
        await waiter.over()
        if entered_at is None:
            told = f"gets {type(error).__name__}" if error else f"has it not in {seconds(trial.bound_s)}"
            return trial.found("wake-up", "no", f"the waiter {told}")
        took_s = max(entered_at - began, 0.0)
        verdict: Verdict = "yes" if took_s <= 2 * _SOON_S else "late"
        return trial.found("wake-up", verdict, f"the waiter has it after {seconds(took_s)}", took_s)


async def herd(trial: Trial) -> Found:
    """Twenty tasks wait, in a known order, and each holds the lock for 10 ms."""
    async with AsyncExitStack() as stack:
        holding = await stack.enter_async_context(opened(trial.way, trial.place, trial.ttl_s, "herd"))
        crowd = await stack.enter_async_context(opened(trial.way, trial.place, trial.ttl_s, "herd"))
        in_redis = EVERY[trial.way].server == "Redis"
        urls = trial.place.quorum if trial.way == "lockguard-quorum" else (trial.place.redis,)
        keepers = [await _keeper(stack, url) for url in urls if in_redis]
        monitor = await stack.enter_async_context(watch(keepers))
        served: list[int] = []

        async def one(place: int) -> None:
            async with crowd.held():
                served.append(place)
                await asyncio.sleep(0.01)

        holder = Call(holding)
        await holder.entered(trial.bound_s)
        tasks = []
        for place in range(_CROWD):
            tasks.append(asyncio.create_task(one(place)))
            await asyncio.sleep(0.03)
        await monitor.take()
        holder.leave()
        began = SYSTEM_CLOCK.now()
        await asyncio.wait(tasks, timeout=60)
        took_s = SYSTEM_CLOCK.now() - began
        commands = len(await monitor.take())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await holder.over()
    overtaken = inversions(served)
    asked = f"{commands / _CROWD / len(keepers):.1f} requests" if keepers else "requests not counted"
    order = "in order" if overtaken == 0 else f"{overtaken} of {_CROWD} overtaken"
    unserved = f", {_CROWD - len(served)} not served" if len(served) < _CROWD else ""
    verdict: Verdict = "no" if unserved else "yes" if overtaken == 0 else "late"
    told = f"{asked} and {seconds(took_s / _CROWD)} a hand-over, {order}{unserved}"
    return trial.found("herd", verdict, told, took_s / _CROWD)


async def killed(trial: Trial) -> Found:
    """A holder's process is killed; somebody waits."""
    scenario = Scenario(trial.way, trial.place, trial.ttl_s, trial.ttl_s + 3)
    taken = sorted([await scenario.killed_s(1) for _ in range(trial.rounds)])
    p50, p99 = median(taken), percentile(taken, 0.99)
    verdict: Verdict = "yes" if p99 <= _SOON_S else "late"
    told = f"p50 {seconds(p50)}, p99 {seconds(p99)} of {trial.rounds}, ttl {trial.ttl_s} s"
    return trial.found("killed", verdict, told if trial.expires else told.partition(", ttl")[0], p99)


async def stranger(trial: Trial) -> Found:
    """A client that does not hold the lock calls the library's release for it."""
    call_it = STRANGERS.get(trial.way)
    if call_it is None:
        return trial.found("stranger", "yes", "there is no call that releases by name")
    async with opened(trial.way, trial.place, trial.ttl_s, "stranger") as way:
        holder = Call(way)
        await holder.entered(trial.bound_s)
        error = ""
        try:
            await call_it(trial.place, way.resource, trial.ttl_s)
        except Exception as failed:  # noqa: BLE001 - whatever a library raises is what is told of it
            error = type(failed).__name__
        async with opened(trial.way, trial.place, trial.ttl_s, "stranger") as other:
            free_s = await free_after_s(other, _SOON_S)
        await holder.over()
    said = f"the stranger gets {error}" if error else "the stranger is told nothing"
    if free_s is not None:
        return trial.found("stranger", "no", f"freed under its holder; {said}")
    return trial.found("stranger", "yes", f"kept; {said}")


async def renewal(trial: Trial) -> Found:
    """A body takes two and a half times the ttl; somebody waits."""
    if not trial.expires:
        return trial.found("renewal", "yes", "it does not expire")
    async with (
        opened(trial.way, trial.place, trial.ttl_s, "renewal") as way,
        opened(trial.way, trial.place, trial.ttl_s, "renewal") as other,
    ):
        holder = Call(way)
        await holder.entered(trial.bound_s)
        began = SYSTEM_CLOCK.now()
        waiter = Call(other, stays=False)
        got_in = await waiter.entered(2.5 * trial.ttl_s)
        both = got_in and holder.inside
        await holder.over()
        await waiter.over()
        if not got_in or waiter.entered_at is None:
            return trial.found("renewal", "yes", f"held for {2.5 * trial.ttl_s:g} s")
        after_s = waiter.entered_at - began
        told = f"lost after {seconds(after_s)}" + (", and both bodies run" if both else "")
        return trial.found("renewal", "no", f"{told}; the holder is told: {holder.told}", after_s)


async def alone(trial: Trial) -> Found:
    """Nobody else wants the lock: what taking it and giving it back costs."""
    async with AsyncExitStack() as stack:
        way = await stack.enter_async_context(opened(trial.way, trial.place, trial.ttl_s, "alone"))
        in_redis = EVERY[trial.way].server == "Redis"
        urls = trial.place.quorum if trial.way == "lockguard-quorum" else (trial.place.redis,)
        keepers = [await _keeper(stack, url) for url in urls if in_redis]
        await cycle_us(way, 5)
        monitor = await stack.enter_async_context(watch(keepers))
        await monitor.take()
        await cycle_us(way, _CYCLES)
        commands = len(await monitor.take())
    async with opened(trial.way, trial.place, trial.ttl_s, "alone") as way:  # a monitor slows its server down
        await cycle_us(way, 5)
        took_us = median([await cycle_us(way, _CYCLES) for _ in range(3)])
    asked = f", {commands / _CYCLES / len(keepers):.1f} requests to Redis" if keepers else ""
    return trial.found("alone", "-", f"{took_us / 1000:.2f} ms{asked}", took_us / 1e6)


async def _keeper(stack: AsyncExitStack, url: str) -> Keeper:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    admin = redis.asyncio.Redis.from_url(url, single_connection_client=True)
    await stack.enter_async_context(admin)
    return Keeper(parts.hostname, parts.port, unquote(parts.password or ""), admin)


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        asks: what ``yes`` means.
        run: tries it.
    """

    asks: str
    run: Callable[[Trial], Awaitable[Found]]


CASES = {
    "cancel": Case("A caller that is cancelled while it asks leaves no lock behind", cancel),
    "lost-reply": Case("A caller whose answer is lost has the lock all the same, at once", lost_reply),
    "stopped": Case("The write of a holder that was stopped beyond its ttl overwrites nothing", stopped),
    "wiped": Case("When the server loses its data, no two hold the lock at once", wiped),
    "waiter-killed": Case("A waiter that was killed costs those behind it no time", waiter_killed),
    "wake-up": Case("A waiter that misses the release has the lock soon all the same", wake_up),
    "herd": Case("Waiters are served in the order in which they came", herd),
    "killed": Case("The lock of a process that was killed is free at once", killed),
    "stranger": Case("Who does not hold the lock cannot release it", stranger),
    "renewal": Case("The lock lasts as long as its body", renewal),
    "alone": Case("What an uncontended lock costs", alone),
}
"""By name, in the order of the board."""
