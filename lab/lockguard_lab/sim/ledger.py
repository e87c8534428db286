"""What the servers did with each grant, held against what became of its caller."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from lockguard._lease import GrantId, new_grant_id
from lockguard._scripts import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lockguard_lab.sim.judge import Judge
    from lockguard_lab.sim.redis_server import RedisServer
    from lockguard_lab.sim.servers import Servers
    from lockguard_lab.sim.world import Process

__all__ = ["Ledger", "known_grant_id", "process_of"]

_NAMES = {script.sha.encode(): script.name for script in SCRIPTS}
_SOURCES = {script.source.encode(): script.name for script in SCRIPTS}
_callers: dict[str, weakref.ref[asyncio.Task[Any]]] = {}

_HAND_OVER_S = 0.1
_RESERVED_S = 0.55
_ASKS_S = 0.9
_SILENT_S = 3.0
_EXPIRED_S = 0.25
_VANISHED_S = 1.0
_TRIPS = 4
_TICKET = 5
_ROUNDED_S = 0.003
_HOLDS = ("acquire", "check", "extend", "release", "rejoin", "settle")


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


def process_of(grant: str) -> Process | None:
    """The process whose caller asked for a grant and still runs."""
    task = _caller(grant)
    process: Any = task.get_loop() if task is not None else None
    return process  # type: ignore[no-any-return]


class Ledger:
    """Watches the servers of one schedule.

    Args:
        judge: told of broken laws.
        happened: told of what faults wait for.
    """

    def __init__(self, judge: Judge, happened: Callable[[str, asyncio.Task[Any] | None], None]) -> None:
        self._judge = judge
        self._happened = happened
        self._orphans: dict[tuple[str, str], float] = {}
        self._freed: dict[bytes, float] = {}
        self._reserved: dict[bytes, tuple[str, float]] = {}
        self._came: dict[str, int] = {}
        self._missed: set[str] = set()
        """Who did not come while the lock was kept for it, and so may be overtaken."""
        self._idle: dict[bytes, tuple[float, bool]] = {}
        self._ends: dict[bytes, float] = {}
        self._opens: dict[bytes, float] = {}
        """When a resource opens again that is kept closed."""
        self._given_back: set[bytes] = set()
        self._tokens: dict[tuple[str, bytes], int] = {}
        self._released_on: dict[str, str] = {}
        self._closed_at = float("inf")
        _callers.clear()

    def before(self, server: RedisServer, name: str, words: tuple[bytes, ...]) -> bytes | None:
        """Who holds the lock of a script that is about to run."""
        if self._script(name, words) not in _HOLDS:
            return None
        grant: bytes | None = server.store.do(b"HGET", words[3], b"grant")
        return grant

    def executed(
        self, server: RedisServer, name: str, words: tuple[bytes, ...], reply: Any, held: bytes | None
    ) -> None:
        """A server has executed a command; ``held``: who held its lock before."""
        script = self._script(name, words)
        if script not in _HOLDS or isinstance(reply, Exception):
            return
        lock, args = words[3], words[3 + int(words[2]) :]
        holds: bytes | None = server.store.do(b"HGET", lock, b"grant")
        self._only_its_own(script, lock, args[0], reply, held, holds)
        if holds is not None and server.store.do(b"PTTL", lock) == -1:
            self._judge.accuse("L1: every lock has an end", f"{lock.decode()} has none after {script}")
        if script == "acquire":
            self._asked(server, lock, args, reply)
            self._happened_to(args, reply)
        elif script == "release":
            self._released_on[args[0].decode()] = server.name
            if reply == 1:
                self._happened("released", _caller(args[0].decode()))
        if self._judge.plan.in_order and script in ("acquire", "release"):
            self._in_line(server, script, lock, args, reply)
        self._stays_closed(script, lock, args, reply)
        end_ms = server.store.ends_ms.get(lock)
        if end_ms is not None:
            self._ends[lock] = end_ms / 1000 - server.epoch_s

    def _happened_to(self, args: tuple[bytes, ...], reply: Any) -> None:
        caller = _caller(args[0].decode())
        if reply[0] == 1:
            self._happened("granted", caller)
            if float(args[1]) > self._judge.plan.ttl_s * 1000:
                self._happened("long", caller)
        elif reply[0] == 0 and reply[6] != b"0":
            self._happened("waits", caller)

    @staticmethod
    def _script(name: str, words: tuple[bytes, ...]) -> str | None:
        if name == "EVALSHA":
            return _NAMES.get(words[1])
        return _SOURCES.get(words[1]) if name == "EVAL" else None

    def _only_its_own(
        self,
        script: str,
        lock: bytes,
        grant: bytes,
        reply: Any,
        held: bytes | None,
        holds: bytes | None,
    ) -> None:
        """Only the grant itself renews, releases or settles, and nothing revives it (S6)."""
        accuse, who = self._judge.accuse, f"{grant[:8].decode()} on {lock.decode()}"
        own = held == grant
        if script == "acquire":
            if reply[0] == 1 and not own and held is not None:
                accuse(
                    "S1: a lock that is held is not given away", f"{who} had what {held[:8].decode()} holds"
                )
            return
        told = bool(reply) if script != "rejoin" else False
        if told != own and script != "rejoin":
            accuse("S6: only the grant itself", f"{who}: {script} answered {reply}, held by it: {own}")
        elif (
            holds != held and not (script == "release" and own) and not (script == "rejoin" and held is None)
        ):
            accuse("S6: only the grant itself", f"{who}: {script} changed whom the lock is held by")

    def _asked(self, server: RedisServer, lock: bytes, args: tuple[bytes, ...], reply: Any) -> None:
        judge, grant = self._judge, args[0]
        if reply[0] != 1:
            if server.store.do(b"HGET", lock, b"grant") == grant:
                judge.accuse(
                    "S7: asked again, the same answer", f"{grant[:8].decode()} was refused its own lock"
                )
            return
        before, token = self._tokens.get((server.name, lock), 0), int(reply[1])
        if not reply[2]:
            if server.store.do(b"HGET", lock, b"token") != b"%d" % token:
                judge.accuse("S7: asked again, the same answer", f"{grant[:8].decode()} had another token")
            return
        self._tokens[server.name, lock] = max(before, token)
        # What was settled over several nodes may lie ahead of the clock of one that then lost it. So may what
        # one server gave before its clock was set back: the fence raises the token before a body begins.
        plan = judge.plan
        if token <= before and not (plan.restarts and (plan.nodes > 1 or "server clock back" in plan.kinds)):
            judge.accuse("S2: tokens grow", f"{lock.decode()} had {before}, and then {token}")

    def _stays_closed(self, script: str, lock: bytes, args: tuple[bytes, ...], reply: Any) -> None:
        """Nobody has a resource before its lock delay, or the least time since its last grant, is over."""
        now, plan = self._judge.world.now, self._judge.plan
        if not plan.closes:
            return
        if script == "release" and reply == 1:
            self._given_back.add(lock)
            if args[0].decode() in self._judge.ended_early:
                self._opens[lock] = max(self._opens[lock], now + plan.lock_delay_s)
        elif script == "acquire" and reply[0] == 1 and reply[2]:
            opens = self._opens.get(lock, 0.0)
            if lock in self._ends and lock not in self._given_back:  # it ran out
                opens = max(opens, self._ends[lock] + plan.lock_delay_s)
            if now < opens - _ROUNDED_S:
                told = f"{lock.decode()} was had {opens - now:.3f} s too early"
                self._judge.accuse("S5: a resource stays closed for as long as was asked for", told)
            self._given_back.discard(lock)
            self._opens[lock] = now + plan.at_least_s

    def _in_line(
        self, server: RedisServer, script: str, lock: bytes, args: tuple[bytes, ...], reply: Any
    ) -> None:
        """Who has the lock next, and when."""
        now = self._judge.world.now
        reserved, until = self._reserved.get(lock, ("", 0.0))
        if until < now:
            self._missed.add(reserved)
        if lock in self._freed and not self._is_wanted(server, lock, args[0].decode(), reserved):
            self._freed[lock] = now  # kept for the dead only: nobody has waited for it
        if script == "release":
            left_it = args[0].decode() == reserved and now < until
            if not (self._waiting(server, lock) or server.store.do(b"EXISTS", lock + b":next")):
                self._freed.pop(lock, None)  # nobody is left who could have it
            elif reply == 1 or left_it:
                self._freed.setdefault(lock, now)
        elif reply[0] == 0 and reply[6] != b"0":
            self._came.setdefault(args[0].decode(), len(self._came))
            self._look_at_places(server, lock)
        elif reply[0] == 1 and reply[2]:
            self._passed_on(now - self._freed.pop(lock, now), lock)
            self._had(server, lock, args, reserved if now < until else "")
        kept = server.store.do(b"GET", lock + b":next")
        left_s = server.store.do(b"PTTL", lock + b":next") / 1000
        woken = kept.split(b" ")[0].decode() if kept else ""
        self._reserved[lock] = (woken, now + left_s if kept else 0.0)
        if woken not in ("", reserved):
            self._happened("woken", _caller(woken))

    def _is_wanted(self, server: RedisServer, lock: bytes, asks: str, reserved: str) -> bool:
        """Whether somebody alive has waited for a lock since before this call."""
        came_before = {*self._waiting(server, lock), reserved, asks} & self._came.keys()
        return any(process is not None and not process.dead for process in map(process_of, came_before))

    def _had(self, server: RedisServer, lock: bytes, args: tuple[bytes, ...], reserved: str) -> None:
        """A grant has a free lock: nobody else was to have it."""
        accuse, grant = self._judge.accuse, args[0].decode()
        if reserved not in ("", grant) and self._alive(reserved):
            accuse("L2: first come, first served", f"{grant[:8]} had what was kept for {reserved[:8]}")
        own = float(args[_TICKET]) or float("inf")
        for member, ticket in self._waiting(server, lock).items():
            if ticket < own and member not in self._missed and self._alive(member):
                accuse("L2: first come, first served", f"{grant[:8]} overtook {member[:8]}")
                return

    def _look_at_places(self, server: RedisServer, lock: bytes) -> None:
        """Whoever stands in the queue stands there in the order in which they came, also who is back."""
        waiting = list(self._waiting(server, lock))
        if waiting != sorted(waiting, key=lambda grant: self._came.get(grant, 0)):
            self._judge.accuse("L2: a place is kept", f"the queue of {lock.decode()} is not in order")

    def _passed_on(self, took_s: float, lock: bytes) -> None:
        """A lock that was released while somebody waited has a holder again."""
        judge, plan = self._judge, self._judge.plan
        if "stop process" in plan.kinds:
            return
        dead = sum(process.dead for process in judge.world.processes)
        most_s = _HAND_OVER_S + _TRIPS * plan.trip_s
        if dead:  # kept for one of them, while the next waiter asks within a second anyway
            most_s += _ASKS_S + _RESERVED_S * (dead - 1)
        law = (
            "L3: dead waiters of a process cost at most a second"
            if dead
            else "L2: a free lock passes on at once"
        )
        if "lose messages" in plan.kinds:
            # Each waiter asks within a second; the lock may have been kept for another one by then.
            most_s += _VANISHED_S + _RESERVED_S * (plan.processes - 1) * 2
            law = "L4: a lost wake-up costs a bounded delay"
        if took_s > most_s:
            judge.accuse(law, f"{lock.decode()} was had after {took_s:.3f} s")

    @staticmethod
    def _waiting(server: RedisServer, lock: bytes) -> dict[str, float]:
        found = server.store.do(b"ZRANGE", lock + b":queue", b"0", b"-1", b"WITHSCORES")
        return {
            member.partition(b" ")[0].decode(): float(score)
            for member, score in zip(found[::2], found[1::2], strict=True)
        }

    def _alive(self, grant: str) -> bool:
        """Whether a grant's caller still waits, in a process that was not stopped lately."""
        process = process_of(grant)
        if process is None or process.dead or process.stopped:
            return False
        return bool(self._judge.world.now - process.went_on_at > _SILENT_S)

    def closes(self) -> None:
        """The guards of all processes are about to be closed."""
        self._closed_at = self._judge.world.now

    def look(self, servers: Servers) -> None:
        """Look for locks and places whose caller is gone, and for free locks that callers wait for."""
        plan = self._judge.plan
        if plan.passes:
            self._look_for_orphans(servers)
        if plan.in_order or plan.kinds in ({"delete key"}, {"cut"}):
            self._look_for_idle_locks(servers)

    def _look_for_orphans(self, servers: Servers) -> None:
        judge, seen = self._judge, []
        now, most_s = judge.world.now, judge.plan.orphan_s
        for server in servers.all:
            for key in [key for key in server.store.values if servers.responsible(server, key)]:
                if key.endswith(b"}"):
                    grants = [(server.store.do(b"HGET", key, b"grant") or b"").decode()]
                elif key.endswith(b":queue"):
                    grants = list(self._waiting(server, key.removesuffix(b":queue")))
                else:
                    continue
                seen += [(server.name, grant) for grant in grants if grant and _caller(grant) is None]
        self._orphans = {one: self._orphans.get(one, now) for one in seen}
        for (name, grant), since in self._orphans.items():
            if now - max(since, judge.trouble_until) > most_s and not self._nobody_could_know(name, grant):
                told = f"{name} keeps {grant[:8]}, whose caller is gone, for {now - since:.2f} s"
                judge.accuse("S8: nothing is left behind", told)
                self._orphans[name, grant] = now + 1e9

    def _nobody_could_know(self, keeps: str, grant: str) -> bool:
        """Whether a failover lost a release, and its guard was closed before it could have heard of that.

        The server that was replaced had answered the release, so nothing was owed. That a failover may lose
        the last write is among what is not promised (safety from Redis replication alone).
        """
        judge = self._judge
        return (
            "failover" in judge.plan.kinds
            and self._released_on.get(grant, keeps) != keeps
            and self._closed_at < judge.trouble_until + judge.plan.orphan_s
        )

    def nothing_is_left(self, servers: Sequence[RedisServer]) -> None:
        """At the end: of calls that ended while nothing worse happened than passes, no key is left."""
        for server in servers:
            for key in sorted(server.store.values):
                server.store.do(b"EXISTS", key)
                kind = key.rpartition(b"}")[2] if b"{" in key else b":member"
                if key in server.store.values and kind in (
                    b"",
                    b":queue",
                    b":next",
                    b":inboxes",
                    b":waiting",
                ):
                    self._judge.accuse("S8: nothing is left behind", f"{server.name} has {key.decode()}")

    def _look_for_idle_locks(self, servers: Servers) -> None:
        judge, now, plan = self._judge, self._judge.world.now, self._judge.plan
        dead = sum(process.dead for process in judge.world.processes)
        queues = {key for server in servers.all for key in server.store.values if key.endswith(b":queue")}
        locks = sorted(key.removesuffix(b":queue") for key in queues)
        # What was seen before somebody held it, or nobody waited any more, does not count on.
        held_at = {f"lockguard:{{{name}}}".encode(): at for name, at in judge.held_at.items()}
        self._idle = {
            lock: seen
            for lock, seen in self._idle.items()
            if lock in locks and seen[0] >= held_at.get(lock, 0.0)
        }
        for lock in locks:
            asked = servers.asked(lock)
            free = sum(not server.store.do(b"EXISTS", lock, lock + b":next") for server in asked)
            waiting = {grant for server in asked for grant in self._waiting(server, lock)}
            if not (free > len(asked) // 2 and any(self._alive(grant) for grant in waiting)):
                self._idle.pop(lock, None)
                continue
            end = self._ends.get(lock, now)
            expired = end <= now and lock not in self._freed
            since, expired = self._idle.setdefault(lock, (end if expired else now, expired))
            most_s = _EXPIRED_S if expired else _VANISHED_S
            if "cut" in plan.kinds:  # each may have taken the question, or its answer
                since = max(since, judge.trouble_until)
            if now - since > 1.02 * most_s + _TRIPS * plan.trip_s + _RESERVED_S * dead:
                law = "L1: the lock of a crashed holder is had at once"
                if not expired:
                    law = "L4: a lock that vanished, or a lost wake-up, is noticed within a second"
                judge.accuse(law, f"{lock.decode()} is free, and callers wait for it")
                self._idle[lock] = now + 1e9, expired
