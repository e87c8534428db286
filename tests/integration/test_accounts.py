"""Two accounts at one exchange share a database and a Redis, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal

import asyncpg
import pytest
from click.testing import CliRunner, Result

from lockguard import LockGuard
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import PostgresFence, install
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_lab.exchange import LOCAL_API_KEY, LOCAL_SECRET, LocalExchange, Side, connect
from lockguard_positions import (
    Alert,
    AtomicPositionManager,
    ExchangeUnreadable,
    NotOpened,
    Opened,
    Pace,
    PositionEvent,
    SyncAction,
    migrate,
)
from lockguard_positions._cli import positions
from tests.integration.test_bot import FAST, OPEN, STREAM, Stage, stage, until

__all__ = ["stage"]

MS = timedelta(milliseconds=1)
SECOND = {"api_key": "second-key", "secret": "second-secret"}


@pytest.fixture
async def manager(redis_url: str, database_url: str) -> AsyncIterator[AtomicPositionManager]:
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        exchange.add_account("second", **SECOND)
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=8))
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
        guard = await stack.enter_async_context(LockGuard.from_url(redis_url, fence=PostgresFence(pool)))
        keys = {"scalper": {"api_key": LOCAL_API_KEY, "secret": LOCAL_SECRET}, "swing": SECOND}
        accounts = []
        for label, key in keys.items():
            client = connect(exchange.url, **key)
            stack.push_async_callback(client.close)
            patience = Patience(needed=100 * MS, search=200 * MS, poll=20 * MS)
            accounts.append(GuardedExchange(client, account=label, patience=patience))
            await accounts[-1].load()
        yield AtomicPositionManager(guard, pool, accounts, pace=Pace(poll=20 * MS, grace=0 * MS))


async def test_a_pass_over_one_account_leaves_the_rows_of_the_other_alone(
    manager: AtomicPositionManager,
) -> None:
    """On 8290112 both were 'binance': the pass of an account that held nothing closed the other's rows."""
    opened = await manager.open_position_atomic("s1", "APTUSDT", "binance@scalper", "long", "10", "8.5", "2")
    assert isinstance(opened, Opened)
    assert opened.position.exchange == "binance@scalper"
    assert (await manager.sync_exchange_positions("binance@swing")).outcomes == ()
    again = await manager.sync_exchange_positions("binance@scalper")
    assert [outcome.action for outcome in again.outcomes] == [SyncAction.IN_STEP]
    other = await manager.open_position_atomic("s1", "APTUSDT", "binanceusdm@swing", "short", "5", "8.5", "2")
    assert isinstance(other, Opened)
    closed = await manager.close_position("APTUSDT", "binance@scalper")
    assert closed is not None
    assert closed.status.value == "closed"
    assert (await manager.sync_exchange_positions("binance@swing")).settled


async def test_an_account_without_its_label_is_none_of_them(manager: AtomicPositionManager) -> None:
    with pytest.raises(ConfigurationError, match=r"'binance' was not given.*binance@scalper, binance@swing"):
        await manager.sync_exchange_positions("binance")


async def test_a_market_of_another_account_is_refused_before_anything_is_sent(redis_url: str) -> None:
    """Its lock is that of the other account: two bots would trade the one, each under a lock of its own."""
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        client = connect(exchange.url)
        stack.push_async_callback(client.close)
        one, two = GuardedExchange(client, account="a"), GuardedExchange(client, account="b")
        await one.load()
        guard = await stack.enter_async_context(LockGuard.from_url(redis_url))
        market = two.market("APTUSDT")
        assert (market.resource, one.market("APTUSDT").resource) == ("binance@b:APTUSDT", "binance@a:APTUSDT")
        async with guard.hold(market.resource):
            with pytest.raises(
                ConfigurationError, match=r"APT/USDT:USDT of binance@b was given to binance@a"
            ):
                await one.place_entry(market, "buy", Decimal(10), intent=1)
        assert exchange.record().orders == ()


async def test_one_account_under_two_labels_is_refused(redis_url: str, database_url: str) -> None:
    one, two = connect("http://127.0.0.1:1"), connect("http://127.0.0.1:1")
    try:
        async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
            async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
                accounts = [GuardedExchange(one, account="a"), GuardedExchange(two, account="b")]
                with pytest.raises(ConfigurationError, match="have the same API key"):
                    AtomicPositionManager(guard, pool, accounts)
    finally:
        await one.close()
        await two.close()


