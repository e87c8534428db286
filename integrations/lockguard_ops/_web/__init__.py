"""``lockguard web``: the live page, for one operator on this machine or at the other end of an ssh tunnel."""

from __future__ import annotations

__all__: list[str] = []
