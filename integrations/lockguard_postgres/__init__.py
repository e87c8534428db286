"""What every driver's fence shares: the schema, its statements and what its refusals mean."""

from __future__ import annotations

__all__: list[str] = []
