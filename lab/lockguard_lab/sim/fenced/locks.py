"""Locks as Postgres gives them: shared or alone, in the order in which they were asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

__all__ = ["Key", "Locks", "Mode", "Owner", "Waiter"]

Key = tuple[Hashable, ...]
Mode = Literal["shared", "alone"]


class Owner(Protocol):
    """A transaction, as the locks know it."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def session(self) -> Any:
        """The session that it is of."""
        ...


@dataclass(eq=False)
class Waiter:
    """Who waits for a lock, and what to do once it is had."""

    owner: Owner
    key: Key
    mode: Mode
    granted: Callable[[], None]


@dataclass
class _Lock:
    held: list[tuple[Owner, Mode]] = field(default_factory=list)
    waiting: list[Waiter] = field(default_factory=list)


def _conflict(one: Mode, other: Mode) -> bool:
    return "alone" in (one, other)


class Locks:
    """All locks of a database."""

    def __init__(self) -> None:
        self._locks: dict[Key, _Lock] = {}

    def try_(self, owner: Owner, key: Key, mode: Mode) -> bool:
        """Take a lock if nothing that is held or waited for stands against it."""
        lock = self._locks.setdefault(key, _Lock())
        if (owner, mode) in lock.held:
            return True
        if any(other is not owner and _conflict(mode, theirs) for other, theirs in lock.held):
            return False
        if any(_conflict(mode, waiter.mode) for waiter in lock.waiting if waiter.owner is not owner):
            return False
        lock.held.append((owner, mode))
        return True

    def wait(self, owner: Owner, key: Key, mode: Mode, granted: Callable[[], None]) -> Waiter:
        """Stand in line; ``granted`` is called once the lock is had, perhaps at once."""
        lock = self._locks.setdefault(key, _Lock())
        waiter = Waiter(owner, key, mode, granted)
        mine: list[Mode] = [theirs for other, theirs in lock.held if other is owner]
        place = len(lock.waiting)
        for number, ahead in enumerate(lock.waiting):
            wanted: Mode = ahead.mode
            # Who holds what the one ahead waits for goes before it: behind it, both would wait for ever.
            if any(_conflict(wanted, theirs) for theirs in mine):
                place = number
                break
        lock.waiting.insert(place, waiter)
        self._pass_on(lock)
        return waiter

    def give_up(self, waiter: Waiter) -> None:
        """Leave the line."""
        lock = self._locks[waiter.key]
        if waiter in lock.waiting:
            lock.waiting.remove(waiter)
            self._pass_on(lock)

    def release(self, owner: Owner, key: Key, mode: Mode) -> None:
        """Give a lock back."""
        lock = self._locks[key]
        if (owner, mode) in lock.held:
            lock.held.remove((owner, mode))
            self._pass_on(lock)

    def _pass_on(self, lock: _Lock) -> None:
        ahead: list[Mode] = []
        for waiter in list(lock.waiting):
            free = not any(
                other is not waiter.owner and _conflict(waiter.mode, theirs) for other, theirs in lock.held
            )
            if free and not any(_conflict(waiter.mode, mode) for mode in ahead):
                lock.waiting.remove(waiter)
                lock.held.append((waiter.owner, waiter.mode))
                waiter.granted()
            else:
                ahead.append(waiter.mode)

    def waits(self, waiter: Waiter) -> bool:
        """Whether a waiter still stands in line."""
        return waiter in self._locks[waiter.key].waiting

    def holders(self, key: Key) -> list[tuple[Owner, Mode]]:
        """Who has a lock."""
        return list(self._locks[key].held) if key in self._locks else []

    def blockers(self, waiter: Waiter) -> list[Owner]:
        """Whom a waiter waits for."""
        lock = self._locks[waiter.key]
        found = [
            other for other, mode in lock.held if other is not waiter.owner and _conflict(waiter.mode, mode)
        ]
        for ahead in lock.waiting:
            if ahead is waiter:
                break
            if _conflict(waiter.mode, ahead.mode):
                found.append(ahead.owner)
        return found
