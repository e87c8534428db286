"""First come, first served: waiting for a busy resource.

The queue is in Redis: a failed acquire leaves the caller's place there, and the holder's release wakes
exactly the first waiter, by a message on its process's channel, and reserves the lock for it for a short
while. Redis numbers the places (tickets) with its own clock, and a caller sends its ticket each time it asks,
so it keeps its place through a lost reservation, a reconnect and a wiped server.

A message can be lost, and a key can vanish without a release. So of all waiters of this process for one
resource, the first also asks again by itself: when the holder's lease would end, and at least every second
(``Locks.ask_again_s``). That is also the process's sign of life. The others sleep until they are woken by
name or become the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import cached_property

from lockguard._clock import Clock, Timers, timers_of
from lockguard._lease import GrantId, Resource
from lockguard._locks import Acquisition, Contended, Locks, NoQuorum, Won
from lockguard.errors import ConfigurationError, QueueFull, QuorumUnavailable, ResourceBusy
from lockguard.events import Event, Waited
from lockguard.ports import AcquireRequest, Busy

__all__ = ["Queue"]

REST_S = 30.0
"""Seconds that the others rest at most, in case everything that should wake them is lost."""

_EARLY_MAX = 256

_CONNECT_MIN_S = 0.5
"""Seconds that connecting may take, however short a caller's patience is: the first caller has to connect."""

_RETRY_FIRST_S = 0.02
_RETRY_MAX_S = 0.5


class _Place:
    """One caller's place in this process's line for one resource."""

    __slots__ = ("_signal", "grant", "strangers", "woken")

    def __init__(self, grant: GrantId) -> None:
        self.grant = grant
        self.woken = False
        self.strangers = True
        """Whether a waiter of another process may have an earlier place."""
        self._signal = asyncio.Event()

    def wake(self) -> None:
        """Have this caller ask now."""
        self.woken = True
        self._signal.set()

    def nudge(self) -> None:
        """Have this caller work out anew how long to rest, without asking."""
        self._signal.set()

    async def rest(self, seconds: float, timers: Timers) -> bool:
        """Rest until woken, nudged or ``seconds`` have passed; returns whether to ask now."""
        if not self._signal.is_set():
            over = timers.call_later(seconds, self.wake)
            try:
                await self._signal.wait()
            finally:
                over.cancel()
        self._signal.clear()
        # Taken before asking: a wake-up that comes while the request is in flight is kept for the next rest.
        ask, self.woken = self.woken, False
        return ask


