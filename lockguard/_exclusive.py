"""The decorator: one call of a coroutine function at a time for each resource.

The resource's name is made of the call's own arguments, by a format template or by a function. This key is
checked when the function is decorated: a template that names no parameter would otherwise fail on the first
call, perhaps in the middle of the night.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from lockguard._naming import Key, called, compile_key
from lockguard._times import checked_at_least, checked_ttl, checked_wait
from lockguard.errors import ConfigurationError, ResourceBusy
from lockguard.text import kind_of, remark

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from lockguard._lease import Lease

__all__ = [
    "Exclusive",
    "Holds",
    "Keeps",
    "MaySkip",
    "Skipped",
    "binder",
    "exclusive",
    "is_coroutine_function",
    "require_no_method_object",
    "required_key",
]

P = ParamSpec("P")
R = TypeVar("R")

_Hold = Callable[[inspect.BoundArguments], "AbstractAsyncContextManager[Lease]"]


@dataclass(frozen=True, slots=True)
class Skipped:
    """What a call with ``on_busy="skip"`` returns when the resource is busy. It is falsy.

    Attributes:
        busy: tells the holder, its token and how long it has held the resource.
    """

    busy: ResourceBusy

    def __bool__(self) -> Literal[False]:
        return False


class Holds(Protocol):
    """What the decorator needs of a guard."""

    def hold(
        self,
        resource: str,
        *,
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str = "",
        on_busy: Literal["wait", "raise"] = "wait",
        at_least: timedelta | None = None,
    ) -> AbstractAsyncContextManager[Lease]:
        """Hold a resource, see :meth:`LockGuard.hold`."""
        ...


# What is returned is a ``Coroutine[object, None, R]`` and not, as usual, a ``Coroutine[Any, Any, R]``: with
# an explicit Any mypy cannot choose among the overloads of ``asyncio.gather`` and takes the results for Any.


class Keeps(Protocol):
    """A decorator that keeps the function's type."""

    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]]
    ) -> Callable[P, Coroutine[object, None, R]]:
        """The decorated function, with the parameters and result of ``function``."""
        ...


class MaySkip(Protocol):
    """A decorator whose function may return :class:`Skipped` instead."""

    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]]
    ) -> Callable[P, Coroutine[object, None, R | Skipped]]:
        """The decorated function, with the parameters of ``function``."""
        ...


