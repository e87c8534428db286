"""A model of Postgres's fence: one row for each resource, locked by who seals and by who writes.

A process reaches it over a network that delays requests and answers, and loses the answer to a COMMIT now and
then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from lockguard._lease import Grant, Resource, Token
from lockguard.errors import FenceUnavailable
from lockguard.ports import Outrun, Sealed
from lockguard_lab.sim.world import Process, World

__all__ = ["Commit", "CommitLost", "Fence", "Postgres", "Session", "Stale", "Transaction"]


class Stale(Exception):
    """The write was refused: another token is in force."""


class CommitLost(Exception):
    """The answer to a COMMIT, or the connection, was lost."""


@dataclass(frozen=True)
class Commit:
    """One committed write, with what was in force then."""

    resource: str
    token: int
    grant: str
    at: float


@dataclass
class _Row:
    token: int = 0
    grant: str = ""
    closed: bool = True
    owner: object = None
    waiting: deque[Callable[[], None]] = field(default_factory=deque)


class Session(Protocol):
    """What the database knows of a transaction that holds a row."""

    resource: str
    token: int
    grant: str
    committed: bool

    def abort(self, why: str) -> None:
        """End it; nothing more of it is executed."""
        ...


class Postgres:
    """The database.

    Attributes:
        commits: every committed write, in order.
        sealed: every grant that was sealed, in order.
        told: is told of each step: the resource, what was done, by which grant, with which token.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.rows: dict[str, _Row] = {}
        self.commits: list[Commit] = []
        self.sealed: list[tuple[str, int, str]] = []
        self.delay_s = (0.0003, 0.003)
        self.answers_lost = 0.0
        self.told: Callable[[str, str, str, int], None] = lambda *_: None
        self._open: list[Session] = []

    def row(self, resource: str) -> _Row:
        """The fence's row of a resource."""
        return self.rows.setdefault(resource, _Row())

    def lock(self, resource: str, owner: object, then: Callable[[], None]) -> None:
        """Call ``then`` when ``owner`` has the row's lock; first come, first served."""
        row = self.row(resource)
        if row.owner is None:
            row.owner = owner
            then()
        else:

            def take() -> None:
                row.owner = owner
                then()

            row.waiting.append(take)

    def unlock(self, resource: str, owner: object) -> None:
        """Give the row's lock to the next."""
        row = self.row(resource)
        if row.owner is owner:
            row.owner = None
            if row.waiting:
                row.waiting.popleft()()

    def opened(self, transaction: Session) -> None:
        """A transaction has the lock of its row."""
        self._open.append(transaction)

    def ended(self, transaction: Session) -> None:
        """A transaction is over."""
        if transaction in self._open:
            self._open.remove(transaction)
            committed = transaction.committed
            self.told(
                transaction.resource, "COMMIT" if committed else "ABORT", transaction.grant, transaction.token
            )

    def evict(self, resource: str, below: int) -> None:
        """End the sessions that hold the row under an older lease, as a seal does whose grace is over."""
        for transaction in list(self._open):
            if transaction.resource == resource and transaction.token < below:
                transaction.abort("terminated by the fence")

    async def trip(self, process: Process, work: Callable[[Callable[[Any], None]], None]) -> Any:
        """A round trip: ``work(answer)`` runs at the database, and answers then or later."""
        future: asyncio.Future[Any] = process.create_future()
        world, delay_s = self.world, self.delay_s

        def answer(value: Any) -> None:
            def arrived() -> None:
                if future.done():
                    return
                if isinstance(value, Exception):
                    future.set_exception(value)
                else:
                    future.set_result(value)

            world.after(world.dice.uniform(*delay_s), lambda: process.arrived.append((arrived, ())))

        world.after(world.dice.uniform(*delay_s), lambda: work(answer))
        return await future


