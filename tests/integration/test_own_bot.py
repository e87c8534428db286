"""The guide for a bot that was not written for lockguard: what it says, and its blocks as printed."""

from __future__ import annotations

import asyncio
import difflib
import importlib.util
import logging
import os
import re
import secrets
import subprocess
import sys
import textwrap
import time
import tomllib
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import asyncpg
import ccxt.async_support  # noqa: F401 - all of it, before a test beside this one imports one exchange alone
import pytest

from lockguard import LeaseLost, LockGuard, ResourceBusy, Skipped, StaleToken, exclusive
from lockguard._settings import Settings
from lockguard_asyncpg import protect, unprotect, watched
from lockguard_ccxt import GuardedExchange
from lockguard_lab.exchange import connect
from lockguard_lab.own_bot import stage
from lockguard_lab.own_bot.processes import until
from lockguard_lab.own_bot.stage import EXEMPT, TABLE, TEMPLATE
from lockguard_postgres._watching import Readiness

pytestmark = pytest.mark.usefixtures("unchecked")  # a bot whose lock is broken finds it out as it writes

ROOT = Path(__file__).parents[2]
BOTS = ROOT / "docs/examples/own_bot"
PAGE = (ROOT / "docs/howto/guard-your-own-bot.md").read_text(encoding="utf-8")
PLAIN, GUARDED = ((BOTS / name).read_text(encoding="utf-8") for name in ("bot.py", "guarded_bot.py"))
LINES_MAX = 25
TTL_S = 2

[AS_PRINTED] = re.findall(r"<!-- run by test_own_bot -->\n```python\n(.*?)```", PAGE, re.DOTALL)
[STATEMENT] = re.findall(r"<!-- run by test_own_bot -->\n```sql\n(.*?)```", PAGE, re.DOTALL)


class Bot:
    """The guarded bot's parts in this process, on a stage."""

    def __init__(self, on, module, client) -> None:
        self.on, self.module, self.db, self.guard = on, module, module.db, module.guard
        self.exchange = module.Exchange(GuardedExchange(client))
        self.manager, self.processor = self.another()

    def another(self):
        """What another process would have: the same table, exchange and lock, and nothing else in common."""
        manager = self.module.PositionManager(self.exchange)
        return manager, self.module.SignalProcessor(self.exchange, manager)

    def signal(self, symbol):
        return self.module.Signal("1", "long", symbol)

    async def synchronized(self, symbol):
        """Make the step of a sync pass, when the symbol is not closed any more."""

        async def done() -> bool:
            return not isinstance(await self.manager.synchronize_symbol("binance", symbol), Skipped)

        await until(done, "a step of a sync pass")

    async def is_adopted(self, symbol):
        """What a cut open left becomes one position with one stop and one row."""
        await self.synchronized(symbol)
        assert await self.on.statuses(symbol) == ["active"]
        assert len(self.on.record.entries(symbol)) == len(self.on.record.open_stops(symbol)) == 1
        assert self.on.record.without_stop() == ()

    async def half_done(self, symbol, status):
        async with self.guard.hold(f"binance:{symbol}"):
            return await self.db.add("binance", symbol, "long", Decimal(30), Decimal(9), status)

    def break_once_in(self, name):
        """Have the lock broken in the middle of the bot's next call of a method of its table."""
        call = getattr(self.db, name)

        async def broken(*args):
            setattr(self.db, name, call)
            await self.lock_broken()
            return await call(*args)

        setattr(self.db, name, broken)

    async def lock_broken(self):
        """Break the lock from another process: this one learns of it with its next renewal, or write."""
        seen = await self.guard.inspect("binance:APTUSDT")
        words = ("break", "binance:APTUSDT", "--reason", "test", "--grant", seen.grant)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lockguard", *words),
            env={**os.environ, "LOCKGUARD_DATABASE_URL": self.on.database_url},
        )
        assert await process.wait() == 0


