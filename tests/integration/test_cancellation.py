"""Cut off or refused at any point: nothing is left behind (S7, S8, S12); cancelled: tests/cancellation."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest
import redis

from lockguard import ConfigurationError, LockGuard, QuorumUnavailable, ResourceBusy
from lockguard._lease import Token
from lockguard.errors import FenceUnavailable
from lockguard.ports import Outrun, Sealed
from lockguard_lab.servers import HOLD, FaultProxy, Flow, RedisServer

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"


class PacedFence:
    """A fence whose every call takes some turns of the event loop."""

    def __init__(self) -> None:
        self.sealed: str | None = None

    async def seal(self, grant, *, within):
        for _ in range(3):
            await asyncio.sleep(0)
        self.sealed = grant.id
        return Sealed(grant.token)

    async def close(self, grant, *, within):
        for _ in range(3):
            await asyncio.sleep(0)
        if self.sealed == grant.id:
            self.sealed = None

    async def break_(self, resource, *, reason, within):
        return Token(1)


def leftovers(client):
    return [k for k in client.keys("*") if not k.endswith((":token", ":history"))]


def is_busy(client):
    try:
        client.ping()
    except redis.ResponseError as refused:
        return "BUSY" in str(refused)
    return False


async def test_a_reply_cut_at_any_byte_costs_no_token_and_leaves_nothing(redis_server, redis_url):
    """The connection ends after n bytes of the grant's reply, for every n; the same grant comes back."""
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    async with FaultProxy(redis_server.port) as proxy:
        async with LockGuard.from_url(proxy.url_for(redis_url)) as guard:
            async with guard.hold(NAME):
                pass
            reply_bytes = len(b"*3\r\n:1\r\n:1795234948274854\r\n:1795234948274854\r\n")
            for cut_at in range(reply_bytes):
                client.delete(f"{LOCK}:history")
                proxy.to_client.set(Flow(cut_after_bytes=cut_at))
                task = asyncio.create_task(_once(guard))
                async with asyncio.timeout(5):
                    while guard._core.connected:
                        await asyncio.sleep(0)
                proxy.heal()
                async with asyncio.timeout(5):
                    await task
                told = [line.split()[1] for line in client.lrange(f"{LOCK}:history", 0, -1)]
                assert told == ["released", "granted"], f"cut at {cut_at}"
                assert leftovers(client) == []
    client.close()


async def test_a_release_that_is_refused_while_a_server_is_busy_is_made_right_after() -> None:
    """S8: the body's release and a cancelled waiter's, while somebody's slow script runs."""
    with RedisServer(password="", config=("busy-reply-threshold 50",)) as server:
        client = redis.Redis.from_url(server.url)
        slow = "local t = redis.call('TIME')[1] while redis.call('TIME')[1] - t < 2 do end"
        async with LockGuard.from_url(server.url) as guard, LockGuard.from_url(server.url) as other:
            async with other.hold(NAME, ttl=timedelta(seconds=30)):
                waiter = asyncio.create_task(_once(guard))
                async with asyncio.timeout(5):
                    while not client.zcard(f"{LOCK}:queue"):
                        await asyncio.sleep(0.01)
                running = asyncio.create_task(asyncio.to_thread(client.eval, slow, 0))
                async with asyncio.timeout(5):
                    while not is_busy(client):
                        await asyncio.sleep(0.01)
                waiter.cancel()
                await asyncio.gather(waiter, return_exceptions=True)
            assert not running.done()
            await running
            async with asyncio.timeout(2):
                while leftovers(redis.Redis.from_url(server.url, decode_responses=True)):
                    await asyncio.sleep(0.05)
        client.close()


async def test_an_acquire_stuck_in_an_old_connection_cannot_run_after_its_release(redis_server, redis_url):
    """The old connection is killed when the new one logs in, before anything else is said on it."""
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    async with FaultProxy(redis_server.port) as proxy:
        async with LockGuard.from_url(proxy.url_for(redis_url)) as guard:
            async with guard.hold(NAME):
                pass
            before = {c["id"] for c in client.client_list() if c["name"] == "lockguard"}
            proxy.to_server.set(HOLD)
            held = guard._core.locks.nodes[0]._connection._wire
            held.end("the client gave the connection up")
            proxy.heal()
            async with asyncio.timeout(5):
                while not guard._core.connected:
                    await asyncio.sleep(0.005)
            after = {c["id"] for c in client.client_list() if c["name"] == "lockguard"}
            assert len(after) == 1
            assert not before & after
    client.close()


