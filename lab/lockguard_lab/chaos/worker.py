"""One bot of a chaos round: ``python -m lockguard_lab.chaos.worker FILE``."""

from __future__ import annotations

import asyncio
import contextlib
import json
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
from lockguard._lease import Lease
from lockguard.errors import LeaseLost, LockguardError, LossReason, ResourceBusy
from lockguard.observe._log import LogObserver
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._connection import fenced
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_lab.chaos.lease_notes import LeaseNotes
from lockguard_lab.chaos.plan import ChaosWorkerSpec
from lockguard_lab.chaos.recording import Recorder, beat
from lockguard_lab.chaos.tables import BELOW, BYPASS, OWN
from lockguard_lab.fence_race import ISOLATIONS
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

__all__ = ["READY", "guard_over", "main"]

READY = "ready"
_RESOLVE_WITHIN = timedelta(seconds=20)
_WRITES_PER_LEASE_MAX = 4
_LOSE_SHARE = 0.02
_LATE_S = 30.0
_POOL_SIZE = 8
_TRAVELLING_SHARE = 0.2
_PATIENT_SHARE = 0.8
_WAITS_TTL = (2, 2, 5, 10)
_LONG_SHARE = 0.1
_CONFIRM_SHARE = 0.6
_ALONE = True  # a statement without a transaction is one of the ways to write


def guard_over(
    urls: tuple[str, ...], address_map: tuple[tuple[str, int, int], ...] = (), **options: Any
) -> LockGuard:
    """A guard over one server, or several independent ones."""
    if address_map:
        options["address_map"] = {(host, announced): (host, port) for host, announced, port in address_map}
    return LockGuard.from_url(*urls, **options) if len(urls) == 1 else LockGuard.from_urls(urls, **options)


