"""``lockguard doctor`` on Redis set-ups that are broken on purpose, and on sound ones."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from lockguard import LockGuard, QuorumUnavailable
from lockguard_lab.servers import (
    ClockJumpRedis,
    ClusterRedis,
    FaultProxy,
    Flow,
    IndependentRedis,
    RedisServer,
    ReplicatedRedis,
    SentinelRedis,
    ServerBinary,
    TlsFiles,
    find_redis,
    find_system_redis,
)
from tests.chaos.failures import until
from tests.integration.doctor_runs import Doctor
from tests.tls_files import issued

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PAGE = (Path(__file__).parents[2] / "docs/howto/least-privilege.md").read_text(encoding="utf-8")
NAME = "binance:APTUSDT"
SECRET = "secret"


def rules() -> str:
    """The rights of the bot's user, as the page prints them."""
    (found,) = re.findall(r"ACL SETUSER bot on >SECRET (.*?)```", PAGE, re.DOTALL)
    return f"on >{SECRET} {' '.join(found.split())}"


def doctor_of(*urls: str, password: str) -> Doctor:
    arguments = [word for url in urls for word in ("--redis", url)]
    return Doctor(tuple(arguments), passwords={"REDISCLI_AUTH": password})


def made_sound(servers: Sequence[RedisServer]) -> None:
    for server in servers:
        server.command("CONFIG", "SET", "appendonly", "yes")


async def hold_once(*urls: str) -> None:
    async with LockGuard.from_urls(urls) as guard, guard.hold(NAME):
        pass


async def hold_until_admitted(server: RedisServer, *urls: str) -> None:
    """An admission is made beside the lease, which may end before it."""
    info = str(server.command("INFO", "server"))
    run = re.search(r"run_id:(\w+)", info)
    assert run is not None
    async with LockGuard.from_urls(urls) as guard, guard.hold(NAME):
        await until(lambda: server.command("HGET", "lockguard:member", "run") == run[1])


async def ask_for_nothing(quorum: IndependentRedis) -> None:
    """A bot asks for a lock that it is not given, and has all servers admitted."""
    async with LockGuard.from_urls(quorum.urls) as guard:
        with suppress(QuorumUnavailable):
            async with guard.hold(NAME, on_busy="raise"):
                raise AssertionError("a majority of servers that have lost what they knew")
        await until(lambda: all(one.command("HEXISTS", "lockguard:member", "run") for one in quorum.servers))


@pytest.fixture
def quorum() -> Iterator[IndependentRedis]:
    with IndependentRedis(3) as redis:
        made_sound(redis.servers)
        yield redis


def is_watched(server: RedisServer) -> bool:
    """Whether its clock was read."""
    return "cmdstat_time:" in str(server.command("INFO", "commandstats"))


# --- nothing is wrong: no false alarm ---


def one_server(stack: ExitStack) -> tuple[list[str], str]:
    server = stack.enter_context(RedisServer(persistence="aof"))
    return [server.url], server.password


def several(stack: ExitStack) -> tuple[list[str], str]:
    redis = stack.enter_context(IndependentRedis(3))
    made_sound(redis.servers)
    return redis.urls, redis.servers[0].password


def behind_sentinels(stack: ExitStack) -> tuple[list[str], str]:
    redis = stack.enter_context(SentinelRedis(replicas=1))
    made_sound(redis.servers)
    for server in redis.servers:
        server.command("CONFIG", "SET", "min-replicas-to-write", 1)
    return [redis.url], redis.servers[0].password


def cluster(stack: ExitStack) -> tuple[list[str], str]:
    redis = stack.enter_context(ClusterRedis(replicas=1))
    made_sound(redis.servers)
    return [redis.url], redis.servers[0].password


