"""The loops of a bot: signals, passes, recovery; and an end in bounded time.

What is begun is finished before the bot ends, unless the time for it is up. Then it is cancelled, which gives
its leases back, and what is half done is recovered as after any other death, by this bot or the next one.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError, LockguardError
from lockguard_asyncpg.errors import DATABASE_ERRORS
from lockguard_ccxt.classify import ccxt_errors
from lockguard_positions.bot.book import Decision, Outcome
from lockguard_positions.bot.signals import BadSignal
from lockguard_positions.reconcile import SyncAction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import Any

    from lockguard_positions.bot.signals import Signal
    from lockguard_positions.bot.sources import Delivery, SignalSource
    from lockguard_positions.bot.trader import Trader
    from lockguard_positions.manager import AtomicPositionManager
    from lockguard_positions.reconcile import SyncReport

__all__ = ["Rhythm", "Worker"]

_LOG = logging.getLogger("lockguard.bot")
_PAUSE_FIRST_S = 0.2
_PAUSE_S_MAX = 15.0
_PAUSE_GROWS = 1.3
"""With these, an undecided signal is tried for about a minute."""
_LAST_RECOVERY_S = 5.0
_LEVELS = {Outcome.REFUSED: logging.WARNING, Outcome.UNDECIDED: logging.ERROR}
_QUIET = frozenset({SyncAction.IN_STEP, SyncAction.SETTLING})


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When a bot does what.

    Attributes:
        sync_every: between two passes over all symbols.
        recover_every: between two looks for what dead bots left, which read the table only.
        stop_within: how long running opens may take when the bot is asked to stop.
        at_once: how many signals are carried out at the same time.
        once: end when the signals are at their end.
    """

    sync_every: timedelta
    recover_every: timedelta
    stop_within: timedelta
    at_once: int
    once: bool = False

    @property
    def stopped_after(self) -> timedelta:
        """How long stopping takes at most, the last recovery included."""
        return self.stop_within + timedelta(seconds=_LAST_RECOVERY_S)


