"""Accounts that others use as well: two bots, and everything that a person does beside them.

    python tests/race/hostile.py --opens 1000

Two ``lockguard bot run`` on two accounts open and close by signals while a person opens, closes, reduces and
protects by hand in the same contracts, contracts come and go, keys are denied for a while, bans, maintenance
and steps of the clock happen, and the database is restored once to an older state. Time is scaled: what is
"ten minutes ago" on a live system is half of the run here, and troubles last for a second or two, with the
bots' times shortened alike.

The exchange's own record of orders and fills is the judge:

* *unasked*: an order of a bot made a position smaller that no bot of the account had opened, and no close
  signal had asked for it. *Met* is apart: no exchange takes an entry on the condition that nothing is held,
  so what a person trades after the bot has looked is netted against it;
* *doubled*: an entry of a bot though what a bot had opened was still there;
* *lost*: a signal that was sent, and neither decided in a bot's log nor acknowledged;
* *exits*: a bot that ended before it was asked to, or with another code than 0;
* *untold*: a position of a bot that was without a stop for longer than the deadline, and no alert said so in
  time: one that names the symbol, and that it has no stop or could not be read or decided; or, while nothing
  at all can be read, one that names the exchange, that it could not be read, and its open positions.

Each must be 0. Seconds without a stop are counted, apart those in contracts that the exchange has delisted,
where nobody can place one (``gone_s``); each time that was too long is listed with what was said of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import redis.asyncio

from lockguard.errors import ConfigurationError
from lockguard_asyncpg import install
from lockguard_asyncpg._maintenance import shut_out_all
from lockguard_lab.child_process import signal_child
from lockguard_lab.exchange import LOCAL_API_KEY, LOCAL_SECRET, LocalExchange, Origin, Side
from lockguard_lab.exchange.faults import Operation
from lockguard_lab.exchange.model import AlgoStatus
from lockguard_lab.servers import PostgresServer, RedisServer
from lockguard_positions import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_lab.exchange import ExchangeRecord

ACCOUNTS = {"one": ("main", LOCAL_API_KEY, LOCAL_SECRET), "two": ("second", "second-key", "second-secret")}
SYMBOLS = (
    "APTUSDT",
    "SOLUSDT",
    "XRPUSDT",
    "DOGEUSDT",
    "ADAUSDT",
    "AVAXUSDT",
    "LINKUSDT",
    "DOTUSDT",
    "SUIUSDT",
)
DATABASE, OLDER = "hostile", "hostile_older"
DEADLINE_S = 10.0
_FINAL_S = 60.0
_BACKLOG_MAX = 8
_SAME_TIME_MS = 8_000
"""How far apart the clocks of the signals and of the exchange may be, its steps included."""
_BEGAN = re.compile(r"(binance@\w+:\w+) position \d+: new -> pending_entry token=(\d+)")
"""A token is the microseconds at which its lease began."""
_NOT_READ = "not read or decided for longer than"
_SAYS_NO_STOP = re.compile(r"without a stop|has no stop|stop is missing|unprotected")
_PASSES = re.compile(r'"code":\s*-(2014|2015|1021|1003|1008)|calls are closed|ms ago')
_ARGUMENTS = (
    *("--ttl", "2", "--claim-after", "3", "--recover-every", "0.5", "--sync-every", "1"),
    *("--receive-window", "2", "--reads-lag", "0.5", "--at-once", "6", "--alert-after", "5"),
)


@dataclass
class Score:
    """What came of a run; all but the figures must be 0."""

    opens: int = 0
    closes: int = 0
    entries: int = 0
    by_hand: int = 0
    troubles: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    unasked: list[str] = field(default_factory=list)
    met: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    exits: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    not_json: list[str] = field(default_factory=list)
    unprotected_s: float = 0.0
    unprotected_longest_s: float = 0.0
    gone_s: float = 0.0
    alerts: int = 0
    took_s: float = 0.0

    @property
    def good(self) -> bool:
        return not (self.unasked or self.doubled or self.lost or self.exits or self.untold or self.not_json)


@dataclass(frozen=True)
class Sent:
    """A signal, as it was sent."""

    id: str
    account: str
    action: str
    symbol: str
    at_ms: int


class Bot:
    """One ``lockguard bot run``, its lines in a file."""

    def __init__(self, label: str, log: Path, process: asyncio.subprocess.Process) -> None:
        self.label, self._log, self.process = label, log, process

    @classmethod
    async def start(cls, label: str, log: Path, urls: dict[str, str]) -> Bot:
        _, key, secret = ACCOUNTS[label]
        env = {**os.environ, **urls, "LOCKGUARD_EXCHANGE_API_KEY": key, "LOCKGUARD_EXCHANGE_SECRET": secret}
        arguments = ("--json", "--stream", f"signals-{label}", "--account", label, *_ARGUMENTS)
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "lockguard", "bot", "run", *arguments),
                env=env,
                stdout=out,
                stderr=out,
            )
        return cls(label, log, process)

    def lines(self) -> Iterator[dict[str, Any] | str]:
        for line in self._log.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                yield line

    async def end(self) -> int | None:
        signal_child(self.process, signal.SIGTERM)
        try:
            async with asyncio.timeout(40):
                return await self.process.wait()
        except TimeoutError:
            signal_child(self.process, signal.SIGKILL)
            await self.process.wait()
            return None


class Hostile:
    """One run."""

    def __init__(
        self, exchange: LocalExchange, stream: Any, postgres: PostgresServer, *, opens: int, seed: int
    ) -> None:
        self.exchange, self.stream, self.postgres, self.opens = exchange, stream, postgres, opens
        self.dice = random.Random(seed)
        self.sent: list[Sent] = []
        self.score = Score(opens=opens)
        self._fresh: list[str] = []
        self._gone: set[str] = set()
        self._began: defaultdict[str, list[float]] = defaultdict(list)
        self._open: dict[str, set[str]] = defaultdict(set)
        self._troubles: defaultdict[str, int] = defaultdict(int)

    # --- signals ---

    async def signals(self, label: str, opens: int) -> None:
        """Opens, each followed by a close some time later, as fast as the bot takes them."""
        given = 0
        while given < opens or self._open[label]:
            await self._room(label)
            shut = self._open[label]
            free = [s for s in (*SYMBOLS, *self._fresh[-2:]) if s not in shut]
            if given < opens and free and (not shut or self.dice.random() < 0.6):
                symbol = self.dice.choice(free)
                side = self.dice.choice(["long", "short"])
                await self._send(label, "open", symbol, side=side, quantity=self._quantity(symbol), stop="5%")
                shut.add(symbol)
                given += 1
            elif shut:
                symbol = self.dice.choice(sorted(shut))
                await self._send(label, "close", symbol)
                shut.discard(symbol)

    def _quantity(self, symbol: str) -> str:
        return str(Decimal(1000) / self.exchange.price(symbol) // 1 + 1)

    async def _send(self, label: str, action: str, symbol: str, **more: str) -> None:
        name = f"{label}-{len(self.sent)}"
        self.sent.append(Sent(name, label, action, symbol, round(time.time() * 1000)))
        await self.stream.xadd(f"signals-{label}", {"id": name, "action": action, "symbol": symbol, **more})

    async def _room(self, label: str) -> None:
        while await self.waiting(label) >= _BACKLOG_MAX:
            await asyncio.sleep(0.02)

    async def waiting(self, label: str) -> int:
        """How many signals are not acknowledged yet."""
        groups = await self.stream.xinfo_groups(f"signals-{label}")
        return sum(group["pending"] + (group["lag"] or 0) for group in groups) if groups else _BACKLOG_MAX

    # --- a person ---

    async def person(self) -> None:
        """Opens, adds, reduces, closes, turns round, protects, and takes stops back, anywhere."""
        while True:
            await asyncio.sleep(self.dice.uniform(0.05, 0.3))
            account = self.dice.choice([account for account, _, _ in ACCOUNTS.values()])
            symbol = self.dice.choice(SYMBOLS)
            with suppress(ConfigurationError, KeyError):  # what the exchange refuses a person
                self._by_hand(account, symbol, self.dice.random())
                self.score.by_hand += 1

    def _by_hand(self, account: str, symbol: str, roll: float) -> None:
        record = self.exchange.record().of(account)
        held = record.position(symbol)
        closing = Side.SELL if held > 0 else Side.BUY
        size = Decimal(self._quantity(symbol))
        if roll < 0.25:
            side = self.dice.choice(list(Side))
            self.exchange.trade_by_hand(symbol, side, size, account=account)
            if (
                self.dice.random() < 0.5
            ):  # and is in loss at once, further than the stop that a bot would place
                self._move(symbol, "0.97" if side is Side.BUY else "1.03")
        elif roll < 0.5 and held:
            part = max(Decimal(1), abs(held) // 2)
            self.exchange.trade_by_hand(symbol, closing, part, reduce_only=True, account=account)
        elif roll < 0.75 and held:
            self.exchange.trade_by_hand(symbol, closing, abs(held), reduce_only=True, account=account)
        elif roll < 0.9 and held:
            away = Decimal("0.85") if held > 0 else Decimal("1.15")
            trigger = (self.exchange.price(symbol) * away).quantize(Decimal("0.01"))
            self.exchange.stop_by_hand(symbol, closing, trigger, qty=abs(held), account=account)
        elif stops := record.open_stops(symbol):
            self.exchange.cancel_by_hand(self.dice.choice(stops).id, account=account)

    # --- troubles ---

    async def troubles(self) -> None:
        """One after the other, in any order, until the signals are at their end."""
        kinds = [self.denied, self.banned, self.clock, self.maintenance, self.listed, self.prices]
        while True:
            for trouble in self.dice.sample(kinds, len(kinds)):
                await asyncio.sleep(self.dice.uniform(0.3, 1.0))
                self._troubles[trouble.__name__] += 1
                await trouble()

    async def denied(self) -> None:
        account = self.dice.choice([account for account, _, _ in ACCOUNTS.values()])
        self.exchange.deny(account=account)
        try:
            await asyncio.sleep(self.dice.uniform(0.5, 2))  # for so long it lasts
        finally:
            self.exchange.allow(account)

    async def banned(self) -> None:
        self.exchange.ban(timedelta(seconds=self.dice.uniform(0.5, 1.5)))
        await asyncio.sleep(1)  # for so long it lasts

    async def clock(self) -> None:
        self.exchange.set_clock_offset(timedelta(seconds=self.dice.choice([-4, 4])))
        try:
            await asyncio.sleep(self.dice.uniform(1, 2))  # for so long it lasts
        finally:
            self.exchange.set_clock_offset(timedelta(0))

    async def maintenance(self) -> None:
        self.exchange.set_maintenance(True)
        try:
            await asyncio.sleep(0.7)  # for so long it lasts
        finally:
            self.exchange.set_maintenance(False)

    async def listed(self) -> None:
        if len(self._fresh) > 1:
            with suppress(ConfigurationError):
                self.exchange.delist_contract(f"{self._fresh[-1].removesuffix('USDT')}/USDT:USDT")
                self._gone.add(self._fresh[-1])
        base = f"FRESH{len(self._fresh)}"
        self.exchange.list_contract(f"{base}/USDT:USDT")
        self._fresh.append(f"{base}USDT")

    async def prices(self) -> None:
        self._move(self.dice.choice(SYMBOLS), self.dice.choice(["0.97", "0.99", "1.01", "1.03"]))

    def _move(self, symbol: str, factor: str) -> None:
        price = self.exchange.price(symbol)
        with suppress(ConfigurationError):
            self.exchange.set_price(symbol, (price * Decimal(factor)).quantize(price))

    async def restore(self, at: float) -> None:
        """Keep the database as it is at a quarter of the run, and put that back at three quarters."""
        total = 2 * self.opens
        while len(self.sent) < total * at / 2:
            await asyncio.sleep(0.05)
        await self._copy(DATABASE, OLDER)
        while len(self.sent) < total * (0.5 + at / 2):
            await asyncio.sleep(0.05)
        await self._copy(OLDER, DATABASE)
        restored = await asyncpg.connect(self.postgres.url_for(DATABASE))
        try:  # as the page says; until then no bot gets a lease whose last seal the restored database lacks
            await shut_out_all(restored, reason="restored")
        finally:
            await restored.close()
        self._troubles["restored"] += 1

    async def _copy(self, source: str, target: str) -> None:
        """One database in the place of another; nobody is connected meanwhile."""
        admin = await asyncpg.connect(self.postgres.url)
        try:
            await admin.execute(f"alter database {DATABASE} allow_connections false")
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = any($1)",
                [source, target],
            )
            async with asyncio.timeout(10):
                while await admin.fetchval(
                    "select count(*) from pg_stat_activity where datname = any($1)", [source, target]
                ):
                    await asyncio.sleep(0.02)
            await admin.execute(f"drop database if exists {target} with (force)")
            await admin.execute(f"create database {target} template {source}")
            await admin.execute(f"alter database {DATABASE} allow_connections true")
        finally:
            await admin.close()

    # --- the whole ---

    async def run(self, bots: list[Bot]) -> Score:
        began = time.monotonic()
        for bot in bots:
            while not await self.stream.exists(f"signals-{bot.label}"):
                if bot.process.returncode is not None:
                    break
                await asyncio.sleep(0.05)
        around = [asyncio.create_task(work) for work in (self.person(), self.troubles(), self.restore(0.5))]
        share = self.opens // len(bots)
        try:
            async with asyncio.TaskGroup() as group:
                for bot in bots:
                    group.create_task(self.signals(bot.label, share))
                watch = group.create_task(self._watch(bots))
                watch.add_done_callback(lambda _: None)
                await self._all_sent(share * len(bots))
                watch.cancel()
        finally:
            for task in around:
                task.cancel()
            ended = await asyncio.gather(*around, return_exceptions=True)
        self.exchange.lift_ban()
        for error in ended:
            if isinstance(error, Exception):
                raise error
        async with asyncio.timeout(_FINAL_S):
            while any([await self.waiting(bot.label) for bot in bots]):
                await asyncio.sleep(0.1)
        await asyncio.sleep(3)  # the last passes: what is left then is judged as it is
        self.score.exits += [
            f"{b.label}: {b.process.returncode}" for b in bots if b.process.returncode is not None
        ]
        codes = {bot.label: await bot.end() for bot in bots}
        self.score.exits += [f"{label} ended with {code}" for label, code in codes.items() if code != 0]
        self.judge(bots)
        self.score.took_s = round(time.monotonic() - began, 1)
        return self.score

    async def _all_sent(self, opens: int) -> None:
        while sum(s.action == "open" for s in self.sent) < opens or any(self._open.values()):
            await asyncio.sleep(0.1)

    async def _watch(self, bots: list[Bot]) -> None:
        """A bot that ends would leave the run waiting for it."""
        while True:
            for bot in bots:
                if bot.process.returncode is not None:
                    raise RuntimeError(f"bot {bot.label} ended with {bot.process.returncode}")
            await asyncio.sleep(0.2)

    # --- judging ---

    def judge(self, bots: list[Bot]) -> None:
        score, decided = self.score, dict[str, str]()
        alerts: list[tuple[float, str]] = []
        for bot in bots:
            for line in bot.lines():
                if isinstance(line, str):
                    score.not_json.append(line[:200])
                    continue
                if line.get("outcome") == "refused" and _PASSES.search(line["message"]):
                    continue  # a refusal for a reason that passes: that signal is lost
                if line.get("outcome") not in (None, "undecided"):
                    decided[str(line.get("signal"))] = line["outcome"]
                if (began := _BEGAN.match(line.get("message", ""))) is not None:
                    self._began[began[1]].append(int(began[2]) / 1000)
                if line["logger"] == "lockguard.positions" and line["level"] == "ERROR":
                    alerts.append((datetime.fromisoformat(line["time"]).timestamp() * 1000, line["message"]))
        score.alerts = len(alerts)
        score.closes = sum(sent.action == "close" for sent in self.sent)
        for outcome in decided.values():
            score.outcomes[outcome] = score.outcomes.get(outcome, 0) + 1
        score.lost = [f"{s.id} {s.action} {s.symbol}" for s in self.sent if s.id not in decided]
        score.troubles = dict(self._troubles)
        record = self.exchange.record()
        for label, (account, _, _) in ACCOUNTS.items():
            self._judge_account(label, record.of(account), alerts)

    def _judge_account(  # noqa: C901 - one pass over the fills
        self, label: str, record: ExchangeRecord, alerts: list[tuple[float, str]]
    ) -> None:
        orders = {order.id: order for order in record.orders}
        by_symbol: dict[str, list[Any]] = defaultdict(list)
        for fill in record.fills:
            by_symbol[fill.symbol].append(fill)
        for symbol, fills in by_symbol.items():
            asked = [
                s.at_ms for s in self.sent if (s.account, s.action, s.symbol) == (label, "close", symbol)
            ]
            own = held = Decimal(0)
            by_hand_ms = 0
            own_side = Side.BUY
            entered_by, entered_ms, since = 0, 0, 0
            spans: list[tuple[int, int]] = []
            for fill in fills:
                order = orders[fill.order_id]
                ours = order.origin is Origin.API
                held += fill.qty if fill.side is Side.BUY else -fill.qty
                before, reduced = own, fill.qty - fill.opened
                where = f"{label} {symbol} {order.client_id} {reduced or fill.opened} at {fill.at_ms}"
                # A stop that fires is no decision; to place one for any position is what --adopt stop is for.
                if ours and reduced and order.algo_id is None:
                    was_asked = any(
                        entered_ms - _SAME_TIME_MS <= at <= fill.at_ms + _SAME_TIME_MS for at in asked
                    )
                    if reduced > own and not was_asked:
                        # The last look may have been at other symbols; its own came after the lease began.
                        leases = [at for at in self._began[f"binance@{label}:{symbol}"] if at <= fill.at_ms]
                        looked = min(_last_look_ms(record, fill.at_ms), max(leases, default=2**62))
                        met = not order.reduce_only and by_hand_ms > looked
                        (self.score.met if met else self.score.unasked).append(where)
                if not ours:
                    by_hand_ms = fill.at_ms
                if ours and reduced:
                    own = max(Decimal(0), own - reduced)
                if ours and fill.opened:
                    if own and entered_by != order.id:
                        self.score.doubled.append(where)
                    self.score.entries += entered_by != order.id
                    entered_by, entered_ms, own_side = order.id, fill.at_ms, fill.side
                    own += fill.opened
                # What a person has closed, or turned round, is no bot's any more.
                own = min(own, max(Decimal(0), held if own_side is Side.BUY else -held))
                if own and not before:
                    since = fill.at_ms
                elif before and not own:
                    spans.append((since, fill.at_ms))
            if own:
                spans.append((since, round(time.time() * 1000)))
            self._judge_stops(f"{label}:{symbol}", record, symbol, spans, alerts)

    def _judge_stops(
        self,
        name: str,
        record: ExchangeRecord,
        symbol: str,
        spans: list[tuple[int, int]],
        alerts: list[tuple[float, str]],
    ) -> None:
        stops = sorted(
            (a.created_ms, a.updated_ms if a.status is not AlgoStatus.NEW else 2**62)
            for a in record.algo_orders
            if a.symbol == symbol
        )
        for begin, end in spans:
            at = begin
            for placed, gone in [*stops, (end, end)]:
                if placed > at:
                    bare_s = (min(placed, end) - at) / 1000
                    self._bare(name, symbol, at, bare_s, alerts)
                at = max(at, gone)
                if at >= end:
                    break

    def _bare(
        self, name: str, symbol: str, since_ms: int, bare_s: float, alerts: list[tuple[float, str]]
    ) -> None:
        score = self.score
        if name.partition(":")[2] in self._gone:
            score.gone_s = round(score.gone_s + bare_s, 2)
        else:
            score.unprotected_s = round(score.unprotected_s + bare_s, 2)
            score.unprotected_longest_s = max(score.unprotected_longest_s, round(bare_s, 2))
        if bare_s <= DEADLINE_S + 2:
            return
        until_ms = since_ms + (DEADLINE_S + 2) * 1000 + _SAME_TIME_MS
        label, _, plain = name.partition(":")
        symbol = re.compile(rf"binance@{label}:{plain}\b.*({_SAYS_NO_STOP.pattern}|{_NOT_READ})")
        exchange = re.compile(rf"binance@{label}\b(?!:\w).*{_NOT_READ}.* open positions")
        said = [
            message
            for at, message in alerts
            if since_ms - _SAME_TIME_MS <= at <= until_ms
            and (symbol.match(message) or exchange.match(message))
            and "over: " not in message
        ]
        line = f"{name} without a stop for {bare_s:.1f} s from {since_ms}"
        if said:
            score.told.append(f"{line}: {said[-1]}")
        else:
            score.untold.append(line)


def _last_look_ms(record: ExchangeRecord, before_ms: int) -> int:
    """When the account's positions were last read before an instant; 0 if never."""
    looks = (
        request.at_ms
        for request in record.requests
        if request.operation is Operation.POSITIONS and request.outcome == "ok"
    )
    return max((at_ms for at_ms in looks if at_ms <= before_ms), default=0)


