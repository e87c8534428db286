"""Plans of the fence that aim at one mechanism: the moment at which it alone keeps the promise."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

from lockguard_lab.sim.fault import Fault

__all__ = ["aimed"]

_Dice = random.Random


class Plan(Protocol):
    """What is drawn of a plan, which :mod:`~lockguard_lab.sim.fenced.plan` has."""

    @property
    def seed(self) -> int:
        """Its number."""
        ...

    def with_(self, **changed: Any) -> Any:
        """The plan with some of its attributes changed."""
        ...


def aimed(plan: Plan, dice: _Dice) -> Any:
    """The plan with an aim at a mechanism, by turns every second seed, so that none is left out for long."""
    aim = _AIMS[plan.seed // 2 % len(_AIMS)]
    drawn = aim(plan, dice)
    return drawn.with_(
        aim=aim.__name__.strip("_").replace("_", " "),
        faults=tuple(sorted(drawn.faults, key=lambda fault: fault.at)),
    )


def _superseded_again_and_again(plan: Plan, dice: _Dice) -> Any:
    """Holders are superseded, and learn of it only by their next renewal or write."""
    kinds = (*("lose grant",) * 4, "break", "stop process", "lose answers", "kill session")
    faults = [
        Fault(
            dice.choice(kinds),
            dice.uniform(0.1, 3.0),
            dice.choice((0.1, 0.5, 1.5)),
            (dice.randrange(60), dice.randrange(60)),
        )
        for _ in range(dice.choice((4, 8, 12)))
    ]
    return plan.with_(
        processes=dice.choice((2, 3)),
        ttl_s=dice.choice((3.0, 10.0)),
        work_s=dice.choice((0.5, 1.0, 2.0)),
        until_s=3.0,
        first=dice.random() < 0.2,
        faults=tuple(faults),
    )


def _superseded_behind_a_savepoint(plan: Plan, dice: _Dice) -> Any:
    """A rollback to a savepoint lets go of the fence's row, which a break takes before the next write."""
    faults = tuple(
        Fault("break", dice.choice((0.0, 0.0, 0.005)), 0.0, upon="undone", nth=nth) for nth in (1, 2, 3, 4)
    )
    return plan.with_(processes=2, ttl_s=10.0, work_s=0.5, until_s=3.0, shape="begun_before", faults=faults)


def _stopped_between_two_messages(plan: Plan, dice: _Dice) -> Any:
    """A holder stops when its statement is parsed: its backend waits for the rest, and no idle bound runs."""
    stop = Fault("stop process", 0.0, dice.uniform(5.0, 7.0), upon="parsed", nth=dice.randint(1, 4))
    lost = (Fault("lose eviction", 0.0, 0.0),) if dice.random() < 0.5 else ()
    return plan.with_(processes=2, ttl_s=1.0, work_s=0.1, until_s=2.0, faults=(stop, *lost))


def _cancelled_as_it_rolls_back(plan: Plan, dice: _Dice) -> Any:
    """The database is far away; a body is cancelled while it writes, and once more while that is undone."""
    far = tuple(Fault("far database", 0.0, 0.0, (number, 0)) for number in range(2))
    cancels = tuple(
        Fault("cancel twice", dice.uniform(0.0, 0.3), dice.uniform(0.01, 0.15), upon="writes", nth=nth)
        for nth in (1, 2, 4, 6)
    )
    return plan.with_(
        processes=2,
        ttl_s=10.0,
        work_s=0.5,
        until_s=3.0,
        way="on_a_connection_of_its_own",
        faults=far + cancels,
    )


def _superseded_on_a_kept_connection(plan: Plan, dice: _Dice) -> Any:
    """A break comes between two transactions of the bot's own on one connection; its holder is not told."""
    faults = tuple(
        Fault("break", dice.choice((0.0, dice.uniform(0.0, 0.3))), 0.0, upon="writes", nth=nth)
        for nth in (2, 4, 7, 11)
    )
    return plan.with_(
        processes=2,
        ttl_s=10.0,
        work_s=2.0,
        until_s=4.0,
        way="in_a_transaction_of_the_bots_own",
        faults=faults,
    )


def _the_database_is_away_as_it_closes(plan: Plan, dice: _Dice) -> Any:
    """The database is down when a lease is closed, for longer than a close is tried; no successor seals."""
    away = Fault("crash database", dice.choice((0.0, 0.001)), dice.uniform(3.0, 6.0), upon="left")
    return plan.with_(processes=1, ttl_s=3.0, work_s=0.1, until_s=0.2, faults=(away,))


