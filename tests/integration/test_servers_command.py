"""``lockguard servers``: what it starts can be used as printed, and nothing of it outlives the command."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

from lockguard_lab.servers import ports
from lockguard_lab.servers.supervision import wait_until

GONE_WITHIN_S = 15.0
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("LOCKGUARD_REDIS_URL")
}


class Command:
    """``lockguard servers`` with options, running; the variables that it printed, and all that it started."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lockguard", "servers", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        self.told = ""
        self.started: list[psutil.Process] = []
        self.directories: list[Path] = []

    def read(self, lines: int = 1) -> str:
        """So many lines of the output; by then everything is up."""
        assert self.process.stdout is not None
        read = "".join(self.process.stdout.readline() for _ in range(lines))
        self.started = psutil.Process(self.process.pid).children(recursive=True)
        self.directories = [Path(each.cwd()) for each in self.started if "lockguard-" in each.cwd()]
        return read

    def nothing_is_left(self) -> bool:
        return not any(
            each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in self.started
        ) and not any(each.exists() for each in self.directories)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        _, self.told = self.process.communicate(timeout=30)
        return self.process.returncode


def run(*options: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "lockguard", "servers", *options],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def variables_of(file: Path) -> list[str]:
    """What a shell has in its environment after it has read ``file``."""
    script = ["sh", "-c", 'set -a; . "$1"; env', "sh", str(file)]
    return subprocess.run(script, env={}, capture_output=True, text=True, check=True).stdout.splitlines()


async def usable(variables: dict[str, str]) -> bool:
    with redis.Redis.from_url(variables["LOCKGUARD_REDIS_URL"]) as client:
        pong = client.ping()
    connection = await asyncpg.connect(variables["LOCKGUARD_DATABASE_URL"])
    try:
        return pong and await connection.fetchval("select 1") == 1
    finally:
        await connection.close()


async def test_what_it_prints_can_be_pasted_and_ctrl_c_leaves_nothing() -> None:
    command = Command()
    lines = command.read(2)
    words = [shlex.split(line) for line in lines.splitlines()]
    assert [word for word, _ in words] == ["export", "export"]
    assert await usable(dict(assigned.split("=", 1) for _, assigned in words))
    assert len(command.directories) >= 2
    assert command.end(signal.SIGINT) == 0
    assert command.nothing_is_left()
    told = command.told.splitlines()
    assert len(told) == 1
    assert told[0].startswith("Valkey ")
    assert "until Ctrl-C" in told[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_a_signal_leaves_no_server_and_all_but_kill_no_file(number: int, tmp_path: Path) -> None:
    file = tmp_path / "servers.env"
    command = Command("--json", "--env-file", str(file), "--exchange", "--fence")
    variables: dict[str, str] = json.loads(command.read())
    assert await usable(variables)
    assert set(variables) >= {"LOCKGUARD_EXCHANGE_URL", "LOCKGUARD_EXCHANGE_API_KEY"}
    connection = await asyncpg.connect(variables["LOCKGUARD_DATABASE_URL"])
    assert await connection.fetchval("select count(*) from lockguard.schema_version") > 0
    await connection.close()
    sourced = await asyncio.to_thread(variables_of, file)
    assert {f"{name}={value}" for name, value in variables.items()} <= set(sourced)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert command.end(number) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert wait_until(command.nothing_is_left, GONE_WITHIN_S)
    assert number == signal.SIGKILL or not file.exists()


def test_a_command_finds_the_servers_and_its_exit_code_is_kept() -> None:
    work = (
        "import os, redis, sys; print(redis.Redis.from_url(os.environ['LOCKGUARD_REDIS_URL']).ping());"
        " sys.exit(7)"
    )
    assert run("--", sys.executable, "-c", work) == (7, "True\n", "")
    assert run("sh", "-c", "kill -9 $$") == (128 + signal.SIGKILL, "", "")
    code, _, told = run("--", "no-such-program")
    assert (code, told) == (127, "lockguard: no-such-program was not found\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -9)])
def test_a_signal_ends_the_command_and_its_servers(number: int, code: int) -> None:
    command = Command("--", "sh", "-c", "echo up; sleep 600 & wait")
    assert command.read() == "up\n"
    assert command.end(number) == code
    assert wait_until(command.nothing_is_left, GONE_WITHIN_S)


def test_a_file_of_another_process_is_neither_replaced_nor_deleted(tmp_path: Path) -> None:
    file = tmp_path / "servers.env"
    took = f"mv {shlex.quote(str(file))} gone; echo another > {shlex.quote(str(file))}"
    assert run("--env-file", str(file), "--", "sh", "-c", f"cd {shlex.quote(str(tmp_path))}; {took}")[0] == 0
    assert file.read_text() == "another\n", "it came to be while the servers ran"


def run_with_interpreter(executable: str, *options: str) -> tuple[int, str, str]:
    """As :func:`run`, where the processes beside the command are run by ``executable``."""
    work = (
        f"import sys; from lockguard._cli import main; sys.executable = {executable!r};"
        f" sys.argv[1:] = ['servers', *{options!r}]; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", work], capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_an_interpreter_that_cannot_be_started_is_told_in_one_line() -> None:
    code, out, told = run_with_interpreter("/no/such/python")
    assert (code, out) == (2, "")
    assert told.startswith("lockguard: /no/such/python cannot be started")
    assert len(told.splitlines()) == 1


def test_packages_may_be_where_an_isolated_interpreter_does_not_look(tmp_path: Path) -> None:
    """As after ``pip install --user`` or ``--target``: the warden is run with ``-I``."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S "$@"\n')
    python.chmod(0o755)
    assert run_with_interpreter(str(python), "--", "echo", "up") == (0, "up\n", "")


def test_ports_are_fixed_and_one_in_use_is_told_in_one_line() -> None:
    chosen = ports.free_port()
    command = Command("--redis-port", str(chosen), "--json")
    url = json.loads(command.read())["LOCKGUARD_REDIS_URL"]
    assert url.endswith(f"@127.0.0.1:{chosen}/0")
    for option in ("--redis-port", "--postgres-port", "--exchange-port"):
        code, out, told = run(option, str(chosen))
        assert (code, out) == (2, "")
        assert len(told.splitlines()) == 1
        assert f"{chosen}" in told
        assert "in use" in told
    assert command.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--topology", "ring"), "topology 'ring' is not known"),
        (("--topology", "cluster", "--redis-port", "7000"), "--redis-port is for --topology single"),
        (("--json", "--", "true"), "leave one out"),
        (("--env-file", __file__), "exists already"),
        (("--env-file", "/no/such/directory/file"), "there is no directory /no/such/directory"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_starts(options: tuple[str, ...], told: str) -> None:
    code, out, error = run(*options)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert told in error


def test_servers_of_a_quorum_are_one_variable() -> None:
    code, out, _ = run("--topology", "redlock:3", "--", "sh", "-c", 'echo "$LOCKGUARD_REDIS_URL"')
    assert (code, len(out.split())) == (0, 3)
