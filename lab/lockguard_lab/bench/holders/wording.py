"""The figures as rows of text, for the terminal and for the page: the words are the same in both."""

from __future__ import annotations

from collections.abc import Sequence

from lockguard_lab.bench.holders.results import Found, Told, WayFound

__all__ = ["FREED", "HORIZON", "KILLED_AND_CUT", "PRICE", "STOPPED", "TABLES", "Rows", "rows"]

Rows = list[list[str]]

STOPPED = (
    "",
    "the successor gets in",
    "a late write",
    "the holder is told",
)
KILLED_AND_CUT = ("", "after SIGKILL", "after a cut", "a late write then", "the holder is told of the cut")
PRICE = ("", "take and give back", "connections for the waiters")
FREED = ("", "a late write", "the holder is told")
HORIZON = ("held", "dead rows that VACUUM kept")
TABLES = {"stopped": STOPPED, "killed": KILLED_AND_CUT, "freed": FREED, "price": PRICE, "horizon": HORIZON}
"""The head of each table, by name."""


def rows(found: Found, table: str) -> Rows:
    """The rows of one of :data:`TABLES`."""
    if table == "horizon":
        return [[one.label, f"{one.dead_kept:,} of {found.about.updates:,}"] for one in found.horizon]
    if table == "freed":
        return [
            [way.label, way.freed.late_write, _told(way.freed.told)]
            for way in found.ways.values()
            if way.freed is not None
        ]
    row = {"stopped": _stopped, "killed": _killed, "price": _price}[table]
    return [[way.label, *row(way)] for way in found.ways.values()]


def _stopped(way: WayFound) -> list[str]:
    stopped = way.stopped
    entered = "after" if all(stopped.during_stop) else "only when it goes on: after"
    if any(stopped.during_stop) and not all(stopped.during_stop):
        entered = f"in {sum(stopped.during_stop)} of {len(stopped.during_stop)} rounds; after"
    return [f"{entered} {stopped.waited_s:.1f} s", _each(stopped.late_write), _told(stopped.told)]


def _killed(way: WayFound) -> list[str]:
    cut = way.cut
    if cut.waited_s is not None:
        after = f"{cut.waited_s:.1f} s"
    elif cut.after_death_s is not None:
        after = f"not in {cut.bound_s:g} s; {_short(cut.after_death_s)} after its process had ended"
    else:
        after = f"not in {cut.bound_s:g} s, nor in {cut.bound_s:g} s after its process had ended"
    told = _told(cut.told) + ("" if cut.told_s is None else f" (after {cut.told_s:.1f} s)")
    return [_short(way.killed_s), after, cut.late_write, told]


def _price(way: WayFound) -> list[str]:
    return [f"{way.cycle_us / 1000:.2f} ms", str(way.waiting_connections)]


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"


def _each(outcomes: Sequence[str]) -> str:
    """``overwrote``, or ``refused 4, overwrote 1`` where the rounds differ."""
    kinds = list(dict.fromkeys(outcomes))
    if len(kinds) == 1:
        return kinds[0]
    return ", ".join(f"{kind} {list(outcomes).count(kind)}" for kind in kinds)


def _told(told: Told) -> str:
    return "; ".join(told) or "nothing"
