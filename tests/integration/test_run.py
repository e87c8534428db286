"""``lockguard run``: what a command is given, what is returned, and that no two run at once."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest
import redis

from lockguard import LockGuard
from lockguard._cli import app
from lockguard._cli.watchdog import Watchdog
from lockguard_asyncpg import PostgresFence, install, protect
from lockguard_lab.child_process import signal_child

NAME = "backup:db1"
LOCK = f"lockguard:{{{NAME}}}"
MEGABYTES = 10

Ended = subprocess.CompletedProcess[bytes]
RunCommand = Callable[..., Ended]


def words(*options: str, command: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "lockguard", "run", NAME, *options, "--", *command]


@pytest.fixture
def environment(redis_url: str) -> dict[str, str]:
    return {**os.environ, "LOCKGUARD_REDIS_URL": redis_url}


@pytest.fixture
def run(environment: dict[str, str]) -> RunCommand:
    def run(*command: str, options: tuple[str, ...] = (), **rest: object) -> Ended:
        return subprocess.run(
            words(*options, command=command),
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
            **rest,  # type: ignore[call-overload]
        )

    return run


def heed_signals() -> None:
    """These tests may themselves run under nohup or in the background of a shell, where some are ignored."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def test_the_command_has_its_lease_in_the_environment(run: RunCommand, redis_url: str) -> None:
    look = (
        "import os, redis;"
        "client = redis.Redis.from_url(os.environ['LOCKGUARD_REDIS_URL'], decode_responses=True);"
        f"lock = client.hgetall('{LOCK}');"
        "print(lock['token'], lock['grant'], lock['holder'], lock['operation']);"
        "print(*(os.environ['LOCKGUARD_' + name] for name in"
        " ('TOKEN', 'GRANT', 'RESOURCE', 'STOP_WITHIN', 'DEADLINE')));"
        f"print(client.pexpiretime('{LOCK}') / 1000)"
    )
    ended = run(
        sys.executable, "-c", look, options=("--ttl", "1m", "--operation", "nightly", "--name", "bot-1")
    )
    assert ended.returncode == 0, ended.stderr
    held, given, drops_at = ended.stdout.decode().splitlines()
    token, grant, holder, operation = held.split()
    assert operation == "nightly"
    assert holder.startswith("bot-1@")
    assert given.split()[:4] == [token, grant, NAME, "20.000"]
    assert 0 <= float(drops_at) - float(given.split()[4]) < 0.2 * 60
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists(LOCK)


def test_bytes_come_and_go_as_they_are(run: RunCommand) -> None:
    sent = os.urandom(MEGABYTES << 20)
    ended = run("cat", input=sent)
    assert ended.returncode == 0
    assert ended.stdout == sent


def test_what_is_open_beyond_the_standard_streams_is_open_in_the_command(
    environment: dict[str, str],
) -> None:
    reading, writing = os.pipe()
    command = (sys.executable, "-c", f"import os; os.write({writing}, b'here')")
    ended = subprocess.run(
        words(command=command), env=environment, pass_fds=[writing], timeout=60, check=False
    )
    os.close(writing)
    with open(reading, "rb") as answer:
        assert (ended.returncode, answer.read()) == (0, b"here")


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)],
)
def test_the_exit_code_is_the_command_s(run: RunCommand, script: str, code: int) -> None:
    ended = run("sh", "-c", script)
    assert (ended.returncode, ended.stderr) == (code, b"")


