"""The grants of this process whose seal is sent with their first write.

``PostgresFence(pool, seal_with_first_write=True)`` notes a grant here in place of sealing it. If the first
statement that presents it is a write by itself, seal, check and write are one transaction, sent in one
message. It succeeds if nothing is in the way: no other transaction of the resource is open, and no higher
token is in force. Otherwise nothing is done, and the grant is sealed as any other before the write is sent
again. The same is done before a transaction of several statements. So there is only one way to wait for a
predecessor, to have its session ended, and to be outrun.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

from lockguard.errors import StaleToken
from lockguard.ports import Outrun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from lockguard._lease import Grant, GrantId, Lease, Resource
    from lockguard.ports import Sealed

    Seal = Callable[[Grant], Awaitable[Sealed | Outrun]]

__all__ = ["BY_ITSELF", "UNSEALED", "Unsealed", "in_turn", "seal_now"]

BY_ITSELF = frozenset({"LG006", "LG007"})
"""The SQLSTATEs of a first write whose seal has to be made by itself; nothing was done."""


class _Pending:
    """A grant that is not sealed yet.

    Attributes:
        seal: seals it by itself.
        first_sql: the SQL of the call that seals it with a write, without its last argument.
        remembered: what the nodes remember of it once it is sealed.
        resource: the resource that it is for.
        turn: lets one task at a time seal it: a task that waited for a first write of its own process as for
            a predecessor's would have the session of that write ended.
        presented: whether anything of it may have reached the database.
        loop: the event loop in which it is sealed.
    """

    __slots__ = ("first_sql", "loop", "presented", "remembered", "resource", "seal", "turn")

    def __init__(self, resource: Resource, seal: Seal, first_sql: str, remembered: str) -> None:
        self.resource = resource
        self.seal = seal
        self.first_sql = first_sql
        self.remembered = remembered
        self.turn = asyncio.Lock()
        self.presented = False
        self.loop = asyncio.get_running_loop()


class Unsealed:
    """Which grants are not sealed yet, and how each can be."""

    def __init__(self) -> None:
        self._pending: dict[GrantId, _Pending] = {}

    def note(self, grant: Grant, *, seal: Seal, first_sql: str, remembered: str) -> None:
        """Note a new ``grant``, whose seal is to be sent with its first write."""
        self._pending[grant.id] = _Pending(grant.resource, seal, first_sql, remembered)

    def waits(self, grant: GrantId) -> bool:
        """Whether ``grant`` is not sealed yet."""
        return grant in self._pending

    def loop_of(self, grant: GrantId) -> asyncio.AbstractEventLoop | None:
        """The event loop in which ``grant`` is sealed; ``None`` if it is sealed already."""
        pending = self._pending.get(grant)
        return None if pending is None else pending.loop

    def present(self, grant: GrantId) -> str | None:
        """The SQL by which the message about to be sent seals ``grant``; ``None`` if it is sealed."""
        pending = self._pending.get(grant)
        if pending is None:
            return None
        pending.presented = True
        return pending.first_sql

    def turns(self, leases: Sequence[Lease]) -> list[asyncio.Lock]:
        """The turns of those leases that are not sealed yet, in the same order for all tasks."""
        if not self._pending:
            return []
        grants = sorted({lease.grant.id for lease in leases})
        return [self._pending[grant].turn for grant in grants if grant in self._pending]

    def sealed(self, leases: Iterable[Lease]) -> None:
        """Record that a transaction that presented ``leases`` has committed."""
        if self._pending:
            for lease in leases:
                if (pending := self._pending.pop(lease.grant.id, None)) is not None:
                    lease.take_token(lease.token, pending.remembered)

    def drop(self, grant: GrantId) -> bool:
        """Forget an ended ``grant``; returns whether nothing of it has reached the database or ever will."""
        pending = self._pending.pop(grant, None)
        return pending is not None and not pending.presented

    def broken(self, resource: Resource) -> None:
        """Note a break of ``resource``: the end of any of its grants now has to be told to the database.

        Unless its token becomes known there, an older grant that is not sealed either would still be let in.
        """
        for pending in self._pending.values():
            if pending.resource == resource:
                pending.presented = True

    async def seal(self, grant: Grant) -> Sealed | Outrun | None:
        """Seal ``grant`` by itself, in turn; ``None`` if another task has sealed it, or it has ended."""
        pending = self._pending.get(grant.id)
        if pending is None:
            return None
        async with pending.turn:
            if self._pending.get(grant.id) is not pending:
                return None
            pending.presented = True
            return await pending.seal(grant)

    def forget_all(self) -> None:
        """Forget all grants in a forked process: the leases are its parent's."""
        self._pending.clear()


UNSEALED = Unsealed()
"""The unsealed grants of this process."""
os.register_at_fork(after_in_child=UNSEALED.forget_all)


def in_turn(leases: Sequence[Lease]) -> AbstractAsyncContextManager[None]:
    """Keep other tasks of this process from sealing any of ``leases`` meanwhile."""
    turns = UNSEALED.turns(leases)
    return _all_of(turns) if turns else nullcontext()


@asynccontextmanager
async def _all_of(turns: Sequence[asyncio.Lock]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for turn in turns:
            await stack.enter_async_context(turn)
        yield


async def seal_now(leases: Sequence[Lease]) -> None:
    """Seal those of ``leases`` that are not sealed yet, each by itself.

    Raises:
        StaleToken: another grant sealed first; the lease has ended.
        SealUnknown: this is an old primary, or a database that has lost commits.
        FenceUnavailable: not done in time, or the outcome is unknown.
        ConfigurationError: the schema is missing or old, or the role lacks a right.
    """
    for lease in leases:
        if not UNSEALED.waits(lease.grant.id):
            continue
        answer = await UNSEALED.seal(lease.grant)
        if isinstance(answer, Outrun):
            refusal = StaleToken(
                f"stale token for {lease.resource}: presented {lease.token}, current {answer.current};"
                " another holder took over before this write, or it was broken or closed",
                resource=lease.resource,
                presented=lease.token,
                current=answer.current,
            )
            lease.lost_to_fence(refusal)
            raise refusal
        UNSEALED.sealed([lease])