@pytest.mark.parametrize("make", [one_server, several, behind_sentinels, cluster])
def test_a_sound_set_up_gives_no_warning(make: Callable[[ExitStack], tuple[list[str], str]]) -> None:
    with ExitStack() as stack:
        urls, password = make(stack)
        doctor = doctor_of(*urls, password=password)
        for _ in range(2):  # before the first lock, and after it
            visit = doctor.visit("--strict")
            assert visit.amiss == []
            assert visit.code == 0
            asyncio.run(hold_once(*urls))
        checked = {one["code"] for one in visit.told["findings"] if one["severity"] == "ok"}
        assert checked >= {"redis.version", "redis.rights", "redis.scripts", "redis.keys", "latency"}


def with_tls(stack: ExitStack, tls: TlsFiles) -> list[str]:
    server = stack.enter_context(RedisServer(persistence="aof", tls=tls, binary=find_system_redis()))
    return [server.tls_url]


def sentinels_with_tls(stack: ExitStack, tls: TlsFiles) -> list[str]:
    redis = stack.enter_context(SentinelRedis(replicas=1, tls=tls, binary=find_system_redis()))
    made_sound(redis.servers)
    for server in redis.servers:
        server.command("CONFIG", "SET", "min-replicas-to-write", 1)
    return [redis.url]


@pytest.mark.skipif(find_system_redis() is None, reason="no server with TLS is installed")
@pytest.mark.parametrize("make", [with_tls, sentinels_with_tls])
def test_it_speaks_tls(make: Callable[[ExitStack, TlsFiles], list[str]], tmp_path: Path) -> None:
    with ExitStack() as stack:
        urls = make(stack, issued(tmp_path / "tls", trustme.CA()))
        visit = doctor_of(*urls, password="").visit("--strict")
        assert (visit.amiss, visit.code) == ([], 0)
        asyncio.run(hold_once(*urls))


def test_it_takes_a_unix_socket() -> None:
    with RedisServer(persistence="aof", unix_socket=True, config=["timeout 5"]) as server:
        doctor = doctor_of(server.unix_url, password=server.password)
        visit = doctor.visit()
        assert visit.codes == {"redis.timeout"}
        doctor.mend(visit.amiss)
        assert doctor.visit("--strict").code == 0


def test_a_user_of_the_sentinels_with_the_least_rights() -> None:
    (rights,) = re.findall(r"ACL SETUSER watcher on >SECRET (.*)", PAGE)
    with SentinelRedis(replicas=1) as redis:
        made_sound(redis.servers)
        for server in redis.servers:
            server.command("CONFIG", "SET", "min-replicas-to-write", 1)
        for sentinel in redis.sentinels:
            sentinel.command("ACL", "SETUSER", "watcher", "on", f">{SECRET}", *rights.split())
        url = re.sub(r"\?.*", f"?sentinel_username=watcher&sentinel_password={SECRET}", redis.url)
        visit = doctor_of(url, password="").visit("--strict")
        assert (visit.codes, visit.code) == ({"replicas.unread"}, 3)
        more = re.search(r"`lockguard doctor`\]\S+ add `(\S+)`", PAGE)
        assert more is not None
        for one in visit.amiss:
            assert one["unread"]
            assert one["remedy"].endswith(f"ACL SETUSER watcher '{more[1]}'")
        for sentinel in redis.sentinels:
            sentinel.command("ACL", "SETUSER", "watcher", more[1])
        visit = doctor_of(url, password="").visit("--strict")
        assert (visit.amiss, visit.code) == ([], 0)


def test_a_user_with_the_least_rights_is_enough(tmp_path: Path) -> None:
    with RedisServer(persistence="aof", acl=[f"bot {rules()}"]) as server:
        visit = doctor_of(server.url_for("bot", SECRET), password=server.password).visit("--strict")
        assert (visit.amiss, visit.code) == ([], 0)
        unread = {one["code"] for one in visit.told["findings"] if one["severity"] == "note"}
        assert unread == {"redis.info", "redis.config", "redis.keys", "redis.options"}
        assert server.command("KEYS", "*") == []  # nothing is left of the trial


def test_a_visit_leaves_nothing_behind_and_takes_no_part(quorum: IndependentRedis) -> None:
    asyncio.run(hold_once(*quorum.urls))
    before = [server.command("HGETALL", "lockguard:member") for server in quorum.servers]
    doctor_of(*quorum.urls[:2], password=quorum.servers[0].password).visit()
    assert [server.command("HGETALL", "lockguard:member") for server in quorum.servers] == before
    for server in quorum.servers:
        assert server.command("KEYS", "*doctor*") == []


