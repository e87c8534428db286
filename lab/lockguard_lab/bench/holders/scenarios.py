"""What happens to a lock, its successor and its table when its holder is stopped, killed or cut off."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psutil

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.bench.holders.choose import EVERY
from lockguard_lab.bench.holders.results import Cut, Freed, Stopped, Told
from lockguard_lab.bench.holders.ways import Place
from lockguard_lab.child_process import Child
from lockguard_lab.servers import FaultProxy

__all__ = ["Scenario"]

_LOOK_S = 0.05
# The holder's session waits for its client, in a transaction or not; the successor's is active.
_FREE = """
select pg_terminate_backend(pid) from pg_locks
 where granted and (locktype = 'advisory' or relation = 'bot'::regclass)
   and pid in (select pid from pg_stat_activity where state like 'idle%')
"""
_STEADY_LOOKS = 10
_IN_LINE_S = 0.5
"""After so long a caller waits, of whom no server can be asked in one way for all."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to lock on its servers.

    Attributes:
        way: its name.
        place: the servers; the database has the bot's table, and the fence.
        ttl_s: of its lock, if it has one.
        stop_s: how long a holder is stopped, and how long a successor is waited for.
    """

    way: str
    place: Place
    ttl_s: int
    stop_s: float

    async def stopped(self, rounds: int) -> Stopped:
        """The holder is stopped, and writes when it goes on."""
        waited, during, late, told = [], [], [], []
        for _ in range(rounds):
            found = await self._stopped_once()
            waited.append(found[0])
            during.append(found[1])
            late.append(found[2])
            told = found[3]
        return Stopped(round(median(waited), 3), during, late, _worded(told), _first_s(told))

    async def _stopped_once(self) -> tuple[float, bool, str, list[Any]]:
        await self._begin()
        async with self._child() as holder, self._child() as successor:
            await holder.write("hold still")
            await holder.expect("holding")
            began = SYSTEM_CLOCK.now()
            await holder.suspend()
            entering = await self._asks(successor)
            during = await _within(entering, self.stop_s)
            if during:
                await successor.expect("left")
            holder.resume()
            late, told = await self._goes_on(holder, entered=during)
            return float(await entering) - began, during, late, told

    async def killed_s(self, rounds: int) -> float:
        """Seconds from a holder's SIGKILL until its successor has the lock; the median."""
        waited = []
        for _ in range(rounds):
            await self._begin()
            async with self._child() as holder, self._child() as successor:
                await holder.write("hold")
                await holder.expect("holding")
                entering = await self._asks(successor)
                began = SYSTEM_CLOCK.now()
                os.kill(holder.pid, signal.SIGKILL)
                waited.append(float(await entering) - began)
        return round(median(waited), 3)

    async def waiter_killed_s(self) -> float:
        """Seconds from a release until the second in line has the lock, when the first in line was killed."""
        await self._begin()
        async with self._child() as holder, self._child(waiters=1) as dying, self._child() as successor:
            await holder.write("hold")
            await holder.expect("holding")
            await dying.write("wait")
            await dying.expect("waiting")
            await asyncio.sleep(_IN_LINE_S)
            entering = await self._asks(successor)
            await asyncio.sleep(_IN_LINE_S)
            os.kill(dying.pid, signal.SIGKILL)
            began = SYSTEM_CLOCK.now()
            await holder.write(str(began))
            await holder.write("go on")
            return float(await entering) - began

    async def cut(self) -> Cut:
        """The holder's connections to the lock's server are forgotten by what lies between."""
        server = EVERY[self.way].server
        url = self.place.url(server)
        await self._begin()
        async with FaultProxy(_port(url)) as proxy:
            place = self.place.at(server, proxy.url_for(url))
            async with self._child() as successor:
                async with self._child(place) as holder:
                    await holder.write("hold")
                    await holder.expect("holding")
                    proxy.forget()
                    proxy.refuse()
                    began = SYSTEM_CLOCK.now()
                    await holder.write(str(began))
                    entering = await self._asks(successor)
                    inside = await _within(entering, self.stop_s)
                    if inside:
                        await successor.expect("left")
                    late, told = await self._goes_on(holder, entered=inside)
                    os.kill(holder.pid, signal.SIGKILL)
                died = SYSTEM_CLOCK.now()
                after_death_s = None
                if not inside and await _within(entering, self.stop_s):
                    after_death_s = round(entering.result() - died, 3)
                waited_s = round(entering.result() - began, 3) if inside else None
                entering.cancel()
                os.kill(successor.pid, signal.SIGKILL)
                return Cut(waited_s, self.stop_s, late, _worded(told), _first_s(told), after_death_s)

    async def freed(self) -> Freed | None:
        """Postgres ends the session of a stopped holder, as an operator does; ``None`` for other servers."""
        if EVERY[self.way].server != "Postgres":
            return None
        await self._begin()
        async with self._child() as holder, self._child() as successor:
            await holder.write("hold still")
            await holder.expect("holding")
            await holder.suspend()
            entering = await self._asks(successor)
            conn = await asyncpg.connect(self.place.postgres)
            try:
                await conn.execute(_FREE)
            finally:
                await conn.close()
            await entering
            await successor.expect("left")
            holder.resume()
            late, told = await self._goes_on(holder, entered=True)
            return Freed(late, _worded(told))

    async def waiting_connections(self, waiters: int) -> int:
        """Connections of a process to the lock's server while so many of its tasks wait."""
        await self._begin()
        port = _port(self.place.url(EVERY[self.way].server))
        async with self._child() as holder, self._child(waiters=waiters) as crowd:
            await holder.write("hold")
            await holder.expect("holding")
            await crowd.write("wait")
            await crowd.expect("waiting")
            process, seen = psutil.Process(crowd.pid), [-1]
            while len(seen) < _STEADY_LOOKS or len(set(seen[-_STEADY_LOOKS:])) > 1:
                await asyncio.sleep(_LOOK_S)
                ports = [getattr(one.raddr, "port", 0) for one in process.net_connections("tcp")]
                seen.append(max(seen[-1], ports.count(port)))  # who polls has fewer between its questions
            os.kill(holder.pid, signal.SIGKILL)
            os.kill(crowd.pid, signal.SIGKILL)
            return seen[-1]

    @asynccontextmanager
    async def _child(self, place: Place | None = None, waiters: int = 0) -> AsyncIterator[Child]:
        where = place or self.place
        patience_s = 4 * self.stop_s + 60
        async with Child(
            "lockguard_lab.bench.holders.process", name=self.way, patience_s=patience_s, end_s=1
        ) as child:
            await child.tell(
                {
                    "way": self.way,
                    "place": where.line(),
                    "ttl_s": self.ttl_s,
                    "waiters": waiters,
                }
            )
            await child.expect("open")
            yield child

    async def _asks(self, successor: Child) -> asyncio.Future[float]:
        await successor.write("succeed")
        await successor.expect("asking")
        entering = asyncio.ensure_future(successor.expect("in"))
        # An interrupted run kills the successor while nobody waits for it: asyncio would print a traceback.
        entering.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return entering

    async def _goes_on(self, holder: Child, *, entered: bool) -> tuple[str, list[Any]]:
        """Let the holder write late and leave; returns what became of the write, and what it was told."""
        await holder.write("go on")
        wrote = await holder.hear()
        told: list[Any] = wrote["told"]
        late: str = wrote["wrote"]
        if entered:
            conn = await asyncpg.connect(self.place.postgres)
            try:
                status = await conn.fetchval("select status from bot where id = 1")
            finally:
                await conn.close()
            late = "overwrote" if status == "late" else "refused" if late == "done" else late
        else:
            late = "in order" if late == "done" else "failed" if late == "refused" else late
        hearing = asyncio.ensure_future(holder.expect("told"))
        # What leaves on a connection that is cut off may wait for its answer for ever.
        if await _within(hearing, self.stop_s):
            return late, hearing.result()
        hearing.cancel()
        return late, [*told, ("leaving", "no answer", None)]

    async def _begin(self) -> None:
        """The table as it is before, and no lock of a run before."""
        conn = await asyncpg.connect(self.place.postgres)
        try:
            await conn.execute("delete from bot")
            await conn.execute("insert into bot values (1, 'new')")
        finally:
            await conn.close()


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


async def _within(future: asyncio.Future[Any], seconds: float) -> bool:
    await asyncio.wait({future}, timeout=seconds)
    return future.done()


def _worded(told: list[Any]) -> Told:
    return [f"{when}: {what}" for when, what, _ in told]


def _first_s(told: list[Any]) -> float | None:
    return next((after_s for _, _, after_s in told if after_s is not None), None)
