"""``lockguard demo``: the race, the cure and the paused holder, on real servers."""

from __future__ import annotations