def test_a_visit_leaves_new_servers_new_and_notes_no_ttl_of_its_own(quorum: IndependentRedis) -> None:
    """Servers that have noted a ttl and are no members have lost something, and give no vote for 30 s."""
    doctor = doctor_of(*quorum.urls, password=quorum.servers[0].password)
    doctor.visit()
    assert [server.command("HGETALL", "lockguard:member") for server in quorum.servers] == [[], [], []]
    asyncio.run(hold_once(*quorum.urls))
    for server in quorum.servers:
        server.command("HSET", "lockguard:member", "ttl_max_ms", 100)
    doctor.visit()
    for server in quorum.servers:
        assert server.command("HGET", "lockguard:member", "ttl_max_ms") in {b"100", "100"}
        assert server.command("KEYS", "*doctor*") == []


# --- one server ---


def test_a_server_that_evicts() -> None:
    config = ["maxmemory 100mb", "maxmemory-policy allkeys-lru"]
    with RedisServer(persistence="aof", config=config) as server:
        doctor = doctor_of(server.url, password=server.password)
        visit = doctor.visit()
        assert visit.codes == {"redis.eviction"}
        assert "allkeys-lru" in visit.of("redis.eviction")["found"]
        assert visit.code == 1
        doctor.mend(visit.amiss)
        assert doctor.visit("--strict").code == 0


def test_a_server_that_is_nearly_full() -> None:
    with RedisServer(persistence="aof") as server:
        (used,) = re.findall(r"used_memory:(\d+)", str(server.command("INFO", "memory")))
        server.command("CONFIG", "SET", "maxmemory", round(int(used) * 1.08))
        doctor = doctor_of(server.url, password=server.password)
        visit = doctor.visit()
        assert visit.codes >= {"redis.memory"}
        doctor.mend([visit.of("redis.memory")])
        assert doctor.visit("--strict").code == 0


@pytest.mark.parametrize(
    ("rule", "code", "severity"),
    [
        ("+zrank", "redis.options", "warning"),
        ("+hset", "redis.rights", "error"),
        ("+evalsha", "redis.rights", "error"),
        ("+zpopmin", "redis.rights", "error"),
        ("&lockguard:inbox:*", "redis.rights", "error"),
        ("~lockguard:*", "redis.rights", "error"),
    ],
)
def test_a_user_who_lacks_one_rule(rule: str, code: str, severity: str) -> None:
    lacking = " ".join(word for word in rules().split() if word != rule)
    with RedisServer(persistence="aof", acl=[f"bot {lacking}"]) as server:
        doctor = doctor_of(server.url_for("bot", SECRET), password=server.password)
        visit = doctor.visit()
        found = visit.of(code)
        assert found["severity"] == severity
        assert rule in found["found"]
        assert visit.code == (1 if severity == "error" else 0)
        doctor.mend([found])
        assert doctor.visit("--strict").code == 0


def test_a_replica_instead_of_its_master() -> None:
    with ReplicatedRedis() as redis:
        made_sound(redis.servers)
        (replica,) = redis.replicas
        visit = doctor_of(replica.url, password=replica.password).visit()
        found = visit.of("redis.replica")
        assert visit.codes == {"redis.replica"}
        assert f"redis://127.0.0.1:{redis.servers[0].port}" in found["remedy"]
        assert visit.code == 1
        assert doctor_of(redis.url, password=replica.password).visit("--strict").code == 0


def test_a_url_of_another_kind_of_server() -> None:
    with ClusterRedis() as redis:
        visit = doctor_of(redis.servers[0].url, password=redis.servers[0].password).visit()
        assert visit.codes >= {"redis.kind"}
        assert "redis+cluster://" in visit.of("redis.kind")["remedy"]
        assert visit.code == 1


