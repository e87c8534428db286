"""``lockguard demo`` as its users run it: as a process, to its end or interrupted."""

from __future__ import annotations

import json
import os
import pty
import re
import secrets
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from lockguard_lab.servers.supervision import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = "LOCKGUARD_TEST_RUN"
GONE_WITHIN_S = 20.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Demo:
    """A running demo, and everything that it has started."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = secrets.token_hex(8)
        self.terminal, stdin = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lockguard", "demo", *arguments],
            cwd=folder,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, MARK: self.mark, "PYTHONUNBUFFERED": "1", "COLUMNS": "80"},
        )
        os.close(stdin)
        self.lines: list[str] = []

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return
        raise AssertionError(f"it ended without {text!r}: {self.process.communicate()[1]}")

    def started(self) -> list[psutil.Process]:
        """All its processes, wherever in the tree they are; Postgres overwrites the environment it shows."""
        found: list[psutil.Process] = []
        with suppress(psutil.Error):
            found += psutil.Process(self.process.pid).children(recursive=True)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process not in found:
                    found.append(process)
        return [process for process in found if self.alive(process)]

    @staticmethod
    def alive(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def directories(self) -> set[Path]:
        """The directories of its servers, in which they work."""
        found: set[Path] = set()
        for process in self.started():
            with suppress(psutil.Error):
                match = re.match(r".*/run/[0-9a-f]{12}(?=/|$)", process.cwd())
                found |= {Path(match[0])} if match else set()
        return found

    def end(self) -> tuple[int, str]:
        """Wait for its end; gives exit code and errors."""
        out, err = self.process.communicate(timeout=120)
        self.lines += out.splitlines()
        return self.process.returncode, err

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        os.close(self.terminal)


@pytest.fixture
def run(tmp_path) -> Iterator[type[Demo]]:
    demos: list[Demo] = []

    def start(*arguments: str) -> Demo:
        demos.append(Demo(tmp_path, *arguments))
        return demos[-1]

    yield start
    for demo in demos:
        demo.close()


class Page(HTMLParser):
    """What a page refers to, and whether its elements are closed in order."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_demo_bears_out_its_claims_and_can_be_looked_around_in(run, tmp_path):
    demo = run("--opens", "8", "--json", "numbers.json", "--keep")
    demo.read_until("Enter or Ctrl-C ends them")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert list(numbers) == ["unguarded", "guarded", "stale_writes", "servers", "seconds"]
    assert numbers["unguarded"]["opens"] == numbers["guarded"]["opens"] == 8
    assert numbers["unguarded"]["duplicates"] > 0
    assert numbers["guarded"]["duplicates"] == numbers["guarded"]["without_stop"] == 0
    stale = numbers["stale_writes"]
    assert stale["attempted"] == stale["refused"] == 3
    assert stale["committed"] == 0
    assert numbers["servers"]["redis"]["version"]
    assert numbers["servers"]["postgres"]["product"] == "PostgreSQL"
    assert 0 < numbers["seconds"] < 300

    text = "\n".join(demo.lines)
    assert re.search(
        r"\$ REDISCLI_AUTH=\$\(cat \S+\) redis-cli -p \d+ HGETALL 'lockguard:\{binance:APTUSDT\}'", text
    )
    for field in ("grant", "token", "holder", "operation", "acquired_at_ms", "ttl_ms", "renewals"):
        assert re.search(rf"^ {field} +\S", text, re.MULTILINE), field
    assert text.count("refused (LG001)") == 3
    assert "LeaseLost, 3" in text
    assert str(tmp_path / "lockguard-demo.html") in text
    assert all(len(line) <= 80 for line in demo.lines if not line.startswith(("  ", "$ ")))
    assert "\x1b" not in text

    page_text = (tmp_path / "lockguard-demo.html").read_text()
    page = Page(page_text)
    assert page.open == []
    assert "script" not in page.tags
    assert page.references == []
    assert page.tags.count("svg") == 5
    for refused in re.findall(r"presented (\d+), current (\d+)", page_text):
        assert page_text.count(refused[0]) > 1
    assert "LG001" in page_text

    commands = [line.strip() for line in demo.lines if line.startswith("  ") and "APTUSDT" not in line]
    # As printed, by a shell; the passwords are in files, and in no arguments.
    inspect = next(line for line in commands if "lockguard inspect" in line)
    queries = [line for line in commands if " -c '" in line]
    assert len(queries) == 3
    ours = f"{shlex.quote(sys.executable)} -m lockguard"
    lines = [inspect.replace("lockguard inspect", f"{ours} inspect"), *queries]
    answers = [
        subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False) for line in lines
    ]
    assert [answer.returncode for answer in answers] == [0] * 4, [answer.stderr for answer in answers]
    assert "lockguard demo --keep" in answers[0].stdout

    place = queries[0].split(" -c ")[0].split()[-1]
    passfile = queries[0].split()[0].partition("=")[2]
    breaking = inspect.replace("lockguard inspect", f"{ours} break --reason seen --yes --database {place}")
    done = subprocess.run(
        ["sh", "-c", breaking],
        env={**os.environ, "PGPASSFILE": passfile},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "It is free now" in done.stdout, done.stderr
    demo.read_until("LeaseLost: the lease on 'binance:BTCUSDT'")

    started, directories = demo.started(), demo.directories()
    assert len(directories) == 2
    os.write(demo.terminal, b"\n")
    assert demo.end() == (0, "")
    assert wait_until(lambda: not any(demo.alive(process) for process in started), GONE_WITHIN_S)
    assert wait_until(lambda: not any(one.exists() for one in directories), GONE_WITHIN_S)


@pytest.mark.parametrize(
    ("how", "when"),
    [
        (signal.SIGINT, "Act 1"),
        (signal.SIGTERM, "Act 2"),
        (signal.SIGKILL, "Act 1"),
        # A holder is stopped by SIGSTOP then.
        (signal.SIGINT, "HGETALL"),
        (signal.SIGKILL, "HGETALL"),
    ],
)
def test_an_interrupted_demo_leaves_nothing(run, tmp_path, how, when):
    demo = run("--opens", "2", "--json", "numbers.json")
    demo.read_until(when)
    started, directories = demo.started(), demo.directories()
    assert len(started) > 5
    assert len(directories) == 2
    os.kill(demo.process.pid, how)
    code, err = demo.end()
    if how == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert (code, err.strip()) == (130, "lockguard: interrupted")
    assert wait_until(lambda: demo.started() == [], GONE_WITHIN_S), demo.started()
    assert wait_until(lambda: not any(demo.alive(process) for process in started), GONE_WITHIN_S)
    assert wait_until(lambda: not any(one.exists() for one in directories), GONE_WITHIN_S)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_in_the_background_ends_by_sigterm(run):
    """Shells start background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        demo = run("--opens", "2")
    finally:
        signal.signal(signal.SIGINT, before)
    demo.read_until("Act 1")
    os.kill(demo.process.pid, signal.SIGTERM)
    code, err = demo.end()
    assert (code, err.strip().splitlines()[-1]) == (130, "lockguard: interrupted")
    assert wait_until(lambda: demo.started() == [], GONE_WITHIN_S), demo.started()
