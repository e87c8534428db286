"""A call that is begun early sends nothing before its word, nothing old, and nothing once it was dropped."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from ccxt.async_support import binanceusdm

from lockguard.testing import FakeClock
from lockguard_ccxt import _prepared
from lockguard_ccxt._prepared import Prepared, sends_only_by_fetch, wait_for_nothing, word


class Wire:
    """What was sent; as the gate does, it waits for the word first."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send(self, what: str = "order") -> str:
        await word()
        self.sent.append(what)
        return what


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_call_waits_for_its_word_and_leaves_before_anything_else_that_its_caller_does() -> None:
    wire = Wire()
    prepared = Prepared(wire.send, name="x")
    await turns()
    assert (wire.sent, prepared.sent) == ([], False)
    await prepared.send()
    assert (wire.sent, prepared.sent) == (["order"], True)
    assert await prepared.outcome() == "order"


async def test_a_request_that_was_prepared_long_ago_gets_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, wire = FakeClock(), Wire()
    monkeypatch.setattr(_prepared, "SYSTEM_CLOCK", clock)
    prepared = Prepared(wire.send, name="x")
    clock.advance(timedelta(seconds=_prepared._FRESH_S + 0.1))
    await prepared.send()
    assert (wire.sent, prepared.sent) == ([], False)
    await prepared.drop()


async def test_a_call_that_was_dropped_sends_nothing() -> None:
    wire = Wire()
    prepared = Prepared(wire.send, name="x")
    await turns()
    await prepared.drop()
    await turns()
    assert (wire.sent, prepared.sent) == ([], False)


async def test_what_is_to_leave_at_once_waits_for_no_word() -> None:
    wire = Wire()

    async def asks_first() -> str:
        wait_for_nothing()
        return await wire.send("question")

    prepared = Prepared(asks_first, name="x")
    await turns()
    assert wire.sent == ["question"]
    await prepared.drop()


async def test_a_call_that_is_to_begin_later_begins_with_its_word() -> None:
    wire = Wire()
    prepared = Prepared(wire.send, name="x", after_s=60)
    await turns()
    await prepared.send()
    async with asyncio.timeout(5):
        assert await prepared.outcome() == "order"


def test_an_exchange_that_may_send_by_another_way_than_fetch_is_none_to_begin_early_on() -> None:
    class Paper(binanceusdm):
        async def create_order(self, *_: Any, **__: Any) -> Any: ...

    changed: Any = binanceusdm()
    changed.create_order = changed.fetch_order
    assert sends_only_by_fetch(binanceusdm())
    assert not sends_only_by_fetch(changed)
    assert not sends_only_by_fetch(Paper())
