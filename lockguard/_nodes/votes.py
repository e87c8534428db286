"""Decodes the scripts' replies into votes; see the headers of the scripts."""

from __future__ import annotations

from typing import Any

from lockguard._lease import Resource, Token
from lockguard.ports import (
    AcquireVote,
    Broken,
    Busy,
    Done,
    Extended,
    Granted,
    Inspection,
    Membership,
    Quarantined,
    Waiter,
)
from lockguard.text import decoded

__all__ = ["acquired", "broken", "done", "done_again", "extended", "inspected", "membership"]


_FOUND, _NOT_FOUND = Done(found=True), Done(found=False)


def acquired(reply: list[Any]) -> AcquireVote:
    """Decode a reply of acquire.lua."""
    if reply[0] == 1:
        seal = reply[3].decode("ascii", "replace") if reply[3] else ""
        return Granted(Token(int(reply[1])), int(reply[2]), seal)
    if reply[0] == 3:
        return Quarantined(quarantine_ms=reply[1])
    _, holder, operation, token, age_ms, retry_after_ms, *place = reply
    ticket, requeued = (int(place[0]), bool(place[1])) if place else (0, False)
    return Busy(
        holder=decoded(holder),
        operation=decoded(operation),
        token=Token(int(token)),
        age_ms=age_ms,
        retry_after_ms=max(0, retry_after_ms),
        ticket=ticket,
        requeued=requeued,
        queue_full=reply[0] == 2,
    )


def done(reply: int) -> Done:
    """Decode a reply of settle.lua, release.lua or rejoin.lua."""
    return _FOUND if reply == 1 else _NOT_FOUND


def done_again(reply: int) -> Done:
    """Decode a reply of release.lua that was sent a second time."""
    return Done(found=reply == 1, repeated=True)


def extended(reply: int) -> Extended:
    """Decode a reply of extend.lua."""
    return Extended(held=reply != 0, wanted=reply == 2)


def broken(reply: list[bytes]) -> Broken:
    """Decode a reply of break.lua."""
    return Broken(decoded(reply[0]), decoded(reply[1]), Token(int(reply[2])))


def inspected(resource: Resource, reply: list[Any]) -> Inspection:
    """Decode a reply of inspect.lua."""
    grant, token, holder, operation, age_ms, remaining_ms, ttl_ms, renewals, flat = reply
    waiters = []
    for member, ticket, silent_ms in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        waiting, _, inbox = decoded(member).partition(" ")
        waiters.append(Waiter(waiting, inbox, int(ticket), silent_ms))
    return Inspection(
        resource=resource,
        held=bool(grant),
        grant=decoded(grant),
        token=int(token),
        holder=decoded(holder),
        operation=decoded(operation),
        age_ms=age_ms,
        remaining_ms=remaining_ms,
        ttl_ms=ttl_ms,
        renewals=renewals,
        waiters=tuple(waiters),
    )


def membership(reply: list[int]) -> Membership:
    """Decode a reply of admit.lua."""
    state, quarantine_ms, ttl_max_ms, nodes = reply
    return Membership(
        known=state > 0, member=state == 2, quarantine_ms=quarantine_ms, ttl_max_ms=ttl_max_ms, nodes=nodes
    )
