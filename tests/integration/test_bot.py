"""``lockguard bot run`` as a process: signals, take-over, stopping, and mistakes of its operator."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis.asyncio

from lockguard_asyncpg import install
from lockguard_bot import _stopping
from lockguard_bot._stopping import StopRequest
from lockguard_lab.child_process import signal_child
from lockguard_lab.exchange import Execution, Fault, FaultKind, LocalExchange, Operation, connect
from lockguard_lab.servers import RedisServer
from lockguard_positions import migrate

STREAM = "signals"
FAST = (
    *("--ttl", "1", "--claim-after", "1", "--recover-every", "0.2", "--sync-every", "1"),
    *("--receive-window", "0.5", "--reads-lag", "0.5"),
)
OPEN = {"id": "s1", "action": "open", "symbol": "APTUSDT", "side": "long", "quantity": "10", "stop": "2%"}
SLOW = Fault(FaultKind.DELAY, Operation.CREATE_ORDER, Execution.FIRST, hold_ms=2_500)
LOCK = "lockguard:{binance:APTUSDT}"


@dataclass
class Ended:
    """How a process ended, and what it said."""

    code: int | None
    text: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def outcomes(self) -> dict[str, str]:
        return {
            line["signal"]: line["outcome"] for line in self.lines if {"signal", "outcome"} <= line.keys()
        }


class Process:
    """One bot."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ended = False

    @classmethod
    async def start(cls, env: dict[str, str], *arguments: str, program: str | None = None) -> Process:
        command = ("-m", "lockguard", "bot", "run") if program is None else ("-c", program)
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                *(*command, *arguments),
                env=env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        )

    async def kill(self) -> Ended | None:
        if self._ended:
            return None
        signal_child(self._process, signal.SIGKILL)
        return await self.end()

    def terminate(self) -> None:
        signal_child(self._process, signal.SIGTERM)

    def hang_up(self) -> None:
        signal_child(self._process, signal.SIGHUP)

    async def first_line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode()

    async def end(self, given: str | None = None) -> Ended:
        said, _ = await self._process.communicate(None if given is None else given.encode())
        self._ended = True
        return Ended(self._process.returncode, said.decode())


class Stage:
    """Servers, and bots on them; no bot outlives it."""

    def __init__(
        self, urls: dict[str, str], exchange: LocalExchange, pool: asyncpg.Pool[Any], stream: Any
    ) -> None:
        self.env = {**os.environ, **urls}
        self.exchange = exchange
        self.pool = pool
        self.stream = stream
        self._started: list[Process] = []

    async def bot(self, *arguments: str, **env: str) -> Process:
        process = await Process.start({**self.env, **env}, *arguments)
        self._started.append(process)
        return process

    async def mortal(self, program: str, *arguments: str) -> Process:
        """A bot that something was planted in."""
        process = await Process.start(self.env, *arguments, program=program)
        self._started.append(process)
        return process

    async def run(self, *arguments: str, given: str | None = None, **env: str) -> Ended:
        return await (await self.bot(*arguments, **env)).end(given)

    async def kill_all(self) -> None:
        for process in self._started:
            await process.kill()

    async def ordered(self) -> bool:
        """Whether an entry is on its way: its row and intent are there, its answer is not."""
        return bool(
            await self.pool.fetchval(
                "select exists (select from monitoring.positions where status = 'pending_entry')"
            )
        ) and bool(self.exchange.record().requests and self.exchange.record().entries("APTUSDT"))

    async def protected(self) -> bool:
        return bool(
            await self.pool.fetchval(
                "select exists (select from monitoring.positions where status = 'active')"
            )
        )

    async def acknowledged(self) -> bool:
        groups = await self.stream.xinfo_groups(STREAM)
        return bool(groups) and all((group["pending"], group["lag"]) == (0, 0) for group in groups)

    def sound(self) -> None:
        """One entry, and its stop."""
        record = self.exchange.record()
        assert len(record.entries("APTUSDT")) == 1
        assert len(record.open_stops("APTUSDT")) == 1
        assert record.without_stop() == ()


