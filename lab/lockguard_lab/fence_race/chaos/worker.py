"""One bot of a chaos round: ``python -m lockguard_lab.fence_race.chaos.worker FILE``."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
from collections import Counter
from contextlib import AsyncExitStack
from contextvars import Context
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard._lease import GrantId, Lease
from lockguard.errors import LockguardError
from lockguard.events import Event, FenceCloseFailed
from lockguard.observe._log import LogObserver
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._connection import fenced
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_lab.fence_race import ISOLATIONS
from lockguard_lab.fence_race.chaos.history import BELOW, OWN
from lockguard_lab.fence_race.chaos.plan import ChaosWorkerSpec
from lockguard_lab.fence_race.kept_connection import KeptConnection
from lockguard_lab.fence_race.operate import End, operate
from lockguard_lab.fence_race.plan import RacePlan, Way, WriteAttempt
from lockguard_lab.fence_race.planted import WEAK_CHECKS
from lockguard_lab.fence_race.ways import WAYS
from lockguard_lab.fence_race.writes import LossyConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lockguard.ports import Fence
    from lockguard_asyncpg._transaction import Isolation

__all__ = ["READY", "main"]

READY = "ready"
_NUMBERS_EACH = 10**13
_RESOLVE_WITHIN = timedelta(seconds=20)
_WRITES_PER_LEASE_MAX = 6
_LOSE_SHARE = 0.02
_LATE_S = 30.0
_POOL_SIZE = 6
_TRAVELLING_SHARE = 0.2
_ALONE = True  # a statement without a transaction is one of the ways to write


class _Bot:
    """Takes leases and writes under them until told to stop."""

    def __init__(self, told: ChaosWorkerSpec) -> None:
        self._told = told
        self._rng = random.Random(f"{told.seed}:{told.number}:{os.getpid()}")  # noqa: S311 - no secret
        # A restarted process begins with numbers that were never used.
        first = told.number * _NUMBERS_EACH + int(SYSTEM_CLOCK.wall() * 1_000) % 10**9 * 10**4
        self._ops = itertools.count(first)
        known = {way.name: way for way in (*WAYS, *WEAK_CHECKS)}
        ways = [known[name] for name in told.ways]
        # The ways, by whether the seal travels with the first write.
        self._ways = {travels: [way for way in ways if way.travels is travels] for travels in (False, True)}
        self._journal = os.open(told.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._late: set[asyncio.Task[Any]] = set()
        # Every second process releases leases without waiting for the disk.
        self._lazy = told.number % 2 == 1
        self._not_closed: set[GrantId] = set()
        self.counts = Counter[str]()
        self.stopping = asyncio.Event()

    def on(self, event: Event) -> None:
        """Note failed closes: a close that failed, as while Postgres is down, makes nothing final."""
        if isinstance(event, FenceCloseFailed):
            self.counts["closes that failed"] += 1
            self._not_closed.add(event.grant.id)

    async def run(self) -> None:
        """Run until told to stop and all that was begun is over."""
        async with AsyncExitStack() as stack:
            self._plain = await stack.enter_async_context(self._pool())
            self._fenced = fenced(await stack.enter_async_context(self._pool()))
            sealing = await stack.enter_async_context(self._pool())
            self._looking = sealing
            self._kept = {False: KeptConnection(self._plain), True: KeptConnection(self._fenced)}
            for kept in self._kept.values():
                stack.push_async_callback(kept.leave)
            self._gears = {
                way.name: await stack.enter_async_context(
                    way.gear(self._told.database_url, RacePlan(holders=2), self._options())
                )
                for way in self._ways[False]
                if way.gear is not None
            }
            fences: dict[bool, Fence] = {False: PostgresFence(sealing, durable_close=not self._lazy)}
            for way in self._ways[True]:
                assert way.fence is not None, f"{way.name} has no fence that lets a seal travel"
                fences[True] = way.fence(sealing)
            self._guards = {
                travels: await stack.enter_async_context(
                    LockGuard.from_url(
                        self._told.redis_url,
                        ttl=timedelta(milliseconds=self._told.ttl_ms),
                        fence=fence,
                        observers=[LogObserver(), self],
                    )
                )
                for travels, fence in fences.items()
            }
            sys.stderr.write(f"{READY}\n")
            sys.stderr.flush()
            while not self.stopping.is_set():
                try:
                    await self._lease()
                except (LockguardError, *DATABASE_ERRORS) as exc:
                    self.counts[type(exc).__name__] += 1
                    await asyncio.sleep(0.02)
            if self._late:
                await asyncio.wait(self._late, timeout=_LATE_S)
        self._note(counts=dict(self.counts))

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"server_settings": {"application_name": self._told.application}}
        return {**options, "statement_cache_size": 0} if self._told.pooler else options

    def _pool(self) -> asyncpg.Pool[Any]:
        return asyncpg.create_pool(
            self._told.database_url,
            min_size=0,
            max_size=_POOL_SIZE,
            connection_class=LossyConnection,
            **self._options(),
        )

    def _note(self, **facts: Any) -> None:
        """Write a line to the journal; once written it survives the process."""
        os.write(self._journal, json.dumps(facts).encode() + b"\n")

    async def _lease(self) -> None:
        wait = timedelta(milliseconds=2 * self._told.ttl_ms)
        resource = self._rng.choice(self._told.resources)
        ended, blind = False, None
        travels = True in self._guards and self._rng.random() < _TRAVELLING_SHARE
        ways, final = self._ways[travels], not travels
        async with self._guards[travels].hold(resource, wait=wait, operation="chaos") as lease:
            blind = Lease(lease.grant, deadline=SYSTEM_CLOCK.now() + 3_600, clock=SYSTEM_CLOCK)
            if final:
                await self._note_final(lease)
            for _ in range(self._rng.randint(1, _WRITES_PER_LEASE_MAX)):
                blindly = self._rng.random() < self._told.blind
                end = await (self._blindly(blind, ways) if blindly else self._write(lease, ways))
                if end is not End.COMMITTED or self.stopping.is_set():
                    ended = True
                    break
                if not final:  # the seal travelled with that write
                    final = True
                    await self._note_final(lease)
                await self._pause()
            left = SYSTEM_CLOCK.wall()
        if lease.grant.id in self._not_closed:
            return
        # Released without an error: the fence has closed the grant. A lazy close may not be on the disk yet.
        seen = await self._look(OWN, lease)
        lazily = {"lazy": seen.pop("logged"), "at": left} if self._lazy and not travels else {}
        self._note(closed=resource, token=lease.token, **seen, **lazily)
        if not ended and self._rng.random() < 0.3:
            self.counts["written after the close"] += 1
            await self._blindly(blind, ways)

    async def _note_final(self, lease: Lease) -> None:
        """Read and note what older holders can no longer add to."""
        seen = await self._look(BELOW, lease)
        self._note(read=lease.resource, token=lease.token, **seen)

    async def _look(self, query: str, lease: Lease) -> dict[str, Any]:
        async with self._looking.acquire() as conn, conn.transaction():
            row = await conn.fetchrow(query, lease.resource, lease.token)
        assert row is not None, f"{query!r} gave no row for {lease}"
        return {name: int(row[name]) for name in ("updates", "entries", "logged")}

    async def _blindly(self, lease: Lease, ways: list[Way]) -> End:
        """Write in a task that knows only the copy of the lease, and that no loss cancels."""
        task = asyncio.create_task(self._write(lease, ways), context=Context())
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return await asyncio.shield(task)

    async def _write(self, lease: Lease, ways: list[Way]) -> End:
        op, way = next(self._ops), self._rng.choice(ways)
        isolation: Isolation = self._rng.choice(ISOLATIONS)
        # A task that finds the kept connection taken uses another.
        kept = self._kept[way.fenced]
        self._note(begin=op, way=way.name, resource=lease.resource, token=lease.token)
        async with _lent(kept, self._fenced if way.fenced else self._plain) as kept:
            end = await operate(
                way.write,
                lambda: self._attempt(way, lease, op, isolation, kept),
                pool=self._looking,
                within=_RESOLVE_WITHIN,
                counts=self.counts,
                late=self._late,
            )
        self._note(end=op, how=end.value)
        return end

    def _attempt(
        self, way: Way, lease: Lease, op: int, isolation: Isolation, kept: KeptConnection
    ) -> WriteAttempt:
        return WriteAttempt(
            self._fenced if way.fenced else self._plain,
            lease,
            op,
            way.shapes[op % len(way.shapes)],
            isolation,
            _ALONE,
            self._pause,
            self._lost if self._rng.random() < _LOSE_SHARE else None,
            kept,
            self._gears.get(way.name),
        )

    def _lost(self) -> None:
        self.counts["replies lost"] += 1

    async def _pause(self) -> None:
        """Often do not pause, sometimes for a moment, occasionally long enough for a takeover."""
        if (dice := self._rng.random()) < self._told.stalls:
            await asyncio.sleep(self._told.ttl_ms / 1_000 * self._rng.uniform(0.3, 1.3))
        elif dice < 0.5:
            await asyncio.sleep(0.01 * dice)


_taken: set[int] = set()


@contextlib.asynccontextmanager
async def _lent(kept: KeptConnection, pool: asyncpg.Pool[Any]) -> AsyncIterator[KeptConnection]:
    """The kept connection, or a new one if another task uses it."""
    own = id(kept) not in _taken
    used = kept if own else KeptConnection(pool)
    _taken.add(id(used))
    try:
        yield used
    finally:
        _taken.discard(id(used))
        if not own:
            await used.leave()


async def main(told: ChaosWorkerSpec) -> None:
    """Run until SIGTERM."""
    bot = _Bot(told)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, bot.stopping.set)
    await bot.run()


if __name__ == "__main__":
    facts: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    facts = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    asyncio.run(main(ChaosWorkerSpec(**facts)))  # noqa: TID251 - its parent ends it
