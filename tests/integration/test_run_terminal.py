"""``lockguard run`` on a terminal: what is typed reaches its command, once."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis

NAME = "deploy"
LOCK = f"lockguard:{{{NAME}}}"

# What it prints is nowhere in its text: a shell shows the text while it is typed, long before it runs.
COMMAND = """
import os, signal, sys
got = []
def note(*_):
    got.append(1)
    print(f"<interrupted {len(got)}>", flush=True)
signal.signal(signal.SIGINT, note)
where = "in front" if os.tcgetpgrp(0) == os.getpgrp() else "behind"
print(f"<{where} in group {os.getpgrp()}>", flush=True)
for line in sys.stdin:
    print(f"<{line.strip()} after {len(got)}>", flush=True)
    if line.strip() == "end":
        sys.exit(41)
"""


class Terminal:
    """A terminal on which one program runs."""

    def __init__(self, master: int, pid: int) -> None:
        self._master = master
        self.pid = pid
        self._unread = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect_group(self, where: str) -> int:
        """Wait until COMMAND has told where it runs; returns its process group."""
        self.expect(f"<{where} in group ")
        group = self.expect(">")
        return int(group)

    def until_in_front(self, group: int) -> None:
        """Wait until the terminal is that process group's; what is typed before may go to the shell."""
        until(lambda: os.tcgetpgrp(self._master) == group)

    def expect(self, text: str) -> str:
        """Wait until ``text`` is shown; returns what was shown before it, which is done with."""
        end = time.monotonic() + 30
        while text not in self._unread:
            assert time.monotonic() < end, f"{text!r} was not shown, but {self._unread!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._unread += os.read(self._master, 65_536).decode(errors="replace")
        before, _, self._unread = self._unread.partition(text)
        return before


@contextmanager
def terminal(url: str, *words: str) -> Iterator[Terminal]:
    pid, master = pty.fork()
    if pid == 0:
        environment = {**os.environ, "LOCKGUARD_REDIS_URL": url, "TERM": "dumb", "PS1": "prompt> "}
        os.execvpe(words[0], words, environment)
    try:
        yield Terminal(master, pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.close(master)  # hangs up on what is left
        os.waitpid(pid, 0)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def run(*options: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "lockguard", "run", NAME, *options, "--", sys.executable, "-c", COMMAND)


@pytest.fixture
def shell(redis_url: str) -> Iterator[Terminal]:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on PATH, so no job control is tried here")
    with terminal(redis_url, bash, "--norc", "--noprofile", "-i") as shell:
        shell.expect("prompt> ")
        yield shell


def test_the_command_is_in_front_reads_what_is_typed_and_is_interrupted_once(redis_url: str) -> None:
    with terminal(redis_url, *run()) as typed:
        typed.expect_group("in front")
        typed.type("hello\n")
        typed.expect("<hello after 0>")
        typed.type("\x03")
        typed.expect("<interrupted 1>")
        typed.type("again\n")
        typed.expect("<again after 1>")


def quoted(words: tuple[str, ...]) -> str:
    return " ".join("'" + word.replace("'", "'\\''").replace("\n", "'$'\\n''") + "'" for word in words)


def test_a_shell_stops_it_with_ctrl_z_and_goes_on_with_it_under_the_same_lease(
    shell: Terminal, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        shell.type(quoted(run("--ttl", "1m")) + "\n")
        group = shell.expect_group("in front")
        grant = client.hget(LOCK, "grant")
        shell.type("\x1a")
        shell.expect("Stopped")
        shell.type("echo still $((40 + 1)) here\n")
        shell.expect("still 41 here")
        shell.type("fg\n")
        shell.until_in_front(group)
        shell.type("hello\n")
        shell.expect("<hello after 0>")
        assert client.hget(LOCK, "grant") == grant
        shell.type("end\n")
        shell.expect("<end after 0>")
        shell.expect("prompt> ")
        shell.type("echo code $?\n")
        shell.expect("code 41")


def test_stopped_for_longer_than_its_lease_it_is_ended_and_the_shell_is_told(
    shell: Terminal, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        shell.type(quoted(run("--ttl", "2s")) + "\n")
        shell.expect_group("in front")
        shell.type("\x1a")
        shell.expect("Stopped")
        until(lambda: not client.exists(LOCK))
        shell.type("fg\n")
        shell.expect("lockguard: the command was ended")
        shell.expect("prompt> ")
        shell.type("echo code $?\n")
        shell.expect("code 123")


def test_in_the_background_it_leaves_the_terminal_alone_until_it_is_brought_to_the_front(
    shell: Terminal,
) -> None:
    shell.type(quoted(run("--ttl", "1m")) + " &\n")
    group = shell.expect_group("behind")
    shell.type("\n\n")
    shell.expect("prompt> ")
    shell.type("fg\n")
    shell.expect("lockguard")
    shell.until_in_front(group)
    shell.type("hello\n")
    shell.expect("<hello after 0>")
    shell.type("\x03")
    shell.expect("<interrupted 1>")
    shell.type("end\n")
    shell.expect("<end after 1>")
    shell.expect("prompt> ")
    shell.type("echo code $?\n")
    shell.expect("code 41")


def test_in_a_pipe_ctrl_c_reaches_it_once_and_the_reader_too(shell: Terminal) -> None:
    shell.type(quoted(run("--ttl", "1m")) + " | cat\n")
    shell.expect_group("behind")
    shell.type("hello\n")
    shell.expect("<hello after 0>")
    shell.type("end\n")
    shell.expect("<end after 0>")
    shell.expect("prompt> ")
