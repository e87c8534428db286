"""For operators: what a whole installation is doing, seen from its servers and not from a bot."""

from __future__ import annotations

__all__: list[str] = []
