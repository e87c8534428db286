"""Tables for display: their content is shown as it is, whole, and cannot pass for anything else.

Resources, holders, operations and reasons come from any source. Brackets are not markup, escape sequences do
not reach the terminal, a line end begins no line, and nothing is cut: a cell that is too wide is folded, and
a pipe has no width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as _Table
from rich.text import Text

from lockguard.text import printable

__all__ = ["Table", "aligned", "console", "shown"]

_PIPE_COLUMNS = 10_000


def console() -> Console:
    """The standard output, without markup, and as wide as needed when it is not a terminal."""
    terminal = sys.stdout is not None and sys.stdout.isatty()  # None: closed by the parent process
    width = None if terminal else _PIPE_COLUMNS
    return Console(highlight=False, markup=False, emoji=False, width=width, soft_wrap=False)


def shown(text: str) -> Text:
    """``text`` made printable, for :meth:`Console.print`."""
    return Text(printable(text))


class Table(_Table):
    """Like rich's, but cells that are too wide are folded, and text in them is made printable.

    A cell of several lines is given as ``Text``.
    """

    def __init__(self, *names: str, **options: Any) -> None:
        super().__init__(**options)
        for name in names:
            self.add_column(name)

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        """Like rich's, but folds by default."""
        super().add_column(header, *args, **{"overflow": "fold", **options})

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Like rich's, with each text made printable."""
        super().add_row(*(shown(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def aligned(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table without borders, under its names; a hundred times as fast as a :class:`Table`."""
    cells = [list(names), *([printable(cell) for cell in row] for row in rows)]
    sizes = [[len(cell) if cell.isascii() else cell_len(cell) for cell in row] for row in cells]
    widths = [max(column) for column in zip(*sizes, strict=True)]
    return [
        "  ".join(
            cell + " " * (width - size) for cell, size, width in zip(row, taken, widths, strict=True)
        ).rstrip()
        for row, taken in zip(cells, sizes, strict=True)
    ]