@pytest.mark.parametrize(
    "fault",
    [
        ("CONFIG", "SET", "maxmemory", "1"),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
    ],
    ids=["out-of-memory", "read-only-replica", "too-few-replicas"],
)
async def test_an_error_reply_is_never_taken_for_a_grant(fault):
    with RedisServer() as server:
        client = redis.Redis.from_url(server.url, decode_responses=True)
        async with LockGuard.from_url(server.url) as guard:
            client.execute_command(*fault)
            with pytest.raises(QuorumUnavailable) as caught:
                async with guard.hold(NAME, on_busy="raise"):
                    raise AssertionError("the body ran")
            assert caught.value.votes
            assert not client.exists(LOCK)
        client.close()


async def test_a_full_server_still_renews_and_releases():
    with RedisServer() as server:
        client = redis.Redis.from_url(server.url, decode_responses=True)
        async with LockGuard.from_url(server.url, ttl=timedelta(milliseconds=600)) as guard:
            async with guard.hold(NAME) as lease:
                client.config_set("maxmemory", 1)
                deadline = lease.deadline
                async with asyncio.timeout(5):
                    while lease.deadline < deadline + 1:
                        await asyncio.sleep(0.01)
            assert not client.exists(LOCK)
        client.close()


async def test_scripts_that_the_server_forgot_are_sent_again(redis_url):
    client = redis.Redis.from_url(redis_url)
    async with LockGuard.from_url(redis_url) as guard:
        for _ in range(3):
            async with guard.hold(NAME):
                client.script_flush()
        assert not client.exists(LOCK)
    client.close()


async def test_a_hung_server_ends_an_acquire_in_bounded_time_and_the_release_follows(redis_server, redis_url):
    client = redis.Redis.from_url(redis_url)
    async with FaultProxy(redis_server.port) as proxy:
        async with LockGuard.from_url(proxy.url_for(redis_url)) as guard:
            await _once(guard)
            proxy.to_client.set(HOLD)
            task = asyncio.create_task(_once(guard))
            async with asyncio.timeout(5):
                while not client.exists(LOCK):
                    await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(1):
                while client.exists(LOCK):
                    await asyncio.sleep(0.005)
            proxy.heal()
    client.close()


class ScriptedFence(PacedFence):
    """Answers as told, then as the paced one."""

    def __init__(self, *answers) -> None:
        super().__init__()
        self.answers = list(answers)
        self.presented: list[int] = []

    async def seal(self, grant, *, within):
        self.presented.append(grant.token)
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        return await super().seal(grant, within=within)


async def test_a_fence_that_is_ahead_of_redis_raises_the_token_in_both(redis_url):
    """Redis lost its data and its clock went back: the rightful holder is served all the same."""
    ahead = Token(time.time_ns() // 1000 + 365 * 86_400_000_000)  # a year; far beyond that none is believed
    fence = ScriptedFence(Outrun(ahead))
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    async with LockGuard.from_url(redis_url, fence=fence) as guard:
        async with guard.hold(NAME) as lease:
            assert lease.token == ahead + 1
            assert client.hget(LOCK, "token") == str(lease.token)
            assert client.get(f"{LOCK}:token") == str(lease.token)
        async with guard.hold(NAME) as lease:
            assert lease.token == ahead + 2
    client.close()


async def test_a_holder_whose_lock_passed_on_before_it_sealed_is_refused(redis_url):
    client = redis.Redis.from_url(redis_url, decode_responses=True)

    class Overtaken(ScriptedFence):
        async def seal(self, grant, *, within):
            client.delete(LOCK)  # the ttl passed while the seal was on its way ...
            return Outrun(Token(grant.token + 1))  # ... and a successor sealed

    async with LockGuard.from_url(redis_url, fence=Overtaken()) as guard:
        with pytest.raises(ResourceBusy, match="passed to somebody else"):
            await _once(guard)
        assert leftovers(client) == []
    client.close()


async def test_a_fence_that_cannot_be_asked_gives_the_lock_back(redis_url):
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    fence = ScriptedFence(FenceUnavailable("Postgres is down", resource=NAME))
    async with LockGuard.from_url(redis_url, fence=fence) as guard:
        with pytest.raises(FenceUnavailable):
            await _once(guard)
        await guard.inspect(NAME)
        assert leftovers(client) == []
    client.close()


async def _once(guard):
    async with guard.hold(NAME):
        pass


async def test_a_fence_that_cannot_be_closed_does_not_fail_the_body(redis_url):
    told = []

    class Watcher:
        def on(self, event):
            told.append(type(event).__name__)

    class Broken(PacedFence):
        async def close(self, grant, *, within):
            raise ConfigurationError("the schema was removed")

    async with LockGuard.from_url(redis_url, fence=Broken(), observers=[Watcher()]) as guard:
        await _once(guard)
    assert told == ["Acquired", "FenceCloseFailed", "Released"]
