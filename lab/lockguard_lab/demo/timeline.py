"""Who held which lock when, out of what Redis wrote down."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lockguard_lab.demo.peek import HistoryLine

__all__ = ["Tenure", "overlaps", "tenures"]

_ENDINGS = frozenset({"released", "broken"})


@dataclass(frozen=True, slots=True)
class Tenure:
    """One grant's time.

    Attributes:
        holder: host, process and task.
        start_ms: when it was granted, in milliseconds since 1970.
        end_ms: when it ended; ``None`` if nobody wrote it down yet.
        ending: ``released``, ``broken`` or ``expired``. Nobody writes an expiry down: it is seen by the next
            grant, and the tenure is taken to have ended then.
    """

    resource: str
    grant: str
    holder: str
    operation: str
    token: int
    start_ms: float
    end_ms: float | None = None
    ending: str = ""

    @property
    def pid(self) -> str:
        """The holder's process."""
        return self.holder.partition(":")[2].partition("/")[0]


def tenures(history: Iterable[HistoryLine]) -> list[Tenure]:
    """Every grant in the history, by its beginning."""
    found: dict[str, Tenure] = {}
    last: dict[str, str] = {}
    for entry in history:
        fields = entry.fields
        grant, event = fields.get("grant", ""), fields.get("event")
        if event == "granted":
            before = found.get(last.get(entry.resource, ""))
            if before is not None and before.end_ms is None:
                found[before.grant] = replace(before, end_ms=entry.at_ms, ending="expired")
            last[entry.resource] = grant
            found[grant] = Tenure(
                resource=entry.resource,
                grant=grant,
                holder=fields.get("holder", ""),
                operation=fields.get("operation", ""),
                token=int(fields.get("token", "0")),
                start_ms=entry.at_ms,
            )
        elif event in _ENDINGS and grant in found:
            found[grant] = replace(found[grant], end_ms=entry.at_ms, ending=event)
    return sorted(found.values(), key=lambda tenure: tenure.start_ms)


def overlaps(found: Iterable[Tenure]) -> int:
    """How many grants began while another one of the same lock had not ended."""
    until: dict[str, float] = {}
    count = 0
    for tenure in found:
        count += tenure.start_ms < until.get(tenure.resource, 0.0)
        until[tenure.resource] = tenure.start_ms if tenure.end_ms is None else tenure.end_ms
    return count
