"""When the processes, links and servers of a round were disturbed, and when a lock may have been held.

What is judged by a clock must be clear: here is what makes a recovery or a wait unclear.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from lockguard_lab.chaos.spans import Span, covered_s, overlaps, without

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_lab.chaos.judged import Grant, Judged
    from lockguard_lab.chaos.recording import Call, FaultWindow, History

__all__ = ["ASKS_AGAIN_S", "LINKS", "OF_SERVERS", "SETTLES_S", "SLACK_S", "Calm", "granted_at"]

SLACK_S = 0.25
"""What L1 adds to a ttl."""
ASKS_AGAIN_S = 1.0
"""After how long a waiter asks again that nobody has woken."""
SETTLES_S = 2.0
"""For how long a fault of a server or a link is not over for all who it concerned."""
_FENCE_WITHIN_S = 5.0 + 1
"""How long a seal may take at most."""
LINKS = ("link cut", "answers lost", "link delayed", "link reset")
"""The faults of a link to Redis."""
OF_SERVERS = ("server ", "failover ", "master ")
"""How the faults of Redis servers begin."""
_MAYBE_GRANTED = ("failed", "cancelled")
"""An acquisition that ended so may have been granted, and not sealed."""


class Calm:
    """What each process, link, server and lock of a round went through, and when nothing disturbed them.

    Args:
        judged: the round.
        grants: all its grants.
    """

    def __init__(self, judged: Judged, grants: dict[str, Grant]) -> None:
        self.judged = judged
        """The round."""
        self.history: History = judged.history
        """Its history."""
        self.ttl_s = judged.ttl_s
        """The ttl of its leases, in seconds."""
        self.faults = list(self.history.faults.values())
        """All faults."""
        self.grants: dict[str, list[Grant]] = defaultdict(list)
        """The grants of each resource, in the order of their tokens."""
        for grant in sorted(grants.values(), key=lambda grant: grant.token):
            self.grants[grant.acquire.resource].append(grant)
        self.acquires: dict[str, list[Call]] = defaultdict(list)
        """The acquisitions of each resource, whatever came of them."""
        for call in self.history.made("acquire"):
            self.acquires[call.resource].append(call)

    # What others have done meanwhile.

    def stalled_s(self, process: str, span: Span) -> float:
        """For how much of a span the machine did not run a process, or the one that makes the faults."""
        stalled = [*self.history.stalled.get(process, ()), *self.history.stalled.get("conductor", ())]
        return covered_s(span, stalled)

    def disturbed(self, process: str, *, besides: FaultWindow | None = None) -> list[Span]:
        """When the servers, the links of a process or the process itself were disturbed."""
        own = [
            (fault.begin, fault.end + (SETTLES_S if fault.kind in LINKS else SLACK_S))
            for fault in self.faults
            if fault.target == process and fault is not besides and not fault.kind.endswith("Postgres lost")
        ]
        servers = [
            (fault.begin, fault.end + SETTLES_S)
            for fault in self.faults
            if fault.kind.startswith(OF_SERVERS) and fault is not besides
        ]
        return [*own, *servers]

    def calm(self, span: Span, process: str, *, besides: FaultWindow | None = None) -> bool:
        """Whether neither servers, process nor its links were disturbed, other than by ``besides``."""
        return not any(overlaps(span, each) for each in self.disturbed(process, besides=besides))

    def postgres_calm(self, span: Span, *processes: str) -> bool:
        """Whether neither Postgres nor the links of the processes to it were disturbed."""
        return not any(
            overlaps(span, (fault.begin, fault.end + SETTLES_S))
            for fault in self.faults
            if fault.kind in ("Postgres crashed", "backend ended")
            or ("Postgres" in fault.kind and fault.target in processes)
        )

    def maybe_held(self, resource: str) -> list[Span]:
        """When somebody held the lock, or may have."""
        late_s = self.ttl_s + SLACK_S
        spans: list[Span] = []
        for grant in self.grants[resource]:
            granted = granted_at(grant.acquire)
            if grant.released:
                assert grant.release is not None
                spans.append((granted, grant.release.end))
            else:
                spans.append((granted, max(granted, grant.believed_until) + late_s))
        return [*spans, *self.failed(resource, late_s)]

    def failed(self, resource: str, late_s: float) -> list[Span]:
        """When a lock may have been granted and not sealed, and for ``late_s`` after that."""
        return [
            (max(call.begin, call.end - _FENCE_WITHIN_S), call.end + late_s)
            for call in self.acquires[resource]
            if call.how in _MAYBE_GRANTED
        ]

    def others_in_line(self, resource: str, waiter: Call | None) -> list[Span]:
        """When another waiter may have been dead at the head, or may have been granted the lock unawares."""
        late_s = self.ttl_s + ASKS_AGAIN_S + SLACK_S
        others = [call for call in self.acquires[resource] if call is not waiter]
        return [
            (fault.begin - SLACK_S, min(fault.end, self.history.over) + late_s)
            for fault in self.faults
            if any(
                call.process == fault.target
                and overlaps((call.begin, call.end), (fault.begin - SLACK_S, fault.end))
                for call in others
            )
        ]

    def waited_until(self, call: Call) -> float:
        """Until when a caller waited for the lock; what may have been the time of its seal is left out."""
        if call.how == "ok":
            return granted_at(call)
        if call.how == "busy":  # for another reason than that its patience had ended, it was granted before
            patient = call.end - call.begin >= call.facts["wait"] - SLACK_S
            return call.end if patient else call.begin
        if call.how:
            return call.end - _FENCE_WITHIN_S
        return self._process_ended(call) - _FENCE_WITHIN_S

    def _process_ended(self, call: Call) -> float:
        """When the process of a call that was not answered was killed."""
        ends = [
            fault.begin
            for fault in self.faults
            if fault.target == call.process and fault.kind == "process killed"
        ]
        return min((end for end in ends if end >= call.begin), default=call.begin)

    def free_beside_waiters(self) -> Iterator[tuple[Call, Span]]:
        """For each waiter the longest time for which the lock was certainly free beside it."""
        for resource, calls in self.acquires.items():
            held = self.maybe_held(resource)
            for call in calls:
                if not call.facts["wait"]:
                    continue
                until = self.waited_until(call)
                if until <= call.begin:
                    continue
                disturbed = [*self.disturbed(call.process), *self.others_in_line(resource, call)]
                free = without((call.begin, until), [*held, *disturbed])
                if free:
                    yield call, max(free, key=lambda span: span[1] - span[0])


def granted_at(call: Call) -> float:
    """When Redis had granted a lock, before it was sealed."""
    return float(max(call.begin, call.end - call.facts["sealed_ms"] / 1_000))
