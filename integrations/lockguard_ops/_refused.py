"""Counts the writes that a fence has refused, from its records of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lockguard._records import Refusal

__all__ = ["RefusedWrites"]

_REMEMBERED_MAX = 10_000


class RefusedWrites:
    """What was refused since the first look.

    A record is one write and how often it was refused, and old records are removed: their sum may fall, which
    a counter must not. So each record is remembered, and what it has grown by is counted.
    """

    def __init__(self) -> None:
        self._times: dict[tuple[object, ...], int] = {}
        self._begun = False

    def grown(self, refusals: Iterable[Refusal]) -> Iterator[tuple[Refusal, int]]:
        """The records that were refused again since the last look, and how often; at the first look, none."""
        begun, self._begun = self._begun, True
        for one in refusals:
            key = (
                one.resource,
                one.presented,
                one.sqlstate,
                one.reason,
                one.role,
                one.application,
                one.first_at,
            )
            more = one.times - self._times.pop(key, 0)
            self._times[key] = one.times
            if begun and more > 0:
                yield one, more
        while len(self._times) > _REMEMBERED_MAX:
            del self._times[next(iter(self._times))]
