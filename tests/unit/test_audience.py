"""Observers: checked when the guard is made, kept whatever they do, and their failures are told."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from lockguard import ConfigurationError, LockGuard, LossReason
from lockguard._audience import Audience
from lockguard._lease import Grant, GrantId, Resource, Token
from lockguard.events import (
    Acquired,
    Event,
    FenceCloseFailed,
    Lost,
    ObserverFailed,
    Released,
    RenewalUnanswered,
    Renewed,
    Waited,
)
from lockguard.observe import LogObserver
from lockguard.testing import FakeClock
from lockguard_lab.servers import RedisServer

GRANT = Grant(Resource("binance:A"), GrantId("0" * 32), Token(41), "h:1/Task-1", "open long", 10_000)


class Seen:
    def __init__(self):
        self.events = []

    def on(self, event: Event) -> None:
        self.events.append(event)


class Failing(Seen):
    def __init__(self, failure: BaseException):
        super().__init__()
        self.failure = failure

    def on(self, event: Event) -> None:
        super().on(event)
        raise self.failure


@pytest.fixture
def clock():
    return FakeClock()


class AsyncOn:
    async def on(self, event):
        pass


class AsyncGeneratorOn:
    async def on(self, event):
        yield event


class TakesNothing:
    def on(self):
        pass


class TakesTwo:
    def on(self, event, guard):
        pass


@pytest.mark.parametrize(
    ("observers", "told"),
    [
        ([print], "the observer print has no method on(event)"),
        ([lambda event: None], "has no method on(event)"),
        ([None], "the observer of NoneType has no method on(event)"),
        ([{}], "the observer of dict has no method on(event)"),
        ([SimpleNamespace(on="yes")], "has no method on(event)"),
        ([LogObserver], "the observer LogObserver is a class; write LogObserver()"),
        ([AsyncOn()], "'async def' on(event), which nobody would await"),
        ([AsyncGeneratorOn()], "'async def' on(event)"),
        ([TakesNothing()], "which does not take one event"),
        ([TakesTwo()], "which does not take one event"),
        (LogObserver(), "observers is a LogObserver; write a list"),
        ("log", "observers is a str; write a list"),
        (print, "observers is a builtin_function_or_method; write a list"),
        (7, "observers is an int; write a list"),
    ],
)
def test_what_could_never_be_told_anything_is_refused_when_the_guard_is_made(observers, told):
    with pytest.raises(ConfigurationError) as caught:
        LockGuard.from_url("redis://localhost", observers=observers)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_has_a_method_on_is_taken(clock):
    Audience([LogObserver(), Seen(), Mock(), SimpleNamespace(on=print)], clock=clock)
    Audience((one for one in [Seen()]), clock=clock)
    Audience([], clock=clock)


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("disk full"),
        asyncio.CancelledError(),
        GeneratorExit(),
        BaseExceptionGroup("g", [KeyError()]),
    ],
    ids=lambda one: type(one).__name__,
)
def test_an_observer_that_fails_is_told_the_next_event_and_the_others_hear_of_it(clock, failure):
    failing, seen = Failing(failure), Seen()
    audience = Audience([failing, seen], clock=clock)
    for _ in range(3):
        audience.tell(Renewed(GRANT))
    assert failing.events == [Renewed(GRANT)] * 3
    heard = [event for event in seen.events if isinstance(event, ObserverFailed)]
    assert [event.failures for event in heard] == [1, 2, 3]
    assert heard[0].observer == "Failing"
    assert type(failure).__name__ in heard[0].cause
    assert [event for event in seen.events if not isinstance(event, ObserverFailed)] == [Renewed(GRANT)] * 3


def test_failures_are_logged_with_their_traceback_once_a_minute_with_their_number(clock, caplog):
    audience = Audience([Failing(ValueError("disk full"))], clock=clock)
    with caplog.at_level(logging.ERROR, logger="lockguard"):
        for _ in range(100):
            audience.tell(Renewed(GRANT))
        clock.advance(timedelta(seconds=61))
        audience.tell(Renewed(GRANT))
    assert [record.getMessage() for record in caplog.records] == [
        "observer Failing failed (1 in all); it stays, and is told what comes next",
        "observer Failing failed (101 in all); it stays, and is told what comes next",
    ]
    assert "disk full" in caplog.text
    assert "test_audience.py" in caplog.text


def test_observers_that_all_fail_end(clock):
    both = [Failing(ValueError("one")), Failing(ValueError("two"))]
    Audience(both, clock=clock).tell(Renewed(GRANT))
    assert [len(one.events) for one in both] == [2, 2]


def test_a_failure_that_cannot_be_shown_or_logged_ends_here_too(clock):
    class Unspeakable(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    def refuse(record):
        raise RuntimeError("no log")

    logger = logging.getLogger("lockguard")
    logger.addFilter(refuse)
    try:
        Audience([Failing(Unspeakable())], clock=clock).tell(Renewed(GRANT))
    finally:
        logger.removeFilter(refuse)


def test_a_coroutine_that_on_returns_is_a_failure_and_not_forgotten(clock):
    async def later(event):
        pass

    seen = Seen()
    Audience([SimpleNamespace(on=Mock(side_effect=later)), seen], clock=clock).tell(Renewed(GRANT))
    assert any("coroutine" in event.cause for event in seen.events if isinstance(event, ObserverFailed))


async def test_a_lock_is_held_and_released_whatever_its_observers_raise(redis_url):
    failing = [Failing(asyncio.CancelledError()), Failing(ValueError("no"))]
    async with LockGuard.from_url(redis_url, observers=failing) as guard:
        for _ in range(2):
            async with guard.hold("x"):
                assert (await guard.inspect("x")).held
            assert not (await guard.inspect("x")).held
    for one in failing:
        kinds = [type(event) for event in one.events if not isinstance(event, ObserverFailed)]
        assert kinds == [Acquired, Released] * 2


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_an_observer_may_end_the_process_and_the_lock_is_given_back_first(end):
    class Ends(Seen):
        def on(self, event):
            super().on(event)
            if isinstance(event, Acquired):
                raise end

    async def body(url, ends, seen):
        async with LockGuard.from_url(url, observers=[ends, seen]) as guard:
            async with guard.hold("x"):
                await asyncio.Event().wait()

    async def held(url):
        async with LockGuard.from_url(url) as guard:
            return (await guard.inspect("x")).held

    ends, seen = Ends(), Seen()
    with RedisServer() as server:
        with pytest.raises(type(end)):
            asyncio.run(body(server.url, ends, seen))
        assert not asyncio.run(held(server.url))
    assert [type(event) for event in seen.events] == [type(event) for event in ends.events]
    assert Acquired in [type(event) for event in seen.events]


# The log.


def test_what_the_log_observer_writes_cannot_forge_a_line_or_reach_a_terminal(caplog):
    evil = "x\n2026-01-01 INFO all is well\x1b]0;owned\x07\u202egnol"
    grant = Grant(Resource("r"), GrantId("0" * 32), Token(1), evil, evil, 1000)
    events = [
        Acquired(grant, 1.0),
        Renewed(grant),
        Lost(grant, LossReason.EXPIRED),
        RenewalUnanswered(grant, 1.0, evil),
        FenceCloseFailed(grant, evil),
        Released(grant, 1.0, found=False),
        Waited(Resource("r"), evil, evil, gave_up=False),
        ObserverFailed("O", evil, 1),
    ]
    with caplog.at_level(logging.DEBUG, logger="lockguard"):
        for event in events:
            LogObserver().on(event)
    assert len(caplog.records) == len(events)
    for record in caplog.records:
        assert record.getMessage().isprintable(), record.getMessage()
