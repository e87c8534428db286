"""Known mistakes, each as a replacement in a copy of the sources, which the simulator has to convict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from shutil import copytree, ignore_patterns

from lockguard_lab.sim.judge import Violation

__all__ = ["PLANTED", "Planted", "convict"]

_RUN = """
import json, sys
import lockguard
from lockguard_lab.sim.plan import Plan
from lockguard_lab.sim.run import run
assert lockguard.__file__.startswith(sys.argv[1]), lockguard.__file__
for seed in range(int(sys.argv[2]), int(sys.argv[3])):
    if found := run(Plan.of(seed, sys.argv[4] or None)).violations:
        print(json.dumps([seed, found[0].law, found[0].told]))
        break
"""


@dataclass(frozen=True)
class Planted:
    """One mistake.

    Attributes:
        name: what is wrong.
        origin: where it comes from.
        file: the file, below ``lockguard/``.
        old: the text that is replaced; it occurs once.
        new: what replaces it.
        law: the beginning of the law that it breaks; empty where any is as likely.
        topology: the servers on which it shows; empty where the seed may choose.
        quick: whether a hundred schedules convict it, so that every change is held to that.
    """

    name: str
    origin: str
    file: str
    old: str
    new: str
    law: str = ""
    topology: str = ""
    quick: bool = False

    def source(self) -> str:
        """The file with the mistake in it.

        Raises:
            ValueError: the code has changed, so that it does not fit any more.
        """
        text = (files("lockguard") / self.file).read_text("utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.file} has its text {text.count(self.old)} times; write it anew"
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Conviction(Violation):
    """The law that a mistake broke first, and in which schedule."""

    seed: int = 0


def convict(planted: Planted, directory: Path, *, seeds: range) -> Conviction | None:
    """Plant a mistake in a copy of the library in ``directory``; run schedules until one breaks a law."""
    source = planted.source()
    copytree(Path(str(files("lockguard"))), directory / "lockguard", ignore=ignore_patterns("__pycache__"))
    (directory / "lockguard" / planted.file).write_text(source, "utf-8")
    command = [sys.executable, "-W", "ignore", "-c", _RUN, str(directory), str(seeds[0]), str(seeds[-1] + 1)]
    done = subprocess.run(
        [*command, planted.topology],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory)},
        stdout=subprocess.PIPE,
        check=True,
    )
    if not done.stdout:
        return None
    seed, law, told = json.loads(done.stdout)
    return Conviction(law, told, seed)


_LUA, _CORE = "a lock script's classic", "a lock client's classic"

PLANTED = (
    Planted(
        "release without an owner check",
        "redis-py before 2.10, and many recipes: DEL by whoever calls",
        "lua/release.lua",
        "local held = redis.call('HGET', KEYS[1], 'grant') == grant",
        "local held = redis.call('EXISTS', KEYS[1]) == 1",
        law="S1",
        topology="single",
        quick=True,
    ),
    Planted(
        "renewal without an owner check",
        "recipes that renew by EXPIRE",
        "lua/extend.lua",
        "if held[1] ~= ARGV[1] then",
        "if not held[1] then",
    ),
    Planted(
        "renewal that revives an expired lease",
        "recipes that renew by SET",
        "lua/extend.lua",
        "if held[1] ~= ARGV[1] then",
        "if not held[1] then redis.call('HSET', KEYS[1], 'grant', ARGV[1], 'ttl_ms', ARGV[2])\n"
        "elseif held[1] ~= ARGV[1] then",
    ),
    Planted(
        "a release wakes nobody",
        _LUA,
        "lua/release.lua",
        "  wake_first(KEYS[2], KEYS[3], KEYS[4], KEYS[8])",
        "  redis.call('DEL', KEYS[4])",
        law="L2",
        topology="single",
        quick=True,
    ),
    Planted(
        "the queue is not asked when the lock is free",
        _LUA,
        "lua/acquire.lua",
        "  if not first or first == member then",
        "  if true then",
    ),
    Planted(
        "a reservation is not heeded",
        _LUA,
        "lua/acquire.lua",
        "if reserved then\n  return busy",
        "if false then\n  return busy",
    ),
    Planted(
        "a dead waiter at the head is never skipped",
        "fair locks whose queue has no liveness",
        "lua/wake.lua",
        "<= SILENT_MS",
        "<= 1e15",
    ),
    Planted(
        "a repeated request is granted anew",
        "lost replies taken for refusals",
        "lua/acquire.lua",
        "if held[1] == grant then",
        "if false then",
        law="S7",
        topology="single",
        quick=True,
    ),
    Planted(
        "no expiry on the lock",
        "SETNX without EX",
        "lua/acquire.lua",
        "  redis.call('PEXPIRE', KEYS[1], ttl_ms)\n  redis.call('SET', KEYS[2]",
        "  redis.call('SET', KEYS[2]",
    ),
    Planted(
        "tokens that are the clock alone",
        "tokens from time after a clock that went back",
        "lua/acquire.lua",
        "math.max(now_us, sane(known[1]) + 1, sane(ARGV[9]))",
        "math.max(now_us, sane(ARGV[9]))",
        law="S2",
        topology="single",
        quick=True,
    ),
    Planted(
        "deadline counted from the reply",
        "redis-py, aioredlock",
        "_single_node.py",
        "sent_at + trusted_s",
        "self._clock.now() + trusted_s",
    ),
    Planted(
        "deadline of a renewal counted from the reply",
        "redis-py, aioredlock",
        "_quorum.py",
        "Renewal.RENEWED, sent_at + trusted_s(ttl_ms)",
        "Renewal.RENEWED,"
        " __import__('lockguard._clock', fromlist=['x']).SYSTEM_CLOCK.now() + trusted_s(ttl_ms)",
    ),
    Planted(
        "a quorum of half",
        "Redlock ports",
        "_quorum.py",
        "return nodes // 2 + 1",
        "return max(1, nodes // 2)",
        law="S1",
        topology="quorum-3",
        quick=True,
    ),
    Planted(
        "a node that lost its data votes at once",
        "Redlock without delayed restarts",
        "lua/acquire.lua",
        "  if quarantine_ms > 0 then\n    return {3, quarantine_ms}",
        "  if false then\n    return {3, quarantine_ms}",
    ),
    Planted(
        "a refused renewal does not end the lease",
        "our own past",
        "_renewal.py",
        "self._lose(kept, LossReason.REFUSED)",
        "pass",
    ),
    Planted(
        "an unanswered renewal ends the lease at once",
        "clients that take silence for a no",
        "_renewal.py",
        "                self._note_unanswered(kept, asked)\n            case _:",
        "                self._lose(kept, LossReason.REFUSED)\n            case _:",
    ),
    Planted(
        "the body is not cut when its lease ends",
        "every peer but two",
        "_hold.py",
        "        task.cancel(self._cut.message)",
        "        self._cut.message",
        law="S5",
        quick=True,
    ),
    Planted(
        "a cancelled caller leaves its place and its lock",
        "redis-py's asyncio Lock",
        "_waiting.py",
        "            if asyncio._get_running_loop() is home:\n"
        "                self._locks.release(request.resource, request.grant)",
        "            if asyncio._get_running_loop() is home:\n                pass",
    ),
    Planted(
        "a caller that gives up stays in the queue",
        "fair locks without a leave",
        "_waiting.py",
        "            if request.queue:\n                self._locks.release(request.resource, request.grant)",
        "            if False:\n                self._locks.release(request.resource, request.grant)",
    ),
    Planted(
        "the lease is not looked at after the seal",
        "our own past",
        "_hold.py",
        "            await self._seal_in_time(lease, request)\n            lease.ensure()",
        "            await self._seal_in_time(lease, request)",
    ),
    Planted(
        "the seal is skipped",
        "token >= max without a seal (Kleppmann's scheme as often built)",
        "_hold.py",
        "0.0 if core.fence is None else await self._seal(lease, request)",
        "0.0",
        law="S3",
        topology="single",
        quick=True,
    ),
    Planted(
        "the lock is kept when its seal fails",
        "our own past",
        "_hold.py",
        "            self._core.keeper.drop(lease)\n"
        "            self._core.locks.release(lease.resource, lease.grant.id)\n"
        "            if not",
        "            self._core.keeper.drop(lease)\n            if not",
    ),
    Planted(
        "a wake-up that came early is forgotten",
        "lost wake-ups of every pub/sub lock",
        "_waiting.py",
        "        if request.grant in self._early:\n            place.wake()",
        "        if False:\n            place.wake()",
    ),
    Planted(
        "waiters ask again only when woken",
        "pub/sub locks",
        "_waiting.py",
        "return min(self._locks.ask_again_s(), outcome.busy.retry_after_ms / 1000 + 0.001)",
        "return 3600.0",
    ),
    Planted(
        "after a reconnect nobody asks again",
        "pub/sub locks whose messages were lost",
        "_nodes/standalone.py",
        "                self._send_text(call)\n        self._wake(None)",
        "                self._send_text(call)",
    ),
    Planted(
        "a release that was lost is not sent again",
        "our own past",
        "_nodes/standalone.py",
        "            self._owed_releases.append((call.script.sha, len(call.keys), *call.keys, *call.args))",
        "            pass",
    ),
    Planted(
        "the old connection is not killed at a reconnect",
        "commands executed late, out of a dead connection's buffer",
        "_nodes/login.py",
        '        if previous is not None:\n            wire.send(lambda _: None, "CLIENT", "KILL"',
        '        if False:\n            wire.send(lambda _: None, "CLIENT", "KILL"',
    ),
    Planted(
        "a minority's grants are not undone",
        "Redlock ports",
        "redlock.py",
        "                node.release(request.resource, request.grant)",
        "                pass",
    ),
    Planted(
        "nodes that lost the lease do not get it back",
        "Redlock ports",
        "redlock.py",
        "                    node.rejoin(grant)",
        "                    pass",
    ),
    Planted(
        "no drift allowance, and the deadline twice the ttl",
        _CORE,
        "_quorum.py",
        "return (ttl_ms - drift_ms(ttl_ms)) / 1000",
        "return 2 * ttl_ms / 1000",
    ),
)
