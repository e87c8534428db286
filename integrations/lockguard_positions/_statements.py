"""The statements of ``sql/*.sql``, by name."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from lockguard_positions._status import OPEN, PositionStatus

__all__ = ["statement", "statements"]

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COLUMNS = ("columns", "intent_columns")
_OPEN = ", ".join(f"'{status}'" for status in PositionStatus if status in OPEN)


@cache
def statements(file: str, package: str = "lockguard_positions") -> dict[str, str]:
    """All statements of a package's file.

    ``{columns}`` and ``{intent_columns}`` are blocks of the same file, ``{open}`` the open statuses.
    """
    text = (files(package) / "sql" / file).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    blocks = {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}
    for name, body in blocks.items():
        for columns in _COLUMNS:
            if columns in blocks:
                body = body.replace(f"{{{columns}}}", blocks[columns])  # noqa: PLW2901
        blocks[name] = body.replace("{open}", f"({_OPEN})")
    return blocks


def statement(name: str, file: str = "positions.sql") -> str:
    """One statement."""
    return statements(file)[name]
