"""The statements of the lab's ``sql/*.sql``, by name."""

from __future__ import annotations

from lockguard_positions._rows import statements

__all__ = ["statement"]


def statement(name: str, file: str) -> str:
    """The statement ``name`` of ``file``."""
    return statements(file, "lockguard_lab")[name]