@pytest.fixture
async def start(redis_url, database_url, monkeypatch):
    """Starts the guarded bot, or another text of it, in this process."""
    for name, value in {
        "LOCKGUARD_REDIS_URL": redis_url,
        "LOCKGUARD_LOCK_DELAY": "200ms",
        "SETTLE_SECONDS": "0.05",
    }.items():
        monkeypatch.setenv(name, value)
    async with AsyncExitStack() as stack:
        on = await stack.enter_async_context(stage(BOTS, redis_url, database_url, guarded=True))

        async def start(text=GUARDED, *, ttl_s=60):
            monkeypatch.setenv("LOCKGUARD_TTL", f"{ttl_s}s")
            spec = importlib.util.spec_from_loader(f"own_bot_{secrets.token_hex(4)}", loader=None)
            module = importlib.util.module_from_spec(spec)
            # dataclasses look their module up
            monkeypatch.setitem(sys.modules, spec.name, module)
            exec(compile(text, "guarded_bot.py", "exec"), vars(module))
            await module.db.connect(database_url)
            stack.push_async_callback(module.db.pool.close)
            await stack.enter_async_context(module.guard)
            client = await stack.enter_async_context(connect(on.exchange.url))
            return Bot(on, module, client)

        yield start


async def test_what_except_exception_swallows_is_neither_ordered_nor_written(start, caplog):
    """A process that was paused over its deadline goes on with the stop, and then takes the entry back."""
    caplog.set_level(logging.INFO, "bot")
    bot = await start(ttl_s=TTL_S)
    place_stop = bot.exchange.place_stop

    async def paused(*args):
        time.sleep(TTL_S * 1.1)  # the event loop, and with it the timer that would cancel the body
        return await place_stop(*args)

    bot.exchange.place_stop = paused
    with pytest.raises(LeaseLost):
        await bot.processor.process(bot.signal("APTUSDT"))

    assert "APTUSDT: rolling back: LeaseLost" in caplog.text, "it was swallowed"
    assert "APTUSDT: not rolled back: LeaseLost" in caplog.text, "and the order that came of it was refused"
    assert bot.on.record.open_stops("APTUSDT") == bot.on.record.reductions() == ()
    assert await bot.on.statuses("APTUSDT") == ["pending_sl"]
    bot.exchange.place_stop = place_stop
    await bot.is_adopted("APTUSDT")


async def test_a_lock_that_is_broken_in_the_middle_of_an_open_cancels_it(start, caplog):
    caplog.set_level(logging.INFO, "bot")
    bot = await start()
    bot.break_once_in("set_status")

    with pytest.raises(LeaseLost):
        await bot.processor.process(bot.signal("APTUSDT"))

    assert "rolling back" not in caplog.text
    assert bot.on.record.reductions() == ()
    assert await bot.on.statuses("APTUSDT") == ["pending_entry"]
    await bot.is_adopted("APTUSDT")


async def test_a_body_that_swallows_everything_can_neither_write_nor_order(start):
    bot = await start()
    met = []

    async def swallowed(act):
        try:
            await act
        except BaseException as error:
            met.append(type(error))

    @exclusive("{exchange}:{symbol}", guard=lambda *_: bot.guard)
    async def stubborn(exchange, symbol):
        async with bot.db.pool.acquire() as conn:
            insert = (
                "insert into monitoring.positions (exchange, symbol, side, quantity, status)"
                " values ($1, $2, 'long', 30, 'active')"
            )
            await bot.lock_broken()
            await swallowed(conn.execute(insert, exchange, symbol))
            await swallowed(asyncio.sleep(0))
            await swallowed(conn.execute(insert, exchange, symbol))
            await swallowed(bot.exchange.order(symbol, "buy", Decimal(30)))
            return "opened"

    with pytest.raises(LeaseLost):
        await stubborn("binance", "APTUSDT")
    assert met == [StaleToken, asyncio.CancelledError, LeaseLost, LeaseLost]
    assert bot.on.record.orders == ()
    assert await bot.on.statuses("APTUSDT") == []


def misplaced():
    """The guarded bot with the decorator on the function that orders, instead of the one that looks."""
    decorator = '    @guard.exclusive("{signal.exchange}:{signal.symbol}")\n'
    first = "        await self.manager.synchronize_symbol(signal.exchange, signal.symbol)\n"
    opens = "    async def open_position_atomic(self, signal):\n"
    for part in (decorator, first, opens):
        assert GUARDED.count(part) == 1
    return GUARDED.replace(decorator, "").replace(first, "").replace(opens, decorator + opens)