async def test_a_link_that_is_slow_for_the_ttl() -> None:
    with RedisServer(persistence="aof") as server:
        async with FaultProxy(server.port) as proxy:
            proxy.to_client.set(Flow(latency=timedelta(milliseconds=400)))
            doctor = doctor_of(proxy.url_for(server.url), password=server.password)
            visit = await asyncio.to_thread(doctor.visit, "--ttl", "1s")
            found = visit.of("latency")
            assert found["severity"] == "error"
            assert visit.codes == {"latency"}
            (seconds,) = re.findall(r"ttl=timedelta\(seconds=(\d+)\)", found["remedy"])
            again = await asyncio.to_thread(doctor.visit, "--ttl", f"{seconds}s", "--strict")
            assert (again.amiss, again.code) == ([], 0)


def test_a_server_without_persistence() -> None:
    with RedisServer() as server:
        doctor = doctor_of(server.url, password=server.password)
        visit = doctor.visit()
        assert visit.codes == {"redis.persistence"}
        assert "a restart forgets every lock" in visit.of("redis.persistence")["found"]
        assert visit.code == 0
        assert doctor.visit("--strict").code == 1
        doctor.mend(visit.amiss)
        assert doctor.visit("--strict").code == 0


def test_a_server_that_never_waits_for_the_disk() -> None:
    with RedisServer(persistence="aof", config=["appendfsync no"]) as server:
        doctor = doctor_of(server.url, password=server.password)
        visit = doctor.visit()
        assert visit.codes == {"redis.persistence"}
        doctor.mend(visit.amiss)
        assert doctor.visit("--strict").code == 0


def test_a_server_that_waits_for_replicas_that_are_not_there() -> None:
    with RedisServer(persistence="aof", config=["min-replicas-to-write 1"]) as server:
        visit = doctor_of(server.url, password=server.password).visit()
        assert visit.codes == {"redis.writes", "redis.scripts"}
        assert "NOREPLICAS" in visit.of("redis.scripts")["found"]
        assert visit.code == 1


def test_keys_that_something_else_wrote() -> None:
    with RedisServer(persistence="aof") as server:
        server.command("SET", "lockguard:{binance:APTUSDT}:queue", "x")
        server.command("HSET", "lockguard:{a b\x1b[31m}", "grant", "x")
        doctor = doctor_of(server.url, password=server.password)
        visit = doctor.visit()
        found = visit.of("redis.keys")
        assert "is a string and not a zset" in found["found"]
        assert "never expires" in found["found"]
        assert "\x1b" not in found["found"] + found["remedy"]
        server.command("DEL", "lockguard:{a b\x1b[31m}")
        doctor.mend([doctor.visit().of("redis.keys")])
        assert doctor.visit("--strict").code == 0


def test_a_lock_that_never_expires_is_not_taken_from_its_holder() -> None:
    with RedisServer(persistence="aof") as server:
        server.command("HSET", "lockguard:{binance:APTUSDT}", "grant", "x")
        server.command("SET", "lockguard:{binance:APTUSDT}:queue", "x")
        doctor = doctor_of(server.url, password=server.password)
        doctor.mend([doctor.visit().of("redis.keys")])
        assert server.command("HGET", "lockguard:{binance:APTUSDT}", "grant") == "x"
        assert server.command("EXISTS", "lockguard:{binance:APTUSDT}:queue") == 0
        assert doctor.visit("--strict").code == 0


def test_limits_of_clients_and_a_timeout() -> None:
    with RedisServer(persistence="aof", config=["timeout 20", "maxclients 6"]) as server:
        doctor = doctor_of(server.url, password=server.password)
        with ExitStack() as stack:
            for _ in range(4):
                client = stack.enter_context(_client(server))
                client.ping()
            visit = doctor.visit()
            assert visit.codes >= {"redis.timeout", "redis.clients"}
        doctor.mend(visit.amiss)
        assert doctor.visit("--strict").code == 0


def _client(server: RedisServer) -> Any:
    import redis

    return redis.Redis.from_url(server.url)


