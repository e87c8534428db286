"""Plans that aim at one mechanism: the moment at which it alone keeps the promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lockguard_lab.sim import aims_of_several as several
from lockguard_lab.sim.aiming import Dice, Plan
from lockguard_lab.sim.fault import Fault

__all__ = ["aimed"]


def aimed(plan: Plan, topology: str, dice: Dice) -> Any:
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


def _late_renewals(plan: Plan, dice: Dice) -> Any:
    """What a holder sends is held back until its lease has ended and the next one holds the lock."""
    ttl_s = dice.choice((0.3, 0.6, 1.0))
    held = Fault("hold requests", dice.uniform(0.0, 0.4) * ttl_s, dice.uniform(1.1, 2.5) * ttl_s, upon="held")
    return plan.with_(ttl_s=ttl_s, least_work_s=ttl_s, work_s=3 * ttl_s, until_s=2.0, faults=(held,))


def _answers_slower_than_the_drift(plan: Plan, dice: Dice) -> Any:
    """Answers take longer than the allowance for drift; then nothing is renewed any more."""
    ttl_s = dice.choice((0.6, 1.0, 3.0))
    slow_s = dice.uniform(0.05, 0.3) * ttl_s
    faults = [Fault("slow link", 0.0, 5 * slow_s, (number, 0)) for number in range(2)]
    faults.append(Fault("hold requests", dice.uniform(0.0, 0.02), 2 * ttl_s, upon="held"))
    return plan.with_(
        ttl_s=ttl_s, least_work_s=1.5 * ttl_s, work_s=2 * ttl_s, until_s=2.0, faults=tuple(faults)
    )


def _a_long_way(plan: Plan, dice: Dice) -> Any:
    """Every trip takes a good part of the ttl; no lease may end of that."""
    ttl_s = dice.choice((1.0, 2.0))
    faults = tuple(Fault("long way", 0.0, 60.0, (number, 0)) for number in range(2))
    return plan.with_(
        ttl_s=ttl_s, least_work_s=ttl_s, work_s=3 * ttl_s, until_s=3.0, wait_s=8.0, faults=faults
    )


def _a_renewal_that_is_refused_once(plan: Plan, dice: Dice) -> Any:
    """A server refuses what it is asked for a moment; no lease may end of that."""
    ttl_s = dice.choice((1.0, 3.0))
    refused = Fault("refuse", dice.uniform(0.2, 0.4) * ttl_s, dice.uniform(0.12, 0.3) * ttl_s, upon="held")
    return plan.with_(
        processes=1, ttl_s=ttl_s, least_work_s=ttl_s, work_s=3 * ttl_s, until_s=1.0, faults=(refused,)
    )


def _kept_closed(plan: Plan, dice: Dice) -> Any:
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


def _kept_closed_though_it_was_asked_for_twice(plan: Plan, dice: Dice) -> Any:
    """The first answer is late, so that the second one starts the ttl again; and no renewal comes in time."""
    lasts_s = dice.uniform(1.2, 2.4)
    faults = tuple(Fault("slow link", at, lasts_s, (0, 0)) for at in (0.1, 0.1 + lasts_s))
    return plan.with_(
        ttl_s=0.3,
        processes=2,
        resources=1,
        lock_delay_s=dice.choice((0.2, 0.4)),
        work_s=0.4,
        until_s=4.0,
        wait_s=6.0,
        waits=1.0,
        faults=faults,
    )


def _a_longest_hold(plan: Plan, dice: Dice) -> Any:
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


def _confirmed_when_it_is_gone(plan: Plan, dice: Dice) -> Any:
    """A lock is deleted under a body that has its lease confirmed."""
    gone = tuple(Fault("delete key", dice.uniform(0.0, 0.5), 0.0, upon="held", nth=nth) for nth in (1, 2, 3))
    return plan.with_(
        ttl_s=dice.choice((1.0, 3.0)), confirms=0.5, least_work_s=0.5, work_s=1.0, until_s=2.0, faults=gone
    )


def _a_stop_while_it_seals(plan: Plan, dice: Dice) -> Any:
    """A process stops between the grant and its body, for longer than the lease."""
    ttl_s = dice.choice((0.3, 1.0))
    faults = tuple(
        Fault(
            "stop process", dice.uniform(0.0, 0.008), dice.uniform(1.0, 2.0) * ttl_s, upon="granted", nth=nth
        )
        for nth in (1, 2, 3)
    )
    return plan.with_(ttl_s=ttl_s, work_s=0.3, until_s=3.0, faults=faults)


def _a_crash(plan: Plan, dice: Dice) -> Any:
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


def _a_crash_of_waiters(plan: Plan, dice: Dice) -> Any:
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


def _newcomers_at_an_expiry(plan: Plan, dice: Dice) -> Any:
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


def _lost_wake_ups(plan: Plan, dice: Dice) -> Any:
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


def _a_herd(plan: Plan, dice: Dice) -> Any:
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


def _who_was_woken_does_not_come(plan: Plan, dice: Dice) -> Any:
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


def _a_key_that_vanishes(plan: Plan, dice: Dice) -> Any:
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


def _data_that_are_lost(plan: Plan, dice: Dice) -> Any:
    """A server forgets everything under a holder, and says so; or it restarts without its data."""
    kind = dice.choice(("wipe", "crash empty"))
    gone = Fault(kind, dice.uniform(0.05, 0.3), dice.uniform(0.05, 0.4) * (kind != "wipe"), upon="held")
    return plan.with_(
        ttl_s=10.0, least_work_s=4.0, work_s=5.0, until_s=0.5, wait_s=20.0, waits=1.0, faults=(gone,)
    )


def _a_link_dies_silently(plan: Plan, dice: Dice) -> Any:
    """A connection never answers again, under a holder; another one would."""
    ttl_s = dice.choice((1.0, 3.0))
    first_s = dice.uniform(0.0, 0.4) * ttl_s
    dead = [Fault("stall", first_s, 60.0, upon="held")]
    if ttl_s > 1.0:  # and so does the next one, maybe with the renewal that was sent again
        dead.append(Fault("stall", first_s + dice.uniform(0.1, 1.2), 60.0, upon="held"))
    return plan.with_(
        processes=1, ttl_s=ttl_s, least_work_s=2 * ttl_s, work_s=3 * ttl_s, until_s=0.5, faults=tuple(dead)
    )


def _a_cut_as_it_is_given_back(plan: Plan, dice: Dice) -> Any:
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


def _a_clock_that_goes_back(plan: Plan, dice: Dice) -> Any:
    """The server's clock goes back by minutes, and the holder is dead."""
    faults = (
        Fault("server clock back", dice.uniform(0.0, 0.3), 120.0, upon="held"),
        Fault("kill process", dice.uniform(0.0, 0.3), 0.0, upon="held"),
    )
    return plan.with_(
        ttl_s=dice.choice((1.0, 3.0)), least_work_s=0.5, work_s=0.6, until_s=1.0, wait_s=1.0, faults=faults
    )


