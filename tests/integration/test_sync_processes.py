"""The guard for synchronous code where a process is stopped, interrupted, forked, or ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from lockguard.sync import LockGuard
from lockguard_lab.servers import RedisServer

NAME = "binance:APTUSDT"
PATIENCE_S = 30
EXAMPLE = Path(__file__).parents[2] / "docs/examples/synchronous_bot.py"

HEAD = """
import asyncio, ctypes, os, signal, sys, threading, time
from datetime import timedelta
from lockguard import *
from lockguard.sync import LockGuard

NAME = "binance:APTUSDT"
SECOND = timedelta(seconds=1)

def say(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline().strip()

guard = LockGuard.from_env(ttl=timedelta(seconds={ttl_s}), observers=[])
"""


class Program:
    """A Python program that talks by lines."""

    def __init__(self, process):
        self.process = process
        self.pid = process.pid

    def hear(self):
        return self.process.stdout.readline().strip()

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self):
        """Wait for its end; returns its exit code, the rest of its output and its errors."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out.split("\n")[:-1], err


@pytest.fixture
def run(redis_url):
    with contextlib.ExitStack() as stack:

        def start(text, *, url=redis_url, ttl_s=5.0):
            process = stack.enter_context(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-W",
                        "ignore::DeprecationWarning",
                        "-c",
                        HEAD.format(ttl_s=ttl_s) + text,
                    ],
                    env={**os.environ, "LOCKGUARD_REDIS_URL": url},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return Program(process)

        yield start


@pytest.fixture
def guard(redis_url):
    with LockGuard.from_url(redis_url) as guard:
        yield guard


def wait_until(condition):
    pause, deadline = threading.Event(), threading.Timer(PATIENCE_S, lambda: None)
    deadline.start()
    while not condition():
        assert deadline.is_alive(), "it took too long"
        pause.wait(0.005)
    deadline.cancel()


ENDS = {
    "acquired": "guard.acquire(NAME)",
    "in a body": "with guard.hold(NAME): sys.exit()",
    "in a thread": """
lease = []
def work():
    with guard.hold(NAME) as held:
        lease.append(held)
        threading.Event().wait()
threading.Thread(target=work, daemon=True).start()
while not lease: time.sleep(0.001)
""",
    "in a pool of threads": """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(2)
pool.submit(guard.acquire, NAME).result()
""",
    "in a handler at exit": """
import atexit
guard.inspect(NAME)  # at the exit no thread can begin
atexit.register(lambda: guard.acquire(NAME))
""",
    "in a forked child": """
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=lambda: guard.acquire(NAME))
child.start()
child.join()
""",
    "closed before": "with guard: guard.acquire(NAME)",
    "never used": "",
}


@pytest.mark.parametrize("how", ENDS)
def test_a_process_that_ends_releases_what_it_holds_and_says_nothing(run, guard, how):
    code, _, err = run(ENDS[how]).end()
    assert (code, err) == (0, "")
    assert not guard.inspect(NAME).held


def test_a_server_that_hangs_keeps_no_process_from_ending(run):
    with RedisServer() as server:
        program = run("guard.acquire(NAME); say('held'); hear()", url=server.url)
        assert program.hear() == "held"
        server.pause()
        try:
            program.tell("end")
            code, _, err = program.end()
        finally:
            server.resume()
    assert (code, err) == (0, "")


def test_ctrl_c_at_the_end_does_not_wait_for_a_server_that_hangs_and_says_nothing(run):
    text = """
import atexit
lease = guard.acquire(NAME)
atexit.register(signal.setitimer, signal.ITIMER_REAL, 0.2)  # runs before the guard's own, which was first
signal.signal(signal.SIGALRM, signal.default_int_handler)
say('held')
hear()
"""
    with RedisServer() as server:
        program = run(text, url=server.url, ttl_s=60.0)
        assert program.hear() == "held"
        server.pause()
        try:
            program.tell("end")
            code, _, err = program.end()
        finally:
            server.resume()
    assert (code, err) == (0, "")


def test_a_stopped_holder_is_refused_before_anything_else_of_its_process_has_run(run, guard):
    """Its own clock tells it, in the thread that asks: the background thread may wake up later."""
    program = run(
        """
told = []
with guard.hold(NAME, on_loss=told.append) as lease:
    say(lease.token)
    hear()
    try:
        lease.ensure()
        say("went on")
    except LeaseLost as lost:
        say("refused", lost.reason.value)
    while not told: time.sleep(0.001)
    say("told", told[0].reason.value)
""",
        ttl_s=0.5,
    )
    token = int(program.hear())
    os.kill(program.pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(program.pid).status() == psutil.STATUS_STOPPED)
    with guard.hold(NAME, wait=timedelta(seconds=PATIENCE_S)) as successor:
        assert successor.token > token
        program.tell("go")
        os.kill(program.pid, signal.SIGCONT)
        assert program.hear() == "refused expired"
        assert program.hear() == "told expired"
        code, _, err = program.end()
    assert code == 1
    assert (
        err.strip().split("\n")[-1].startswith("lockguard.errors.LeaseLost: the lease on 'binance:APTUSDT'")
    )


def test_a_call_that_keeps_the_interpreter_to_itself_costs_the_lease_and_is_refused(run):
    """A C function that does not release the GIL keeps the renewals waiting too."""
    program = run(
        """
lease = guard.acquire(NAME)
ctypes.PyDLL(None).usleep(800_000)
try:
    lease.ensure()
    say("went on")
except LeaseLost as lost:
    say("refused", lost.reason.value)
""",
        ttl_s=0.5,
    )
    assert program.hear() == "refused expired"
    assert program.end()[0] == 0


def test_ctrl_c_in_the_queue_leaves_no_place_and_no_lock(run, guard):
    with guard.hold(NAME):
        program = run(
            """
try:
    guard.acquire(NAME, wait=timedelta(seconds=60))
except KeyboardInterrupt:
    say("interrupted", current_lease())
hear()
"""
        )
        wait_until(lambda: guard.inspect(NAME).waiters)
        os.kill(program.pid, signal.SIGINT)
        assert program.hear() == "interrupted None"
        wait_until(lambda: not guard.inspect(NAME).waiters)
    assert not guard.inspect(NAME).held
    program.tell("end")
    assert program.end()[0] == 0


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_body_releases(run, guard, by):
    program = run(
        """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
with guard.hold(NAME) as lease:
    say("held")
    threading.Event().wait()
"""
    )
    assert program.hear() == "held"
    assert guard.inspect(NAME).held
    os.kill(program.pid, by)
    program.end()
    assert not guard.inspect(NAME).held


def test_a_signal_handler_may_release(run, guard):
    program = run(
        """
lease = guard.acquire(NAME)
ended = []
signal.signal(signal.SIGTERM, lambda *_: (lease.release(), ended.append(1)))
say("held")
while not ended: time.sleep(0.001)
say("released")
hear()
"""
    )
    assert program.hear() == "held"
    os.kill(program.pid, signal.SIGTERM)
    assert program.hear() == "released"
    assert not guard.inspect(NAME).held
    program.tell("end")
    assert program.end()[0] == 0


def test_an_interrupt_at_whatever_moment_leaves_no_lock(run, guard):
    """Some come between two steps of Python's own `with`, where no `except` of ours is."""
    program = run(
        """
import random
class Interrupt(BaseException): pass
armed = False
def interrupt(*_):
    if armed: raise Interrupt
signal.signal(signal.SIGALRM, interrupt)
random.seed(7)
guard.inspect(NAME)
interrupted = 0
for _ in range(300):
    try:
        armed = True
        # Again after a while: one that hits a finalizer is only told by Python, and not raised.
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0012), 1)
        while True:
            with guard.hold(NAME, wait=SECOND * 20):
                pass
    except Interrupt:
        armed = False
        interrupted += 1
signal.setitimer(signal.ITIMER_REAL, 0)
while guard.inspect(NAME).held: time.sleep(0.001)
from lockguard._context import outlived_lease
say("free", interrupted, current_leases(), outlived_lease())
"""
    )
    assert program.hear() == "free 300 () None"
    assert program.end()[0] == 0


def test_a_forked_process_has_a_background_of_its_own(run, guard):
    program = run(
        """
lease = guard.acquire(NAME)
child = os.fork()
if not child:
    try:
        lease.ensure()
    except LeaseLost as lost:
        say("child", lost.reason.value)
    try:
        lease.release()
    except LeaseLost as lost:
        say("child", lost.reason.value)
    with detached(), guard.hold("binance:OTHER") as other:
        say("child holds", other.resource, guard.inspect(NAME).held)
    sys.exit()
os.waitpid(child, 0)
lease.confirm_now()
say("parent", lease.state.value)
with guard.hold("binance:OTHER"):
    say("parent holds")
lease.release()
"""
    )
    code, out, err = program.end()
    assert (code, err) == (0, "")
    assert out == [
        "child forked",
        "child forked",
        "child holds binance:OTHER True",
        "parent held",
        "parent holds",
    ]
    assert not guard.inspect(NAME).held


def test_after_a_fork_the_fence_is_made_anew_and_never_shared(run):
    program = run(
        """
import contextlib
from lockguard.ports import Sealed

class Fence:
    async def seal(self, grant, *, within): return Sealed(grant.token, "")
    async def close(self, grant, *, within): pass
    async def break_(self, resource, *, reason, within): return 0

@contextlib.asynccontextmanager
async def made():
    say("made in", "parent" if os.getpid() == parent else "child")
    yield Fence()

parent = os.getpid()
shared = LockGuard.from_env(fence=Fence(), observers=[])
own = LockGuard.from_env(fence=made, observers=[])
for each in shared, own:
    with each.hold(NAME): pass
if child := os.fork():
    os.waitpid(child, 0)
else:
    try:
        shared.acquire(NAME)
    except ConfigurationError as error:
        say(error)
    with own.hold(NAME): pass
"""
    )
    code, out, err = program.end()
    assert (code, err) == (0, "")
    assert out[0] == "made in parent"
    assert out[1].startswith(
        "this guard was used before a fork, with a fence whose connections are the parent's"
    )
    assert out[2:] == ["made in child"]


def test_the_example_of_the_page_runs_as_it_stands(redis_url, guard):
    def lines():
        ran = subprocess.run(
            [sys.executable, EXAMPLE],
            env={**os.environ, "LOCKGUARD_REDIS_URL": redis_url},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        return ran.stdout.splitlines(), ran.stderr

    assert lines() == (["order APTUSDT", "compared APTUSDT"], "")
    with guard.hold(NAME, operation="entry elsewhere"):
        assert lines() == (["left to entry elsewhere", "skipped"], "")
