"""Tables for people: whatever is in them is shown as it is, whole, and cannot pass for anything else.

Resources, holders, operations and reasons come from anywhere. Brackets are no markup, escape sequences reach
no terminal, a line end begins no line, and nothing is cut: a cell that is too wide goes on below, and a pipe
has no width.
"""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table as _Table
from rich.text import Text

from lockguard.text import printable

__all__ = ["Table", "console", "shown"]

_PIPE_COLUMNS = 10_000


def console() -> Console:
    """The standard output, without markup and as wide as it takes when it is no terminal."""
    terminal = sys.stdout is not None and sys.stdout.isatty()  # None: closed by whoever started this
    width = None if terminal else _PIPE_COLUMNS
    return Console(highlight=False, markup=False, emoji=False, width=width, soft_wrap=False)


def shown(text: str) -> Text:
    """A line for :meth:`Console.print`."""
    return Text(printable(text))


class Table(_Table):
    """As rich's; cells that are too wide are folded, and text in them is made printable.

    A cell of several lines is given as ``Text``.
    """

    def __init__(self, *names: str, **options: Any) -> None:
        super().__init__(**options)
        for name in names:
            self.add_column(name)

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        """As rich's; folds by default."""
        super().add_column(header, *args, **{"overflow": "fold", **options})

    def add_row(self, *cells: Any, **options: Any) -> None:
        """As rich's, with each text made printable."""
        super().add_row(*(shown(cell) if isinstance(cell, str) else cell for cell in cells), **options)
