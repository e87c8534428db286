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
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from lockguard.errors import ConfigurationError, ResourceBusy

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from lockguard.lease import Lease

__all__ = ["Skipped", "compile_template", "wrap"]

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


def wrap(
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
