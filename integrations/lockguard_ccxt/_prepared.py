"""Making a request while what must be true before it is still being written.

What ccxt does to make an order ready (steps, names, signature) takes about as long as Postgres takes to
commit the intent to place it. So the call is begun at once and goes on its own, up to the last of ccxt's
functions before the socket. There its request waits for a word, and without that word it never leaves. All
checks of the gate come after the word: the lease is looked at when the request leaves, as always.

This is only for calls that certainly end in that function. A subclass of a ccxt exchange, or one whose calls
were replaced, may send by other ways (a paper account fills orders by itself): there nothing is begun early.
"""

from __future__ import annotations

import asyncio
import re
from contextvars import ContextVar
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lockguard._clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Prepared", "sends_only_by_fetch", "word"]

T = TypeVar("T")

_FRESH_S = 0.5
"""For how long a request is as good as a new one: it has the time of its making in it."""
_TURNS = 2
"""Of the event loop, for a request to reach the socket after the word: one for it, one for its body."""
_CALLS = re.compile(
    "create_order|create_order_request|fetch_positions|fetch_positions_risk|fetch2|request|sign|throttle"
    "|[a-z]*[pP]rivatePost(Algo)?Order|[a-z]*[pP]rivate(V[23])?GetPositionRisk"
    "|privatePostV5OrderCreate|privateGetV5PositionList"
)
"""What goes before ``fetch``, up to the calls that are generated for each of a venue's endpoints."""


class Prepared(Generic[T]):
    """A call that has begun, and whose requests wait for :meth:`send`.

    Args:
        call: makes its requests by a guarded exchange.
        name: of its task.
        after_s: when it begins; at once if it is to be sent before that.
    """

    def __init__(
        self, call: Callable[[], Coroutine[Any, Any, T]], *, name: str, after_s: float = 0.0
    ) -> None:
        self._begun_at = SYSTEM_CLOCK.now()
        self._word: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(call, after_s), name=name)

    async def _run(self, call: Callable[[], Coroutine[Any, Any, T]], after_s: float) -> T:
        if after_s:
            await asyncio.wait([self._word], timeout=after_s)
        _waits_for.set(self._word)  # seen by this task, and by those that it starts
        return await call()

    @property
    def sent(self) -> bool:
        """Whether the word was given. Whether anything has left is known when the call ends."""
        return self._word.done() and not self._word.cancelled()

    async def send(self) -> None:
        """Give the word, unless it comes too late; and let the request leave before anything else is done."""
        if self._word.done() or SYSTEM_CLOCK.now() - self._begun_at > _FRESH_S:
            return
        self._word.set_result(None)
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def outcome(self) -> T:
        """What the call gives, once the word was given; raises what it raises."""
        return await self._task

    async def drop(self) -> None:
        """End the call. Without a word given nothing has left; with one, a request may be on its way."""
        if self._task.cancel():
            await asyncio.gather(self._task, return_exceptions=True)
        elif not self._task.cancelled():
            self._task.exception()  # seen, or asyncio would log it


async def word() -> None:
    """Wait until a request of this task may leave: at once, unless its call was begun early."""
    waits_for = _waits_for.get()
    if waits_for is not None:
        await waits_for  # a call that was dropped ends here


def sends_only_by_fetch(exchange: Any) -> bool:
    """Whether what is begun early goes through ``fetch``, as far as class and object tell."""
    kind: type = type(exchange)
    names, look, shipped = _shipped(kind)
    return shipped is not None and names.isdisjoint(vars(exchange)) and look(kind) == shipped


@cache
def _shipped(kind: type) -> tuple[frozenset[str], Callable[[type], object], object | None]:
    """The calls of a class: their names, what looks them up, and what is found there if that is ccxt's."""
    names = frozenset(filter(_CALLS.fullmatch, dir(kind)))
    look = attrgetter(*names)
    found = look(kind)
    own = kind.__module__.startswith("ccxt.") and all(map(_is_ccxts, found))
    return names, look, found if own else None


def _is_ccxts(function: Any) -> bool:
    """By where it was written: a wrapper may have the name and the module of what it wraps."""
    return str(getattr(function, "__globals__", {}).get("__name__", "")).startswith("ccxt.")


_waits_for: ContextVar[asyncio.Future[None] | None] = ContextVar("lockguard_ccxt_waits_for", default=None)
