"""Observers that come along."""

from __future__ import annotations

from lockguard.observe._log import LogObserver

__all__ = ["LogObserver"]
