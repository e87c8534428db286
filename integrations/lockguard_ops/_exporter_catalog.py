"""Every metric of the exporter: what Redis and Postgres show of a whole installation."""

from __future__ import annotations

from lockguard_metrics._catalog import Metric

__all__ = ["EXPORTED"]


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"lockguard_{name}", "gauge", labels, meaning)


UP = _gauge("up", "1 if all that was named could be read the last time, else 0.")
SOURCE_UP = _gauge("source_up", "Whether redis and the database could be read: 1 or 0.", "source")
SERVER_UP = _gauge("server_up", "Whether a server of locks answers: 1 or 0.", "server")
READING = _gauge("reading_seconds", "How long the last reading took.")
READING_AGE = _gauge("reading_age_seconds", "How old what is shown is.")

LOCKS_HELD = _gauge("locks_held", "Locks that are held.", "group")
OLDEST_LOCK = _gauge("oldest_lock_seconds", "How long the oldest of them has been held.", "group")
LOCKS_LATE = _gauge("locks_late", "Held locks whose renewal is overdue.", "group")
LOCKS_CLOSED = _gauge("locks_closed", "Free locks that a lock delay or at_least keeps closed.", "group")
LOCKS_WANTED = _gauge("locks_wanted", "Held locks whose holder was asked to hand over.", "group")
QUEUED = _gauge("queued", "Callers of all processes that wait.", "group")
LONGEST_QUEUED = _gauge("longest_queued_seconds", "How long the first of them has waited.", "group")

HELD_BY_FENCE = _gauge(
    "locks_by_fence",
    "Held locks, by their fence: open, closed, ahead of the lock, or unsealed.",
    "group",
    "fence",
)
FENCES_OPEN = _gauge("fences_open", "Resources whose fence accepts writes.", "group")
FENCES_LEFT_OPEN = _gauge(
    "fences_left_open",
    "Those of them whose lock is free in this namespace and was sealed a minute ago or earlier.",
    "group",
)
REFUSED = Metric(
    "lockguard_writes_refused_total",
    "counter",
    ("group", "reason"),
    "Writes that the fence refused since the exporter began, by reason.",
)

POSITIONS = _gauge("table_positions_open", "Open positions in the table.", "group")
WITHOUT_STOP = _gauge("table_positions_without_stop", "Those that were entered and have no stop.", "group")
LONGEST_WITHOUT_STOP = _gauge(
    "table_longest_without_stop_seconds", "How long the one without a stop for longest has been so.", "group"
)
ENTRIES_IN_DOUBT = _gauge(
    "table_entries_in_doubt", "Those whose entry has not been known for a minute or longer.", "group"
)

EXPORTED: tuple[Metric, ...] = tuple(one for one in globals().values() if isinstance(one, Metric))
"""All metrics of the exporter."""
