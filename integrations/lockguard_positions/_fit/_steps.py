"""What a fit comes to: statements in their order, and what a person has to know or to decide."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

__all__ = ["MACHINE_SINCE", "Finding", "Kind", "Level", "Phase", "Step"]


MACHINE_SINCE = 3
"""The first version of the positions schema whose trigger refuses changes of status."""

_TITLE_MAX = 90


class Level(StrEnum):
    """How much of lockguard the bot uses."""

    LOOK = "look"
    """Nothing is written; reports only."""
    GUARD = "guard"
    """The bot's own code writes, under leases, and the fence refuses what has none."""
    FLOW = "flow"
    """lockguard_positions opens and closes the positions."""


class Phase(IntEnum):
    """When a statement may run."""

    BESIDE = 1
    """Beside the living bot: it refuses nothing that its code does, and takes each lock for a moment."""
    SWITCH = 2
    """With the switch to lockguard's flow: from here on something that the old code may do is refused."""


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction of a fit.

    Attributes:
        sql: its statements.
        why: what it is for, and what it costs, as a text for display.
        phase: when it may run.
        alone: whether it cannot be in a transaction, as ``create index concurrently``.
        renames: whether code that uses the old names fails from here on.
    """

    sql: str
    why: str
    phase: Phase = Phase.BESIDE
    alone: bool = False
    renames: bool = False

    @property
    def title(self) -> str:
        """The beginning of its statements, without comments, in one line."""
        lines = (line for line in self.sql.splitlines() if not line.startswith("--"))
        text = " ".join(" ".join(lines).split())
        return text if len(text) <= _TITLE_MAX else f"{text[:_TITLE_MAX]}..."


class Kind(StrEnum):
    """What a finding is about."""

    SHAPE = "shape"
    RIGHT = "right"
    STATUS = "status"
    TRANSITION = "transition"
    DUPLICATE = "duplicate"
    SPELLING = "spelling"
    VALUE = "value"
    HALF_DONE = "half_done"
    STOP = "stop"
    EXCHANGE = "exchange"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person has to know or to decide.

    Attributes:
        kind: what it is about.
        told: one line.
        remedy: what to do, one line; empty where there is nothing to be done.
        level: the lowest level that it matters to.
        blocks: whether the level cannot be reached until it is settled.
        never: whether the table as it is can never reach it.
        rows: the ids of the rows.
    """

    kind: Kind
    told: str
    remedy: str = ""
    level: Level = Level.FLOW
    blocks: bool = False
    never: bool = False
    rows: tuple[str, ...] = ()
