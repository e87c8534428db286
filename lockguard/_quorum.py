"""What the answers of nodes amount to: majorities, trusted time, tallies.

Nothing here waits, reads a clock or sends.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from lockguard._lease import Token
from lockguard.ports import (
    Broken,
    Busy,
    Done,
    Extended,
    Granted,
    Inspection,
    MaybeExecuted,
    NotExecuted,
    NoVote,
    Quarantined,
    Waiter,
)

if TYPE_CHECKING:
    from asyncio import Future

__all__ = [
    "DRIFT_FIXED_MS",
    "DRIFT_SHARE",
    "Extension",
    "Renewal",
    "below_next",
    "described",
    "drift_ms",
    "found",
    "majority",
    "may_be_most",
    "prevailing",
    "tally",
    "thrown_out",
    "trusted_s",
    "vote_of",
]

T = TypeVar("T")

DRIFT_SHARE = 0.01
"""How much faster a server's clock may run than ours, as a share of the ttl (as Redlock describes)."""

DRIFT_FIXED_MS = 2
"""Redis expires keys to the millisecond; this covers the rounding at both ends."""


def majority(nodes: int) -> int:
    """The least number of votes such that any two sets of that many have a node in common."""
    return nodes // 2 + 1


def may_be_most(yeses: int, *, answers: int, nodes: int) -> bool:
    """Whether at least one node says yes, and a majority would if all that did not answer said yes too."""
    return yeses > 0 and yeses + nodes - answers >= majority(nodes)


def drift_ms(ttl_ms: int) -> float:
    """The allowance for clock drift during one ttl, in milliseconds."""
    return ttl_ms * DRIFT_SHARE + DRIFT_FIXED_MS


@lru_cache(maxsize=256)
def trusted_s(ttl_ms: int) -> float:
    """How long a grant may be trusted, in seconds, counted from before its request was sent."""
    return (ttl_ms - drift_ms(ttl_ms)) / 1000


class Renewal(Enum):
    """The outcome of a renewal."""

    RENEWED = "renewed"
    REFUSED = "refused"
    """Too many nodes say that this grant does not hold the lock: the lease cannot be saved."""
    UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True)
class Extension:
    """The tally of a renewal.

    Attributes:
        renewal: the outcome.
        deadline: where it was renewed, the instant on the clock, in seconds, until which it may be trusted.
        wanted: where it was renewed, whether a hand-over was requested.
        noes: where it was renewed, how many nodes say that this grant does not hold the lock there.
        cause: where it was not answered, what the nodes said, for display.
    """

    renewal: Renewal
    deadline: float = 0.0
    wanted: bool = False
    noes: int = 0
    cause: str = ""


def tally(asked: Sequence[Future[Extended | NoVote]], *, sent_at: float, ttl_ms: int) -> Extension:
    """Count the answers of all nodes to a renewal that was sent at ``sent_at`` on the clock, in seconds."""
    votes, quorum = [vote_of(future) for future in asked], majority(len(asked))
    extended = [vote for vote in votes if isinstance(vote, Extended)]
    held = [vote for vote in extended if vote.held]
    if len(held) >= quorum:
        noes = len(extended) - len(held)
        return Extension(
            Renewal.RENEWED, sent_at + trusted_s(ttl_ms), wanted=any(vote.wanted for vote in held), noes=noes
        )
    if len(asked) - (len(extended) - len(held)) < quorum:
        return Extension(Renewal.REFUSED)
    return Extension(
        Renewal.UNANSWERED, cause="; ".join(described(v) for v in votes if not isinstance(v, Extended))
    )


def found(vote: Done | NoVote | None) -> bool | None:
    """Whether this release found the lock held by its grant; ``None``: the node cannot say."""
    if not isinstance(vote, Done) or (vote.repeated and not vote.found):
        return None
    return vote.found


def prevailing(seen: Sequence[Inspection], *, nodes: int) -> Inspection:
    """Combine the answers of ``nodes`` nodes: a grant that a majority shows, or may show, holds the lock.

    A grant that only a minority shows does not: a release returns before it has reached every node. A free
    resource opens when a majority of the nodes is open; a node that did not answer opens none.
    """
    opening = sorted(inspection.closed_ms for inspection in seen)
    holding = Counter(inspection.grant for inspection in seen if inspection.held)
    for grant, count in holding.most_common(1):
        if may_be_most(count, answers=len(seen), nodes=nodes):
            shown = [inspection for inspection in seen if inspection.grant == grant]
            tokens = Counter(inspection.token for inspection in shown)
            best = max(shown, key=lambda seen: (tokens[seen.token], seen.token, seen.remaining_ms))
            wanted = best.wanted or max(inspection.wanted for inspection in shown)
            return replace(best, wanted=wanted, waiters=_waiting(seen, nodes=nodes))
    last = max(seen, key=lambda inspection: (not inspection.held, inspection.token))
    return replace(
        last,
        held=False,
        grant="",
        holder="",
        operation="",
        age_ms=0,
        remaining_ms=0,
        ttl_ms=0,
        renewals=0,
        waiters=_waiting(seen, nodes=nodes),
        wanted="",
        closed_ms=opening[min(majority(nodes), len(seen)) - 1],
    )


def _waiting(seen: Sequence[Inspection], *, nodes: int) -> tuple[Waiter, ...]:
    """The waiters that a majority shows, or may show, earliest first: one may not have reached every node."""
    if len(seen) == 1:
        return seen[0].waiters
    places: dict[str, list[Waiter]] = defaultdict(list)
    for inspection in seen:
        for waiter in inspection.waiters:
            places[waiter.grant].append(waiter)
    most = (
        max(shown, key=lambda waiter: (bool(waiter.holder), waiter.ticket))
        for shown in places.values()
        if may_be_most(len(shown), answers=len(seen), nodes=nodes)
    )
    return tuple(sorted(most, key=lambda waiter: waiter.ticket))


def thrown_out(broken: Sequence[Broken]) -> Broken:
    """Combine the answers to a break: the holder that most nodes had, and the highest token floor."""
    shown = Counter(each.grant for each in broken)
    told = max(broken, key=lambda each: (bool(each.grant), shown[each.grant]))
    return replace(told, token=max(each.token for each in broken))


def below_next(broken: Sequence[Broken], *, nodes: int) -> Token:
    """The token that any grant made after these answers to a break is above.

    It needs a majority, so its token is above the floor of one that answered at least, whichever these are;
    0 if it needs none of them. A grant that had settled its token before, on a majority, has a lower one.
    """
    floors = sorted(each.token for each in broken)
    unknown = nodes - len(floors)
    return Token(floors[majority(nodes) - unknown - 1]) if majority(nodes) > unknown else Token(0)


def vote_of(future: Future[T]) -> T | None:
    """The vote that ``future`` holds, or ``None`` while it has none, and for one that failed."""
    if not future.done() or future.cancelled() or future.exception() is not None:
        return None
    return future.result()


def described(vote: object) -> str:
    """A vote as text for display."""
    match vote:
        case None:
            return "no answer in time"
        case Granted(token):
            return f"granted with token {token}"
        case Busy(holder):
            return f"busy: {holder or 'reserved for a waiter'}"
        case Quarantined(quarantine_ms) if quarantine_ms:
            return f"lost what it knew, or is new: gives no vote for another {quarantine_ms / 1000:.1f} s"
        case Quarantined():
            return "lost what it knew, or is new: has to be admitted"
        case NotExecuted(error) | MaybeExecuted(error):
            return str(error)
        case _:
            return type(vote).__name__.lower()
