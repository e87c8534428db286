"""Mistakes that are ways to write of their own: a race on a real Postgres convicts them.

They replace nothing in the sources: each is a whole way to check and write, as people build it, in
:mod:`lockguard_lab.fence_race.planted`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from lockguard_lab.sim.planted.mistake import Conviction

__all__ = ["RACED", "Raced", "convict_raced"]

_WRITES = 400
_LAW = "S3: no stale commit"
_RUN = """
import json, sys
from lockguard import _interrupt as interrupt
from lockguard_lab.fence_race import PLANTED, RacePlan, convict
from lockguard_lab.own_server import own_server
way = next(way for way in PLANTED if way.name == sys.argv[1])
with own_server("racing", max_connections=100) as server:
    verdict = interrupt.run(convict(server.url, way, RacePlan(writes=int(sys.argv[2]))))
print(json.dumps([verdict.convicted, (verdict.report.told or [""])[0], verdict.races]))
"""


@dataclass(frozen=True)
class Raced:
    """One mistake.

    Attributes:
        name: the name of its way to write.
        origin: where it comes from.
    """

    name: str
    origin: str
    law: str = _LAW
    judge: str = "race"
    file: str = ""


def convict_raced(raced: Raced) -> Conviction | None:
    """Race with it on a Postgres of its own until a stale commit is seen, or the seeds are used up."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RUN, raced.name, str(_WRITES)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    convicted, told, races = json.loads(done.stdout)
    return Conviction(raced.law, told, races) if convicted else None


_OURS = "our own past"
RACED: tuple[Raced, ...] = (
    Raced("where exists", "fencing recipes: the token in a condition of the UPDATE, without a lock"),
    Raced("token <= on the row", "Kleppmann's scheme as often built: the token compared on the row alone"),
    Raced("for key share", "a lock that an UPDATE of the row does not wait for"),
    Raced("select, then update", "check, then act"),
    Raced("select, then insert", "check, then act"),
    Raced("checked once per connection", _OURS),
    Raced("checked in a savepoint that rolled back", "frameworks that retry inside a savepoint"),
    Raced("checked in a transaction of its own", "autocommit"),
    Raced("closed in the background", "releases that nobody awaits"),
    Raced("closed past open transactions", "SKIP LOCKED where a wait was meant"),
    Raced("closed in a savepoint that rolled back", "frameworks that retry inside a savepoint"),
    Raced("check and write in one message, two transactions", "a batch that is taken for a transaction"),
    Raced("sealed with the write by whoever comes last", "last writer wins"),
    Raced("sealed with each write, also when closed", "a seal that is idempotent beyond its close"),
    Raced("sealed before the write, not with it", "autocommit"),
)
