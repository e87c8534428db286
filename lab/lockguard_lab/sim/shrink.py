"""Leaves out of a failing schedule what it does not need to fail."""

from __future__ import annotations

from lockguard_lab.sim.plan import Plan
from lockguard_lab.sim.run import Outcome, run

__all__ = ["shrunk"]


def shrunk(plan: Plan) -> tuple[Plan, Outcome]:
    """The plan with the fewest faults that still breaks a law, and what it comes to.

    Raises:
        ValueError: the plan breaks none.
    """
    outcome = run(plan)
    if not outcome.violations:
        raise ValueError(f"seed {plan.seed} breaks no law")
    for fault in plan.faults:
        less = plan.without(fault)
        if (without := run(less)).violations:
            plan, outcome = less, without
    return plan, outcome
