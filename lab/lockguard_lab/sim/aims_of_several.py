"""Plans that aim at one mechanism of several servers: a quorum's, Sentinel's or a cluster's."""

from __future__ import annotations

from typing import Any

from lockguard_lab.sim.aiming import Dice, Plan
from lockguard_lab.sim.fault import Fault

__all__ = [
    "a_failover",
    "a_far_node_that_forgets",
    "a_long_lease_among_short_ones",
    "a_slot_that_moves",
    "a_slot_without_an_owner",
    "a_split_vote",
    "an_old_primary_that_goes_on",
    "clocks_that_are_apart",
    "kept_closed_by_nodes_that_had_forgotten",
    "most_nodes_forget_a_grant_unseen",
    "nodes_forget_under_a_long_lease",
    "one_node_after_the_other_forgets",
]


def one_node_after_the_other_forgets(plan: Plan, dice: Dice) -> Any:
    """Each node of a quorum loses its data, the next one once the last is back."""
    ttl_s, first = dice.choice((1.0, 3.0)), dice.randrange(plan.nodes)
    faults = tuple(
        Fault("erode", (0.5 + step * 1.2) * ttl_s, 0.0, (0, (first + step) % plan.nodes))
        for step in range(plan.nodes)
    )
    return plan.with_(
        ttl_s=ttl_s, work_s=dice.choice((1.0, 6.0)), until_s=plan.nodes * 1.5 * ttl_s, faults=faults
    )


def kept_closed_by_nodes_that_had_forgotten(plan: Plan, dice: Dice) -> Any:
    """A majority is given a lease that it had forgotten, and it is lost; nothing is forgotten after that."""
    ttl_s, first = dice.choice((0.5, 1.0)), dice.randrange(plan.nodes)
    forget = plan.nodes // 2 + 1
    faults = tuple(
        Fault("erode", (0.5 + step * 1.2) * ttl_s, 0.0, (0, (first + step) % plan.nodes))
        for step in range(forget)
    )
    longest_s = (2.0 + forget * 1.2) * ttl_s
    return plan.with_(
        processes=2,
        resources=1,
        ttl_s=ttl_s,
        max_hold_s=longest_s,
        lock_delay_s=dice.choice((0.4, 1.2)),
        least_work_s=longest_s + 0.1,
        work_s=longest_s + 0.2,
        until_s=longest_s + 1.0,
        wait_s=longest_s + 6.0,
        waits=1.0,
        faults=faults,
    )


def a_long_lease_among_short_ones(plan: Plan, dice: Dice) -> Any:
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


def most_nodes_forget_a_grant_unseen(plan: Plan, dice: Dice) -> Any:
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


def a_far_node_that_forgets(plan: Plan, dice: Dice) -> Any:
    """A node is far away and forgets; what it says of that arrives when the body is over."""
    node = dice.randrange(plan.nodes)
    far = [Fault("slow link", 0.0, dice.uniform(0.5, 1.5), (process, node)) for process in range(2)]
    gone = [Fault("wipe", dice.uniform(0.0, 1.2), 0.0, (0, node), upon="held", nth=nth) for nth in (1, 2, 3)]
    return plan.with_(
        ttl_s=3.0, least_work_s=0.4, work_s=1.6, until_s=3.0, wait_s=8.0, waits=1.0, faults=(*far, *gone)
    )


def nodes_forget_under_a_long_lease(plan: Plan, dice: Dice) -> Any:
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


def clocks_that_are_apart(plan: Plan, dice: Dice) -> Any:
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


def a_split_vote(plan: Plan, dice: Dice) -> Any:
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


def a_failover(plan: Plan, dice: Dice) -> Any:
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


def an_old_primary_that_goes_on(plan: Plan, dice: Dice) -> Any:
    """A holder's primary is replaced and goes on to answer it, for longer than the Sentinels need to tell."""
    ttl_s = dice.choice((1.0, 3.0))
    over = Fault("failover", dice.uniform(0.1, 0.6), 30.0, upon="held", nth=dice.choice((1, 2)))
    return plan.with_(
        ttl_s=ttl_s, least_work_s=9.0 + ttl_s, work_s=12.0 + ttl_s, until_s=1.0, wait_s=20.0, faults=(over,)
    )


def a_slot_that_moves(plan: Plan, dice: Dice) -> Any:
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


def a_slot_without_an_owner(plan: Plan, dice: Dice) -> Any:
    """Nobody serves a slot for a while."""
    gone = Fault("no owner", dice.uniform(0.1, 1.5), dice.choice((0.1, 0.6, 3.0)), (0, 0))
    return plan.with_(
        tasks=dice.choice((1, 2)), ttl_s=dice.choice((1.0, 10.0)), work_s=0.5, until_s=2.5, faults=(gone,)
    )
