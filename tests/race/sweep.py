"""Every step of an open, a close and a moved stop, met by every trouble; somebody else looks afterwards.

    python tests/race/sweep.py                      # all, some minutes
    python tests/race/sweep.py --of open --of close --every 7

A run is made once to count its requests to the exchange and its writes to the database. Then it is made anew
for each of them and each trouble: the process is cut off before or after it, its answer is lost, it arrives
late, everything is refused or unreachable from there on, or a person trades by hand at that very instant. A
second bot then recovers, passes, and is given the same signal until it is decided.

The exchange's own record of orders is the judge. Each line that is printed is a law that was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import asyncpg
from ccxt.base.errors import ExchangeNotAvailable, RequestTimeout

from lockguard import LockGuard
from lockguard.errors import LockguardError
from lockguard_asyncpg import PostgresFence, install
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_lab.exchange import LocalExchange, Origin, Side, connect
from lockguard_lab.servers import PostgresServer, RedisServer
from lockguard_positions import (
    Alert,
    AlreadyOpen,
    AtomicPositionManager,
    ExchangeUnreadable,
    NotOpened,
    Opened,
    Pace,
    SyncAction,
    SyncOutcome,
    migrate,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lockguard_positions import PositionEvent

APT, NAME, QUANTITY = "APT/USDT:USDT", "APTUSDT", Decimal(10)
MS = timedelta(milliseconds=1)
PACE = Pace(
    settle=500 * MS,
    poll=20 * MS,
    stop_deadline=200 * MS,
    retry_pause=10 * MS,
    attempts=2,
    grace=0 * MS,
)
PATIENCE = Patience(needed=50 * MS, search=100 * MS, poll=20 * MS)
LATE_S = 0.15
SETTLED_WITHIN_S = 15.0


class Trouble(StrEnum):
    """What happens at a step."""

    CUT_BEFORE = "cut off before it"
    CUT_AFTER = "cut off after it"
    LOST = "answer lost"
    NEVER = "never arrives"
    LATE = "arrives late"
    DENIED = "key denied from here on"
    BANNED = "banned from here on"
    AWAY = "exchange away from here on"
    CLOCK = "the exchange's clock steps"
    OPENS = "a person buys"
    REDUCES = "a person sells a part"
    CLOSES = "a person closes"
    FLIPS = "a person turns it round"


HANDS = (Trouble.OPENS, Trouble.REDUCES, Trouble.CLOSES, Trouble.FLIPS)
ON_WRITES = (Trouble.CUT_BEFORE, Trouble.CUT_AFTER, *HANDS)
"""What can happen at a write to the database too."""


class Watch:
    """What was told."""

    def __init__(self) -> None:
        self.alerts: list[str] = []

    def on(self, event: PositionEvent) -> None:
        if isinstance(event, Alert):
            self.alerts.append(event.message)


@dataclass
class Meeting:
    """One step of a run at which something happens, and how many there were so far."""

    stage: Stage
    step: int | None = None
    trouble: Trouble | None = None
    seen: int = 0
    what: str = ""
    lasting: bool = False
    late: list[asyncio.Task[Any]] = field(default_factory=list)

    async def at(self, what: str, go: Callable[[], Awaitable[Any]], *, sent: bool) -> Any:
        """Make a step, or what becomes of it.

        Args:
            what: for people.
            go: makes it.
            sent: whether it is a request to the exchange; else it is a write to the database.
        """
        self.stage.note_bare()
        here, self.seen = self.seen == self.step, self.seen + 1
        if sent and self.lasting and self.trouble is Trouble.AWAY:
            raise ExchangeNotAvailable("away")
        if not here or self.trouble is None or not (sent or self.trouble in ON_WRITES):
            return await go()
        self.what, self.lasting = what, True
        return await self._meets(go)

    async def _meets(self, go: Callable[[], Awaitable[Any]]) -> Any:
        exchange = self.stage.exchange
        match self.trouble:
            case Trouble.CUT_BEFORE | Trouble.CUT_AFTER:
                if self.trouble is Trouble.CUT_AFTER:
                    await go()
                self._cut()
                await asyncio.sleep(30)  # until the cut arrives here
            case Trouble.LOST:
                await go()
                raise RequestTimeout("lost")
            case Trouble.NEVER:
                raise RequestTimeout("never sent")
            case Trouble.LATE:
                self.late.append(asyncio.create_task(_later(go)))
                raise RequestTimeout("late")
            case Trouble.DENIED:
                exchange.deny(-2015)
            case Trouble.BANNED:
                exchange.ban(timedelta(milliseconds=400))
            case Trouble.AWAY:
                raise ExchangeNotAvailable("away")
            case Trouble.CLOCK:
                exchange.set_clock_offset(timedelta(minutes=-1))
            case _:
                self._by_hand()
        return await go()

    def _by_hand(self) -> None:
        stage = self.stage
        match self.trouble:
            case Trouble.OPENS:
                stage.by_hand(Side.BUY, Decimal(5))
            case Trouble.REDUCES:
                stage.by_hand(Side.SELL, Decimal(4), reduce_only=True)
            case Trouble.CLOSES:
                stage.by_hand(Side.SELL, Decimal(50), reduce_only=True)
            case Trouble.FLIPS:
                stage.by_hand(Side.SELL, stage.held() + 15)

    def _cut(self) -> None:
        assert self.stage.running is not None
        self.stage.running.cancel()


async def _later(go: Callable[[], Awaitable[Any]]) -> None:
    await asyncio.sleep(LATE_S)  # as late as that
    with suppress(Exception):
        await go()


@dataclass
class Bot:
    """A manager with a client of its own."""

    manager: AtomicPositionManager
    guard: LockGuard
    client: Any
    watch: Watch

    async def open(self) -> Any:
        return await self.manager.open_position_atomic("s", APT, "binance", "long", QUANTITY, "8.5", "2")


@dataclass
class Stage:
    """A bot that has the trouble, and one that comes after it."""

    exchange: LocalExchange
    pool: asyncpg.Pool[Any]
    urls: tuple[str, str]
    meeting: Meeting | None = None
    running: asyncio.Task[Any] | None = None
    bare: list[str] = field(default_factory=list)
    may_be_bare: bool = True
    hands: int = 0

    def held(self) -> Decimal:
        return self.exchange.record().position(APT)

    def by_hand(self, side: Side, quantity: Decimal, *, reduce_only: bool = False) -> None:
        self.hands += 1
        with suppress(Exception):  # a person who has nothing to close is told so
            self.exchange.trade_by_hand(APT, side, quantity, reduce_only=reduce_only)

    def note_bare(self) -> None:
        """Whether the position is without a stop right now, where it had one before."""
        record = self.exchange.record()
        if not self.may_be_bare and not self.hands and record.position(APT) and not record.open_stops(APT):
            assert self.meeting is not None
            self.bare.append(f"step {self.meeting.seen}")

    async def bot(self, stack: AsyncExitStack, *, meets: bool) -> Bot:
        redis_url, _ = self.urls
        guard = await stack.enter_async_context(
            LockGuard.from_url(redis_url, fence=PostgresFence(self.pool), ttl=timedelta(seconds=1))
        )
        client = connect(self.exchange.url, config={"options": {"recvWindow": 1000}})
        stack.push_async_callback(client.close)
        if meets:
            self._meet_requests(client)
        guarded = GuardedExchange(client, patience=PATIENCE)
        client.timeout = 2000
        await guarded.load()
        client.timeout = 500
        watch = Watch()
        manager = AtomicPositionManager(guard, self.pool, [guarded], pace=PACE, observers=[watch])
        if meets:
            self._meet_writes(manager)
        return Bot(manager, guard, client, watch)

    def _meet_requests(self, client: Any) -> None:
        send = client.fetch

        async def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
            async def go() -> Any:
                return await send(url, method, headers, body)

            if self.meeting is None:
                return await go()
            path = url.partition("?")[0].rpartition("/")[2]
            return await self.meeting.at(f"{method} {path}", go, sent=True)

        client.fetch = fetch

    def _meet_writes(self, manager: AtomicPositionManager) -> None:
        write = manager.store._until_done

        async def until_done(*args: Any) -> Any:
            async def go() -> Any:
                return await write(*args)

            if self.meeting is None:
                return await go()
            return await self.meeting.at("a write", go, sent=False)

        manager.store._until_done = until_done  # type: ignore[method-assign]


@dataclass(frozen=True)
class Course:
    """What is run: its name, what goes before it, and the thing itself."""

    name: str
    before: Callable[[Bot], Awaitable[Any]]
    run: Callable[[Bot], Awaitable[Any]]


async def _nothing(_: Bot) -> None:
    """A plain open begins with nothing."""


async def _moves(bot: Bot) -> Any:
    return await bot.manager.move_stop(APT, "binance", "8.2")


async def _closes(bot: Bot) -> Any:
    return await bot.manager.close_position(APT, "binance", reason="signal x")


COURSES = (
    Course("open", _nothing, Bot.open),
    Course("close", Bot.open, _closes),
    Course("move", Bot.open, _moves),
)


async def steps_of(stage: Stage, bot: Bot, course: Course) -> int:
    """How many there are when nothing happens."""
    await fresh(stage)
    await course.before(bot)
    stage.meeting = Meeting(stage)
    await course.run(bot)
    steps, stage.meeting = stage.meeting.seen, None
    return steps


async def fresh(stage: Stage) -> None:
    stage.exchange.lift_ban()
    stage.exchange.allow()
    stage.exchange.set_clock_offset(timedelta(0))
    stage.exchange.reset()
    await stage.pool.execute("truncate monitoring.positions cascade")
    stage.bare.clear()
    stage.hands, stage.may_be_bare, stage.meeting = 0, True, None


async def meet(stage: Stage, bots: tuple[Bot, Bot], course: Course, step: int, trouble: Trouble) -> list[str]:
    """One run with one trouble; returns the laws that were broken."""
    first, second = bots
    await fresh(stage)
    stage.exchange.set_price(APT, Decimal("8.5"))
    for bot in bots:
        bot.watch.alerts.clear()
        bot.client.options["timeDifference"] = 0
        gate = bot.client._lockguard_gate
        gate._closed_until, gate._resynced_at = 0.0, None
    await course.before(first)
    stage.may_be_bare = course.name == "open"
    stage.meeting = meeting = Meeting(stage, step, trouble)
    stage.running = asyncio.create_task(course.run(first))
    result: Any = None
    try:
        result = await asyncio.wait_for(asyncio.shield(stage.running), 20)
    except asyncio.CancelledError:
        result = "cut off"
    except (LockguardError, ExchangeUnreadable) as exc:
        result = exc
    except Exception as exc:
        return [f"at {meeting.what} it raised {type(exc).__name__}: {exc}"]
    stage.note_bare()
    stage.meeting = None
    stage.exchange.allow()
    await asyncio.gather(*meeting.late, return_exceptions=True)
    if not meeting.what:
        return []
    wrong = [f"without a stop at {', '.join(stage.bare)}"] if stage.bare else []
    wrong = [f"({meeting.what}) {law}" for law in wrong]
    try:
        async with asyncio.timeout(SETTLED_WITHIN_S):
            decided = await _settled(second, course, result)
    except TimeoutError:
        return [*wrong, f"not settled in {SETTLED_WITHIN_S:g} s; the first said {result}"]
    return [*wrong, *await judged(stage, bots, course, trouble, decided)]


async def _settled(bot: Bot, course: Course, result: Any) -> Any:
    """As a second bot does: recovery, passes, and the same signal until it is decided."""
    while True:
        try:
            await bot.manager.recover("binance")
            report = await bot.manager.sync_exchange_positions("binance")
            if all(o.action.settled or _is_told(o) for o in report.outcomes):
                if course.name != "open":
                    if result == "cut off" and course.name == "close":
                        await _closes(bot)  # its signal is delivered once more
                    return result
                decided = await bot.open()
                if isinstance(decided, Opened | AlreadyOpen) or not (decided.passing or decided.in_doubt):
                    return decided
        except (LockguardError, ExchangeUnreadable):
            pass
        await asyncio.sleep(0.05)


async def judged(
    stage: Stage, bots: tuple[Bot, Bot], course: Course, trouble: Trouble, decided: Any
) -> list[str]:
    """What the record says against it."""
    report = await bots[1].manager.sync_exchange_positions("binance")
    record = stage.exchange.record()
    held, stops = record.position(APT), record.open_stops(APT)
    entries = [order for order in record.entries(APT) if order.origin is Origin.API]
    sold = [o for o in record.orders if o.origin is Origin.API and o.reduce_only and o.reduced]
    unsettled = [o.action.value for o in report.outcomes if not (o.action.settled or _is_told(o))]
    ended = trouble in {Trouble.CLOSES, Trouble.FLIPS} and course.name == "open"
    laws = {
        f"{held} is held without a stop": not record.without_stop(),
        f"{len(record.orphan_stops())} stops are left over": not record.orphan_stops(),
        f"{len(stops)} stops stand": not held or len(stops) == 1,
        f"{len(entries)} entries": len(entries) <= (2 if ended else 1),
        f"{len(sold)} orders sold what nobody asked to sell": course.name == "close" or not sold,
        f"{unsettled} in the end": not unsettled,
    }
    if course.name == "open":
        laws[f"the signal came to nothing: {decided}"] = not isinstance(decided, NotOpened)
        laws["nothing is held in the end"] = bool(held)
    if course.name == "close" and trouble not in HANDS:
        laws[f"{held} is held though it was closed"] = not held
    broken = [law for law, kept in laws.items() if not kept]
    return broken + await _rows_against(stage, held, [a for bot in bots for a in bot.watch.alerts])


def _is_told(outcome: SyncOutcome) -> bool:
    """A person has changed the amount, and is told so in every pass."""
    return (
        outcome.action in (SyncAction.MISMATCH, SyncAction.UNPROTECTED) and "the row says" in outcome.details
    )


async def _rows_against(stage: Stage, held: Decimal, alerts: list[str]) -> list[str]:
    """Where the table says otherwise than the exchange."""
    rows = await stage.pool.fetch(
        "select side, quantity from monitoring.positions"
        " where status in ('pending_entry', 'entry_placed', 'pending_sl', 'active')"
    )
    if bool(held) != bool(rows):
        return [f"{held} is held and {len(rows)} rows are open"]
    told = any("the row says" in alert for alert in alerts)
    wrong = []
    for row in rows:
        if (row["side"] == "long") != (held > 0):
            wrong.append(f"the row is {row['side']} and {held} is held")
        if row["quantity"] != abs(held) and not told:
            wrong.append(f"the row says {row['quantity']}, {held} is held, and nobody was told")
    return wrong


async def sweep(names: Sequence[str], troubles: Sequence[Trouble], every: int = 1) -> list[str]:
    """Make all the runs, or each ``every``-th of them; returns what was wrong, a line each."""
    wrong: list[str] = []
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        postgres = await stack.enter_async_context(PostgresServer())
        exchange = await stack.enter_async_context(LocalExchange())
        conn = await asyncpg.connect(postgres.url)
        await install(conn)
        await migrate(conn)
        await conn.close()
        pool = await stack.enter_async_context(asyncpg.create_pool(postgres.url, min_size=2, max_size=10))
        stage = Stage(exchange, pool, (redis.url, postgres.url))
        bots = (await stage.bot(stack, meets=True), await stage.bot(stack, meets=False))
        runs = 0
        for course in COURSES:
            if course.name not in names:
                continue
            steps = await steps_of(stage, bots[0], course)
            for at, (step, trouble) in enumerate((s, t) for s in range(steps) for t in troubles):
                if at % every:
                    continue
                runs += 1
                broken = await meet(stage, bots, course, step, trouble)
                found = [f"{course.name}, step {step} of {steps}, {trouble}: {law}" for law in broken]
                wrong += found
                for line in found:
                    print(line, flush=True)
        print(f"{runs} runs, {len(wrong)} laws broken", file=sys.stderr)
    return wrong


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [course.name for course in COURSES]
    parser.add_argument("--of", action="append", choices=names, help="open, close, move; all by default")
    parser.add_argument("--trouble", action="append", type=Trouble, help="only this one")
    parser.add_argument("--every", type=int, default=1, help="each so-many-th run only")
    given = parser.parse_args()
    wrong = asyncio.run(sweep(given.of or names, given.trouble or list(Trouble), given.every))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
