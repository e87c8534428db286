"""The observers of a guard: checked when it is made, kept whatever they do, and told on when they fail.

An observer must not break a lock: what it raises ends here. It is not dropped either, because the one that
failed at a full disk is the one that writes the losses down.
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
"""Of one observer: it may fail at each event, a hundred times a second."""

_REMEDY = "give an object with a method on(event), such as LogObserver()"


class _Watcher(Protocol[E_contra]):
    def on(self, event: E_contra) -> None: ...


class Audience(Generic[E]):
    """Everybody who watches one guard, or one manager of positions.

    Args:
        observers: told of each event, in this order.
        clock: to log an observer's failures now and then only.

    Raises:
        ConfigurationError: one of them could never be told anything.
    """

    __slots__ = ("_clock", "_observers")

    def __init__(self, observers: Iterable[_Watcher[E | ObserverFailed]], *, clock: Clock) -> None:
        self._clock = clock
        self._observers = [_Observer[E](observer) for observer in _checked(observers)]

    def tell(self, event: E) -> None:
        """Tell all of them; never raises. One that fails is logged and counted, and told the next event.

        An observer that asks for the end of the process (``SystemExit``, ``KeyboardInterrupt``) gets it from
        the event loop, as soon as what the lock is doing right now is complete.
        """
        for observer in self._observers:
            if (failure := observer.tell(event)) is None:
                continue
            failed = observer.count(failure)
            observer.log(failure, self._clock.now())
            for other in self._observers:
                # A failure to hear of a failure is counted and logged, but not told: that would never end.
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
        """What the observer raised, or ``None``."""
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
        """Count one failure."""
        self._failures += 1
        cause = "".join(traceback.format_exception_only(failure)).strip()
        return ObserverFailed(self.name, printable(cause), self._failures)

    def log(self, failure: BaseException, now: float) -> None:
        """Log a failure, unless one was logged just now."""
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
    except (TypeError, ValueError):  # of some that are written in C nobody can tell
        return
    try:
        signature.bind(None)
    except TypeError:
        raise ConfigurationError(
            f"the observer {name} has on{signature}, which does not take one event; {_REMEDY}"
        ) from None
