"""The verdict on a round, from the files that it left.

The lock of each resource must be linearizable as a :class:`~lockguard_lab.chaos.models.FencedMutex`, with two
concessions that the guarantees make. Where a single server lost its data, whoever held the lock holds it no
more. And the lock does not answer for grants that lived while a failover went on, or while a server came back
with old data: until it learns of that, a holder may believe beside its successor.

The fence of each resource must be linearizable as a :class:`~lockguard_lab.chaos.models.Fence`, whatever
happened: this is the promise that depends on Postgres alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lockguard_lab.chaos import recovery, tables
from lockguard_lab.chaos.judged import Grant, Judged, grants_of, read_round
from lockguard_lab.chaos.linearizability import Operation, Verdict, check
from lockguard_lab.chaos.models import Fence, FencedMutex
from lockguard_lab.fence_race.operate import End

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lockguard_lab.chaos.plan import RoundReport
    from lockguard_lab.chaos.recording import Call

__all__ = ["fence_operations", "judge_round", "lock_operations", "verdict_on"]

_INSTANT_S = 1e-6
_LOSES_ALL = ("server flushed", "server restarted empty")
_SEEN = "failover seen"
_DOUBTFUL = ("failover ordered", _SEEN, "master killed", "server restarted with old data")
_COMMITTED = End.COMMITTED.value


def judge_round(directory: Path, report: RoundReport) -> Judged:
    """Judge the files of a round by every law, and add what was found to the report."""
    judged = read_round(directory)
    tables.judge(judged.tables, judged.history.lines, report)
    for call in judged.history.calls.values():
        report.calls[f"{call.call} {call.how or 'unanswered'}"] += 1
    faults = [fault.kind for fault in judged.history.faults.values()]
    report.faults.update(kind for kind in faults if kind != _SEEN)
    report.counts["failovers seen"] += faults.count(_SEEN)
    for line in judged.history.lines:
        report.counts.update(line.get("counts", {}))
    for what, operations in (("lock", lock_operations(judged)), ("fence", fence_operations(judged))):
        for resource in judged.resources:
            verdict = verdict_on(what, operations.get(resource, []))
            report.counts[f"operations of a {what} judged"] += len(operations.get(resource, []))
            if not verdict.accepted:
                report.breach(f"linearizability of the {what}", f"{resource}: {verdict}")
    recovery.judge(judged, grants_of(judged.history), report)
    return judged


def verdict_on(what: str, operations: Iterable[Operation]) -> Verdict:
    """The verdict on the operations of one resource's ``lock`` or ``fence``."""
    return check(operations, FencedMutex() if what == "lock" else Fence())


def lock_operations(judged: Judged) -> dict[str, list[Operation]]:
    """What each resource's lock is judged by."""
    history, over = judged.history, judged.history.over
    doubts = [
        (fault.begin, min(fault.end, over) + judged.ttl_s + 1)
        for fault in history.faults.values()
        if fault.kind in _DOUBTFUL and judged.alone
    ]
    found: dict[str, list[Operation]] = defaultdict(list)
    sure: set[str] = set()
    for grant in grants_of(history).values():
        if any(begin <= grant.believed_until and grant.acquire.begin <= end for begin, end in doubts):
            continue
        sure.add(grant.id)
        listed = found[grant.acquire.resource]
        listed.append(_operation(grant.acquire, ("acquire", grant.id, grant.token)))
        if grant.released:
            assert grant.release is not None
            listed.append(_operation(grant.release, ("release", grant.id)))
        else:
            ended = max(grant.believed_until, grant.acquire.end + _INSTANT_S)
            lapse = ("lapse", grant.id, grant.token)
            listed.append(
                Operation(ended, math.inf, lapse, certain=False, name=f"the end of {grant.acquire}")
            )
    for call in history.made("confirm"):
        if call.how == "ok" and call.facts["grant"] in sure:
            found[call.resource].append(_operation(call, ("confirm", call.facts["grant"])))
    for call in history.made("break"):
        certain = call.how == "ok"
        end = call.end if certain else math.inf
        found[call.resource].append(Operation(call.begin, end, ("free",), certain, str(call)))
    for fault in history.faults.values():
        if fault.kind in _LOSES_ALL and judged.alone:
            for listed in found.values():
                listed.append(Operation(fault.begin, fault.end, ("free",), certain=False, name=fault.kind))
    return found


def fence_operations(judged: Judged, *, bypasses: bool = False) -> dict[str, list[Operation]]:
    """What each resource's fence is judged by; with ``bypasses`` also by the writes that went past it."""
    history, over = judged.history, judged.history.over
    found: dict[str, list[Operation]] = defaultdict(list)
    there = {row["op"] for table in ("ledger", "entries") for row in judged.tables[table]}
    crashed = any("crash" in line for line in history.lines)
    first: dict[tuple[str, int], float] = {}
    for call in history.made("write"):
        if call.how != _COMMITTED and not (not call.how and call.number in there):
            continue
        of = call.resource, int(call.facts["token"])
        first[of] = min(first.get(of, math.inf), call.end)
        found[call.resource].append(
            Operation(call.begin, min(call.end, over), ("write", of[1]), name=str(call))
        )
    for grant in grants_of(history).values():
        call, token = grant.acquire, grant.token
        sealed = _operation(call, ("seal", token))
        if call.facts["travels"]:  # with the first write
            written = first.get((call.resource, token))
            end = math.inf if written is None else min(written, over)
            sealed = replace(sealed, end=end, certain=written is not None)
        found[call.resource].append(sealed)
        if (close := _close_of(grant, crashed=crashed)) is not None:
            found[call.resource].append(close)
    for call in history.made("break"):
        certain = call.how == "ok"
        end = call.end if certain else math.inf
        found[call.resource].append(Operation(call.begin, end, ("break",), certain, str(call)))
    if bypasses:
        landed = {row["op"] for row in judged.tables["bypasses"]}
        for call in history.made("bypass"):
            if call.number in landed:
                action = ("write", int(call.facts["token"]))
                found[call.resource].append(
                    Operation(call.begin, min(call.end, over), action, name=str(call))
                )
    return found


def _close_of(grant: Grant, *, crashed: bool) -> Operation | None:
    action = ("close", grant.token)
    if (release := grant.release) is None:
        begin = grant.lost
    elif release.facts.get("shut") and not (release.facts["lazy"] and crashed):
        return _operation(release, action)
    else:
        begin = release.begin
    if begin == math.inf:
        return None
    return Operation(begin, math.inf, action, certain=False, name=f"the close of {grant.acquire}")


def _operation(call: Call, action: tuple[Any, ...]) -> Operation:
    return Operation(call.begin, call.end, action, name=str(call))
