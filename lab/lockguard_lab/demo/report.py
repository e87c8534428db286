"""The report of a demo: its numbers, and the claims that the numbers must support."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lockguard_lab.demo.history import HistoryLine
    from lockguard_lab.demo.paused import PausedResult
    from lockguard_lab.race.settings import RaceResult
    from lockguard_lab.servers import ServerBinary

__all__ = ["Claim", "DemoResult", "Servers", "claims"]


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers that ran, and their versions."""

    redis: ServerBinary
    postgres: ServerBinary

    @property
    def ccxt(self) -> str:
        """The version of the ccxt that talked to the local exchange."""
        try:
            return version("ccxt")
        except PackageNotFoundError:
            return "unknown"

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""

        def told(binary: ServerBinary) -> dict[str, str]:
            return {
                "product": binary.product,
                "version": binary.version,
                "source": binary.source,
                "path": str(binary.path),
            }

        return {
            "redis": told(self.redis),
            "postgres": told(self.postgres),
            "exchange": {"product": "lockguard's local exchange", "ccxt": self.ccxt},
        }


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The results of the three acts.

    Attributes:
        unguarded: the race of the first act.
        guarded: the race of the second act.
        guarded_history: the history in Redis of the locks of the second act.
        paused: the result of the third act.
    """

    unguarded: RaceResult
    guarded: RaceResult
    guarded_history: tuple[HistoryLine, ...]
    paused: PausedResult
    servers: Servers
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "unguarded": self.unguarded.as_json(),
            "guarded": self.guarded.as_json(),
            "stale_writes": {
                "attempted": self.paused.attempted,
                "refused": len(self.paused.refusals),
                "committed": self.paused.committed,
            },
            "servers": self.servers.as_json(),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the demo, and whether this run supports it."""

    text: str
    held: bool
    seen: str


def claims(result: DemoResult) -> list[Claim]:
    """All claims of the demo, checked against this result."""
    return [*_of_the_races(result.unguarded, result.guarded), *_of_the_paused(result.paused)]


def _of_the_races(unguarded: RaceResult, guarded: RaceResult) -> list[Claim]:
    opened = guarded.opens - guarded.rolled_back - len(guarded.errors)
    return [
        Claim(
            "without the guard the race makes duplicates",
            unguarded.duplicates > 0,
            f"{unguarded.duplicates} of {unguarded.opens}",
        ),
        Claim(
            "with the guard it makes none",
            guarded.duplicates == guarded.double_entries == 0,
            f"{guarded.duplicates} of {guarded.opens}",
        ),
        Claim(
            "with the guard every position has its stop",
            guarded.without_stop == 0,
            f"{guarded.without_stop} without",
        ),
        Claim("with the guard every open succeeds", opened == guarded.opens, f"{opened} of {guarded.opens}"),
    ]


def _of_the_paused(paused: PausedResult) -> list[Claim]:
    rounds, refusals = paused.rounds, paused.refusals
    in_force = {refusal.resource: refusal.current for refusal in refusals}
    return [
        Claim(
            "every late write of a stopped holder reaches Postgres",
            paused.attempted == len(rounds) > 0,
            f"{paused.attempted} of {len(rounds)}",
        ),
        Claim(
            "and would overwrite the successor's row",
            all(one.would_overwrite for one in rounds),
            f"{sum(one.would_overwrite for one in rounds)} of {len(rounds)}",
        ),
        Claim(
            "Postgres refuses each of them",
            len(refusals) == paused.attempted > 0 and paused.committed == 0,
            f"{len(refusals)} refused, {paused.committed} committed",
        ),
        Claim(
            "the row shows the successor's token",
            all(
                one.row_status == "active" and one.first_token < one.row_token == in_force.get(one.resource)
                for one in rounds
            ),
            f"{sum(one.row_token == in_force.get(one.resource) for one in rounds)} of {len(rounds)}",
        ),
        Claim(
            "the stopped holder ends with LeaseLost",
            all(one.lost for one in rounds),
            f"{sum(one.lost for one in rounds)} of {len(rounds)}",
        ),
        Claim(
            "one row, one entry and one stop are left",
            all(one.rows == one.entries == one.stops == 1 for one in rounds),
            f"{sum(one.rows == one.entries == one.stops == 1 for one in rounds)} of {len(rounds)}",
        ),
    ]