def _cancelled_at_each_step(plan: Plan, dice: Dice) -> Any:
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


_Aims = tuple[Callable[[Plan, Dice], Any], ...]

_EVERYWHERE: _Aims = (_late_renewals, _a_stop_while_it_seals, _cancelled_at_each_step)
_SINGLE: _Aims = (
    _answers_slower_than_the_drift,
    _a_long_way,
    _a_renewal_that_is_refused_once,
    _kept_closed,
    _kept_closed_though_it_was_asked_for_twice,
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
    several.one_node_after_the_other_forgets,
    several.kept_closed_by_nodes_that_had_forgotten,
    several.a_long_lease_among_short_ones,
    several.most_nodes_forget_a_grant_unseen,
    several.a_far_node_that_forgets,
    several.nodes_forget_under_a_long_lease,
    several.clocks_that_are_apart,
    several.a_split_vote,
    _a_crash,
    _a_key_that_vanishes,
    _a_key_that_vanishes,
    several.a_long_lease_among_short_ones,
)
_SENTINEL: _Aims = (
    several.a_failover,
    several.a_failover,
    several.a_failover,
    several.an_old_primary_that_goes_on,
    _a_crash,
    _lost_wake_ups,
    _a_key_that_vanishes,
)
_CLUSTER: _Aims = (
    several.a_failover,
    several.a_failover,
    several.a_slot_that_moves,
    several.a_slot_that_moves,
    several.a_slot_without_an_owner,
    _a_herd,
    _a_key_that_vanishes,
)
