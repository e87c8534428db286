"""The answers of the model of the tables: its rows, its refusals, and the names of its statements."""

from __future__ import annotations

from typing import Any

import asyncpg

from lockguard_positions._rows import statements

__all__ = ["IllegalChange", "Row", "name_of", "unique"]

_NAMES = {text: name for name, text in statements("positions.sql").items()}
_INTEND_ENTRY = statements("positions.sql")["intend_entry"]
_NAMES |= {_INTEND_ENTRY.format(last=f"${number}"): "intend_entry" for number in range(12, 15)}


def name_of(text: str) -> str:
    """The name of a statement of ``positions.sql``.

    Raises:
        KeyError: it is none of them: the model has to learn it.
    """
    return _NAMES[text]


class Row(dict[Any, Any]):
    """As ``asyncpg.Record``: a column by its name or its number."""

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


class IllegalChange(asyncpg.PostgresError):
    """What the trigger ``check_status`` raises."""

    sqlstate = "LG102"


def unique(constraint: str) -> asyncpg.UniqueViolationError:
    """What a unique index raises."""
    exc = asyncpg.UniqueViolationError(f'duplicate key value violates unique constraint "{constraint}"')
    exc.constraint_name = constraint
    return exc
