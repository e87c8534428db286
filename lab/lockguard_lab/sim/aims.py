"""Plans that aim at one mechanism: the moment at which it alone keeps the promise."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

from lockguard_lab.sim.fault import Fault

__all__ = ["aimed"]

_Dice = random.Random


class Plan(Protocol):
    """What is drawn of a plan, which :mod:`~lockguard_lab.sim.plan` has."""

    @property
    def seed(self) -> int:
        """Its number."""
        ...

    @property
    def nodes(self) -> int:
        """How many servers decide."""
        ...

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What goes wrong."""
        ...

    def with_(self, **changed: Any) -> Any:
        """The plan with some of its attributes changed."""
        ...


def aimed(plan: Plan, topology: str, dice: _Dice) -> Any:
    """The plan with an aim at a mechanism, of those that the servers have.

    The aims come by turns, every second seed: drawn at random, the more there are, the more often one of them
    would be left out for hundreds of schedules.
    """
    aims = list(_EVERYWHERE)
    aims += {"single": _SINGLE, "sentinel": _SENTINEL, "cluster": _CLUSTER}.get(topology, _QUORUM)
    aim = aims[plan.seed // 2 % len(aims)]
    faulty = aim(plan, dice)
    return faulty.with_(
        aim=aim.__name__.strip("_").replace("_", " "),
        faults=tuple(sorted(faulty.faults, key=lambda fault: fault.at)),
    )


def _late_renewals(plan: Plan, dice: _Dice) -> Any:
    """What a holder sends is held back until its lease has ended and the next one holds the lock."""
    ttl_s = dice.choice((0.3, 0.6, 1.0))
    held = Fault("hold requests", dice.uniform(0.0, 0.4) * ttl_s, dice.uniform(1.1, 2.5) * ttl_s, upon="held")
    return plan.with_(ttl_s=ttl_s, least_work_s=ttl_s, work_s=3 * ttl_s, until_s=2.0, faults=(held,))


def _answers_slower_than_the_drift(plan: Plan, dice: _Dice) -> Any:
    """Answers take longer than the allowance for drift; then nothing is renewed any more."""
    ttl_s = dice.choice((0.6, 1.0, 3.0))
    slow_s = dice.uniform(0.05, 0.3) * ttl_s
    faults = [Fault("slow link", 0.0, 5 * slow_s, (number, 0)) for number in range(2)]
    faults.append(Fault("hold requests", dice.uniform(0.0, 0.02), 2 * ttl_s, upon="held"))
    return plan.with_(
        ttl_s=ttl_s, least_work_s=1.5 * ttl_s, work_s=2 * ttl_s, until_s=2.0, faults=tuple(faults)
    )


def _a_long_way(plan: Plan, dice: _Dice) -> Any:
    """Every trip takes a good part of the ttl; no lease may end of that."""
    ttl_s = dice.choice((1.0, 2.0))
    faults = tuple(Fault("long way", 0.0, 60.0, (number, 0)) for number in range(2))
    return plan.with_(
        ttl_s=ttl_s, least_work_s=ttl_s, work_s=3 * ttl_s, until_s=3.0, wait_s=8.0, faults=faults
    )


def _a_renewal_that_is_refused_once(plan: Plan, dice: _Dice) -> Any:
    """A server refuses what it is asked for a moment; no lease may end of that."""
    ttl_s = dice.choice((1.0, 3.0))
    refused = Fault("refuse", dice.uniform(0.2, 0.4) * ttl_s, dice.uniform(0.12, 0.3) * ttl_s, upon="held")
    return plan.with_(
        processes=1, ttl_s=ttl_s, least_work_s=ttl_s, work_s=3 * ttl_s, until_s=1.0, faults=(refused,)
    )


def _kept_closed(plan: Plan, dice: _Dice) -> Any:
    """Resources stay closed for a while after a grant that was lost, or since a grant."""
    ttl_s = dice.choice((0.5, 1.0))
    kind = dice.choice(("kill process", "hold requests", "stop process", ""))
    faults = tuple(
        Fault(kind, dice.uniform(0.0, 0.6) * ttl_s, dice.uniform(1.1, 2.0) * ttl_s, upon="held", nth=nth)
        for nth in (1, 3)
        if kind
    )
    return plan.with_(
        ttl_s=ttl_s,
        processes=2,
        lock_delay_s=dice.choice((0.0, 0.4, 0.4)),
        at_least_s=dice.choice((0.0, 0.3, 0.8)),
        least_work_s=dice.choice((0.0, 1.5)) * ttl_s,
        work_s=dice.choice((0.1, 2.0)) * ttl_s,
        until_s=2.5,
        wait_s=6.0,
        waits=1.0,
        faults=faults,
    )


def _a_longest_hold(plan: Plan, dice: _Dice) -> Any:
    """Bodies that would go on for longer than a lease may be held."""
    ttl_s = dice.choice((0.5, 1.0))
    return plan.with_(
        ttl_s=ttl_s,
        max_hold_s=dice.choice((0.7, 1.5)) * ttl_s,
        lock_delay_s=dice.choice((0.0, 0.4)),
        work_s=3 * ttl_s,
        until_s=2.0,
        wait_s=8.0,
    )


def _confirmed_when_it_is_gone(plan: Plan, dice: _Dice) -> Any:
    """A lock is deleted under a body that has its lease confirmed."""
    gone = tuple(Fault("delete key", dice.uniform(0.0, 0.5), 0.0, upon="held", nth=nth) for nth in (1, 2, 3))
    return plan.with_(
        ttl_s=dice.choice((1.0, 3.0)), confirms=0.5, least_work_s=0.5, work_s=1.0, until_s=2.0, faults=gone
    )


def _a_stop_while_it_seals(plan: Plan, dice: _Dice) -> Any:
    """A process stops between the grant and its body, for longer than the lease."""
    ttl_s = dice.choice((0.3, 1.0))
    faults = tuple(
        Fault(
            "stop process", dice.uniform(0.0, 0.008), dice.uniform(1.0, 2.0) * ttl_s, upon="granted", nth=nth
        )
        for nth in (1, 2, 3)
    )
    return plan.with_(ttl_s=ttl_s, work_s=0.3, until_s=3.0, faults=faults)


def _a_crash(plan: Plan, dice: _Dice) -> Any:
    """A holder is killed while others wait."""
    kill = Fault("kill process", dice.uniform(0.05, 0.3), 0.0, upon="held")
    return plan.with_(
        processes=3,
        tasks=dice.choice((1, 2)),
        ttl_s=dice.choice((0.6, 1.0, 3.0)),
        least_work_s=0.4,
        work_s=1.0,
        until_s=1.0,
        wait_s=12.0,
        waits=1.0,
        faults=(kill,),
    )


def _a_crash_of_waiters(plan: Plan, dice: _Dice) -> Any:
    """A process of several waiters is killed, and they are next."""
    tasks = dice.choice((2, 3, 4))
    # The first process has the lock and the first places, the second those behind them.
    kill = Fault("kill process", dice.uniform(0.1, 0.2), 0.0, upon="waits", nth=tasks)
    return plan.with_(
        processes=3,
        tasks=tasks,
        one_after_the_other_s=0.08,
        ttl_s=10.0,
        least_work_s=0.1,
        work_s=0.25,
        until_s=0.6,
        wait_s=30.0,
        waits=1.0,
        faults=(kill,),
    )


def _newcomers_at_an_expiry(plan: Plan, dice: _Dice) -> Any:
    """A holder dies; who waits is far away, and newcomers ask all the time."""
    ttl_s = dice.choice((0.3, 0.6))
    kill = Fault("kill process", dice.uniform(0.05, 0.15), 0.0, upon="held")
    slow = Fault("slow link", 0.0, dice.uniform(0.1, 0.6), upon="waits")
    return plan.with_(
        processes=3,
        ttl_s=ttl_s,
        least_work_s=0.5,
        work_s=1.0,
        until_s=1.5,
        wait_s=8.0,
        waits=1.0,
        pollers=2,
        faults=(kill, slow),
    )


def _lost_wake_ups(plan: Plan, dice: _Dice) -> Any:
    """Messages are lost."""
    lose = Fault("lose messages", 0.0, 60.0)
    return plan.with_(
        processes=dice.choice((2, 3)),
        ttl_s=dice.choice((3.0, 10.0)),
        least_work_s=0.1,
        work_s=dice.choice((0.3, 1.5)),
        until_s=2.0,
        wait_s=12.0,
        waits=1.0,
        faults=(lose,),
    )


def _a_herd(plan: Plan, dice: _Dice) -> Any:
    """Many callers of short bodies, so that wake-ups meet the answers that give the places."""
    stops = tuple(
        Fault("stop process", dice.uniform(0.0, 0.5), dice.choice((0.002, 0.02)), (number, 0))
        for number in range(dice.choice((0, 0, 2, 4)))
    )
    return plan.with_(
        processes=dice.choice((2, 3, 4)),
        tasks=dice.choice((2, 4)),
        ttl_s=10.0,
        work_s=dice.choice((0.002, 0.01)),
        until_s=0.6,
        waits=1.0,
        wait_s=8.0,
        faults=stops,
    )


def _who_was_woken_does_not_come(plan: Plan, dice: _Dice) -> Any:
    """A waiter is cancelled, killed or stopped when the lock is kept for it."""
    kind = dice.choice(("cancel", "cancel", "kill process", "stop process"))
    faults = tuple(
        Fault(
            kind, dice.choice((0.0, dice.uniform(0.0, 0.004))), dice.uniform(0.1, 1.5), upon="woken", nth=nth
        )
        for nth in (1, 2, 4, 5)[: 1 if kind == "kill process" else 4]
    )
    drawn = plan.with_(
        processes=3,
        tasks=dice.choice((1, 2)),
        ttl_s=10.0,
        work_s=dice.choice((0.01, 0.2)),
        until_s=1.0,
        wait_s=8.0,
        waits=1.0,
        faults=faults,
    )
    if dice.random() < 0.5:
        # Nobody new comes, nor waits in the same process: their questions would wake the next one as well.
        drawn = drawn.with_(processes=4, tasks=1, least_work_s=0.25, work_s=0.4, until_s=0.2)
    return drawn


def _a_key_that_vanishes(plan: Plan, dice: _Dice) -> Any:
    """The lock is deleted under its holder; of several servers, on a few or on just as many as decide."""
    first, at_s = dice.randrange(plan.nodes), dice.uniform(0.05, 1.5)
    gone = tuple(
        Fault("delete key", at_s + dice.uniform(0.0, 0.5), 0.0, (0, (first + step) % plan.nodes), upon="held")
        for step in range(dice.randint(1, plan.nodes // 2 + 1))
    )
    return plan.with_(
        ttl_s=dice.choice((1.0, 3.0, 10.0, 30.0)),
        least_work_s=6.0,
        work_s=9.0,
        until_s=0.5,
        wait_s=30.0,
        waits=1.0,
        faults=gone,
    )


def _data_that_are_lost(plan: Plan, dice: _Dice) -> Any:
    """A server forgets everything under a holder, and says so; or it restarts without its data."""
    kind = dice.choice(("wipe", "crash empty"))
    gone = Fault(kind, dice.uniform(0.05, 0.3), dice.uniform(0.05, 0.4) * (kind != "wipe"), upon="held")
    return plan.with_(
        ttl_s=10.0, least_work_s=4.0, work_s=5.0, until_s=0.5, wait_s=20.0, waits=1.0, faults=(gone,)
    )


def _a_link_dies_silently(plan: Plan, dice: _Dice) -> Any:
    """A connection never answers again, under a holder; another one would."""
    ttl_s = dice.choice((1.0, 3.0))
    first_s = dice.uniform(0.0, 0.4) * ttl_s
    dead = [Fault("stall", first_s, 60.0, upon="held")]
    if ttl_s > 1.0:  # and so does the next one, maybe with the renewal that was sent again
        dead.append(Fault("stall", first_s + dice.uniform(0.1, 1.2), 60.0, upon="held"))
    return plan.with_(
        processes=1, ttl_s=ttl_s, least_work_s=2 * ttl_s, work_s=3 * ttl_s, until_s=0.5, faults=tuple(dead)
    )


def _a_cut_as_it_is_given_back(plan: Plan, dice: _Dice) -> Any:
    """A connection is cut around the end of a body: the release is lost, or the message to who is next.

    The ttl is so long that nothing but the release, or the next waiter's own question, ends the lease.
    """
    cuts = tuple(
        Fault("cut", dice.choice((0.0, dice.uniform(0.0, 0.002))), 0.0, upon=upon, nth=nth)
        for upon, nth in ((dice.choice(("left", "released")), nth) for nth in (1, 2, 3, 5, 7))
    )
    return plan.with_(
        processes=2, tasks=dice.choice((1, 2)), ttl_s=10.0, work_s=0.2, until_s=2.0, faults=cuts
    )


def _a_clock_that_goes_back(plan: Plan, dice: _Dice) -> Any:
    """The server's clock goes back by minutes, and the holder is dead."""
    faults = (
        Fault("server clock back", dice.uniform(0.0, 0.3), 120.0, upon="held"),
        Fault("kill process", dice.uniform(0.0, 0.3), 0.0, upon="held"),
    )
    return plan.with_(
        ttl_s=dice.choice((1.0, 3.0)), least_work_s=0.5, work_s=0.6, until_s=1.0, wait_s=1.0, faults=faults
    )


def _cancelled_at_each_step(plan: Plan, dice: _Dice) -> Any:
    """Each call is cancelled at its n-th step, in a calm or a passing storm."""
    kinds = dice.choice(((), (), PASSING_STORM))
    faults = tuple(
        Fault(kind, dice.uniform(0, 1.0), dice.choice((0.02, 0.3)), (dice.randrange(9), dice.randrange(9)))
        for kind in kinds
    )
    return plan.with_(
        processes=dice.choice((1, 2, 2)),
        tasks=dice.choice((1, 2)),
        ttl_s=dice.choice((1.0, 10.0)),
        work_s=dice.choice((0.002, 0.05)),
        until_s=1.0,
        waits=0.9,
        cancelled_by=dice.choice((4, 8, 16)),
        faults=faults,
    )


PASSING_STORM = ("cut", "stall", "forget scripts")


def _one_node_after_the_other_forgets(plan: Plan, dice: _Dice) -> Any:
    """Each node of a quorum loses its data, the next one once the last is back."""
    ttl_s, first = dice.choice((1.0, 3.0)), dice.randrange(plan.nodes)
    faults = tuple(
        Fault("erode", (0.5 + step * 1.2) * ttl_s, 0.0, (0, (first + step) % plan.nodes))
        for step in range(plan.nodes)
    )
    return plan.with_(
        ttl_s=ttl_s, work_s=dice.choice((1.0, 6.0)), until_s=plan.nodes * 1.5 * ttl_s, faults=faults
    )


def _a_long_lease_among_short_ones(plan: Plan, dice: _Dice) -> Any:
    """Nodes that know short leases only are asked for a long one; one grants it and forgets, others are late.

    Meanwhile the one that forgot is admitted, by what the others know. The clocks of those that are late are
    behind, or the tokens would tell.
    """
    from_s, first = dice.uniform(0.6, 1.0), dice.randrange(plan.nodes)
    forgets, *others = [(0, (first + step) % plan.nodes) for step in range(plan.nodes)]
    late = plan.nodes // 2
    faults = [
        Fault("wipe", dice.uniform(0.0, 0.004), 0.0, forgets, upon="long"),
        Fault("stop process", dice.uniform(0.002, 0.006), dice.uniform(0.4, 0.8), upon="long"),
        *(Fault("hold requests", from_s, dice.uniform(0.1, 0.4), where) for where in others[:late]),
        *(Fault("hold requests", from_s, dice.uniform(1.0, 2.5), where) for where in others[late:]),
    ]
    return plan.with_(
        ttl_s=0.1,
        long_ttl_s=dice.choice((1.0, 3.0)),
        long_from_s=from_s,
        resources=4,
        behind=tuple(number for _, number in others[:late]),
        least_work_s=0.005,
        work_s=dice.choice((0.5, 2.0)),
        until_s=from_s + 2.0,
        wait_s=6.0,
        faults=tuple(faults),
    )


def _most_nodes_forget_a_grant_unseen(plan: Plan, dice: _Dice) -> Any:
    """Most nodes of a quorum lose their data, and the holder cannot hear of it."""
    ttl_s, first = dice.choice((1.0, 3.0)), dice.randrange(plan.nodes)
    faults = []
    for step in range(plan.nodes // 2 + 1):
        where = (0, (first + step) % plan.nodes)
        faults.append(Fault("hold both", 0.02, 1.5 * ttl_s, where, upon="held"))
        faults.append(Fault("wipe", dice.uniform(0.05, 0.2), 0.0, where, upon="held"))
    return plan.with_(
        ttl_s=ttl_s,
        least_work_s=ttl_s,
        work_s=2 * ttl_s,
        until_s=1.0,
        wait_s=8.0,
        waits=1.0,
        faults=tuple(faults),
    )


def _a_far_node_that_forgets(plan: Plan, dice: _Dice) -> Any:
    """A node is far away and forgets; what it says of that arrives when the body is over."""
    node = dice.randrange(plan.nodes)
    far = [Fault("slow link", 0.0, dice.uniform(0.5, 1.5), (process, node)) for process in range(2)]
    gone = [Fault("wipe", dice.uniform(0.0, 1.2), 0.0, (0, node), upon="held", nth=nth) for nth in (1, 2, 3)]
    return plan.with_(
        ttl_s=3.0, least_work_s=0.4, work_s=1.6, until_s=3.0, wait_s=8.0, waits=1.0, faults=(*far, *gone)
    )


def _nodes_forget_under_a_long_lease(plan: Plan, dice: _Dice) -> Any:
    """Nodes lose their data one by one under a stopped holder, whose lease is longer than the others'."""
    first, nth = dice.randrange(plan.nodes), dice.choice((1, 2))
    stop = Fault("stop process", 0.05, 6.0, upon="held", nth=nth)
    nodes = [(0, (first + step) % plan.nodes) for step in range(plan.nodes // 2 + 1)]
    gone = [
        Fault("wipe", 0.3 + step * dice.uniform(1.2, 2.0), 0.0, node, upon="held", nth=nth)
        for step, node in enumerate(nodes)
    ]
    if nth > 1 and dice.random() < 0.5:  # they come back as they were before the lease
        gone = [Fault("crash old", 0.0, dice.uniform(0.05, 0.2), node, upon="released") for node in nodes]
    return plan.with_(
        processes=3,
        long_ttl_s=8.0,
        long_from_s=0.001,
        ttl_s=0.6,
        one_after_the_other_s=dice.choice((0.0, 0.1)),
        least_work_s=3.0,
        work_s=6.5,
        until_s=1.0,
        wait_s=8.0,
        waits=1.0,
        faults=(stop, *gone),
    )


def _clocks_that_are_apart(plan: Plan, dice: _Dice) -> Any:
    """The nodes' clocks differ, no fence raises a token, and now and then a node is not reached."""
    apart = [
        Fault("clock apart", 0.0, dice.choice((0.0, 0.01, 0.3, 2.0)), (0, node)) for node in range(plan.nodes)
    ]
    away = [
        Fault("hold both", dice.uniform(0.1, 3.0), dice.choice((0.1, 0.5)), (number % 2, dice.randrange(9)))
        for number in range(dice.choice((2, 4, 8)))
    ]
    return plan.with_(
        fenced=False,
        processes=2,
        tasks=dice.choice((1, 2)),
        ttl_s=3.0,
        work_s=0.05,
        until_s=3.0,
        waits=0.8,
        faults=(*apart, *away),
    )


def _a_split_vote(plan: Plan, dice: _Dice) -> Any:
    """Each process reaches some nodes late, so that none has a majority at once.

    Who waits releases everything when it gives up; who does not wait undoes what single nodes have granted it
    as soon as the others have refused.
    """
    faults = tuple(
        Fault("slow link", 0.0, dice.uniform(0.05, 0.5), (process, node))
        for process in range(3)
        for node in range(plan.nodes)
        if dice.random() < 0.5
    )
    waits = dice.choice((0.3, 1.0))
    return plan.with_(
        processes=3, ttl_s=3.0, work_s=0.05, until_s=1.5, waits=waits, wait_s=8.0, faults=faults
    )


def _a_failover(plan: Plan, dice: _Dice) -> Any:
    """A replica takes over without the last writes; the old primary goes on for a while."""
    passing = [
        Fault(
            dice.choice(("cut", "stop process", "cancel")), dice.uniform(0, 3.0), 0.3, (dice.randrange(9), 0)
        )
        for _ in range(dice.choice((0, 0, 1, 2)))
    ]
    first = Fault(
        "failover", dice.uniform(0.1, 1.0), dice.choice((0.0, 0.5, 2.0, 30.0)), (0, dice.randrange(9))
    )
    upon = dice.choice(("", "granted", "held", "released", "released"))
    if upon:
        after_s = dice.choice((0.0, dice.uniform(0.0, 0.05)))
        first = Fault("failover", after_s, dice.choice((0.0, 0.5, 2.0)), upon=upon)
    return plan.with_(
        processes=dice.choice((2, 3)),
        tasks=dice.choice((1, 2)),
        ttl_s=10.0 if upon == "released" else dice.choice((1.0, 3.0, 10.0)),
        work_s=dice.choice((0.05, 0.5, 4.0)),
        until_s=3.0,
        wait_s=6.0,
        faults=(first, *passing),
    )


def _an_old_primary_that_goes_on(plan: Plan, dice: _Dice) -> Any:
    """A holder's primary is replaced and goes on to answer it, for longer than the Sentinels need to tell."""
    ttl_s = dice.choice((1.0, 3.0))
    over = Fault("failover", dice.uniform(0.1, 0.6), 30.0, upon="held", nth=dice.choice((1, 2)))
    return plan.with_(
        ttl_s=ttl_s, least_work_s=9.0 + ttl_s, work_s=12.0 + ttl_s, until_s=1.0, wait_s=20.0, faults=(over,)
    )


def _a_slot_that_moves(plan: Plan, dice: _Dice) -> Any:
    """A slot moves to another shard, key by key, under holders and waiters."""
    moves = [
        Fault("move slot", dice.uniform(0.1, 2.0), dice.choice((0.02, 0.3, 1.0)), (0, dice.randrange(9)))
        for _ in range(dice.choice((1, 1, 2)))
    ]
    return plan.with_(
        processes=dice.choice((2, 3)),
        tasks=dice.choice((1, 2)),
        ttl_s=dice.choice((3.0, 10.0)),
        work_s=dice.choice((0.02, 0.3, 1.5)),
        until_s=3.0,
        wait_s=8.0,
        faults=tuple(moves),
    )


def _a_slot_without_an_owner(plan: Plan, dice: _Dice) -> Any:
    """Nobody serves a slot for a while."""
    gone = Fault("no owner", dice.uniform(0.1, 1.5), dice.choice((0.1, 0.6, 3.0)), (0, 0))
    return plan.with_(
        tasks=dice.choice((1, 2)), ttl_s=dice.choice((1.0, 10.0)), work_s=0.5, until_s=2.5, faults=(gone,)
    )


_Aims = tuple[Callable[[Plan, _Dice], Any], ...]

_EVERYWHERE: _Aims = (_late_renewals, _a_stop_while_it_seals, _cancelled_at_each_step)
_SINGLE: _Aims = (
    _answers_slower_than_the_drift,
    _a_long_way,
    _a_renewal_that_is_refused_once,
    _kept_closed,
    _a_longest_hold,
    _confirmed_when_it_is_gone,
    _a_crash,
    _a_crash_of_waiters,
    _newcomers_at_an_expiry,
    _lost_wake_ups,
    _a_herd,
    _who_was_woken_does_not_come,
    _a_key_that_vanishes,
    _data_that_are_lost,
    _a_link_dies_silently,
    _a_cut_as_it_is_given_back,
    _a_clock_that_goes_back,
    _who_was_woken_does_not_come,
)
_QUORUM: _Aims = (
    _answers_slower_than_the_drift,
    _one_node_after_the_other_forgets,
    _a_long_lease_among_short_ones,
    _most_nodes_forget_a_grant_unseen,
    _a_far_node_that_forgets,
    _nodes_forget_under_a_long_lease,
    _clocks_that_are_apart,
    _a_split_vote,
    _a_crash,
    _a_key_that_vanishes,
    _a_key_that_vanishes,
    _a_long_lease_among_short_ones,
)
_SENTINEL: _Aims = (
    _a_failover,
    _a_failover,
    _a_failover,
    _an_old_primary_that_goes_on,
    _a_crash,
    _lost_wake_ups,
    _a_key_that_vanishes,
)
_CLUSTER: _Aims = (
    _a_failover,
    _a_failover,
    _a_slot_that_moves,
    _a_slot_that_moves,
    _a_slot_without_an_owner,
    _a_herd,
    _a_key_that_vanishes,
)
