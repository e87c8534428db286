"""The options of a guard: each that cannot work is told in one line, with its value and the remedy."""

from __future__ import annotations

import inspect
import time
from datetime import timedelta
from decimal import Decimal
from typing import get_type_hints

import asyncpg
import pytest

from lockguard import ConfigurationError, LockGuard
from lockguard._clock import SystemClock
from lockguard._guard import GuardOptions
from lockguard._nodes.memory import MemoryStore
from lockguard_asyncpg import PostgresFence
from lockguard_lab.servers.fault_proxy import Flow

URL = "redis://localhost"


class Pool:
    """Has ``close`` as asyncpg's has, and is no fence."""

    async def close(self):
        pass

    def __repr__(self):
        return "<Pool postgresql://bot:hunter2@h>"


WRONG_TIMES = [5, 5.5, "5", None, True, Decimal(5), float("nan")]


@pytest.mark.parametrize("name", ["ttl", "wait", "max_hold", "lock_delay", "fence_within", "node_timeout"])
@pytest.mark.parametrize("wrong", WRONG_TIMES, ids=repr)
def test_a_time_without_a_unit_is_refused_by_name(name, wrong):
    if name == "max_hold" and wrong is None:
        LockGuard.from_url(URL, max_hold=None)
        return
    with pytest.raises(ConfigurationError, match=rf"{name}=.* has no unit; write a timedelta"):
        LockGuard.from_url(URL, **{name: wrong})


@pytest.mark.parametrize("wrong", [each for each in WRONG_TIMES if each is not None], ids=repr)
def test_at_least_without_a_unit_is_refused_by_name(wrong):
    guard = LockGuard.from_url(URL)
    with pytest.raises(ConfigurationError, match=r"at_least=.* has no unit; write a timedelta"):
        guard.hold("x", at_least=wrong)
    with pytest.raises(ConfigurationError, match=r"at_least=.* has no unit; write a timedelta"):
        guard.exclusive("{symbol}", at_least=wrong)


@pytest.mark.parametrize("wrong", [timedelta(seconds=-1), timedelta(days=7, seconds=1), timedelta.max])
def test_at_least_out_of_range_is_told_with_its_value_and_the_range(wrong):
    with pytest.raises(ConfigurationError, match=r"at_least=\S+ s cannot work; use 0 s to 7 days"):
        LockGuard.from_url(URL).hold("x", at_least=wrong)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(
            (name, timedelta(seconds=-1))
            for name in ("ttl", "wait", "max_hold", "lock_delay", "fence_within")
        ),
        *((name, timedelta.max) for name in ("ttl", "wait", "max_hold", "lock_delay", "fence_within")),
        *((name, timedelta(0)) for name in ("ttl", "max_hold", "fence_within", "node_timeout")),
        ("ttl", timedelta(milliseconds=99)),
        ("node_timeout", timedelta(microseconds=1)),
    ],
)
def test_a_time_that_cannot_work_is_told_with_its_value_and_the_range(name, wrong):
    with pytest.raises(ConfigurationError, match=rf"{name}=\S+ s cannot work.* s to 86400 s"):
        LockGuard.from_url(URL, **{name: wrong})


@pytest.mark.parametrize("name", ["ttl", "wait", "max_hold", "lock_delay", "fence_within", "node_timeout"])
def test_a_time_just_above_its_range_is_not_told_as_the_bound_that_it_exceeds(name):
    with pytest.raises(ConfigurationError, match=rf"{name}=86400\.001 s cannot work"):
        LockGuard.from_url(URL, **{name: timedelta(days=1, milliseconds=1)})


@pytest.mark.parametrize("name", ["fence_within", "node_timeout"])
@pytest.mark.parametrize("wrong", [timedelta(seconds=-1), timedelta(0), timedelta(days=2)])
def test_a_limit_for_an_answer_is_told_with_the_range_that_is_accepted(name, wrong):
    with pytest.raises(ConfigurationError, match=r"use 0\.001 s to 86400 s"):
        LockGuard.from_url(URL, **{name: wrong})


@pytest.mark.parametrize("wrong", [5, 5.5, None, "5"])
def test_a_time_of_one_hold_is_checked_when_it_is_asked_for(wrong):
    guard = LockGuard.from_url(URL)
    if wrong is None:
        guard.hold("x", ttl=None, wait=None)
        return
    for options in ({"ttl": wrong}, {"wait": wrong}):
        for hold in (
            lambda options=options: guard.hold("x", **options),
            lambda options=options: guard.hold_many(["x"], **options),
        ):
            with pytest.raises(ConfigurationError, match="has no unit"):
                hold()


@pytest.mark.parametrize(
    ("fence", "told"),
    [
        (Pool(), "fence= is a Pool, which is no fence; write fence=PostgresFence(pool)"),
        ("postgresql://bot:hunter2@h", "fence= is a str, which is no fence"),
        (PostgresFence, "fence=PostgresFence is a class; write fence=PostgresFence(pool)"),
        (True, "fence= is a bool"),
        (object(), "fence= is an object"),
    ],
)
def test_what_is_no_fence_is_refused_when_the_guard_is_made_and_not_shown(fence, told):
    with pytest.raises(ConfigurationError) as caught:
        LockGuard.from_url(URL, fence=fence)
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("pool", ["postgresql://bot:hunter2@h", None, object(), Pool(), asyncpg.Pool])
def test_what_is_no_pool_is_refused_when_the_fence_is_made_and_not_shown(pool):
    with pytest.raises(
        ConfigurationError, match=r"PostgresFence takes a pool, .*; write PostgresFence\(pool\)"
    ) as caught:
        PostgresFence(pool)
    assert "hunter2" not in str(caught.value)