@pytest.mark.skipif(ClockJumpRedis.missing() is not None, reason=str(ClockJumpRedis.missing()))
def test_a_clock_that_is_off(database_url: str) -> None:
    with ClockJumpRedis(persistence="aof") as server:
        doctor = Doctor(("--redis", server.url, "--database", database_url))
        server.jump(timedelta(hours=1))
        found = doctor.visit().of("clock.offset")
        assert found["severity"] == "warning"
        assert "ahead of this machine's" in found["found"]
        assert "ahead of Postgres" in found["found"]
        server.jump(timedelta(0))
        assert "clock.offset" not in doctor.visit().codes


@pytest.mark.skipif(ClockJumpRedis.missing() is not None, reason=str(ClockJumpRedis.missing()))
async def test_a_clock_that_is_set_while_it_is_watched() -> None:
    with ClockJumpRedis(persistence="aof") as server:
        doctor = doctor_of(server.url, password=server.password)
        visiting = asyncio.create_task(asyncio.to_thread(doctor.visit, "--watch", "4s"))
        await until(lambda: is_watched(server))
        server.jump(timedelta(hours=1))
        visit = await visiting
        assert "it was set by" in visit.of("clock.drift")["found"]
        assert visit.code == 1


async def test_a_server_that_dies_in_the_middle() -> None:
    with RedisServer(persistence="aof") as server:
        doctor = doctor_of(server.url, password=server.password)
        visiting = asyncio.create_task(asyncio.to_thread(doctor.visit, "--watch", "3s"))
        await until(lambda: is_watched(server))
        await asyncio.to_thread(server.kill)
        visit = await visiting
        assert visit.of("redis.unreachable")["unread"]
        assert visit.code == 3


def test_a_server_that_is_not_there_and_a_wrong_password() -> None:
    with RedisServer(persistence="aof") as server:
        visit = doctor_of(server.url_for("default", "wrong"), password="").visit()
        assert visit.codes == {"redis.login"}
        assert visit.code == 1
        url = server.url
    visit = doctor_of(url, password="").visit()
    assert visit.codes == {"redis.unreachable"}
    assert visit.code == 3


# --- several servers ---


def test_a_quorum_of_which_one_is_not_named(quorum: IndependentRedis) -> None:
    asyncio.run(hold_once(*quorum.urls))
    password = quorum.servers[0].password
    visit = doctor_of(*quorum.urls[:2], password=password).visit()
    assert visit.codes == {"quorum.named", "quorum.number"}
    assert visit.code == 1
    assert all(
        "3 servers decide together" in one["found"] for one in visit.amiss if one["code"] == "quorum.named"
    )
    alone = doctor_of(quorum.urls[0], password=password)
    visit = alone.visit()
    assert visit.codes == {"quorum.named"}
    # It decides alone by now, says the operator.
    (command,) = re.findall(r"redis-cli .*$", visit.of("quorum.named")["remedy"])
    alone.mend([{"remedy": command}])
    assert alone.visit("--strict").code == 0


def test_two_urls_of_one_server(quorum: IndependentRedis) -> None:
    first, second, _ = quorum.urls
    twice = first.replace("127.0.0.1", "localhost")
    visit = doctor_of(first, twice, second, password=quorum.servers[0].password).visit()
    assert visit.codes == {"quorum.same_server"}
    assert visit.code == 1


def test_a_quorum_without_persistence_and_without_one_server() -> None:
    with IndependentRedis(3) as redis:
        doctor = doctor_of(*redis.urls, password=redis.servers[0].password)
        visit = doctor.visit()
        assert visit.codes == {"redis.persistence"}
        assert len(visit.amiss) == 3
        assert "if all restart at once" in visit.amiss[0]["found"]
        doctor.mend(visit.amiss)
        assert doctor.visit("--strict").code == 0
        asyncio.run(hold_once(*redis.urls))
        redis.servers[0].kill()
        visit = doctor.visit()
        assert visit.codes == {"redis.unreachable"}
        assert visit.code == 3
        redis.servers[1].kill()
        assert "quorum.majority" in doctor.visit().codes


