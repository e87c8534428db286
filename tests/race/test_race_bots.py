"""Several ``lockguard bot run`` share symbols and signals, are killed at any moment, and take over.

Every signal goes to a stream that the bots share, and also, at another moment, straight to one of the bots;
bots that are started again read all signals so far from a file besides. ``LOCKGUARD_RACE_SIGNALS`` and
``LOCKGUARD_RACE_SEED`` make it longer and another one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import ROUND_UP, Decimal
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import asyncpg
import pytest
import redis.asyncio

from lockguard_asyncpg import install
from lockguard_lab.child_process import signal_child
from lockguard_lab.exchange import DEFAULT_MARKETS, ExchangeRecord, LocalExchange
from lockguard_lab.statements import statement
from lockguard_positions import migrate

SIGNALS = int(os.environ.get("LOCKGUARD_RACE_SIGNALS", "110"))
SEED = os.environ.get("LOCKGUARD_RACE_SEED", "1")
BOTS = 4
SYMBOLS = 25
TTL_S = 2
START_S = 120
"""On a busy machine the interpreter alone takes its time."""
BOUND_S = TTL_S + 5
"""After the last kill: everything is decided, and true, by then."""
STREAM = "signals"
GROUP = "lockguard-bots"
LATENCY = timedelta(milliseconds=40)
GAP_S = 0.08
"""Between signals, on average."""
KILL_GAP_S = 0.8
BACKLOG_MAX = 40
MARKETS = [spec for spec in DEFAULT_MARKETS if spec.symbol.endswith("/USDT:USDT")][:SYMBOLS]
OPTIONS = {
    "--stream": STREAM,
    "--signals": "-",
    "--ttl": str(TTL_S),
    "--claim-after": "2",
    "--sync-every": "2",
    "--recover-every": "0.5",
    "--receive-window": "1",
    "--reads-lag": "1",
    "--stop-within": "15",
    "--set-aside-after": "1000",  # here bots are killed all the time, and no signal is to blame
}

WRITTEN = """
select to_jsonb(s)::text as written from monitoring.signals s where symbol = $1
union all select to_jsonb(a)::text from monitoring.signal_attempts a where symbol = $1
union all select to_jsonb(p)::text from monitoring.positions p where symbol = $1
union all select to_jsonb(i)::text from monitoring.position_intents i where symbol = $1
"""


class BotProcess:
    """One bot; what it logs goes to a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, urls: dict[str, str], log: Path, *more: str) -> BotProcess:
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "lockguard", "bot", "run", "--json"),
                *(word for option in OPTIONS.items() for word in option),
                *more,
                env={**os.environ, **urls},
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        return cls(process, log)

    @property
    def up(self) -> bool:
        """Whether it is at work."""
        return '"running on' in self._log.read_text()

    def send(self, signal: dict[str, str]) -> None:
        """Deliver a signal on its standard input; one that was killed does not hear it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(signal).encode() + b"\n")

    async def kill(self) -> None:
        """Like ``kill -9``."""
        signal_child(self._process, SIGKILL)
        await self._process.wait()

    async def stop(self) -> int:
        """Like ``kill``; gives the exit code."""
        signal_child(self._process, SIGTERM)
        return await self._process.wait()


def make_signals(dice: random.Random, count: int) -> list[dict[str, str]]:
    """Opens in both directions, closes, second opens, and some that are refused for one reason or another."""
    signals = []
    for number in range(count):
        spec = dice.choice(MARKETS)
        lots = (spec.min_notional * 2 / spec.price / spec.step).to_integral_value(ROUND_UP)
        signal = {"id": f"s{number}", "symbol": dice.choice([spec.id, spec.symbol])}
        if dice.random() < 0.4:
            signals.append({**signal, "action": "close"})
            continue
        signal |= {
            "action": "open",
            "side": dice.choice(["long", "short"]),
            "quantity": str(lots * spec.step),
            "stop": dice.choice(["2%", "5%"]),
        }
        if dice.random() < 0.08:
            signal |= dice.choice(
                [
                    {"quantity": "much"},
                    {"side": "up"},
                    {"symbol": "NOPEUSDT"},
                    {"stop": "-1%"},
                    {"quantity": "1e-9"},
                ]
            )
        signals.append(signal)
    return signals


@dataclass
class Race:
    """Bots that come and go, and the signals that they are given."""

    urls: dict[str, str]
    exchange: LocalExchange
    pool: asyncpg.Pool[Any]
    stream: redis.asyncio.Redis
    folder: Path
    dice: random.Random
    bots: list[BotProcess] = field(default_factory=list)
    given: list[dict[str, str]] = field(default_factory=list)
    kills: int = 0
    starts: int = 0
    over: bool = False
    _at_ms: int = 0

    async def start_bot(self) -> BotProcess:
        """A new bot, which is also given all signals so far as a file."""
        self.starts += 1
        again = self.folder / f"signals-{self.starts}.jsonl"
        again.write_text("".join(json.dumps(signal) + "\n" for signal in self.given))
        return await BotProcess.start(
            self.urls, self.folder / f"bot-{self.starts}.log", "--signals", str(again)
        )

    async def give(self, signals: list[dict[str, str]]) -> None:
        """Each by the stream, and to one of the bots before or after that."""
        async with asyncio.TaskGroup() as group:
            for signal in signals:
                await until(self.keeping_up, within_s=START_S)
                timed = await self.time(signal)
                group.create_task(self._deliver_both(timed))
                await asyncio.sleep(GAP_S * 2 * self.dice.random())  # the producer's own pace

    async def time(self, signal: dict[str, str]) -> dict[str, str]:
        """Say when a signal is given: by the stream's clock, so that all its deliveries say the same.

        No two are given in one millisecond: of those, neither would be the last word.
        """
        seconds, micros = await self.stream.time()
        self._at_ms = max(seconds * 1000 + micros // 1000, self._at_ms + 1)
        timed = {**signal, "at": str(self._at_ms)}
        self.given.append(timed)
        return timed

    async def _deliver_both(self, signal: dict[str, str]) -> None:
        async def by_stream() -> None:
            await self.stream.xadd(STREAM, signal)  # type: ignore[arg-type]  # its stub wants wider values

        async def by_hand() -> None:
            self.dice.choice(self.bots).send(signal)

        first, second = self.dice.sample([by_stream, by_hand], 2)
        await first()
        await asyncio.sleep(self.dice.choice([0, 0, 0.3, 1]))  # so that it meets every phase of the first
        await second()

    async def kill_some(self) -> None:
        """Kill a bot now and then, and start another one in its place."""
        while not self.over:
            await until(self.all_up, within_s=START_S)
            await asyncio.sleep(KILL_GAP_S * 2 * self.dice.random())
            place = self.dice.randrange(len(self.bots))
            await self.bots[place].kill()
            self.kills += 1
            self.bots[place] = await self.start_bot()

    async def all_up(self) -> bool:
        """Whether every bot is at work."""
        return all(bot.up for bot in self.bots)

    async def keeping_up(self) -> bool:
        """Whether the bots are not far behind."""
        groups = await self.stream.xinfo_groups(STREAM)
        return all(group["lag"] + group["pending"] < BACKLOG_MAX for group in groups)

    async def ordering(self) -> bool:
        """Whether an order is on its way."""
        return bool(
            await self.pool.fetchval(
                "select exists (select from monitoring.position_intents where settled_at is null)"
            )
        )

    async def settled(self) -> bool:
        """Whether every signal is decided, and nothing is half done."""
        groups = await self.stream.xinfo_groups(STREAM)
        if any(group["pending"] or group["lag"] for group in groups):
            return False
        return bool(
            await self.pool.fetchval(
                "select not exists (select from monitoring.position_intents where settled_at is null)"
                " and not exists (select from monitoring.positions"
                "   where status in ('pending_entry', 'entry_placed', 'pending_sl'))"
            )
        )

    def said(self) -> list[dict[str, Any]]:
        """All log lines of all bots; the last line of one that was killed may be cut."""
        lines = []
        for log in self.folder.glob("bot-*.log"):
            *whole, last = log.read_text().split("\n")
            assert last == "" or not last.endswith("}")
            lines += [json.loads(line) for line in whole]
        return lines


@pytest.fixture
async def race(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Race]:
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange(latency=LATENCY))
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=4))
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
        stream = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
        stack.push_async_callback(stream.aclose)
        urls = {
            "LOCKGUARD_REDIS_URL": redis_url,
            "LOCKGUARD_DATABASE_URL": database_url,
            "LOCKGUARD_EXCHANGE_URL": exchange.url,
        }
        running = Race(urls, exchange, pool, stream, tmp_path, random.Random(SEED))
        try:
            yield running
        finally:
            for bot in running.bots:
                await bot.kill()


async def until(condition: Callable[[], Awaitable[bool]], *, within_s: float) -> float:
    """Wait for a condition; gives the seconds that it took."""
    clock = asyncio.get_running_loop().time
    began = clock()
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.05)
    return clock() - began


@pytest.mark.slow
@pytest.mark.timeout(300 + SIGNALS * 2)
async def test_bots_that_are_killed_at_any_moment_leave_nothing_wrong(race: Race) -> None:
    signals = make_signals(race.dice, SIGNALS)
    for _ in range(BOTS):
        race.bots.append(await race.start_bot())

    await until(race.all_up, within_s=START_S)
    killing = asyncio.create_task(race.kill_some())
    await race.give(signals[: -2 * BOTS])
    race.over = True
    await killing
    await until(race.all_up, within_s=START_S)
    await until(race.settled, within_s=60)

    # The last kill: half of the bots, in the middle of work, and nobody is started in their place. The later
    # of two signals is taken first, and the bot that carried it out may not live to record that.
    for signal in reversed([await race.time(signal) for signal in signals[-2 * BOTS :]]):
        await race.stream.xadd(STREAM, signal)  # type: ignore[arg-type]
    await until(race.ordering, within_s=10)
    for bot in race.bots[: BOTS // 2]:
        await bot.kill()
        race.kills += 1
    took_s = await until(race.settled, within_s=BOUND_S)

    assert [await bot.stop() for bot in race.bots[BOTS // 2 :]] == [0] * (BOTS - BOTS // 2)
    told = race.said()
    await check_rows(race)
    check_exchange(race.exchange.record())
    await check_last_word(race)
    await check_signals(race, told)
    await check_redis(race)
    print(await figures(race, told, took_s))


async def check_rows(race: Race) -> None:
    """No two rows of a symbol were ever open at once, and no stale write was committed."""
    assert await race.pool.fetch(statement("overlapping", "race.sql")) == []
    assert await race.pool.fetchval(statement("stale_committed", "race.sql")) == 0
    entered = await race.pool.fetchval(
        "select count(*) from monitoring.positions where entry_order_id is not null"
    )
    record = race.exchange.record()
    assert entered == len({fill.order_id for fill in record.fills if fill.opened})


def check_exchange(record: ExchangeRecord) -> None:
    """Never bought while held, never turned round, nothing without a stop, no stop without a position."""
    held: dict[str, Decimal] = {}
    for fill in record.fills:
        before = held.get(fill.symbol, Decimal(0))
        after = held[fill.symbol] = before + fill.qty * fill.side.sign
        assert not before or abs(after) < abs(before), f"entered twice: {fill}"
        assert before * after >= 0, f"turned round: {fill}"
    assert record.without_stop() == ()
    assert record.orphan_stops() == ()


async def check_last_word(race: Race) -> None:
    """Table and exchange hold what the last good signal of each symbol asks for, whoever was killed.

    The last one that was given, in whatever order they were delivered, carried out and written down.
    """
    book = await race.pool.fetch(
        "select signal_id, symbol, action from monitoring.signals where outcome <> 'refused'"
    )
    good = {row["signal_id"]: row for row in book}
    last = {good[s["id"]]["symbol"]: good[s["id"]]["action"] for s in race.given if s["id"] in good}
    wanted = {symbol for symbol, action in last.items() if action == "open"}
    open_rows = await race.pool.fetch(
        "select symbol, status from monitoring.positions where closed_at is null"
    )
    in_table = {row["symbol"] for row in open_rows}
    record = race.exchange.record()
    held = {spec.id for spec in MARKETS if record.position(spec.symbol)}
    wrong = (
        (in_table ^ wanted) | (held ^ wanted) | {r["symbol"] for r in open_rows if r["status"] != "active"}
    )
    if wrong:
        pytest.fail("\n".join([await everything_of(race, symbol) for symbol in sorted(wrong)]))


async def everything_of(race: Race, symbol: str) -> str:
    """All that is known of a symbol, for whoever has to find out what went wrong with it."""
    names = next((spec.id, spec.symbol) for spec in MARKETS if spec.id == symbol)
    given = [signal for signal in race.given if signal["symbol"] in names]
    rows = await race.pool.fetch(WRITTEN, symbol)
    about = (f":{symbol}", *(f"signal {signal['id']}: " for signal in given))
    said = [line for line in race.said() if any(text in line["message"] for text in about)]
    record = race.exchange.record()
    return "\n  ".join(
        [
            f"{symbol} is not what its last good signal asks for; {record.position(names[1])} is held",
            *(f"given: {signal}" for signal in given),
            *(row["written"] for row in rows),
            *(str(fill) for fill in record.fills if fill.symbol in names),
            *sorted(f"{line['time']} {line['message']}" for line in said),
        ]
    )


async def check_signals(race: Race, told: list[dict[str, Any]]) -> None:
    """Each signal is in the book, or was refused with its reason."""
    book = {row["signal_id"] for row in await race.pool.fetch("select signal_id from monitoring.signals")}
    refused = [line["message"] for line in told if line.get("outcome") == "refused"]
    for signal in race.given:
        mentioned = any(f"signal {signal['id']}: " in message for message in refused)
        assert signal["id"] in book or mentioned, signal
    assert [line for line in told if "exception" in line] == []


async def check_redis(race: Race) -> None:
    """Nothing is left but what outlives a lock, the stream, and for a minute what dead waiters leave."""
    left: dict[str, int] = {}

    async def only_what_stays() -> bool:
        left.clear()
        async for key in race.stream.scan_iter(count=1000):
            if key != STREAM and not key.endswith((":history", ":token", ":seal")):
                left[key] = await race.stream.pttl(key)
        return all(key.endswith((":queue", ":inboxes")) and 0 <= ms <= 60_000 for key, ms in left.items())

    try:
        await until(only_what_stays, within_s=BOUND_S)
    except TimeoutError:
        pytest.fail(f"left in Redis: {left}")
    (group,) = await race.stream.xinfo_groups(STREAM)
    assert (group["pending"], group["lag"]) == (0, 0)


async def figures(race: Race, told: list[dict[str, Any]], took_s: float) -> dict[str, Any]:
    """What happened, for whoever reads the output."""
    outcomes = await race.pool.fetch(
        "select outcome, count(*) from monitoring.signals group by 1 order by 2 desc"
    )
    statuses = await race.pool.fetch(
        "select status, count(*) from monitoring.positions group by 1 order by 2 desc"
    )
    return {
        "signals": len(race.given),
        "kills": race.kills,
        "book": {row[0]: row[1] for row in outcomes},
        "rows": {row[0]: row[1] for row in statuses},
        "known": sum(bool(line.get("known")) for line in told),
        "finished_for_the_dead": sum(
            any(f": {word}" in line["message"] for word in ("recovered", "ended")) for line in told
        ),
        "entries": sum(bool(fill.opened) for fill in race.exchange.record().fills),
        "settled_after_last_kill_s": round(took_s, 2),
    }
