"""The story of one resource: what Redis, the fence's audit and the refused writes tell of it, in one order.

Redis and the database have clocks of their own. Times are told on Redis's, by the offset that was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lockguard._history import HistoryEntry
    from lockguard._records import AuditLine, FenceState, Refusal
    from lockguard.ports import Inspection

__all__ = ["Line", "story"]

_NEAR = timedelta(seconds=1)
"""How far apart clocks may put the two lines of one break."""
_ENDS = frozenset({"released", "broken"})
_SENTENCES = {
    ("redis", "granted"): "granted to {who}, token {token}",
    ("redis", "released"): "released by {who}",
    ("redis", "broken"): "the lock of {who} was broken{why}",
    ("redis", "asked"): "{who} was asked to hand over{why}",
    ("redis", "rejoined"): "given back to {who} on a server that had lost it",
    ("redis", "opened"): "opened before its time{why}",
    ("redis", "ended"): "the lease of {who} had ended without a release: it expired, or its key was deleted",
    ("fence", "sealed"): "Postgres accepts writes of {who}, token {token}",
    ("fence", "closed"): "Postgres accepts no more writes of {who}",
    ("fence", "break"): "broken in the fence by role {role}{why}",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened.

    Attributes:
        at: when; of an inferred end the latest time at which it can have been.
        source: who tells it: ``redis`` or ``fence``.
        event: what happened, in one word: that of Redis's history; of the fence ``sealed``, ``closed``,
            ``refused`` or the audit's action; ``ended`` for an inferred end.
        token: the token, if it is told.
        grant: the grant; empty if it is not told.
        holder: the holder, or who broke the lock in the fence, for display.
        operation: what for, for display.
        reason: why, for display.
        times: how often, for a refusal.
        until: when it happened for the last time, where that is later.
        inferred: whether no process has told it: it follows from the other lines.
    """

    at: datetime
    source: str
    event: str
    token: int | None = None
    grant: str = ""
    holder: str = ""
    operation: str = ""
    reason: str = ""
    times: int = 1
    until: datetime | None = None
    inferred: bool = False

    @property
    def text(self) -> str:
        """It as a sentence, for display."""
        who = (self.holder or "an unknown holder") + (f" ({self.operation})" if self.operation else "")
        why = f": {self.reason}" if self.reason else ""
        if self.event == "refused":
            presented = "without a token" if self.token is None else f"with token {self.token}"
            often = "" if self.times == 1 else f" {self.times} times"
            last = "" if self.until is None else f", the last time at {self.until:%H:%M:%S}"
            return f"a write of {who} {presented} was refused{often}{last}{why}"
        if (sentence := _SENTENCES.get((self.source, self.event))) is not None:
            return sentence.format(who=who, why=why, token=self.token, role=self.holder)
        if self.source == "fence":  # the audit's line about many resources
            return f"{self.event} by role {self.holder}, {self.operation}{why}"
        return f"{self.event}{why}"


def story(
    entries: Sequence[HistoryEntry],
    lock: Inspection | None,
    state: FenceState | None,
    audit: Iterable[AuditLine],
    refusals: Iterable[Refusal],
    *,
    ahead: timedelta = timedelta(0),
) -> list[Line]:
    """Put together what is known of one resource, oldest first.

    Args:
        entries: Redis's history, newest first.
        lock: the lock as it is now; ``None`` if Redis does not answer.
        state: the fence as it is now, if it knows the resource.
        audit: the fence's lines.
        refusals: the refused writes.
        ahead: how far the database's clock is ahead of Redis's.
    """
    fence = [*_of_state(state), *_of_audit(audit), *map(_of_refusal, refusals)]
    corrected = (replace(line, at=line.at - ahead, until=line.until and line.until - ahead) for line in fence)
    granted = {entry.grant: entry.at for entry in entries if entry.event == "granted"}
    broken = [(entry.at, entry.reason) for entry in entries if entry.event == "broken"]

    def in_order(line: Line) -> Line:
        """The clocks are known to some milliseconds; a seal follows its grant, and a break its fence's."""
        if line.event == "sealed":
            return replace(line, at=max(line.at, granted.get(line.grant, line.at)))
        if line.event == "break":
            late = [at for at, why in broken if why == line.reason and timedelta(0) <= line.at - at < _NEAR]
            return replace(line, at=min(late) - timedelta(microseconds=1)) if late else line
        return line

    fenced = map(in_order, corrected)
    # At the same instant Redis comes first; the order of each by itself stays.
    return sorted([*_of_redis(entries, lock), *fenced], key=lambda line: line.at)


def _of_redis(entries: Sequence[HistoryEntry], lock: Inspection | None) -> Iterator[Line]:
    """Redis's lines, and the ends that they leave out: an expiry involves no process that could write one."""
    given: dict[str, HistoryEntry] = {}
    running: HistoryEntry | None = None
    for entry in reversed(entries):
        if entry.event == "granted":
            if running is not None and running.grant != entry.grant:
                yield _ended(running, entry.at)
            given[entry.grant] = running = entry
        elif entry.event in _ENDS and running is not None and running.grant == entry.grant:
            running = None
        to = given.get(entry.grant)
        yield Line(
            at=entry.at,
            source="redis",
            event=entry.event,
            token=entry.token if to is None else to.token,
            grant=entry.grant,
            holder=entry.holder if to is None else to.holder,
            operation=entry.operation if to is None else to.operation,
            reason=entry.reason,
        )
    if running is not None and lock is not None and lock.grant != running.grant and lock.server_ms:
        yield _ended(running, running.at.fromtimestamp(lock.server_ms / 1000, running.at.tzinfo))


def _ended(entry: HistoryEntry, by: datetime) -> Line:
    return Line(
        by,
        "redis",
        "ended",
        token=entry.token,
        grant=entry.grant,
        holder=entry.holder,
        operation=entry.operation,
        inferred=True,
    )


def _of_state(state: FenceState | None) -> Iterator[Line]:
    if state is None or state.operation.startswith(("break: ", "recover: ")):  # the audit tells it
        return
    facts = {
        "token": state.token,
        "grant": state.grant,
        "holder": state.holder,
        "operation": state.operation,
    }
    yield Line(state.sealed_at, "fence", "sealed", **facts)  # type: ignore[arg-type]
    if state.released_at is not None:
        yield Line(state.released_at, "fence", "closed", **facts)  # type: ignore[arg-type]


def _of_audit(audit: Iterable[AuditLine]) -> Iterator[Line]:
    for line in audit:
        many = "" if line.action == "break" else line.subject
        yield Line(line.at, "fence", line.action, holder=line.actor, operation=many, reason=line.reason)


def _of_refusal(refusal: Refusal) -> Line:
    current = "none" if refusal.current is None else refusal.current
    return Line(
        refusal.first_at,
        "fence",
        "refused",
        token=refusal.presented,
        holder=refusal.holder or f"role {refusal.role}",
        operation=refusal.operation or (refusal.application if not refusal.holder else ""),
        reason=f"{refusal.reason}, token {current} was in force ({refusal.sqlstate})",
        times=refusal.times,
        until=refusal.at if refusal.at > refusal.first_at else None,
    )