def test_a_member_that_was_restarted() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(RedisServer(persistence="aof")) for _ in range(3)]
        urls = [server.url for server in servers]
        doctor = Doctor(tuple(word for url in urls for word in ("--redis", url)))
        asyncio.run(hold_once(*urls))
        servers[0].restart()
        assert doctor.visit().codes == {"quorum.quarantine"}
        asyncio.run(hold_until_admitted(servers[0], *urls))  # it must not vote yet
        assert doctor.visit().of("quorum.quarantine")["remedy"].startswith("sleep ")


@pytest.mark.parametrize("how", ["flushed", "restarted empty"])
def test_a_quorum_of_which_some_have_lost_what_they_knew_is_judged_by_its_votes(
    quorum: IndependentRedis, how: str
) -> None:
    def lose(server: RedisServer) -> None:
        if how == "flushed":
            server.command("FLUSHALL")
        else:
            server.restart(keep_data=False)
        made_sound([server])

    doctor = doctor_of(*quorum.urls, password=quorum.servers[0].password)
    assert doctor.visit("--strict").code == 0  # all are new, and admitted by the first bot
    asyncio.run(hold_once(*quorum.urls))
    lose(quorum.servers[0])
    visit = doctor.visit()
    assert (visit.codes, len(visit.amiss), visit.code) == ({"quorum.quarantine"}, 1, 0)
    assert doctor.visit("--strict").code == 1
    lose(quorum.servers[1])
    visit = doctor.visit()
    assert visit.codes == {"quorum.quarantine", "quorum.majority"}
    told = visit.of("quorum.majority")
    assert (told["severity"], visit.code) == ("error", 1)
    assert told["found"] == "3 of 3 answer, 1 gives a vote, 2 decide"
    # As the remedy says: a bot asks for a lock, and the servers are in their quarantine.
    asyncio.run(ask_for_nothing(quorum))
    visit = doctor.visit()
    assert (visit.of("quorum.majority")["severity"], visit.code) == ("error", 1)
    assert all("no vote for another" in one["found"] for one in visit.amiss if one["severity"] == "warning")


def test_new_servers_of_which_one_does_not_answer_have_to_wait(quorum: IndependentRedis) -> None:
    """What the one that does not answer knows may be what these have lost."""
    quorum.servers[2].kill()
    visit = doctor_of(*quorum.urls, password=quorum.servers[0].password).visit()
    assert visit.codes == {"redis.unreachable", "quorum.quarantine", "quorum.majority"}
    assert visit.of("quorum.majority")["found"] == "2 of 3 answer, 0 give a vote, 2 decide"


def test_a_member_that_was_admitted_without_info_is_no_restarted_one(quorum: IndependentRedis) -> None:
    asyncio.run(hold_once(*quorum.urls))
    for server in quorum.servers:
        server.command("HSET", "lockguard:member", "run", "")
    visit = doctor_of(*quorum.urls, password=quorum.servers[0].password).visit()
    assert (visit.code, visit.codes) == (0, {"quorum.quarantine"})
    assert all("admitted by a client without INFO" in finding["found"] for finding in visit.amiss)


def test_sentinels_that_are_too_slow_for_the_ttl_and_a_master_that_is_cut_off() -> None:
    with SentinelRedis(replicas=1, down_after_ms=20_000) as redis:
        made_sound(redis.servers)
        doctor = doctor_of(redis.url, password=redis.servers[0].password)
        visit = doctor.visit()
        assert visit.codes == {"sentinel.down_after", "replicas.required"}
        doctor.mend(visit.amiss)
        assert doctor.visit("--strict").code == 0


def test_sentinels_that_cannot_agree_and_a_replica_that_no_bot_waits_for() -> None:
    with SentinelRedis(replicas=1) as redis:
        made_sound(redis.servers)
        for server in redis.servers:
            server.command("CONFIG", "SET", "min-replicas-to-write", 1)
        for sentinel in redis.sentinels:
            sentinel.command("SENTINEL", "SET", redis.service, "quorum", 5)
        doctor = doctor_of(redis.url, password=redis.servers[0].password)
        visit = doctor.visit()
        assert (visit.codes, visit.code) == ({"sentinel.number"}, 1)
        doctor.mend(visit.amiss)
        assert doctor.visit("--strict").code == 0
        doctor.env = {"LOCKGUARD_MIN_REPLICAS": "2"}
        assert (doctor.visit().codes, doctor.visit().code) == ({"replicas.wanted"}, 1)
        doctor.env = {"LOCKGUARD_MIN_REPLICAS": "1"}
        assert doctor.visit("--strict").code == 0


