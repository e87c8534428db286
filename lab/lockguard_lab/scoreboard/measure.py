"""One run: servers of its own, each case for each way to lock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from lockguard.errors import ConfigurationError
from lockguard_lab.bench.contenders import installed_version
from lockguard_lab.bench.holders.choose import EVERY, absent
from lockguard_lab.bench.holders.etcd_server import EtcdServer
from lockguard_lab.bench.holders.measure import set_up
from lockguard_lab.bench.holders.ways import Place
from lockguard_lab.scoreboard.cases import CASES, Trial
from lockguard_lab.scoreboard.found import Found
from lockguard_lab.servers import PostgresServer, RedisServer

__all__ = ["WAYS", "Board", "measure"]

WAYS = (
    "lockguard",
    "lockguard-no-fence",
    "lockguard-quorum",
    "redis-py",
    "python-redis-lock",
    "pottery",
    "coredis",
    "aioredlock",
    "advisory-session",
    "advisory-transaction",
    "etcd",
    "etcd-revision",
)
"""The ways on the board, in its order."""

NEVER = {
    "mithril-locks": "it needs redis-py before 8, which cannot be installed beside the one of the others",
    "ZooKeeper": "its server and the Java runtime for it are not installed",
}
"""What is not on it, and why."""

_PACKAGES = ("redis-py", "python-redis-lock", "pottery", "coredis", "aioredlock")
_CASE_S = 240.0


@dataclass(frozen=True, slots=True)
class Board:
    """What a run found.

    Attributes:
        cells: a cell for each way and case, in the order of the ways.
        versions: of the servers and the peers.
        left_out: what could not be tried, each with the reason.
        ttl_s: of each lock that has one.
        interrupted_at: what was being tried when the run was interrupted; empty if it came to its end.
    """

    cells: list[Found]
    versions: Mapping[str, str]
    left_out: Mapping[str, str]
    ttl_s: int
    interrupted_at: str = ""

    def to_json(self) -> dict[str, Any]:
        """As ``scripts/evidence`` keeps it; nothing that a peer does is a violation of a promise of ours."""
        verdicts = [one.verdict for one in self.cells]
        return {
            "counts": {
                "cases": len(self.cells),
                **{f"verdict_{one}": verdicts.count(one) for one in ("yes", "late", "no")},
            },
            "violations": [
                f"{one.way}, {one.case}: {one.told}"
                for one in self.cells
                if one.verdict == "no" and (one.way, one.case) in _PROMISED
            ],
            "rows": [one.to_json() for one in self.cells],
            "versions": dict(self.versions),
            "notes": [
                f"Locks with a ttl have {self.ttl_s} s.",
                *(f"Left out: {name}: {why}." for name, why in self.left_out.items()),
                *(
                    [f"Interrupted at {self.interrupted_at}: all that follows lacks."]
                    if self.interrupted_at
                    else []
                ),
            ],
        }


_PROMISED = {
    ("lockguard", case)
    for case in ("cancel", "lost-reply", "stopped", "wiped", "wake-up", "herd", "stranger", "renewal")
}


async def measure(
    ways: Sequence[str],
    cases: Sequence[str],
    *,
    ttl_s: int = 2,
    rounds: int = 5,
    progress: Callable[[str], None],
) -> Board:
    """Try each case on each way.

    Args:
        ways: names; one that cannot run here is left out and named.
        cases: names, of :data:`~lockguard_lab.scoreboard.cases.CASES`.
        ttl_s: of each lock that has one; etcd's shortest is 2.
        rounds: of what is measured several times.
        progress: called with what is being tried.
    """
    left_out = absent(ways)
    present = [name for name in ways if name not in left_out]
    cells: list[Found] = []
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        postgres = await stack.enter_async_context(PostgresServer(max_connections=300))
        versions = {redis.binary.product: redis.version, postgres.binary.product: postgres.version}
        quorum: list[str] = []
        if "lockguard-quorum" in present:
            quorum = [(await stack.enter_async_context(RedisServer())).url for _ in range(3)]
        place = Place(redis.url, postgres.create_database("scoreboard"), "", tuple(quorum))
        await set_up(place)
        at = ""
        try:
            for name in present:
                async with AsyncExitStack() as own:
                    where = place
                    if EVERY[name].server == "etcd":  # waiters of the way before may still stand in its line
                        etcd = await own.enter_async_context(EtcdServer())
                        versions["etcd"], where = etcd.version, place.at("etcd", etcd.url)
                    for case in cases:
                        at = f"{name}: {case}"
                        progress(at)
                        cells.append(await _one(Trial(name, where, ttl_s, rounds), case))
            at = ""
        except asyncio.CancelledError:  # Ctrl-C: what was found took minutes, and is told
            pass
    versions |= {name: installed_version(name) for name in _PACKAGES if name in present}
    return Board(cells, versions, left_out | NEVER, ttl_s, interrupted_at=at)


async def _one(trial: Trial, case: str) -> Found:
    try:
        async with asyncio.timeout(_CASE_S):
            return await CASES[case].run(trial)
    except TimeoutError:
        return trial.found(case, "no", f"not over in {_CASE_S:g} s")
    except ConfigurationError as failed:  # the other cells took minutes, and are not lost for it
        return trial.found(case, "-", f"not tried: {failed}")
    except Exception as failed:  # noqa: BLE001 - the same, whatever a peer or a server raises
        return trial.found(case, "-", f"not tried: {type(failed).__name__}: {failed}")
