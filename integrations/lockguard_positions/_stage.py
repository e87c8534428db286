"""What comes next for a row, by its status: the shape of the flow's table of stages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from lockguard_ccxt import Step
    from lockguard_positions._model import Intent, Position, Progress

__all__ = ["Stage", "Taken"]

Taken: TypeAlias = "Coroutine[Any, Any, Progress | None]"
"""A step that is being taken; ``None`` comes of it if an order stays in doubt."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The next step for a row in one status.

    Attributes:
        intents: the steps whose order may be in doubt when a holder has left the row in this status.
        begin: the step without an intent, a method of the flow; ``None`` where the row is as it should be.
        go_on: the step with an intent, new or found; ``None`` where this status has none.
        told: the text of both for the reference.
    """

    intents: tuple[Step, ...]
    begin: Callable[[Any, Position], Taken] | None
    go_on: Callable[[Any, Position, Intent], Taken] | None
    told: str

    @property
    def rests(self) -> bool:
        """Whether a row in this status, with no order in doubt, needs no further step."""
        return self.begin is None
