"""The guard: where the parts come together, and all that most users need."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, Unpack, overload

from lockguard import _looking
from lockguard._audience import Audience
from lockguard._binding import Binding
from lockguard._breaking import break_lock, changed_hands, checked_grant, token_of
from lockguard._clock import SYSTEM_CLOCK, Clock
from lockguard._core import Core
from lockguard._exclusive import Keeps, MaySkip, exclusive, required_key
from lockguard._guard_options import (
    GuardOptions,
    ServerOptions,
    checked_history,
    checked_name,
    checked_nodes,
    require_clock,
    require_fence,
    split_options,
)
from lockguard._history import HistoryEntry
from lockguard._hold import Hold, HoldMany
from lockguard._lease import Resource, Token, parse_resource
from lockguard._locks import Locks
from lockguard._namespace import new_inbox
from lockguard._naming import Key, ResourceKey, keyed, require_resource_key
from lockguard._nodes.choose import listed_urls, node_for_url, nodes_for_urls
from lockguard._nodes.memory import MemoryNode, MemoryStore
from lockguard._quorum import may_be_most
from lockguard._settings import NO_REDIS, Settings
from lockguard._single_node import SingleNode
from lockguard._times import checked_at_least, checked_ttl, checked_wait, checked_within, milliseconds
from lockguard.errors import ConfigurationError, QuorumUnavailable
from lockguard.events import Event
from lockguard.observe._log import LogObserver
from lockguard.ports import Broken, Done, Fence, Inspection, LockNode, Observer
from lockguard.redlock import Redlock
from lockguard.text import kind_of, remark

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["GuardOptions", "LockGuard", "guard_over"]

TTL_DEFAULT = timedelta(seconds=10)
WAIT_DEFAULT = timedelta(seconds=10)
NODE_TIMEOUT_DEFAULT = timedelta(milliseconds=200)
HISTORY_DEFAULT = 100


class LockGuard:
    """Lease locks in Redis, with fencing tokens.

    One guard serves a whole process, and may be made before any event loop runs. It serves one loop at a
    time, and any number of them in turn. It connects on first use, or with ``async with guard:``, which opens
    a closed guard again, and closes it at its end.

    Args:
        nodes: one node, or several independent ones of which a majority decides. A function that makes them
            is called for each event loop and process that the guard serves; nodes themselves serve one.
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
        resource_key: gives the one name of what several names mean, for every name that this guard is given,
            such as ``lockguard_ccxt.resource_keys(exchange)``: ``Binance:aptusdt`` and
            ``binance:APT/USDT:USDT`` are then the lock ``binance:APTUSDT``. It is a plain function, and gives
            its own names back as they are. All guards of a lock need the same one.
        name: who holds, for people, such as ``"bot-1"``: shown in front of host, process and task.

    Raises:
        ConfigurationError: a value that cannot work.
    """

    def __init__(
        self,
        nodes: Sequence[LockNode] | Callable[[], Sequence[LockNode]],
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
        resource_key: ResourceKey | None = None,
        name: str = "",
    ) -> None:
        require_fence(fence)
        require_clock(clock)
        require_resource_key(resource_key)
        # Not a method that asks: each hold comes here.
        self._name_of: Callable[[str], Resource] = (
            parse_resource if resource_key is None else partial(keyed, resource_key=resource_key)
        )
        self._ttl = checked_ttl(ttl)
        self._ttl_ms = milliseconds(self._ttl)
        self._wait = checked_wait(wait)
        emit = Audience[Event]([LogObserver()] if observers is None else observers, clock=clock).tell
        node_timeout = checked_within(node_timeout, "node_timeout")
        fence_within = checked_within(fence_within, "fence_within")
        max_hold_s = math.inf if max_hold is None else checked_ttl(max_hold, "max_hold").total_seconds()
        lock_delay_ms = milliseconds(checked_wait(lock_delay, "lock_delay"))
        history = checked_history(history)
        name = checked_name(name)

        def new_core() -> Core:
            made = nodes() if callable(nodes) else nodes
            return Core(
                _locks_over(checked_nodes(made), clock=clock, node_timeout=node_timeout),
                fence=fence,
                clock=clock,
                emit=emit,
                fence_within=fence_within,
                max_hold_s=max_hold_s,
                lock_delay_ms=lock_delay_ms,
                history=history,
                name=name,
            )

        self._binding = Binding(new_core, again=callable(nodes))
        self._stand_in: LockGuard | None = None
        """What does all work of this guard instead, see :func:`lockguard.testing.replaced`."""

    @property
    def _core(self) -> Core:
        """The parts of the event loop in which it was used last."""
        return self._binding.core

    @classmethod
    def from_url(cls, url: str, *, min_replicas: int = 0, **options: Unpack[ServerOptions]) -> LockGuard:
        """A guard over one Redis or Valkey server, or over a set-up that fails over by itself.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``, with user, password and database number as
                redis-py reads them; ``redis+sentinel://host:port,host:port/service/db``; or
                ``redis+cluster://host:port,host:port``. The last two with ``rediss+`` for TLS.
            min_replicas: how many replicas must have the lock before it counts as granted; not for a cluster.
            **options: as for the class, and three more. ``namespace``: the first part of every key,
                ``lockguard`` by default; guards of two namespaces do not meet. ``credentials``: called for
                each log-in, returns a password or ``(user, password)``; a coroutine function, a plain one,
                which runs in a thread, or a ``CredentialProvider`` of redis-py. ``address_map``: a mapping or
                a function from the ``(host, port)`` that a Sentinel or a cluster announces to the one where
                it is reached, as behind a NAT.

        Raises:
            ConfigurationError: the URL or an option cannot work. Nothing is connected yet.
        """
        reach, rest = split_options(options)

        def nodes() -> list[LockNode]:
            inbox = new_inbox(reach.namespace)
            return [node_for_url(url, inbox=inbox, reach=reach, min_replicas=min_replicas)]

        return cls(nodes, **rest)

    @classmethod
    def from_urls(cls, urls: Iterable[str], **options: Unpack[ServerOptions]) -> LockGuard:
        """A guard over several independent servers, of which a majority decides (Redlock).

        Args:
            urls: an odd number of servers, as for :meth:`from_url`.
            **options: as for :meth:`from_url`.

        Raises:
            ConfigurationError: the URLs or an option cannot work. Nothing is connected yet.
        """
        reach, rest = split_options(options)
        listed = listed_urls(urls, warn=True)
        return cls(lambda: nodes_for_urls(listed, inbox=new_inbox(reach.namespace), reach=reach), **rest)

    @classmethod
    def from_env(cls, **options: Unpack[ServerOptions]) -> LockGuard:
        """A guard over the servers that the environment or a file names, as for every command.

        The environment: ``LOCKGUARD_REDIS_URL``, in which the URLs of a quorum stand apart by blanks, and
        each option as ``LOCKGUARD_TTL=10s``, ``LOCKGUARD_WAIT=5s`` and so on. The file: ``lockguard.toml``
        with ``redis``, ``ttl``, ``wait`` and so on, or ``[tool.lockguard]`` of a ``pyproject.toml``, here or
        in the nearest directory above. The environment counts before the file.

        Args:
            **options: as for :meth:`from_url`; they count before both.

        Raises:
            ConfigurationError: no server is named, or a setting is unknown or malformed.
        """
        settings = Settings.read()
        if not settings.redis:
            raise ConfigurationError(NO_REDIS)
        return guard_over(settings, **options)

    @classmethod
    def in_memory(cls, store: MemoryStore | None = None, **options: Unpack[ServerOptions]) -> LockGuard:
        """A guard without a server, for unit tests of code that locks.

        Its locks follow the same rules, within one process; it shows nothing about failures.

        Args:
            store: shared by guards that compete for the same locks; a new one by default.
            **options: as for :meth:`from_url`.

        Raises:
            ConfigurationError: fakeredis is not installed, or an option cannot work.
        """
        reach, rest = split_options(options)
        if reach.credentials is not None or reach.address_map:
            raise ConfigurationError(
                "a guard in memory has no servers; leave out credentials= and address_map="
            )
        if not isinstance(store, MemoryStore | None):
            raise ConfigurationError(f"a guard in memory shares a MemoryStore, and not {kind_of(store)}")
        kept, namespace = MemoryStore() if store is None else store, reach.namespace
        return cls(lambda: [MemoryNode(kept, inbox=new_inbox(namespace), namespace=namespace)], **rest)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse ``copy`` and ``pickle``, as of ``multiprocessing`` without fork.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a guard cannot be copied or pickled, for its connections belong to one process; make one in each"
            " process: where a module is imported, or in the function that the process runs"
        )

    def __repr__(self) -> str:
        nodes = ", ".join(node.name for node in self._core.locks.nodes)
        fence = "fenced" if self._core.fence else "without a fence"
        return f"<LockGuard {nodes} ttl={self._ttl.total_seconds():g}s {fence}>"

    async def __aenter__(self) -> Self:
        if self._stand_in is not None:
            await self._stand_in.__aenter__()
            return self
        core = await self._binding.open()
        try:
            await core.connect()
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

    def resource(self, name: str) -> Resource:
        """The name that this guard locks for ``name``: the same, or what ``resource_key`` makes of it.

        Every method does this by itself, but :meth:`list`: its pattern is compared with the names of locks.

        Raises:
            ConfigurationError: it cannot be a name, or ``resource_key`` refused it.
        """
        named = self._name_of(name)
        return named if self._stand_in is None else self._stand_in.resource(named)

    def hold(
        self,
        resource: str,
        *,
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str = "",
        on_busy: Literal["wait", "raise"] = "wait",
        at_least: timedelta | None = None,
    ) -> Hold:
        """Hold ``resource`` for the length of an ``async with`` body.

        Args:
            resource: what to lock, such as ``"binance:APTUSDT"``.
            wait: how long to wait while it is busy; the guard's by default.
            ttl: how long the lease lasts without renewal; the guard's by default.
            operation: what it is for; shown to callers that find it busy and by ``redis-cli``.
            on_busy: wait in line, or raise at once.
            at_least: how long the resource stays closed from its grant on, by the server's clock, however the
                body ends and also if its process dies; at most seven days. So any two bodies begin at least
                that far apart: once per period, or once per candle. A break opens it.

        Returns:
            An async context manager that gives the :class:`~lockguard._lease.Lease`. Entering raises
            ``ResourceBusy``, ``QuorumUnavailable``, ``FenceUnavailable`` or ``SelfDeadlock``; leaving raises
            ``LeaseLost`` if the lease ended under the body.

        Raises:
            ConfigurationError: a value that cannot work.
        """
        if on_busy not in ("wait", "raise"):
            raise ConfigurationError(f"on_busy={on_busy!r} is not known here; write 'wait' or 'raise'")
        if (by := self._stand_in) is not None:
            name = self._name_of(resource)
            return by.hold(name, wait=wait, ttl=ttl, operation=operation, on_busy=on_busy, at_least=at_least)
        return Hold(
            self._binding,
            self._name_of(resource),
            self._ttl_ms if ttl is None else milliseconds(checked_ttl(ttl)),
            self._wait if wait is None else checked_wait(wait),
            remark(operation, "operation"),
            on_busy,
            0 if at_least is None else checked_at_least(at_least),
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
        names = [self.resource(resource) for resource in resources]
        if not names:
            raise ConfigurationError("hold_many needs a list of resources; got an empty one")

        def hold(resource: str, left: timedelta) -> Hold:
            return self.hold(resource, wait=left, ttl=ttl, operation=operation, on_busy=on_busy)

        if self._stand_in is not None:
            return self._stand_in.hold_many(names, wait=wait, ttl=ttl, operation=operation, on_busy=on_busy)
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
        at_least: timedelta | None = ...,
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
        at_least: timedelta | None = ...,
    ) -> MaySkip: ...
    def exclusive(
        self,
        key: Key | None = None,
        *,
        on_busy: Literal["wait", "raise", "skip"] = "wait",
        wait: timedelta | None = None,
        ttl: timedelta | None = None,
        operation: str | None = None,
        at_least: timedelta | None = None,
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
            at_least: as for :meth:`hold`.

        Raises:
            ConfigurationError: the key does not fit the function, or a value cannot work. Calling the
                function raises it for an argument that has no single text.
        """
        return exclusive(
            required_key(key),
            guard=lambda *_: self,
            on_busy=on_busy,
            wait=wait,
            ttl=ttl,
            operation=operation,
            at_least=at_least,
        )

    async def inspect(self, resource: str) -> Inspection:
        """Who holds ``resource``, since when, with which token, and who waits.

        With several nodes it counts as held while a majority of them holds it, or may: a node that does not
        answer counts for the grant that the others show. A grant that fewer show is an acquire or a release
        in flight.

        Raises:
            QuorumUnavailable: too few nodes answered to say.
        """
        core = await self._connected()
        return await _looking.inspect(core.locks, self.resource(resource))

    async def list(self, pattern: str = "*") -> AsyncIterator[Inspection]:
        """Every resource that is held, waited for or kept closed by a lock delay, in no order.

        Servers are read by SCAN, in steps that keep none of them busy for longer than a millisecond or so: a
        resource that is taken or freed meanwhile may or may not be among them. Each is judged as by
        :meth:`inspect`. In a cluster, a resource whose slot moves meanwhile may be missing.

        Args:
            pattern: what the name matches, as in a shell: ``*``, ``?``, ``[abc]``, ``[!abc]``; ``[*]`` is a
                star.

        Raises:
            ConfigurationError: the pattern is not text or empty, or a node cannot list its locks.
            QuorumUnavailable: too few nodes answered to say; or, after all others were told, a resource could
                not be read, such as a key that something else wrote.
        """
        pattern = _looking.checked_pattern(pattern)
        _looking.readable((self._stand_in or self)._core.locks.nodes)
        core = await self._connected()
        async for found in _looking.used(core.locks, pattern):
            yield found

    async def history(self, resource: str, *, limit: int = 100) -> tuple[HistoryEntry, ...]:
        """What happened to the lock of ``resource``, newest first.

        Redis keeps it for seven days, and as many grants as the guards say with ``history=``. The lines of
        several nodes are put together: a grant that too few of them gave is told as well, with the release
        that took it back.

        Args:
            resource: whose history.
            limit: how many entries at most, 1 to 22,000.

        Raises:
            ConfigurationError: a value cannot work, or a node cannot tell a history.
            QuorumUnavailable: too few nodes answered.
        """
        name, limit = self.resource(resource), _looking.checked_limit(limit)
        core = await self._connected()
        return await _looking.history_of(core.locks, name, limit)

    async def break_(self, resource: str, *, reason: str, grant: str | None = None) -> Broken:
        """End a holder's lease by force: its writes are refused from now on, then the lock is freed.

        A body of this process that holds it is cut at once, with ``LossReason.BROKEN``. A body of another
        process learns of it within a second, or when its next write is refused. The first waiter is woken;
        with ``lock_delay`` the resource first stays closed for that time, because what the holder had sent
        may still be in flight.

        With ``grant`` a lock that has changed hands since is left as it is. Each server, and the fence,
        compares and breaks in one step.

        A break that has begun completes even if the caller is cancelled: half a break would free the lock
        while its holder still trusts its lease.

        Args:
            resource: what to free.
            reason: why; kept in the lock's history.
            grant: the grant that is to be ended, as :meth:`inspect` shows it; empty: the lock was free, and
                is broken only in the fence if it still is; ``None``: whatever grant holds it.

        Returns:
            The grant that was thrown out; an empty one if the lock was free.

        Raises:
            ChangedHands: another grant than ``grant`` holds the lock by now.
            FenceUnavailable: the fence could not be raised. The lock was left as it was, or it is free and a
                holder whose token is ahead of the fence's clock may not be shut out: break it again.
            QuorumUnavailable: too few nodes could be asked. The fence, if there is one, is broken all the
                same, and the message says so: what the holder writes is refused.
            ConfigurationError: ``grant`` is no grant's id, or the fence cannot compare grants.
        """
        core = await self._connected()
        name, reason, grant = self.resource(resource), remark(reason, "reason"), checked_grant(grant)
        token = Token(0)
        if grant is not None:
            # Its token tells the fence an older grant from a newer one; the break's own comparison decides.
            with suppress(QuorumUnavailable):
                token = token_of(await self.inspect(resource), grant)
        breaking = core.run_to_end(break_lock(core, name, reason, grant, token), name="lockguard-break")
        await asyncio.wait([breaking])
        return breaking.result()

    async def request_handover(self, resource: str, *, reason: str, grant: str | None = None) -> bool:
        """Request a hand-over: the holder's ``lease.wanted`` turns true within a second.

        Args:
            resource: what is wanted.
            reason: why; the holder sees it, and the lock's history keeps it.
            grant: the grant that is to be asked, as :meth:`inspect` shows it; each server compares and asks
                in one step. ``None``: whatever grant holds it.

        Returns:
            Whether the resource is held.

        Raises:
            ChangedHands: another grant than ``grant`` holds the lock by now, and was not asked.
            QuorumUnavailable: no node could be asked.
            ConfigurationError: ``grant`` is no grant's id.
        """
        core = await self._connected()
        name, reason = self.resource(resource), remark(reason, "reason")
        # A node of the user's own may not know the argument.
        expected = {} if (only := checked_grant(grant)) is None else {"grant": only}
        votes = await core.locks.ask_all(lambda node: node.request_handover(name, reason=reason, **expected))
        done = [vote for vote in votes if isinstance(vote, Done)]
        if not done:
            raise _looking.unasked(core.locks, resource, votes)
        held = may_be_most(sum(vote.found for vote in done), answers=len(done), nodes=len(votes))
        if only is not None and not held and (now := await self.inspect(resource)).held and now.grant != only:
            raise changed_hands(name, now.grant, now.holder, what="asked")
        return held

    async def aclose(self) -> None:
        """End every lease of this guard as lost, send what is queued, close the connections.

        A close that has begun completes, even if its caller is cancelled or is a body that it cuts.
        """
        if self._stand_in is not None:
            await self._stand_in.aclose()
        else:
            await self._binding.aclose()

    async def _connected(self) -> Core:
        if self._stand_in is not None:
            return await self._stand_in._connected()
        core, _ = self._binding.enter()
        await core.connect()
        return core


def guard_over(settings: Settings, **options: Unpack[ServerOptions]) -> LockGuard:
    """A guard over the servers of settings that were read before, see :meth:`LockGuard.from_env`.

    Args:
        settings: name at least one server.
        **options: as for the class; they count before those of the settings.

    Raises:
        ConfigurationError: a URL or an option cannot work.
    """
    reach = {"namespace": settings.namespace, "address_map": settings.address_map or None}
    merged: ServerOptions = {**reach, **settings.options, **options}  # type: ignore[typeddict-item]
    first, *others = settings.redis
    if not others:
        return LockGuard.from_url(first, min_replicas=settings.min_replicas, **merged)
    if settings.min_replicas:
        raise ConfigurationError("min_replicas is for one server; leave it out where several decide")
    return LockGuard.from_urls(settings.redis, **merged)


def _locks_over(nodes: Sequence[LockNode], *, clock: Clock, node_timeout: timedelta) -> Locks:
    if len(nodes) == 1:
        return SingleNode(nodes[0], clock=clock)
    return Redlock(nodes, clock=clock, node_timeout_s=node_timeout.total_seconds())
