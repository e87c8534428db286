"""Whatever is in a table of ours is shown as it is, whole, and passes for nothing else."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from lockguard._cli.tables import Table, console, shown

HOSTILE = ("[/x]", "[red]open", "a\x1b[2Jb", "a\nb closed", "a\rb", "\u202egnp", "a\u200bb", ":smile:")
LONG = "binance:" + "X" * 180


def printed(table: Table, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, markup=False, emoji=False, color_system=None).print(table)
    return out.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_is_shown_as_it_is_on_one_line(text: str) -> None:
    table = Table("resource", "operation")
    table.add_row("x:y", text)
    lines = printed(table, 120).splitlines()
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
    if text.isprintable():
        assert text in lines[3]


def test_an_identifier_is_never_cut() -> None:
    table = Table("resource", "token", "operation")
    table.add_row(LONG, "1795214723604113", "y" * 90)
    for width in (40, 80):
        told = printed(table, width)
        cells = [line.split("│") for line in told.splitlines() if line.startswith("│")]
        assert "".join(line[1].strip() for line in cells) == LONG
        assert "".join(line[2].strip() for line in cells) == "1795214723604113"
        assert "…" not in told


def test_a_pipe_gets_each_row_whole(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("resource", "operation")
    table.add_row(LONG, "[/x]")
    console().print(table)
    console().print(shown("a\x1b[2J [/x]"))
    out = capsys.readouterr().out
    assert f"│ {LONG} │ [/x]" in out
    assert r"a\x1b[2J [/x]" in out
