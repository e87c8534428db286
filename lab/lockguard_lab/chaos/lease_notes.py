"""What a process records of its leases, beside its calls: renewals, losses, and how each ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockguard.events import Acquired, Event, FenceCloseFailed, Lost, Released, Renewed

if TYPE_CHECKING:
    from collections import Counter

    from lockguard._lease import GrantId, Lease
    from lockguard_lab.chaos.recording import Recorder

__all__ = ["LeaseNotes"]


class LeaseNotes:
    """An observer of a guard that records.

    Args:
        recorder: where to.
        counts: how often each thing happened.
        lazy: whether the fence is closed without waiting for the disk.
    """

    def __init__(self, recorder: Recorder, counts: Counter[str], *, lazy: bool) -> None:
        self._recorder = recorder
        self._counts = counts
        self._lazy = lazy
        self._leases: dict[GrantId, Lease] = {}
        self._sealed_ms: dict[GrantId, float] = {}
        self._found: dict[GrantId, bool | None] = {}
        self._not_closed: set[GrantId] = set()

    def on(self, event: Event) -> None:
        """Record what becomes of leases. A close that failed, as without Postgres, makes nothing final."""
        match event:
            case FenceCloseFailed(grant):
                self._counts["closes that failed"] += 1
                self._not_closed.add(grant.id)
            case Acquired(grant, sealed_ms=sealed_ms):
                self._sealed_ms[grant.id] = sealed_ms
            case Renewed(grant) if grant.id in self._leases:
                self._recorder.note(renewed=grant.id, deadline=self._leases[grant.id].deadline)
            case Lost(grant, reason):
                self._recorder.note(lost=grant.id, reason=reason.value)
            case Released(grant, found=found):
                self._found[grant.id] = found
            case _:
                pass

    def granted(self, asking: int, lease: Lease) -> None:
        """Note that the call ``asking`` was granted ``lease``."""
        grant = lease.grant.id
        self._leases[grant] = lease
        self._recorder.end(
            asking,
            "ok",
            token=lease.token,
            grant=grant,
            deadline=lease.deadline,
            sealed_ms=self._sealed_ms.pop(grant, 0.0),
        )

    def releasing(self, lease: Lease) -> int:
        """Note that a lease is about to be given back; returns the number of the call."""
        return self._recorder.begin("release", lease.resource, grant=lease.grant.id, token=lease.token)

    def released(self, releasing: int, lease: Lease, how: str = "") -> bool:
        """Note what became of that; returns whether the fence has closed the grant, as far as is known."""
        grant = lease.grant.id
        del self._leases[grant]
        found = self._found.pop(grant, None)
        hows: dict[bool | None, str] = {True: "ok", False: "gone", None: "unknown"}
        shut = not how and grant not in self._not_closed
        self._recorder.end(releasing, how or hows[found], shut=shut, lazy=self._lazy)
        return shut
