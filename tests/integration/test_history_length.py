"""How long the history of a lock is: an option of the guard, which nothing but people depends on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import redis

from lockguard import LockGuard
from lockguard.errors import ConfigurationError, LeaseLost

NAME = "binance:APTUSDT"
LOCK = f"lockguard:{{{NAME}}}"
WEEK_MS = 7 * 86_400_000


@pytest.fixture
def client(redis_url: str) -> Any:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def told(client: Any) -> list[str]:
    return [line.split()[1] for line in client.lrange(f"{LOCK}:history", 0, -1)]


async def used(url: str, times: int, **options: Any) -> None:
    async with LockGuard.from_url(url, **options) as guard:
        for _ in range(times):
            async with guard.hold(NAME):
                pass


@pytest.mark.parametrize("length", [1, 2, 15, 100])
async def test_the_history_tells_of_as_many_grants_as_the_guard_says(
    client: Any, redis_url: str, length: int
) -> None:
    await used(redis_url, 2 * length + 15, history=length)
    lines = told(client)
    assert 2 * length <= len(lines) <= 2.2 * length + 1
    assert lines[:2] == ["released", "granted"]


async def test_without_a_history_a_free_lock_leaves_its_token_alone_and_is_seen_and_broken_as_ever(
    client: Any, redis_url: str
) -> None:
    async with LockGuard.from_url(redis_url, history=0) as guard, LockGuard.from_url(redis_url) as other:
        async with guard.hold(NAME, operation="open") as first:
            seen = await other.inspect(NAME)
            assert (seen.held, seen.operation, seen.token) == (True, "open", first.token)
            assert set(client.keys()) == {LOCK, f"{LOCK}:token"}
        assert client.keys() == [f"{LOCK}:token"]
        assert (await other.inspect(NAME)).token == first.token
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                assert (await other.break_(NAME, reason="it hangs")).holder
        # Nobody else knows why.
        assert told(client) == ["broken"]
        assert 0 < client.pttl(f"{LOCK}:history") <= WEEK_MS
        async with guard.hold(NAME) as last:
            assert last.token > first.token
        assert client.keys() == [f"{LOCK}:token"]


async def test_guards_of_different_lengths_cut_the_history_to_that_of_the_last_grant(
    client: Any, redis_url: str
) -> None:
    await used(redis_url, 30, history=100)
    assert len(told(client)) == 60
    await used(redis_url, 1, history=3)
    assert told(client) == ["released", *["granted", "released"] * 3]
    await used(redis_url, 2, history=100)
    assert told(client)[:4] == ["released", "granted"] * 2
    await used(redis_url, 1, history=0)
    assert client.keys() == [f"{LOCK}:token"]
    await used(redis_url, 1, history=100)
    assert told(client) == ["released", "granted"]


async def test_the_ends_that_a_longer_one_lets_pile_up_are_bounded_by_every_grant(
    client: Any, redis_url: str
) -> None:
    """A guard without a history does not write its own grants, and must not leave its ends behind."""
    await used(redis_url, 5, history=100)
    await used(redis_url, 50, history=0)
    assert told(client) == []


@pytest.mark.parametrize("history", [100, 0])
async def test_a_history_never_outlives_its_lock_for_ever(client: Any, redis_url: str, history: int) -> None:
    """What ended after the history had gone began one without an end of life."""
    async with LockGuard.from_url(redis_url, history=history, ttl=timedelta(seconds=5)) as guard:
        async with guard.hold(NAME):
            client.delete(f"{LOCK}:history")  # as after seven days of one lease, or an eviction
        assert client.keys() == [f"{LOCK}:token"]
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                client.delete(f"{LOCK}:history")
                await guard.break_(NAME, reason="x")
        for key in client.scan_iter():
            assert 0 < client.pttl(key) <= WEEK_MS, key


@pytest.mark.parametrize("history", [-1, 10_001, 1.5, True, "100", None, 10**30])
def test_a_length_that_cannot_be_is_refused_in_one_line(history: Any) -> None:
    with pytest.raises(ConfigurationError, match="history=") as caught:
        LockGuard.from_url("redis://localhost", history=history)
    assert "\n" not in str(caught.value)
