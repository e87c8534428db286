"""A round as it was read: its history by grants, its tables and its plan."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lockguard_lab.chaos.recording import Call, History

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Grant", "Judged", "grants_of", "read_round"]


@dataclass(slots=True)
class Grant:
    """What the history knows of one grant.

    Attributes:
        acquire: the call that obtained it.
        release: the call that gave it back, if there was one.
        deadline: until when its holder trusted it at least, as far as its process has noted.
        lost: when its holder learned that it had ended; infinity if it did not.
        reason: why it had ended.
    """

    acquire: Call
    release: Call | None = None
    deadline: float = math.inf
    lost: float = math.inf
    reason: str = ""

    @property
    def id(self) -> str:
        """The grant's identity."""
        return str(self.acquire.facts["grant"])

    @property
    def token(self) -> int:
        """Its token."""
        return int(self.acquire.facts["token"])

    @property
    def released(self) -> bool:
        """Whether the lock was held when it was given back."""
        return self.release is not None and self.release.how == "ok"

    @property
    def believed_until(self) -> float:
        """When its holder stopped to trust it: it gave it back, was told of its end, or its time was over."""
        begun = self.release.begin if self.release is not None else math.inf
        return min(begun, self.deadline, self.lost)


@dataclass(slots=True)
class Judged:
    """A round as it was read.

    Attributes:
        history: its history.
        tables: the rows that it left.
        plan: the facts of its plan.
    """

    history: History
    tables: dict[str, list[dict[str, Any]]]
    plan: dict[str, Any] = field(default_factory=dict)

    @property
    def resources(self) -> list[str]:
        """What was locked."""
        return sorted({call.resource for call in self.history.calls.values()})

    @property
    def ttl_s(self) -> float:
        """The ttl of the leases, in seconds."""
        return float(self.plan["ttl"])

    @property
    def alone(self) -> bool:
        """Whether the loss of one server's data is the loss of a lock."""
        return not str(self.plan["topology"]).startswith("quorum")


def read_round(directory: Path) -> Judged:
    """Read what a round left.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is malformed.
    """
    plan = json.loads((directory / "round.json").read_text())
    rows = json.loads((directory / "tables.json").read_text())
    return Judged(History.read(sorted(directory.glob("*.jsonl"))), rows, plan)


def grants_of(history: History) -> dict[str, Grant]:
    """All grants of a history, by their ids."""
    grants = {
        str(call.facts["grant"]): Grant(call, deadline=float(call.facts["deadline"]))
        for call in history.made("acquire")
        if call.how == "ok"
    }
    for call in history.made("release"):
        grants[call.facts["grant"]].release = call
    for call in history.made("confirm"):
        if call.how == "ok":
            grant = grants[call.facts["grant"]]
            grant.deadline = max(grant.deadline, call.facts["deadline"])
    for one, renewals in history.renewed.items():
        if one in grants:
            grants[one].deadline = max(grants[one].deadline, *(deadline for _, deadline in renewals))
    for one, (at, reason) in history.lost.items():
        if one in grants:
            grants[one].lost, grants[one].reason = at, reason
    return grants
