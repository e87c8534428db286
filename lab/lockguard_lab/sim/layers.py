"""What the simulator can run schedules of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, Self

from lockguard._cli.mistake import Mistake
from lockguard_lab.sim.plan import Plan
from lockguard_lab.sim.run import run

if TYPE_CHECKING:
    from lockguard_lab.sim.judge import Violation

__all__ = ["LAYERS", "Layer", "OutcomeOf", "PlanOf", "layer_of", "shrunk"]


class PlanOf(Protocol):
    """A schedule before it begins."""

    @property
    def seed(self) -> int:
        """Its number."""
        ...

    @property
    def perils(self) -> tuple[Any, ...]:
        """What goes wrong in it."""
        ...

    def without(self, *perils: Any) -> Self:
        """The same, with less that goes wrong."""
        ...


class OutcomeOf(Protocol):
    """What a schedule came to; see ``Outcome``."""

    @property
    def violations(self) -> tuple[Violation, ...]:
        """The laws that were broken."""
        ...

    @property
    def virtual_s(self) -> float:
        """How long it took, in its own time."""
        ...

    @property
    def trace_hash(self) -> str:
        """Of all that happened."""
        ...

    @property
    def lines(self) -> tuple[str, ...]:
        """All that happened, for a person."""
        ...

    def without_lines(self) -> Self:
        """The same, small enough to be sent to another process."""
        ...


@dataclass(frozen=True)
class Layer:
    """A part of the product in a simulated world.

    Attributes:
        plan: makes the plan of a seed; the second argument fixes the servers, where they can be chosen.
        run: runs it.
        counts: what is counted, by the attribute of the outcome, with a text for people.
    """

    plan: Callable[[int, str | None], Any]
    run: Callable[[Any], Any]
    counts: Mapping[str, str]


def _flow() -> Layer:
    module = import_module("lockguard_lab.sim.flow.run")  # it needs ccxt, which the lock does not
    return Layer(
        lambda seed, _: module.FlowPlan.of(seed),
        module.run,
        {
            "calls": "calls of the manager",
            "requests": "requests of the exchange",
            "statements": "statements of Postgres",
        },
    )


def _fence() -> Layer:
    module = import_module("lockguard_lab.sim.fenced.run")  # it needs asyncpg, which the lock does not
    return Layer(
        lambda seed, _: module.FencedPlan.of(seed),
        module.run_fenced,
        {
            "held": "bodies under a lease",
            "commits": "writes committed",
            "commands": "statements and commands",
        },
    )


_LOCK = Layer(
    Plan.of, run, {"held": "bodies under a lease", "commits": "commits", "commands": "commands of Redis"}
)
LAYERS = ("lock", "fence", "flow")


_EXTRAS = {"fence": "postgres", "flow": "positions"}


def layer_of(name: str) -> Layer:
    """The layer of a name of :data:`LAYERS`.

    Raises:
        Mistake: a package that it needs is not installed.
    """
    try:
        return {"lock": lambda: _LOCK, "fence": _fence, "flow": _flow}[name]()
    except ImportError as exc:
        if "pip install" in str(exc):
            raise
        missing = exc.name or str(exc)
        remedy = f"pip install 'lockguard[{_EXTRAS[name]}]'"
        raise Mistake(f"--layer {name} needs packages that are not installed ({missing}); {remedy}") from exc


def shrunk(layer: Layer, plan: PlanOf) -> tuple[PlanOf, OutcomeOf]:
    """The plan with the fewest perils that still breaks a law, and what it comes to.

    Raises:
        ValueError: the plan breaks none.
    """
    outcome: OutcomeOf = layer.run(plan)
    if not outcome.violations:
        raise ValueError(f"seed {plan.seed} breaks no law")
    for peril in plan.perils:
        less = plan.without(peril)
        without: OutcomeOf = layer.run(less)
        if without.violations:
            plan, outcome = less, without
    return plan, outcome