def _a_seal_ends_that_took_a_close_along(plan: Plan, dice: _Dice) -> Any:
    """The database is down when a lease is handed on; the caller that it goes to is cancelled in its seal."""
    away = Fault("crash database", dice.choice((0.0, 0.001)), dice.uniform(1.5, 4.0), upon="left")
    cancels = tuple(Fault("cancel", dice.uniform(0.05, 0.6), 0.0, upon="left") for _ in range(2))
    return plan.with_(
        processes=1, tasks=2, ttl_s=3.0, work_s=0.1, until_s=0.2, shape="plainly", faults=(away, *cancels)
    )


def _answers_are_lost_to_what_began_before(plan: Plan, dice: _Dice) -> Any:
    """Outcomes are in doubt of transactions that were begun before their lease, and are asked about later."""
    lost = (Fault("lose answers", 0.0, 3.0), Fault("kill session", dice.uniform(0.2, 2.0), 0.0))
    return plan.with_(
        processes=dice.choice((1, 2)),
        ttl_s=10.0,
        work_s=0.5,
        until_s=3.0,
        shape=dice.choice(("begun_before", "")),
        way=dice.choice(("in_a_transaction", "by_its_own_text", "")),
        faults=lost,
    )


def _the_last_write_is_in_doubt(plan: Plan, dice: _Dice) -> Any:
    """The write that closes a lease fails, or its answer is lost, and no successor seals."""
    fault = dice.choice(
        (
            Fault("lose answers", 0.0, 3.0),
            Fault("kill session", dice.choice((0.0, 0.002, 0.02)), 0.0, upon="writes"),
            Fault("crash database", dice.choice((0.0, 0.002, 0.02)), 0.3, upon="writes"),
            Fault("cut database", dice.choice((0.0, 0.002, 0.02)), 0.0, upon="writes"),
        )
    )
    return plan.with_(processes=1, ttl_s=3.0, work_s=0.005, until_s=0.3, shape="closing", faults=(fault,))


def _connections_are_lost_again_and_again(plan: Plan, dice: _Dice) -> Any:
    """Connections to the database are lost, each for a moment: every call of the fence is made again."""
    faults = tuple(
        Fault(dice.choice(("kill session", "cut database")), dice.uniform(0.1, 3.0), 0.0, (n, n))
        for n in range(12)
    )
    return plan.with_(processes=dice.choice((1, 2, 3)), ttl_s=10.0, work_s=0.02, until_s=3.0, faults=faults)


def _two_close_at_the_same_time(plan: Plan, dice: _Dice) -> Any:
    """Two tasks close the same two leases with a write each."""
    return plan.with_(processes=dice.choice((1, 2)), ttl_s=10.0, work_s=0.1, until_s=2.0, shape="closing_two")


def _refused_in_a_transaction_from_before(plan: Plan, dice: _Dice) -> Any:
    """A break comes as a body begins, before its first write in a transaction that is open already."""
    faults = tuple(
        Fault("break", dice.choice((0.0, 0.002)), 0.0, upon="entered", nth=nth) for nth in range(1, 25, 2)
    )
    return plan.with_(processes=2, ttl_s=10.0, work_s=0.5, until_s=6.0, shape="begun_before", faults=faults)


def _superseded_while_a_child_writes(plan: Plan, dice: _Dice) -> Any:
    """A break comes while a task that the loss does not cut is in its transaction."""
    faults = tuple(
        Fault(
            dice.choice(("break", "lose grant")),
            dice.choice((0.0, dice.uniform(0.0, 0.3))),
            0.0,
            upon=dice.choice(("entered", "writes")),
            nth=nth,
        )
        for nth in (1, 3, 6, 9)
    )
    return plan.with_(
        processes=2,
        ttl_s=10.0,
        work_s=1.0,
        until_s=3.0,
        shape=dice.choice(("begun_before", "")),
        way=dice.choice(("by_a_child", "of_many_rows")),
        faults=faults,
    )


_AIMS: tuple[Callable[[Plan, _Dice], Any], ...] = (
    *(_superseded_again_and_again,) * 4,
    _superseded_behind_a_savepoint,
    _stopped_between_two_messages,
    _cancelled_as_it_rolls_back,
    _superseded_on_a_kept_connection,
    _the_database_is_away_as_it_closes,
    _answers_are_lost_to_what_began_before,
    _the_last_write_is_in_doubt,
    _a_seal_ends_that_took_a_close_along,
    _connections_are_lost_again_and_again,
    _two_close_at_the_same_time,
    _refused_in_a_transaction_from_before,
    _superseded_while_a_child_writes,
)
