"""What a case found of one way to lock."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Found", "Verdict", "seconds"]

Verdict = Literal["yes", "late", "no", "-"]
"""``yes``: what the case asks for holds. ``late``: it holds after a wait, or at a price that is told. ``no``:
it does not. ``-``: there is nothing to ask."""


@dataclass(frozen=True, slots=True)
class Found:
    """One cell of the board.

    Attributes:
        way: of :data:`lockguard_lab.bench.holders.choose.EVERY`.
        label: its name in tables.
        case: of :data:`lockguard_lab.scoreboard.cases.CASES`.
        verdict: whether what the case asks for holds.
        told: what was seen, in a few words.
        seconds: the time that decides, if there is one.
    """

    way: str
    label: str
    case: str
    verdict: Verdict
    told: str
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As a row of the file of ``--json``."""
        row = asdict(self)
        row["seconds"] = None if self.seconds is None else round(self.seconds, 4)
        return row


def seconds(taken: float) -> str:
    """A time for a person, as exact as it is worth."""
    return f"{taken:.1f} s" if taken >= 0.95 else f"{taken * 1000:.0f} ms"
