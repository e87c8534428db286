"""What befalls the processes, the network and the servers of a schedule."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from lockguard_lab.sim.fault import Fault
from lockguard_lab.sim.plan import Plan

if TYPE_CHECKING:
    from lockguard_lab.sim.judge import Judge
    from lockguard_lab.sim.network import Network
    from lockguard_lab.sim.postgres import Postgres
    from lockguard_lab.sim.redis_server import RedisServer
    from lockguard_lab.sim.servers import Servers
    from lockguard_lab.sim.world import Process, World

__all__ = ["Faults"]

_SENTINELS_TELL_S = 1.5

_JUMPS = frozenset({"server clock ahead", "server clock back", "clock apart"})
"""What is no condition that ends: a clock stays where it has jumped to, by so many seconds."""

_REFUSALS = (
    "OOM command not allowed when used memory > 'maxmemory'.",
    "LOADING Redis is loading the dataset in memory",
    "MISCONF Redis is configured to save RDB snapshots",
    "BUSY Redis is busy running a script.",
    "NOREPLICAS Not enough good replicas to write.",
)


class Faults:
    """Lets the faults of a plan befall.

    Args:
        world: the schedule.
        plan: what goes wrong.
        judge: told how long it lasts.
        network: the links.
        servers: the servers.
        postgres: the database.
        processes: those of the plan.
        cancel: cancels one call of those under way.
        operate: has an operator break a lock, in a process.

    Attributes:
        over_at: when the last fault is over that has befallen, or will at its time.
    """

    def __init__(
        self,
        world: World,
        plan: Plan,
        judge: Judge,
        network: Network,
        servers: Servers,
        postgres: Postgres,
        processes: list[Process],
        *,
        cancel: Callable[[], None],
        operate: Callable[[Process], None],
    ) -> None:
        self._world, self._plan, self._judge = world, plan, judge
        self._network, self._servers, self._postgres = network, servers, postgres
        self._processes = processes
        self._cancel_one, self._operate = cancel, operate
        self._upon: dict[str, list[Fault]] = {}
        self._times: Counter[str] = Counter()
        self._usual: dict[tuple[int, str], object] = {}
        self._under_way: Counter[tuple[int, str]] = Counter()
        self.over_at = 0.0
        for fault in plan.faults:
            if fault.upon:
                self._upon.setdefault(fault.upon, []).append(fault)
            else:
                self._lasts(fault, from_s=fault.at)
                process = processes[fault.where[0] % len(processes)]
                world.at(fault.at, partial(self._befall, fault, process))

    def happened(self, what: str, call: asyncio.Task[Any] | None) -> None:
        """What faults wait for has happened to a call."""
        process: Any = None if call is None else call.get_loop()
        if process not in self._processes:
            return
        self._times[what] += 1
        for fault in self._upon.get(what, ()):
            if fault.nth == self._times[what]:
                self._world.after(fault.at, partial(self._befall, fault, process, call))

    def _befall(self, fault: Fault, process: Process, call: asyncio.Task[Any] | None = None) -> None:
        servers = self._servers.deciding
        server = servers[fault.where[1] % len(servers)]
        self._world.tell(f"{fault.kind}: {process.name}, {server.name}")
        lasts = fault.lasts
        if fault.kind == "failover" and self._plan.topology == "sentinel":
            lasts = min(lasts, _SENTINELS_TELL_S)  # the old primary is left, though it goes on
        self._judge.trouble_until = max(self._judge.trouble_until, self._world.now + lasts)
        self._lasts(fault, from_s=self._world.now)
        if fault.kind == "cancel" and call is not None:
            if not process.dead:
                call.cancel()
            return
        _BEFALL[fault.kind](self, fault, process, server)

    def _lasts(self, fault: Fault, *, from_s: float) -> None:
        if fault.kind not in _JUMPS:
            self.over_at = max(self.over_at, from_s + fault.lasts)

    def _meanwhile(self, fault: Fault, thing: object, name: str, value: object) -> None:
        """Change an attribute of a thing until the fault is over: of those that overlap, the last."""
        key = (id(thing), name)
        self._usual.setdefault(key, getattr(thing, name))
        self._under_way[key] += 1
        setattr(thing, name, value)

        def over() -> None:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                setattr(thing, name, self._usual[key])

        self._world.after(fault.lasts, over)

    def _resource(self, fault: Fault) -> str:
        return f"binance:{'ABCDEFG'[fault.where[0] % self._plan.resources]}"

    # The network.

    def _cut(self, fault: Fault, process: Process, server: RedisServer) -> None:
        # Upon an event it ends all connections: what others are being told of that is lost as well.
        self._network.cut(process=None if fault.upon else process.name, server=server.name)

    def _stall(self, fault: Fault, process: Process, server: RedisServer) -> None:
        for transport in self._network.between(process.name, server.name):
            transport.stall_for(fault.lasts)

    def _slow_link(self, fault: Fault, process: Process, server: RedisServer) -> None:
        link = self._network.link(process.name, server.name)
        delay_s = (0.02, 0.02 + fault.lasts / 5)
        if self._plan.aim:
            link.delay_s = delay_s
        else:
            self._meanwhile(fault, link, "delay_s", delay_s)

    def _long_way(self, _: Fault, process: Process, server: RedisServer) -> None:
        ttl_s = self._plan.ttl_s
        self._network.link(process.name, server.name).delay_s = (0.08 * ttl_s, 0.14 * ttl_s)

    def _hold_back(self, fault: Fault, process: Process, server: RedisServer) -> None:
        link = self._network.link(process.name, server.name)
        held = (fault.kind != "hold replies", fault.kind != "hold requests")
        self._meanwhile(fault, link, "held", held)

    # The processes.

    def _stop_process(self, fault: Fault, process: Process, _: RedisServer) -> None:
        calls = self._world.dice.choice((None, 0, 1, 1, 2, 3))
        if calls is None:
            process.stop_for(fault.lasts)
        else:
            process.stop_within(calls, fault.lasts)

    def _kill(self, _: Fault, process: Process, __: RedisServer) -> None:
        process.kill()

    def _cancel(self, *_: object) -> None:
        self._cancel_one()

    def _break(self, _: Fault, process: Process, __: RedisServer) -> None:
        if not process.dead:
            self._operate(process)

    # The database.

    def _slow_database(self, fault: Fault, *_: object) -> None:
        self._meanwhile(fault, self._postgres, "delay_s", (0.05, 0.05 + fault.lasts))

    def _lose_answers(self, fault: Fault, *_: object) -> None:
        self._meanwhile(fault, self._postgres, "answers_lost", 0.5)

    # The servers.

    def _stop_server(self, fault: Fault, _: Process, server: RedisServer) -> None:
        server.stop_for(fault.lasts)

    def _wipe(self, _: Fault, __: Process, server: RedisServer) -> None:
        server.wipe()

    def _delete(self, fault: Fault, *_: object) -> None:
        lock = b"lockguard:{%b}" % self._resource(fault).encode()
        asked = self._servers.asked(lock)
        asked[fault.where[1] % len(asked)].lock_vanishes(lock)

    def _forget_scripts(self, _: Fault, __: Process, server: RedisServer) -> None:
        server.scripts.known.clear()

    def _refuse(self, fault: Fault, _: Process, server: RedisServer) -> None:
        self._meanwhile(fault, server, "refuses", self._world.dice.choice(_REFUSALS))

    def _mute(self, fault: Fault, _: Process, server: RedisServer) -> None:
        self._world.after(fault.lasts, server.heard_again)
        server.mute = True

    def _clock(self, fault: Fault, _: Process, server: RedisServer) -> None:
        server.jumped_s += -fault.lasts if fault.kind == "server clock back" else fault.lasts

    def _crash(self, fault: Fault, _: Process, server: RedisServer) -> None:
        kept = None if fault.kind == "crash empty" else server.store.snapshot()
        late_s = 0.3 if fault.kind == "crash old" else 0.0
        self._world.after(late_s, lambda: server.crash(fault.lasts, kept))

    def _fail_over(self, fault: Fault, *_: object) -> None:
        self._servers.fail_over(self._resource(fault), goes_on_s=fault.lasts)

    def _move_slot(self, fault: Fault, *_: object) -> None:
        self._servers.move_slot(self._resource(fault), fault.where[1], takes_s=fault.lasts)

    def _no_owner(self, fault: Fault, *_: object) -> None:
        self._servers.lose_slot(self._resource(fault), for_s=fault.lasts)


_BEFALL: dict[str, Callable[[Faults, Fault, Process, RedisServer], None]] = {
    "break": Faults._break,
    "clock apart": Faults._clock,
    "cancel": Faults._cancel,
    "crash empty": Faults._crash,
    "crash old": Faults._crash,
    "crash same": Faults._crash,
    "cut": Faults._cut,
    "delete key": Faults._delete,
    "erode": Faults._wipe,
    "failover": Faults._fail_over,
    "forget scripts": Faults._forget_scripts,
    "hold both": Faults._hold_back,
    "hold replies": Faults._hold_back,
    "hold requests": Faults._hold_back,
    "kill process": Faults._kill,
    "long way": Faults._long_way,
    "lose commit answers": Faults._lose_answers,
    "lose messages": Faults._mute,
    "move slot": Faults._move_slot,
    "no owner": Faults._no_owner,
    "refuse": Faults._refuse,
    "server clock ahead": Faults._clock,
    "server clock back": Faults._clock,
    "slow database": Faults._slow_database,
    "slow link": Faults._slow_link,
    "stall": Faults._stall,
    "stop process": Faults._stop_process,
    "stop server": Faults._stop_server,
    "wipe": Faults._wipe,
}