@pytest.mark.parametrize("before", ["", "a key of before"])
async def test_keys_that_become_one_after_the_manager_was_made_open_nothing(
    redis_url: str, database_url: str, before: str
) -> None:
    """Keys are read from a vault late, or are exchanged while the bot runs."""
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=4))
        guard = await stack.enter_async_context(LockGuard.from_url(redis_url, fence=PostgresFence(pool)))
        clients = [connect(exchange.url), connect(exchange.url)]
        for client in clients:
            stack.push_async_callback(client.close)
        clients[1].apiKey = before
        accounts = [GuardedExchange(clients[0], account="a"), GuardedExchange(clients[1], account="b")]
        manager = AtomicPositionManager(guard, pool, accounts)
        clients[1].apiKey = clients[0].apiKey
        for account in accounts:
            await account.load()
            with pytest.raises(ConfigurationError, match="have the same API key"):
                await manager.open_position_atomic("s", "APTUSDT", account.name, "long", "10", "8.5", "2")
        assert exchange.record().orders == ()


async def test_one_account_under_two_labels_in_two_processes_is_told_of_and_gets_no_second_row(
    redis_url: str, database_url: str
) -> None:
    """Each process sees one label. What tells is the account: it knows the orders of the other's rows."""
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        exchange.add_account("second", **SECOND)
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=8))
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
        guard = await stack.enter_async_context(LockGuard.from_url(redis_url, fence=PostgresFence(pool)))
        heard = Heard()
        managers = {}
        for label, key in (("a", {}), ("b", {}), ("other", SECOND)):
            client = connect(exchange.url, **key)
            stack.push_async_callback(client.close)
            guarded = GuardedExchange(client, account=label, patience=Patience(search=200 * MS))
            await guarded.load()
            managers[label] = AtomicPositionManager(
                guard, pool, [guarded], pace=Pace(poll=20 * MS, grace=0 * MS), observers=[heard]
            )
        opened = await managers["a"].open_position_atomic(
            "s", "APTUSDT", "binance@a", "long", "10", "8.5", "2"
        )
        assert isinstance(opened, Opened)
        for _ in range(2):
            (outcome,) = (await managers["b"].sync_exchange_positions("binance@b")).outcomes
            assert outcome.action is SyncAction.LEFT_ALONE
        (alert,) = heard.alerts
        assert "binance@b and binance@a one label" in alert
        refused = await managers["b"].open_position_atomic(
            "s", "APTUSDT", "binance@b", "long", "10", "8.5", "2"
        )
        assert isinstance(refused, NotOpened)
        assert "binance@a" in refused.reason
        record = exchange.record()
        assert (len(record.entries("APT/USDT:USDT")), len(record.open_stops("APT/USDT:USDT"))) == (1, 1)
        # A true second account with the very same position is none of its business.
        exchange.trade_by_hand("APT/USDT:USDT", Side.BUY, Decimal(10), account="second")
        (adopted,) = (await managers["other"].sync_exchange_positions("binance@other")).outcomes
        assert adopted.action is SyncAction.ADOPTED