@overload
def exclusive(
    key: Key,
    *,
    guard: str | Callable[..., Holds],
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
    guard: str | Callable[..., Holds],
    on_busy: Literal["skip"],
    wait: timedelta | None = ...,
    ttl: timedelta | None = ...,
    operation: str | None = ...,
    at_least: timedelta | None = ...,
) -> MaySkip: ...
def exclusive(
    key: Key | None = None,
    *,
    guard: str | Callable[..., Holds] | None = None,
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
            positional arguments (those that the function takes by position, however they were passed).
        on_busy: as there.
        wait: as there.
        ttl: as there.
        operation: as there.
        at_least: as there.

    Raises:
        ConfigurationError: the key does not fit the function, or a value cannot work.
    """
    options = Exclusive(key, guard, on_busy, wait=wait, ttl=ttl, operation=operation, at_least=at_least)

    def decorate(
        function: Callable[P, Coroutine[Any, Any, R]],
    ) -> Callable[P, Coroutine[object, None, R | Skipped]]:
        _require_coroutine_function(function)
        return _wrap(function, options.holds_for(function), skip=options.skip)

    return decorate


class Exclusive:
    """What the decorator was given, checked.

    Args:
        key: see :func:`exclusive`.
        guard: see there.
        on_busy: see there.
        wait: see there.
        ttl: see there.
        operation: see there.
        at_least: see there.

    Raises:
        ConfigurationError: a value cannot work.
    """

    def __init__(
        self,
        key: Key | None,
        guard: str | Callable[..., Any] | None,
        on_busy: str,
        *,
        wait: timedelta | None,
        ttl: timedelta | None,
        operation: str | None,
        at_least: timedelta | None,
    ) -> None:
        if on_busy not in ("wait", "raise", "skip"):
            raise ConfigurationError(f"on_busy={on_busy!r} is not known; write 'wait', 'raise' or 'skip'")
        self._key = required_key(key)
        self._guard = _required_guard(guard)
        if wait is not None:
            checked_wait(wait)
        if ttl is not None:
            checked_ttl(ttl)
        checked_at_least(at_least)
        self.skip = on_busy == "skip"
        """Whether a call that finds the resource busy is skipped."""
        self._operation = None if operation is None else remark(operation, "operation")
        self._options: dict[str, Any] = {
            "wait": wait,
            "ttl": ttl,
            "on_busy": "wait" if on_busy == "wait" else "raise",
            "at_least": at_least,
        }

    def holds_for(self, function: Callable[..., Any]) -> Callable[[inspect.BoundArguments], Any]:
        """What gives the hold for one call of ``function``.

        Raises:
            ConfigurationError: the key does not fit the function.
        """
        resource_of = compile_key(self._key, function)
        name = called(function) if self._operation is None else self._operation
        guard, options = self._guard, self._options

        def hold(call: inspect.BoundArguments) -> Any:
            resource = resource_of(call)
            return _guard_of(call, guard, function).hold(resource, operation=name, **options)

        return hold


def required_key(key: Key | None) -> Key:
    """The key that the decorator was given, checked.

    Raises:
        ConfigurationError: none was given, or the value cannot be a key.
    """
    if isinstance(key, str):
        return key
    if not callable(key):
        raise ConfigurationError(
            f"the key is {kind_of(key)}; write a template such as '{{exchange}}:{{symbol}}',"
            " or key=lambda symbol: ..."
        )
    if is_coroutine_function(key) or inspect.isasyncgenfunction(key):
        # Either the decorator was written without arguments, or the key would have to be awaited.
        raise ConfigurationError(
            f"{called(key)} is an 'async def' function and no key; write the decorator with one, such as"
            " @guard.exclusive('{exchange}:{symbol}')"
        )
    return key


def _required_guard(guard: str | Callable[..., Holds] | None) -> str | Callable[..., Holds]:
    if hasattr(guard, "hold"):
        raise ConfigurationError(
            "guard= is for a guard that is known only at the call: an attribute's name or a function;"
            " with a guard at hand write @guard.exclusive(...)"
        )
    if not isinstance(guard, str) and not callable(guard):
        raise ConfigurationError(
            f"guard= is {kind_of(guard)}; write the name of the attribute of self that is the guard,"
            " such as guard='guard', or a function that gives it; with a guard at hand write"
            " @guard.exclusive(...)"
        )
    return guard


def _guard_of(
    call: inspect.BoundArguments, guard: str | Callable[..., Holds], function: Callable[..., Any]
) -> Holds:
    """The guard that ``guard`` names for one call."""
    arguments = call.args
    found: Any
    if callable(guard):
        found, said = guard(*arguments), "the function guard="
    else:
        # Tell the first argument's class, never its text: a bot's repr may show its keys.
        owner = type(arguments[0]).__name__ if arguments else "nothing"
        found, said = (
            getattr(arguments[0] if arguments else None, guard, None),
            f"the attribute {guard!r} of {owner}",
        )
    if callable(getattr(found, "hold", None)):
        return cast("Holds", found)
    gave = kind_of(found)
    raise ConfigurationError(
        f"{said} gave {gave} for a call of {called(function)}(); have it give a LockGuard"
    )


def binder(function: Callable[P, Any]) -> Callable[P, inspect.BoundArguments]:
    """What binds the arguments of a call of ``function`` to its parameters, with their defaults."""
    bind, name = inspect.signature(function).bind, called(function)

    def bound(*args: P.args, **kwargs: P.kwargs) -> inspect.BoundArguments:
        try:
            call = bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"{name}(): {exc}") from None  # names the function, as Python's own does
        call.apply_defaults()
        return call

    return bound


def is_coroutine_function(function: object) -> bool:
    """Whether calling it gives a coroutine, as far as can be seen before."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004 - of its class: is it a coroutine function?
    )


def require_no_method_object(function: object) -> None:
    """Check that it is not what ``@classmethod`` or ``@staticmethod`` made.

    Raises:
        ConfigurationError: it is.
    """
    if isinstance(function, classmethod | staticmethod):
        kind = type(function).__name__
        raise ConfigurationError(
            f"{called(function.__func__)} is a {kind} already; write @{kind} above the decorator, not below"
        )


def _require_coroutine_function(function: object) -> None:
    if is_coroutine_function(function):
        return
    inner: Any = function.func if isinstance(function, functools.partial) else function
    require_no_method_object(inner)
    name = called(inner) if callable(inner) else kind_of(inner)
    if inspect.isasyncgenfunction(inner):
        raise ConfigurationError(
            f"{name} is an async generator: it would hold the lock while its caller works between two items;"
            " write 'async with guard.hold(...)' around the loop over it"
        )
    raise ConfigurationError(
        f"{name} is not an 'async def' function: for a 'def' function make the guard with"
        " lockguard.sync.LockGuard (and the decorator needs a key: @guard.exclusive('{exchange}:{symbol}'))"
    )


def _wrap(
    function: Callable[P, Coroutine[Any, Any, R]], hold: _Hold, *, skip: bool
) -> Callable[P, Coroutine[object, None, R | Skipped]]:
    """Decorate ``function``: ``hold(call)`` returns the hold that its body runs under."""
    bound, name = binder(function), called(function)

    @functools.wraps(function)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> R | Skipped:
        holding = hold(bound(*args, **kwargs))
        entered = False
        try:
            async with holding:
                entered = True
                return await function(*args, **kwargs)
        except ResourceBusy as busy:
            # A ResourceBusy that the body itself raised is passed on.
            if skip and not entered:
                return Skipped(busy)
            raise

    guarded.__name__, guarded.__qualname__ = name.rpartition(".")[2], name
    return guarded
