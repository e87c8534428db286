"""``lockguard run`` whose lease ends: no process of its command outlives it, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import redis

from lockguard import LockGuard
from lockguard_lab.servers import FaultProxy, RedisServer

NAME = "backup:db1"
LOCK = f"lockguard:{{{NAME}}}"
TTL_S = 3
STOP_WITHIN_S = 1
ALL = {"command", "child", "session"}
LOST = 123


@dataclass
class Run:
    """A running `lockguard run`, and what its command wrote."""

    process: subprocess.Popen[bytes]
    file: Path

    def lines(self) -> list[tuple[str, int, str, float]]:
        told = self.file.read_text().splitlines() if self.file.exists() else []
        return [(n, int(p), w, float(t)) for n, p, w, t in (line.split() for line in told)]

    def pids(self) -> dict[str, int]:
        return {name: pid for name, pid, _, _ in self.lines()}

    def watchdog(self) -> int:
        return psutil.Process(self.pids()["command"]).ppid()

    async def dead_at(self) -> float:
        """Wait until none of the command's processes is left; returns when the last one still lived."""
        pids = self.pids()
        await until(lambda: not any(lives(pid) for pid in pids.values()))
        assert set(pids) == ALL
        return max(at for *_, at in self.lines())

    def termed_at(self) -> float:
        (at,) = [at for _, _, word, at in self.lines() if word == "TERM"]
        return at

    async def end(self) -> tuple[int, str]:
        code = await asyncio.to_thread(self.process.wait, 30)
        return code, self.file.with_name("err").read_text()


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(url: str, folder: Path, *options: str) -> AsyncIterator[Run]:
    file = folder / "lives"
    victim = Path(__file__).with_name("run_victim.py")
    times = ("--ttl", f"{TTL_S}s", "--stop-within", f"{STOP_WITHIN_S}s")
    command = [sys.executable, str(victim), str(file)]
    with (folder / "err").open("wb") as err:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "lockguard", "run", NAME, *times, *options, "--", *command],
            env={**os.environ, "LOCKGUARD_REDIS_URL": url},
            stderr=err,
        )
    run = Run(process, file)
    try:
        await until(lambda: set(run.pids()) == ALL)
        yield run
    finally:
        for pid in [process.pid, *run.pids().values()]:
            if lives(pid):
                os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait, 30)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as made:
        yield made


def drops_at(client: redis.Redis) -> float:
    """When the server drops the lock unless it is renewed: from then on another holder may begin."""
    return int(client.execute_command("PEXPIRETIME", LOCK)) / 1000  # type: ignore[arg-type]


Note = Callable[[str, object], None]


def note(record: Note, name: str, length_s: float) -> None:
    record(name, f"{length_s / TTL_S:+.4f} ttl")


