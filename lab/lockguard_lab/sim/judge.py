"""The laws that every schedule is held to. Each names the guarantee that it is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lockguard.errors import LockguardError, LossReason
from lockguard.events import Lost

if TYPE_CHECKING:
    from lockguard import Lease
    from lockguard_lab.sim.plan import Plan
    from lockguard_lab.sim.world import Process, World

__all__ = ["Body", "BodyFailed", "Judge", "Violation"]

_LEAVES_S = 3.0
_SEALS_S = 3.0
_CONNECTS_S = 3.0
_OUTLIVES_S = 3.0
_CUTS_MAX = 3
_NOTICES_S = 0.01


class BodyFailed(Exception):
    """What a body raises of its own."""


@dataclass(frozen=True)
class Violation:
    """One broken law."""

    law: str
    told: str

    def __str__(self) -> str:
        return f"{self.law}: {self.told}"


@dataclass(eq=False)
class Body:
    """One body that runs under a lease."""

    process: Process
    resource: str
    lease: Lease
    since: float = 0.0
    failed: bool = False
    over: bool = False
    """Whether its code has ended, however that was."""


@dataclass
class Judge:
    """Watches one schedule."""

    world: World
    plan: Plan
    violations: list[Violation] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    held: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    kept_until: Callable[[str, str], float] = lambda *_: float("inf")
    """Until when, in the world's time, enough servers keep a resource for a grant; 0: they do not."""
    held_at: dict[str, float] = field(default_factory=dict)
    """When a body on a resource began last."""
    trouble_until: float = 0.0
    """When the last fault so far is over."""
    ended_early: set[str] = field(default_factory=set)
    """The grants whose lease was lost under its body."""
    opens: dict[str, float] = field(default_factory=dict)
    """When the lock delay of the last lost lease of a resource is over at the earliest."""
    _accused: set[str] = field(default_factory=set)
    _tokens: dict[str, int] = field(default_factory=dict)

    def accuse(self, law: str, told: str) -> None:
        """A law was broken."""
        self.violations.append(Violation(law, told))
        self.world.tell(f"VIOLATION {law}: {told}")

    def entered(self, body: Body) -> None:
        """A body begins."""
        self.held += 1
        self.held_at[body.resource] = self.world.now
        self.bodies.append(body)
        self.world.tell(f"{body.process.name} holds {body.resource} with {int(body.lease.token)}")
        token = int(body.lease.token)
        if self.plan.excludes and token <= self._tokens.get(body.resource, 0):
            told = f"{body.resource} had {self._tokens[body.resource]}, and then {token}"
            self.accuse("S2: tokens grow", told)
        self._tokens[body.resource] = token
        if (early_s := self._opens(body.resource) - self.world.now) > 0:
            told = f"{body.resource} was had {early_s:.3f} s too early after its loss"
            self.accuse("S5: a resource stays closed for as long as was asked for", told)
        self.looked_at(body, begins=True)

    def left(self, body: Body) -> None:
        """A body is over."""
        self.bodies.remove(body)
        self.world.tell(f"{body.process.name} leaves {body.resource} with {int(body.lease.token)}")

    def looked_at(self, body: Body, *, begins: bool = False) -> None:
        """A body goes on after an await, or has just begun."""
        late_s = body.process.time() - body.lease.deadline
        # After a stop, what was ready goes on before any timer: then each guarded call looks for itself.
        went_on = not begins and body.process.went_on_at == self.world.now
        if (late_s > 0 or body.lease.loss is not None) and not went_on:
            told = f"{body.process.name} goes on {late_s:.4f} s after its deadline, {body.lease.state.value}"
            self.accuse("S5: the body of a lost lease is cut", told)
        held_s = self.world.now - body.since
        if self.plan.max_hold_s and held_s > self.plan.max_hold_s + _NOTICES_S and not went_on:
            told = f"{body.process.name} goes on after {held_s:.3f} s"
            self.accuse("S10: a lease ends with its longest hold", told)
        self._belief(body)

    def is_kept(self, body: Body) -> bool:
        """Whether the servers keep a body's lock for it now."""
        return self.kept_until(body.resource, str(body.lease.grant.id)) >= self.world.now

    def confirmed(self, body: Body, *, held: bool) -> None:
        """The servers have confirmed a lease. ``held``: whether they kept its lock when they were asked."""
        if not held:
            told = f"{body.process.name} on {body.resource}"
            self.accuse("S9: what the servers do not keep is not confirmed", told)

    def look(self) -> None:
        """Look at all bodies between their steps."""
        for body in list(self.bodies):
            self._belief(body)

    def _belief(self, body: Body) -> None:
        """What must be true while a process believes in its lease."""
        if not self.believes(body):
            return
        plan, now = self.plan, self.world.now
        who = f"{body.process.name} believes in {body.resource}"
        kept_until = self.kept_until(body.resource, str(body.lease.grant.id))
        if not plan.loses_data:
            if kept_until < now:
                self.accuse("S1: a believed lease is held", f"{who}, which no majority keeps for it")
            elif (over_s := body.process.in_the_world(body.lease.deadline) - kept_until) > 0:
                told = f"{who} for {over_s:.4f} s longer than the servers keep it"
                self.accuse("S9: a lease is trusted for less than it is kept", told)
        elif kept_until < now and not body.process.stopped:
            self._noticed(body, who)
        if plan.excludes:
            others = [
                other
                for other in self.bodies
                if other is not body and other.resource == body.resource and self.believes(other)
            ]
            if others:
                both = ", ".join(f"{one.process.name} with {int(one.lease.token)}" for one in (body, *others))
                self.accuse("S1: mutual exclusion", f"{body.resource} is believed to be held by {both}")

    def _noticed(self, body: Body, who: str) -> None:
        """A lock that was lost is noticed: within a second, once the servers can be reached."""
        plan, grant = self.plan, str(body.lease.grant.id)
        since = max(self.trouble_until, body.since, body.process.went_on_at)
        if self.world.now - since > plan.noticed_s and grant not in self._accused:
            self._accused.add(grant)
            told = f"{who} long after it was lost"
            self.accuse("L4: the loss of a lock is noticed", told)

    def lost(self, event: Lost) -> None:
        """A guard says that a lease is over."""
        grant = event.grant
        for body in self.bodies:
            if body.lease.grant.id == grant.id:
                self._ended_early(body)
        self.world.tell(f"lost: {grant.resource} with {int(grant.token)}: {event.reason.value}")
        if self.plan.kinds == {"long way"}:
            told = (
                f"{grant.resource} was lost ({event.reason.value}) though every request was answered in time"
            )
            self.accuse("L7: a long way ends no lease", told)
        if self.plan.aim == "a renewal that is refused once":
            self.accuse("L7: one failed renewal ends no lease", f"{grant.resource} was lost")
        if self.plan.aim == "a link dies silently":
            self.accuse("L5: a lease outlives a link that dies", f"{grant.resource} was lost")
        if (
            event.reason is LossReason.EXPIRED
            and self.plan.ttl_s >= _OUTLIVES_S
            and self._only_lines_were_cut
        ):
            self.accuse("L5: a lease outlives a reconnect", f"{grant.resource} was lost")
        if event.reason is not LossReason.REFUSED:
            return
        kept = self.plan.excludes or self.plan.kinds == {"delete key"}
        if kept and self.kept_until(grant.resource, str(grant.id)) >= self.world.now:
            self.accuse("L7: a lease that is held is kept", f"{grant.resource} was given up and is held")
        elif self.plan.erodes and any(
            body.lease.grant is grant and self.world.now - body.since > 1.2 * self.plan.ttl_s
            for body in self.bodies
        ):  # renewed since the last node forgot it, and so on a majority again
            told = f"{grant.resource} was lost with one node at a time"
            self.accuse("L7: a lease that is held is kept", told)

    def _ended_early(self, body: Body) -> None:
        # Not before a body begins, as while a slow database takes the seal: no command of it is in flight.
        self.ended_early.add(str(body.lease.grant.id))
        if not self.plan.loses_data or self._erosion_is_over:
            # A process that was stopped meanwhile notices it late.
            over_at = min(self.world.now, body.process.in_the_world(body.lease.deadline))
            opens = over_at + self.plan.lock_delay_s
            self.opens[body.resource] = max(opens, self.opens.get(body.resource, 0.0))

    def _opens(self, resource: str) -> float:
        """Before when nobody may have a resource, because of those who lost it or died with it."""
        opens = self.opens.get(resource, 0.0)
        if not self.plan.lock_delay_s or self.plan.loses_data:
            return opens
        died = [one for one in self.bodies if one.resource == resource and one.process.dead and not one.over]
        until = [one.process.in_the_world(one.lease.deadline) for one in died]
        return max([opens, *(at + self.plan.lock_delay_s for at in until)])

    @property
    def _erosion_is_over(self) -> bool:
        """Whether nodes forgot one after another, and each was given what it had forgotten."""
        return self.plan.erodes and self.world.now > self.plan.faults[-1].at + self.plan.ttl_s

    @property
    def _only_lines_were_cut(self) -> bool:
        return self.plan.kinds <= {"cut", "cancel", "forget scripts"} and len(self.plan.faults) <= _CUTS_MAX

    def believes(self, body: Body) -> bool:
        """Whether a body's lease would pass a check in its own process now."""
        return (
            not body.process.dead
            and body.lease.state.value in ("held", "unknown")
            and body.process.time() < body.lease.deadline
        )

    def entered_in_time(self, process: Process, called_at: float, told: str) -> None:
        """A call of ``hold`` has ended, one way or the other."""
        took_s = self.world.now - called_at
        if process.went_on_at < called_at and took_s > 1.02 * self.plan.wait_s + _CONNECTS_S + _SEALS_S:
            self.accuse("L8: hold ends in time", f"{process.name} was kept for {took_s:.2f} s: {told}")

    def left_in_time(self, process: Process, ended_at: float) -> None:
        """A body has been left."""
        took_s = self.world.now - ended_at
        if process.went_on_at < ended_at and took_s > 1.02 * _LEAVES_S:
            self.accuse("L8: a body is left in time", f"{process.name} was kept for {took_s:.2f} s")

    def came_out(self, body: Body, loss: LossReason | None, raised: bool) -> None:  # noqa: FBT001
        """A hold was left. ``loss``: why its lease had ended by the end of its body."""
        if loss is not None and not raised:
            told = f"{body.process.name} was not told that {body.resource} was lost ({loss.value})"
            self.accuse("S10: the caller sees the loss", told)

    def ended(self, who: str, error: BaseException | None) -> None:
        """A call ended."""
        name = type(error).__name__ if error is not None else "done"
        self.outcomes[name] = self.outcomes.get(name, 0) + 1
        self.world.tell(f"{who}: {name}")
        if error is not None and not isinstance(error, LockguardError | BodyFailed):
            self.accuse("S12: the outcome of every call", f"{who} raised {error!r}")

    def refused(self, body: Body, told: str) -> None:
        """The fence refused a write of a body."""
        newest = not any(
            other is not body and other.resource == body.resource and other.lease.token > body.lease.token
            for other in self.bodies
        )
        if self.believes(body) and newest and self.plan.excludes:
            self.accuse("S3: a holder may write", f"{body.process.name} was refused: {told}")
