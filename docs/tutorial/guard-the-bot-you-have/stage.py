"""What the races need: bots as real processes, a link that can be held, and a view of the results."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil

from lockguard import LockGuard
from lockguard_asyncpg import install
from lockguard_lab.exchange import LOCAL_API_KEY, LOCAL_SECRET, ExchangeRecord, LocalExchange

HERE = Path(__file__).parent
PATIENCE_SECONDS = 60
POLL_SECONDS = 0.01
REFUSAL = re.compile(rb"C(LG\d{3})\x00M([^\x00]+)\x00")


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for a condition, such as the state of another process."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(POLL_SECONDS)


class Link:
    """A bot's connections to one server. Held, they are a network that stalls: what is sent arrives later.

    Args:
        url: of the server.
        hold_at: hold what contains these bytes, from the start.
    """

    def __init__(self, url: str, hold_at: bytes | None = None) -> None:
        self._parts = urlsplit(url)
        self._hold_at = hold_at or b""
        self._open = asyncio.Event()
        if hold_at is None:
            self._open.set()
        self._carrying: set[asyncio.Task[None]] = set()
        self.waiting = 0  # how many messages are held
        self.answered = 0  # how many of the server's messages came back
        self.refusals: list[str] = []  # of Postgres, in its own words

    @property
    def url(self) -> str:
        """The server's, by way of the link."""
        user, at, _ = self._parts.netloc.rpartition("@")
        port = self._server.sockets[0].getsockname()[1]
        return urlunsplit(self._parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))

    def hold(self) -> None:
        """From now on hold everything that is sent."""
        self._hold_at = b""
        self._open.clear()

    def release(self) -> None:
        """Let everything pass."""
        self.waiting = self.answered = 0
        self._open.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        writers = [writer]
        try:
            back_reader, back_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
            writers.append(back_writer)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._there(reader, back_writer))
                ways.create_task(self._back(back_reader, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._carrying.discard(task)
            for one in writers:
                one.close()

    async def _there(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65_536):
            if not self._open.is_set() and self._hold_at in chunk:
                self.waiting += 1
                await self._open.wait()
            writer.write(chunk)
            await writer.drain()
        writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65_536):
            self.refusals += [f"{code.decode()} {text.decode()}" for code, text in REFUSAL.findall(chunk)]
            writer.write(chunk)
            await writer.drain()
            self.answered += 1
        writer.close()


class BotProcess:
    """A bot's process, its standard input, and the lines that it has logged."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []
        self.listening = asyncio.create_task(self._listen())

    def said(self, text: str) -> bool:
        """Whether a line that it logged contains ``text``."""
        return any(text in line for line in self.lines)

    def tell(self, signal_: str) -> None:
        """Give it a signal."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{signal_}\n".encode())

    async def ended(self) -> None:
        """Close its standard input and wait for its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._process.wait()
            await self.listening

    async def stop(self) -> None:
        """SIGSTOP: the process stops running, as on a machine that swaps, migrates or sleeps."""
        self._process.send_signal(signal.SIGSTOP)
        inside = psutil.Process(self._process.pid)
        await until(lambda: inside.status() == psutil.STATUS_STOPPED)

    def go_on(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL, if it still runs; works on a stopped one too."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self.listening

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.lines.append(line.decode(errors="replace").rstrip())


@dataclass
class Stage:
    """A database, an exchange and a Redis, and the bots that run on them."""

    redis_url: str
    database_url: str
    exchange: LocalExchange
    database: asyncpg.Connection[Any]
    guard: LockGuard
    bots: list[BotProcess] = field(default_factory=list)

    @property
    def record(self) -> ExchangeRecord:
        """The exchange's own record."""
        return self.exchange.record()

    async def bot(self, name: str, *argv: str, exchange: str = "", database: str = "") -> BotProcess:
        """Start a bot's process; ``exchange`` and ``database`` are URLs of links."""
        environment = {
            **os.environ,
            "API_KEY": LOCAL_API_KEY,
            "API_SECRET": LOCAL_SECRET,
            "REDIS_URL": self.redis_url,
            "DATABASE_URL": database or self.database_url,
            "EXCHANGE_URL": exchange or self.exchange.url,
        }
        bot = BotProcess(
            await asyncio.create_subprocess_exec(
                *(sys.executable, str(HERE / "fast.py"), str(HERE / name), *argv),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
            )
        )
        self.bots.append(bot)
        return bot

    async def ready(self, *bots: BotProcess) -> None:
        """Wait until bots take signals."""
        await until(lambda: all(bot.said("ready") or bot.listening.done() for bot in bots))
        if silent := next((bot for bot in bots if not bot.said("ready")), None):
            raise RuntimeError("a bot did not start: " + "\n".join(silent.lines))

    async def sync(self, name: str) -> BotProcess:
        """Let a bot make one sync pass."""
        bot = await self.bot(name, "sync")
        await bot.ended()
        return bot

    async def queued(self, resource: str) -> bool:
        """Whether a process waits for the lease."""
        return bool((await self.guard.inspect(resource)).waiters)

    async def rows(self, symbol: str) -> list[str]:
        """The status of each row of a symbol."""
        found = await self.database.fetch(
            "select status from monitoring.positions where symbol = $1 order by id", symbol
        )
        return [row["status"] for row in found]

    def stops(self, symbol: str) -> int:
        """How many stops wait on the exchange."""
        return len(self.record.open_stops(symbol))

    async def protect(self) -> None:
        """What step 3 does."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lockguard", "fence", "protect", "monitoring.positions"),
            *("--resource", "{exchange}:{symbol}", "--exempt", "current_price"),
            env={**os.environ, "LOCKGUARD_DATABASE_URL": self.database_url},
            stdout=asyncio.subprocess.DEVNULL,
        )
        if await process.wait():
            raise RuntimeError("lockguard fence protect failed")


@asynccontextmanager
async def stage(redis_url: str, database_url: str) -> AsyncIterator[Stage]:
    """An empty table, an exchange without positions; no process is left behind."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("drop schema if exists monitoring cascade")
        await connection.execute((HERE / "schema.sql").read_text())
        await install(connection)
        async with LocalExchange() as exchange, LockGuard.from_url(redis_url) as guard:
            made = Stage(redis_url, database_url, exchange, connection, guard)
            try:
                yield made
            finally:
                for bot in made.bots:
                    await bot.kill()
    finally:
        await connection.close()