class Worker:
    """Runs one bot.

    Args:
        trader: carries signals out.
        manager: makes the passes.
        exchange: the venue's name.
        sources: where signals come from; none for a bot that only keeps positions in step.
        rhythm: when it does what.
        stopping: set when it is asked to stop.
    """

    def __init__(
        self,
        trader: Trader,
        manager: AtomicPositionManager,
        exchange: str,
        sources: Sequence[SignalSource],
        rhythm: Rhythm,
        stopping: asyncio.Event,
    ) -> None:
        self._trader = trader
        self._manager = manager
        self._exchange = exchange
        self._sources = sources
        self._rhythm = rhythm
        self._stopping = stopping
        self._hands = asyncio.Semaphore(rhythm.at_once)
        self._lines: dict[str, asyncio.Lock] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._left = False

    async def run(self) -> bool:
        """Work until asked to stop, or, with ``once``, until all signals are decided.

        Returns:
            Whether nothing was left undone that was begun, nor a signal undecided.

        Raises:
            ConfigurationError: something is set up in a way that cannot work.
        """
        _LOG.info("running on %s, sources of signals: %d", self._exchange, len(self._sources))
        async with asyncio.TaskGroup() as group:
            self._begin(group, self._pass("recovery", self._manager.recover), "recovery")
            taking = [group.create_task(self._take(source, group)) for source in self._sources]
            if self._rhythm.once:
                group.create_task(self._stop_after(taking))
            else:
                sync, recover = self._manager.sync_exchange_positions, self._manager.recover
                self._begin(group, self._repeat("sync", sync, self._rhythm.sync_every), "sync")
                self._begin(group, self._repeat("recovery", recover, self._rhythm.recover_every), "recovery")
            await self._stopping.wait()
            if taking:
                await asyncio.wait(taking)
            await self._finish()
        return not self._left

    # --- signals ---

    async def _take(self, source: SignalSource, group: asyncio.TaskGroup) -> None:
        """One delivery after the other, as there is a hand free."""
        while not self._stopping.is_set():
            await self._hands.acquire()
            delivery = await source.next(self._stopping)
            if delivery is None or self._stopping.is_set():
                self._hands.release()
                if delivery is not None:
                    await delivery.settle(False)  # noqa: FBT003 - as Delivery has it
                return
            task = self._begin(group, self._serve(delivery), delivery.where)
            task.add_done_callback(lambda _: self._hands.release())

    async def _serve(self, delivery: Delivery) -> None:
        decided = False
        try:
            if isinstance(delivery.signal, BadSignal):
                _tell_refused(str(delivery.signal), delivery.where)
            else:
                decided = await self._carry_out(delivery.signal, delivery.where)
                self._left |= self._rhythm.once and not decided
                return
            decided = True
        finally:
            await delivery.settle(decided)

    async def _carry_out(self, signal: Signal, where: str) -> bool:
        """Try until the signal is decided, or for long enough; tells which."""
        try:
            # In the order in which they came: a close must not overtake its open.
            line = self._lines.setdefault(self._trader.resource(signal), asyncio.Lock())
        except BadSignal as exc:
            _tell_refused(f"{where}: signal {signal.id}: {exc}", where, signal)
            return True
        async with line:
            decision = await self._try(signal)
            pause_s = _PAUSE_FIRST_S
            while not decision.final and pause_s < _PAUSE_S_MAX:
                _LOG.info("%s: signal %s: not yet: %s", where, signal.id, decision.details)
                if await self._stops_within(pause_s):
                    break
                pause_s *= _PAUSE_GROWS
                decision = await self._try(signal)
        _tell(decision, signal, where)
        return decision.final

    async def _try(self, signal: Signal) -> Decision:
        try:
            return await self._trader.carry_out(signal)
        except ConfigurationError:
            raise  # the set-up's fault, not the signal's
        except _no_answer() as exc:
            # Also a lost lease: the flow has stopped, and what it began is the next holder's, perhaps ours.
            return Decision(Outcome.UNDECIDED, _line_of(exc))

    # --- passes ---

    async def _repeat(
        self, name: str, work: Callable[[str], Awaitable[SyncReport]], every: timedelta
    ) -> None:
        while not await self._stops_within(every.total_seconds()):
            await self._pass(name, work)

    async def _pass(self, name: str, work: Callable[[str], Awaitable[SyncReport]]) -> None:
        """One pass. It skips symbols that somebody holds; what cannot be done now is left to the next one."""
        try:
            report = await work(self._exchange)
        except ConfigurationError:
            raise
        except _no_answer() as exc:
            _LOG.warning("%s: not finished: %s", name, _line_of(exc))
            return
        for outcome in report.outcomes:
            if outcome.action not in _QUIET:
                level = logging.DEBUG if outcome.action is SyncAction.BUSY else logging.INFO
                told = f"{outcome.action.value} {outcome.details}".strip()
                _LOG.log(level, "%s: %s:%s: %s", name, report.exchange, outcome.symbol, told)

    # --- the end ---

    async def _stop_after(self, taking: Sequence[asyncio.Task[None]]) -> None:
        """Once all is read and decided, look at everything a last time, and stop."""
        if taking:
            await asyncio.wait(taking)
        while self._running and not self._stopping.is_set():
            await asyncio.wait(set(self._running))
        if not self._stopping.is_set():
            await self._pass("sync", self._manager.sync_exchange_positions)
        self._stopping.set()

    async def _finish(self) -> None:
        """Wait for what is running; cancel what takes too long, and recover what that leaves."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=self._rhythm.stop_within.total_seconds())
        if not self._running:
            return
        late = set(self._running)
        _LOG.warning("cutting off what has not ended: %s", ", ".join(sorted(t.get_name() for t in late)))
        for task in late:
            task.cancel()
        await asyncio.wait(late)
        try:
            async with asyncio.timeout(_LAST_RECOVERY_S):
                report = await self._manager.recover(self._exchange)
            self._left |= not report.settled
        except _no_answer() as exc:
            _LOG.error("left to the next bot: %s", _line_of(exc))
            self._left = True

    def _begin(
        self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        """Start something that is to be finished before the end."""
        task = group.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _stops_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()


def _tell(decision: Decision, signal: Signal, where: str) -> None:
    _LOG.log(
        _LEVELS.get(decision.outcome, logging.INFO),
        "%s: signal %s: %s %s%s%s: %s",
        where,
        signal.id,
        signal.symbol,
        decision.outcome.value,
        "" if decision.position_id is None else f" position {decision.position_id}",
        " (known)" if decision.known else "",
        decision.details,
        extra=_facts(
            where, signal, outcome=decision.outcome.value, position=decision.position_id, known=decision.known
        ),
    )


def _tell_refused(message: str, where: str, signal: Signal | None = None) -> None:
    _LOG.warning("%s", message, extra=_facts(where, signal, outcome=Outcome.REFUSED.value))


def _facts(where: str, signal: Signal | None, **more: object) -> dict[str, object]:
    """What a log line says to programs; see ``logs``."""
    about = {} if signal is None else {"signal": signal.id, "symbol": signal.symbol}
    return {"facts": {"where": where, **about, **more}}


def _line_of(exc: BaseException) -> str:
    return str(exc).partition("\n")[0] or type(exc).__name__


def _no_answer() -> tuple[type[BaseException], ...]:
    """Somebody did not answer, or the lease has ended: nothing of it is the signal's fault."""
    exchange: type[BaseException] = ccxt_errors().BaseError
    return (LockguardError, exchange, *DATABASE_ERRORS)
