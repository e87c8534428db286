"""What ``lockguard ls`` and ``show`` tell of a resource: its lock, and how the fence stands to it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lockguard._records import FenceStanding, standing
from lockguard.errors import ConfigurationError, FenceUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard._records import FenceState, Records
    from lockguard.ports import Inspection

__all__ = ["UNREAD", "Holder", "Seen", "split_holder", "with_fence"]

UNREAD = 3
"""The exit code where the fence, or a history, could not be read."""

_HOLDER = re.compile(r"([^/]*):([0-9]+)/(.*)", re.DOTALL)


class Holder(NamedTuple):
    """A holder's text in parts; ``host`` is all of it where it has none.

    Attributes:
        host: the machine.
        pid: the process; ``None`` if unknown.
        task: the task's name.
    """

    host: str
    pid: int | None = None
    task: str = ""


def split_holder(holder: str) -> Holder:
    """The parts of ``host:pid/task``."""
    parts = _HOLDER.fullmatch(holder)
    return Holder(holder) if parts is None else Holder(parts[1], int(parts[2]), parts[3])


@dataclass(frozen=True, slots=True)
class Seen:
    """One resource.

    Attributes:
        found: its lock.
        fence: how the fence stands to it; ``None``: it was never sealed, or there is no fence.
        state: the fence's own state; ``None`` as above.
        unread: whether the fence could not be read.
    """

    found: Inspection
    fence: FenceStanding | None = None
    state: FenceState | None = None
    unread: bool = False

    @property
    def waiting_ms(self) -> int:
        """How long the first waiter has waited; 0 without one."""
        return max((waiter.waiting_ms for waiter in self.found.waiters), default=0)

    def facts(self, *, fenced: bool) -> dict[str, Any]:
        """All of it for JSON; ``fenced``: whether a database with the fence was named."""
        found = self.found
        facts = asdict(found)
        facts |= split_holder(found.holder)._asdict() if found.held else Holder("")._asdict()
        facts["renewal_late_ms"] = found.renewal_late_ms
        if fenced:
            facts["fence"] = "unknown" if self.unread else self.fence and str(self.fence)
        return facts


async def with_fence(
    found: Sequence[Inspection], records: Records | None
) -> tuple[list[Seen], ConfigurationError | FenceUnavailable | None]:
    """The locks together with their fences, and why the fences could not be read.

    A lock that is stuck has to be found also while the database does not answer.
    """
    if records is None:
        return [Seen(each) for each in found], None
    try:
        states = {state.resource: state for state in await records.states([each.resource for each in found])}
    except (ConfigurationError, FenceUnavailable) as exc:
        return [Seen(each, unread=True) for each in found], exc
    pairs = [(each, states.get(each.resource)) for each in found]
    return [Seen(each, standing(each, state), state) for each, state in pairs], None
