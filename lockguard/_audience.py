"""The observers of a guard: checked when the guard is made, and kept even when they fail.

An observer must not break a lock: what it raises ends here. Nor is it dropped, because the observer that
failed on a full disk is the one that records the losses.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from lockguard.errors import ConfigurationError
from lockguard.events import ObserverFailed
from lockguard.text import kind_of, printable

if TYPE_CHECKING:
    from lockguard._clock import Clock

__all__ = ["Audience"]

E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)

_LOG = logging.getLogger("lockguard")
_LOGGED_EVERY_S = 60.0
"""Seconds between two logged failures of one observer, which may fail at each event, a hundred a second."""

_REMEDY = "give an object with a method on(event), such as LogObserver()"


class _Watcher(Protocol[E_contra]):
    def on(self, event: E_contra) -> None: ...


class Audience(Generic[E]):
    """The observers of one guard, or of one manager of positions.

    Args:
        observers: told of each event, in this order.
        clock: limits how often an observer's failures are logged.

    Raises:
        ConfigurationError: one of them cannot receive events.
    """

    __slots__ = ("_clock", "_observers")

    def __init__(self, observers: Iterable[_Watcher[E | ObserverFailed]], *, clock: Clock) -> None:
        self._clock = clock
        self._observers = [_Observer[E](observer) for observer in _checked(observers)]

    def tell(self, event: E) -> None:
        """Tell all observers; never raises. One that fails is logged and counted, and told the next event.

        ``SystemExit`` and ``KeyboardInterrupt`` from an observer are raised in the event loop instead, once
        the lock's current step is complete.
        """
        for observer in self._observers:
            if (failure := observer.tell(event)) is None:
                continue
            failed = observer.count(failure)
            observer.log(failure, self._clock.now())
            for other in self._observers:
                # A failure on this event is counted and logged, but not told: that would never end.
                if other is not observer and (again := other.tell(failed)) is not None:
                    other.count(again)
                    other.log(again, self._clock.now())


class _Observer(Generic[E]):
    """One observer and how often it failed."""

    __slots__ = ("_failures", "_logged_at", "_on", "name")

    def __init__(self, observer: _Watcher[E | ObserverFailed]) -> None:
        self.name = type(observer).__qualname__
        self._on = observer.on
        self._failures = 0
        self._logged_at: float | None = None

    def tell(self, event: E | ObserverFailed) -> BaseException | None:
        """Tell the observer one event; returns what it raised, or ``None``."""
        try:
            returned: Any = self._on(event)
        except (SystemExit, KeyboardInterrupt) as exc:
            _end_soon(exc)
            return None
        except BaseException as exc:  # noqa: BLE001 - also a CancelledError: the lock was not cancelled
            return exc
        if returned is not None and inspect.iscoroutine(returned):
            returned.close()
            return TypeError("on(event) returned a coroutine, which nobody awaits; make it a plain method")
        return None

    def count(self, failure: BaseException) -> ObserverFailed:
        """Count one failure; returns the event that tells of it."""
        self._failures += 1
        cause = "".join(traceback.format_exception_only(failure)).strip()
        return ObserverFailed(self.name, printable(cause), self._failures)

    def log(self, failure: BaseException, now: float) -> None:
        """Log a failure, unless one was logged less than ``_LOGGED_EVERY_S`` ago."""
        if self._logged_at is not None and now - self._logged_at < _LOGGED_EVERY_S:
            return
        self._logged_at = now
        with contextlib.suppress(Exception):  # a logging filter may be what failed
            _LOG.error(
                "observer %s failed (%d in all); it stays, and is told what comes next",
                self.name,
                self._failures,
                exc_info=failure,
            )


def _end_soon(exc: BaseException) -> None:
    def end() -> NoReturn:
        raise exc

    asyncio.get_running_loop().call_soon(end)


def _checked(observers: object) -> list[Any]:
    if isinstance(observers, str | bytes) or not isinstance(observers, Iterable):
        raise ConfigurationError(
            f"observers is {kind_of(observers)}; write a list: observers=[LogObserver()]"
        )
    listed: list[Any] = list(observers)
    for observer in listed:
        _require_observer(observer)
    return listed


def _require_observer(observer: object) -> None:
    if isinstance(observer, type):
        raise ConfigurationError(f"the observer {observer.__name__} is a class; write {observer.__name__}()")
    on = getattr(observer, "on", None)
    name = getattr(observer, "__qualname__", None) or f"of {type(observer).__qualname__}"
    if not callable(on):
        raise ConfigurationError(f"the observer {name} has no method on(event); {_REMEDY}")
    if inspect.iscoroutinefunction(on) or inspect.isasyncgenfunction(on):
        raise ConfigurationError(
            f"the observer {name} has an 'async def' on(event), which nobody would await; make it a plain"
            " method that starts a task, or puts the event into a queue"
        )
    try:
        signature = inspect.signature(on)
    except (TypeError, ValueError):  # some callables written in C have no signature
        return
    try:
        signature.bind(None)
    except TypeError:
        raise ConfigurationError(
            f"the observer {name} has on{signature}, which does not take one event; {_REMEDY}"
        ) from None
