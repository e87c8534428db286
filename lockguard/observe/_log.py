"""Events as log records of the logger ``lockguard``."""

from __future__ import annotations

import logging

from lockguard.events import (
    Acquired,
    Event,
    FenceCloseFailed,
    Lost,
    Released,
    RenewalUnanswered,
    StaleWrite,
    Waited,
)
from lockguard.observe._facts import facts_of
from lockguard.text import printable

__all__ = ["LogObserver"]

_LOG = logging.getLogger("lockguard")


class LogObserver:
    """Logs what an operator must know as a warning or an error, and all else for debugging.

    One record an event. Its text is for people; its facts are attributes of the record as well, such as
    ``lockguard_event``, ``lockguard_resource`` and ``lockguard_token``, for a formatter that writes JSON.
    """

    def on(self, event: Event) -> None:
        """Log one event."""
        match event:
            case Released(found=True) | Released(cancelled=True) | Acquired():  # nearly all events
                if _LOG.isEnabledFor(logging.DEBUG):
                    _LOG.debug("%s", event, extra=facts_of(event))
            case Lost(grant, reason):
                _LOG.error(
                    "lease lost: %s token=%d operation=%s: %s",
                    grant.resource,
                    grant.token,
                    printable(grant.operation),
                    reason.value,
                    extra=facts_of(event),
                )
            case StaleWrite(grant, current):
                _LOG.warning(
                    "stale write refused: %s presented token=%d, current token=%s",
                    grant.resource,
                    grant.token,
                    current,
                    extra=facts_of(event),
                )
            case RenewalUnanswered(grant, remaining_ms, cause):
                _LOG.warning(
                    "renewal not answered: %s token=%d, %.0f ms left: %s",
                    grant.resource,
                    grant.token,
                    remaining_ms,
                    printable(cause),
                    extra=facts_of(event),
                )
            case Waited(resource, gave_up=False, cause=cause) if cause:
                _LOG.warning(
                    "waiting for %s: its servers cannot be reached: %s",
                    resource,
                    printable(cause),
                    extra=facts_of(event),
                )
            case FenceCloseFailed(grant, cause):
                _LOG.warning(
                    "fence not closed: %s token=%d: %s",
                    grant.resource,
                    grant.token,
                    printable(cause),
                    extra=facts_of(event),
                )
            case Released(grant, found=found):
                what, then = (
                    ("release not answered", "free when its ttl is over, at the latest")
                    if found is None
                    else ("released late", "Redis had dropped it")
                )
                _LOG.warning(
                    "%s: %s token=%d: %s", what, grant.resource, grant.token, then, extra=facts_of(event)
                )
            case _:
                if _LOG.isEnabledFor(logging.DEBUG):
                    _LOG.debug("%s", event, extra=facts_of(event))
