"""Known mistakes, each as a replacement in a copy of the sources, which the simulator has to convict."""

from __future__ import annotations

from lockguard_lab.sim.planted.fence import FENCE
from lockguard_lab.sim.planted.flow import FLOW
from lockguard_lab.sim.planted.lock import LOCK
from lockguard_lab.sim.planted.mistake import Change, Conviction, Planted, convict

__all__ = ["LAYERS", "PLANTED", "Change", "Conviction", "Planted", "convict"]

LAYERS = {"lock": LOCK, "fence": FENCE, "flow": FLOW}
PLANTED = (*LOCK, *FENCE, *FLOW)
