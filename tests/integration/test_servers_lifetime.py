"""No server survives the process that started it, however that process ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from lockguard_lab.servers import scratch
from lockguard_lab.servers.supervision import wait_until

OWNER = """
import json, os, sys
from lockguard_lab.servers import PostgresServer, RedisServer, supervision
redis, postgres = RedisServer().start(), PostgresServer().start()
{extra}
print(json.dumps({{
    "servers": [redis.pid, postgres.pid],
    "directories": [str(redis._directory), str(postgres._directory)],
    "warden": supervision._supervisor._process.pid,
}}), flush=True)
sys.stdin.readline()
{then}
"""
GONE_WITHIN_S = 15.0


@dataclass(frozen=True)
class Owner:
    process: subprocess.Popen[str]
    processes: list[psutil.Process]
    warden: psutil.Process
    directories: list[Path]

    def nothing_is_left(self) -> bool:
        return not any(process.is_running() for process in self.processes) and not any(
            directory.exists() for directory in self.directories
        )


def start_owner(then: str = "sys.stdin.read()", extra: str = "") -> Owner:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=then, extra=extra)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    facts = json.loads(process.stdout.readline())
    servers = [psutil.Process(pid) for pid in facts["servers"]]
    owner = Owner(
        process=process,
        processes=[one for server in servers for one in (server, *server.children(recursive=True))],
        warden=psutil.Process(facts["warden"]),
        directories=[Path(directory) for directory in facts["directories"]],
    )
    # Only now may it go on: one that ends at once would take its servers along before they were looked up.
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return owner


def reap(owner: Owner) -> int:
    with owner.process:
        return owner.process.wait(timeout=30)


def test_kill_minus_nine_of_the_owner_ends_its_servers() -> None:
    owner = start_owner()
    os.kill(owner.process.pid, signal.SIGKILL)
    assert reap(owner) == -signal.SIGKILL
    assert wait_until(owner.nothing_is_left, GONE_WITHIN_S)
    assert wait_until(lambda: not owner.warden.is_running(), GONE_WITHIN_S)


def test_kill_minus_nine_ends_servers_that_are_paused() -> None:
    owner = start_owner(extra="redis.pause(); postgres.pause()")
    os.kill(owner.process.pid, signal.SIGKILL)
    reap(owner)
    assert wait_until(owner.nothing_is_left, GONE_WITHIN_S)


def test_ctrl_c_reaches_the_owner_and_not_its_servers() -> None:
    owner = start_owner(
        then="""
try:
    print("waiting", flush=True)
    sys.stdin.read()
except KeyboardInterrupt:
    print(redis.running and postgres.running, flush=True)
"""
    )
    assert owner.process.stdout is not None
    assert owner.process.stdout.readline() == "waiting\n"
    os.killpg(owner.process.pid, signal.SIGINT)
    assert owner.process.stdout.readline() == "True\n"
    assert reap(owner) == 0
    assert wait_until(owner.nothing_is_left, GONE_WITHIN_S)


@pytest.mark.parametrize(
    ("then", "code"),
    [("", 0), ("raise SystemExit(3)", 3), ("os._exit(4)", 4), ("os.abort()", -signal.SIGABRT)],
)
def test_an_owner_that_forgets_to_stop_its_servers_leaves_none(then: str, code: int) -> None:
    owner = start_owner(then=then)
    assert reap(owner) == code
    assert wait_until(owner.nothing_is_left, GONE_WITHIN_S)


def test_a_forked_child_neither_ends_nor_keeps_the_servers_of_its_parent() -> None:
    fork = """
ready, child = os.pipe(), os.fork()
if child == 0:
    os.close(1)
    os.write(ready[1], b"x")
    sys.stdin.read()
    os._exit(0)
os.read(ready[0], 1)
second = os.fork()
if second == 0:
    os._exit(0)
os.waitpid(second, 0)
assert redis.running and postgres.running
"""
    owner = start_owner(extra=fork)
    os.kill(owner.process.pid, signal.SIGKILL)
    assert wait_until(owner.nothing_is_left, GONE_WITHIN_S)
    reap(owner)


@pytest.mark.skipif(
    sys.platform != "linux", reason="relies on PR_SET_PDEATHSIG; elsewhere the next run cleans up"
)
def test_servers_end_even_when_their_warden_is_killed() -> None:
    owner = start_owner()
    owner.warden.kill()
    assert wait_until(lambda: not any(one.is_running() for one in owner.processes), GONE_WITHIN_S)
    os.kill(owner.process.pid, signal.SIGKILL)
    reap(owner)
    for directory in owner.directories:
        os.utime(directory, (0, 0))
    scratch.sweep_leftovers()
    assert not any(directory.exists() for directory in owner.directories)


def test_the_sweep_spares_directories_in_use() -> None:
    owner = start_owner()
    for directory in owner.directories:
        os.utime(directory, (0, 0))
    scratch.sweep_leftovers()
    assert all(directory.exists() for directory in owner.directories)
    assert all(one.is_running() for one in owner.processes)
    owner.process.communicate("", timeout=30)
    assert wait_until(owner.nothing_is_left, GONE_WITHIN_S)
