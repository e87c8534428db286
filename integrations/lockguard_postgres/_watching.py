"""What was seen of a watched table, and what it says about protecting it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

__all__ = [
    "COLUMNS",
    "TRIGGERS",
    "WATCHES",
    "WRITES",
    "ColumnTrigger",
    "Readiness",
    "WatchedTable",
    "WatchedWrite",
    "watched_tables",
]

PASSES = frozenset({"leased", "excused"})

WATCHES = "select w.*, clock_timestamp() as now from lockguard.watches() w"
WRITES = "select * from lockguard.watched_writes()"
# What runs before each row of an UPDATE is written may change it. Trigger arguments end with a zero byte.
TRIGGERS = """
select w.relation, t.tgname::text as name, p.proname::text as function, p.prosrc as source,
       coalesce(string_to_array(encode(t.tgargs, 'escape'), chr(92) || '000'), '{}') as arguments
  from lockguard.watches() w
  join pg_catalog.pg_trigger t on t.tgrelid = w.relid
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
 where not t.tgisinternal and t.tgtype & 19 = 19 and t.tgenabled <> 'D'
 order by t.tgname
"""
COLUMNS = """
select w.relation, a.attname::text as name, a.attgenerated <> '' as generated
  from lockguard.watches() w
  join pg_catalog.pg_attribute a on a.attrelid = w.relid
 where a.attnum > 0 and not a.attisdropped
 order by a.attnum
