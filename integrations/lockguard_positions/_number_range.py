"""A range of numbers as an option's type."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click import Context, Parameter

__all__ = ["NumberRange"]


class NumberRange(click.FloatRange):
    """A range without NaN, which passes click's bounds and would fail when converted to a ``timedelta``."""

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> Any:
        """The number in the range; fails with a usage error if it is outside or not finite."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number
