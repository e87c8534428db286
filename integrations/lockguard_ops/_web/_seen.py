"""What was seen last of each server, and what one page shows of it, as JSON can say it.

A server that does not answer takes nothing away: what it said last stays, with its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lockguard.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lockguard._records import Refusal
    from lockguard_ops._installation import LockView, Snapshot
    from lockguard_ops._positions import OpenPosition

__all__ = ["Seen", "View", "lock_facts"]

SHOWN_MAX = 200
"""More rows do not help a reader, and laying out 10,000 of them each second keeps a phone busy."""

_WAITERS_MAX = 50
_POSITIONS_MAX = 50
_FILTER_MAX = 200
_SPANS_S = (60, 600, 3600, 86_400)
_NARROW, _WIDE = 320, 1000


@dataclass(frozen=True, slots=True)
class View:
    """What one page wants to see.

    Attributes:
        filter: what resource, holder or operation has to contain; empty for all.
        opened: the resource whose story is shown; empty for none.
        width: of the timeline, in pixels.
        span_s: of the timeline, in seconds.
    """

    filter: str = ""
    opened: str = ""
    width: int = _WIDE
    span_s: int = 600

    @classmethod
    def read(cls, query: Mapping[str, str]) -> View:
        """The view by a request's query. What it cannot mean is left out: a page has no use for an error."""
        width = _number(query.get("width", ""), _WIDE)
        span_s = _number(query.get("span", ""), 600)
        return cls(
            filter=query.get("filter", "").strip()[:_FILTER_MAX].casefold(),
            opened=query.get("open", "")[:_FILTER_MAX],
            width=min(_WIDE, max(_NARROW, width)),
            span_s=span_s if span_s in _SPANS_S else 600,
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen last.

    Attributes:
        at: when both servers were asked last.
        locks: the last locks that Redis told; ``None`` if it has not answered yet.
        locks_at: when it did.
        refusals: the last refusals that the database told.
        positions: the last positions that it told; ``None``: they cannot be read, or there is no database.
        tables_at: when it answered last.
        redis_fault: why Redis does not answer; empty if it does.
        unread: which locks could not be read; empty if all were.
        database_fault: the same of the database.
    """

    at: datetime
    locks: tuple[LockView, ...] | None
    locks_at: datetime | None
    refusals: tuple[Refusal, ...]
    positions: tuple[OpenPosition, ...] | None
    tables_at: datetime | None
    redis_fault: str
    unread: str
    database_fault: str

    @classmethod
    def of(cls, now: Snapshot, before: Seen | None) -> Seen:
        """What is known after a snapshot."""
        no_redis, no_database = bool(now.redis_fault), bool(now.database_fault)
        keep_locks, keep_tables = before is not None and no_redis, before is not None and no_database
        return cls(
            at=now.at,
            locks=before.locks if before and keep_locks else None if no_redis else now.locks,
            locks_at=before.locks_at if before and keep_locks else None if no_redis else now.at,
            refusals=now.refusals or (before.refusals if before and keep_tables else ()),
            positions=before.positions if before and keep_tables and now.positions is None else now.positions,
            tables_at=before.tables_at if before and keep_tables else None if no_database else now.at,
            redis_fault=now.redis_fault,
            unread=now.unread,
            database_fault=now.database_fault,
        )

    def find(self, resource: str) -> LockView | None:
        """A resource that is held, waited for or closed."""
        return next((view for view in self.locks or () if view.lock.resource == resource), None)

    def told(self, view: View) -> dict[str, Any]:
        """What a page shows, all but the story of its opened resource."""
        locks = self.locks or ()
        matching = [one for one in locks if not view.filter or view.filter in _words(one)]
        naked = [position for position in self.positions or () if position.without_stop]
        return {
            "at": _ms(self.at),
            "redisFault": printable(self.redis_fault),
            "unread": printable(self.unread),
            "databaseFault": printable(self.database_fault),
            "locksAt": None if self.locks_at is None else _ms(self.locks_at),
            "tablesAt": None if self.tables_at is None else _ms(self.tables_at),
            "held": sum(one.lock.held for one in locks),
            "waiting": sum(len(one.lock.waiters) for one in locks),
            "late": sum(one.lock.renewal_late_ms > 0 for one in locks),
            "matching": len(matching),
            "locks": [lock_facts(one) for one in matching[:SHOWN_MAX]],
            "refusals": [_refusal(one) for one in self.refusals],
            "positions": None if self.positions is None else len(self.positions),
            "naked": [_position(one) for one in naked[:_POSITIONS_MAX]],
            "nakedMore": max(0, len(naked) - _POSITIONS_MAX),
        }

    def waiters(self, resource: str) -> list[dict[str, Any]]:
        """The first waiters of a resource, in order."""
        found = self.find(resource)
        return [
            {
                "holder": printable(one.holder or one.inbox),
                "operation": printable(one.operation),
                "waiting": one.waiting_ms,
                "silent": one.silent_ms,
            }
            for one in (found.lock.waiters[:_WAITERS_MAX] if found else ())
        ]


def lock_facts(one: LockView) -> dict[str, Any]:
    """One lock as a page shows it; tokens are text, because JavaScript's numbers are not exact."""
    lock = one.lock
    return {
        "name": lock.resource,
        "resource": printable(lock.resource),
        "held": lock.held,
        "grant": lock.grant,
        "token": str(lock.token or ""),
        "holder": printable(lock.holder),
        "operation": printable(lock.operation),
        "age": lock.age_ms,
        "remaining": lock.remaining_ms,
        "ttl": lock.ttl_ms,
        "renewals": lock.renewals,
        "late": lock.renewal_late_ms,
        "waiters": len(lock.waiters),
        "wanted": printable(lock.wanted),
        "closed": lock.closed_ms,
        "fence": "" if one.fence is None else str(one.fence),
        "fenceToken": "" if one.fence_token is None else str(one.fence_token),
    }


def _refusal(one: Refusal) -> dict[str, Any]:
    return {
        "resource": printable(one.resource),
        "presented": "" if one.presented is None else str(one.presented),
        "current": "" if one.current is None else str(one.current),
        "code": one.sqlstate,
        "reason": printable(one.reason),
        "holder": printable(one.holder),
        "operation": printable(one.operation),
        "who": printable(" ".join(part for part in (one.role, one.application) if part)),
        "times": one.times,
        "at": _ms(one.at),
    }


def _position(one: OpenPosition) -> dict[str, Any]:
    return {
        "id": one.id,
        "resource": printable(one.resource),
        "side": printable(one.side),
        "quantity": f"{one.quantity:f}",
        "status": printable(one.status),
        "since": _ms(one.since),
    }


def _words(one: LockView) -> str:
    lock = one.lock
    return f"{lock.resource}\n{lock.holder}\n{lock.operation}".casefold()


def _ms(at: datetime) -> float:
    return round(at.timestamp() * 1000)


def _number(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else default