async def hostile(opens: int, seed: int, logs: Path) -> Score:
    """Run it, on servers of its own.

    Args:
        opens: how many open signals, over both accounts.
        seed: of what the person and the troubles do.
        logs: a folder for the bots' lines.
    """
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer())
        postgres = stack.enter_context(PostgresServer(max_connections=100))
        exchange = await stack.enter_async_context(LocalExchange())
        for account, key, secret in ACCOUNTS.values():
            if account != "main":
                exchange.add_account(account, api_key=key, secret=secret)
        database = postgres.create_database(DATABASE)
        conn = await asyncpg.connect(database)
        await install(conn)
        await migrate(conn)
        await conn.close()
        stream = redis.asyncio.Redis.from_url(server.url, decode_responses=True)
        stack.push_async_callback(stream.aclose)
        urls = {
            "LOCKGUARD_REDIS_URL": server.url,
            "LOCKGUARD_DATABASE_URL": database,
            "LOCKGUARD_EXCHANGE_URL": exchange.url,
        }
        bots = []
        for label in ACCOUNTS:
            bots.append(await Bot.start(label, logs / f"{label}.jsonl", urls))
            stack.push_async_callback(bots[-1].end)
        return await Hostile(exchange, stream, postgres, opens=opens, seed=seed).run(bots)


def main() -> None:
    """The long form, for a person."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--opens", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="a folder for the bots' lines; a new one by default")
    given = parser.parse_args()
    logs = given.logs or Path(tempfile.mkdtemp(prefix="lockguard-hostile-"))
    logs.mkdir(parents=True, exist_ok=True)
    score = asyncio.run(hostile(given.opens, given.seed, logs))
    sys.stdout.write(json.dumps({**asdict(score), "good": score.good, "logs": str(logs)}, indent=2) + "\n")
    sys.exit(0 if score.good else 1)


if __name__ == "__main__":
    main()