"""

_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_NAME = r'new\s*\.\s*("(?:[^"]|"")+"|\w+)'
_ASSIGNED = re.compile(
    rf"{_NAME}\s*:=|(?:;|\bbegin|\bthen|\belse|\bloop)\s*{_NAME}\s*=|\binto\s+(?:strict\s+)?{_NAME}",
    re.IGNORECASE,
)
# Functions that come with Postgres and set the column that their first argument names.
_OF_POSTGRES = {
    "moddatetime",
    "insert_username",
    "tsvector_update_trigger",
    "tsvector_update_trigger_column",
}


@dataclass(frozen=True, slots=True)
class WatchedWrite:
    """One kind of write of a watched table.

    Attributes:
        operation: ``INSERT``, ``UPDATE``, ``DELETE`` or ``TRUNCATE``.
        columns: the columns that an UPDATE changed, except exempt ones; ``None`` for the others.
        verdict: ``leased`` and ``excused`` (``lockguard.maintenance()``, a subscription) would pass.
            ``unguarded`` and ``truncate`` presented no lease. ``superseded``, ``closed`` and ``unsealed``
            presented a token that is not in force. ``error`` with an SQLSTATE: the check itself would fail.
        role: the role that was logged in.
        application: the ``application_name`` of the session.
        times: how many statements of clients made such a write.
        refused: for how many of them it is what protection would have refused. A statement is refused once,
            so the sum over all kinds is the number of refused statements.
        first_at: when the first one was made.
        at: when the last one was made.
        address: from where the last one came; ``None`` for a local socket.
        backend: the server's process that made the last one.
        statement: the first one, cut to 300 characters, with ``?`` in place of each literal.
    """

    operation: str
    columns: tuple[str, ...] | None
    verdict: str
    role: str
    application: str
    times: int
    refused: int
    first_at: datetime
    at: datetime
    address: str | None
    backend: int
    statement: str

    @property
    def passes(self) -> bool:
        """Whether protection would let it through."""
        return self.verdict in PASSES


@dataclass(frozen=True, slots=True)
class ColumnTrigger:
    """A ``BEFORE UPDATE`` trigger, whose changes count as changes of the statement that it runs for.

    Attributes:
        name: its name.
        function: the name of its function.
        columns: the columns that it sets, as far as its text tells.
    """

    name: str
    function: str
    columns: tuple[str, ...]


class Readiness(Enum):
    """Whether a watched table can be protected."""

    SAFE = "safe"
    """Nothing would have been refused, and writes under a lease were seen."""
    UNSAFE = "unsafe"
    """Something would have been refused."""
    UNKNOWN = "unknown"
    """Nothing would have been refused, but no write under a lease was seen either."""


@dataclass(frozen=True)
class WatchedTable:
    """A watched table, and what was seen of it.

    Attributes:
        table: its name.
        resource: the template that makes a row's resource from its columns.
        exempt: columns that may change without a lease.
        subscriber: whether the workers of a subscription write it without a lease.
        since: since when it is watched with these settings; ``None`` after a restore that lost it.
        until: when this was read.
        within: only kinds of writes that were seen within this time; ``None``: since it is watched.
        writes: the kinds of writes that were seen, or those last seen since the time that was asked for.
        triggers: triggers that may set columns in every UPDATE.
        generated: its generated columns; they follow from others and need no exemption.
    """

    table: str
    resource: str
    exempt: tuple[str, ...]
    subscriber: bool
    since: datetime | None
    until: datetime
    within: timedelta | None
    writes: tuple[WatchedWrite, ...]
    triggers: tuple[ColumnTrigger, ...]
    generated: tuple[str, ...]

    @property
    def watched_for(self) -> timedelta:
        """How long it has been watched."""
        return timedelta() if self.since is None else self.until - self.since

    @property
    def seen_for(self) -> timedelta:
        """The time that :attr:`writes` tells of."""
        return self.watched_for if self.within is None else min(self.watched_for, self.within)

    @cached_property
    def refused(self) -> int:
        """How many statements of clients protection would have refused."""
        return sum(w.refused for w in self.writes)

    @cached_property
    def leased(self) -> int:
        """How many writes presented the lease of their rows."""
        return sum(w.times for w in self.writes if w.verdict == "leased")

    @property
    def readiness(self) -> Readiness:
        """Whether it can be protected as it is watched."""
        if any(not w.passes for w in self.writes):
            return Readiness.UNSAFE
        return Readiness.SAFE if self.leased else Readiness.UNKNOWN

    @cached_property
    def set_by_triggers(self) -> frozenset[str]:
        """The columns that a trigger sets in every UPDATE."""
        return frozenset(column for t in self.triggers for column in t.columns)

    @cached_property
    def proposed(self) -> tuple[str, ...]:
        """Columns to exempt besides those that are: of writes without a lease that change nothing else.

        No column that a write under a lease changed, and none of the resource. Columns that a trigger sets
        tell nothing about who changes what: they are proposed with the others. Empty until an UPDATE under a
        lease was seen, because before that every column would look like one that needs none.
        """
        if not any(w.verdict == "leased" and w.columns for w in self.writes):
            return ()
        leased = {c for w in self.writes if w.verdict == "leased" for c in w.columns or ()}
        kept = (leased - self.set_by_triggers) | set(re.findall(r"\{([^{}]+)\}", self.resource))
        found: set[str] = set()
        for write in self._free_if():
            changed = set(write.columns or ()) - set(self.generated)
            if not changed & kept:
                found |= changed
        return tuple(sorted(found))

    def _free_if(self) -> Iterable[WatchedWrite]:
        return (w for w in self.writes if w.verdict == "unguarded" and w.columns)

    @cached_property
    def freed(self) -> int:
        """How many of the refused writes would pass with the proposed columns exempt."""
        free = {*self.proposed, *self.generated}
        return sum(w.refused for w in self._free_if() if set(w.columns or ()) <= free) if self.proposed else 0

    def command(self, *, exempt: Sequence[str] | None = None, watch: bool = False) -> str:
        """The command that protects the table, or watches it.

        Args:
            exempt: the exempt columns; those of now if left out.
            watch: whether it goes on being watched.
        """
        free = self.exempt if exempt is None else exempt
        parts = ["lockguard", "fence", "protect", self.table, "--resource", self.resource]
        parts += ["--exempt", ",".join(free)] if free or exempt is not None else []
        parts += ["--subscriber"] * self.subscriber + ["--watch"] * watch
        return shlex.join(parts)


def watched_tables(
    watches: Iterable[Mapping[str, Any]],
    writes: Iterable[Mapping[str, Any]],
    triggers: Iterable[Mapping[str, Any]],
    columns: Iterable[Mapping[str, Any]],
    *,
    since: timedelta | None = None,
) -> tuple[WatchedTable, ...]:
    """What the queries of this module answered, by table.

    Args:
        watches: the rows of :data:`WATCHES`.
        writes: the rows of :data:`WRITES`.
        triggers: the rows of :data:`TRIGGERS`.
        columns: the rows of :data:`COLUMNS`.
        since: only kinds of writes that were seen within this time.
    """
    seen, before, of = list(writes), list(triggers), list(columns)
    return tuple(
        WatchedTable(
            table=w["relation"],
            resource=w["template"],
            exempt=tuple(w["exempt"]),
            subscriber=w["subscriber"],
            since=w["since"],
            until=w["now"],
            within=since,
            writes=tuple(
                _write(r)
                for r in seen
                if r["relation"] == w["relation"] and (since is None or r["at"] >= w["now"] - since)
            ),
            triggers=tuple(
                _trigger(t, {c["name"] for c in of if c["relation"] == w["relation"]})
                for t in before
                if t["relation"] == w["relation"]
            ),
            generated=tuple(c["name"] for c in of if c["relation"] == w["relation"] and c["generated"]),
        )
        for w in watches
    )


def _write(row: Mapping[str, Any]) -> WatchedWrite:
    return WatchedWrite(
        operation=row["operation"],
        columns=None if row["columns"] is None else tuple(row["columns"]),
        verdict=row["verdict"],
        role=row["role"],
        application=row["application"],
        times=row["times"],
        refused=row["refused"],
        first_at=row["first_at"],
        at=row["at"],
        address=row["address"],
        backend=row["backend"],
        statement=row["statement"],
    )


def _trigger(row: Mapping[str, Any], columns: set[str]) -> ColumnTrigger:
    if row["function"] in _OF_POSTGRES:
        named = row["arguments"][:1]
    else:
        text = _COMMENT.sub(" ", row["source"] or "")
        named = [_unquoted(next(filter(None, found))) for found in _ASSIGNED.findall(text)]
    return ColumnTrigger(row["name"], row["function"], tuple(sorted({*named} & columns)))


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