@pytest.mark.parametrize(("text", "entries"), [(GUARDED, 1), (misplaced(), 2)], ids=["looks", "orders"])
async def test_the_decorator_belongs_on_the_function_that_looks_first(start, text, entries):
    bot = await start(text)
    _, other = bot.another()

    await asyncio.gather(*(each.process(bot.signal("APTUSDT")) for each in (bot.processor, other)))

    assert len(bot.on.record.entries("APTUSDT")) == entries


async def test_a_pass_goes_on_past_a_symbol_that_is_being_opened(start):
    """It neither waits for it nor touches it, and it finds every other one."""
    bot = await start()
    await bot.processor.process(bot.signal("APTUSDT"))
    for stop in bot.on.record.open_stops("APTUSDT"):
        async with bot.guard.hold("binance:APTUSDT"):
            await bot.exchange.client.cancel_order(stop.id, "APT/USDT:USDT", {"trigger": True})
    half_done = await bot.half_done("SUIUSDT", "entry_placed")
    opening = asyncio.Event()

    async def open_slowly():
        async with bot.guard.hold("binance:SUIUSDT"):
            opening.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(open_slowly())
    await opening.wait()
    await bot.manager.synchronize_exchange("binance")
    assert await bot.on.statuses("SUIUSDT") == ["entry_placed"]
    assert len(bot.on.record.open_stops("APTUSDT")) == 1

    task.cancel()
    await asyncio.wait({task})
    await bot.manager.synchronize_exchange("binance")
    assert (await bot.db.get(half_done))["status"] == "canceled"


async def test_the_statement_adopts_under_the_lease_as_it_is_printed(start):
    bot = await start()
    assert STATEMENT.strip() == bot.module.ADOPT.strip()
    for symbol, status in (("APTUSDT", "pending_entry"), ("SUIUSDT", "entry_placed"), ("ARBUSDT", "active")):
        await bot.half_done(symbol, status)

    with pytest.raises((StaleToken, asyncpg.PostgresError), match="no token for binance:APTUSDT"):
        await bot.db.pool.execute(STATEMENT, "binance", "APTUSDT", Decimal(30))
    for symbol, size in (("APTUSDT", 30), ("SUIUSDT", 0), ("ARBUSDT", 0)):
        async with bot.guard.hold(f"binance:{symbol}"):
            await bot.db.pool.execute(STATEMENT, "binance", symbol, Decimal(size))

    assert [await bot.on.statuses(symbol) for symbol in ("APTUSDT", "SUIUSDT", "ARBUSDT")] == [
        ["active"],
        ["canceled"],
        ["active"],
    ]


async def test_a_writer_that_knows_an_id_needs_the_lease_of_its_row(start):
    """Prices pass without one, although a trigger sets updated_at with each; a stop and a status do not."""
    bot = await start()
    position = await bot.half_done("APTUSDT", "pending_entry")
    before = await bot.db.get(position)

    await bot.db.set_price(position, Decimal(10))
    after = await bot.db.get(position)
    assert after["pnl"] == Decimal(30)
    assert after["updated_at"] > before["updated_at"]

    for write in (
        bot.db.set_status(position, "failed"),
        bot.db.set_stop(position, {"id": "1", "triggerPrice": 8}),
    ):
        with pytest.raises((StaleToken, asyncpg.PostgresError), match="no token for binance:APTUSDT"):
            await write

    printed = dict(vars(bot.module))
    exec(textwrap.dedent(AS_PRINTED), printed)
    await printed["give_up"](position)
    assert (await bot.db.get(position))["status"] == "failed"


