"""``lockguard demo``: an unguarded race, a guarded race and a paused holder, on real servers."""

from __future__ import annotations
