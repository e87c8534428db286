"""Resources, grants and leases: the values that all other modules pass around.

A *grant* is one successful acquisition. Its id, 128 random bits, is the only authority: the holder's text is
for display. A *lease* is what the running code holds: a grant with the local instant, the *deadline*, after
which it must not be trusted. The deadline counts from before the request that granted or renewed it was sent,
less an allowance for drift, so it always lies before the instant at which the server drops the key.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, NewType, NoReturn, Protocol
from unicodedata import is_normalized

from lockguard._seals import note_seals
from lockguard._times import require_timedelta
from lockguard.errors import ConfigurationError, LeaseLost, LeaseNotHeld, LossReason
from lockguard.text import kind_of

if TYPE_CHECKING:
    from lockguard._clock import Clock
    from lockguard.errors import StaleToken

__all__ = [
    "PROCESS",
    "RENEWED_AGAIN_AFTER",
    "RENEWED_AT",
    "Grant",
    "GrantId",
    "Lease",
    "LeaseState",
    "Resource",
    "Token",
    "new_grant_id",
    "parse_resource",
]

Resource = NewType("Resource", str)
"""A validated name of what is locked, such as ``binance:APTUSDT``."""

GrantId = NewType("GrantId", str)
"""32 hexadecimal digits: 128 random bits."""

Token = NewType("Token", int)
"""The fencing token: strictly increasing per resource."""


RENEWED_AT = 1 / 3
"""The share of the ttl after which a lease is renewed."""

RENEWED_AGAIN_AFTER = 1 / 10
"""The share of the ttl after which a renewal that was not answered is sent again."""


class _Process:
    """The id of the running process. ``os.getpid`` is a system call, and a hold would make three."""

    __slots__ = ("id",)

    def __init__(self) -> None:
        self.id = os.getpid()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.id = os.getpid()


PROCESS = _Process()
"""``PROCESS.id`` is right also in a child process after a fork."""


RESOURCE_BYTES_MAX = 200
_NO_TIME = timedelta(0)


def parse_resource(name: str) -> Resource:
    """Check a resource's name and return it.

    Braces are refused because they would move the Redis hash tag: ``{A}}x`` lands in the slot of ``{A}``,
    and ``{}`` switches the tag off, so the keys of one lock would be spread over a cluster. Blanks around
    the name and Unicode that is not composed (NFC) are refused because two callers would lock two names
    that look the same.

    Raises:
        ConfigurationError: not text, empty, over 200 bytes as UTF-8, not composed, or with braces, control
            characters or blanks around it.
    """
    if type(name) is not str:
        name = _as_text(name)
    return _parse_resource(name)


def _as_text(name: object) -> str:
    """The characters of a string of any class, such as a member of an Enum that is a string."""
    text = name.value if isinstance(name, Enum) else name
    if not isinstance(text, str):
        raise ConfigurationError(
            f"the resource is {kind_of(name)}; pass its name as text, such as 'binance:APTUSDT'"
        )
    return str.__str__(text)


@lru_cache(maxsize=4096)
def _parse_resource(name: str) -> Resource:
    shown = f"{name[:40]!r}..." if len(name) > 40 else repr(name)
    if not name:
        raise ConfigurationError("a resource needs a name, such as 'binance:APTUSDT'; got an empty one")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(f"resource {shown} is not valid Unicode; use plain text") from None
    if size > RESOURCE_BYTES_MAX:
        raise ConfigurationError(
            f"resource {shown} is {size} bytes long; the limit is {RESOURCE_BYTES_MAX}: use a shorter name"
        )
    if "{" in name or "}" in name:
        raise ConfigurationError(
            f"resource {shown} has a brace; braces mark the Redis hash tag: leave them out"
        )
    if not name.isprintable():
        raise ConfigurationError(f"resource {shown} has a control or unprintable character; leave it out")
    if name != name.strip():
        raise ConfigurationError(f"resource {shown} begins or ends with a blank; pass it stripped")
    if not is_normalized("NFC", name):
        raise ConfigurationError(
            f"resource {shown} has letters and accents apart, {name[:40]!a};"
            " compose them with unicodedata.normalize('NFC', ...)"
        )
    return Resource(name)


def new_grant_id() -> GrantId:
    """128 random bits as 32 hexadecimal digits."""
    return GrantId(os.urandom(16).hex())


@dataclass(frozen=True, slots=True)
class Grant:
    """One successful acquisition, as granted by Redis and, where there is a fence, sealed.

    Attributes:
        resource: what is locked.
        id: the grant's identity, the only authority.
        token: its fencing token.
        holder: who holds it, for display.
        operation: what it is for, for display.
        ttl_ms: how long the lock lasts after each renewal, in milliseconds.
        seal: the last seal of the resource that a fence confirmed, as the nodes remember it: this grant's own
            once it is sealed, its predecessor's before. See :class:`~lockguard.ports.Sealed`.
        lock_delay_ms: how long the resource stays closed if the lease ends otherwise than by release.
        at_least_ms: how long after the grant the resource opens at the earliest, however the lease ends.
        acquired_at: when the caller was given it, on the guard's clock, in seconds.
    """

    resource: Resource
    id: GrantId
    token: Token
    holder: str
    operation: str
    ttl_ms: int
    seal: str = ""
    lock_delay_ms: int = 0
    at_least_ms: int = 0
    acquired_at: float = field(default=0.0, repr=False, compare=False)


class LeaseState(Enum):
    """What the holder knows of its lease."""

    HELD = "held"
    """It is in force."""
    UNKNOWN = "unknown"
    """The last renewal was not answered; the lease is good until its deadline."""
    LOST = "lost"
    """It ended under its body; :attr:`Lease.loss` says why."""
    RELEASED = "released"
    """Its body gave it back."""


class KeepsLeases(Protocol):
    """What renews leases."""

    def cut(self, lease: Lease, reason: LossReason) -> None:
        """Cut the body of a lease that was found to be over, and tell the observers. From any thread."""
        ...

    async def confirm(self, lease: Lease, within_s: float) -> None:
        """See :meth:`Lease.confirm`."""
        ...

    def refused(self, lease: Lease, current: int | None) -> None:
        """Tell the observers that Postgres refused a write under this lease. From any thread."""
        ...


class Lease:
    """The right to act on a resource, until its deadline.

    Read it anywhere in the body; only the guard changes it. It cannot be copied or pickled, because a copy
    would not learn of its end; in a forked process it counts as lost.
    """

    __slots__ = (
        "_clock",
        "_deadline",
        "_held_until",
        "_keeper",
        "_loss",
        "_process",
        "_released",
        "_said",
        "_unanswered",
        "_wanted",
        "grant",
    )

    def __init__(self, grant: Grant, *, deadline: float, clock: Clock) -> None:
        self.grant = grant
        """What was granted: resource, token, holder, ttl."""
        self._deadline = deadline
        self._held_until = math.inf
        self._clock = clock
        self._loss: LossReason | None = None
        self._released = False
        self._said = ""
        self._unanswered = False
        self._wanted = False
        self._keeper: KeepsLeases | None = None
        self._process = PROCESS.id

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse ``copy`` and ``pickle``: a copy would not learn of the lease's end.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"the lease on {self.resource!r} cannot be copied or pickled, for a copy would not learn of its"
            " end; check it in the body, or take a lease where the work is done"
        )

    def __repr__(self) -> str:
        return (
            f"<Lease {self.grant.resource!r} token={self.grant.token} {self.state.value}"
            f" remaining={self.remaining.total_seconds():.3f}s>"
        )

    @property
    def resource(self) -> Resource:
        """What is locked."""
        return self.grant.resource

    @property
    def token(self) -> Token:
        """The fencing token that every write under this lease carries."""
        return self.grant.token

    @property
    def deadline(self) -> float:
        """The instant on the guard's clock, in seconds, from which the lease must not be trusted."""
        return min(self._deadline, self._held_until)

    @property
    def remaining(self) -> timedelta:
        """How long the lease is good for without another renewal; zero when it has ended."""
        if self._released or self.loss is not None:
            return _NO_TIME
        return timedelta(seconds=max(0.0, self.deadline - self._clock.now()))

    @property
    def state(self) -> LeaseState:
        """Held, held with a renewal unanswered, lost or released."""
        if self._released:
            return LeaseState.RELEASED
        if self.loss is not None:
            return LeaseState.LOST
        return LeaseState.UNKNOWN if self._unanswered else LeaseState.HELD

    @property
    def loss(self) -> LossReason | None:
        """Why the lease was lost, or ``None``. A deadline that has passed counts as lost."""
        if self._loss is not None or self._released:
            return self._loss
        if self._process != PROCESS.id:
            return LossReason.FORKED
        return self._ends_as if self._clock.now() >= min(self._deadline, self._held_until) else None

    @property
    def _ends_as(self) -> LossReason:
        """The reason of the loss when the deadline passes."""
        return LossReason.MAX_HOLD if self._held_until < self._deadline else LossReason.EXPIRED

    @property
    def wanted(self) -> bool:
        """Whether a hand-over was requested: the holder should end when it can."""
        return self._wanted

    def ensure(self, needed: timedelta = _NO_TIME) -> None:
        """Check that the lease is held and stays so for at least ``needed``.

        Call it before each effect that Postgres cannot refuse, such as an order: after a stalled event
        loop resumes, the loss may not have been delivered yet, and this method reads the clock itself.

        Args:
            needed: how long the effect may take.

        Raises:
            LeaseLost: it has ended, or would before ``needed`` is over.
            LeaseNotHeld: it was released.
            ConfigurationError: ``needed`` is not a timedelta.
        """
        require_timedelta("needed", needed)
        if self._released:
            raise LeaseNotHeld(
                f"the lease on {self.resource!r} was released; take a new one before going on",
                resource=self.resource,
                token=self.token,
            )
        if (reason := self.loss) is not None:
            raise self.lost_error(reason)
        if needed and (left := self.deadline - self._clock.now()) < needed.total_seconds():
            ttl_s = self.grant.ttl_ms / 1000
            never = f", which its ttl of {ttl_s:g} s never gives" if needed.total_seconds() >= ttl_s else ""
            raise LeaseLost(
                f"the lease on {self.resource!r} has {left:.3f} s left"
                f" and {needed.total_seconds():.3f} s are needed{never}",
                resource=self.resource,
                token=self.token,
                reason=self._ends_as,
            )

    async def confirm(self, *, within: timedelta = timedelta(seconds=1)) -> None:
        """Ask the servers now; return only if they say that this lease still holds the lock.

        :meth:`ensure` trusts what the servers said last, which may be a second old, or older where they do
        not answer; a server that lost its data since, or an operator, may have let another holder in. Call
        this before an order that must not be late or sent twice, and then :meth:`ensure` with the time that
        the order may take. It costs one round trip, and renews the lease. A ``PostgresFence`` is asked at
        the same time, which takes one connection of its pool: a lease that the fence would refuse ends.

        Args:
            within: how long the servers may take.

        Raises:
            LeaseLost: it has ended, or the servers did not confirm it in time; then its ``reason`` is
                ``UNCONFIRMED``, and the lease itself goes on until its deadline.
            LeaseNotHeld: it was released.
            ConfigurationError: called outside the guard's event loop, or ``within`` is not a timedelta.
        """
        require_timedelta("within", within)
        self.ensure()
        if self._keeper is not None:
            await self._keeper.confirm(self, within.total_seconds())

    def lost_error(self, reason: LossReason) -> LeaseLost:
        """The error for the loss of this lease, with the remedy for ``reason``."""
        remedy = "read the state again under a new lease before going on"
        if reason is LossReason.UNCONFIRMED:
            return LeaseLost(
                f"the servers did not confirm the lease on {self.resource!r} (token {self.token}) in time;"
                " do not go on as if it were held",
                resource=self.resource,
                token=self.token,
                reason=reason,
            )
        if reason is LossReason.ABANDONED:
            remedy = (
                "the task that entered the hold ended without leaving it; enter it in the task whose body it"
                " is, with hold(..., wait=...) or inside `async with asyncio.timeout(...)` instead of"
                " asyncio.wait_for(...)"
            )
        if reason is LossReason.FORKED:
            remedy = (
                "this process is a copy of the one that holds it and does not learn of its end; take a lease"
                " here, and start the process inside `with detached():`"
            )
        return LeaseLost(
            f"the lease on {self.resource!r} (token {self.token}) was lost: {reason.value}{self._said};"
            f" {remedy}",
            resource=self.resource,
            token=self.token,
            reason=reason,
        )

    def lost_to_fence(self, refusal: StaleToken) -> None:
        """End the lease because Postgres refused a write that carried it, whatever Redis still says.

        For fence integrations. The body is cut and observers are told at once, not with the next renewal. A
        second call changes nothing, nor does a refusal of another lease, or of one that was released.

        Args:
            refusal: what Postgres said.
        """
        if refusal.resource == self.resource and refusal.presented == self.token:
            if self._keeper is not None:
                self._keeper.refused(self, refusal.current)
            self._said = f" ({refusal})"
            self.end(LossReason.FENCED)

    # What follows is for the guard only.

    @property
    def given_back(self) -> bool:
        """Whether it was released."""
        return self._released

    def keep_by(self, keeper: KeepsLeases, *, until: float) -> float:
        """Have ``keeper`` renew it, and end it at ``until`` on the guard's clock, in seconds, at the latest.

        Returns:
            :attr:`kept_until`.
        """
        self._keeper = keeper
        self._held_until = until
        return self._deadline

    @property
    def kept_until(self) -> float:
        """The deadline without regard to ``max_hold``: the server does not drop the lock before it."""
        return self._deadline

    def end(self, reason: LossReason) -> None:
        """End it because code outside the guard found that it is over. May be called from any thread."""
        if self._released or self._loss is not None:
            return
        self.mark_lost(reason)
        if self._keeper is not None:
            self._keeper.cut(self, reason)

    def take_token(self, token: Token, seal: str = "") -> None:
        """Take the token on which the fence decided before the lease was handed out, or a later seal."""
        last = self.grant.seal
        if seal and last and seal.partition(" ")[0] != last.partition(" ")[0]:
            note_seals(self.grant.resource, last, seal)
        if token != self.grant.token or seal:
            self.grant = replace(self.grant, token=token, seal=seal or self.grant.seal)

    def mark_renewed(self, deadline: float) -> None:
        """Note a granted renewal. It never revives a lease that has ended (S6)."""
        if self._released or self.loss is not None:
            return
        self._deadline = max(self._deadline, deadline)
        self._unanswered = False

    def mark_wanted(self) -> None:
        """Note that a hand-over was requested."""
        self._wanted = True

    def mark_unanswered(self) -> None:
        """Note that a renewal was not answered; the deadline stands (L7)."""
        self._unanswered = True

    def mark_lost(self, reason: LossReason) -> None:
        """Note that the lease has ended under its body."""
        if not self._released and self._loss is None:
            self._loss = reason

    def mark_released(self) -> float:
        """Note that the body has ended; returns the deadline."""
        self._released = True
        return min(self._deadline, self._held_until)
