"""A round as it was read: its history by grants, its tables and its plan."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lockguard_lab.chaos.plan import TOPOLOGIES
from lockguard_lab.chaos.recording import Call, History

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMAT", "Grant", "Judged", "grants_of", "read_round"]

FORMAT = 1
"""The version of a record's files, which ``round.json`` names; the first records do not say it."""
_TABLES = ("ledger", "entries", "bypasses")


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

    A record that is not whole is not judged: calls that are missing would be held against the lock, or would
    hide what it did wrong.

    Raises:
        ValueError: a file is missing, cannot be read, is damaged, or of another version; the message says
            which.
    """
    plan = _object(directory / "round.json")
    if plan.get("format", FORMAT) != FORMAT:
        raise ValueError(f"it is of another version: format {plan['format']}, not {FORMAT}")
    ttl, topology = plan.get("ttl"), plan.get("topology")
    if not (isinstance(ttl, float) and 0 < ttl < math.inf) or topology not in TOPOLOGIES:
        raise ValueError(f"round.json is damaged or of another version: ttl {ttl!r}, topology {topology!r}")
    if type(plan.get("seed")) is not int or type(plan.get("processes")) is not int:
        raise ValueError("round.json is damaged or of another version: no seed, or no number of processes")
    if not (directory / "tables.json").exists():
        raise ValueError("it has no tables.json: its run was killed, or failed, before the round was over")
    rows = _object(directory / "tables.json")
    if not all(isinstance(rows.get(name), list) for name in _TABLES):
        raise ValueError("tables.json is damaged or of another version")
    names = ["conductor.jsonl", *(f"process-{number + 1}.jsonl" for number in range(plan["processes"]))]
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise ValueError(f"it is not whole: {missing[0]} is missing")
    try:
        history = History.read(sorted(path for path in directory.glob("*.jsonl") if path.is_file()))
    except OSError as exc:
        raise ValueError(f"it cannot be read: {exc.strerror or exc}") from exc
    _require_whole(history, rows)
    return Judged(history, rows, plan)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as exc:
        raise ValueError(f"{path.name} cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{path.name} is damaged: it is no JSON") from exc
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is damaged: it is no object")  # noqa: TRY004 - of a file
    return found


def _require_whole(history: History, rows: dict[str, list[dict[str, Any]]]) -> None:
    for process, count in history.unreadable.items():
        pids = {call.facts.get("pid") for call in history.calls.values() if call.process == process}
        if count > max(1, len(pids)):  # a kill cuts one line short
            raise ValueError(f"it is not whole: {process}.jsonl has {count} lines that cannot be read")
    written = {call.number for call in history.made("write")}
    for row in (*rows["ledger"], *rows["entries"]):
        if abs(row["op"]) not in written:
            raise ValueError(f"it is not whole: no process noted write {row['op']}, which is in the tables")


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