async def test_a_watch_of_the_guarded_bot_proposes_what_the_page_exempts_and_then_says_safe(start):
    """The page's order: watch, exempt what the watch proposes, watch on, protect."""
    bot = await start()
    await unprotect(bot.on.conn, TABLE)

    async def seen(exempt):
        await protect(bot.on.conn, TABLE, resource=TEMPLATE, exempt=exempt, watch=True)
        for symbol in ("APTUSDT", "SUIUSDT"):
            await bot.processor.process(bot.signal(symbol))
        for row in await bot.db.open("binance"):
            price = bot.on.exchange.price(row["symbol"]) * Decimal("1.02")
            bot.on.exchange.set_price(row["symbol"], price)
            await bot.db.set_price(row["id"], price)
            await bot.manager.move_stop(row["id"], row["symbol"], price)
        await bot.manager.synchronize_exchange("binance")
        [table] = await watched(bot.on.conn)
        return table

    table = await seen(())
    assert table.readiness is Readiness.UNSAFE
    assert {*table.proposed} == {*EXEMPT}
    assert table.freed == table.refused == 2, "and nothing else writes without a lease"
    async with bot.on.conn.transaction():
        await bot.on.conn.execute("select lockguard.maintenance('begin anew')")
        await bot.on.conn.execute("delete from monitoring.positions")

    assert (await seen(table.proposed)).readiness is Readiness.SAFE


async def test_own_locks_in_the_wrong_order_are_bounded_by_the_wait(redis_url):
    """One task has the lock and waits for the lease, the other has the lease and waits for the lock."""
    async with LockGuard.from_url(redis_url) as guard:
        lock, leased, locked = asyncio.Lock(), asyncio.Event(), asyncio.Event()

        async def lease_first():
            async with guard.hold("binance:APTUSDT") as lease:
                leased.set()
                await locked.wait()
                async with lock:
                    lease.ensure()
                    return "went on"

        async def lock_first(on_busy):
            async with lock:
                await leased.wait()
                locked.set()
                async with guard.hold("binance:APTUSDT", on_busy=on_busy, wait=timedelta(milliseconds=300)):
                    return "never"

        for on_busy in ("wait", "raise"):
            leased.clear()
            locked.clear()
            async with asyncio.timeout(20):
                bad, good = await asyncio.gather(lock_first(on_busy), lease_first(), return_exceptions=True)
            assert isinstance(bad, ResourceBusy)
            assert good == "went on"
        assert not (await guard.inspect("binance:APTUSDT")).held


def test_the_change_is_small_and_the_page_shows_it():
    changes = [
        line
        for line in difflib.unified_diff(PLAIN.splitlines(), GUARDED.splitlines(), n=0, lineterm="")
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    added = [line for line in changes if line[0] == "+"]
    assert len(added) <= LINES_MAX
    assert len(changes) - len(added) <= len(added), "nothing was taken away"
    assert f"by the {len(added)} lines" in PAGE
    assert all(f"\n{line}\n" in PAGE for line in changes)


def test_what_the_page_says_to_protect_and_to_export_is_what_is_tried(monkeypatch):
    what = f"{TABLE} --resource '{TEMPLATE}' --exempt {','.join(EXEMPT)}"
    assert f"$ lockguard fence protect {what}\n" in PAGE
    for name, value in re.findall(r"(LOCKGUARD_\w+)=(\S+)", PAGE):
        monkeypatch.setenv(name, value)
    assert Settings.read().options == {
        "ttl": timedelta(seconds=10),
        "lock_delay": timedelta(seconds=20),
        "wait": timedelta(seconds=30),
    }


def test_the_page_names_the_lowest_versions_that_are_tried():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lowest = {
        "Python": project["requires-python"],
        "asyncpg": next(one for one in extras["postgres"] if one.startswith("asyncpg")),
        "ccxt (`ccxt.async_support`)": next(one for one in extras["ccxt"] if one.startswith("ccxt")),
    }
    for name, wanted in lowest.items():
        assert f"| {name} | {wanted.partition('>=')[2]} |" in PAGE


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("--bots", "nowhere"),
            "there is no bot.py in nowhere; run this in a checkout, or name the folder with --bots",
        ),
        (("--bots", str(BOTS), "--rounds", "0"), "--rounds is 0; give 1 or more"),
    ],
    ids=["no-bots", "no-rounds"],
)
def test_the_race_refuses_what_it_cannot_run_in_one_line(words, told):
    done = subprocess.run(
        [sys.executable, "-m", "lockguard_lab.own_bot", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"python -m lockguard_lab.own_bot: error: {told}"
