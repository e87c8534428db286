"""Preparing a request while the intent that must precede it is still being committed.

ccxt takes about as long to prepare an order (steps, names, signature) as Postgres takes to commit the intent
to place it. So the call is started early in its own task and runs up to the last of ccxt's functions before
the socket. There its request waits for a signal, the word, without which it is never sent. All checks of the
gate come after the word: the lease is checked when the request is sent, as always.

This is only for calls that certainly end in that function. A subclass of a ccxt exchange, or one whose calls
were replaced, may send by other ways (a paper account fills orders by itself): nothing is begun early there.
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

__all__ = ["Prepared", "sends_only_by_fetch", "wait_for_nothing", "word"]

T = TypeVar("T")

_FRESH_S = 0.5
"""Seconds for which a prepared request may be sent: its timestamp is that of its preparation."""
_TURNS = 2
"""Turns of the event loop from the word until a request is written: one for its head, one for its body."""
_CALLS = re.compile(
    "create_order|create_order_request|fetch_positions|fetch_positions_risk|fetch2|request|sign|throttle"
    "|[a-z]*[pP]rivatePost(Algo)?Order|[a-z]*[pP]rivate(V[23])?GetPositionRisk"
    "|privatePostV5OrderCreate|privateGetV5PositionList"
)
"""The calls on the way to ``fetch``, including those generated for each of a venue's endpoints."""


class Prepared(Generic[T]):
    """A call that has begun, and whose requests wait for :meth:`send`.

    Args:
        call: makes its requests through a guarded exchange.
        name: the name of its task.
        after_s: seconds until it begins; it begins at once if it is sent before.
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
        _waits_for.set(self._word)  # visible to this task and to those that it starts
        return await call()

    @property
    def sent(self) -> bool:
        """Whether the word was given. Whether a request was sent is only known when the call ends."""
        return self._word.done() and not self._word.cancelled()

    async def send(self) -> None:
        """Give the word, unless the request is too old by now, and let it be sent before anything else."""
        if self._word.done() or SYSTEM_CLOCK.now() - self._begun_at > _FRESH_S:
            return
        self._word.set_result(None)
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def outcome(self) -> T:
        """Wait for the call, once the word was given; returns or raises what the call does."""
        return await self._task

    async def drop(self) -> None:
        """Cancel the call. Without the word nothing was sent; with it, a request may be in flight."""
        if self._task.cancel():
            await asyncio.gather(self._task, return_exceptions=True)
        elif not self._task.cancelled():
            self._task.exception()  # retrieved, or asyncio would log it


async def word() -> None:
    """Wait until this task may send a request; returns at once unless its call was begun early."""
    waits_for = _waits_for.get()
    if waits_for is not None:
        await waits_for  # a call that was dropped ends here


def wait_for_nothing() -> None:
    """Have requests of the running context leave at once, also within a call that was begun early."""
    _waits_for.set(None)


def sends_only_by_fetch(exchange: Any) -> bool:
    """Whether calls that are begun early go through ``fetch``, judged by the exchange's class and object."""
    kind: type = type(exchange)
    names, look, shipped = _shipped(kind)
    return shipped is not None and names.isdisjoint(vars(exchange)) and look(kind) == shipped


@cache
def _shipped(kind: type) -> tuple[frozenset[str], Callable[[type], object], object | None]:
    """The calls of a class: their names, a getter of them, and what it returns if all are ccxt's own."""
    names = frozenset(filter(_CALLS.fullmatch, dir(kind)))
    look = attrgetter(*names)
    found = look(kind)
    own = kind.__module__.startswith("ccxt.") and all(map(_is_ccxts, found))
    return names, look, found if own else None


def _is_ccxts(function: Any) -> bool:
    """Whether a function is ccxt's own, by its globals: a wrapper may copy the name and module it wraps."""
    return str(getattr(function, "__globals__", {}).get("__name__", "")).startswith("ccxt.")


_waits_for: ContextVar[asyncio.Future[None] | None] = ContextVar("lockguard_ccxt_waits_for", default=None)
