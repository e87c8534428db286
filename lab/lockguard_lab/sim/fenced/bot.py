"""What one process of a schedule does: holds in every shape that code has them, and writes in them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard import LockGuard, current_lease
from lockguard.errors import ConfigurationError, LockguardError
from lockguard_asyncpg import PostgresFence, create_pool, fenced_execute, fenced_transaction
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_lab.sim.fenced.judge import Body
from lockguard_lab.sim.fenced.outcomes import judged
from lockguard_lab.sim.fenced.writer import NOTE, begun, pause
from lockguard_lab.sim.fenced.writes import in_an_earlier_transaction, last, write

if TYPE_CHECKING:
    from random import Random

    from lockguard import Lease
    from lockguard_lab.sim.fenced.judge import FenceJudge, Op
    from lockguard_lab.sim.fenced.plan import FencedPlan
    from lockguard_lab.sim.world import Process

__all__ = ["Bot", "Own"]

_CONNECTING: dict[str, Any] = {"user": "bot", "password": "-", "database": "bot", "ssl": False, "timeout": 2}
_AGAIN_S = 0.05


class Own(Exception):
    """An error of the body's own."""


class _Symbol(str, Enum):  # noqa: UP042 - as bots have it: its text is not its value
    A = "A"


_SPELLINGS: tuple[tuple[object, ...], ...] = (
    ("A", _Symbol.A),
    (Decimal("1.0"), Decimal("1.00"), 1),
    ("", None),
)
"""Arguments that are equal, or that people take for the same."""


