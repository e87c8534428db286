"""The numbers by which a transaction's outcome can be looked up.

A number consists of a slot and a count within it. A slot belongs to one transaction at a time and is passed
to the next only when the outcome of this one is certain, so the fence keeps one row for each slot and
resource: the last number that committed. The record of a transaction whose outcome is unknown stays, because
its slot is never given back.

A free slot goes to the resource that had it before. If all resources of a process shared it, a thousand of
their transactions would use it up, and each resource would have a row for each slot.

A slot is used for a thousand transactions, so that its row has few versions while something keeps Postgres
from removing dead ones, and for twelve hours, so that the fence knows by the row's age that no transaction
will use it again.

All numbers lie above 2^62. Lower ones come from an older version of this library, which left a row for each
transaction.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
from typing import TYPE_CHECKING

from lockguard._clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["NUMBERS", "Numbers"]

_FLAG = 1 << 62
_COUNT_BITS = 10
_COUNT_MASK = (1 << _COUNT_BITS) - 1
_COUNT_MAX = 1000
# Above every count of a slot that is used again: a slot with this count is used once.
_ALONE = _COUNT_MASK
_LIFE_S = 12 * 3600.0
# Each process counts in a range of its own. If two ranges coincide, tokens still tell their writes apart.
_RANGE_BITS = 32
_RANGES = (1 << 30) - 1
# Further resources share their slots, so that a process that always meets new ones need not remember them.
_RESOURCES_MAX = 4096


class Numbers:
    """Hands out the numbers of one process.

    Args:
        clock: tells when a slot has been used for long enough.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Begin in a range of its own; called again in a process that was forked.

        From then on any thread may call the other methods.
        """
        self._lock = threading.Lock()  # a fork may have copied one that was held
        start = _FLAG + (secrets.randbelow(_RANGES) << _RANGE_BITS)
        self._slots: Iterator[int] = itertools.count(start, 1 << _COUNT_BITS)
        self._shared: list[int] = []
        self._own: dict[str, list[int]] = {}
        self._owners: dict[int, str] = {}
        self._since = start
        self._ends = self._clock.now() + _LIFE_S

    def take(self, resource: str = "") -> int:
        """A number for a transaction that presents it in the message that begins it.

        Args:
            resource: the one whose row will record it. With another one it is as good, but adds a row.
        """
        with self._lock:
            return self._taken(resource)

    def _taken(self, resource: str) -> int:
        if self._clock.now() >= self._ends:
            self._since = next(self._slots)
            self._ends = self._clock.now() + _LIFE_S
            self._forget()
        free = self._own.get(resource)
        if free is None:
            free = self._shared
            if len(self._own) < _RESOURCES_MAX:
                free = self._own[resource] = []
        if free:
            # The latest first: the fewer slots in use, the fewer rows.
            return free.pop() + 1
        number = next(self._slots) + 1
        if free is not self._shared:
            self._owners[number >> _COUNT_BITS] = resource
        return number

    def alone(self) -> int:
        """A number with a slot, and so a row, of its own.

        For a transaction that has begun already: its snapshot may be older than any slot's last number.
        """
        with self._lock:
            return next(self._slots) + _ALONE

    def give_back(self, numbers: Iterable[int]) -> None:
        """Free the slots of numbers whose outcome is known for certain; call it once for each number.

        Numbers of the process from which this one was forked are left to that process.
        """
        with self._lock:
            self._give_back(numbers)

    def _give_back(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if not self._since <= number < self._since + (1 << _RANGE_BITS):
                continue
            slot = number >> _COUNT_BITS
            if number & _COUNT_MASK >= _COUNT_MAX:
                self._owners.pop(slot, None)
                continue
            owner = self._owners.get(slot)
            (self._shared if owner is None else self._own[owner]).append(number)

    def _forget(self) -> None:
        self._shared.clear()
        self._own.clear()
        self._owners.clear()


NUMBERS = Numbers()
"""The numbers of this process."""
os.register_at_fork(after_in_child=NUMBERS.begin)
