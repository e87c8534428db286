"""The loops of a bot for signals, passes and recovery, and its shutdown in bounded time.

On shutdown the bot finishes the work in flight. Work still running at the deadline is cancelled, which
releases its leases; this bot or the next one then recovers it as it would after a crash.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from lockguard._audience import Audience
from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError, LockguardError
from lockguard.text import first_line
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_bot._book import Decision, Outcome
from lockguard_bot._signals import BadSignal, CloseSignal, Unread
from lockguard_ccxt._classify import ccxt_errors
from lockguard_positions._events import Alert
from lockguard_positions._model import SyncAction
from lockguard_positions._telling import Repeats

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import Any

    from lockguard_bot._signals import Signal
    from lockguard_bot._sources import Delivery, SignalSource
    from lockguard_bot._trader import Trader
    from lockguard_positions._events import PositionEvent, PositionObserver
    from lockguard_positions._manager import AtomicPositionManager
    from lockguard_positions._model import SyncReport

__all__ = ["Rhythm", "Worker"]

T = TypeVar("T")

_LOG = logging.getLogger("lockguard.bot")
_PAUSE_FIRST_S = 0.2
_PAUSE_S_MAX = 15.0
_PAUSE_GROWS = 1.3
"""With these, an undecided signal from a stream is tried for about a minute; then another bot may take it."""
_LAST_RECOVERY_S = 5.0
_LEVELS = {
    Outcome.REFUSED: logging.WARNING,
    Outcome.SET_ASIDE: logging.ERROR,
    Outcome.UNDECIDED: logging.ERROR,
}
_NOT_DONE = frozenset({Outcome.REFUSED, Outcome.SET_ASIDE})
"""A signal that was read but not carried out raises an alert: its sender counts on it."""
_QUIET = frozenset({SyncAction.IN_STEP, SyncAction.SETTLING})


@dataclass(frozen=True, slots=True)
class Rhythm:
    """The intervals and limits of a bot.

    Attributes:
        sync_every: the pause between two passes over all symbols.
        recover_every: the pause between two searches for work that dead bots left; they read only the table.
        stop_within: how long work in flight may take once the bot is asked to stop.
        at_once: how many signals are carried out concurrently.
        once: whether to stop at the end of the signals.
    """

    sync_every: timedelta
    recover_every: timedelta
    stop_within: timedelta
    at_once: int
    once: bool = False

    @property
    def stopped_after(self) -> timedelta:
        """The longest that stopping takes, including the last recovery."""
        return self.stop_within + timedelta(seconds=_LAST_RECOVERY_S)


class Worker:
    """Runs one bot.

    Args:
        trader: carries out signals.
        manager: runs the sync and recovery passes.
        exchange: the exchange's name.
        sources: where signals come from; empty for a bot that only keeps table and exchange in step.
        rhythm: the intervals and limits.
        stopping: set when the bot is asked to stop.
        observers: receive alerts for the operator.
    """

    def __init__(
        self,
        trader: Trader,
        manager: AtomicPositionManager,
        exchange: str,
        sources: Sequence[SignalSource],
        rhythm: Rhythm,
        stopping: asyncio.Event,
        *,
        observers: Sequence[PositionObserver] = (),
    ) -> None:
        self._trader = trader
        self._manager = manager
        self._exchange = exchange
        self._sources = sources
        self._rhythm = rhythm
        self._stopping = stopping
        self._audience: Audience[PositionEvent] = Audience(observers, clock=SYSTEM_CLOCK)
        self._repeats = Repeats(SYSTEM_CLOCK)
        self._hands = asyncio.Semaphore(rhythm.at_once)
        self._lines: dict[str, asyncio.Lock] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._left = False
        self._unreadable: ConfigurationError | None = None

    async def run(self) -> bool:
        """Work until asked to stop or, with ``once``, until all signals are decided.

        Returns:
            Whether all work begun was finished and, with ``once``, every signal was decided.

        Raises:
            ConfigurationError: a source of signals cannot be read. What was begun is finished before.
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
        if self._unreadable is not None:
            raise self._unreadable
        return not self._left

    # --- signals ---

    async def _take(self, source: SignalSource, group: asyncio.TaskGroup) -> None:
        """Take deliveries one by one, each only when one of the ``at_once`` workers is free."""
        while not self._stopping.is_set():
            await self._hands.acquire()
            try:
                delivery = await source.next(self._stopping)
            except ConfigurationError as exc:
                # Not raised here, where it would cancel an entry that is under way, before its stop.
                self._unreadable = self._unreadable or exc
                self._stopping.set()
                delivery = None
            if delivery is None or self._stopping.is_set():
                self._hands.release()
                if delivery is not None:
                    await _settle(delivery, decided=False)
                return
            task = self._begin(group, self._serve(delivery), delivery.where)
            task.add_done_callback(lambda _: self._hands.release())

    async def _serve(self, delivery: Delivery) -> None:
        decided = False
        try:
            if isinstance(delivery.signal, Unread):
                _LOG.error(
                    "%s",
                    delivery.signal,
                    extra=_facts(delivery.where, None, outcome=Outcome.SET_ASIDE.value),
                )
                self._alert(self._exchange, f"a signal is not carried out: {delivery.signal}")
                decided = True
            elif isinstance(delivery.signal, BadSignal):
                self._tell_refused(delivery.signal, delivery.where)
                decided = True
            else:
                decided = await self._carry_out(delivery.signal, delivery)
                self._left |= self._rhythm.once and not decided
        finally:
            await _settle(delivery, decided=decided)

    async def _carry_out(self, signal: Signal, delivery: Delivery) -> bool:
        """Try to decide a signal; returns whether it was decided before the attempts ended."""
        where = delivery.where
        try:
            resource = await self._patiently(lambda: self._understand(signal, delivery), signal, delivery)
            if not isinstance(resource, str):
                return False
            # In order of arrival: a close must not overtake its open.
            async with self._lines.setdefault(resource, asyncio.Lock()):
                decision = await self._patiently(lambda: self._trader.carry_out(signal), signal, delivery)
        except BadSignal as exc:
            refused = BadSignal(f"{where}: signal {signal.id}: {exc}", closes=exc.closes)
            self._tell_refused(refused, where, signal)
            return True
        if not isinstance(decision, Decision):
            return False
        self._over(f"{self._exchange}:{signal.symbol}", f"signal {signal.id} ({where}) failed")
        _tell(decision, signal, where)
        if decision.outcome in _NOT_DONE and not decision.known:
            stays = "; its position stays open" if isinstance(signal, CloseSignal) else ""
            told = f"signal {signal.id} ({where}) was {decision.outcome.value}: {decision.details}{stays}"
            self._alert(f"{self._exchange}:{signal.symbol}", told, decision.position_id)
        return True

    async def _understand(self, signal: Signal, delivery: Delivery) -> str:
        """The signal's resource. From here on, attempts are counted under its lease and not as readings."""
        try:
            return await self._trader.resource(signal)
        finally:
            await delivery.understood()

    async def _patiently(
        self, ask: Callable[[], Awaitable[T | Decision]], signal: Signal, delivery: Delivery
    ) -> T | Decision | None:
        """Call ``ask`` until its answer is final.

        Gives up after about a minute if the signal will be delivered again or the bot runs ``once``, and
        otherwise only when the bot stops. After any error but a bad signal, part of the work may already be
        done, so the signal is tried again and neither refused nor forgotten. One failing signal must not end
        the bot.
        """
        pause_s, where = _PAUSE_FIRST_S, delivery.where
        while True:
            try:
                found = await ask()
            except BadSignal:
                raise
            except Exception as exc:  # noqa: BLE001 - one signal must not end the bot
                found = self._not_yet(exc, signal, where)
            if not isinstance(found, Decision) or found.final:
                return found
            for_long = pause_s >= _PAUSE_S_MAX and (delivery.returns or self._rhythm.once)
            if not for_long:
                _LOG.info("%s: signal %s: not yet: %s", where, signal.id, found.details)
            if for_long or await self._stops_within(min(pause_s, _PAUSE_S_MAX)):
                _tell(found, signal, where)
                return None
            pause_s *= _PAUSE_GROWS

    def _not_yet(self, exc: Exception, signal: Signal, where: str) -> Decision:
        if isinstance(exc, _no_answer()) and not isinstance(exc, ConfigurationError):
            # Includes a lost lease: the flow has stopped, and the next holder, perhaps this bot, finishes it.
            return Decision(Outcome.UNDECIDED, first_line(exc))
        _LOG.error(
            "%s: signal %s: %s", where, signal.id, first_line(exc), exc_info=exc, extra=_facts(where, signal)
        )
        told = f"signal {signal.id} ({where}) failed: {type(exc).__name__}; it is tried again"
        self._alert(f"{self._exchange}:{signal.symbol}", told)
        return Decision(Outcome.UNDECIDED, f"{type(exc).__name__}: {first_line(exc)}")

    # --- passes ---

    async def _repeat(
        self, name: str, work: Callable[[str], Awaitable[SyncReport]], every: timedelta
    ) -> None:
        while not await self._stops_within(every.total_seconds()):
            await self._pass(name, work)

    async def _pass(self, name: str, work: Callable[[str], Awaitable[SyncReport]]) -> None:
        """Run one pass. It skips symbols that are held; the next pass does what cannot be done now."""
        try:
            report = await work(self._exchange)
        except _no_answer() as exc:
            _LOG.warning("%s: not finished: %s", name, first_line(exc))
            return
        except Exception as exc:  # noqa: BLE001
            # A failed pass must not stop the signals; the next pass tries again.
            _LOG.exception("%s: not finished: %s", name, first_line(exc))
            self._alert(self._exchange, f"{name} failed: {type(exc).__name__}; it is tried again")
            return
        self._over(self._exchange, f"{name} failed")
        for outcome in report.outcomes:
            if outcome.action not in _QUIET:
                level = logging.DEBUG if outcome.action is SyncAction.BUSY else logging.INFO
                told = f"{outcome.action.value} {outcome.details}".strip()
                _LOG.log(level, "%s: %s:%s: %s", name, report.exchange, outcome.symbol, told)

    # --- alerts and log lines ---

    def _tell_refused(self, bad: BadSignal, where: str, signal: Signal | None = None) -> None:
        _LOG.warning("%s", bad, extra=_facts(where, signal, outcome=Outcome.REFUSED.value))
        if bad.closes:
            self._alert(self._exchange, f"a signal to close was refused, its position stays open: {bad}")

    def _alert(self, resource: str, message: str, position_id: int | None = None) -> None:
        alert = Alert(resource, position_id, message)
        if self._repeats.is_due(alert, watched=True):
            self._audience.tell(alert)

    def _over(self, resource: str, about: str) -> None:
        for alert in self._repeats.end(resource, about):
            self._audience.tell(alert)

    # --- shutdown ---

    async def _stop_after(self, taking: Sequence[asyncio.Task[None]]) -> None:
        """Once every signal is read and decided, run a last sync pass and stop."""
        if taking:
            await asyncio.wait(taking)
        while self._running and not self._stopping.is_set():
            await asyncio.wait(set(self._running))
        if not self._stopping.is_set():
            await self._pass("sync", self._manager.sync_exchange_positions)
        self._stopping.set()

    async def _finish(self) -> None:
        """Wait for work in flight, cancel what exceeds ``stop_within``, and recover what that leaves."""
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
        except Exception as exc:  # noqa: BLE001 - shutdown must complete
            _LOG.error("left to the next bot: %s", first_line(exc))
            self._left = True

    def _begin(
        self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        """Start a task that shutdown waits for."""
        task = group.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _stops_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()


async def _settle(delivery: Delivery, *, decided: bool) -> None:
    try:
        await delivery.settle(decided)
    except Exception:  # noqa: BLE001
        # The signal is delivered again, and its decision is found in the book.
        _LOG.exception("%s: could not be settled", delivery.where)


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


def _facts(where: str, signal: Signal | None, **more: object) -> dict[str, object]:
    """The extra fields of a log line in JSON; see ``_logs``."""
    about = {} if signal is None else {"signal": signal.id, "symbol": signal.symbol}
    return {"facts": {"where": where, **about, **more}}


def _no_answer() -> tuple[type[BaseException], ...]:
    """Errors of an unreachable server or a lost lease, for which the signal is not to blame."""
    exchange: type[BaseException] = ccxt_errors().BaseError
    return (LockguardError, exchange, *DATABASE_ERRORS)
