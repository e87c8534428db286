"""What is given as an argument of another kind is one line where it is given, before anything is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from lockguard import LockGuard
from lockguard.errors import ConfigurationError
from lockguard_ccxt import GuardedExchange
from lockguard_lab.exchange import connect
from lockguard_positions import AtomicPositionManager, Pace

NOWHERE = "postgresql://127.0.0.1:1/nowhere"


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    client = connect("http://127.0.0.1:1")
    yield client
    await client.close()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"guard": None}, "guard is None; give a LockGuard"),
        ({"pool": None}, "pool is None; give the pool"),
        ({"pool": "postgresql://u:secret@h/d"}, "pool is a str; give the pool"),
        ({"exchanges": None}, "exchanges is None; give a list"),
        ({"exchanges": "binance"}, "exchanges is a str; give a list"),
        ({"exchanges": [None]}, "one of the exchanges is None; give a list"),
        ({"pace": None}, r"pace is None; give a Pace\(\), or leave it out"),
        ({"pace": 5}, "pace is an int"),
        ({"adopt": None}, "adopt=None is not known; write 'off'"),
        ({"adopt": True}, "adopt=True is not known; write 'off'"),
    ],
)
async def test_an_argument_of_another_kind_is_one_line(client: Any, given: dict[str, Any], told: str) -> None:
    right: dict[str, Any] = {
        "guard": LockGuard.from_url("redis://127.0.0.1:1"),
        "pool": asyncpg.create_pool(NOWHERE),
        "exchanges": [GuardedExchange(client)],
    }
    AtomicPositionManager(**right)
    with pytest.raises(ConfigurationError, match=told) as refused:
        AtomicPositionManager(**{**right, **given})
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


async def test_an_exchange_without_its_guard_is_named_with_the_remedy(client: Any) -> None:
    guard, pool = LockGuard.from_url("redis://127.0.0.1:1"), asyncpg.create_pool(NOWHERE)
    for given in ([client], GuardedExchange(client)):
        with pytest.raises(ConfigurationError, match=r"give a list of guarded exchanges, such as \[Guarded"):
            AtomicPositionManager(guard, pool, given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "told"),
    [({"patience": None}, "patience is None"), ({"account": 5}, "account label is an int; give a text")],
)
async def test_a_guarded_exchange_refuses_the_same(client: Any, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        GuardedExchange(client, **given)


@pytest.mark.parametrize("attempts", [None, 1.5, 0, True, "3"])
def test_a_number_of_attempts_is_a_whole_number_from_one(attempts: Any) -> None:
    with pytest.raises(ConfigurationError, match="write a whole number from 1"):
        Pace(attempts=attempts)
