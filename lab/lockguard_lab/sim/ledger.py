"""What the servers did with each grant, held against what became of its caller."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from lockguard._lease import GrantId, new_grant_id
from lockguard._scripts import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard_lab.sim.judge import Judge
    from lockguard_lab.sim.redis_server import RedisServer

__all__ = ["Ledger", "known_grant_id"]

_NAMES = {script.sha.encode(): script.name for script in SCRIPTS}
_SOURCES = {script.source.encode(): script.name for script in SCRIPTS}
_callers: dict[str, weakref.ref[asyncio.Task[Any]]] = {}

_ORPHAN_S = 4.0
"""A connection that does not answer is given up after two seconds, and another is made within one."""

_AT_ONCE_S = 0.2
_HAND_OVER_S = 0.1
_RESERVED_S = 0.55
_SILENT_S = 3.0
_TICKET = 5
_IN_PROCESSES = {"cancel", "stop process", "kill process"}
"""What leaves the servers and the network as they are."""


def known_grant_id() -> GrantId:
    """As ``new_grant_id``, and notes who asked for it."""
    grant = new_grant_id()
    task = asyncio.current_task()
    assert task is not None
    _callers[grant] = weakref.ref(task)
    return grant


def _caller(grant: str) -> asyncio.Task[Any] | None:
    task = _callers[grant]() if grant in _callers else None
    return None if task is None or task.done() else task


class Ledger:
    """Watches the servers of one schedule."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._orphans: dict[tuple[str, str], float] = {}
        self._freed: dict[bytes, float] = {}
        self._reserved: dict[bytes, tuple[str, float]] = {}
        self._idle: dict[bytes, float] = {}
        self._tokens: dict[tuple[str, bytes], int] = {}
        self._stopped_last: dict[Any, float] = {}
        _callers.clear()

    def executed(self, server: RedisServer, name: str, words: tuple[bytes, ...], reply: Any) -> None:
        """A server has executed a command."""
        if name not in ("EVALSHA", "EVAL") or isinstance(reply, Exception):
            return
        script = (_NAMES if name == "EVALSHA" else _SOURCES).get(words[1])
        if script not in ("acquire", "release"):
            return
        lock, args = words[3], words[3 + int(words[2]) :]
        if script == "acquire":
            self._asked(server, lock, args, reply)
        plan = self._judge.plan
        if plan.topology == "single" and plan.kinds <= _IN_PROCESSES and not plan.lock_delay_s:
            self._in_line(server, script, lock, args, reply)

    def _asked(self, server: RedisServer, lock: bytes, args: tuple[bytes, ...], reply: Any) -> None:
        judge, grant = self._judge, args[0]
        if reply[0] != 1:
            if server.store.do(b"HGET", lock, b"grant") == grant:
                judge.accuse(
                    "S7: asked again, the same answer", f"{grant[:8].decode()} was refused its own lock"
                )
            return
        if not reply[2] or judge.plan.restarts:
            return
        before, token = self._tokens.get((server.name, lock), 0), int(reply[1])
        self._tokens[server.name, lock] = max(before, token)
        if token <= before:
            judge.accuse("S2: tokens grow", f"{lock.decode()} had {before}, and then {token}")

    def _in_line(
        self, server: RedisServer, script: str, lock: bytes, args: tuple[bytes, ...], reply: Any
    ) -> None:
        """Who has the lock next, and when."""
        judge, now = self._judge, self._judge.world.now
        dead = sum(process.dead for process in judge.world.processes)
        if script == "release":
            if reply == 1 and self._waiting(server, lock):
                self._freed[lock] = now
        elif reply[0] == 1 and reply[2]:
            grant = args[0].decode()
            freed = self._freed.pop(lock, now)
            if now - freed > _HAND_OVER_S + _RESERVED_S * dead and not judge.plan.kinds & {"stop process"}:
                judge.accuse("L2: a free lock passes on at once", f"it was had after {now - freed:.3f} s")
            reserved, until = self._reserved.get(lock, ("", 0.0))
            if reserved not in ("", grant) and now < until and self._alive(reserved):
                judge.accuse(
                    "L2: first come, first served", f"{grant[:8]} had what was kept for {reserved[:8]}"
                )
            for member, ticket in self._waiting(server, lock).items():
                if ticket < (float(args[_TICKET]) or float("inf")) and self._alive(member):
                    judge.accuse("L2: first come, first served", f"{grant[:8]} overtook {member[:8]}")
                    break
        kept = server.store.do(b"GET", lock + b":next")
        left_s = server.store.do(b"PTTL", lock + b":next") / 1000
        self._reserved[lock] = (kept.split(b" ")[0].decode(), now + left_s) if kept else ("", 0.0)

    @staticmethod
    def _waiting(server: RedisServer, lock: bytes) -> dict[str, float]:
        found = server.store.do(b"ZRANGE", lock + b":queue", b"0", b"-1", b"WITHSCORES")
        return {
            member.partition(b" ")[0].decode(): float(score)
            for member, score in zip(found[::2], found[1::2], strict=True)
        }

    def _alive(self, grant: str) -> bool:
        """Whether a grant's caller still waits, in a process that was not stopped lately."""
        task = _caller(grant)
        process: Any = task.get_loop() if task is not None else None
        if process is None or process.dead or process.stopped:
            return False
        return bool(self._judge.world.now - process.went_on_at > _SILENT_S)

    def look(self, servers: Sequence[RedisServer]) -> None:
        """Look for locks and places whose caller is gone, and for free locks that callers wait for."""
        plan = self._judge.plan
        if plan.passes:
            self._look_for_orphans(servers)
        if plan.topology == "single" and plan.kinds <= _IN_PROCESSES and not plan.lock_delay_s:
            self._look_for_idle_locks(servers[0])

    def _look_for_orphans(self, servers: Sequence[RedisServer]) -> None:
        judge, seen = self._judge, set()
        now, most_s = judge.world.now, _ORPHAN_S if judge.plan.faults else _AT_ONCE_S
        for server in servers:
            for key in list(server.store.values):
                if key.endswith(b"}"):
                    grants = [(server.store.do(b"HGET", key, b"grant") or b"").decode()]
                elif key.endswith(b":queue"):
                    grants = list(self._waiting(server, key.removesuffix(b":queue")))
                else:
                    continue
                seen |= {(server.name, grant) for grant in grants if grant and _caller(grant) is None}
        self._orphans = {one: self._orphans.get(one, now) for one in seen}
        for (name, grant), since in self._orphans.items():
            if now - since > most_s:
                told = f"{name} keeps {grant[:8]}, whose caller is gone, for {now - since:.2f} s"
                judge.accuse("S8: nothing is left behind", told)
                self._orphans[name, grant] = now + 1e9

    def _look_for_idle_locks(self, server: RedisServer) -> None:
        judge, now = self._judge, self._judge.world.now
        dead = sum(process.dead for process in judge.world.processes)
        for key in [key for key in server.store.values if key.endswith(b":queue")]:
            lock = key.removesuffix(b":queue")
            free = not server.store.do(b"EXISTS", lock, lock + b":next")
            if not (free and any(self._alive(grant) for grant in self._waiting(server, lock))):
                self._idle.pop(lock, None)
            elif now - self._idle.setdefault(lock, now) > 1.1 + _RESERVED_S * dead:
                judge.accuse("L1: a free lock is had", f"{lock.decode()} is free, and callers wait for it")
                self._idle[lock] = now + 1e9