def test_an_option_of_the_fence_that_cannot_work_is_refused_by_name():
    class Acquires(Pool):
        acquire = release = None

    with pytest.raises(ConfigurationError, match="grace=1 has no unit"):
        PostgresFence(Acquires(), grace=1)
    with pytest.raises(ConfigurationError, match="listen= is a bool; write the URL"):
        PostgresFence(Acquires(), listen=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: LockGuard.from_url(URL, **options),
        lambda **options: LockGuard.from_urls([URL], **options),
        lambda **options: LockGuard.in_memory(MemoryStore(), **options),
    ],
    ids=["from_url", "from_urls", "in_memory"],
)
def test_an_option_that_is_misspelt_or_none_is_told_with_the_ones_that_are(make):
    with pytest.raises(ConfigurationError, match=r"tll= is no option of a guard; did you mean ttl\?"):
        make(tll=timedelta(seconds=1))
    with pytest.raises(
        ConfigurationError, match=r"decode_responses= is no option of a guard; there are: ttl, "
    ):
        make(decode_responses=True)


def test_the_options_that_are_named_for_type_checkers_are_the_options():
    signature = inspect.signature(LockGuard.__init__)
    taken = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert sorted(get_type_hints(GuardOptions)) == sorted(taken)


@pytest.mark.parametrize("nodes", [URL, URL.encode(), None, 7, [URL], [None], []])
def test_what_are_no_nodes_is_answered_with_how_to_make_a_guard(nodes):
    with pytest.raises(ConfigurationError, match=r"LockGuard\.from_url\(url\)|got none"):
        LockGuard(nodes)


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ("ab", "needs a list of resources, .*got a str"),
        (b"ab", "got a bytes"),
        (None, "got None"),
        (7, "got an int"),
        ([], "got an empty one"),
        (["a", None], "the resource is None; pass its name as text"),
        ([["a"]], "the resource is a list"),
    ],
)
def test_hold_many_takes_a_list_of_names(resources, told):
    with pytest.raises(ConfigurationError, match=told):
        LockGuard.from_url(URL).hold_many(resources)


async def test_hold_many_takes_any_iterable_once(redis_url):
    async with LockGuard.from_url(redis_url) as guard:
        async with guard.hold_many(name for name in ("b", "a", "b")) as leases:
            assert [lease.resource for lease in leases] == ["b", "a", "b"]
        assert not (await guard.inspect("a")).held
        assert not (await guard.inspect("b")).held


@pytest.mark.parametrize("wrong", [5, None, "now", time, SystemClock], ids=repr)
def test_what_is_no_clock_is_refused_by_name(wrong):
    with pytest.raises(ConfigurationError, match=r"clock= is .*, which is no clock"):
        LockGuard.from_url(URL, clock=wrong)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("latency", 0.1),
        ("latency", timedelta(seconds=-1)),
        ("mode", "hold"),
        ("fragment_bytes_max", -1),
        ("fragment_bytes_max", 1.5),
        ("cut_after_bytes", "3"),
    ],
)
def test_a_flow_that_cannot_work_is_refused_when_it_is_made(name, wrong):
    with pytest.raises(ConfigurationError, match=f"{name}="):
        Flow(**{name: wrong})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("", "is empty"),
        ("a{b}", "'{'"),
        ("bot a", "' '"),
        (" bot", "' '"),
        ("bot\n", "'\\n'"),
        ("bot\x00", "'\\x00'"),
        ("bot*", "'*'"),
        ("bö", "'\\xf6'"),
        ("bo\u0308t", "'\\u0308'"),
        ("bot:", "ends with ':'"),
        (":bot", "begins with ':'"),
        ("-bot", "begins with '-'"),
        ("b" * 65, "65 characters"),
        ("b" * 500, "500 characters"),
        (None, "is None"),
        (7, "is an int"),
        (b"bot", "no namespace"),
        ("redis://:hunter2@h", "'/'"),
    ],
    ids=repr,
)
def test_a_namespace_that_cannot_work_is_refused_in_one_line(wrong, told):
    for make in (
        lambda: LockGuard.from_url(URL, namespace=wrong),
        lambda: LockGuard.from_urls([URL, "redis://b", "redis://c"], namespace=wrong),
        lambda: LockGuard.in_memory(namespace=wrong),
    ):
        with pytest.raises(ConfigurationError) as refused:
            make()
        line = str(refused.value)
        assert line.startswith("namespace= ")
        assert told in line
        assert "\n" not in line
        assert "hunter2" not in line


@pytest.mark.parametrize("right", ["a", "lockguard", "staging:bot-a", "b" * 64, "A.b_c-1:2"])
def test_a_namespace_of_letters_digits_and_some_marks_is_taken(right):
    LockGuard.from_url(URL, namespace=right)


def test_a_guard_over_nodes_has_the_namespace_of_its_nodes():
    with pytest.raises(TypeError, match="namespace"):
        LockGuard([LockGuard.in_memory()._core.locks.nodes[0]], namespace="bot-a")
