"""Observers that come along."""

from __future__ import annotations

from lockguard.observe.log import LogObserver

__all__ = ["LogObserver"]