class _Bot:
    """Takes leases and writes under them until told to stop."""

    def __init__(self, told: ChaosWorkerSpec) -> None:
        self._told = told
        self._ttl_s = told.ttl_ms / 1_000
        self._rng = random.Random(f"{told.seed}:{told.number}:{SYSTEM_CLOCK.wall()}")  # noqa: S311 - no secret
        self._recorder = Recorder(told.journal, told.number)
        self.counts = Counter[str]()
        known = {way.name: way for way in (*WAYS, *WEAK_CHECKS)}
        ways = [known[name] for name in told.ways]
        # The ways, by whether the seal travels with the first write.
        self._ways = {travels: [way for way in ways if way.travels is travels] for travels in (False, True)}
        self._late: set[asyncio.Task[Any]] = set()
        self._asking: set[asyncio.Task[Any]] = set()
        """The tasks that wait for a lease."""
        # Every second process releases leases without waiting for the disk.
        self._lazy = told.number % 2 == 1
        self._notes = LeaseNotes(self._recorder, self.counts, lazy=self._lazy)
        self.stopping = asyncio.Event()

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
                    guard_over(
                        self._told.redis_urls,
                        self._told.address_map,
                        ttl=timedelta(seconds=self._ttl_s),
                        fence=fence,
                        observers=[LogObserver(), self._notes],
                    )
                )
                for travels, fence in fences.items()
            }
            sys.stderr.write(f"{READY}\n")
            sys.stderr.flush()
            beating = asyncio.create_task(beat(self._recorder))
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._told.tasks):
                    tasks.create_task(self._take_leases())
            if self._late:
                await asyncio.wait(self._late, timeout=_LATE_S)
            beating.cancel()
        self._recorder.note(counts=dict(self.counts))

    def stop(self) -> None:
        """Have it end: nobody waits any more, and what was begun under a lease is completed."""
        self.stopping.set()
        for task in self._asking:
            task.cancel()

    async def _take_leases(self) -> None:
        while not self.stopping.is_set():
            try:
                await self._lease()
            except (LockguardError, *DATABASE_ERRORS) as exc:
                self.counts[type(exc).__name__] += 1
                await asyncio.sleep(0.02)

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

    async def _lease(self) -> None:
        """Take a lease, or try to, write under it and give it back."""
        resource = self._rng.choice(self._told.resources)
        travels = True in self._guards and self._rng.random() < _TRAVELLING_SHARE
        patient = self._rng.random() < _PATIENT_SHARE
        wait_s = self._ttl_s * self._rng.choice(_WAITS_TTL) if patient else 0.0
        hold = self._guards[travels].hold(
            resource,
            wait=timedelta(seconds=wait_s),
            on_busy="wait" if patient else "raise",
            operation="chaos",
        )
        asking = self._recorder.begin("acquire", resource, wait=wait_s, travels=travels)
        task, lease = asyncio.current_task(), None
        assert task is not None
        sound, releasing = False, 0
        self._asking.add(task)
        try:
            async with hold as lease:
                self._asking.discard(task)
                self._notes.granted(asking, lease)
                blind = Lease(lease.grant, deadline=SYSTEM_CLOCK.now() + 3_600, clock=SYSTEM_CLOCK)
                try:
                    sound = await self._body(lease, blind, travels=travels)
                finally:
                    releasing = self._notes.releasing(lease)
                    left = SYSTEM_CLOCK.wall()
        except asyncio.CancelledError:
            if task not in self._asking or not self.stopping.is_set():
                raise
            task.uncancel()
            self._recorder.end(asking, "cancelled")
            return
        except (LockguardError, *DATABASE_ERRORS) as exc:
            if lease is None:
                how = "busy" if isinstance(exc, ResourceBusy) else "failed"
                self._recorder.end(asking, how, why=type(exc).__name__)
            else:
                self._notes.released(releasing, lease, "lost" if isinstance(exc, LeaseLost) else "")
            raise
        finally:
            self._asking.discard(task)
        if not self._notes.released(releasing, lease):
            return
        # Released without an error: the fence has closed the grant. A lazy close may not be on the disk yet.
        seen = await self._look(OWN, lease)
        lazily = {"lazy": seen.pop("logged"), "at": left} if self._lazy and not travels else {}
        self._recorder.note(closed=resource, token=lease.token, **seen, **lazily)
        if sound and self._rng.random() < 0.15:
            self.counts["written after the close"] += 1
            await self._blindly(blind, self._ways[travels])
        if self._rng.random() < self._told.bypasses:
            self._later(self._bypass(lease))

    async def _body(self, lease: Lease, blind: Lease, *, travels: bool) -> bool:
        """Write under the lease, some writes blindly; returns whether all committed."""
        ways, final = self._ways[travels], not travels
        if final:
            await self._note_final(lease)
        if self._rng.random() < _LONG_SHARE:
            await self._go_on(lease)
        for _ in range(self._rng.randint(1, _WRITES_PER_LEASE_MAX)):
            if self._rng.random() < _CONFIRM_SHARE and not await self._confirm(lease):
                return False
            blindly = self._rng.random() < self._told.blind
            end = await (self._blindly(blind, ways) if blindly else self._write(lease, ways))
            if end is not End.COMMITTED or self.stopping.is_set():
                return False
            if not final:  # the seal travelled with that write
                final = True
                await self._note_final(lease)
            await self._pause()
        return True

    async def _go_on(self, lease: Lease) -> None:
        """Hold the lease for longer than its ttl, so that it has to be renewed."""
        until = SYSTEM_CLOCK.now() + self._ttl_s * self._rng.uniform(1.0, 1.6)
        while SYSTEM_CLOCK.now() < until and await self._confirm(lease):  # noqa: ASYNC110 - each asks
            await asyncio.sleep(self._ttl_s * self._rng.uniform(0.05, 0.3))

    async def _confirm(self, lease: Lease) -> bool:
        """Ask the servers whether the lease holds; returns whether to go on with it."""
        grant = lease.grant.id
        asking = self._recorder.begin("confirm", lease.resource, grant=grant, token=lease.token)
        try:
            await lease.confirm()
        except LeaseLost as exc:
            if exc.reason is LossReason.UNCONFIRMED:
                self._recorder.end(asking, "unknown")
                return True
            self._recorder.end(asking, "lost")
            return False
        self._recorder.end(asking, "ok", deadline=lease.deadline)
        return True

    async def _note_final(self, lease: Lease) -> None:
        """Read and note what older holders can no longer add to."""
        seen = await self._look(BELOW, lease)
        self._recorder.note(read=lease.resource, token=lease.token, **seen)

    async def _look(self, query: str, lease: Lease) -> dict[str, Any]:
        async with self._looking.acquire() as conn, conn.transaction():
            row = await conn.fetchrow(query, lease.resource, lease.token)
        assert row is not None, f"{query!r} gave no row for {lease}"
        return {name: int(row[name]) for name in ("updates", "entries", "logged")}

    async def _blindly(self, lease: Lease, ways: list[Way]) -> End:
        """Write in a task that knows only the copy of the lease, and that no loss cancels."""
        return await asyncio.shield(self._later(self._write(lease, ways)))

    def _later(self, work: Any) -> asyncio.Task[Any]:
        """Do it in a task without any lease, which is awaited at the end."""
        task = asyncio.create_task(work, context=Context())
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return task

    async def _bypass(self, lease: Lease) -> None:
        """Write past the fence to a table of the judge's own, when others may have taken over."""
        await asyncio.sleep(self._ttl_s * self._rng.uniform(0.1, 1.0))
        number = self._recorder.begin("bypass", lease.resource, token=lease.token)
        try:
            async with self._plain.acquire() as conn:
                await conn.execute(BYPASS, lease.resource, lease.token, number)
        except DATABASE_ERRORS:
            self._recorder.end(number, "unknown")
        else:
            self._recorder.end(number, "committed")

    async def _write(self, lease: Lease, ways: list[Way]) -> End:
        way = self._rng.choice(ways)
        isolation: Isolation = self._rng.choice(ISOLATIONS)
        # A task that finds the kept connection taken uses another.
        kept = self._kept[way.fenced]
        op = self._recorder.begin("write", lease.resource, way=way.name, token=lease.token)
        async with _lent(kept, self._fenced if way.fenced else self._plain) as kept:
            end = await operate(
                way.write,
                lambda: self._attempt(way, lease, op, isolation, kept),
                pool=self._looking,
                within=_RESOLVE_WITHIN,
                counts=self.counts,
                late=self._late,
            )
        self._recorder.end(op, end.value)
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
            await asyncio.sleep(self._ttl_s * self._rng.uniform(0.3, 1.3))
        elif dice < 0.4:
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
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, bot.stop)
    await bot.run()


if __name__ == "__main__":
    facts: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    facts = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    facts["address_map"] = tuple(map(tuple, facts["address_map"]))
    asyncio.run(main(ChaosWorkerSpec(**facts)))  # noqa: TID251 - its parent ends it