class Queue:
    """The waiters of this process.

    Args:
        locks: what they wait for.
        clock: measures their patience.
        emit: told of callers that wait, and of those that gave up.
    """

    def __init__(self, locks: Locks, *, clock: Clock, emit: Callable[[Event], None]) -> None:
        self._locks = locks
        self._emit = emit
        self._clock = clock
        self._timers = timers_of(clock)
        self.lines: dict[Resource, dict[GrantId, _Place]] = {}
        """The waiters for each resource, in order; to be read only."""
        self._places: dict[GrantId, _Place] = {}
        self._closed = False
        self._early: deque[GrantId] = deque(maxlen=_EARLY_MAX)

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def _home(self) -> asyncio.AbstractEventLoop:
        """The guard's event loop."""
        return asyncio.get_running_loop()

    def wake(self, grant: GrantId | None) -> None:
        """Wake the waiter whose turn it is, as a node says; ``None``: all of them, to ask again."""
        if grant is None:
            for place in self._places.values():
                place.wake()
        elif grant in self._places:
            self._places[grant].wake()
        else:
            # The wake-up may come right behind the answer that gave the place, before the caller reads it.
            self._early.append(grant)

    def follow(self, resource: Resource) -> GrantId | None:
        """Have the next waiter of this process ask right behind a release of ``resource`` that was just sent.

        One server runs both in order, so by then the lock is reserved for that waiter. Waiting for the
        message that says so would be one more trip. If another waiter turns out to be ahead, it waits again.

        Returns:
            The waiter's grant; ``None`` if this process has none, or one of another process may be ahead.
        """
        if (line := self.lines.get(resource)) is None:
            return None
        first = next(iter(line.values()))
        if first.strangers:
            return None
        first.wake()
        return first.grant

    def close(self) -> None:
        """Wake all waiters to give up; their places in Redis are released now."""
        self._closed = True
        for resource, line in self.lines.items():
            for place in line.values():
                self._locks.release(resource, place.grant)
                place.wake()

    async def acquire(self, request: AcquireRequest, *, give_up_at: float) -> Won:
        """Get the lock, waiting until ``give_up_at`` on the clock, in seconds, if the request says so.

        Any end but success leaves nothing of the request on any node (S8).

        Raises:
            ResourceBusy: the resource is still busy.
            QueueFull: the resource is busy and its queue is full.
            QuorumUnavailable: too few nodes could be asked in that time.
            ConfigurationError: the guard was closed meanwhile.
        """
        if not self._locks.ready:
            await self._connect(give_up_at)
        home = self._home
        try:
            # A hung server must not keep a caller that waits in line beyond its patience.
            ask_until = give_up_at if request.queue else math.inf
            outcome = await self._locks.acquire(request, give_up_at=ask_until)
            if isinstance(outcome, Won):
                return outcome
            gives_up = self._hopeless(outcome, request)
            self._emit(_waited(outcome, request, gave_up=gives_up, cause=self._cause(outcome)))
            if gives_up:
                raise _refusal(outcome, request)
            return await self._wait(request, outcome, give_up_at)
        except ResourceBusy:
            if request.queue:
                self._locks.release(request.resource, request.grant)
            raise
        except BaseException:
            if asyncio._get_running_loop() is home:
                self._locks.release(request.resource, request.grant)
            else:  # the loop was stopped meanwhile, and this coroutine is being collected
                with contextlib.suppress(RuntimeError):  # the loop is closed: nothing can be sent any more
                    home.call_soon_threadsafe(self._locks.release, request.resource, request.grant)
            raise

    async def _wait(self, request: AcquireRequest, outcome: Contended | NoQuorum, give_up_at: float) -> Won:
        retry_s, unreachable = _RETRY_FIRST_S, bool(self._cause(outcome))
        with self._place(request) as place:
            self._look_ahead(request, outcome, place)
            while True:
                if isinstance(outcome, Contended):
                    retry_s = _RETRY_FIRST_S
                    request = self._note_place(request, outcome.busy)
                else:
                    retry_s = min(retry_s * 2, _RETRY_MAX_S)
                left_s = give_up_at - self._clock.now()
                if left_s <= 0:
                    self._emit(_waited(outcome, request, gave_up=True))
                    raise _refusal(outcome, request)
                rest_s = min(left_s, self._rest_s(request, outcome, retry_s))
                if not await place.rest(rest_s, self._timers or self._home):
                    continue
                if self._closed:
                    raise ConfigurationError(f"the guard was closed while it waited for {request.resource!r}")
                if isinstance(outcome, NoQuorum):
                    await self._connect(give_up_at)
                match await self._locks.acquire(request, give_up_at=give_up_at):
                    case Won() as won:
                        return won
                    case again:
                        cause = self._cause(again)
                        if cause and not unreachable:  # or nobody would hear of it until the wait is over
                            self._emit(_waited(again, request, gave_up=False, cause=cause))
                        unreachable = bool(cause) or (unreachable and isinstance(again, NoQuorum))
                        outcome = again
                        self._look_ahead(request, outcome, place)

    async def _connect(self, give_up_at: float) -> None:
        """Connect, if that is possible in time. The attempt goes on for the next caller."""
        left_s = give_up_at - self._clock.now()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(left_s, _CONNECT_MIN_S)):
                await self._locks.connect()

    def _cause(self, outcome: Contended | NoQuorum) -> str:
        """What keeps the servers from deciding, if they cannot be reached; a split vote is no such thing."""
        return _told(outcome) if isinstance(outcome, NoQuorum) and not self._locks.ready else ""

    def _rest_s(self, request: AcquireRequest, outcome: Contended | NoQuorum, retry_s: float) -> float:
        if isinstance(outcome, NoQuorum):
            # Jitter breaks split votes: callers that asked together do not ask together again.
            return retry_s * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
        if not self._is_first(request):
            return REST_S
        return min(self._locks.ask_again_s(), outcome.busy.retry_after_ms / 1000 + 0.001)

    def _hopeless(self, outcome: Contended | NoQuorum, request: AcquireRequest) -> bool:
        return not request.queue or (isinstance(outcome, Contended) and outcome.busy.queue_full)

    def _look_ahead(self, request: AcquireRequest, outcome: Acquisition, place: _Place) -> None:
        ahead = outcome.busy.ahead if isinstance(outcome, Contended) else None
        place.strangers = ahead is None or ahead > list(self.lines[request.resource]).index(request.grant)

    def _note_place(self, request: AcquireRequest, busy: Busy) -> AcquireRequest:
        if busy.requeued:
            # Our place had vanished, so those of this process's other waiters have too: let them queue again.
            for place in self.lines[request.resource].values():
                if place.grant != request.grant:
                    place.wake()
        if busy.ticket and busy.ticket != request.ticket:
            return replace(request, ticket=busy.ticket)
        return request

    @contextlib.contextmanager
    def _place(self, request: AcquireRequest) -> Iterator[_Place]:
        place = _Place(request.grant)
        line = self.lines.setdefault(request.resource, {})
        line[request.grant] = self._places[request.grant] = place
        if request.grant in self._early:
            place.wake()
        try:
            yield place
        finally:
            was_first = self._is_first(request)
            del line[request.grant], self._places[request.grant]
            if not line:
                del self.lines[request.resource]
            elif was_first and asyncio._get_running_loop() is self._home:
                next(iter(line.values())).nudge()

    def _is_first(self, request: AcquireRequest) -> bool:
        return next(iter(self.lines[request.resource])) == request.grant


