"""The simulated Redis answers as real servers do."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import redis

from lockguard._lease import parse_resource
from lockguard._namespace import NAMESPACE
from lockguard._nodes.scripted import keys_of
from lockguard._scripts import ACQUIRE, BREAK, EXTEND, HISTORY, INSPECT, REJOIN, RELEASE, SETTLE, Script
from lockguard_lab.sim.scripting import Scripts
from lockguard_lab.sim.store import ReplyError, Store

COMMANDS = (
    ("SET", "s", "5"),
    ("SET", "s", "x", "PX", "60000"),
    ("GET", "s"),
    ("GET", "h"),
    ("DEL", "s", "h"),
    ("DEL", "z"),
    ("EXISTS", "s", "h", "z", "l"),
    ("HSET", "h", "a", "1", "b", "two"),
    ("HSET", "h", "a", "2"),
    ("HSET", "s", "a", "2"),
    ("HGET", "h", "a"),
    ("HMGET", "h", "b", "none", "a"),
    ("HDEL", "h", "a"),
    ("HDEL", "h", "a", "b"),
    ("HLEN", "h"),
    ("HINCRBY", "h", "n", "3"),
    ("HINCRBY", "h", "b", "1"),
    ("PEXPIRE", "h", "60000"),
    ("PEXPIRE", "s", "0"),
    ("PTTL", "s"),
    ("PTTL", "h"),
    ("PTTL", "none"),
    ("LPUSH", "l", "1", "2", "3"),
    ("LPUSHX", "l", "4"),
    ("LPUSHX", "none", "4"),
    ("LRANGE", "l", "0", "-1"),
    ("LRANGE", "l", "1", "2"),
    ("LRANGE", "l", "-2", "5"),
    ("LTRIM", "l", "0", "1"),
    ("LTRIM", "l", "5", "9"),
    ("ZADD", "z", "2", "b", "1", "a", "2", "aa"),
    ("ZADD", "z", "XX", "7", "a", "7", "new"),
    ("ZADD", "none", "XX", "7", "a"),
    ("ZADD", "z", "1795239517492224", "c"),
    ("ZADD", "h", "1", "c"),
    ("ZCARD", "z"),
    ("ZSCORE", "z", "c"),
    ("ZSCORE", "z", "none"),
    ("ZREM", "z", "b", "none"),
    ("ZRANK", "z", "aa"),
    ("ZRANK", "z", "none"),
    ("ZRANGE", "z", "0", "0"),
    ("ZRANGE", "z", "0", "-1", "WITHSCORES"),
    ("ZREVRANGE", "z", "0", "0", "WITHSCORES"),
    ("ZPOPMIN", "z"),
    ("ZPOPMIN", "none"),
)


@pytest.fixture
def server(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url, protocol=2)  # within a script there is no RESP3


def store_beside(server: redis.Redis) -> Store:
    """A store on the server's own clock."""

    def clock_ms() -> float:
        seconds, us = server.time()
        return float(seconds * 1000 + us / 1000)

    return Store(clock_ms, lambda *_, **__: 0)


def plainly(reply: Any) -> Any:
    """A reply without what differs from one moment to the next."""
    match reply:
        case Exception():
            return str(reply).removeprefix("ERR ")[:12]
        case list():
            return [plainly(part) for part in reply]
        case bytes():
            return plainly(int(reply)) if reply.isdigit() else reply
        case int() if 1e15 < reply < 1e16:  # a time in microseconds
            return "now" if reply != 1795239517492224 else reply
        case int() if reply > 1000:  # what is left of a time to live, in milliseconds
            return round(reply, -3)
        case int() if 250 < reply <= 500:  # and of a reservation
            return 500
        case _:
            return reply


@pytest.mark.parametrize("seed", range(6))
def test_any_commands_get_the_answers_of_a_real_server(server: redis.Redis, seed: int) -> None:
    dice, store = random.Random(seed), store_beside(server)
    for _ in range(150):
        words = dice.choice(COMMANDS)
        try:
            real: Any = raw(server, words)
        except redis.ResponseError as error:
            real = error
        try:
            simulated = store.do(*(word.encode() for word in words))
        except ReplyError as error:
            simulated = error
        assert plainly(simulated) == plainly(real), words