class Bot:
    """The bot of one process.

    Args:
        process: its process.
        plan: the schedule.
        judge: who watches.
        urls: of the lock's servers.
        database: the host of the database.
        observers: told what its guard does.
    """

    def __init__(
        self,
        process: Process,
        plan: FencedPlan,
        judge: FenceJudge,
        *,
        urls: list[str],
        database: str,
        observers: list[Any],
    ) -> None:
        self.process, self.plan, self.judge = process, plan, judge
        self.dice: Random = process.world.dice
        self._host = database
        self.pool: asyncpg.Pool[Any]
        self.fenced: asyncpg.Pool[Any]
        self.fence = PostgresFence(
            lambda: self.pool,
            grace=timedelta(seconds=0.5),
            seal_with_first_write=plan.first,
        )
        self.guard = LockGuard.from_urls(
            urls,
            ttl=timedelta(seconds=plan.ttl_s),
            wait=timedelta(seconds=3),
            fence=self.fence,
            fence_within=timedelta(seconds=3),
            observers=observers,
        )
        self._tasks: list[asyncio.Task[Any]] = []
        self._kept: Any = None
        self._own: Any = None
        self._own_is_lent = False
        self._called = {"exclusive": self._exclusive()}

    def tell(self, line: str) -> None:
        """Record what happened."""
        self.process.world.tell(f"{self.process.name}: {line}")

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin a task beside the body."""
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.create_task(work))

    async def start(self) -> None:
        """Make the pools, which connect when they are used."""
        if hasattr(self, "pool"):
            return
        self.pool = asyncpg.create_pool(host=self._host, min_size=0, max_size=4, **_CONNECTING)
        self.fenced = create_pool(host=self._host, min_size=0, max_size=3, **_CONNECTING)
        await self.pool
        await self.fenced

    async def kept_connection(self) -> Any:
        """A connection that is kept between transactions."""
        if self._kept is None or self._kept.is_closed():
            self._kept = await asyncpg.connect(host=self._host, **_CONNECTING)
        if self._kept.is_in_transaction():
            raise _Busy
        return self._kept

    @contextlib.asynccontextmanager
    async def own_connection(self) -> AsyncIterator[Any]:
        """A connection that one task at a time has, and that is in no transaction when it is given back."""
        if self._own_is_lent:
            raise _Busy
        self._own_is_lent = True
        try:
            if self._own is None or self._own.is_closed():
                self._own = await asyncpg.connect(host=self._host, **_CONNECTING)
            yield self._own
        finally:
            self._own_is_lent = False
            if self._own is not None and not self._own.is_closed():
                self.judge.given_back(
                    f"{self.process.name}'s own connection", in_transaction=self._own.is_in_transaction()
                )

    async def close(self) -> None:
        """Close what it has."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.guard.aclose()
        await self.fence.aclose()
        for conn in (self._kept, self._own):
            if conn is not None:
                conn.terminate()
        for pool in (self.pool, self.fenced):
            try:
                async with asyncio.timeout(3):
                    await pool.close()
            except TimeoutError:
                pool.terminate()

    async def run(self, name: str, watch: Any) -> None:
        """Hold and write, until the schedule's end."""
        plan, dice, world = self.plan, self.dice, self.process.world
        await asyncio.sleep(dice.uniform(0, 0.2))
        while world.now < plan.until_s:
            resource = f"binance:{dice.choice('AB'[: plan.resources])}"
            shape = dice.choice(_SHAPES)
            if plan.shape and dice.random() < 0.8:
                shape = getattr(Bot, plan.shape)
            call = asyncio.create_task(shape(self, resource), name=name)
            watch(call, self.process)
            cancel_after = dice.choice((None, None, None, dice.uniform(0, plan.work_s * 2)))
            if cancel_after is not None and not plan.latency_s:
                self.process.call_later(cancel_after, call.cancel)
            await asyncio.wait([call])
            error = None if call.cancelled() else call.exception()
            self._judge_outcome(f"{shape.__name__} {resource}", error)
            await asyncio.sleep(dice.choice((0.0, 0.001, dice.uniform(0, 0.3))))

    def _judge_outcome(self, what: str, error: BaseException | None) -> None:
        if isinstance(error, (Own, *DATABASE_ERRORS, ExceptionGroup)):
            self.tell(f"{what}: {type(error).__name__}")
        else:
            self.judge.ended(f"{self.process.name} {what}", error)

    # Shapes of a hold

    def _hold(self, resource: str) -> Any:
        return self.guard.hold(resource, on_busy=self.dice.choice(("wait", "wait", "wait", "raise")))

    async def plainly(self, resource: str) -> None:
        """One hold with one body."""
        async with self._hold(resource) as lease:
            await self._body(resource, lease, closes=self.dice.random() < 0.15)

    async def begun_before(self, resource: str) -> None:
        """A transaction that is open already when the lease is had, perhaps under another one."""
        async with contextlib.AsyncExitStack() as outer:
            if self.dice.random() < 0.5:
                await outer.enter_async_context(self._hold("binance:O"))
            conn = await outer.enter_async_context(self.fenced.acquire())
            transaction = conn.transaction()
            try:
                await transaction.start()
                await self._begun_before(resource, conn, transaction)
            except BaseException:
                conn.terminate()  # it was not committed, and nobody else may go on in it
                raise

    async def _begun_before(self, resource: str, conn: Any, transaction: Any) -> None:
        await conn.execute("select 1")
        async with self._hold(resource) as lease:
            body = Body(self.process, resource, lease)
            self.judge.entered(body)
            ops: list[Op] = []
            work = in_an_earlier_transaction(self, body, conn, transaction, ops)
            writing = asyncio.ensure_future(judged(self, body, ops, work, name="begun before"))
            writing.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                if self.dice.random() < 0.5:
                    await writing
                else:  # a task that is not cut with the body
                    await _to_its_end(writing)
                if not conn.is_closed() and conn.is_in_transaction():
                    conn.terminate()  # the error was swallowed
            finally:
                self.judge.left(body)

    async def nested(self, resource: str) -> None:
        """A hold in a hold, of the same resource or of another."""
        other = f"binance:{self.dice.choice('BC')}"
        async with self._hold(resource) as lease:
            with contextlib.suppress(LockguardError):
                async with self.guard.hold(other, wait=timedelta(seconds=0.5)) as inner:
                    if other != resource:
                        await self._body(other, inner)
            lease.ensure()
            await self._body(resource, lease)

    async def kept_like_a_lock(self, resource: str) -> None:
        """One hold that two tasks enter, as they would an asyncio.Lock."""
        hold = self._hold(resource)

        async def enter(after_s: float) -> None:
            await asyncio.sleep(after_s)
            try:
                async with hold as lease:
                    await self._body(resource, lease)
            except ConfigurationError:
                self.tell("a second entry is refused")

        await asyncio.gather(enter(0), enter(self.dice.uniform(0, self.plan.work_s)))

    async def left_by_another(self, resource: str) -> None:
        """A hold that is entered by one task and left by another, which has an error of its own."""
        error = Own("the body's own")
        met: BaseException | None = None
        entering: asyncio.Task[Lease] | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                entering = asyncio.create_task(stack.enter_async_context(self._hold(resource)))
                lease = await entering
                await asyncio.sleep(0.01)
                self.judge.is_left(self.process, str(lease.grant.id))
                raise error
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # noqa: BLE001 - judged
            met = exc
        was_entered = (
            entering is not None
            and entering.done()
            and not entering.cancelled()
            and entering.exception() is None
        )
        if met is not error and (was_entered or not isinstance(met, LockguardError)):
            self.judge.accuse("S11: the body's own error leaves", repr(met))
        await self._as_outside()

    async def left_unfinished(self, resource: str) -> None:
        """A generator that holds, and that nobody finishes."""

        async def ticks() -> AsyncIterator[Lease]:
            async with self._hold(resource) as lease:
                while True:
                    yield lease

        async def first() -> str:
            async for lease in ticks():
                return str(lease.grant.id)
            return ""

        grant = await first()
        await asyncio.sleep(0.2)
        self.judge.is_left(self.process, grant)
        await self._as_outside()

    async def _as_outside(self) -> None:
        """What code does after a hold was left is none of the hold's business."""
        try:
            await self.fenced.execute("insert into entry (resource, token, op) values ('-', 0, 'outside')")
        except LockguardError as error:
            self.judge.accuse("S11: after a body code works as before it", repr(error))
        except DATABASE_ERRORS:
            return

    def _exclusive(self) -> Any:
        @self.guard.exclusive("binance:{symbol}", wait=timedelta(seconds=1))
        async def exclusive(symbol: object, group: int) -> None:
            lease = current_lease()
            assert lease is not None
            with self.judge.called(group, symbol, Body(self.process, str(lease.resource), lease)):
                await asyncio.sleep(self.dice.uniform(0, 0.05))

        return exclusive

    async def called_with_equal_arguments(self, _: str) -> None:
        """A decorated function, called with arguments that are equal and written otherwise."""
        group = self.dice.randrange(len(_SPELLINGS))
        exclusive = self._called["exclusive"]
        calls = [exclusive(self.dice.choice(_SPELLINGS[group]), group) for _ in range(2)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(error, BaseException) and not isinstance(error, LockguardError):
                raise error

    async def closing(self, resource: str) -> None:
        """One hold whose last write always closes it."""
        async with self._hold(resource) as lease:
            await self._body(resource, lease, closes=True)

    async def closing_two(self, resource: str) -> None:
        """Two leases, which two tasks close with a write each, and name in another order."""
        if self.plan.latency_s:
            return
        async with self._hold("binance:O") as outer, self._hold(resource) as lease:
            body = Body(self.process, resource, lease)
            self.judge.entered(body)
            try:
                orders = [[outer, lease], [lease, outer]]
                self.dice.shuffle(orders)
                closing = (self._close_both(body, order) for order in orders)
                await asyncio.gather(self._write_first(body), *closing)
            finally:
                self.judge.left(body)

    async def _write_first(self, body: Body) -> None:
        ops: list[Op] = []

        async def work() -> None:
            async with fenced_transaction(self.pool, body.lease) as conn:
                await conn.execute(NOTE, *begun(self, body, ops))
                await pause(self)

        await judged(self, body, ops, work(), name="before two that close")

    async def _close_both(self, body: Body, leases: list[Lease]) -> None:
        ops: list[Op] = []

        async def work() -> None:
            await asyncio.sleep(self.dice.choice((0.0, 0.01)))
            await fenced_execute(self.pool, NOTE, *begun(self, body, ops), lease=leases, closes=True)

        try:
            await judged(self, body, ops, work(), name="closing two")
        except asyncpg.DeadlockDetectedError as error:
            law = "L6: two that write under the same leases do not wait for each other"
            self.judge.accuse(law, repr(error))

    # What bodies do

    async def _confirm(self, body: Body) -> None:
        was_over = self.judge.is_over(body.lease)
        try:
            await body.lease.confirm()
        except LockguardError as error:
            self.tell(f"not confirmed: {type(error).__name__}")
        else:
            self.judge.confirmed(body, was_over=was_over)

    async def _body(self, resource: str, lease: Lease, *, closes: bool = False) -> None:
        plan, dice, judge = self.plan, self.dice, self.judge
        body = Body(self.process, resource, lease)
        judge.entered(body)
        try:
            left_s = plan.work_s if plan.latency_s else dice.uniform(0, plan.work_s)
            while left_s > 0:
                step_s = dice.choice((0.0, min(left_s, 0.01), left_s))
                await asyncio.sleep(step_s)
                judge.looked_at(body)
                left_s -= step_s + 0.001
                if dice.random() < 0.1 and not plan.latency_s:
                    await self._confirm(body)
                if dice.random() < 0.5 and not plan.latency_s:
                    with contextlib.suppress(_Busy):
                        await write(self, body)
                    await asyncio.sleep(0)
                    judge.looked_at(body)
            if closes and not plan.latency_s:
                await last(self, body)
                if dice.random() < 0.3:
                    await self._confirm(body)
            if dice.random() < 0.1:
                raise Own("the body's own")
        finally:
            judge.left(body)


async def _to_its_end(task: asyncio.Future[Any]) -> None:
    """Wait for a task, which a cancel does not end; a second one ends the wait."""
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
    await task


class _Busy(Exception):
    """The kept connection is in use by another task."""


_SHAPES = (
    Bot.plainly,
    Bot.plainly,
    Bot.plainly,
    Bot.plainly,
    Bot.begun_before,
    Bot.nested,
    Bot.kept_like_a_lock,
    Bot.left_by_another,
    Bot.left_unfinished,
    Bot.called_with_equal_arguments,
    Bot.closing,
    Bot.closing_two,
)