async def test_out_of_redis_s_reach_it_gets_term_in_time_and_all_are_dead_before_the_lock_is_free(
    redis_server: RedisServer, client: redis.Redis, tmp_path: Path, record_property: Note
) -> None:
    async with (
        FaultProxy(redis_server.port) as proxy,
        running(proxy.url_for(redis_server.url), tmp_path) as run,
    ):
        proxy.partition()
        await until(lambda: not client.exists(LOCK) or run.process.poll() is not None)
        free_at = time.time()
        dead_at = await run.dead_at()
        assert run.termed_at() < dead_at < free_at
        note(record_property, "from TERM to the last death", dead_at - run.termed_at())
        note(record_property, "from the last death to the free lock", free_at - dead_at)
        assert dead_at - run.termed_at() > 0.5 * STOP_WITHIN_S
        code, told = await run.end()
    assert (code, told.count("\n")) == (LOST, 1)
    assert "could not be renewed in time" in told or "lost: expired" in told


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_with_lockguard_run_stopped_or_killed_all_are_dead_before_the_lock_is_free(
    redis_url: str, client: redis.Redis, tmp_path: Path, how: str, record_property: Note
) -> None:
    async with running(redis_url, tmp_path) as run:
        os.kill(run.process.pid, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
        began = time.time()
        free_at = drops_at(client)
        dead_at = await run.dead_at()
        assert run.termed_at() < dead_at < free_at
        note(record_property, f"{how}: from the fault to the last death", dead_at - began)
        note(record_property, f"{how}: from the last death to the free lock", free_at - dead_at)
        if how == "stopped":
            await until(lambda: not client.exists(LOCK))
            os.kill(run.process.pid, signal.SIGCONT)
            code, told = await run.end()
            assert code == LOST
            assert told.startswith("lockguard: the command was ended: ")


@pytest.mark.parametrize("how", ["broken", "deleted", "stolen"])
async def test_with_its_lock_taken_away_all_are_dead_soon_after_the_next_renewal(
    redis_url: str, client: redis.Redis, tmp_path: Path, how: str, record_property: Note
) -> None:
    async with running(redis_url, tmp_path) as run, LockGuard.from_url(redis_url) as other:
        began = time.time()
        if how == "broken":
            await other.break_(NAME, reason="stuck")
        elif how == "deleted":
            client.delete(LOCK)
        else:
            client.hset(LOCK, "grant", "f" * 32)
        dead_at = await run.dead_at()
        assert run.termed_at() < dead_at
        note(record_property, f"{how}: from the fault to the last death", dead_at - began)
        note(record_property, f"{how}: from TERM to the last death", dead_at - run.termed_at())
        assert dead_at - began < 0.9 * TTL_S  # a third, a twentieth, and what a busy machine takes
        code, told = await run.end()
    assert (code, told.count("\n")) == (LOST, 1)
    assert "the command was ended: the lease on" in told


async def test_with_the_watchdog_killed_the_command_and_all_that_it_started_are_killed(
    redis_url: str, client: redis.Redis, tmp_path: Path, record_property: Note
) -> None:
    async with running(redis_url, tmp_path) as run:
        os.kill(run.watchdog(), signal.SIGKILL)
        began = time.time()
        dead_at = await run.dead_at()
        note(record_property, "watchdog killed: from the fault to the last death", dead_at - began)
        code, told = await run.end()
        assert not client.exists(LOCK), "its lease was released"
    assert code == LOST
    assert "watchdog" in told


async def test_with_the_watchdog_stopped_a_lost_lease_ends_the_command_all_the_same(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    async with running(redis_url, tmp_path) as run:
        os.kill(run.watchdog(), signal.SIGSTOP)
        client.delete(LOCK)
        await run.dead_at()
        code, _ = await run.end()
    assert code == LOST


async def test_with_the_watchdog_stopped_too_the_command_is_killed_at_the_deadline(
    redis_server: RedisServer, client: redis.Redis, tmp_path: Path, record_property: Note
) -> None:
    async with (
        FaultProxy(redis_server.port) as proxy,
        running(proxy.url_for(redis_server.url), tmp_path) as run,
    ):
        os.kill(run.watchdog(), signal.SIGSTOP)
        proxy.partition()
        await until(lambda: not client.exists(LOCK))
        free_at = time.time()
        dead_at = await run.dead_at()
        note(record_property, "watchdog stopped: from the free lock to the last death", dead_at - free_at)
        assert dead_at - free_at < 0.2 * TTL_S
        code, _ = await run.end()
    assert code == LOST


async def test_processes_that_fork_faster_than_they_can_be_listed_are_ended_too(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """Each lives for 3 ms, in a session of its own, and leaves one behind."""
    file = tmp_path / "lives"
    script = """
import os, signal, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end = time.monotonic() + 20
for _ in range(3):
    if os.fork() == 0:
        while time.monotonic() < end:
            if os.fork() != 0:
                os._exit(0)
            os.setsid()
            time.sleep(0.003)
            os.write(file, b".")
        os._exit(0)
time.sleep(20)
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lockguard", "run", NAME, "--ttl", f"{TTL_S}s", "--"),
        *(sys.executable, "-c", script, str(file)),
        env={**os.environ, "LOCKGUARD_REDIS_URL": redis_url},
        stderr=subprocess.DEVNULL,
    )
    await until(lambda: file.exists() and file.stat().st_size > 100)
    client.delete(LOCK)
    assert await process.wait() == LOST
    written = file.stat().st_size
    await asyncio.sleep(0.1)  # thirty times as long as one lives
    assert file.stat().st_size == written


async def test_what_was_stopped_as_a_whole_beyond_its_lease_is_killed_when_it_goes_on(
    redis_url: str, client: redis.Redis, tmp_path: Path, record_property: Note
) -> None:
    """As a paused container. Until it goes on it can do no harm, and then only for a moment."""
    async with running(redis_url, tmp_path) as run:
        everything = [run.process.pid, run.watchdog(), *run.pids().values()]
        for pid in everything:
            os.kill(pid, signal.SIGSTOP)
        await until(lambda: not client.exists(LOCK))
        began = time.time()
        for pid in everything:
            with suppress(ProcessLookupError):  # what went on before it has killed it already
                os.kill(pid, signal.SIGCONT)
        dead_at = await run.dead_at()
        note(record_property, "paused: from the resume to the last death", dead_at - began)
        assert dead_at - began < 0.3 * TTL_S
        code, _ = await run.end()
    assert code == LOST


async def test_what_a_command_leaves_in_its_group_is_ended_before_the_lock_is_released(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    async with running(redis_url, tmp_path) as run:
        pids = run.pids()
        os.kill(pids["command"], signal.SIGKILL)
        await until(lambda: not lives(pids["child"]))
        code, told = await run.end()
        assert (code, told) == (128 + signal.SIGKILL, "")
        assert not client.exists(LOCK)
        child_at = max(at for name, _, _, at in run.lines() if name == "child")
        assert lives(pids["session"]), "what began a session of its own is no part of the command"
        released_at = int(str(client.lindex(f"{LOCK}:history", 0)).split()[0]) / 1e6
        assert child_at < released_at
