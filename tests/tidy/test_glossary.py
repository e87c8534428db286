"""The glossary names what is in the code, by the names that stand there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs/explanation/glossary.md"


def rows() -> list[list[str]]:
    """The cells of the page's tables, without their heads."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if "| in the code" not in line
    ]


def exists(name: str) -> bool:
    """Whether there is such a file, or such a module with such a name in it."""
    if "/" in name:
        return (CHECKOUT / name).is_file()
    module, found = None, name.split(".")
    while found:
        try:
            module = importlib.import_module(".".join(found))
            break
        except ModuleNotFoundError:
            found.pop()
    if module is None:
        return False
    value: object = module
    *path, last = name.split(".")[len(found) :] or [""]
    for part in path:
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return not last or hasattr(value, last) or last in getattr(value, "__annotations__", {})


def test_each_name_in_the_glossary_is_in_the_code() -> None:
    named = re.findall(r"`([^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > len(rows()) > 0
    assert [name for name in named if not exists(name)] == []


def test_each_term_is_in_the_glossary_once_with_what_it_means_and_where_it_is() -> None:
    terms = [row[0] for row in rows()]
    assert sorted(set(terms)) == sorted(terms)
    assert [row for row in rows() if len(row) != 3 or not row[1] or "`" not in row[2]] == []


@pytest.mark.parametrize(
    "name", ["lockguard.redlock.Poll", "lockguard.Leas", "lockguard/lua/undo.lua", "lockgard.Lease"]
)
def test_a_name_that_is_nowhere_is_found_out(name: str) -> None:
    assert not exists(name)
