"""Known mistakes, each as a replacement in a copy of the sources, which a judge has to convict."""

from __future__ import annotations

from lockguard_lab.sim.planted.fence import FENCE
from lockguard_lab.sim.planted.flow import FLOW
from lockguard_lab.sim.planted.lock import LOCK
from lockguard_lab.sim.planted.missed import MISSED_FENCE, MISSED_FLOW, MISSED_LOCK
from lockguard_lab.sim.planted.mistake import Change, Conviction, Planted, convict
from lockguard_lab.sim.planted.others import OTHERS
from lockguard_lab.sim.planted.past import PAST
from lockguard_lab.sim.planted.raced import RACED, Raced
from lockguard_lab.sim.planted.written import WRITTEN

__all__ = ["LAYERS", "PLANTED", "Change", "Conviction", "Planted", "Raced", "convict"]

LAYERS: dict[str, tuple[Planted | Raced, ...]] = {
    "lock": (*LOCK, *MISSED_LOCK),
    "fence": (*FENCE, *MISSED_FENCE, *WRITTEN, *RACED),
    "flow": (*FLOW, *OTHERS, *MISSED_FLOW),
    "past": PAST,
}
"""All mistakes, by the part of the product that they are in."""

PLANTED: tuple[Planted, ...] = tuple(
    one for catalogue in LAYERS.values() for one in catalogue if isinstance(one, Planted)
)
"""Those that replace something in the sources."""
