"""Notices that the guards of one namespace seal in more than one database."""

from __future__ import annotations

import logging

__all__ = ["note_seals"]

_LOG = logging.getLogger("lockguard")
_told: set[tuple[str, str]] = set()


def note_seals(resource: str, last: str, new: str) -> None:
    """Warn, once in a process for each two fences, that the last lease was sealed in another fence.

    Its holder, if it was paused, is shut out of its own database by nobody. A fence that was installed anew
    in place of the old one looks the same, so that nothing is refused.

    Args:
        resource: of both leases.
        last: the last seal that the nodes remember, see :class:`~lockguard.ports.Sealed`.
        new: the seal of the new lease.
    """
    before, here = last.partition(" ")[0], new.partition(" ")[0]
    if (before, here) in _told:
        return
    _told.add((before, here))
    _LOG.warning(
        "the last lease of %s was sealed in the fence %s, and this one in %s: guards of one namespace share"
        " one database, or neither refuses what the other's last holder still writes; give them one fence, or"
        " namespaces of their own (told once; nothing is wrong if the fence was installed anew)",
        resource,
        before,
        here,
    )
