"""The one-liners of docs/reference/redis-keys.md, run by the real redis-cli as they are printed."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from lockguard import Lease, LeaseLost, LockGuard
from lockguard._lease import parse_resource
from lockguard._nodes.functions import source
from lockguard._nodes.standalone import StandaloneNode
from lockguard_lab.bench.listing import plant
from lockguard_lab.servers import ClusterRedis, IndependentRedis, RedisServer, find_redis, find_valkey

NAME = "binance:APTUSDT"
LOCK = f"lockguard:{{{NAME}}}"
PAGE = (Path(__file__).parents[2] / "docs/reference/redis-keys.md").read_text(encoding="utf-8")
PRINTED = re.findall(r"^\$ ((?:redis-cli|c=0).*)$", PAGE, re.MULTILINE)
LINES = [re.split(r" +# ", line)[0] for line in PRINTED]
FUNCTIONS = [line for line in LINES if "FCALL_RO" in line]
KEYS = [line for line in LINES if line not in FUNCTIONS]

pytestmark = pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")


async def _shell(line: str, url: str) -> str:
    """What a line of the page prints."""
    line = line.replace("redis-cli", f"redis-cli --no-auth-warning -u {shlex.quote(url)}")
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", line), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert err == b"", line
    return out.decode()


async def _once(guard: LockGuard) -> None:
    async with guard.hold(NAME, operation="close [/x] long", wait=timedelta(seconds=60)):
        pass


@dataclass
class Scene:
    """A lock that is held, with a waiter and a requested hand-over.

    Attributes:
        url: of the server.
        lease: the holder's.
        waiter: the waiter, as an inspection tells it.
    """

    url: str
    lease: Lease
    waiter: Any


@asynccontextmanager
async def _scene(url: str) -> AsyncIterator[Scene]:
    options = {"ttl": timedelta(seconds=60), "lock_delay": timedelta(seconds=30)}
    async with LockGuard.from_url(url, **options) as guard, LockGuard.from_url(url) as other:  # type: ignore[arg-type]
        async with guard.hold(NAME, operation="open long", at_least=timedelta(seconds=1)) as lease:
            waiting = asyncio.create_task(_once(other), name="one that waits")
            async with asyncio.timeout(15):
                while not (waiters := (await guard.inspect(NAME)).waiters):
                    await asyncio.sleep(0.005)
            await other.request_handover(NAME, reason="deploy at four")
            try:
                yield Scene(url, lease, waiters[0])
            finally:
                waiting.cancel()
                await asyncio.wait([waiting])


def _goldens(scene: Scene) -> dict[str, str]:
    """What each line on keys prints, as a regular expression."""
    grant, token, waiter = scene.lease.grant, scene.lease.token, scene.waiter
    who, member = (
        f"{re.escape(waiter.holder)} close \\[/x\\] long",
        f"{waiter.grant} {re.escape(waiter.inbox)}",
    )
    holder = re.escape(grant.holder)
    fields = (
        rf"grant\n{grant.id}\ntoken\n{token}\nholder\n{holder}\noperation\nopen long\n"
        r"acquired_at_ms\n\d{13}\nttl_ms\n60000\nrenewals\n\d+\nwanted\ndeploy at four\n"
    )
    keys = (LOCK, f"{LOCK}:queue", f"{LOCK}:tenure")
    asked = rf"\d{{16}} asked grant={grant.id} reason=deploy at four\n"
    granted = rf"\d{{16}} granted token={token} grant={grant.id} holder={holder} operation=open long\n"
    return {
        f"HGETALL '{LOCK}'": fields,
        f"HGET '{LOCK}' wanted": "deploy at four\n",
        f"PTTL '{LOCK}'": r"(5\d|60)\d{3}\n",
        f"PTTL '{LOCK}:tenure'": r"(8\d|90)\d{3}\n",
        f"GET '{LOCK}:tenure'": "30000 1000\n",
        f"ZRANGE '{LOCK}:queue' 0 -1 WITHSCORES": rf"{member}\n{waiter.ticket}\n",
        f"HGETALL '{LOCK}:waiting'": rf"{waiter.grant}\n{who}\n",
        f"ZRANGE '{LOCK}:inboxes' 0 -1 WITHSCORES": rf"{re.escape(waiter.inbox)}\n\d{{13}}\n",
        f"GET '{LOCK}:next'": r"\n",
        f"GET '{LOCK}:token'": rf"{token}\n",
        f"GET '{LOCK}:seal'": r"\n",
        f"LRANGE '{LOCK}:history' 0 9": asked + granted,
        "--scan --pattern 'lockguard:{*}'": rf"{re.escape(LOCK)}\n",
        "--scan --pattern 'lockguard:{*[}e]'": "".join(rf"(?=(.*\n)*{re.escape(key)}\n)" for key in keys)
        + r"(.+\n){3}",
        "HGETALL lockguard:member": r"\n?",
    }


async def test_each_line_on_keys_prints_what_the_page_says(redis_url: str) -> None:
    async with _scene(redis_url) as scene:
        goldens = _goldens(scene)
        assert [f"redis-cli {words}" for words in goldens] == KEYS
        for words, golden in goldens.items():
            out = await _shell(f"redis-cli {words}", redis_url)
            assert re.fullmatch(golden, out), (words, out)


async def test_every_key_of_a_lock_and_every_field_is_on_the_page(redis_url: str) -> None:
    async with _scene(redis_url) as scene:
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            for key in client.keys("*"):
                assert f"| `{key}` | {'string' if client.type(key) == 'string' else ''}" in PAGE, key
            for field in client.hgetall(LOCK):
                assert f"| `{field}` |" in PAGE
        assert scene.lease.token


async def test_a_reservation_a_seal_and_a_membership_are_printed_as_the_page_says() -> None:
    with IndependentRedis(3) as servers:
        async with LockGuard.from_urls(servers.urls) as guard:
            node: Any = guard._core.locks.nodes[0]
            await _once(guard)
            out = await _shell("redis-cli HGETALL lockguard:member", servers.urls[0])
            told = dict(zip(*[iter(out.splitlines())] * 2, strict=True))
            assert told.keys() == {"run", "quiet_until_ms", "ttl_max_ms", "nodes", "admission", "loss"}
            assert (told["ttl_max_ms"], told["nodes"], told["loss"]) == ("10000", "3", "")
            assert re.fullmatch("[0-9a-f]{40}", told["run"])
            assert re.fullmatch("[0-9a-f]{16}", told["admission"])
            assert told["quiet_until_ms"].isdecimal()
            async with guard.hold(NAME) as lease:
                asked = node.release(parse_resource(NAME), lease.grant.id, seal="7c1d 42")
                assert (await asked).found
                assert await _shell(f"redis-cli GET '{LOCK}:seal'", servers.urls[0]) == "7c1d 42\n"


@pytest.fixture(params=["valkey", "redis"])
def server_with_functions(request: pytest.FixtureRequest) -> Any:
    binary = find_valkey() if request.param == "valkey" else find_redis()
    if binary is None:
        pytest.skip(f"{request.param} is not installed")
    with RedisServer(binary=binary) as server:
        yield server


async def _lockguard(*words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lockguard", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_functions_tell_what_the_page_says(server_with_functions: RedisServer) -> None:
    url = server_with_functions.url
    for _ in range(2):  # also in place of an older one
        code, out, err = await _lockguard("functions", "install", "--redis", url)
        assert (code, out.count("\n"), err) == (0, 1, "")
    show, briefly, step, steps = FUNCTIONS
    assert await _shell(step, url) == "0\n"
    assert await _shell(briefly, url) == f"resource\n{NAME}\nstate\nfree\nwaiters\n0\n"
    async with _scene(url) as scene:
        grant = scene.lease.grant
        told = (await _shell(show, url)).splitlines()
        facts = dict(zip(told[::2], told[1::2], strict=True))
        assert list(facts) == [
            *("resource", "state", "holder", "operation", "token", "grant", "age_ms", "left_ms", "ttl_ms"),
            *("renewals", "renewal_late_ms", "waiters", "wanted", "waiter", "history"),
        ]
        assert (facts["state"], facts["token"], facts["grant"]) == ("held", str(grant.token), grant.id)
        assert (facts["holder"], facts["wanted"]) == (grant.holder, "deploy at four")
        assert facts["waiter"] == f"{scene.waiter.holder} close [/x] long"
        assert told.count("history") == 2
        assert "history" not in await _shell(briefly, url)
        cursor, line = (await _shell(step, url)).splitlines()
        listed = json.loads(line)
        assert cursor == "0"
        assert (listed["resource"], listed["state"], listed["token"]) == (NAME, "held", grant.token)
        assert {
            name: str(listed[name]) for name in ("grant", "holder", "operation", "ttl_ms", "waiters")
        } == {name: facts[name] for name in ("grant", "holder", "operation", "ttl_ms", "waiters")}
        assert (await _shell(steps, url)).count("\n") == 1


async def test_the_functions_go_through_all_in_short_steps_and_tell_each_once(
    server_with_functions: RedisServer,
) -> None:
    url = server_with_functions.url
    call = ("FCALL_RO", "lockguard_ls", 0)
    with redis.Redis.from_url(url) as client:
        plant(client, foreign=5_000, held=2_000, waiters=100)
        client.zadd("lockguard:{queued}:queue", {"ab inbox": 1})
        client.set("lockguard:{closed}:tenure", "1000", px=60_000)
        client.zadd("lockguard:{both}:queue", {"ab inbox": 1})
        client.set("lockguard:{both}:tenure", "1000", px=60_000)
        client.set("lockguard:{odd}", "x")
        client.function_load(source(), replace=True)
        client.config_set("slowlog-log-slower-than", 5_000)
        client.slowlog_reset()
        client.config_resetstat()
        told, cursor, calls = [], b"0", 0
        while calls == 0 or cursor != b"0":
            cursor, *lines = client.execute_command(*call, cursor, "[xqcbo]*", 100_000)
            told += [json.loads(line) for line in lines]
            assert len(lines) < 1_000
            calls += 1
        # A busy machine stops the server for a moment in any command. One that is long is so each time.
        assert len(client.slowlog_get(1_000)) < calls / 5
        assert client.info("commandstats")["cmdstat_fcall_ro"]["usec_per_call"] < 2_500
    states = {each["resource"]: each["state"] for each in told}
    assert len(told) == len(states) == 2_004
    named = {name: states[name] for name in ("queued", "closed", "both", "odd", "x:0")}
    assert named == {
        "queued": "free",
        "closed": "closed",
        "both": "closed",
        "odd": "unreadable",
        "x:0": "held",
    }


async def test_in_a_cluster_each_master_has_the_functions_and_tells_its_own() -> None:
    with ClusterRedis(3) as cluster:
        code, out, err = await _lockguard("functions", "install", "--redis", cluster.url)
        assert (code, out.count("\n"), err) == (0, 3, "")
        names = [f"x:{number}" for number in range(20)]
        async with LockGuard.from_url(cluster.url) as guard, guard.hold_many(names):
            told = []
            for server in cluster.servers:
                out = await _shell(FUNCTIONS[3], server.url)
                told += [json.loads(line)["resource"] for line in out.splitlines()]
            assert sorted(told) == sorted(names)


async def test_a_user_without_the_right_is_told_in_one_line_and_a_viewer_may_call() -> None:
    page = (Path(__file__).parents[2] / "docs/howto/least-privilege.md").read_text(encoding="utf-8")
    viewer = re.search(r"ACL SETUSER (viewer [^`]*?)```", page)
    assert viewer is not None
    with RedisServer(acl=[" ".join(viewer[1].split()).replace("SECRET", "secret")]) as server:
        url = f"redis://viewer:secret@127.0.0.1:{server.port}"
        code, out, err = await _lockguard("functions", "install", "--redis", url)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "NOPERM" in err
        with redis.Redis.from_url(server.url) as client:
            client.function_load(source())
        async with _scene(server.url):
            assert (await _shell(FUNCTIONS[0], url)).startswith("resource\n")
            assert (await _shell(FUNCTIONS[3], url)).count("\n") == 1


async def test_a_server_without_functions_is_told_of_in_one_line(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lockguard._cli import app

    async def as_before_7(_: StandaloneNode, *command: Any) -> Any:
        return redis.ResponseError(f"ERR unknown command `{command[0]}`, with args beginning with: `LOAD`")

    monkeypatch.setattr(StandaloneNode, "ask", as_before_7)
    code = await asyncio.to_thread(app.run, ["functions", "install", "--redis", redis_url])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (1, 1)
    assert "before Redis 7.0; `lockguard ls`" in err


async def test_the_source_that_is_shown_is_what_redis_cli_loads(redis_url: str) -> None:
    code, out, _ = await _lockguard("functions", "show")
    assert (code, out) == (0, source())
    with redis.Redis.from_url(redis_url) as client:
        if client.execute_command("INFO", "server").get("redis_version", "7") < "7":
            pytest.skip("this server has no functions")
        assert client.function_load(out, replace=True) == b"lockguard"
        client.function_delete("lockguard")


async def test_a_lease_that_was_broken_shows_as_closed(server_with_functions: RedisServer) -> None:
    url = server_with_functions.url
    with redis.Redis.from_url(url) as client:
        client.function_load(source(), replace=True)
    async with LockGuard.from_url(url, lock_delay=timedelta(seconds=30)) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                await guard.break_(NAME, reason="it hangs")
        told = await _shell(FUNCTIONS[1], url)
        assert re.fullmatch(rf"resource\n{NAME}\nstate\nclosed\nleft_ms\n[12]\d{{4}}\nwaiters\n0\n", told)
