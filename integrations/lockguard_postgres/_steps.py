"""The schema's SQL: numbered files, and what is said anew at each install."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["SCHEMA_VERSION", "Step", "sql_file", "steps"]


@dataclass(frozen=True, slots=True)
class Step:
    """One numbered file of the schema."""

    version: int
    name: str
    sql: str


@cache
def steps() -> tuple[Step, ...]:
    """The schema's files in order."""
    found = [f for f in (files("lockguard_postgres") / "sql").iterdir() if f.name[:4].isdigit()]
    return tuple(
        Step(int(f.name[:4]), f.name.removesuffix(".sql"), f.read_text(encoding="utf-8"))
        for f in sorted(found, key=lambda f: f.name)
    )


SCHEMA_VERSION = steps()[-1].version
"""The version of the fence's schema that this library works with."""


def sql_file(name: str) -> str:
    """The text of a file that has no number."""
    return (files("lockguard_postgres") / "sql" / f"{name}.sql").read_text(encoding="utf-8")