class Transaction:
    """One fenced transaction: its first statement presents the lease, and holds the row until its end."""

    def __init__(self, postgres: Postgres, process: Process, resource: str, token: int, grant: str) -> None:
        self.resource, self.token, self.grant = resource, token, grant
        self._postgres, self._process = postgres, process
        self._over = ""
        self.committed = False
        postgres_process_watch(process, self)

    async def present(self) -> None:
        """Check the lease; the row stays locked.

        Raises:
            Stale: another token is in force.
        """

        def work(answer: Callable[[Any], None]) -> None:
            if self._over or self._process.dead:
                answer(CommitLost(self._over))
                return
            self._postgres.lock(self.resource, self, lambda: self._checked(answer))

        await self._postgres.trip(self._process, work)

    def _checked(self, answer: Callable[[Any], None]) -> None:
        row = self._postgres.row(self.resource)
        if self._over or self._process.dead:
            self._postgres.unlock(self.resource, self)
            answer(CommitLost(self._over))
        elif (row.token, row.grant) != (self.token, self.grant) or row.closed:
            self._postgres.told(self.resource, "REFUSED", self.grant, self.token)
            self.abort("stale")
            answer(Stale(f"presented {self.token}, current {row.token}"))
        else:
            self._postgres.opened(self)
            self._postgres.told(self.resource, "PRESENT", self.grant, self.token)
            answer(None)

    async def commit(self) -> None:
        """Commit the write.

        Raises:
            CommitLost: the session was ended, or the answer was lost.
        """
        lost = self._postgres.world.dice.random() < self._postgres.answers_lost

        def work(answer: Callable[[Any], None]) -> None:
            if self._over:
                answer(CommitLost(self._over))
                return
            now = self._postgres.world.now
            self._postgres.commits.append(Commit(self.resource, self.token, self.grant, now))
            self.committed = True
            self.abort("committed")
            answer(CommitLost("no answer") if lost else None)

        await self._postgres.trip(self._process, work)

    def abort(self, why: str) -> None:
        """End it; nothing more of it is executed."""
        if not self._over:
            self._over = why
            self._postgres.ended(self)
            self._postgres.unlock(self.resource, self)


def postgres_process_watch(process: Process, transaction: Transaction) -> None:
    """Have a transaction end with its process: its backend sees the connection's end."""

    class _Session:
        def die(self) -> None:
            transaction.abort("the process is gone")

    process.transports.append(_Session())


class Fence:
    """The port that the core seals with, for one process.

    Args:
        postgres: the database.
        process: whose fence it is.
        grace_s: how long a seal waits for open transactions before their sessions are ended.
    """

    def __init__(self, postgres: Postgres, process: Process, *, grace_s: float = 0.5) -> None:
        self._postgres, self._process, self._grace_s = postgres, process, grace_s

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        """Make ``grant`` the only one whose writes are accepted."""
        resource, owner = str(grant.resource), object()
        postgres, world = self._postgres, self._postgres.world

        def work(answer: Callable[[Any], None]) -> None:
            def have() -> None:
                row = postgres.row(resource)
                known = (row.token, row.grant) == (grant.token, grant.id) and not row.closed
                if known or (grant.token > row.token and row.grant != grant.id):
                    row.token, row.grant, row.closed = int(grant.token), str(grant.id), False
                    if not known:
                        postgres.sealed.append((resource, int(grant.token), str(grant.id)))
                    postgres.told(resource, "SEALED", str(grant.id), row.token)
                    answer(Sealed(grant.token, f"sim {int(grant.token)}"))
                else:
                    postgres.told(resource, "OUTRUN", str(grant.id), row.token)
                    answer(Outrun(Token(row.token)))
                postgres.unlock(resource, owner)

            postgres.lock(resource, owner, have)
            world.after(self._grace_s, lambda: postgres.evict(resource, int(grant.token)))

        postgres.told(resource, "SEAL_SENT", str(grant.id), int(grant.token))
        sealed: Sealed | Outrun = await self._bounded(
            postgres.trip(self._process, work), within, grant.resource
        )
        return sealed

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        """Accept no more writes of ``grant``."""
        resource, owner = str(grant.resource), object()
        postgres = self._postgres

        def work(answer: Callable[[Any], None]) -> None:
            def have() -> None:
                row = postgres.row(resource)
                if row.grant == grant.id:
                    row.closed = True
                elif grant.token > row.token and row.closed:
                    # A seal that comes later must be refused. An open row may be the rightful holder's.
                    row.token, row.grant, row.closed = int(grant.token), str(grant.id), True
                postgres.told(resource, "CLOSE", str(grant.id), int(grant.token))
                answer(None)
                postgres.unlock(resource, owner)

            postgres.lock(resource, owner, have)

        await self._bounded(postgres.trip(self._process, work), within, grant.resource)

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        """Accept no more writes of the holder."""
        del reason
        name, owner = str(resource), object()
        postgres = self._postgres

        def work(answer: Callable[[Any], None]) -> None:
            def have() -> None:
                row = postgres.row(name)
                row.token, row.grant, row.closed = row.token + 1, "", True
                postgres.told(name, "BREAK_FENCE", "", row.token)
                answer(Token(row.token))
                postgres.unlock(name, owner)

            postgres.lock(name, owner, have)

        token: Token = await self._bounded(postgres.trip(self._process, work), within, resource)
        return token

    async def _bounded(self, work: Awaitable[Any], within: timedelta, resource: Resource) -> Any:
        try:
            async with asyncio.timeout(within.total_seconds()):
                return await work
        except (TimeoutError, CommitLost) as error:
            raise FenceUnavailable(f"{resource}: no answer of the fence", resource=resource) from error