def test_what_cannot_be_executed_is_told_apart_and_takes_no_lock(
    run: RunCommand, tmp_path: Path, redis_url: str
) -> None:
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    plain.write_text("echo")
    broken.write_text("#!/does/not/exist\n")
    broken.chmod(0o700)
    for command, code, told in (
        ("no-such-command", 127, "was not found"),
        (str(tmp_path / "none"), 127, "was not found"),
        (str(plain), 126, "cannot be executed"),
        (str(broken), 127, "cannot be executed"),
    ):
        ended = run(command)
        assert (ended.returncode, ended.stderr.count(b"\n")) == (code, 1), command
        assert told in ended.stderr.decode()
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen(f"{LOCK}:history") == 2, "only for the last one was it needed"
        assert not client.exists(LOCK)


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH"])
def test_a_signal_is_passed_on_once(environment: dict[str, str], name: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f"""
import signal, sys, pathlib
told = pathlib.Path({str(told)!r})
got = []
def note(*_):
    got.append(1)
    told.write_text(str(len(got)))
signal.signal(signal.SIG{name}, note)
signal.signal(signal.SIGALRM, lambda *_: sys.exit(40 + len(got)))
print("ready", flush=True)
while True:
    signal.pause()
"""
    with subprocess.Popen(
        words(command=(sys.executable, "-c", script)),
        env=environment,
        stdout=subprocess.PIPE,
        preexec_fn=heed_signals,  # noqa: PLW1509 - no threads here
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(getattr(signal, f"SIG{name}"))
        until(told.exists)
        process.send_signal(signal.SIGALRM)
        assert process.wait(30) == 41


def test_a_signal_that_is_ignored_stays_ignored_as_under_nohup(environment: dict[str, str]) -> None:
    script = "import signal; print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, flush=True); input()"
    with subprocess.Popen(
        ["nohup", *words(command=(sys.executable, "-c", script))],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        process.send_signal(signal.SIGHUP)
        process.communicate(b"\n", timeout=30)
    assert process.returncode == 0


def test_while_it_waits_a_signal_ends_it_and_its_place_is_given_up(
    environment: dict[str, str], redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.hset(LOCK, mapping={"grant": "f" * 32, "ttl_ms": 60_000, "acquired_at_ms": 0})
        client.pexpire(LOCK, 60_000)
        process = subprocess.Popen(
            words("--wait", "1m", command=("true",)), env=environment, stderr=subprocess.PIPE
        )
        until(lambda: client.zcard(f"{LOCK}:queue"))
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=30)[1]
        assert (process.returncode, told.strip()) == (130, b"lockguard: interrupted")
        assert not client.zcard(f"{LOCK}:queue")


async def test_a_busy_resource_is_skipped_without_a_word_or_waited_for_in_vain_with_one(
    run: RunCommand, redis_url: str
) -> None:
    async with LockGuard.from_url(redis_url) as guard, guard.hold(NAME, operation="by hand"):
        for options, code, told in (
            (("--skip",), 0, b""),
            (("--skip", "--busy-code", "9"), 9, b""),
            (("--wait", "0s"), 124, b"by hand"),
            (("--wait", "1s", "--busy-code", "3"), 3, b"by hand"),
        ):
            ended = await asyncio.to_thread(run, "echo", "ran", options=options)
            assert (ended.returncode, ended.stdout) == (code, b""), options
            assert told in ended.stderr
            assert ended.stderr.count(b"\n") == (1 if told else 0)


def test_without_a_server_nothing_is_run_and_the_code_says_so(
    run: RunCommand, environment: dict[str, str]
) -> None:
    environment["LOCKGUARD_REDIS_URL"] = "redis://:hunter2@127.0.0.1:1"
    ended = run("echo", "ran", options=("--wait", "0s"))
    assert (ended.returncode, ended.stdout, ended.stderr.count(b"\n")) == (125, b"", 1)
    assert b"hunter2" not in ended.stderr


def test_without_a_database_that_was_named_nothing_is_run_and_the_code_says_so(
    run: RunCommand, environment: dict[str, str]
) -> None:
    environment["LOCKGUARD_DATABASE_URL"] = "postgresql://bot:hunter2@127.0.0.1:1/trading"
    ended = run("echo", "ran")
    assert (ended.returncode, ended.stdout, ended.stderr.count(b"\n")) == (125, b"", 1)
    assert b"hunter2" not in ended.stderr


def test_no_server_is_guessed(run: RunCommand, environment: dict[str, str], tmp_path: Path) -> None:
    """Each of three hosts may have a Redis of its own, and cron does not pass on a shell's variables."""
    del environment["LOCKGUARD_REDIS_URL"]
    ended = run("echo", "ran", cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr.count(b"\n")) == (2, b"", 1)
    assert b"no Redis is named" in ended.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_standard_streams_that_are_closed_stay_closed_in_the_command(
    environment: dict[str, str], closed: str
) -> None:
    command = ("sh", "-c", "for n in 0 1; do if [ -e /proc/$$/fd/$n ]; then echo $n >&2; fi; done; exit 3")
    ended = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *words(command=command)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    open_ones = b"".join(name for name, how in ((b"0\n", "<&-"), (b"1\n", ">&-")) if how not in closed)
    assert (ended.returncode, ended.stderr) == (3, open_ones)


def test_a_process_that_the_system_has_no_room_for_is_told_in_one_line(
    run: RunCommand,
) -> None:
    ended = run("echo", "ran", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8)))
    assert (ended.returncode, ended.stdout) == (126, b"")
    assert ended.stderr == b"lockguard: echo cannot be executed: Too many open files\n"


def test_a_watchdog_that_may_start_no_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of processes does not hold for root, as whom the tests may run."""

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Watchdog(theirs, ["true"])._on_start({}, 0.0, 0.0, 0.0, foreground=False)
        assert ours.recv(100) == b'["failed", %d]\n["ended", 1]\n' % errno.EAGAIN


def test_in_a_directory_that_is_gone_it_is_told_in_one_line(
    environment: dict[str, str], tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    ended = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *words(command=("echo", "ran"))],
        env=environment,
        cwd=gone,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count(b"\n")) == (2, b"", 1)
    assert b"LOCKGUARD_CONFIG" in ended.stderr


@pytest.mark.slow
def test_twenty_that_wait_never_overlap(environment: dict[str, str], tmp_path: Path) -> None:
    """Each takes a lock of the kernel that is not waited for: it would fail if another had it."""
    log = tmp_path / "log"
    script = f"""
import fcntl, os, time
log = os.open({str(log)!r}, os.O_RDWR | os.O_CREAT | os.O_APPEND)
fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.write(log, b"in ")
time.sleep(0.02)
os.write(log, b"out ")
"""
    command = words("--wait", "2m", command=(sys.executable, "-S", "-c", script))
    began = [subprocess.Popen(command, env=environment) for _ in range(20)]
    assert [process.wait(120) for process in began] == [0] * 20
    assert log.read_text() == "in out " * 20


@pytest.mark.slow
def test_of_ten_hosts_one_runs_in_each_period(run: RunCommand, tmp_path: Path, redis_url: str) -> None:
    log = tmp_path / "log"
    options = ("--skip", "--at-least", "1h")
    for period in (1, 2):
        with ThreadPoolExecutor(10) as hosts:
            ended = list(
                hosts.map(lambda _: run("sh", "-c", f"echo ran >> {log}", options=options), range(10))
            )
        assert [each.returncode for each in ended] == [0] * 10
        assert log.read_text() == "ran\n" * period
        with redis.Redis.from_url(redis_url) as client:
            assert 3_500_000 < client.pttl(f"{LOCK}:tenure") <= 3_600_000
            client.delete(f"{LOCK}:tenure")  # the hour is over


async def test_through_the_fence_it_writes_with_its_token_until_the_lock_is_broken(
    environment: dict[str, str], redis_url: str, database_url: str, conn: asyncpg.Connection
) -> None:
    await install(conn)
    await conn.execute("create table backups (name text primary key, state text)")
    await protect(conn, "backups", resource="backup:{name}")
    environment["LOCKGUARD_DATABASE_URL"] = database_url
    script = """
import asyncio, asyncpg, os, pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lease = [os.environ["LOCKGUARD_" + name] for name in ("RESOURCE", "TOKEN", "GRANT")]
async def write(state):
    conn = await asyncpg.connect(os.environ["LOCKGUARD_DATABASE_URL"])
    try:
        async with conn.transaction():
            await conn.execute("select lockguard.check($1, $2, $3)", lease[0], int(lease[1]), lease[2])
            await conn.execute("insert into backups values ('db1', $1) on conflict (name)"
                               " do update set state = excluded.state", state)
        return "ok"
    except asyncpg.PostgresError as exc:
        return exc.sqlstate
    finally:
        await conn.close()
print(asyncio.run(write("begun")), flush=True)
input()
print(asyncio.run(write("late")), flush=True)
input()
"""
    process = await asyncio.create_subprocess_exec(
        *words("--ttl", "1m", command=(sys.executable, "-c", script)),
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ok\n"
    async with asyncpg.create_pool(database_url, min_size=1) as pool:
        async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as operator:
            await operator.break_(NAME, reason="stuck")
    process.stdin.write(b"\n")
    assert await process.stdout.readline() == b"LG001\n"
    signal_child(process, signal.SIGTERM)
    process.stdin.write(b"\n")
    await process.communicate()
    assert await conn.fetchval("select state from backups") == "begun"
    assert process.returncode == 123, "the release finds that the lock is gone"


@pytest.mark.parametrize(
    ("options", "command", "told"),
    [
        ((), (), "no command is given"),
        ((), ("",), "no command is given"),
        (("--skip", "--wait", "3s"), ("true",), "leave one out"),
        (("--at-least", "8d"), ("true",), "--at-least=691200 s cannot work; use 0 s to 7 days"),
        (("--at-least", "-3s"), ("true",), "length of time"),
        (("--ttl", "0s"), ("true",), "--ttl=0 s cannot work"),
        (("--ttl", "10"), ("true",), "write a whole number and its unit"),
        (("--wait", "2d"), ("true",), "--wait=172800 s cannot work"),
        (("--ttl", "4s", "--stop-within", "3s"), ("true",), "--stop-within 3s cannot work"),
        (("--busy-code", "256"), ("true",), "0<=x<=255"),
        (("--nonsense",), ("echo", "ran"), "No such option"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_run(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    command: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.setenv("LOCKGUARD_REDIS_URL", "redis://127.0.0.1:1")
    assert app.run(["run", NAME, *options, "--", *command]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err


@pytest.mark.parametrize(
    ("max_hold", "options", "stop_within"),
    [
        ("2s", (), "3.33"),
        ("3s", ("--stop-within", "3s"), "3"),
        ("500ms", ("--ttl", "10s", "--stop-within", "0s"), "0.5"),  # at least a twentieth of the ttl
    ],
)
def test_a_command_that_would_be_ended_at_its_start_is_not_begun(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    max_hold: str,
    options: tuple[str, ...],
    stop_within: str,
) -> None:
    monkeypatch.setenv("LOCKGUARD_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("LOCKGUARD_MAX_HOLD", max_hold)
    assert app.run(["run", NAME, *options, "--", "true"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    seconds = {"2s": "2", "3s": "3", "500ms": "0.5"}[max_hold]
    assert f"max_hold={seconds} s cannot work with --stop-within {stop_within} s: " in err
    assert "; give a shorter --stop-within" in err


def test_a_command_that_holds_for_too_long_is_told_so(
    environment: dict[str, str],
) -> None:
    environment |= {"LOCKGUARD_MAX_HOLD": "3s"}
    for script, code in (("exit 7", 7), ("sleep 30", 123)):
        ended = subprocess.run(
            words("--stop-within", "1s", command=("sh", "-c", script)),
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == code
    told = ended.stderr.decode()
    assert told.startswith(f"lockguard: the command was ended: it may hold {NAME!r} for 3 s and no longer")
    assert "renewed" not in told


@pytest.mark.parametrize("options", [(), ("--skip",), ("--operation", "x")])
def test_a_resource_that_is_missing_is_not_taken_from_the_command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """As by a variable that is empty, or is an option: the second word would run, under the first's name."""
    monkeypatch.setenv("LOCKGUARD_REDIS_URL", "redis://127.0.0.1:1")
    assert app.run(["run", *options, "--", "sudo", "echo", "ran"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "Missing argument 'RESOURCE'" in err


def test_a_command_under_the_lock_does_not_wait_for_itself(run: RunCommand) -> None:
    ended = run(*words("--wait", "10m", command=("true",)))
    assert ended.returncode == 2
    assert b"runs under the lock of" in ended.stderr
    assert ended.stderr.count(b"\n") == 1
    other = [sys.executable, "-m", "lockguard", "run", f"{NAME}:part", "--", "echo", "inner"]
    assert run(*other).stdout == b"inner\n"
