"""The facts of an event as flat names and values, for log records and whatever else takes a mapping."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from lockguard._lease import Grant
from lockguard.text import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["facts_of", "plain"]

_GRANT = ("resource", "token", "holder", "operation", "ttl_ms")
"""What is told of a grant. Its id, by which a lock is released, is not: resource and token identify it."""


def facts_of(event: DataclassInstance, **more: object) -> dict[str, object]:
    """The facts of an event, each under its name with ``lockguard_`` before it.

    No name is one of ``logging.LogRecord``'s own, which ``extra`` refuses. Values are text, numbers, booleans
    and ``None``; text is made printable.

    Args:
        event: an event, whose grant is told by its resource, token, holder, operation and ttl.
        **more: further facts, in place of fields of the same name.
    """
    found: dict[str, object] = {"lockguard_event": type(event).__name__}
    for field in fields(event):
        value: Any = getattr(event, field.name)
        if isinstance(value, Grant):
            found.update((f"lockguard_{name}", plain(getattr(value, name))) for name in _GRANT)
        elif field.name not in more and field.name != "grant":
            found[f"lockguard_{field.name}"] = plain(value)
    found.update((f"lockguard_{name}", plain(value)) for name, value in more.items())
    return found


def plain(value: object) -> object:
    """A value as text, number, boolean or ``None``, which any formatter can write."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int | float):
        return value
    return printable(str(value))