def _refusal(outcome: Contended | NoQuorum, request: AcquireRequest) -> ResourceBusy | QuorumUnavailable:
    if isinstance(outcome, NoQuorum):
        return QuorumUnavailable(
            f"cannot lock {request.resource!r}: {_told(outcome)}",
            resource=request.resource,
            votes=outcome.votes,
        )
    return _busy_error(outcome.busy, request)


def _told(outcome: NoQuorum) -> str:
    return "; ".join(vote if node in vote else f"{node}: {vote}" for node, vote in outcome.votes.items())


def _waited(
    outcome: Contended | NoQuorum, request: AcquireRequest, *, gave_up: bool, cause: str = ""
) -> Waited:
    if isinstance(outcome, Contended):
        busy = outcome.busy
        return Waited(request.resource, busy.holder, busy.operation, gave_up, request.grant, busy.ahead)
    return Waited(request.resource, "", "", gave_up, request.grant, cause=cause)


def _busy_error(busy: Busy, request: AcquireRequest) -> ResourceBusy:
    age = timedelta(milliseconds=busy.age_ms)
    who = "not free yet: reserved for a waiter, or kept closed by a lock delay or at_least"
    if busy.holder:
        what = f"{busy.operation or 'no operation given'}, token {busy.token}"
        who = f"held by {busy.holder} ({what}) for {age.total_seconds():.3f} s"
    kind, why = ResourceBusy, ""
    if busy.queue_full:
        kind, why = QueueFull, " and its queue is full"
    return kind(
        f"{request.resource!r} is {who}{why}",
        resource=request.resource,
        holder=busy.holder or None,
        operation=busy.operation or None,
        token=busy.token or None,
        age=age,
        retry_after=timedelta(milliseconds=busy.retry_after_ms),
    )
