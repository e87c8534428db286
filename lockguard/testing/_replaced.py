"""A test that gives the bot's own guard, made where its module was imported, another one to work with."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, overload

from lockguard import sync
from lockguard._guard import LockGuard
from lockguard.errors import ConfigurationError
from lockguard.text import kind_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["replaced"]

_lock = threading.Lock()
_entered: list[_Replacement] = []
"""The blocks that are open in this process, in the order in which they were entered."""


@overload
def replaced(guard: LockGuard, by: LockGuard) -> AbstractContextManager[LockGuard]: ...
@overload
def replaced(guard: sync.LockGuard, by: sync.LockGuard) -> AbstractContextManager[sync.LockGuard]: ...
def replaced(guard: Any, by: Any) -> AbstractContextManager[Any]:
    """Have ``by`` do all that ``guard`` is asked to do, for the length of a ``with`` body.

    For a guard that a bot makes at module level, and whose decorated functions a test calls: ``with
    replaced(bot.guard, lockguard_memory): await bot.open_position(...)``. ``guard`` is not connected.

    Names are read by ``guard``'s ``resource_key`` first, so that they are those of production; every other
    option is that of ``by``, as far as the call or the decorator gives none.

    It counts for the whole process: in all tasks and threads, and in bodies that call the guard again. What
    is held already goes on under the lease that it has, and is released where it was taken. Of several open
    blocks, also of other tasks and threads, the one that was entered last counts, in whatever order they end.
    Tests that run in processes of their own (pytest-xdist) do not meet.

    It is for ``with`` and does not decorate: around an ``async def`` it would end before the body begins.

    Args:
        guard: a :class:`~lockguard.LockGuard`, or one of :mod:`lockguard.sync`.
        by: another one of the same kind, such as ``LockGuard.in_memory()``.

    Returns:
        A context manager that gives ``by``.

    Raises:
        ConfigurationError: the two are not guards of one kind, or ``by`` leads back to ``guard``.
    """
    kinds = [kind for kind in (LockGuard, sync.LockGuard) if isinstance(guard, kind)]
    if not kinds:
        raise ConfigurationError(f"replaced() was given {kind_of(guard)}, which is no guard of lockguard")
    if not isinstance(by, kinds[0]):
        raise ConfigurationError(
            f"a guard of {kinds[0].__module__.partition('._')[0]} cannot be replaced by {kind_of(by)}; make"
            " one with the same class, such as LockGuard.in_memory()"
        )
    replacement = _Replacement(guard, by)
    replacement.require_no_circle()
    return replacement


class _Replacement:
    """One block. It is no decorator, as a generator of ``contextlib`` would be."""

    def __init__(self, guard: Any, by: Any) -> None:
        self._guard, self._by = guard, by

    def __enter__(self) -> Any:
        with _lock:
            self.require_no_circle()
            _entered.append(self)
            self._guard._stand_in = self._by
        return self._by

    def __exit__(self, *_: object) -> None:
        with _lock:
            _entered.remove(self)
            # Not what was there before: another block, of a thread or a task, may have ended meanwhile.
            last = next((each for each in reversed(_entered) if each._guard is self._guard), None)
            self._guard._stand_in = None if last is None else last._by

    def require_no_circle(self) -> None:
        """Refuse a replacement that leads back to its guard, now or once other blocks have ended.

        Raises:
            ConfigurationError: it does.
        """
        leads_to = [self._by]
        for step in leads_to:
            if step is self._guard:
                raise ConfigurationError(
                    "this guard would be replaced by itself; give replaced() another one"
                )
            leads_to += [each._by for each in _entered if each._guard is step and each._by not in leads_to]