@pytest.mark.parametrize("seed", range(8))
def test_any_scripts_get_the_answers_of_a_real_server(server: redis.Redis, seed: int) -> None:
    """The shipped scripts, in any order, by a few grants; times are only compared as times."""
    found = []
    for _ in range(3):  # a reservation may run out between the two answers; a mistake is there each time
        server.flushall()
        found.append(differing(server, seed))
        if found[-1] is None:
            return
    pytest.fail(f"{found[-1]}")


@pytest.mark.parametrize("text", ["return nobody and 1 or 0", "nobody = 1 return nobody"])
def test_a_name_that_no_script_declared_is_refused_as_by_a_real_server(
    server: redis.Redis, text: str
) -> None:
    """Or a local that was renamed in one place and not in another would be nil in every schedule."""
    with pytest.raises(redis.ResponseError):
        server.eval(text, 0)
    scripts = Scripts(store_beside(server))
    sha = scripts.load(text.encode()).decode()
    with pytest.raises(ReplyError):
        scripts.run(sha, [], [])


def differing(server: redis.Redis, seed: int) -> object:
    dice, store = random.Random(seed), store_beside(server)
    scripts = Scripts(store)
    for _ in range(60):
        script, keys, args = any_call(dice)
        try:
            real: Any = raw(server, ("EVAL", script.source, str(len(keys)), *keys, *args))
        except redis.ResponseError as error:
            real = error
        sha = scripts.load(script.source.encode()).decode()
        try:
            simulated = scripts.run(sha, [key.encode() for key in keys], [arg.encode() for arg in args])
        except ReplyError as error:
            simulated = error
        if without_order_of_times(simulated) != without_order_of_times(real):
            return script.name, args, simulated, real
    return None


def raw(server: redis.Redis, words: tuple[str, ...]) -> Any:
    """The reply as the server gave it, which redis-py would make a float or a boolean of."""
    connection = server.connection_pool.get_connection()
    try:
        connection.send_command(*words)
        return connection.read_response()
    finally:
        server.connection_pool.release(connection)


def without_order_of_times(reply: Any) -> Any:
    told = plainly(reply)
    if not isinstance(told, list):
        return told
    # Ages, in milliseconds: of a busy answer, of an inspection, and of each of its waiters.
    ages = (
        {9: {4}, 6: {4}, 8: {4}, 12: {4}}.get(len(told), set())
        if (told and told[0] in (0, 2)) or len(told) == 12
        else ()
    )
    shown = []
    for at, part in enumerate(told):
        if isinstance(part, bytes) and re.match(rb"\d{16} ", part):  # a line of the history
            shown.append(re.sub(rb"\d{16}", b"now", part))
        elif isinstance(part, list):
            shown.append([one for place, one in enumerate(part) if place % 5 not in (2, 4)])
        else:
            shown.append("age" if at in ages else part)
    return shown


def any_call(dice: random.Random) -> tuple[Script, tuple[str, ...], tuple[str, ...]]:
    keys = keys_of(NAMESPACE, parse_resource("binance:A"))
    grant, inbox = dice.choice("abcd") * 32, dice.choice(("in:1", "in:2", ""))
    closing = dice.choice(("0", "0", "0", "60000", "0 60000"))
    match dice.randrange(12):
        case 0 | 1 | 2 | 3:
            args = (
                grant,
                "60000",
                "h",
                "o",
                inbox,
                dice.choice(("0", "0", "1795239517492224")),
                closing,
                "3",
                "0",
            )
            return ACQUIRE, keys.acquire, args
        case 4 | 5 | 6:
            return RELEASE, keys.release, (grant, inbox, dice.choice(("0", "1")), dice.choice(("", "f 7")))
        case 7:
            return EXTEND, keys.extend, (grant, "60000", "")
        case 8:
            how = dice.choice(
                (("ask", "why", "0", ""), ("force", "why", "5", grant), ("force", "why", "0", ""))
            )
            return BREAK, keys.break_, how
        case 9:
            return INSPECT, keys.inspect, ("10",)
        case 10:
            return SETTLE, keys.settle, (grant, "1795239517492224")
        case _:
            if dice.random() < 0.5:
                return HISTORY, keys.history, ("20",)
            member = (*keys.rejoin, f"{NAMESPACE}:member")
            return (
                REJOIN,
                member,
                (
                    *(grant, "1795239517492224", "h", "o", "60000", "run"),
                    *(closing, dice.choice(("0", "1500", "70000"))),
                ),
            )
