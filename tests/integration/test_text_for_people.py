"""Holders, operations and reasons: kept whatever they are, and unable to forge a line or reach a terminal."""

from __future__ import annotations

import asyncio
import re
import unicodedata

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from lockguard import ConfigurationError, LockGuard, ResourceBusy
from lockguard.text import TEXT_CHARACTERS_MAX, kind_of, one_word, printable, remark

FORGED = "close\n1795239517492224 broken grant=none reason=nothing to see"
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"
TURNED = "\u202egnol nepo\u2066\u200f"
STRANGE = [FORGED, ESCAPE, TURNED, "\ud800", "a\x00b", "\r\rfine", "x" * 10_000, "[/x]", "😀 ok", ""]


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as made:
        yield made


async def in_a_task_called(name, coroutine):
    task = asyncio.create_task(coroutine)
    task.set_name(name)
    return await task


@pytest.mark.parametrize("text", STRANGE, ids=ascii)
async def test_a_lock_is_taken_whatever_its_task_and_operation_are_called(guard, client, text):
    async def body():
        async with guard.hold("x", operation=text) as lease:
            seen = await guard.inspect("x")
            assert (seen.holder, seen.operation) == (lease.grant.holder, lease.grant.operation)
            return seen, client.lrange("lockguard:{x}:history", 0, -1)

    seen, (line,) = await in_a_task_called(text, body())
    assert seen.holder.isprintable()
    assert seen.operation.isprintable()
    assert len(seen.operation) <= TEXT_CHARACTERS_MAX
    assert seen.operation == printable(text[:200])[:200]
    fields = re.fullmatch(
        r"(\d+) granted token=(\d+) grant=([0-9a-f]{32}) holder=(\S+) operation=(.*)", line.decode()
    )
    assert fields is not None
    assert fields[4] == seen.holder
    assert fields[5] == seen.operation
    assert line.decode().isprintable()


async def test_a_task_cannot_pass_its_name_off_as_the_operation(guard, client):
    async def body():
        async with guard.hold("x", operation="open long"):
            return client.lindex("lockguard:{x}:history", 0).decode()

    line = await in_a_task_called("Task-1 operation=close all", body())
    assert line.count(" operation=") == 1
    assert line.endswith(" operation=open long")


@pytest.mark.parametrize("reason", STRANGE, ids=ascii)
async def test_a_break_is_kept_whatever_its_reason_is(guard, client, redis_url, reason):
    held = asyncio.get_running_loop().create_future()

    async def holder():  # in a task of its own, as a break cuts the body
        async with guard.hold("x") as lease:
            held.set_result(lease)
            await asyncio.Event().wait()

    async with LockGuard.from_url(redis_url) as other:
        body = asyncio.create_task(holder())
        lease = await held
        assert await other.request_handover("x", reason=reason)
        assert client.hget("lockguard:{x}", "wanted").decode().isprintable()
        assert (await other.break_("x", reason=reason)).grant == lease.grant.id
        line = client.lindex("lockguard:{x}:history", 0).decode()
        assert line.isprintable()
        assert re.fullmatch(rf"\d+ broken grant={lease.grant.id} reason=.{{0,200}}", line)
        with pytest.raises(Exception, match="lost"):
            await body


@pytest.mark.parametrize("wrong", [None, 7, b"x", ["x"]])
async def test_an_operation_or_reason_that_is_no_text_is_refused_by_name(guard, wrong):
    with pytest.raises(ConfigurationError, match=f"operation is {kind_of(wrong)}; write text"):
        guard.hold("x", operation=wrong)
    with pytest.raises(ConfigurationError, match=f"operation is {kind_of(wrong)}; write text"):
        guard.hold_many(["x"], operation=wrong)
    with pytest.raises(ConfigurationError, match="reason is"):
        await guard.break_("x", reason=wrong)
    with pytest.raises(ConfigurationError, match="reason is"):
        await guard.request_handover("x", reason=wrong)


async def test_what_another_client_wrote_is_read_printable(guard, client):
    client.hset(
        "lockguard:{x}",
        mapping={
            "grant": b"\x1b[2J",
            "token": "1",
            "holder": b"\xff\xfe" + FORGED.encode(),
            "operation": ESCAPE.encode(),
        },
    )
    client.pexpire("lockguard:{x}", 60_000)
    seen = await guard.inspect("x")
    with pytest.raises(ResourceBusy) as caught:
        async with guard.hold("x", on_busy="raise"):
            pass
    for text in (seen.grant, seen.holder, seen.operation, str(caught.value), caught.value.holder):
        assert text.isprintable()
    assert (await guard.break_("x", reason="clear")).holder.isprintable()
    async with guard.hold("x"):
        pass


_ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=30)


@settings(max_examples=300, deadline=None, database=None)
@given(_ANY_TEXT)
def test_what_is_shown_is_printable_can_be_sent_and_is_shown_once_only(text):
    shown = printable(text)
    assert shown.isprintable()
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in shown)
    shown.encode()
    assert printable(shown) == shown
    assert " " not in one_word(text)
    assert one_word(text).isprintable()
    assert len(remark(text * 20, "operation")) <= TEXT_CHARACTERS_MAX
    if text.isprintable():
        assert shown == text
