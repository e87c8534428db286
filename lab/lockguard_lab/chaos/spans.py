"""Spans of time: what is left of one, and how much of it others cover."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

__all__ = ["Span", "covered_s", "overlaps", "without"]

Span: TypeAlias = tuple[float, float]
"""From when to when, in seconds."""


def overlaps(one: Span, other: Span) -> bool:
    """Whether two spans have an instant in common."""
    return one[0] <= other[1] and other[0] <= one[1]


def without(span: Span, others: Iterable[Span]) -> list[Span]:
    """What of ``span`` none of the others covers, in order."""
    left: list[Span] = []
    at, end = span
    for begin, until in sorted(others):
        if until <= at:
            continue
        if begin >= end:
            break
        if begin > at:
            left.append((at, begin))
        at = max(at, until)
    if at < end:
        left.append((at, end))
    return left


def covered_s(span: Span, others: Iterable[Span]) -> float:
    """How much of ``span`` the others cover together, in seconds."""
    return (span[1] - span[0]) - sum(end - begin for begin, end in without(span, others))
