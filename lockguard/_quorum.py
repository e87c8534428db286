"""The arithmetic of majorities and of trusted time. Nothing here waits, reads a clock or sends."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["DRIFT_FIXED_MS", "DRIFT_SHARE", "drift_ms", "majority", "may_be_most", "trusted_s", "ttl_ms_min"]

DRIFT_SHARE = 0.01
"""How much faster a server's clock may run than ours, as a share of the ttl (the Redlock description's)."""

DRIFT_FIXED_MS = 2
"""Redis expires keys to the millisecond; this covers the rounding at both ends."""

_VALID_SHARE_MIN = 0.5


def majority(nodes: int) -> int:
    """The least number of votes of which any two sets have a node in common."""
    return nodes // 2 + 1


def may_be_most(yeses: int, *, answers: int, nodes: int) -> bool:
    """Whether at least one says so, and a majority does if those that did not answer would say the same."""
    return yeses > 0 and yeses + nodes - answers >= majority(nodes)


def drift_ms(ttl_ms: int) -> float:
    """The allowance for clock drift during one ttl, in milliseconds."""
    return ttl_ms * DRIFT_SHARE + DRIFT_FIXED_MS


@lru_cache(maxsize=256)
def trusted_s(ttl_ms: int) -> float:
    """How long a grant may be trusted, in seconds, counted from before its request was sent."""
    return (ttl_ms - drift_ms(ttl_ms)) / 1000


def ttl_ms_min() -> int:
    """The least ttl worth having: at least half of it must be left after the drift allowance."""
    ttl_ms = 1
    while ttl_ms - drift_ms(ttl_ms) < ttl_ms * _VALID_SHARE_MIN:
        ttl_ms += 1
    return ttl_ms
