"""What the aims draw from: a plan, and dice."""

from __future__ import annotations

import random
from typing import Any, Protocol

from lockguard_lab.sim.fault import Fault

__all__ = ["Dice", "Plan"]

Dice = random.Random


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
