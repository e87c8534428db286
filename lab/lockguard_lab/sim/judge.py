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

__all__ = ["Body", "Judge", "Violation"]


@dataclass(frozen=True)
class Violation:
    """One broken law."""

    law: str
    told: str

    def __str__(self) -> str:
        return f"{self.law}: {self.told}"


@dataclass
class Body:
    """One body that runs under a lease."""

    process: Process
    resource: str
    lease: Lease
    since: float = 0.0


@dataclass
class Judge:
    """Watches one schedule."""

    world: World
    plan: Plan
    violations: list[Violation] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    held: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    keeps: Callable[[str, str], bool] = lambda *_: True
    """Whether enough servers keep a resource for a grant."""

    def accuse(self, law: str, told: str) -> None:
        """A law was broken."""
        self.violations.append(Violation(law, told))
        self.world.tell(f"VIOLATION {law}: {told}")

    def entered(self, body: Body) -> None:
        """A body begins."""
        self.held += 1
        self.bodies.append(body)
        self.world.tell(f"{body.process.name} holds {body.resource} with {int(body.lease.token)}")
        self.looked_at(body)

    def left(self, body: Body) -> None:
        """A body is over."""
        self.bodies.remove(body)
        self.world.tell(f"{body.process.name} leaves {body.resource} with {int(body.lease.token)}")

    def looked_at(self, body: Body) -> None:
        """A body goes on after an await, or has just begun."""
        late_s = body.process.time() - body.lease.deadline
        if late_s > 0 or body.lease.loss is not None:
            told = f"{body.process.name} goes on {late_s:.4f} s after its deadline, {body.lease.state.value}"
            self.accuse("S5: the body of a lost lease is cut", told)
        if not self.believes(body) or not self.plan.excludes:
            return
        if not self.plan.loses_data and not self.keeps(body.resource, str(body.lease.grant.id)):
            told = f"{body.process.name} believes in {body.resource}, which no majority keeps for it"
            self.accuse("S1: a believed lease is held", told)
        others = [
            other
            for other in self.bodies
            if other is not body and other.resource == body.resource and self.believes(other)
        ]
        if others:
            both = ", ".join(f"{one.process.name} with {int(one.lease.token)}" for one in (body, *others))
            self.accuse("S1: mutual exclusion", f"{body.resource} is believed to be held by {both}")

    def lost(self, event: Lost) -> None:
        """A guard says that a lease is over."""
        grant = event.grant
        self.world.tell(f"lost: {grant.resource} with {int(grant.token)}: {event.reason.value}")
        if event.reason is not LossReason.REFUSED:
            return
        if self.plan.excludes and self.keeps(grant.resource, str(grant.id)):
            self.accuse("L4: a lease that is held is kept", f"{grant.resource} was given up and is held")
        elif self.plan.erodes and any(
            body.lease.grant is grant and self.world.now - body.since > 1.2 * self.plan.ttl_s
            for body in self.bodies
        ):  # renewed since the last node forgot it, and so on a majority again
            self.accuse(
                "L4: a lease that is held is kept", f"{grant.resource} was lost with one node at a time"
            )

    @staticmethod
    def believes(body: Body) -> bool:
        """Whether a body's lease would pass a check in its own process now."""
        return (
            not body.process.dead
            and body.lease.state.value in ("held", "unknown")
            and body.process.time() < body.lease.deadline
        )

    def ended(self, who: str, error: BaseException | None) -> None:
        """A call ended."""
        name = type(error).__name__ if error is not None else "done"
        self.outcomes[name] = self.outcomes.get(name, 0) + 1
        self.world.tell(f"{who}: {name}")
        if error is not None and not isinstance(error, LockguardError):
            self.accuse("S12: the outcome of every call", f"{who} raised {error!r}")

    def refused(self, body: Body, told: str) -> None:
        """The fence refused a write of a body."""
        newest = not any(
            other is not body and other.resource == body.resource and other.lease.token > body.lease.token
            for other in self.bodies
        )
        if self.believes(body) and newest and self.plan.excludes:
            self.accuse("S3: a holder may write", f"{body.process.name} was refused: {told}")
