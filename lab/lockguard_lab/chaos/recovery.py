"""How long it took until the lock was usable again, and whether anyone waited beside a free lock.

Everything here is judged by the promises L1, L3, L4, L5 and L6. Only what is clear is judged: a recovery that
another fault disturbed is left out, and so is the time for which the machine did not run the process that
waited, which each process notes itself. What is left is counted, so that a run shows how much it has judged.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from lockguard_lab.chaos.calm import ASKS_AGAIN_S, LINKS, OF_SERVERS, SETTLES_S, SLACK_S, Calm, granted_at
from lockguard_lab.chaos.spans import Span, overlaps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_lab.chaos.judged import Grant, Judged
    from lockguard_lab.chaos.plan import RoundReport
    from lockguard_lab.chaos.recording import Call, FaultWindow

__all__ = ["BOUNDS", "LOST_WAKE_UP", "Bound", "bounds", "judge"]

LOST_WAKE_UP = "a waiter beside a free lock"
_KILLED = "killed holder: granted to a waiter"
_STOPPED = "stopped holder: granted to a waiter"
_TAKEN_OVER = "stopped holder: taken over, sealed"
_BROKEN = "broken lock: granted to a waiter"
_HANDED_ON = "released lock: granted to a waiter"
_WIPED = "data gone: the holder knows"
_SERVER_BACK = "server back: a grant"
_FAILOVER = "failover: without a grant"
_LINK_BACK = "link back: an answer"
_POSTGRES_BACK = "Postgres back: a commit"

_RECONNECTS_S = 1.5
_FAILS_OVER_S = 6.0
_WIPES = ("server flushed", "server restarted empty")
_SEEN = "failover seen"  # also of those that were ordered
_FAILOVERS = ("failover ordered", "master killed")


@dataclass(frozen=True, slots=True)
class Bound:
    """What is stated about a recovery.

    Attributes:
        law: the promise that it follows from.
        seconds: how long it may take; 0 where nothing is stated.
    """

    law: str
    seconds: float


def bounds(ttl_s: float) -> dict[str, Bound]:
    """The bound of each kind of recovery, at a ttl of so many seconds."""
    return {
        _KILLED: Bound("L1", ttl_s + SLACK_S),
        _STOPPED: Bound("L1", ttl_s + SLACK_S),
        _TAKEN_OVER: Bound("L6", ttl_s + 1),
        _BROKEN: Bound("L4", ASKS_AGAIN_S + SLACK_S),
        _HANDED_ON: Bound("L4", ASKS_AGAIN_S + SLACK_S),
        _WIPED: Bound("L4", _RECONNECTS_S + SLACK_S),
        _SERVER_BACK: Bound("L5", _RECONNECTS_S + SLACK_S),
        _FAILOVER: Bound("L5", _FAILS_OVER_S),
        _LINK_BACK: Bound("L5", _RECONNECTS_S + SLACK_S),
        _POSTGRES_BACK: Bound("", 0.0),
    }


BOUNDS = bounds(1.0)
"""The bounds at the ttl of a run."""


def judge(judged: Judged, grants: dict[str, Grant], report: RoundReport) -> None:
    """Add each recovery to the report, and a violation for each that took longer than is stated."""
    calm = Calm(judged, grants)
    for kind, took_s, told in _Recoveries(calm).all():
        report.recovery_s.setdefault(kind, []).append(took_s)
        bound = bounds(judged.ttl_s)[kind]
        if bound.seconds and took_s > bound.seconds:
            report.breach(
                f"{bound.law}, {kind}", f"{took_s:.3f} s where {bound.seconds:g} s are stated; {told}"
            )
    for waiter, free in calm.free_beside_waiters():
        report.counts["waits judged"] += 1
        took_s = free[1] - free[0] - calm.stalled_s(waiter.process, free)
        if took_s > ASKS_AGAIN_S + SLACK_S:
            report.breach(
                LOST_WAKE_UP, f"free from {free[0]:.3f} to {free[1]:.3f}, {took_s:.3f} s beside {waiter}"
            )


_Recovery: TypeAlias = tuple[str, float, str]
"""Its kind, how long it took in seconds, and what to tell of it."""


class _Recoveries:
    def __init__(self, calm: Calm) -> None:
        self._calm = calm

    def all(self) -> Iterator[_Recovery]:
        """The kind of each recovery, how long it took, and what to tell of it."""
        for fault in self._calm.faults:
            if fault.end < math.inf:
                yield from self._recoveries_from(fault)
        for resource, grants in self._calm.grants.items():
            yield from self._handed_on(resource, grants)
        for call in self._calm.history.made("break"):
            if call.how == "ok" and call.facts.get("broken"):
                yield from self._broken(call)

    def _recoveries_from(self, fault: FaultWindow) -> Iterator[_Recovery]:
        match fault.kind:
            case "process killed":
                yield from self._holder_gone(fault, _KILLED)
            case "process stopped" if fault.end - fault.begin > self._calm.ttl_s + SLACK_S:
                yield from self._holder_gone(fault, _STOPPED)
            case kind if kind in LINKS:
                yield from self._link_back(fault)
            case "Postgres crashed":
                yield from self._postgres_back(fault)
            case kind if kind in _FAILOVERS:
                yield from self._failed_over(fault)
            case _:
                pass
        if fault.kind in _WIPES and self._calm.judged.alone:
            yield from self._wiped(fault)
        if fault.kind.startswith("server ") and self._calm.judged.plan["topology"] == "single":
            yield from self._server_back(fault)

    def _next_in_line(self, resource: str, token: int, *, by: float) -> Grant | None:
        """The next grant above ``token``, if its holder waited for it since ``by``."""
        grants = self._calm.grants[resource]
        at = bisect_left(grants, token + 1, key=lambda grant: grant.token)
        if at == len(grants) or grants[at].acquire.begin > by:
            return None
        return grants[at]

    def _clear(self, span: Span, resource: str, token: int, heir: Grant) -> bool:
        """Whether nobody but the heir can have had the lock or the first place meanwhile."""
        others = self._calm.failed(resource, self._calm.ttl_s)
        others += self._calm.others_in_line(resource, heir.acquire)
        between = [one for one in self._calm.grants[resource] if token < one.token < heir.token]
        return not between and not any(overlaps(span, other) for other in others)

    def _holder_gone(self, fault: FaultWindow, kind: str) -> Iterator[_Recovery]:
        for resource, grants in self._calm.grants.items():
            for grant in grants:
                call = grant.acquire
                if call.process != fault.target or call.end > fault.begin:
                    continue
                if min(grant.believed_until, grant.lost) < fault.begin or grant.deadline < fault.begin:
                    continue
                heir = self._next_in_line(resource, grant.token, by=fault.begin + self._calm.ttl_s / 2)
                if heir is None or heir.acquire.process == fault.target:
                    continue
                granted = granted_at(heir.acquire)
                span = (fault.begin, granted)
                # A renewal that its cut link still kept might arrive after its death.
                calm = self._calm.calm(span, fault.target, besides=fault)
                if not calm or not self._calm.calm(span, heir.acquire.process):
                    continue
                if granted < fault.begin or not self._clear(span, resource, grant.token, heir):
                    continue
                told = f"{heir.acquire} after {fault.kind} at {fault.begin:.3f}"
                yield kind, granted - fault.begin - self._calm.stalled_s(heir.acquire.process, span), told
                sealed = (fault.begin, heir.acquire.end)
                if kind is _STOPPED and self._calm.postgres_calm(sealed, heir.acquire.process):
                    took = heir.acquire.end - fault.begin - self._calm.stalled_s(heir.acquire.process, sealed)
                    yield _TAKEN_OVER, took, told

    def _handed_on(self, resource: str, grants: list[Grant]) -> Iterator[_Recovery]:
        for grant in grants:
            if not grant.released:
                continue
            assert grant.release is not None
            heir = self._next_in_line(resource, grant.token, by=grant.release.begin)
            if heir is None:
                continue
            span = (grant.release.end, max(grant.release.end, granted_at(heir.acquire)))
            if self._calm.calm(span, heir.acquire.process) and self._clear(span, resource, grant.token, heir):
                took = span[1] - span[0] - self._calm.stalled_s(heir.acquire.process, span)
                yield _HANDED_ON, took, f"{heir.acquire} after {grant.release}"

    def _broken(self, call: Call) -> Iterator[_Recovery]:
        for grant in self._calm.grants[call.resource]:
            if grant.id != call.facts["broken"]:
                continue
            heir = self._next_in_line(call.resource, grant.token, by=call.begin)
            if heir is None:
                continue
            span = (call.end, max(call.end, granted_at(heir.acquire)))
            if self._calm.calm(span, heir.acquire.process) and self._clear(
                span, call.resource, grant.token, heir
            ):
                took = span[1] - span[0] - self._calm.stalled_s(heir.acquire.process, span)
                yield _BROKEN, took, f"{heir.acquire} after {call}"

    def _wiped(self, fault: FaultWindow) -> Iterator[_Recovery]:
        """How long holders went on to believe in what is gone; in a cluster only of those that noticed."""
        for grants in self._calm.grants.values():
            for grant in grants:
                if grant.acquire.end > fault.begin or grant.believed_until <= fault.end:
                    continue
                if grant.lost == math.inf and self._calm.judged.plan["topology"] == "cluster":
                    continue
                process, span = grant.acquire.process, (fault.end, grant.believed_until)
                if not self._calm.calm((fault.begin, span[1]), process, besides=fault):
                    continue
                took = span[1] - span[0] - self._calm.stalled_s(process, span)
                yield _WIPED, took, f"{grant.acquire} after {fault.kind} until {fault.end:.3f}"

    def _server_back(self, fault: FaultWindow) -> Iterator[_Recovery]:
        granted = [
            (granted_at(grant.acquire), grant.acquire)
            for grants in self._calm.grants.values()
            for grant in grants
            if grant.acquire.end >= fault.end
        ]
        if not granted:
            return
        at, call = min(granted, key=lambda pair: pair[0])
        span = (fault.end, max(fault.end, at))
        alone = not any(overlaps(span, each) for each in self._servers_but(fault))
        if alone and self._calm.postgres_calm(span):
            yield (
                _SERVER_BACK,
                span[1] - span[0] - self._calm.stalled_s(call.process, span),
                f"{call} after {fault.kind}",
            )

    def _servers_but(self, fault: FaultWindow) -> list[Span]:
        return [
            (other.begin, other.end + SETTLES_S)
            for other in self._calm.faults
            if other is not fault and other.kind != _SEEN and other.kind.startswith(OF_SERVERS)
        ]

    def _failed_over(self, fault: FaultWindow) -> Iterator[_Recovery]:
        """The longest time without any grant, from the beginning of a failover until it was over for all."""
        until = fault.end + SETTLES_S
        span = (fault.begin, until)
        alone = not any(overlaps(span, each) for each in self._servers_but(fault))
        if until > self._calm.history.over or not alone or not self._calm.postgres_calm(span):
            return
        times = sorted(
            at
            for grants in self._calm.grants.values()
            for grant in grants
            if fault.begin <= (at := granted_at(grant.acquire)) <= until
        )
        edges = [fault.begin, *times, until]
        gaps = [(after - before, before, after) for before, after in pairwise(edges)]
        longest, since, again = max(gaps)
        longest -= self._calm.stalled_s("conductor", (since, again))
        yield _FAILOVER, longest, f"no grant for {longest:.3f} s from {since:.3f} on, at a {fault.kind}"

    def _link_back(self, fault: FaultWindow) -> Iterator[_Recovery]:
        """The first answer that a process got after its links were back, to a call that does not wait."""
        answered = sorted(
            call.end
            for call in self._calm.history.calls.values()
            if call.process == fault.target
            and call.begin >= fault.end
            and (
                (call.call == "confirm" and call.how in ("ok", "lost"))
                or (
                    call.call == "acquire"
                    and (call.how == "ok" or (call.how == "busy" and not call.facts["wait"]))
                )
            )
        )
        asked = [
            call.begin
            for call in self._calm.history.calls.values()
            if call.process == fault.target
            and call.begin >= fault.end
            and call.call == "acquire"
            and not call.facts["wait"]
        ]
        if not answered or not asked:
            return
        span = (fault.end, answered[0])
        calm = self._calm.calm(span, fault.target, besides=fault)
        if min(asked) < fault.end + SLACK_S and calm and self._calm.postgres_calm(span, fault.target):
            took = span[1] - span[0] - self._calm.stalled_s(fault.target, span)
            yield (
                _LINK_BACK,
                took,
                f"the first answer to {fault.target} after {fault.kind} until {fault.end:.3f}",
            )

    def _postgres_back(self, fault: FaultWindow) -> Iterator[_Recovery]:
        ends = [
            c.end for c in self._calm.history.made("write") if c.how == "committed" and c.end >= fault.end
        ]
        if ends:
            yield _POSTGRES_BACK, min(ends) - fault.end, ""
