"""Races against the fence on a real Postgres, with an oracle that knows nothing of the fence.

Holders take the same few resources from an issuer that gives each request the next token, whether or not the
last holder has finished, as if each lease had ended unnoticed. They pause, between grant and seal as well as
inside transactions; their backends are killed; replies to COMMIT are lost; occasionally the issuer's tokens
go back, as after a FLUSHALL. Some holders go on with a lease that they have released.

A write raises the counter ``n`` of its resource by one, at once or after reading it, and a trigger records
(resource, n, token, op); or it inserts a row. Writers lock a resource's row one at a time, so ``n`` is the
order of commits, and the tables afterwards show whether these laws hold:

stale commit
    In the order of ``n``, tokens never go back and no ``n`` is missing or duplicated. The counter and the
    number of inserted rows that a holder read after its seal returned were final for all older tokens.
    Nothing commits after its holder's close has returned.
duplicate
    No operation is there twice, although an operation whose reply was lost is tried again when it is found
    not to have committed.
lost write
    An operation that was reported as committed, or found committed, is there; one that was refused, or found
    not committed, is not there, and neither is anything that was rolled back to a savepoint.

Some holders keep one connection through all their leases, as a bot does, and write in transactions that were
begun without a lease: what one transaction learned about a connection must not count in the next.
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
