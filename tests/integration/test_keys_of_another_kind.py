"""A key of a lock that something else wrote: each call works, or says where to look and changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from lockguard._guard import LockGuard
from lockguard._lease import Resource, Token, new_grant_id
from lockguard._nodes.address import Address
from lockguard._nodes.memory import MemoryStore
from lockguard._nodes.scripted import keys_of, parse_done
from lockguard._nodes.standalone import StandaloneNode
from lockguard._scripts import REJOIN
from lockguard.errors import QuorumUnavailable
from lockguard.ports import AcquireRequest, Extended, NotExecuted

APT = Resource("binance:APTUSDT")
KEY = "lockguard:{binance:APTUSDT}"
KEYS = ["", ":token", ":queue", ":inboxes", ":next", ":tenure", ":history", ":seal", ":waiting"]
HOLDER, OTHER = new_grant_id(), new_grant_id()


def wish(grant: Any, **options: Any) -> AcquireRequest:
    return AcquireRequest(APT, grant, "host:1/Task-1", "open", 60_000, **options)


CALLS: dict[str, Callable[[StandaloneNode], Any]] = {
    "acquire": lambda node: node.acquire(wish(OTHER)),
    "wait": lambda node: node.acquire(wish(OTHER, queue=True)),
    "acquire with a delay": lambda node: node.acquire(wish(OTHER, queue=True, lock_delay_ms=100)),
    "settle": lambda node: node.settle(APT, HOLDER, Token(10**15)),
    "extend": lambda node: node.extend(APT, HOLDER, 60_000, seal="x 1"),
    "check": lambda node: node.still_holds(APT, HOLDER),
    "release": lambda node: node.release(APT, HOLDER, seal="x 1"),
    "release a lost one": lambda node: node.release(APT, HOLDER, lost=True, seal="x 1"),
    "release what waits": lambda node: node.release(APT, OTHER),
    "break": lambda node: node.break_(APT, reason="why", token=Token(10**15)),
    "ask": lambda node: node.request_handover(APT, reason="why"),
    "inspect": lambda node: node.inspect(APT),
    "history": lambda node: node.history(APT, 10),
    "rejoin": lambda node: node.run(
        REJOIN,
        parse_done,
        (*keys_of("lockguard", APT).rejoin, "lockguard:member"),
        *(HOLDER, 10**15, "host:1/Task-1", "open", 60_000, "run", "5000", 0),
    ),
}


@pytest.fixture
async def node(redis_url: str) -> AsyncIterator[StandaloneNode]:
    node = StandaloneNode(Address.parse(redis_url), inbox="inbox")
    await node.connect()
    yield node
    await node.aclose()


def seen(client: Any) -> dict[str, Any]:
    """What is kept, but for when a process was heard of and the lines for people."""
    aside = (f"{KEY}:inboxes", f"{KEY}:history", f"{KEY}:waiting")
    return {key: client.dump(key) for key in sorted(client.keys()) if key.decode() not in aside}


def spoil(client: Any, key: str) -> None:
    client.delete(key)
    if key in (KEY, f"{KEY}:queue", f"{KEY}:inboxes", f"{KEY}:history", f"{KEY}:waiting"):
        client.set(key, "x")
    else:
        client.rpush(key, "x")


@pytest.mark.parametrize("state", ["free", "held", "held with a waiter", "free, reserved"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("call", CALLS)
async def test_a_call_works_or_says_where_to_look_and_changes_nothing(
    node: StandaloneNode, redis_url: str, call: str, key: str, state: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        if state != "free":
            await node.acquire(wish(HOLDER, lock_delay_ms=60_000))
        if state in ("held with a waiter", "free, reserved"):
            await node.acquire(wish(OTHER, queue=True))
        if state == "free, reserved":
            await node.release(APT, HOLDER)
        spoil(client, KEY + key)
        before = seen(client)
        answer = await CALLS[call](node)
        if isinstance(answer, NotExecuted):
            assert f"look at the TYPE of {KEY} and {KEY}:*" in str(answer.error)
            assert "WRONGTYPE" not in str(answer.error)
            assert seen(client) == before


@pytest.mark.parametrize("call", ["extend", "check"])
async def test_nobody_holds_a_lock_that_something_else_overwrote(
    node: StandaloneNode, redis_url: str, call: str
) -> None:
    """Else its holder would believe in it until its deadline, as in a server that does not answer."""
    with redis.Redis.from_url(redis_url) as client:
        await node.acquire(wish(HOLDER))
        client.set(KEY, "x")
        assert await CALLS[call](node) == Extended(held=False)
        assert client.get(KEY) == b"x"


@pytest.mark.parametrize("call", ["extend", "check"])
async def test_what_a_server_refuses_for_another_reason_is_no_refusal_of_the_lease(
    node: StandaloneNode, redis_url: str, call: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        await node.acquire(wish(HOLDER))
        # Not by redis-py's acl_setuser(), which resets the user: its password would be gone for later tests.
        client.execute_command("ACL", "SETUSER", "default", "-hmget")
        try:
            answer = await CALLS[call](node)
        finally:
            client.execute_command("ACL", "SETUSER", "default", "+hmget")
        assert isinstance(answer, NotExecuted)
        assert await CALLS[call](node) == Extended(held=True)


async def test_a_guard_in_memory_says_it_as_well() -> None:
    store = MemoryStore()
    store.client.set(KEY, "x")
    async with LockGuard.in_memory(store) as guard:
        with pytest.raises(QuorumUnavailable, match="look at the TYPE of lockguard"):
            await guard.inspect(APT)


@pytest.mark.parametrize("key", [":queue", ":inboxes", ":next", ":history", ":seal", ":waiting"])
async def test_whoever_holds_the_lock_keeps_it_and_gives_it_back_whatever_lies_beside_it(
    node: StandaloneNode, redis_url: str, key: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        await node.acquire(wish(HOLDER, lock_delay_ms=60_000))
        await node.acquire(wish(OTHER, queue=True))
        spoil(client, KEY + key)
        assert not isinstance(await node.extend(APT, HOLDER, 60_000, seal="x 1"), NotExecuted)
        assert not isinstance(await node.release(APT, HOLDER, seal="x 1"), NotExecuted)
        assert client.exists(KEY) == 0
