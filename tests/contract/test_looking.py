"""What an operator sees of the locks is the same over every kind of node."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest

from lockguard import LeaseLost, LossReason, ResourceBusy

APT, WIF = "binance:APTUSDT", "binance:WIFUSDT"
MINE, OTHERS = "bot-a", "bot-a:b"
"""Namespaces of which one begins with the other, as prefixes do."""


async def _names(guard, pattern="*"):
    return sorted([found.resource async for found in guard.list(pattern)])


async def _until(condition):
    async with asyncio.timeout(15):
        while not await condition():
            await asyncio.sleep(0.01)


async def _hold(guard, name, operation=""):
    async with guard.hold(name, operation=operation):
        pass


async def test_what_is_held_is_listed_once_with_all_that_an_inspection_tells(new_guard):
    guard, other = new_guard(), new_guard()
    assert await _names(other) == []
    names = [f"x:{number}" for number in range(30)]
    async with guard.hold_many(names, operation="open long"):
        await _until(lambda: _all_held(other, names))
        seen = {found.resource: found async for found in other.list()}
        assert sorted(seen) == sorted(names)
        inspected = await other.inspect("x:7")
        assert seen["x:7"].grant == inspected.grant
        assert seen["x:7"].operation == "open long"
        assert seen["x:7"].renewal_late_ms == 0
    assert await _names(other) == []


async def _all_held(guard, names):
    return len([found async for found in guard.list() if found.held]) == len(names)


async def test_a_waiter_is_told_with_its_holder_operation_and_time_until_it_leaves(new_guard, cluster):
    guard, second, third = new_guard(), new_guard(), new_guard()
    async with guard.hold(APT) as lease:
        first = asyncio.create_task(_hold(second, APT, "sync pass"), name="of-two")
        await _until(lambda: _waiting(guard, 1))
        late = asyncio.create_task(_hold(third, APT, "close [/x] now"), name="of-three")
        await _until(lambda: _waiting(guard, 2))
        (found,) = [found async for found in guard.list(APT)]
        assert [waiter.holder.rpartition("/")[2] for waiter in found.waiters] == ["of-two", "of-three"]
        assert [waiter.operation for waiter in found.waiters] == ["sync pass", "close [/x] now"]
        before = found.waiters[0].waiting_ms
        assert before >= found.waiters[1].waiting_ms

        async def longer():
            return (await guard.inspect(APT)).waiters[0].waiting_ms > before

        await _until(longer)
        late.cancel()
        await _until(lambda: _waiting(guard, 1))
        who = f"lockguard:{{{APT}}}:waiting"
        await _until(lambda: _every(cluster, lambda: cluster.each("HLEN", who), 1))
        assert lease.grant.id not in str(cluster.each("HGETALL", who))
    await first
    assert cluster.leftovers() == []


async def _waiting(guard, count):
    found = await guard.inspect(APT)
    return len(found.waiters) == count and all(waiter.holder for waiter in found.waiters)


async def _every(cluster, ask, answer):
    return set(ask()) == {answer}


async def test_a_pattern_is_a_shell_s_and_a_character_in_brackets_stands_for_itself(new_guard):
    guard = new_guard()
    names = [APT, WIF, "okx:APTUSDT", "a*b", "a?b", "a[b", "a]b", "a\\b", "axb", "ä:ö", "e", "x:queue"]
    async with guard.hold_many(names):
        for pattern, matched in {
            "*": names,
            "binance:*": [APT, WIF],
            "*APTUSDT": [APT, "okx:APTUSDT"],
            "*:[AW]*": [APT, WIF, "okx:APTUSDT"],
            "[!bo]*[!T]": ["a*b", "a?b", "a[b", "a]b", "a\\b", "axb", "ä:ö", "x:queue"],
            "a?b": ["a*b", "a?b", "a[b", "a]b", "a\\b", "axb"],
            "a[*]b": ["a*b"],
            "a[?]b": ["a?b"],
            "a[[]b": ["a[b"],
            "a[b": ["a[b"],
            "a]b": ["a]b"],
            "a\\b": ["a\\b"],
            "?:?": ["ä:ö"],
            "ä*": ["ä:ö"],
            "e": ["e"],
            "x": [],
            "none*": [],
            "}*": [],
        }.items():
            assert await _names(guard, pattern) == sorted(matched), pattern


async def test_a_free_resource_is_listed_while_a_lock_delay_keeps_it_closed(new_guard):
    guard, other = new_guard(lock_delay=timedelta(seconds=30)), new_guard()
    with pytest.raises(LeaseLost):
        async with guard.hold(APT):
            assert [found.closed_ms async for found in other.list()] == [0]
            await other.break_(APT, reason="it hangs")
            await asyncio.Event().wait()  # until it is cut
    (found,) = [found async for found in other.list()]
    assert (found.resource, found.held, found.waiters) == (APT, False, ())
    assert 0 < found.closed_ms <= 30_000


async def test_a_requested_hand_over_is_told_with_its_reason(new_guard):
    guard, other = new_guard(), new_guard()
    async with guard.hold(APT):
        assert (await other.inspect(APT)).wanted == ""
        await other.request_handover(APT, reason="deploy at four")
        assert (await other.inspect(APT)).wanted == "deploy at four"
    assert (await other.inspect(APT)).wanted == ""


async def test_the_history_of_a_resource_is_told_newest_first_and_each_event_once(new_guard, cluster):
    guard, other = new_guard(), new_guard()
    assert await guard.history(APT) == ()
    async with guard.hold(APT, operation="open long") as first:
        pass
    with pytest.raises(LeaseLost):
        async with guard.hold(APT) as second:
            await other.break_(APT, reason="it hangs reason=twice")
            await asyncio.Event().wait()  # until it is cut
    assert second.loss is LossReason.BROKEN

    async def told():
        return [entry.event for entry in await other.history(APT)] == [
            "broken",
            "granted",
            "released",
            "granted",
        ]

    await _until(told)  # a release and a break go on where a node was late
    entries = await other.history(APT)
    assert [entry.grant for entry in entries] == [second.grant.id] * 2 + [first.grant.id] * 2
    assert entries[0].reason == "it hangs reason=twice"
    assert entries[3].operation == "open long"
    if cluster.kind != "five-nodes":  # each tells the token that it gave before one was settled
        assert entries[3].token == first.token
    assert entries[3].holder == first.grant.holder
    assert abs(entries[0].at - datetime.now(UTC)) < timedelta(minutes=1)
    assert await other.history(APT, limit=2) == entries[:2]
    cluster.each("LPUSH", f"lockguard:{{{APT}}}:history", "not a line of ours \n[/x]")
    newest = (await other.history(APT))[0]
    assert (newest.event, newest.reason) == ("unreadable", "not a line of ours \\n[/x]")
    assert len(await other.history(APT)) == 5


# --- namespaces ---


def _kept(cluster):
    return {key for keys in cluster.each("KEYS", "*") for key in keys}


async def test_every_key_and_channel_begins_with_the_namespace(new_guard, cluster):
    guard, second, operator = (new_guard(namespace=MINE, lock_delay=timedelta(seconds=1)) for _ in range(3))
    seen, channels = set(), set()

    def look():
        seen.update(_kept(cluster))
        if cluster.kind != "memory":
            for command in (("PUBSUB", "CHANNELS", "*bot*"), ("PUBSUB", "CHANNELS", "*inbox*")):
                channels.update(name for names in cluster.each(*command) for name in names)

    async with guard.hold(APT, operation="open long") as lease:
        waiting = asyncio.create_task(_hold(second, APT))

        async def waits():
            return len((await operator.inspect(APT)).waiters) == 1

        await _until(waits)
        await operator.request_handover(APT, reason="deploy")
        await lease.confirm()  # a renewal
        look()
    await waiting
    with pytest.raises(LeaseLost):
        async with guard.hold("x:broken"):
            await operator.break_("x:broken", reason="it hangs")
            look()
            await asyncio.Event().wait()  # until it is cut
    look()
    async with second.hold("x:once", at_least=timedelta(minutes=1)):
        look()
    look()
    assert [line.event for line in await operator.history("x:broken")] == ["broken", "granted"]
    parts = {key.rpartition("}")[2] for key in seen}
    assert parts >= {"", ":token", ":queue", ":inboxes", ":waiting", ":tenure", ":history"}
    assert (f"{MINE}:member" in seen) == (cluster.kind == "five-nodes")
    assert [key for key in seen if not key.startswith(f"{MINE}:") or key.startswith(f"{OTHERS}:")] == []
    others = {name for name in channels if not name.startswith(f"{MINE}:inbox:")}
    assert others <= {"__sentinel__:hello"}
    assert channels > others or cluster.kind == "memory"


async def test_two_namespaces_do_not_meet(new_guard):
    guards = {name: new_guard(namespace=name) for name in (MINE, OTHERS)} | {"lockguard": new_guard()}
    async with AsyncExitStack() as stack:
        leases = {name: await stack.enter_async_context(guard.hold("x:1")) for name, guard in guards.items()}
        assert len({lease.grant.id for lease in leases.values()}) == 3
        for name, guard in guards.items():
            assert (await guard.inspect("x:1")).grant == leases[name].grant.id
            assert [found.grant async for found in guard.list()] == [leases[name].grant.id]
    async with AsyncExitStack() as stack:
        for name, guard in guards.items():
            await stack.enter_async_context(guard.hold(f"of {name}"))
        for name, guard in guards.items():
            assert await _names(guard) == [f"of {name}"]
    with pytest.raises(LeaseLost):
        async with guards[MINE].hold("x:2"):
            async with guards[OTHERS].hold("x:2") as kept:
                await new_guard(namespace=MINE).break_("x:2", reason="mine only")
                await kept.confirm()
                await asyncio.Event().wait()


async def test_one_namespace_is_one_lock_in_however_many_guards(new_guard):
    async with new_guard(namespace=MINE).hold(APT):
        with pytest.raises(ResourceBusy):
            async with new_guard(namespace=MINE).hold(APT, on_busy="raise"):
                pass
