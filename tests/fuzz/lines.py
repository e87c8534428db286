"""What every refusal has to be: one line for people, whatever was given."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from lockguard import ConfigurationError

__all__ = ["attempt", "one_line", "told_of"]

T = TypeVar("T")

_CHARACTERS_MAX = 700


def one_line(exc: BaseException) -> str:
    """The text of an error, which can neither begin a line of a log, nor control a terminal, nor fill it."""
    text = str(exc)
    assert text.isprintable(), text
    assert len(text) <= _CHARACTERS_MAX, text
    return text


def attempt(call: Callable[[], T]) -> tuple[T | None, ConfigurationError | None]:
    """What a call returns, or how it refuses, which is in one line."""
    try:
        return call(), None
    except ConfigurationError as exc:
        one_line(exc)
        return None, exc


def told_of(exc: BaseException) -> str:
    """All that a log with a traceback would show of an error, but for lines of the source."""
    shown = traceback.TracebackException.from_exception(exc)
    for each in (shown, shown.__cause__, shown.__context__):
        if each is not None:
            each.stack.clear()
    return "".join(shown.format())
