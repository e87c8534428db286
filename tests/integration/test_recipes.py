"""The recipes do what their page says, in several processes that are killed and stopped."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lockguard import LockGuard
from lockguard_lab.exchange import LocalExchange
from lockguard_lab.servers import RedisServer
from tests.integration.examples import EXAMPLES, RUNNER, Stage, until

CANDLE_S = "1"
STAND_IN = Path(__file__).parent / "hummingbot_stand_in.py"


@pytest.fixture
def own_redis():
    """One that a test may stop and restart."""
    with RedisServer() as server:
        yield server


def candles(*instances):
    """Which candles were acted upon, and how often."""
    said = [line.split() for one in instances for line in one.lines]
    return Counter(int(words[1]) for words in said if words[:1] == ["candle"] and len(words) == 2)


# --- once per candle ---


@pytest.mark.slow
async def test_of_two_instances_one_acts_on_each_candle(redis_url, example_database, database_url):
    """The clock of one of them is wrong by a minute; one is killed; the other acts alone."""
    async with LocalExchange() as exchange, Stage(redis_url, database_url, exchange.url) as stage:
        instances = [
            await stage.example("once_per_candle.py", CANDLE_SECONDS=CANDLE_S, EXAMPLE_CLOCK_S=wrong)
            for wrong in ("0", "60")
        ]
        await until(lambda: len(candles(*instances)) >= 7)
        assert len(candles(*instances)) == candles(*instances).total()
        await instances[0].kill()
        await until(lambda: len(candles(*instances)) >= 10)
        acted = candles(*instances)
    assert set(acted.values()) == {1}, acted
    assert max(acted) - min(acted) < 13, acted  # ten of ten, unless this machine was too busy


async def test_a_redis_that_forgets_everything_makes_no_candle_run_twice(
    redis_server, redis_url, example_database, database_url
):
    async with LocalExchange() as exchange, Stage(redis_url, database_url, exchange.url) as stage:
        instances = [await stage.example("once_per_candle.py", CANDLE_SECONDS="0.4") for _ in range(2)]
        async with asyncio.timeout(60):
            while len(candles(*instances)) < 6:
                redis_server.command("FLUSHALL")
                await asyncio.sleep(0.002)
        acted = candles(*instances)
    assert set(acted.values()) == {1}, acted


# --- leader and standby ---


async def leaders(database):
    """Which processes wrote as the leader, one after the other."""
    beats = await database.fetch("select process from beats order by id")
    return [process for process, _ in itertools.groupby(beat["process"] for beat in beats)]


@pytest.mark.slow
async def test_the_standby_takes_over_after_a_kill_within_ttl_and_after_an_end_at_once(
    own_redis, example_database, database_url
):
    async with Stage(own_redis.url, database_url) as stage:

        async def start():
            return await stage.example("leader_and_standby.py", LOCKGUARD_TTL="3s")

        first = await start()
        await first.says("leads")
        second = await start()
        await until(lambda: own_redis.command("ZCARD", "lockguard:{leader:bot-7}:queue") == 1)
        left_s = own_redis.command("PTTL", "lockguard:{leader:bot-7}") / 1000
        killed_at = time.monotonic()
        await first.kill()
        await second.says("leads")
        assert time.monotonic() - killed_at < left_s + 1

        third = await start()
        await until(lambda: own_redis.command("ZCARD", "lockguard:{leader:bot-7}:queue") == 1)
        left_s = own_redis.command("PTTL", "lockguard:{leader:bot-7}") / 1000
        ended_at = time.monotonic()
        second.tell(signal.SIGTERM)
        await third.says("leads")
        assert time.monotonic() - ended_at < left_s  # did not wait for the lease to run out
        assert await second.ended() == 0, second.lines
        assert (
            await leaders(example_database)
            == [first.pid, second.pid, third.pid][: len(await leaders(example_database))]
        )


async def test_a_leader_that_was_stopped_leads_no_longer_and_one_writes_at_a_time(
    own_redis, example_database, database_url
):
    async with Stage(own_redis.url, database_url) as stage:
        first = await stage.example("leader_and_standby.py", LOCKGUARD_TTL="1s")
        await first.says("leads")
        second = await stage.example("leader_and_standby.py", LOCKGUARD_TTL="1s")
        await until(lambda: own_redis.command("ZCARD", "lockguard:{leader:bot-7}:queue") == 1)
        await first.stop()
        await second.says("leads")
        first.tell(signal.SIGCONT)
        await until(lambda: first.said("leads no longer") or first.said("stands by"))

        own_redis.restart(keep_data=False)
        led = first.said("leads") + second.said("leads")
        await until(lambda: first.said("leads") + second.said("leads") > led)
        count = await example_database.fetchval("select count(*) from beats")
        while await example_database.fetchval("select count(*) from beats") == count:
            await asyncio.sleep(0.01)
        changes = await leaders(example_database)
        assert len(changes) <= sum(line == "leads" for one in (first, second) for line in one.lines)


async def test_a_standby_says_for_whom_it_waits_and_which_server_does_not_answer(
    own_redis, example_database, database_url, tmp_path
):
    shown = (EXAMPLES / "leader_and_standby.py").read_text("utf-8")
    program = tmp_path / "standby.py"
    program.write_text(shown.replace("wait=timedelta(minutes=1)", "wait=timedelta(seconds=1)"), "utf-8")
    async with Stage(own_redis.url, database_url) as stage:
        async with (
            LockGuard.from_url(own_redis.url) as guard,
            guard.hold("leader:bot-7", operation="upgrade"),
        ):
            standby = await stage.run(sys.executable, program, LOCKGUARD_TTL="2s")
            await standby.says("(upgrade, token")
        await standby.says("leads")
        own_redis.kill()
        await standby.says("stands by: cannot lock 'leader:bot-7': Redis at")


# --- a script of hummingbot, run by a stand-in ---


@pytest.mark.slow
async def test_of_two_instances_of_a_hummingbot_script_one_trades_and_the_next_goes_on(own_redis):
    async with LocalExchange() as exchange, Stage(own_redis.url, "", exchange.url) as stage:

        async def start():
            return await stage.run(
                sys.executable, RUNNER, STAND_IN, EXAMPLES / "hummingbot_script.py", LOCKGUARD_TTL="5s"
            )

        first, second = await start(), await start()
        await until(lambda: first.said("ordered") or second.said("ordered"))
        leader, standby = (first, second) if first.said("ordered") else (second, first)
        await leader.stop()
        await standby.says("this instance trades")
        leader.tell(signal.SIGCONT)
        await leader.says("stands by")
        await until(lambda: own_redis.command("ZCARD", "lockguard:{leader:binance_perpetual}:queue") == 1)

        standby.tell(signal.SIGTERM)  # the command "stop": its client runs on
        await standby.says("stopped")
        await leader.says("this instance trades", times=2)
        assert len(exchange.record().entries("APTUSDT")) == 1