def test_a_sentinel_that_is_gone() -> None:
    with SentinelRedis(replicas=1) as redis:
        made_sound(redis.servers)
        redis.sentinels[0].kill()
        visit = doctor_of(redis.url, password=redis.servers[0].password).visit()
        assert visit.codes == {"sentinel.unreachable", "replicas.required"}
        assert visit.code == 3


def test_sentinels_that_name_different_masters() -> None:
    with SentinelRedis(replicas=1) as redis, RedisServer(persistence="aof") as other:
        made_sound([*redis.servers, other])
        astray = redis.sentinels[0]
        astray.command("SENTINEL", "REMOVE", redis.service)
        astray.command("SENTINEL", "MONITOR", redis.service, "127.0.0.1", other.port, 2)
        visit = doctor_of(redis.url, password=redis.servers[0].password).visit()
        assert f"127.0.0.1:{other.port}" in visit.of("sentinel.master")["found"]
        assert visit.code == 1
        assert not any("quorum 1" in one["remedy"] for one in visit.amiss)


def test_members_that_do_not_tell_who_they_are() -> None:
    with ExitStack() as stack:
        made = [
            stack.enter_context(RedisServer(persistence="aof", acl=[f"bot {rules()}"], password="same"))
            for _ in range(3)
        ]
        doctor = doctor_of(*(server.url_for("bot", SECRET) for server in made), password="same")
        visit = doctor.visit()
        assert visit.codes == {"redis.info"}
        doctor.mend(visit.amiss)
        assert doctor.visit("--strict").code == 0


@pytest.mark.parametrize("find", [find_redis, find_system_redis])
def test_redis_of_other_makes(find: Callable[[], ServerBinary | None]) -> None:
    if (binary := find()) is None:
        pytest.skip("this machine has no such server")
    lacking = " ".join(word for word in rules().split() if word != "+hset")
    with RedisServer(persistence="aof", binary=binary, acl=[f"bot {lacking}"]) as server:
        assert doctor_of(server.url, password=server.password).visit("--strict").code == 0
        old = doctor_of(f"{server.url}?protocol=2", password=server.password).visit("--strict")
        assert old.of("redis.protocol")["severity"] == "note"
        assert old.code == 0
        doctor = doctor_of(server.url_for("bot", SECRET), password=server.password)
        visit = doctor.visit()
        assert visit.codes == {"redis.rights"}
        assert "+hset" in visit.of("redis.rights")["found"]
        doctor.mend(visit.amiss)
        assert doctor.visit("--strict").code == 0


async def test_a_server_that_stops_answering() -> None:
    with RedisServer(persistence="aof") as server:
        doctor = doctor_of(server.url, password=server.password)
        visiting = asyncio.create_task(asyncio.to_thread(doctor.visit, "--watch", "3s"))
        await until(lambda: is_watched(server))
        server.pause()
        visit = await visiting
        server.resume()
        assert "no reply for" in visit.of("redis.unreachable")["found"]
        assert visit.code == 3


def test_a_slot_that_no_shard_serves() -> None:
    with ClusterRedis() as redis:
        redis.servers[0].command("CLUSTER", "DELSLOTS", 0)
        visit = doctor_of(redis.url, password=redis.servers[0].password).visit()
        assert "16383 of 16384" in visit.of("cluster.coverage")["found"]
        assert visit.code == 1


def test_a_shard_without_a_replica() -> None:
    with ClusterRedis() as redis:
        made_sound(redis.servers)
        visit = doctor_of(redis.url, password=redis.servers[0].password).visit()
        assert visit.codes == {"replicas.none"}
        assert len(visit.amiss) == 3
