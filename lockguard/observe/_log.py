"""Events as log records of the logger ``lockguard``."""

from __future__ import annotations

import logging

from lockguard.events import Acquired, Event, FenceCloseFailed, Lost, Released, RenewalUnanswered
from lockguard.text import printable

__all__ = ["LogObserver"]

_LOG = logging.getLogger("lockguard")


class LogObserver:
    """Logs what an operator must know as a warning or an error, and all else for debugging."""

    def on(self, event: Event) -> None:
        """Log one event."""
        match event:
            case Released(found=True) | Acquired():  # nearly all events
                if _LOG.isEnabledFor(logging.DEBUG):
                    _LOG.debug("%s", event)
            case Lost(grant, reason):
                _LOG.error(
                    "lease lost: %s token=%d operation=%s: %s",
                    grant.resource,
                    grant.token,
                    printable(grant.operation),
                    reason.value,
                )
            case RenewalUnanswered(grant, remaining_ms, cause):
                _LOG.warning(
                    "renewal not answered: %s token=%d, %.0f ms left: %s",
                    grant.resource,
                    grant.token,
                    remaining_ms,
                    printable(cause),
                )
            case FenceCloseFailed(grant, cause):
                _LOG.warning(
                    "fence not closed: %s token=%d: %s", grant.resource, grant.token, printable(cause)
                )
            case Released(grant, found=None):
                _LOG.warning(
                    "release not answered: %s token=%d: free when its ttl is over, at the latest",
                    grant.resource,
                    grant.token,
                )
            case Released(grant):
                _LOG.warning("released late: %s token=%d: Redis had dropped it", grant.resource, grant.token)
            case _:
                _LOG.debug("%s", event)
