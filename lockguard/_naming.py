"""The name of what a call locks, made of the call's arguments.

Two callers that mean the same thing must lock the same thing. So an argument becomes part of a name only if
all values that equal it have one text: ``Decimal("1.0")`` equals ``Decimal("1.00")`` and reads differently,
a member of an Enum may equal a string and read as ``Exchange.BINANCE``. A value without a single text is
refused when the function is called: otherwise two callers would hold two locks for one thing, unnoticed.
"""

from __future__ import annotations

import functools
import inspect
import operator
import string
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeAlias
from uuid import UUID

from lockguard._lease import Resource, parse_resource
from lockguard.errors import ConfigurationError, LockguardError
from lockguard.text import kind_of, printable

__all__ = [
    "Key",
    "KeyText",
    "ResourceKey",
    "argument_text",
    "called",
    "compile_key",
    "keyed",
    "require_resource_key",
]

KeyText: TypeAlias = str | int | UUID | Enum
"""Types with a single text: str, int but not bool, UUID, and an Enum whose value is one of these."""

Key: TypeAlias = str | Callable[..., KeyText]
"""A format template over a function's parameters, or a function of the same arguments."""

ResourceKey: TypeAlias = Callable[[str], str]
"""Gives the one name of what several names mean, such as ``lockguard_ccxt.resource_keys()`` makes."""

_ACCEPTED = "a str, an int, a UUID, or an Enum of these"
_ENUMS_MAX = 4
"""The limit for members whose values are members: one with a ``value`` property may be its own value."""
_FORMATTER = string.Formatter()
_SHOWN_CHARACTERS_MAX = 80


def argument_text(value: object, of: str) -> str:
    """The single text of ``value``.

    A string counts by its characters, even if its class has its own ``__str__``; an Enum by its value; any
    integer type, such as numpy's, by its digits.

    Args:
        value: an argument.
        of: what the value is, for the error.

    Raises:
        ConfigurationError: it has no single text, is empty, or begins or ends with a blank.
    """
    plain = value
    for _ in range(_ENUMS_MAX):
        if not isinstance(plain, Enum):
            break
        plain = plain.value
    text: str | None = None
    if isinstance(plain, str):
        text = str.__str__(plain)
        if not text:
            raise ConfigurationError(f"{of} is empty; pass what is to be locked")
        if text != text.strip():
            raise ConfigurationError(f"{of} begins or ends with a blank; pass it stripped")
    elif isinstance(plain, UUID):
        text = str(UUID(int=plain.int))
    elif not isinstance(plain, bool):
        try:
            text = int.__str__(operator.index(plain))  # type: ignore[arg-type]  # this is the question
        except (TypeError, ValueError):  # not an integer, or one of thousands of digits
            text = None
    if text is None:
        raise ConfigurationError(_has_no_text(value, plain, of))
    return text


def _has_no_text(value: object, plain: object, of: str) -> str:
    what = kind_of(value)
    if plain is not value:
        what += f" whose value is {kind_of(plain)}"
    if value is None:
        return f"{of} is None; pass {_ACCEPTED}"
    return (
        f"{of} is {what}, of which equal ones may read differently; pass {_ACCEPTED},"
        " or make the text with key=lambda ...: ..."
    )


def _names(signature: inspect.Signature) -> inspect.Signature:
    """The parameters' names only: a default may be a password, or have a repr of many lines."""
    bare = [
        each.replace(default=inspect.Parameter.empty, annotation=inspect.Parameter.empty)
        for each in signature.parameters.values()
    ]
    return inspect.Signature(bare)


def _shown(text: str, how: Callable[[str], str] = repr) -> str:
    """A text in one line, cut where it is longer than any that works."""
    return how(text) if len(text) <= _SHOWN_CHARACTERS_MAX else f"{how(text[:_SHOWN_CHARACTERS_MAX])}..."


