"""The observers that lockguard provides."""

from __future__ import annotations

from lockguard.observe._log import LogObserver

__all__ = ["LogObserver"]
