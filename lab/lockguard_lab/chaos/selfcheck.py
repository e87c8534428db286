"""Whether the judge sees what it is there to see: in each run it must convict three things.

A stale write and a second grant are put into a copy of the history. And the processes of the run itself write
to a table of the judge's own past the fence, some time after their leases have ended: that is an acknowledged
stale write, really made, as soon as another holder has taken over.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from lockguard_lab.chaos.judged import Grant, Judged, grants_of
from lockguard_lab.chaos.recording import History
from lockguard_lab.chaos.verdict import fence_operations, lock_operations, verdict_on

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CHECKS", "DOUBLE_GRANT", "PAST_THE_FENCE", "STALE_WRITE", "self_check"]

STALE_WRITE = "a stale write put into the history"
DOUBLE_GRANT = "a second grant put into the history"
PAST_THE_FENCE = "writes really made past the fence"
CHECKS = (STALE_WRITE, DOUBLE_GRANT, PAST_THE_FENCE)
_NUMBER = 10**18
_BRIEF_S = 1e-5
_SAMPLES = 3


def self_check(judged: Judged) -> dict[str, list[bool]]:
    """For each of :data:`CHECKS`, whether the judge convicted it, each time that it was tried.

    Nothing is tried on a resource that breaks the law already, nor where what happened explains the change:
    a lock that was broken at that time may well have two holders.
    """
    found: dict[str, list[bool]] = {check: [] for check in CHECKS}
    fences, locks = fence_operations(judged), lock_operations(judged)
    bypassed = fence_operations(judged, bypasses=True)
    made = {call.resource for call in judged.history.made("bypass")}
    past: list[bool] = []
    for resource in judged.resources:
        if verdict_on("fence", fences.get(resource, [])).accepted:
            found[STALE_WRITE] += [
                not verdict_on("fence", fence_operations(copy)[resource]).accepted
                for copy in _with_stale_writes(judged, resource)
            ]
            if resource in made:
                past.append(not verdict_on("fence", bypassed[resource]).accepted)
        if verdict_on("lock", locks.get(resource, [])).accepted:
            found[DOUBLE_GRANT] += [
                not verdict_on("lock", lock_operations(copy)[resource]).accepted
                for copy in _with_double_grants(judged, resource)
            ]
    # On some resources nobody had taken over yet.
    found[PAST_THE_FENCE] = [any(past)] if past else []
    return found


def _with_stale_writes(judged: Judged, resource: str) -> Iterator[Judged]:
    """Copies in which a holder's write was acknowledged after the seal of its successor."""
    grants = _grants(judged, resource)
    after = [
        (old, new)
        for old, new in pairwise(grants)
        if not new.acquire.facts["travels"] and old.token < new.token
    ]
    for old, new in after[-_SAMPLES:]:
        at = new.acquire.end + _BRIEF_S
        yield _with(
            judged,
            {"begin": _NUMBER, "call": "write", "resource": resource, "token": old.token, "way": "", "t": at},
            {"end": _NUMBER, "how": "committed", "t": at + _BRIEF_S},
        )


def _with_double_grants(judged: Judged, resource: str) -> Iterator[Judged]:
    """Copies in which a second holder was granted the lock while the first held it and later gave it back."""
    frees = [
        (operation.begin, operation.end)
        for operation in lock_operations(judged).get(resource, [])
        if operation.action == ("free",)
    ]
    judgeable = {
        operation.action[1]
        for operation in lock_operations(judged).get(resource, [])
        if operation.action[0] == "acquire"
    }
    sure = [
        (grant, grant.release)
        for grant in _grants(judged, resource)
        if grant.id in judgeable and grant.released and grant.release is not None
    ]
    clear = [
        (grant, release)
        for grant, release in sure
        if release.begin - grant.acquire.end > 5 * _BRIEF_S
        and not any(begin <= release.end and grant.acquire.begin <= end for begin, end in frees)
    ]
    for grant, _ in clear[-_SAMPLES:]:
        at = grant.acquire.end + _BRIEF_S
        second = {
            "grant": "f" * 32,
            "token": grant.token + 1,
            "deadline": at + 2 * _BRIEF_S,  # or a later failover might excuse it
            "sealed_ms": 0.0,
        }
        yield _with(
            judged,
            {"begin": _NUMBER, "call": "acquire", "resource": resource, "wait": 0, "travels": False, "t": at},
            {"end": _NUMBER, "how": "ok", "t": at + _BRIEF_S, **second},
        )


def _grants(judged: Judged, resource: str) -> list[Grant]:
    listed = [grant for grant in grants_of(judged.history).values() if grant.acquire.resource == resource]
    return sorted(listed, key=lambda grant: grant.token)


def _with(judged: Judged, *lines: dict[str, object]) -> Judged:
    """A copy of the round whose history has more lines."""
    history = judged.history
    copy: History = replace(history, calls=dict(history.calls), lines=list(history.lines))
    for line in lines:
        copy.add("injected", dict(line))
    return replace(judged, history=copy)
