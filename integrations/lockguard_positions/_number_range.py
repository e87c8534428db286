"""A number given to a command."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click import Context, Parameter

__all__ = ["NumberRange"]


class NumberRange(click.FloatRange):
    """A range without NaN, which is beyond no bound and would fail where a length of time is made of it."""

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> Any:
        """The number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number