@pytest.mark.parametrize("holds", [25, 0])
async def test_a_close_with_the_key_of_another_account_sells_nothing_there_then_or_later(
    redis_url: str, database_url: str, holds: int
) -> None:
    """A person asked for it, and holds the same symbol there; or buys it after the close was refused."""
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        exchange.add_account("second", **SECOND)
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=4))
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
        guard = await stack.enter_async_context(LockGuard.from_url(redis_url, fence=PostgresFence(pool)))
        client = connect(exchange.url)
        stack.push_async_callback(client.close)
        guarded = GuardedExchange(client)
        await guarded.load()
        opener = AtomicPositionManager(guard, pool, [guarded])
        opened = await opener.open_position_atomic("s", "APTUSDT", "binance", "long", "10", "8.5", "2")
        assert isinstance(opened, Opened)
        # A young row's orders are looked for patiently, as they may not be listed yet.
        await pool.execute("update monitoring.positions set opened_at = opened_at - '1 h'::interval")
        urls = {
            "LOCKGUARD_REDIS_URL": redis_url,
            "LOCKGUARD_DATABASE_URL": database_url,
            "LOCKGUARD_EXCHANGE_URL": exchange.url,
        }
        theirs = {
            "LOCKGUARD_EXCHANGE_API_KEY": SECOND["api_key"],
            "LOCKGUARD_EXCHANGE_SECRET": SECOND["secret"],
        }

        async def call(*arguments: str, **key: str) -> Result:
            runner = CliRunner(env={**urls, **key})
            return await asyncio.to_thread(runner.invoke, positions, list(arguments))

        if holds:
            exchange.trade_by_hand("APT/USDT:USDT", Side.BUY, Decimal(holds), account="second")
        for confirmed in ([], ["--confirm"]):
            done = await call("close", "APTUSDT", *confirmed, **theirs)
            assert isinstance(done.exception, ExchangeUnreadable), done.output
            told = str(done.exception)
            assert told.startswith(
                f"binance:APTUSDT position {opened.position.id}: the account has never had"
            )
            assert "check the key" in told
        exchange.trade_by_hand("APT/USDT:USDT", Side.BUY, Decimal(10), account="second")
        assert (await call("recover", "--confirm", **theirs)).exit_code == 0
        found = await call("diagnose", **theirs)
        assert (found.exit_code, "mismatch" in found.output) == (1, True), found.output
        (row,) = await pool.fetch("select status, exit_reason from monitoring.positions")
        assert tuple(row) == ("active", None)
        record = exchange.record()
        assert record.of("second").position("APTUSDT") == holds + 10
        own = record.of("main")
        assert (own.position("APTUSDT"), len(own.open_stops("APTUSDT"))) == (10, 1)
        for confirmed in ([], ["--confirm"]):  # a mistyped label is not a position that is closed
            done = await call("close", "APTUSDT", "--account", "scalpr", *confirmed)
            assert done.exit_code == 1
            assert f"other labels have: position {opened.position.id} of binance" in done.output
        assert (
            "--confirm closes it with a reduce-only market order and takes its stop back"
            in (await call("close", "APTUSDT")).output
        )
        assert (await call("close", "APTUSDT", "--confirm")).exit_code == 0
        assert exchange.record().of("main").position("APTUSDT") == 0


class Heard:
    def __init__(self) -> None:
        self.alerts: list[str] = []

    def on(self, event: PositionEvent) -> None:
        if isinstance(event, Alert):
            self.alerts.append(event.message)


async def test_two_bots_of_two_accounts_carry_out_the_same_signals_each_for_its_own(stage: Stage) -> None:
    stage.exchange.add_account("second", **SECOND)
    accounts = (("scalper", LOCAL_API_KEY, LOCAL_SECRET), ("swing", SECOND["api_key"], SECOND["secret"]))
    bots = [
        await stage.bot(
            *("--json", "--stream", STREAM, "--account", label, *FAST),
            LOCKGUARD_EXCHANGE_API_KEY=key,
            LOCKGUARD_EXCHANGE_SECRET=secret,
        )
        for label, key, secret in accounts
    ]
    await stage.stream.xadd(STREAM, OPEN)
    active = "select count(*) = 2 from monitoring.positions where status = 'active'"
    await until(lambda: there(stage, active))
    for bot in bots:
        bot.terminate()
    ended = [await bot.end() for bot in bots]
    assert [(end.code, end.outcomes()) for end in ended] == [(0, {"s1": "opened"})] * 2
    rows = await stage.pool.fetch("select exchange, symbol, status from monitoring.positions order by 1")
    assert [tuple(row) for row in rows] == [
        ("binance@scalper", "APTUSDT", "active"),
        ("binance@swing", "APTUSDT", "active"),
    ]
    record = stage.exchange.record()
    assert len(record.entries("APTUSDT")) == 2
    assert record.of("second").position("APTUSDT") == Decimal(10)


async def there(stage: Stage, query: str) -> bool:
    return bool(await stage.pool.fetchval(query))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--account", "a:b"], "account label 'a:b' cannot be part of a name; write 1 to 32 of"),
        (["--adopt", "sell"], "adopt='sell' is not known; write 'off', 'alert', 'stop'"),
        (["--option", "recvwindow=1"], "has no option 'recvwindow'; write recvWindow if you mean that"),
        (["--option", "secret=hunter2"], "set LOCKGUARD_EXCHANGE_SECRET instead"),
        (["--exchange", "binanceusd"], "ccxt has no exchange 'binanceusd'"),
    ],
)
async def test_what_cannot_be_is_one_line_before_any_order(
    stage: Stage, arguments: list[str], told: str
) -> None:
    done = await stage.run("--once", *arguments)
    assert done.code == 2
    assert told in done.text.splitlines()[-1]
    assert "Traceback" not in done.text
    assert "hunter2" not in done.text
    assert stage.exchange.record().orders == ()
