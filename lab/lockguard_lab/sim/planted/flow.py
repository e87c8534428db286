"""Mistakes in the flow of positions."""

from __future__ import annotations

from lockguard_lab.sim.planted.mistake import Planted

__all__ = ["FLOW"]

FLOW: tuple[Planted, ...] = ()
