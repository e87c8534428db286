"""Numbers as a command takes them: in plain digits, as a person writes them.

Python reads more than that, and a slip would be a number: ``1_0``, the digits of every script, ``1e3``,
``-0`` and ``nan``, which is in every range.
"""

from __future__ import annotations

import math
import re
from typing import Any

import click

__all__ = ["DecimalNumber", "WholeNumber"]

_WHOLE = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"-?([0-9]*\.)?[0-9]+")


class WholeNumber(click.IntRange):
    """A whole number, such as ``10``; from 0 on by default.

    Args:
        least: the smallest that is accepted; ``None`` for any, where the command checks its range itself.
        most: the largest; ``None`` for any.
    """

    def __init__(self, least: int | None = 0, most: int | None = None) -> None:
        super().__init__(least, most)

    def _describe_range(self) -> str:
        return _described(self, super()._describe_range())

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that ``value`` names; fails if it is malformed or out of range."""
        text = _written(value)
        if text is not None and not (_WHOLE.fullmatch(text) and _is_plain(text)):
            self.fail(f"{value!r} is no whole number; write its digits only, such as 10", param, ctx)
        return super().convert(value, param, ctx)


class DecimalNumber(click.FloatRange):
    """A number that may have decimals, such as ``0.5``; from 0 on by default.

    Args:
        least: the smallest that is accepted; ``None`` for any, where the command checks its range itself.
        most: the largest; ``None`` for any.
        above: whether ``least`` itself is refused.
    """

    def __init__(self, least: float | None = 0, most: float | None = None, *, above: bool = False) -> None:
        super().__init__(least, most, min_open=above)

    def _describe_range(self) -> str:
        return _described(self, super()._describe_range())

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that ``value`` names; fails if it is malformed or out of range."""
        text = _written(value)
        if text is not None and not (_DECIMAL.fullmatch(text) and _is_plain(text)):
            self.fail(f"{value!r} is no number; write its digits only, such as 10 or 0.5", param, ctx)
        return super().convert(value, param, ctx)


def _described(number: click.IntRange | click.FloatRange, bounds: str) -> str:
    """The bounds as ``--help`` shows them; click writes ``x<=None`` where there are none."""
    return "" if number.min is None and number.max is None else bounds


def _is_plain(text: str) -> bool:
    """Whether it is finite, and not below zero by its sign only."""
    number = float(text)
    return math.isfinite(number) and (number != 0 or not text.startswith("-"))


def _written(value: object) -> str | None:
    """What was typed; ``None`` for a default of the program."""
    return value if isinstance(value, str) else None
