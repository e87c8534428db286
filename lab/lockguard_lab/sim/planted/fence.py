"""Mistakes in the fence: its SQL, and what presents a lease to it."""

from __future__ import annotations

from lockguard_lab.sim.planted.mistake import Planted

__all__ = ["FENCE"]

FENCE: tuple[Planted, ...] = ()
