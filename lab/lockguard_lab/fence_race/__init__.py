"""Races against the fence on a real Postgres, with an oracle that knows nothing of the fence.

Holders take the same few resources from a desk that hands every asker the next token, whether or not the
last holder has finished: as if each lease had ended unnoticed. They pause, between grant and seal as well
as inside transactions; their backends are killed; replies to COMMIT are lost; now and then the desk's
tokens go back, as after a FLUSHALL. Some go on with a lease that they have given back.

A write raises the counter ``n`` of its resource by one, at once or after it was read, and a trigger notes
(resource, n, token, op); or it inserts a row. Rows of one resource are locked in turn, so ``n`` is the order
of commits, and these laws can be read off the tables afterwards:

stale commit
    Along ``n`` tokens never go back and no ``n`` is missing or there twice. What a holder read when its seal
    had returned, the counter and the number of inserted rows, was final for all older tokens. Nothing
    commits after its holder's close had returned.
duplicate
    No operation is there twice, although one whose reply was lost is tried again when it is found not to
    have committed.
lost write
    An operation that was reported as committed, or found to have, is there; one that was refused, or found
    not to have, is not, and neither is what was rolled back to a savepoint.

Some holders keep one connection through all their leases, as a bot does, and write in transactions that were
begun without a lease: what was learnt of a connection in one transaction is worth nothing in the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockguard_lab.fence_race.plan import RacePlan, RaceReport, Shape, Way, Write, WriteAttempt
from lockguard_lab.fence_race.planted import PLANTED, PLANTED_ISOLATIONS, Verdict, convict
from lockguard_lab.fence_race.running import race
from lockguard_lab.fence_race.ways import WAYS, present_ways
from lockguard_lab.fence_race.writes import BUMP, FOREIGN, NATIVE, SAVEPOINTS, TRANSACTION
from lockguard_lab.fence_race.writes_dropin import DROP_IN, PROTECTED
from lockguard_lab.fence_race.writes_sqlalchemy import SQLALCHEMY

if TYPE_CHECKING:
    from lockguard_asyncpg._transaction import Isolation

__all__ = [
    "BUMP",
    "DROP_IN",
    "FOREIGN",
    "ISOLATIONS",
    "NATIVE",
    "PLANTED",
    "PLANTED_ISOLATIONS",
    "PROTECTED",
    "SAVEPOINTS",
    "SQLALCHEMY",
    "TRANSACTION",
    "WAYS",
    "RacePlan",
    "RaceReport",
    "Shape",
    "Verdict",
    "Way",
    "Write",
    "WriteAttempt",
    "convict",
    "present_ways",
    "race",
]

ISOLATIONS: tuple[Isolation, ...] = ("read_committed", "repeatable_read", "serializable")
