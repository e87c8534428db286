"""What a simulated schedule did, as actions of ``lock_and_fence.pml``: one trace for each resource.

Only what happened is recorded, where it happened: at the server, in the database, in the body. What the model
does in between by itself (an answer arrives, a client gives up) is left to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from unittest import mock

from lockguard._scripts import SCRIPTS
from lockguard_lab.sim import run as running
from lockguard_lab.sim.judge import Body, Judge
from lockguard_lab.sim.ledger import Ledger
from lockguard_lab.sim.plan import Plan
from lockguard_lab.sim.postgres import Postgres

__all__ = ["Do", "Step", "Trace", "record"]

_NAMES = {script.sha.encode(): script.name for script in SCRIPTS} | {
    script.source.encode(): script.name for script in SCRIPTS
}
_CHANGING = ("acquire", "extend", "settle", "release", "break")
"""The scripts that the model has an action for; the others read."""


class Do(IntEnum):
    """The actions, by their numbers in ``replay_lock_and_fence.h``."""

    ACQUIRE = 1
    BUSY = 2
    EXPIRE = 3
    REPLACED = 4
    RENEWED = 5
    RENEWAL_REFUSED = 6
    SETTLE = 7
    SEAL_SENT = 8
    SEALED = 9
    OUTRUN = 10
    ENTER = 11
    PRESENT = 12
    REFUSED = 13
    COMMIT = 14
    ABORT = 15
    LEAVE = 16
    RELEASE = 17
    CLOSE = 18
    BREAK_FENCE = 19
    BREAK_LOCK = 20


@dataclass(frozen=True)
class Step:
    """One action: what, by which grant (empty for none), with which token, and what else."""

    do: Do
    grant: str = ""
    token: int = 0
    more: int = 0


@dataclass
class Trace:
    """What befell one resource in one schedule, in order."""

    seed: int
    resource: str
    steps: list[Step] = field(default_factory=list)

    @property
    def grants(self) -> list[str]:
        """Its grants, by their first action."""
        return list(dict.fromkeys(step.grant for step in self.steps if step.grant))


class _Recorder:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock: dict[str, str] = defaultdict(str)
        self._floor: dict[str, int] = defaultdict(int)
        self._ends_ms: dict[str, float] = {}
        self.traces: dict[str, Trace] = {}

    def add(self, resource: str, do: Do, grant: str = "", token: int = 0, more: int = 0) -> None:
        trace = self.traces.setdefault(resource, Trace(self._plan.seed, resource))
        trace.steps.append(Step(do, grant, token, more))

    def before(self, server: Any, lock: bytes, resource: str) -> None:
        """What became of the lock since the last command: its time ended, or the server has other data."""
        grant, token, floor = self._seen(server, lock)
        known, was = self._lock[resource], self._floor[resource]
        if (grant, floor) == (known, was):
            return
        over = server.store.now_ms >= self._ends_ms.get(resource, 0.0)
        if known and not grant and floor == was and (over or not self._plan.loses_data):
            self.add(resource, Do.EXPIRE, known)
        else:
            self.add(resource, Do.REPLACED, grant, token, floor)
        self._lock[resource], self._floor[resource] = grant, floor

    def executed(self, server: Any, script: str, lock: bytes, args: tuple[bytes, ...], reply: Any) -> None:
        resource = lock.partition(b"{")[2].rpartition(b"}")[0].decode()
        grant = args[0].decode() if args else ""
        match script:
            case "acquire" if reply[0] == 1:
                self.add(resource, Do.ACQUIRE, grant, int(reply[1]))
            case "acquire":
                self.add(resource, Do.BUSY, grant)
            case "extend":
                self.add(resource, Do.RENEWED if reply else Do.RENEWAL_REFUSED, grant)
            case "settle":
                self.add(
                    resource, Do.SETTLE if reply else Do.RENEWAL_REFUSED, grant, int(args[1]) if reply else 0
                )
            case "release":
                self.add(resource, Do.RELEASE, grant, 0, int(reply))
            case "break" if args[0] == b"force" and not reply[3]:
                self.add(resource, Do.BREAK_LOCK, "", int(reply[2]))
        self._lock[resource], _, self._floor[resource] = self._seen(server, lock)
        self._ends_ms[resource] = server.store.ends_ms.get(lock, 0.0)

    @staticmethod
    def _seen(server: Any, lock: bytes) -> tuple[str, int, int]:
        grant, token = (server.store.do(b"HGET", lock, field) for field in (b"grant", b"token"))
        floor = server.store.do(b"GET", lock + b":token")
        return (grant or b"").decode(), int(float(token or 0)), int(float(floor or 0))


def record(plan: Plan) -> list[Trace]:
    """Run a schedule on one server, and tell what it did."""
    recorder = _Recorder(plan)
    with _listening(recorder):
        running.run(plan)
    return list(recorder.traces.values())


@contextmanager
def _listening(recorder: _Recorder) -> Iterator[None]:
    before, executed, entered, left = Ledger.before, Ledger.executed, Judge.entered, Judge.left
    init = Postgres.__init__

    def script_of(name: str, words: tuple[bytes, ...]) -> str:
        return _NAMES.get(words[1], "") if name in ("EVALSHA", "EVAL") else ""

    def on_before(self: Ledger, server: Any, name: str, words: tuple[bytes, ...]) -> Any:
        if script_of(name, words) in _CHANGING:
            recorder.before(server, words[3], words[3].partition(b"{")[2].rpartition(b"}")[0].decode())
        return before(self, server, name, words)

    def on_executed(
        self: Ledger, server: Any, name: str, words: tuple[bytes, ...], reply: Any, held: bytes | None
    ) -> None:
        script = script_of(name, words)
        if script in _CHANGING and not isinstance(reply, Exception):
            recorder.executed(server, script, words[3], words[3 + int(words[2]) :], reply)
        executed(self, server, name, words, reply, held)

    def on_entered(self: Judge, body: Body) -> None:
        recorder.add(body.resource, Do.ENTER, str(body.lease.grant.id))
        entered(self, body)

    def on_left(self: Judge, body: Body) -> None:
        recorder.add(body.resource, Do.LEAVE, str(body.lease.grant.id))
        left(self, body)

    def on_made(self: Postgres, *args: Any) -> None:
        init(self, *args)
        self.told = lambda resource, what, grant, token: recorder.add(resource, Do[what], grant, token)

    with (
        mock.patch.object(Ledger, "before", on_before),
        mock.patch.object(Ledger, "executed", on_executed),
        mock.patch.object(Judge, "entered", on_entered),
        mock.patch.object(Judge, "left", on_left),
        mock.patch.object(Postgres, "__init__", on_made),
    ):
        yield
