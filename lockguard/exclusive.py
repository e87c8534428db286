"""The decorator: one call of the coroutine function at a time per resource.

The resource's name is a format template over the function's own parameters. It is checked when the
function is decorated, because a template that names no parameter would otherwise fail in the middle of the
night on the first signal.
"""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, overload

from lockguard.errors import ConfigurationError, ResourceBusy
from lockguard.times import checked_ttl, checked_wait

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from lockguard.lease import Lease

__all__ = ["Holds", "Keeps", "MaySkip", "Skipped", "compile_template", "exclusive"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Skipped:
    """What a call with ``on_busy="skip"`` returns when somebody else holds the resource. It is falsy.

    Attributes:
        busy: who holds it, since when, with which token.
    """

    busy: ResourceBusy

    def __bool__(self) -> bool:
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
    ) -> AbstractAsyncContextManager[Lease]:
        """Hold a resource, see :meth:`LockGuard.hold`."""
        ...


class Keeps(Protocol):
    """A decorator that keeps the function's type."""

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Decorate."""
        ...


class MaySkip(Protocol):
    """A decorator whose function may return :class:`Skipped` instead."""

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R | Skipped]]:
        """Decorate."""
        ...


@overload
def exclusive(
    template: str,
    *,
    guard: str | Callable[..., Holds],
    on_busy: Literal["wait", "raise"] = ...,
    wait: timedelta | None = ...,
    ttl: timedelta | None = ...,
    operation: str | None = ...,
) -> Keeps: ...
@overload
def exclusive(
    template: str,
    *,
    guard: str | Callable[..., Holds],
    on_busy: Literal["skip"],
    wait: timedelta | None = ...,
    ttl: timedelta | None = ...,
    operation: str | None = ...,
) -> MaySkip: ...
def exclusive(
    template: str,
    *,
    guard: str | Callable[..., Holds],
    on_busy: Literal["wait", "raise", "skip"] = "wait",
    wait: timedelta | None = None,
    ttl: timedelta | None = None,
    operation: str | None = None,
) -> Any:
    """As :meth:`LockGuard.exclusive`, for methods whose guard is known only when they are called.

    Args:
        template: as there; ``"{self.exchange}:{symbol}"`` works too.
        guard: the name of an attribute of ``self``, or a function that gets the call's positional arguments.
        on_busy: as there.
        wait: as there.
        ttl: as there.
        operation: as there.

    Raises:
        ConfigurationError: the template does not fit the function, or a value cannot work.
    """
    if on_busy not in ("wait", "raise", "skip"):
        raise ConfigurationError(f"on_busy={on_busy!r} is not known; write 'wait', 'raise' or 'skip'")
    if wait is not None:
        checked_wait(wait)
    if ttl is not None:
        checked_ttl(ttl)

    def guard_of(args: tuple[Any, ...]) -> Holds:
        found = guard(*args) if callable(guard) else getattr(args[0], guard, None)
        if found is None:
            raise ConfigurationError(
                f"guard={guard!r} gave no LockGuard for {args[0]!r}; set it before the call"
            )
        return found

    def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R | Skipped]]:
        name = operation if operation is not None else getattr(function, "__qualname__", "")

        def hold(args: tuple[Any, ...], resource: str) -> AbstractAsyncContextManager[Lease]:
            return guard_of(args).hold(
                resource, wait=wait, ttl=ttl, operation=name, on_busy="wait" if on_busy == "wait" else "raise"
            )

        return _wrap(function, template, hold, skip=on_busy == "skip")

    return decorate


def compile_template(template: str, function: Callable[..., Any]) -> Callable[..., str]:
    """A function that gives the resource's name for the arguments of one call.

    Raises:
        ConfigurationError: the template is malformed, names no parameter, or one that does not exist.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters
    where = f"{function.__qualname__}{signature}"
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as exc:
        raise ConfigurationError(f"the key template {template!r} of {where} is malformed: {exc}") from exc
    if not fields:
        raise ConfigurationError(
            f"the key template {template!r} of {where} names no parameter, so all calls would share"
            " one lock; write for example '{exchange}:{symbol}'"
        )
    for field in fields:
        name = field.partition(".")[0].partition("[")[0]
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise ConfigurationError(
                f"the key template {template!r} names {name!r}, which is no parameter of {where};"
                f" it has: {known}"
            )
    bind = signature.bind

    def resource_of(*args: Any, **kwargs: Any) -> str:
        bound = bind(*args, **kwargs)
        bound.apply_defaults()
        return template.format_map(bound.arguments)

    return resource_of


def _wrap(
    function: Callable[P, Awaitable[R]],
    template: str,
    hold: Callable[[tuple[Any, ...], str], AbstractAsyncContextManager[Lease]],
    *,
    skip: bool,
) -> Callable[P, Awaitable[R | Skipped]]:
    """Decorate ``function``: ``hold(args, resource)`` gives the lease that its body runs under.

    Raises:
        ConfigurationError: it is no coroutine function, or the template does not fit it.
    """
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"{getattr(function, '__qualname__', function)!r} is not an 'async def' function;"
            " a lease needs a body that can be cancelled"
        )
    resource_of = compile_template(template, function)

    @functools.wraps(function)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> R | Skipped:
        entered = False
        try:
            async with hold(args, resource_of(*args, **kwargs)):
                entered = True
                return await function(*args, **kwargs)
        except ResourceBusy as busy:
            # One that the body itself raised is the body's own business.
            if skip and not entered:
                return Skipped(busy)
            raise

    return guarded
