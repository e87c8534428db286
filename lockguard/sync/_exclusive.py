"""The decorator for ``def`` functions: one call at a time for each resource."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

from lockguard._exclusive import (
    Exclusive,
    Skipped,
    binder,
    is_coroutine_function,
    require_no_method_object,
)
from lockguard._naming import Key, called
from lockguard.errors import ConfigurationError, ResourceBusy
from lockguard.text import kind_of

__all__ = ["Keeps", "MaySkip", "exclusive"]

P = ParamSpec("P")
R = TypeVar("R")


class Keeps(Protocol):
    """A decorator that keeps the function's type."""

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """The decorated function, with the parameters and result of ``function``."""
        ...


class MaySkip(Protocol):
    """A decorator whose function may return :class:`lockguard.Skipped` instead."""

    def __call__(self, function: Callable[P, R]) -> Callable[P, R | Skipped]:
        """The decorated function, with the parameters of ``function``."""
        ...


@overload
def exclusive(
    key: Key,
    *,
    guard: str | Callable[..., Any],
    on_busy: Literal["wait", "raise"] = ...,
    wait: timedelta | None = ...,
    ttl: timedelta | None = ...,
    operation: str | None = ...,
    at_least: timedelta | None = ...,
) -> Keeps: ...
@overload
def exclusive(
    key: Key,
    *,
    guard: str | Callable[..., Any],
    on_busy: Literal["skip"],
    wait: timedelta | None = ...,
    ttl: timedelta | None = ...,
    operation: str | None = ...,
    at_least: timedelta | None = ...,
) -> MaySkip: ...
def exclusive(
    key: Key | None = None,
    *,
    guard: str | Callable[..., Any] | None = None,
    on_busy: Literal["wait", "raise", "skip"] = "wait",
    wait: timedelta | None = None,
    ttl: timedelta | None = None,
    operation: str | None = None,
    at_least: timedelta | None = None,
) -> Any:
    """Like :meth:`LockGuard.exclusive`, for methods whose guard is known only when they are called.

    Args:
        key: as there; ``"{self.exchange}:{symbol}"`` works too.
        guard: the name of an attribute of ``self``, or a function that returns the guard, given the call's
            positional arguments.
        on_busy: as there.
        wait: as there.
        ttl: as there.
        operation: as there.
        at_least: as there.

    Raises:
        ConfigurationError: the key does not fit the function, or a value cannot work.
    """
    options = Exclusive(key, guard, on_busy, wait=wait, ttl=ttl, operation=operation, at_least=at_least)

    def decorate(function: Callable[P, R]) -> Callable[P, R | Skipped]:
        _require_plain_function(function)
        return _wrap(function, options.holds_for(function), skip=options.skip)

    return decorate


def _require_plain_function(function: object) -> None:
    inner: Any = function.func if isinstance(function, functools.partial) else function
    require_no_method_object(inner)
    if not callable(inner):
        raise ConfigurationError(
            f"the decorator was given {kind_of(inner)} and no function; write it with a key, such as"
            " @guard.exclusive('{exchange}:{symbol}')"
        )
    name = called(inner)
    if is_coroutine_function(function):
        raise ConfigurationError(
            f"{name} is an 'async def' function, and this guard is one of lockguard.sync; make the guard of"
            " 'async def' functions with lockguard.LockGuard"
        )
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigurationError(
            f"{name} is a generator: it would hold the lock while its caller works between two items; write"
            " 'with guard.hold(...)' around the loop over it"
        )


def _wrap(
    function: Callable[P, R], hold: Callable[[inspect.BoundArguments], Any], *, skip: bool
) -> Callable[P, R | Skipped]:
    """Decorate ``function``: ``hold(call)`` returns the hold that its body runs under."""
    bound, name = binder(function), called(function)

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | Skipped:
        holding = hold(bound(*args, **kwargs))
        entered = False
        try:
            with holding:
                entered = True
                result = function(*args, **kwargs)
                if inspect.iscoroutine(result):
                    result.close()
                    raise ConfigurationError(
                        f"{name}() gave a coroutine, which would run after the lock's release; make the guard"
                        " of 'async def' functions with lockguard.LockGuard"
                    )
                return result
        except ResourceBusy as busy:
            # A ResourceBusy that the body itself raised is passed on.
            if skip and not entered:
                return Skipped(busy)
            raise

    guarded.__name__, guarded.__qualname__ = name.rpartition(".")[2], name
    return guarded