def called(function: Callable[..., Any]) -> str:
    """The name of a function, a partial or a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def compile_key(key: Key, function: Callable[..., Any]) -> Callable[[inspect.BoundArguments], Resource]:
    """A function that makes the name of what one call locks from the call's bound arguments.

    Raises:
        ConfigurationError: the key does not fit the function. The returned function raises it when an
            argument has no single text, or when the arguments do not make a valid name.
    """
    return _template(key, function) if isinstance(key, str) else _callable(key, function)


def _template(template: str, function: Callable[..., Any]) -> Callable[[inspect.BoundArguments], Resource]:
    signature = inspect.signature(function)
    name = called(function)
    where = f"the key template {_shown(template)} of {name}{_names(signature)}"
    try:
        parts = list(_FORMATTER.parse(template))
    except ValueError as exc:
        raise ConfigurationError(f"{where} is malformed: {exc}") from None
    fields = [(literal, field) for literal, field, _, _ in parts]
    if all(field is None for _, field in fields):
        raise ConfigurationError(
            f"{where} names no parameter, so all calls would share one lock;"
            " write for example '{exchange}:{symbol}'"
        )
    for _, field, spec, conversion in parts:
        if spec or conversion:
            raise ConfigurationError(
                f"{where} formats {_shown(str(field))}; write {{{_shown(str(field), printable)}}}, or"
                " make the text with key=lambda ...: ..."
            )
        if field is not None:
            _require_parameter(field, signature, where)
            _require_path(field, where)
    try:
        parse_resource("".join(literal if field is None else f"{literal}x" for literal, field in fields))
    except ConfigurationError as exc:
        raise ConfigurationError(f"{where} can give no name: {exc}") from None

    def resource_of(call: inspect.BoundArguments) -> Resource:
        text = ""
        for literal, field in fields:
            text += literal
            if field is not None:
                text += argument_text(_field(field, call, name), f"{field!r} in the key of {name}()")
        return parse_resource(text)

    return resource_of


def _require_parameter(field: str, signature: inspect.Signature, where: str) -> None:
    parameters = signature.parameters
    name = field.partition(".")[0].partition("[")[0]
    if name in parameters:
        return
    known = ", ".join(parameters) or "none"
    for parameter in parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD and name.isidentifier():
            known += f"; write {{{parameter.name}[{name}]}} for one of its keyword arguments"
    raise ConfigurationError(f"{where} names {_shown(name)}, which is no parameter; there are: {known}")


def _require_path(field: str, where: str) -> None:
    """Check what follows the parameter's name, such as ``.exchange`` or ``[0]``, before the first call."""
    try:
        _FORMATTER.get_field(field, (), _Anything())
    except ValueError as exc:
        told = f"{where} has {_shown(field)}, which is malformed: {exc}"
        raise ConfigurationError(
            f"{told}; write for example '{{request.symbol}}' or '{{request[0]}}'"
        ) from None


class _Anything(dict[str, Any]):
    """Has every item and every attribute, each of which has them too."""

    def __getitem__(self, key: object) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        return self


def _field(field: str, call: inspect.BoundArguments, name: str) -> object:
    try:
        return _FORMATTER.get_field(field, (), call.arguments)[0]
    except (AttributeError, LookupError, TypeError) as exc:
        raise ConfigurationError(
            f"the key of {name}() names {field!r}, which this call's arguments do not have"
            f" ({type(exc).__name__}); pass it, or write another key"
        ) from exc


def _callable(
    key: Callable[..., KeyText], function: Callable[..., Any]
) -> Callable[[inspect.BoundArguments], Resource]:
    name = called(function)
    taken = inspect.signature(function)
    _require_fit(key, taken, name)

    def resource_of(call: inspect.BoundArguments) -> Resource:
        return parse_resource(argument_text(key(*call.args, **call.kwargs), f"what the key of {name}() gave"))

    return resource_of


def _require_fit(key: Callable[..., Any], taken: inspect.Signature, name: str) -> None:
    """Check now that the key can be called as the function is: the first call may come at night."""
    try:
        gets = inspect.signature(key)
    except (TypeError, ValueError):  # some callables written in C have no signature
        return
    positional = [
        p for p in taken.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    keywords = {p.name: p for p in taken.parameters.values() if p.kind is p.KEYWORD_ONLY}
    try:
        gets.bind(*positional, **keywords)
    except TypeError as exc:
        takes = ", ".join([p.name for p in positional] + list(keywords))
        raise ConfigurationError(
            f"the key of {name}{_names(taken)} gets what the function gets, but it takes {_names(gets)}"
            f" ({exc}); write key=lambda {takes}: ..."
        ) from None


def require_resource_key(resource_key: object) -> None:
    """Check that it can be called with a name, now and not in the middle of a trade.

    Raises:
        ConfigurationError: it cannot, or would have to be awaited.
    """
    if resource_key is None:
        return
    if not callable(resource_key) or isinstance(resource_key, type):
        raise ConfigurationError(
            f"resource_key= is {kind_of(resource_key)}; give a function from a name to the one name of what"
            " it means, such as lockguard_ccxt.resource_keys(exchange)"
        )
    if inspect.iscoroutinefunction(resource_key):
        raise ConfigurationError(
            f"resource_key= is {called(resource_key)}, an 'async def' function; load what it needs before,"
            " and give a plain function"
        )


def keyed(name: str, resource_key: ResourceKey) -> Resource:
    """The one name of what ``name`` means.

    Raises:
        ConfigurationError: the function refused the name or failed, gave something that is no name, or gives
            another name for the name that it gave: a lease's own name would then mean another lock.
    """
    once = _applied(resource_key, parse_resource(name))
    if (again := _applied(resource_key, once)) != once:
        raise ConfigurationError(
            f"resource_key= gave {once!r} for {name!r}, and {again!r} for {once!r}; have it leave the names"
            " alone that it gives"
        )
    return once


def _applied(resource_key: ResourceKey, name: Resource) -> Resource:
    try:
        found = resource_key(name)
    except LockguardError:
        raise
    except Exception as exc:
        raise ConfigurationError(
            f"resource_key= failed for {name!r}: {type(exc).__name__}; nothing is locked under a guessed name"
        ) from exc
    return parse_resource(found)