@pytest.fixture
async def stage(redis_url: str, database_url: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
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
        running = Stage(urls, exchange, pool, stream)
        stack.push_async_callback(running.kill_all)
        yield running


async def until(condition: Callable[[], Awaitable[bool]], *, within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.02)


def lines(*signals: dict[str, str] | str) -> str:
    return "".join((s if isinstance(s, str) else json.dumps(s)) + "\n" for s in signals)


async def test_a_file_and_the_standard_input_are_carried_out_once_each_signal(
    stage: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "signals.jsonl"
    close = {"id": "s2", "action": "close", "symbol": "BTCUSDT"}
    file.write_text(lines(OPEN, "", "garbage", close, {**OPEN, "id": "s3", "symbol": "NOPE"}))
    given = lines(OPEN, {**OPEN, "id": "s4", "symbol": "SOLUSDT", "quantity": "1e-9"}).rstrip("\n")
    done = await stage.run("--once", "--json", "--signals", str(file), "--signals", "-", given=given)
    assert done.code == 0
    assert done.outcomes() == {"s1": "opened", "s2": "nothing open", "s3": "refused", "s4": "refused"}
    (bad,) = [line["message"] for line in done.lines if line.get("where") == f"{file} line 3"]
    assert bad.startswith(f"{file} line 3: 'garbage' is not JSON; write one object a line")
    stage.sound()

    again = await stage.run("--once", "--json", "--signals", str(file))
    assert again.outcomes() == {"s1": "opened", "s2": "nothing open", "s3": "refused"}
    assert all(line["known"] for line in again.lines if line.get("signal") in {"s1", "s2"})
    stage.sound()


async def test_plain_lines_are_for_people_and_tell_where_a_signal_came_from(stage: Stage) -> None:
    done = await stage.run("--once", "--signals", "-", given=lines(OPEN))
    told = "INFO standard input line 1: signal s1: APTUSDT opened position 1: long 10 at 8.5, stop at 8.33"
    assert told in done.text


async def test_another_bot_takes_over_what_a_killed_one_had_in_hand(stage: Stage) -> None:
    stage.exchange.inject(SLOW)
    await stage.stream.xadd(STREAM, OPEN)
    first = await stage.bot("--json", "--stream", STREAM, *FAST)
    await until(stage.ordered)
    await first.kill()
    assert not await stage.acknowledged()
    second = await stage.bot("--json", "--stream", STREAM, *FAST)
    await until(stage.protected)
    await until(stage.acknowledged)
    stage.sound()
    second.terminate()
    ended = await second.end()
    assert (ended.code, ended.outcomes()) == (0, {"s1": "opened"})
    assert (
        await stage.pool.fetchval("select outcome from monitoring.signals where signal_id = 's1'") == "opened"
    )


async def test_two_bots_share_a_stream_and_leave_no_consumer_behind(stage: Stage) -> None:
    for number in range(6):
        await stage.stream.xadd(
            STREAM, {**OPEN, "id": f"s{number}", "symbol": ["APTUSDT", "SOLUSDT"][number % 2]}
        )
    bots = [await stage.bot("--json", "--stream", STREAM, *FAST) for _ in range(2)]
    await until(lambda: group_there(stage))
    await until(stage.acknowledged)
    for bot in bots:
        bot.terminate()
    assert [(await bot.end()).code for bot in bots] == [0, 0]
    rows = await stage.pool.fetch("select outcome, count(*) from monitoring.signals group by 1 order by 1")
    decided = {row["outcome"]: row["count"] for row in rows}
    # Two bots may take two signals of one symbol in either order, and the earlier one is overtaken then.
    assert (decided.pop("opened"), sum(decided.values())) == (2, 4)
    assert decided.keys() <= {"already open", "overtaken"}
    assert await stage.stream.xinfo_consumers(STREAM, "lockguard-bots") == []
    stage.sound()


async def group_there(stage: Stage) -> bool:
    return bool(await stage.stream.xinfo_groups(STREAM))


async def test_sigterm_finishes_the_running_open_and_gives_the_lease_back(stage: Stage) -> None:
    stage.exchange.inject(SLOW)
    bot = await stage.bot("--json", "--signals", "-", *FAST)
    ending = asyncio.create_task(bot.end(lines(OPEN)))
    await until(stage.ordered)
    assert await stage.stream.exists(LOCK)
    bot.terminate()
    ended = await ending
    assert (ended.code, ended.outcomes()) == (0, {"s1": "opened"})
    assert not await stage.stream.exists(LOCK)
    stage.sound()


async def test_a_closed_terminal_is_a_request_to_stop_however_often_it_is_told(stage: Stage) -> None:
    """The default action would end the bot between an entry and its stop."""
    stage.exchange.inject(SLOW)
    bot = await stage.bot("--json", "--signals", "-", *FAST)
    ending = asyncio.create_task(bot.end(lines(OPEN)))
    await until(stage.ordered)
    while not ending.done():
        bot.hang_up()
        await asyncio.sleep(0.05)
    ended = await ending
    assert (ended.code, ended.outcomes()) == (0, {"s1": "opened"})
    assert not await stage.stream.exists(LOCK)
    stage.sound()


@pytest.mark.parametrize("ignored", [False, True])
async def test_a_hang_up_is_no_request_where_it_is_ignored_and_no_insistence(
    *, ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(_stopping, "_end", ended.append)
    heard = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.set)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with StopRequest(at_last=timedelta(minutes=1)) as stopping:
            for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
                assert ended == []
                heard.clear()
                signal.raise_signal(number)
                signal.raise_signal(signal.SIGUSR1)  # the loop hears of them in their order
                await heard.wait()
                assert stopping.is_set() is not (ignored and number == signal.SIGHUP)
        assert ended == [130]
    finally:
        signal.signal(signal.SIGHUP, before)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)


async def test_what_is_not_finished_in_time_is_cut_off_and_its_lease_given_back(stage: Stage) -> None:
    stage.exchange.inject(Fault(FaultKind.DELAY, Operation.CREATE_ORDER, Execution.FIRST, hold_ms=20_000))
    bot = await stage.bot("--json", "--signals", "-", "--stop-within", "0.3", *FAST)
    ending = asyncio.create_task(bot.end(lines(OPEN)))
    await until(stage.ordered)
    bot.terminate()
    ended = await asyncio.wait_for(ending, 15)
    assert "cutting off what has not ended: standard input line 1" in ended.text
    # Its last recovery found the entry and gave it its stop.
    assert ended.code == 0, ended.text
    assert not await stage.stream.exists(LOCK)
    assert await stage.protected()
    stage.sound()


async def test_a_second_signal_ends_at_once(stage: Stage) -> None:
    stage.exchange.inject(Fault(FaultKind.DELAY, Operation.CREATE_ORDER, Execution.FIRST, hold_ms=20_000))
    bot = await stage.bot("--json", "--signals", "-")
    ending = asyncio.create_task(bot.end(lines(OPEN)))
    await until(stage.ordered)
    bot.terminate()
    while not ending.done():
        bot.terminate()
        await asyncio.sleep(0.05)
    ended = await ending
    assert ended.code == 130
    assert "ending at once; the next bot finishes what was begun" in ended.text


async def test_a_bot_that_waits_for_a_server_stops_when_it_is_asked(stage: Stage) -> None:
    bot = await stage.bot("--redis", "redis://127.0.0.1:1/0")
    assert "trying again" in await bot.first_line()
    bot.terminate()
    assert (await bot.end()).code == 0


async def test_a_stream_whose_server_restarts_empty_is_read_on(stage: Stage) -> None:
    with RedisServer() as server:
        bot = await stage.bot("--json", "--stream", STREAM, *FAST, LOCKGUARD_STREAM_REDIS_URL=server.url)
        async with redis.asyncio.Redis.from_url(server.url) as client:
            await until(lambda: consumer_there(client))
        server.kill()
        server.start()
        async with redis.asyncio.Redis.from_url(server.url) as client:
            await client.xadd(STREAM, OPEN)  # type: ignore[arg-type]
        await until(stage.protected)
        bot.terminate()
        assert (await bot.end()).code == 0
    stage.sound()


async def consumer_there(client: Any) -> bool:
    groups = await client.xinfo_groups(STREAM) if await client.exists(STREAM) else []
    return any(group["consumers"] for group in groups)


async def test_what_another_program_left_is_recovered_at_the_start(stage: Stage) -> None:
    """A bot without signals keeps things in step: here it adopts a position and gives it a stop."""
    client = connect(stage.exchange.url)
    try:
        await client.load_markets()
        await client.create_order("APT/USDT:USDT", "market", "buy", 10)
    finally:
        await client.close()
    done = await stage.run("--once", "--json")
    assert done.code == 0
    assert any(line["message"] == "sync: binance:APTUSDT: adopted" for line in done.lines)
    stage.sound()


@pytest.mark.parametrize(
    ("arguments", "env", "code", "told"),
    [
        (["--redis", "redis://:hunter2@127.0.0.1:1/0"], {}, 1, "Redis at 127.0.0.1:1 is not connected"),
        (["--database", "postgresql://u:hunter2@127.0.0.1:1/x"], {}, 1, "database 127.0.0.1:1/x cannot be"),
        (["--exchange", "http://127.0.0.1:1"], {}, 1, "exchange http://127.0.0.1:1 does not answer"),
        (["--exchange", "nope"], {}, 2, "ccxt has no exchange 'nope'; write binanceusdm"),
        (["--exchange", "binanceusdm"], {}, 2, "needs the account's keys; set LOCKGUARD_EXCHANGE_API_KEY"),
        ([], {"LOCKGUARD_EXCHANGE_API_KEY": "hunter2"}, 2, "binance refused the keys"),
        (["--redis", "foo://u:hunter2@x"], {}, 2, "which is none of a Redis"),
        (["--stream", "s", "--stream-redis", "redis+cluster://:hunter2@x:1"], {}, 2, "URL of one server"),
        (["--signals", "/no/such"], {}, 2, "File '/no/such' does not exist"),
        (["--alert", "foo://u:hunter2@x"], {}, 2, "alert URL 1 (foo://...) is none that apprise knows"),
        (["--ttl", "-1"], {}, 2, "Invalid value for '--ttl'"),
    ],
)
async def test_a_mistake_is_one_line_without_secrets(
    stage: Stage, arguments: list[str], env: dict[str, str], code: int, told: str
) -> None:
    done = await stage.run("--once", "--connect-within", "0", *arguments, **env)
    assert done.code == code
    last = done.text.splitlines()[-1]
    assert last.startswith("lockguard: ")
    assert told in last
    assert "Traceback" not in done.text
    assert "hunter2" not in done.text


@pytest.mark.parametrize(
    ("undo", "told"),
    [
        (
            "drop table monitoring.signals; delete from monitoring.schema_version where version >= 9",
            "has version 8",
        ),
        ("drop schema lockguard cascade", "'lockguard fence install' makes it"),
    ],
)
async def test_a_schema_that_is_missing_is_named_with_its_remedy(stage: Stage, undo: str, told: str) -> None:
    await stage.pool.execute(undo)
    done = await stage.run("--once")
    assert (done.code, told in done.text, "Traceback" in done.text) == (2, True, False)


async def test_the_servers_of_the_guide_are_ready_for_a_bot(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/howto/run-several-bots.md"
    (program,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "servers.py").write_text(program, encoding="utf-8")
    servers = await asyncio.create_subprocess_exec(
        sys.executable,
        tmp_path / "servers.py",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert servers.stdout is not None
    try:
        exports = [(await servers.stdout.readline()).decode().split()[1].split("=", 1) for _ in range(3)]
        bot = await Process.start({**os.environ, **dict(exports)}, "--once", "--json", "--signals", "-")
        assert (await bot.end(lines(OPEN))).outcomes() == {"s1": "opened"}
    finally:
        signal_child(servers, signal.SIGINT)
        await servers.communicate()
