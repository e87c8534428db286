"""The laws of the fence, which every schedule is held to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lockguard import LeaseState
from lockguard.errors import FenceUnavailable, LockguardError, LossReason
from lockguard.events import Lost
from lockguard_lab.sim.fenced.functions import Fence, fence_key
from lockguard_lab.sim.judge import Violation

if TYPE_CHECKING:
    from lockguard import Lease
    from lockguard_lab.sim.fenced.database import Database, Transaction
    from lockguard_lab.sim.fenced.plan import FencedPlan
    from lockguard_lab.sim.world import Process, World

__all__ = ["Body", "FenceJudge", "Op"]

_PASSING = {"kill session", "cut database", "lose answers", "cancel"}
"""What a call that is made again outlasts."""


@dataclass(eq=False)
class Body:
    """One body that runs under a lease."""

    process: Process
    resource: str
    lease: Lease


@dataclass(eq=False)
class Op:
    """One write that a body attempts.

    Attributes:
        name: what the database knows it by.
        lease: the lease that it is made under.
        begun: when.
        committed: whether it has.
        never: why it must never commit, once that is known.
        reads: whether it writes what follows from what the body read.
    """

    name: str
    lease: Lease
    begun: float
    committed: bool = False
    never: str = ""


@dataclass
class FenceJudge:
    """Watches one schedule."""

    world: World
    plan: FencedPlan
    violations: list[Violation] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    held: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    keeps: Callable[[str, str], bool] = lambda *_: True
    """Whether the server keeps a resource for a grant."""
    ops: dict[str, Op] = field(default_factory=dict)
    left_at: dict[str, tuple[float, Process]] = field(default_factory=dict)
    writes: int = 0
    were_in_force: set[str] = field(default_factory=set)
    inside: dict[int, list[tuple[Body, object]]] = field(default_factory=dict)
    open_transactions: Counter[str] = field(default_factory=Counter)
    """How many connections each process gave back in a transaction, as bots do that forget a COMMIT."""
    database: Database | None = None
    happened: Callable[[str, Process], None] = lambda *_: None
    """Told of what faults wait for, and of the process that it happened to."""

    def accuse(self, law: str, told: str) -> None:
        """A law was broken."""
        self.violations.append(Violation(law, told))
        self.world.tell(f"VIOLATION {law}: {told}")

    def looked_at(self, body: Body) -> None:
        """A body goes on after an await, or has just begun."""
        late_s = body.process.time() - body.lease.deadline
        if (late_s > 0 or body.lease.loss is not None) and body.process.went_on_at != self.world.now:
            told = f"{body.process.name} goes on {late_s:.4f} s after its deadline, {body.lease.state.value}"
            self.accuse("S10: the body of a lost lease is cut", told)
        if not self.believes(body) or not self.plan.excludes:
            return
        if not self.keeps(body.resource, str(body.lease.grant.id)):
            told = f"{body.process.name} believes in {body.resource}, which is not kept for it"
            self.accuse("S1: a believed lease is held", told)
        others = [other for other in self.bodies if other is not body and self._conflicts(body, other)]
        if others:
            both = ", ".join(f"{one.process.name} with {int(one.lease.token)}" for one in (body, *others))
            self.accuse("S1: mutual exclusion", f"{body.resource} is believed to be held by {both}")

    def _conflicts(self, body: Body, other: Body) -> bool:
        return other.resource == body.resource and other.lease is not body.lease and self.believes(other)

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
        if isinstance(error, FenceUnavailable) and self.plan.kinds <= _PASSING:
            self.accuse("L7: one lost connection fails no call of the fence", f"{who}: {error}")
        if error is not None and not isinstance(error, LockguardError):
            self.accuse("S12: the outcome of every call", f"{who} raised {error!r}")

    def begin(self, body: Body) -> Op:
        """A write is about to be made."""
        op = Op(f"{body.process.name}-{len(self.ops)}", body.lease, self.world.now)
        self.ops[op.name] = op
        self.happened("writes", body.process)
        return op

    def row(self, resource: str) -> Fence | None:
        """The fence's row of a resource."""
        assert self.database is not None
        row = self.database.latest(fence_key(resource))
        assert row is None or isinstance(row, Fence)
        return row

    def is_in_force(self, lease: Lease) -> bool:
        """Whether the fence accepts a lease."""
        row = self.row(str(lease.resource))
        return row == Fence(int(lease.token), str(lease.grant.id), is_open=True)

    def entered(self, body: Body) -> None:
        """A body begins: nothing older may commit any more."""
        self.held += 1
        self.bodies.append(body)
        lease = body.lease
        self.world.tell(f"{body.process.name} holds {body.resource} with {int(lease.token)}")
        self.happened("entered", body.process)
        self.looked_at(body)
        row = self.row(str(lease.resource))
        if not self.plan.first and str(lease.grant.id) not in self.were_in_force:
            current = row.token if row else None
            self.accuse("S3: sealed before the body begins", f"{lease.resource}: {lease.token}, {current}")

    def left(self, body: Body) -> None:
        """A body is over."""
        self.bodies.remove(body)
        self.world.tell(f"{body.process.name} leaves {body.resource} with {int(body.lease.token)}")
        self.is_left(body.process, str(body.lease.grant.id))
        self.happened("left", body.process)

    def is_left(self, process: Process, grant: str) -> None:
        """From now on nothing that begins under a grant may be accepted, and it has to be closed."""
        self.left_at[grant] = self.world.now, process

    def committed(self, transaction: Transaction) -> None:
        """A transaction has committed."""
        for key, value in transaction.writes.items():
            if isinstance(value, Fence):
                self.were_in_force.add(value.grant)
            if key[0] != "op" or str(key[1]) not in self.ops:
                continue
            op = self.ops[str(key[1])]
            lease, resource = op.lease, str(op.lease.resource)
            row = self.row(resource)
            self.world.tell(f"{op.name} of {resource} with {int(lease.token)} commits")
            self.writes += 1
            mine = row is not None and (row.token, row.grant) == (int(lease.token), str(lease.grant.id))
            closes = fence_key(resource) in transaction.writes
            if not mine or row is None or not (row.is_open or closes):
                self.accuse(
                    "S1: no stale write commits", f"{op.name} with {int(lease.token)}, in force: {row}"
                )
            if op.never:
                self.accuse("S15: what is known to be lost never commits", f"{op.name}: {op.never}")
            if op.committed:
                self.accuse("S15: a write commits once", op.name)
            left_at = self.left_at.get(str(lease.grant.id))
            if left_at is not None and op.begun > left_at[0]:
                self.accuse("S5: nothing that begins after the release is accepted", op.name)
            op.committed = True
            self._judge_value(op, transaction.writes[key])

    def _judge_value(self, op: Op, written: object) -> None:
        assert isinstance(written, tuple)
        _, token, before, after, by = written
        if before is not None and after != before + 1 and by != token:
            told = f"{op.name} read {after - 1}, and wrote over {before}"
            self.accuse("S3: the state that a holder reads is final", told)

    def committed_under(self, body: Body, state: LeaseState) -> None:
        """A transaction was committed whose lease had ended, or not, when its body was over."""
        if state not in (LeaseState.HELD, LeaseState.UNKNOWN):
            told = f"{body.lease.resource} with {int(body.lease.token)}: {state.value}"
            self.accuse("S5: nothing is committed under a lease that is known to be over", told)

    def left_open(self, process: Process) -> None:
        """A bot gave a connection back in a transaction, of which asyncpg tells it once."""
        self.open_transactions[process.name] += 1

    def sent_under(self, body: Body, state: LeaseState) -> None:
        """A statement was answered that was sent when its lease was in some state."""
        if state not in (LeaseState.HELD, LeaseState.UNKNOWN):
            told = f"{body.lease.resource} with {int(body.lease.token)}: {state.value}"
            self.accuse("S5: nothing is sent under a lease that is known to be over", told)

    def is_over(self, lease: Lease) -> bool:
        """Whether the fence has accepted a lease, and does not any more."""
        return str(lease.grant.id) in self.were_in_force and not self.is_in_force(lease)

    def confirmed(self, body: Body, *, was_over: bool) -> None:
        """A body's lease was confirmed, which the fence accepted when that was asked, or not."""
        if was_over:
            told = f"{body.lease.resource} with {int(body.lease.token)}"
            self.accuse("S9: what the fence does not accept is not confirmed", told)

    def done(self, ops: list[Op]) -> None:
        """A write was answered."""
        for op in ops:
            if not op.committed:
                self.accuse("S15: a write that was answered is there", op.name)

    def failed(self, ops: list[Op], error: BaseException) -> None:
        """A write failed with an error that leaves no doubt."""
        for op in ops:
            if op.committed:
                self.accuse("S15: a write that failed is not there", f"{op.name}: {error!r}")
            op.never = f"it failed with {error!r}"

    def undone(self, body: Body, op: Op) -> None:
        """A write was rolled back with its savepoint."""
        op.never = "it was rolled back"
        self.happened("undone", body.process)

    def given_back(self, what: str, *, in_transaction: bool) -> None:
        """A connection is free for whoever uses it next: that one must not find itself in a transaction."""
        if in_transaction:
            self.accuse("S8: nothing is left behind", f"{what} is in a transaction")

    def resolved(self, op: Op, *, committed: bool) -> None:
        """It was found out what became of a write."""
        if committed != op.committed:
            self.accuse("S15: the outcome of a lost answer is known", f"{op.name}: {committed}")
        if not committed:
            op.never = "it was found to be lost"

    def stale(self, body: Body, error: BaseException) -> None:
        """The fence refused a write of a body."""
        lease = body.lease
        self.world.tell(f"{body.process.name} is refused with {int(lease.token)}: {error}")
        if str(lease.resource) != str(getattr(error, "resource", "")):
            return  # an outer hold's
        if self.is_in_force(lease):
            self.accuse("S3: a holder may write", f"{body.process.name} with {int(lease.token)}: {error}")
        if lease.loss is None:
            self.accuse("S10: a refused write ends its lease", f"{lease.resource} with {int(lease.token)}")

    @contextmanager
    def called(self, group: int, argument: object, body: Body) -> Iterator[None]:
        """A decorated function runs: none other may that was called with equal arguments."""
        there = self.inside.setdefault(group, [])
        for other, theirs in there:
            if self.plan.excludes and self.believes(other) and self.believes(body):
                self.accuse("S14: equal arguments lock one name", f"{argument!r} beside {theirs!r}")
        there.append((body, argument))
        try:
            yield
        finally:
            there.remove((body, argument))

    def lost(self, event: Lost) -> None:
        """A guard says that a lease is over."""
        grant = event.grant
        self.world.tell(f"lost: {grant.resource} with {int(grant.token)}: {event.reason.value}")
        if self.plan.latency_s and event.reason is not LossReason.ABANDONED:
            told = f"{grant.resource}: {event.reason.value}"
            self.accuse("L7: a link with a long round trip ends no lease", told)

    def judge_what_is_left(self) -> None:
        """When all is quiet: what was left is closed, and no transaction is open."""
        assert self.database is not None
        for session in self.database.sessions:
            if session.transaction is not None:
                self.accuse("S8: nothing is left behind", f"{session.name} is in a transaction")
        ended = {grant for grant, (_, process) in self.left_at.items() if not process.dead}
        for key in self.database.keys("fence"):
            row = self.row(str(key[1]))
            if row is not None and row.is_open and row.grant in ended:
                self.accuse("S5: what was left is closed", f"{key[1]} is open for {row.token}")
