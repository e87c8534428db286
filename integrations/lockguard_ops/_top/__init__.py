"""``lockguard top``: a live view of all locks, in which one can be opened, asked for or broken."""

from __future__ import annotations

__all__: list[str] = []
