"""The guard: where the parts come together, and all that most users need."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, overload

from lockguard._clock import SYSTEM_CLOCK, Clock
from lockguard._core import Core
from lockguard._exclusive import Keeps, MaySkip, exclusive, required_key
from lockguard._hold import Hold, HoldMany
from lockguard._lease import Grant, GrantId, Resource, Token, new_grant_id, parse_resource
from lockguard._locks import Locks
from lockguard._naming import Key
from lockguard._nodes.choose import node_for_url, nodes_for_urls
from lockguard._nodes.memory import MemoryNode, MemoryStore
from lockguard._quorum import described, majority, may_be_most, prevailing, thrown_out, vote_of
from lockguard._renewal import end_here
from lockguard._single_node import SingleNode
from lockguard._times import checked_ttl, checked_wait, checked_within, milliseconds
from lockguard.errors import ConfigurationError, LossReason, QuorumUnavailable
from lockguard.observe._log import LogObserver
from lockguard.ports import Broken, Done, Fence, Inspection, LockNode, NotExecuted, NoVote, Observer
from lockguard.redlock import Redlock
from lockguard.text import kind_of, remark

if TYPE_CHECKING:
    from asyncio import Future
    from types import TracebackType

__all__ = ["GuardOptions", "LockGuard"]

TTL_DEFAULT = timedelta(seconds=10)
WAIT_DEFAULT = timedelta(seconds=10)
NODE_TIMEOUT_DEFAULT = timedelta(milliseconds=200)
HISTORY_DEFAULT = 100
HISTORY_MAX = 10_000


class GuardOptions(TypedDict, total=False):
    """The options that every constructor of a guard takes, see :class:`LockGuard`."""

    ttl: timedelta
    wait: timedelta
    max_hold: timedelta | None
    lock_delay: timedelta
    fence: Fence | None
    fence_within: timedelta
    observers: Sequence[Observer] | None
    clock: Clock
    node_timeout: timedelta
    history: int


class LockGuard:
    """Lease locks in Redis, with fencing tokens.

    One guard serves a whole process; it is bound to the event loop that first uses it. It connects on first
    use, or with ``async with guard:``, which also closes it.

    Args:
        nodes: one node, or several independent ones of which a majority decides.
        ttl: how long a lease lasts without renewal; at least 0.1 s. It is renewed from a third of that on.
        wait: how long a caller waits for a busy resource by default.
        max_hold: ends a lease after this time although it is renewed; ``None``: never.
        lock_delay: how long a resource stays closed after a lease expired, was lost or was broken, so that
            what its holder had in flight reaches the exchange before the successor looks.
        fence: the fence in the database, for example ``lockguard_asyncpg.PostgresFence(pool)``.
        fence_within: how long sealing may take, including the wait for transactions of the last holder.
        observers: told of each event; by default one that logs.
        clock: for tests.
        node_timeout: with several nodes, how long one that does not answer may delay a decision.
        history: how many grants of each resource Redis keeps in its history for seven days, 0 to 10,000; 0
            leaves less behind where there are very many resources. The value applies with each grant: where
            guards differ, the last one that was granted the lock decides.

    Raises:
        ConfigurationError: a value that cannot work.
    """

    def __init__(
        self,
        nodes: Sequence[LockNode],
        *,
        ttl: timedelta = TTL_DEFAULT,
        wait: timedelta = WAIT_DEFAULT,
        max_hold: timedelta | None = None,
        lock_delay: timedelta = timedelta(0),
        fence: Fence | None = None,
        fence_within: timedelta = timedelta(seconds=5),
        observers: Sequence[Observer] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        node_timeout: timedelta = NODE_TIMEOUT_DEFAULT,
        history: int = HISTORY_DEFAULT,
    ) -> None:
        nodes = _checked_nodes(nodes)
        _require_fence(fence)
        _require_clock(clock)
        self._ttl = checked_ttl(ttl)
        self._ttl_ms = milliseconds(self._ttl)
        self._wait = checked_wait(wait)
        self._core = Core(
            _locks_over(nodes, clock=clock, node_timeout=checked_within(node_timeout, "node_timeout")),
            fence=fence,
            clock=clock,
            observers=[LogObserver()] if observers is None else observers,
            fence_within=checked_within(fence_within, "fence_within"),
            max_hold_s=math.inf if max_hold is None else checked_ttl(max_hold, "max_hold").total_seconds(),
            lock_delay_ms=milliseconds(checked_wait(lock_delay, "lock_delay")),
            history=_checked_history(history),
        )

    @classmethod
    def from_url(cls, url: str, *, min_replicas: int = 0, **options: Unpack[GuardOptions]) -> LockGuard:
        """A guard over one Redis or Valkey server, or over a set-up that fails over by itself.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``, with user, password and database number as
                redis-py reads them; ``redis+sentinel://host:port,host:port/service/db``; or
                ``redis+cluster://host:port,host:port``. The last two with ``rediss+`` for TLS.
            min_replicas: how many replicas must have the lock before it counts as granted; not for a cluster.
            **options: as for the class.

        Raises:
            ConfigurationError: the URL or an option cannot work. Nothing is connected yet.
        """
        _require_known(options)
        return cls([node_for_url(url, inbox=_new_inbox(), min_replicas=min_replicas)], **options)

    @classmethod
    def from_urls(cls, urls: Iterable[str], **options: Unpack[GuardOptions]) -> LockGuard:
        """A guard over several independent servers, of which a majority decides (Redlock).

        Args:
            urls: an odd number of servers, as for :meth:`from_url`.
            **options: as for the class.

        Raises:
            ConfigurationError: the URLs or an option cannot work. Nothing is connected yet.
        """
        _require_known(options)
        return cls(nodes_for_urls(urls, inbox=_new_inbox()), **options)

    @classmethod
    def in_memory(cls, store: MemoryStore | None = None, **options: Unpack[GuardOptions]) -> LockGuard:
        """A guard without a server, for unit tests of code that locks.

        Its locks follow the same rules, within one process; it shows nothing about failures.

        Args:
            store: shared by guards that compete for the same locks; a new one by default.
            **options: as for the class.

        Raises:
            ConfigurationError: fakeredis is not installed, or an option cannot work.
        """
        _require_known(options)
        return cls([MemoryNode(MemoryStore() if store is None else store, inbox=_new_inbox())], **options)

    def __repr__(self) -> str:
        nodes = ", ".join(node.name for node in self._core.locks.nodes)
        fence = "fenced" if self._core.fence else "without a fence"
        return f"<LockGuard {nodes} ttl={self._ttl.total_seconds():g}s {fence}>"

    async def __aenter__(self) -> Self:
        self._core.enter()
        try:
            await self._core.connect()
        except BaseException:
            await self.aclose()  # for nodes that were reached before one refused
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        except ConfigurationError as told:  # closed in another event loop
            if exc is None:
                raise
            exc.add_note(str(told))

    def hold(
        self,
        resource: str,
        *,
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str = "",
        on_busy: Literal["wait", "raise"] = "wait",
    ) -> Hold:
        """Hold ``resource`` for the length of an ``async with`` body.

        Args:
            resource: what to lock, such as ``"binance:APTUSDT"``.
            wait: how long to wait while it is busy; the guard's by default.
            ttl: how long the lease lasts without renewal; the guard's by default.
            operation: what it is for; shown to callers that find it busy and by ``redis-cli``.
            on_busy: wait in line, or raise at once.

        Returns:
            An async context manager that gives the :class:`~lockguard._lease.Lease`. Entering raises
            ``ResourceBusy``, ``QuorumUnavailable``, ``FenceUnavailable`` or ``SelfDeadlock``; leaving raises
            ``LeaseLost`` if the lease ended under the body.

        Raises:
            ConfigurationError: a value that cannot work.
        """
        if on_busy not in ("wait", "raise"):
            raise ConfigurationError(f"on_busy={on_busy!r} is not known here; write 'wait' or 'raise'")
        return Hold(
            self._core,
            parse_resource(resource),
            self._ttl_ms if ttl is None else milliseconds(checked_ttl(ttl)),
            self._wait if wait is None else checked_wait(wait),
            remark(operation, "operation"),
            on_busy,
        )

    def hold_many(
        self,
        resources: Sequence[str],
        *,
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str = "",
        on_busy: Literal["wait", "raise"] = "wait",
    ) -> HoldMany:
        """Hold several resources for the length of an ``async with`` body, all or none.

        Args:
            resources: what to lock; taken in the order of their names, so that callers do not deadlock.
            wait: how long to wait for all of them together; the guard's by default.
            ttl: as for :meth:`hold`.
            operation: as for :meth:`hold`.
            on_busy: as for :meth:`hold`.

        Returns:
            An async context manager that gives the leases in the order of ``resources``.

        Raises:
            ConfigurationError: a value that cannot work.
        """
        if isinstance(resources, str | bytes) or not isinstance(resources, Iterable):
            raise ConfigurationError(
                f"hold_many needs a list of resources, such as ['binance:A', 'binance:B'];"
                f" got {kind_of(resources)}"
            )
        names = [parse_resource(resource) for resource in resources]
        if not names:
            raise ConfigurationError("hold_many needs a list of resources; got an empty one")

        def hold(resource: str, left: timedelta) -> Hold:
            return self.hold(resource, wait=left, ttl=ttl, operation=operation, on_busy=on_busy)

        patience = self._wait if wait is None else checked_wait(wait)
        hold(names[0], patience)  # a value that cannot work is refused here, as by hold()
        return HoldMany(names, hold, patience=patience, clock=self._core.clock)

    @overload
    def exclusive(
        self,
        key: Key,
        *,
        on_busy: Literal["wait", "raise"] = ...,
        wait: timedelta | None = ...,
        ttl: timedelta | None = ...,
        operation: str | None = ...,
    ) -> Keeps: ...
    @overload
    def exclusive(
        self,
        key: Key,
        *,
        on_busy: Literal["skip"],
        wait: timedelta | None = ...,
        ttl: timedelta | None = ...,
        operation: str | None = ...,
    ) -> MaySkip: ...
    def exclusive(
        self,
        key: Key | None = None,
        *,
        on_busy: Literal["wait", "raise", "skip"] = "wait",
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str | None = None,
    ) -> Any:
        """Decorate a coroutine function or method: one call at a time per resource.

        Args:
            key: the resource's name: a template over the function's parameters, such as
                ``"{exchange}:{symbol}"``, or a function that takes the same arguments and returns the name,
                such as ``key=lambda request: request.symbol``. What goes into a name is a str, an int, a UUID
                or an Enum of these, which counts by its value; anything else is refused when the function is
                called, because two callers that mean the same resource could lock two names.
            on_busy: wait in line, raise ``ResourceBusy``, or return a falsy
                :class:`~lockguard._exclusive.Skipped` that tells the holder.
            wait: as for :meth:`hold`.
            ttl: as for :meth:`hold`.
            operation: what the lock is for; the function's name by default.

        Raises:
            ConfigurationError: the key does not fit the function, or a value cannot work. Calling the
                function raises it for an argument that has no single text.
        """
        return exclusive(
            required_key(key), guard=lambda *_: self, on_busy=on_busy, wait=wait, ttl=ttl, operation=operation
        )

    async def inspect(self, resource: str) -> Inspection:
        """Who holds ``resource``, since when, with which token, and who waits.

        With several nodes it counts as held while a majority of them holds it, or may: a node that does not
        answer counts for the grant that the others show. A grant that fewer show is an acquire or a release
        in flight.

        Raises:
            QuorumUnavailable: too few nodes answered to say.
        """
        self._core.enter()
        await self._core.connect()
        name = parse_resource(resource)
        votes = await self._core.locks.ask_all(lambda node: node.inspect(name))
        seen = [vote for vote in votes if isinstance(vote, Inspection)]
        found = prevailing(seen, nodes=len(votes)) if seen else None
        if found is None or (len(seen) < majority(len(votes)) and not found.held):
            raise self._unasked(resource, votes)  # those that did not answer may hold it
        return found

    async def break_(self, resource: str, *, reason: str) -> Broken:
        """End a holder's lease by force: its writes are refused from now on, then the lock is freed.

        A body of this process that holds it is cut at once, with ``LossReason.BROKEN``. A body of another
        process learns of it when its next write is refused, or with its next renewal. The first waiter is
        woken; with ``lock_delay`` the resource first stays closed for that time, because what the holder had
        sent may still be in flight.

        A break that has begun completes even if the caller is cancelled: half a break would free the lock
        while its holder still trusts its lease.

        Args:
            resource: what to free.
            reason: why; kept in the lock's history.

        Raises:
            FenceUnavailable: the fence could not be raised. The lock was left as it was, or it is free and a
                holder whose token is ahead of the fence's clock may not be shut out: break it again.
            QuorumUnavailable: too few nodes could be asked. The fence, if there is one, is broken all the
                same, and the message says so: what the holder writes is refused.
        """
        self._core.enter()
        await self._core.connect()
        breaking = self._core.run_to_end(
            self._break(parse_resource(resource), remark(reason, "reason")), name="lockguard-break"
        )
        await asyncio.wait([breaking])
        return breaking.result()

    async def _break(self, resource: Resource, reason: str) -> Broken:
        core, token = self._core, Token(0)
        held_here = core.keeper.grants_on(resource)  # before anything is freed: a successor must not be cut
        if core.fence is not None:
            # The fence first: were the lock freed first, the holder could still write beside its successor.
            token = await core.fence.break_(resource, reason=reason, within=core.fence_within)
            _end_all(held_here)

        def ask(node: LockNode) -> Future[Broken | NoVote]:
            asked = node.break_(resource, reason=reason, token=token)
            # On each answer, however late and whatever the others say: it may name a lease of this process.
            asked.add_done_callback(_end_broken)
            return asked

        votes = await core.locks.ask_all(ask)
        done = [vote for vote in votes if isinstance(vote, Broken)]
        if not all(isinstance(vote, Broken | NotExecuted) for vote in votes):
            _end_all(held_here)  # the command may have arrived
        if core.fence is not None and done and (broken := thrown_out(done)).token > token:
            # Redis's clock is, or was, ahead of the fence's: a grant that has not sealed yet still could.
            ended = GrantId(broken.grant) if broken.grant else new_grant_id()
            late = Grant(resource, ended, broken.token, broken.holder, reason, 0)
            await core.fence.close(late, within=core.fence_within)
            token = broken.token
        if len(done) < majority(len(votes)):
            unasked = self._unasked(resource, votes)
            if core.fence is None:
                raise QuorumUnavailable(
                    f"{resource} may still be held: {len(done)} of {len(votes)} servers did what a"
                    f" majority has to do; break it again when they answer ({unasked})",
                    resource=resource,
                    votes=unasked.votes,
                )
            raise QuorumUnavailable(
                f"{resource} was broken in the fence only: Postgres accepts nothing below token {token} for"
                f" it; break it again when Redis answers, or its lock stays until its lease ends ({unasked})",
                resource=resource,
                votes=unasked.votes,
            )
        return thrown_out(done)

    async def request_handover(self, resource: str, *, reason: str) -> bool:
        """Request a hand-over: the holder's ``lease.wanted`` turns true with its next renewal.

        Returns:
            Whether the resource is held.

        Raises:
            QuorumUnavailable: no node could be asked.
        """
        self._core.enter()
        await self._core.connect()
        name, reason = parse_resource(resource), remark(reason, "reason")
        votes = await self._core.locks.ask_all(lambda node: node.request_handover(name, reason=reason))
        done = [vote for vote in votes if isinstance(vote, Done)]
        if not done:
            raise self._unasked(resource, votes)
        return may_be_most(sum(vote.found for vote in done), answers=len(done), nodes=len(votes))

    async def aclose(self) -> None:
        """End every lease of this guard as lost, send what is queued, close the connections.

        A close that has begun completes, even if its caller is cancelled or is a body that it cuts.
        """
        await self._core.aclose()

    def _unasked(self, resource: str, votes: Sequence[Any]) -> QuorumUnavailable:
        names = [node.name for node in self._core.locks.nodes]
        told = {name: described(vote) for name, vote in zip(names, votes, strict=True)}
        # The answers of a few decide nothing, and "broken" or "inspection" would read as if they did.
        unanswered = (described(vote) for vote in votes if isinstance(vote, NoVote))
        return QuorumUnavailable("; ".join(unanswered), resource=resource, votes=told)


def _locks_over(nodes: Sequence[LockNode], *, clock: Clock, node_timeout: timedelta) -> Locks:
    if len(nodes) == 1:
        return SingleNode(nodes[0], clock=clock)
    return Redlock(nodes, clock=clock, node_timeout_s=node_timeout.total_seconds())


def _end_all(grants: Iterable[GrantId]) -> None:
    for grant in grants:
        end_here(grant, LossReason.BROKEN)


def _end_broken(asked: Future[Broken | NoVote]) -> None:
    if isinstance(vote := vote_of(asked), Broken):
        end_here(GrantId(vote.grant), LossReason.BROKEN)


def _require_known(options: Mapping[str, object]) -> None:
    known = list(GuardOptions.__annotations__)
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, 1)
            meant = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise ConfigurationError(f"{option}= is no option of a guard; {meant}")


def _checked_nodes(nodes: object) -> list[LockNode]:
    if isinstance(nodes, str | bytes) or not isinstance(nodes, Iterable):
        raise ConfigurationError(
            f"a guard is made of nodes, not of {kind_of(nodes)}; with a URL write LockGuard.from_url(url)"
        )
    listed: list[Any] = list(nodes)
    if not listed:
        raise ConfigurationError("a guard needs at least one Redis node; got none")
    for node in listed:
        if not callable(getattr(node, "acquire", None)):
            raise ConfigurationError(
                f"a guard is made of nodes, and {kind_of(node)} is none;"
                " with URLs write LockGuard.from_url(url) or LockGuard.from_urls(urls)"
            )
    return listed


def _checked_history(history: object) -> int:
    if not isinstance(history, int) or isinstance(history, bool):
        raise ConfigurationError(f"history= is {kind_of(history)}; give a number of grants, 0 for no history")
    if not 0 <= history <= HISTORY_MAX:
        raise ConfigurationError(f"history={history} cannot work; give 0 to {HISTORY_MAX} grants")
    return history


def _require_clock(clock: object) -> None:
    # The class itself has these methods too, but calling them fails.
    if isinstance(clock, type) or not all(callable(getattr(clock, name, None)) for name in ("now", "wall")):
        raise ConfigurationError(
            f"clock= is {kind_of(clock)}, which is no clock; leave it out, or write clock=FakeClock()"
        )


def _require_fence(fence: object) -> None:
    """Check the fence now: the first hold would otherwise fail after its lock was granted."""
    if fence is None:
        return
    if isinstance(fence, type):
        raise ConfigurationError(f"fence={fence.__name__} is a class; write fence={fence.__name__}(pool)")
    if not all(callable(getattr(fence, name, None)) for name in ("seal", "close", "break_")):
        # The value is not shown: a DSN has a password.
        raise ConfigurationError(
            f"fence= is {kind_of(fence)}, which is no fence; write fence=PostgresFence(pool)"
        )


def _new_inbox() -> str:
    """A readable and unique name for the channel on which this process is woken."""
    host = "".join(c for c in socket.gethostname() if c.isalnum() or c in "-._")[:60]
    return f"lockguard:inbox:{host}:{os.getpid()}:{new_grant_id()[:12]}"
