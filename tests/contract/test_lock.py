"""The laws of the lock, over one real server and over five."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from datetime import timedelta

import pytest

from lockguard import (
    ChangedHands,
    ConfigurationError,
    LeaseLost,
    LeaseNotHeld,
    LeaseState,
    LossReason,
    ResourceBusy,
    SelfDeadlock,
    current_lease,
)
from lockguard._lease import Grant, Token, new_grant_id, parse_resource
from lockguard._locks import Contended, Found, Locks, Won
from lockguard._quorum import Renewal, tally
from lockguard.ports import AcquireRequest, Broken
from lockguard.testing import FakeClock

NAME = "binance:APTUSDT"
LOCK = f"lockguard:{{{NAME}}}"


def wish(**changes: object) -> AcquireRequest:
    facts = {
        "resource": parse_resource(NAME),
        "grant": new_grant_id(),
        "holder": "h",
        "operation": "o",
        "ttl_ms": 5000,
    }
    return AcquireRequest(**(facts | changes))  # type: ignore[arg-type]


def locks_of(guard: object) -> Locks:
    return guard._core.locks  # type: ignore[attr-defined, no-any-return]


async def test_only_one_holds_at_a_time_and_tokens_increase(new_guard):
    guards = [new_guard(), new_guard()]
    inside, most, tokens = 0, 0, []

    async def work(guard):
        nonlocal inside, most
        async with guard.hold(NAME) as lease:
            inside += 1
            most = max(most, inside)
            tokens.append(lease.token)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(work(guards[i % 2]) for i in range(20)))
    assert most == 1
    assert len(tokens) == 20
    assert tokens == sorted(set(tokens))


async def test_tokens_increase_when_the_servers_lose_everything(new_guard, cluster):
    guard, tokens = new_guard(), []
    for _ in range(5):
        async with guard.hold(NAME) as lease:
            tokens.append(lease.token)
        cluster.each("FLUSHALL")
    assert tokens == sorted(set(tokens))


async def test_nothing_but_floor_and_history_is_left_after_release(new_guard, cluster):
    guard, other = new_guard(), new_guard()
    async with guard.hold(NAME):
        waiting = asyncio.create_task(_hold_once(other))
        await _until(lambda: _queued(cluster))
    await waiting
    assert cluster.leftovers() == []


async def test_asking_again_for_the_same_grant_gives_a_token_that_it_had(new_guard, cluster):
    guard = new_guard()
    locks = locks_of(guard)
    await _hold_once(guard)  # the servers know the scripts: a settling sent as text would come late
    request = wish()
    first = await locks.acquire(request)
    assert isinstance(first, Won)
    # Of several servers one that was late for the decision may have given a later one: that is what it keeps.
    await _until(lambda: all(cluster.each("HGET", LOCK, "token")))
    given = cluster.each("HGET", LOCK, "token")
    second = await locks.acquire(request)
    assert isinstance(second, Won)
    assert first.token <= second.token
    assert {str(first.token), str(second.token)} <= set(given)


async def test_a_stale_release_leaves_the_new_lease_alone(new_guard):
    locks = locks_of(new_guard())
    await locks.connect()
    old, new = wish(), wish()
    assert isinstance(await locks.acquire(old), Won)
    assert await locks.release(old.resource, old.grant)() is Found.YES
    assert isinstance(await locks.acquire(new), Won)
    assert await locks.release(old.resource, old.grant)() is Found.NO
    assert isinstance(await locks.acquire(wish()), Contended)


async def test_a_late_renewal_does_not_bring_a_lease_back(new_guard, cluster):
    guard = new_guard()
    async with guard.hold(NAME) as lease:
        grant = lease.grant
    locks = locks_of(guard)
    asked = locks.extend(grant)
    await asyncio.wait(asked)
    assert tally(asked, sent_at=0, ttl_ms=grant.ttl_ms).renewal is Renewal.REFUSED
    assert cluster.leftovers() == []


async def test_the_seal_of_a_grant_is_given_with_the_next_whether_it_was_released_or_only_renewed(new_guard):
    locks = locks_of(new_guard())
    await locks.connect()
    first, second, third = wish(), wish(), wish()
    won = await locks.acquire(first)
    assert isinstance(won, Won)
    assert won.seal == ""
    await locks.release(first.resource, first.grant, seal="fence 7")()
    won = await locks.acquire(second)
    assert isinstance(won, Won)
    assert won.seal == "fence 7"
    grant = Grant(second.resource, second.grant, won.token, "", "", second.ttl_ms, "fence 8")
    await asyncio.wait(locks.extend(grant))
    await locks.release(second.resource, second.grant)()
    assert isinstance(late := await locks.acquire(third), Won)
    assert late.seal == "fence 8"
    # One that is late, or never held it, does not take it back.
    await locks.release(second.resource, second.grant, seal="fence 7")()
    await locks.release(third.resource, third.grant)()
    assert isinstance(last := await locks.acquire(wish()), Won)
    assert last.seal == "fence 8"


async def test_a_busy_resource_tells_who_holds_it(new_guard):
    guard, other = new_guard(), new_guard()
    async with guard.hold(NAME, operation="open_position") as lease:
        with pytest.raises(ResourceBusy) as caught:
            async with other.hold(NAME, on_busy="raise"):
                pass
    busy = caught.value
    assert busy.operation == "open_position"
    assert busy.token == lease.token
    assert busy.holder is not None
    assert busy.age is not None
    assert timedelta(0) < busy.retry_after <= timedelta(seconds=10)
    assert NAME in str(busy)


async def test_patience_ends_and_leaves_no_place_in_the_queue(new_guard, cluster):
    guard, other = new_guard(), new_guard()
    await _hold_once(other)  # connected before: connecting takes a busy machine longer than this patience
    async with guard.hold(NAME):
        with pytest.raises(ResourceBusy):
            async with other.hold(NAME, wait=timedelta(milliseconds=200)):
                pass
        await _until(lambda: not _queued(cluster))


async def test_the_lock_of_a_holder_that_vanished_is_free_within_ttl_and_a_quarter_second(new_guard):
    locks, other, took_s = locks_of(new_guard()), new_guard(), []
    await locks.connect()
    loop = asyncio.get_running_loop()
    async with other:
        while min(took_s, default=9.0) >= 1.25 and len(took_s) < 4:  # a busy machine is late now and then
            assert isinstance(await locks.acquire(wish(ttl_ms=1000)), Won)
            began = loop.time()
            async with other.hold(NAME):
                took_s.append(loop.time() - began)
    assert min(took_s) < 1.25, took_s


async def test_a_lease_outlives_its_ttl_while_its_body_runs(new_guard, cluster):
    guard, other = new_guard(ttl=timedelta(milliseconds=600)), new_guard()
    await _hold_once(other)  # connected before: connecting takes a busy machine longer than the ttl

    longest_s = 0.0

    async def renewed():
        nonlocal longest_s
        began = time.monotonic()
        try:  # in a thread: asking must not hinder renewing
            counts = await asyncio.to_thread(cluster.each, "HGET", LOCK, "renewals")
        finally:
            longest_s = max(longest_s, time.monotonic() - began)
        return all(int(count or 0) >= 5 for count in counts)

    async def outlive():
        async with guard.hold(NAME) as lease:
            await _until_async(renewed)
            with pytest.raises(ResourceBusy):
                async with other.hold(NAME, on_busy="raise"):
                    pass
            assert lease.state is LeaseState.HELD

    async with asyncio.timeout(20):
        while True:
            try:
                return await outlive()
            except LeaseLost as exc:
                # From a third of the ttl on, it is renewed each tenth of it: a busy machine must have stood
                # still for longer than that more than once, or we are at fault.
                if exc.reason is not LossReason.EXPIRED or longest_s < 0.1:
                    raise


async def test_a_lease_that_was_taken_away_cancels_its_body_as_lost(new_guard, cluster):
    guard = new_guard(ttl=timedelta(seconds=2))
    with pytest.raises(LeaseLost) as caught:
        async with guard.hold(NAME):
            cluster.each("FLUSHALL")  # in one turn of the loop: one server at a time would get the lease back
            await asyncio.Event().wait()
    assert caught.value.reason is LossReason.REFUSED
    assert asyncio.current_task().cancelling() == 0


async def test_a_key_that_vanishes_is_noticed_by_its_holder_within_a_second(new_guard, cluster):
    """By the guard's own clock, which no busy machine moves; the next renewal is 20 s away."""
    clock = FakeClock()
    guard = new_guard(ttl=timedelta(seconds=60), clock=clock)
    with pytest.raises(LeaseLost) as caught:
        async with guard.hold(NAME):
            cluster.each("DEL", LOCK)
            clock.advance(timedelta(seconds=1))
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
    assert caught.value.reason is LossReason.REFUSED


async def test_an_overwritten_key_is_noticed_by_its_holder_within_a_second(new_guard, cluster):
    """By a value of another type, which the server answers with an error and no refusal."""
    clock = FakeClock()
    guard = new_guard(ttl=timedelta(seconds=60), clock=clock)
    with pytest.raises(LeaseLost) as caught:
        async with guard.hold(NAME):
            cluster.each("SET", LOCK, "x")
            clock.advance(timedelta(seconds=1))
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
    assert caught.value.reason is LossReason.REFUSED


async def test_what_a_minority_of_the_nodes_lost_is_given_back_within_a_second(new_guard):
    """Else the loss of one more node would end the lease; the next regular renewal is 20 s away."""
    clock = FakeClock()
    guard, elsewhere = new_guard(ttl=timedelta(seconds=60), clock=clock), new_guard()
    nodes = locks_of(elsewhere).nodes
    async with guard.hold(NAME) as lease:
        await elsewhere.inspect(NAME)
        await _take_away(elsewhere, len(nodes) // 2)
        clock.advance(timedelta(seconds=1))

        async def held_everywhere() -> bool:
            seen = [await node.inspect(lease.resource) for node in nodes]
            return [each.grant for each in seen] == [lease.grant.id] * len(nodes)

        await _until_async(held_everywhere)


async def test_a_break_ends_the_holder_and_frees_the_lock(new_guard):
    guard, other = new_guard(ttl=timedelta(milliseconds=300)), new_guard()
    with pytest.raises(LeaseLost):
        async with guard.hold(NAME, operation="stuck") as lease:
            broken = await other.break_(NAME, reason="stuck for an hour")
            assert broken.grant == lease.grant.id
            async with other.hold(NAME) as successor:
                assert successor.token > lease.token
            await asyncio.Event().wait()


async def test_who_is_woken_and_gives_up_does_not_cost_the_next_of_its_process_the_place(new_guard, cluster):
    mine, other = locks_of(new_guard()), locks_of(new_guard())
    await mine.connect()
    await other.connect()
    holder, first, second = (wish(queue=True) for _ in range(3))
    assert isinstance(await mine.acquire(holder), Won)
    for waiter in (first, second):
        assert isinstance(await mine.acquire(waiter), Contended)
    mine.release(holder.resource, holder.grant)  # wakes the first, whose caller is cancelled at that moment
    await mine.release(first.resource, first.grant)()
    if cluster.kind != "five-nodes":  # where the order is best effort
        assert isinstance(await other.acquire(wish(queue=True)), Contended)
    assert isinstance(await mine.acquire(second), Won)


async def test_a_break_wakes_the_first_waiter_as_a_release_does(new_guard, cluster, monkeypatch):
    guard, operator, other, last = new_guard(), new_guard(), new_guard(), new_guard()
    woken = {other: [], last: []}
    for waiter, grants in woken.items():
        queue = waiter._core.queue
        monkeypatch.setattr(
            queue, "wake", lambda grant, grants=grants, wake=queue.wake: (grants.append(grant), wake(grant))
        )

    def start(waiter):
        return asyncio.create_task(_hold_once(waiter), context=contextvars.Context())

    with pytest.raises(LeaseLost):
        async with guard.hold(NAME):
            first = start(other)
            await _until_async(lambda: _waiters(guard, 1))
            second = start(last)
            await _until_async(lambda: _waiters(guard, 2))
            queued = [waiter.grant for waiter in (await guard.inspect(NAME)).waiters]
            assert woken == {other: [], last: []}
            await operator.break_(NAME, reason="stuck")
    await _until(lambda: woken[other])
    if cluster.kind != "five-nodes":  # where a waiter stands in line at any majority
        assert woken[other] == [queued[0]]
    await asyncio.gather(first, second)


async def test_a_lock_delay_begins_when_a_lease_is_broken_and_a_second_break_does_not_shorten_it(new_guard):
    """What the broken holder had sent may still be under way."""
    delay = timedelta(milliseconds=700)
    guard, operator, other = new_guard(lock_delay=delay), new_guard(), new_guard()
    loop = asyncio.get_running_loop()
    with pytest.raises(LeaseLost):
        async with guard.hold(NAME):
            began = loop.time()
            await operator.break_(NAME, reason="stuck")
    await operator.break_(NAME, reason="again")
    with pytest.raises(ResourceBusy):
        async with other.hold(NAME, on_busy="raise"):
            pass
    async with other.hold(NAME):
        assert delay.total_seconds() - 0.01 <= loop.time() - began < 5  # not the ttl of 10 s and the delay


async def test_a_holder_sees_that_its_lease_is_wanted(new_guard):
    guard, other = new_guard(ttl=timedelta(seconds=1)), new_guard()
    async with guard.hold(NAME) as lease:
        assert await other.request_handover(NAME, reason="deploy")
        await _until(lambda: lease.wanted)
    assert not await other.request_handover(NAME, reason="deploy")


async def test_a_holder_sees_within_a_second_that_its_lease_is_wanted(new_guard):
    """By the guard's own clock; the next renewal is 20 s away."""
    clock = FakeClock()
    guard, other = new_guard(ttl=timedelta(seconds=60), clock=clock), new_guard()
    async with guard.hold(NAME) as lease:
        assert await other.request_handover(NAME, reason="deploy")
        clock.advance(timedelta(seconds=1))
        await _until(lambda: lease.wanted)


async def test_the_same_task_enters_again_with_the_same_lease(new_guard):
    guard = new_guard()
    async with guard.hold(NAME) as outer:
        async with guard.hold(NAME) as inner:
            assert inner is outer
        assert current_lease() is outer
        assert outer.state is LeaseState.HELD
    assert current_lease() is None


async def test_a_child_task_that_would_wait_for_its_parent_is_told(new_guard):
    guard = new_guard()
    async with guard.hold(NAME):
        with pytest.raises(SelfDeadlock, match="wait for ever"):
            await asyncio.create_task(_hold_once(guard))


async def test_a_task_that_outlives_the_body_may_lock_for_itself(new_guard):
    guard, go = new_guard(), asyncio.Event()

    async def later():
        await go.wait()
        await _hold_once(guard)

    async with guard.hold(NAME) as lease:
        child = asyncio.create_task(later())
    go.set()
    await child
    with pytest.raises(LeaseNotHeld, match="released"):
        lease.ensure()


async def test_inspect_shows_holder_and_waiters_in_order(new_guard):
    guard, others = new_guard(), [new_guard(), new_guard()]
    free = await guard.inspect(NAME)
    assert not free.held
    assert free.waiters == ()
    async with guard.hold(NAME, operation="open") as lease:
        waiting = []
        for position, other in enumerate(others, start=1):
            waiting.append(asyncio.create_task(_hold_once(other)))
            await _until_async(lambda n=position: _waiters(guard, n))
        seen = await guard.inspect(NAME)
        assert seen.held
        assert seen.token == lease.token
        assert seen.operation == "open"
        assert [w.ticket for w in seen.waiters] == sorted(w.ticket for w in seen.waiters)
    await asyncio.gather(*waiting)


async def test_held_is_what_a_majority_shows_and_not_what_a_release_has_still_to_reach(new_guard):
    guard, elsewhere = new_guard(), new_guard()
    nodes = len(locks_of(guard).nodes)
    wanted = wish(holder="holder")
    for each in (guard, elsewhere):
        await each.inspect(NAME)
    assert isinstance(await locks_of(guard).acquire(wanted), Won)
    await _take_away(elsewhere, nodes // 2)
    shown = await elsewhere.inspect(NAME)
    assert (shown.held, shown.grant) == (True, wanted.grant)
    assert await elsewhere.request_handover(NAME, reason="test")
    await _take_away(elsewhere, nodes // 2 + 1)
    shown = await elsewhere.inspect(NAME)
    assert (shown.held, shown.grant, shown.holder, shown.age_ms) == (False, "", "", 0)
    assert not await elsewhere.request_handover(NAME, reason="test")


async def test_a_break_names_the_holder_of_most_nodes_and_the_highest_token(new_guard):
    """The highest that a node knows or, on its clock, may have given out since."""
    guard, elsewhere = new_guard(), new_guard()
    wanted = wish(holder="holder")
    for each in (guard, elsewhere):
        await each.inspect(NAME)
    won = await locks_of(guard).acquire(wanted)
    assert isinstance(won, Won)
    *others, last = locks_of(elsewhere).nodes
    later = Token(won.token + 60_000_000)
    if others:  # this one knows a later token, and has lost the lock
        await last.break_(parse_resource(NAME), reason="test", token=later)
    broken = await elsewhere.break_(NAME, reason="test")
    assert (broken.grant, broken.holder) == (wanted.grant, "holder")
    if others:
        assert broken.token == later + 1  # nobody's
    else:
        assert won.token < broken.token < later


async def test_a_break_of_one_grant_ends_that_one(new_guard):
    guard, operator = new_guard(), new_guard()
    breaking = None
    with pytest.raises(LeaseLost):
        async with guard.hold(NAME) as lease:
            breaking = asyncio.create_task(operator.break_(NAME, reason="stuck", grant=lease.grant.id))
            await asyncio.Event().wait()
    broken = await breaking
    assert (broken.grant, broken.kept) == (lease.grant.id, False)
    assert not (await operator.inspect(NAME)).held
    # Again, as after a lost reply: it is free.
    assert (await operator.break_(NAME, reason="stuck", grant=lease.grant.id)).grant == ""


async def test_a_break_leaves_a_lock_that_has_changed_hands(new_guard):
    guard, operator = new_guard(), new_guard()
    async with guard.hold(NAME) as seen:
        pass
    async with guard.hold(NAME) as lease:
        for expected in (seen.grant.id, ""):
            with pytest.raises(ChangedHands) as caught:
                await operator.break_(NAME, reason="stuck", grant=expected)
            assert (caught.value.grant, caught.value.holder) == (lease.grant.id, lease.grant.holder)
        await lease.confirm()
    assert (await operator.break_(NAME, reason="opened", grant="")).grant == ""


async def test_only_the_grant_that_was_seen_is_asked(new_guard):
    guard, other = new_guard(), new_guard()
    async with guard.hold(NAME) as lease:
        for seen in ("0" * 32, ""):  # another grant, or a free lock
            with pytest.raises(ChangedHands, match="has changed hands and was not asked"):
                await other.request_handover(NAME, reason="deploy", grant=seen)
        assert (await other.inspect(NAME)).wanted == ""
        assert await other.request_handover(NAME, reason="deploy", grant=lease.grant.id)
        assert (await other.inspect(NAME)).wanted == "deploy"
    assert not await other.request_handover(NAME, reason="deploy", grant=lease.grant.id)


async def test_each_node_compares_and_breaks_in_one_step(new_guard):
    guard = new_guard()
    async with guard.hold(NAME) as lease:
        before = await guard.inspect(NAME)
        for node in locks_of(guard).nodes:
            for other in (new_grant_id(), ""):
                vote = await node.break_(
                    parse_resource(NAME), reason="x", token=Token(lease.token + 10**6), grant=other
                )
                if isinstance(vote, Broken) and vote.grant:  # not a node that the lock has still to reach
                    assert (vote.kept, vote.grant) == (True, lease.grant.id)
                    assert vote.token < lease.token + 10**6
        after = await guard.inspect(NAME)
        assert (after.grant, after.token) == (before.grant, before.token)
        await lease.confirm()


async def test_a_lock_that_only_a_few_nodes_show_has_not_changed_hands(new_guard):
    guard, elsewhere = new_guard(), new_guard()
    wanted = wish(holder="holder")
    for each in (guard, elsewhere):
        await each.inspect(NAME)
    assert isinstance(await locks_of(guard).acquire(wanted), Won)
    nodes = locks_of(elsewhere).nodes
    other = wish(holder="other")
    for node in nodes[: (len(nodes) - 1) // 2]:
        await node.break_(parse_resource(NAME), reason="test", token=Token(0))
        await node.acquire(other)
    broken = await elsewhere.break_(NAME, reason="stuck", grant=wanted.grant)
    assert broken.grant == wanted.grant


async def _hold_once(guard):
    async with guard.hold(NAME):
        pass


async def _waiters(guard, count):
    return len((await guard.inspect(NAME)).waiters) == count


def _queued(cluster):
    return any(cluster.each("ZCARD", f"lockguard:{{{NAME}}}:queue"))


async def _until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def _until_async(condition):
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.005)


async def test_many_resources_are_held_all_or_none_and_without_deadlock(new_guard, cluster):
    guard, other = new_guard(), new_guard()

    async def both(guard, names):
        for _ in range(10):
            async with guard.hold_many(names) as leases:
                assert [lease.resource for lease in leases] == names

    async with asyncio.timeout(20):
        await asyncio.gather(both(guard, ["a", "b", "c"]), both(other, ["c", "b", "a"]))
    async with guard.hold("b"):
        with pytest.raises(ResourceBusy):
            async with other.hold_many(["a", "b"], on_busy="raise"):
                pass
        assert not (await guard.inspect("a")).held
    await _until(lambda: not cluster.leftovers())  # the release of "b" returned when a majority had done it


async def test_a_lease_ends_after_the_longest_time_it_may_be_held(new_guard):
    guard = new_guard(ttl=timedelta(seconds=1), max_hold=timedelta(seconds=1.5))
    began = asyncio.get_running_loop().time()
    with pytest.raises(LeaseLost) as caught:
        async with guard.hold(NAME):
            await asyncio.Event().wait()
    assert caught.value.reason is LossReason.MAX_HOLD
    assert asyncio.get_running_loop().time() - began > 1.49


async def test_a_lock_delay_keeps_the_resource_closed_after_an_expiry_but_not_after_a_release(new_guard):
    guard, other = new_guard(lock_delay=timedelta(milliseconds=400)), new_guard()
    locks = locks_of(guard)
    async with guard.hold(NAME):
        pass
    async with other.hold(NAME, on_busy="raise"):
        pass
    began = asyncio.get_running_loop().time()
    assert isinstance(await locks.acquire(wish(ttl_ms=300, lock_delay_ms=400)), Won)
    async with other.hold(NAME):
        assert asyncio.get_running_loop().time() - began >= 0.69


async def test_a_lock_delay_begins_at_the_end_of_a_lease_that_was_asked_for_twice(new_guard):
    """Its first answer was late, and who asks again is trusted for a whole ttl from then on."""
    guard, other = new_guard(), new_guard()
    locks = locks_of(guard)
    await locks.connect()
    wanted = wish(ttl_ms=900, lock_delay_ms=600)
    assert isinstance(await locks.acquire(wanted), Won)
    await asyncio.sleep(0.5)  # more than half of its ttl, which begins again
    asked_again_at = asyncio.get_running_loop().time()
    assert isinstance(await locks.acquire(wanted), Won)
    assert (await _entered_at(other) - asked_again_at) / 1.5 >= MOST


MOST = 0.9
"""The share of a time that is kept at least: fakeredis counts an expiry from before its script was read."""


def closing(guard: object, **facts: object) -> object:
    return guard.hold(NAME, at_least=timedelta(milliseconds=900), **facts)  # type: ignore[attr-defined]


async def _entered_at(guard, **facts: object) -> float:
    async with guard.hold(NAME, **facts):
        return asyncio.get_running_loop().time()


@pytest.mark.parametrize("ends", ["at once", "with an error", "late", "lost", "closed", "dead"])
async def test_at_least_keeps_the_resource_closed_however_the_body_ends(new_guard, ends):
    guard, other = new_guard(ttl=timedelta(seconds=1)), new_guard()
    if ends == "dead":
        await locks_of(guard).connect()
        assert isinstance(await locks_of(guard).acquire(wish(ttl_ms=600, at_least_ms=60_000)), Won)
    else:
        with contextlib.suppress(LeaseLost, ZeroDivisionError):
            async with guard.hold(NAME, at_least=timedelta(minutes=1)) as lease:
                if ends == "with an error":
                    raise ZeroDivisionError
                if ends == "late":
                    await asyncio.sleep(1.5)  # beyond several renewals
                if ends == "lost":
                    lease.end(LossReason.FENCED)
                    await asyncio.Event().wait()
                if ends == "closed":
                    await guard.aclose()
    await _until_async(lambda: _is_free(other))
    with pytest.raises(ResourceBusy, match="closed") as busy:
        await _entered_at(other, on_busy="raise")
    assert busy.value.holder is None
    assert 0 < busy.value.retry_after.total_seconds() <= 60


@pytest.mark.parametrize("dies", [False, True])
async def test_at_least_counts_from_the_grant_and_not_from_its_end(new_guard, dies):
    guard, other = new_guard(), new_guard()
    await locks_of(guard).connect()
    asked_at = asyncio.get_running_loop().time()
    if dies:
        assert isinstance(await locks_of(guard).acquire(wish(ttl_ms=600, at_least_ms=900)), Won)
    else:
        async with closing(guard):
            pass
    assert MOST <= (await _entered_at(other) - asked_at) / 0.9 < 8


async def _is_free(guard) -> bool:
    return not (await guard.inspect(NAME)).held


async def test_at_least_that_is_over_by_the_release_closes_nothing(new_guard, cluster):
    guard, other = new_guard(), new_guard()
    async with guard.hold(NAME, at_least=timedelta(milliseconds=50)):
        await asyncio.sleep(0.1)  # twice what was asked for
        waiting = asyncio.create_task(_entered_at(other), context=contextvars.Context())
        await _until(lambda: _queued(cluster))
    await waiting
    assert cluster.leftovers() == []


async def test_a_waiter_of_a_closed_resource_keeps_its_place_and_comes_in_turn(new_guard, cluster):
    guard, first, second = new_guard(), new_guard(), new_guard()
    asked_at = asyncio.get_running_loop().time()
    async with closing(guard):
        one = asyncio.create_task(_entered_at(first), context=contextvars.Context())
        await _until_async(lambda: _waiters(guard, 1))
        two = asyncio.create_task(_entered_at(second), context=contextvars.Context())
        await _until_async(lambda: _waiters(guard, 2))
    entered = [await one, await two]
    assert entered == sorted(entered)
    assert (entered[0] - asked_at) / 0.9 >= MOST
    assert cluster.leftovers() == []


async def test_what_is_closed_is_shown_and_until_when_and_a_break_opens_it(new_guard):
    guard, other = new_guard(), new_guard()
    async with guard.hold(NAME, at_least=timedelta(minutes=1)):
        shown = await other.inspect(NAME)
        assert shown.held
        assert 50_000 < shown.closed_ms <= 60_000
    shown = await other.inspect(NAME)
    assert not shown.held
    assert 50_000 < shown.closed_ms <= 60_000
    waiting = asyncio.create_task(_entered_at(other), context=contextvars.Context())
    await _until_async(lambda: _waiters(guard, 1))
    await guard.break_(NAME, reason="run it again")
    await waiting
    shown = await other.inspect(NAME)
    assert (shown.held, shown.closed_ms) == (False, 0)


async def test_a_break_of_a_held_lock_opens_what_at_least_would_close(new_guard, cluster):
    guard, operator = new_guard(), new_guard()
    with pytest.raises(LeaseLost):
        async with guard.hold(NAME, at_least=timedelta(minutes=1)):
            # Where a grant arrives behind the break, the release of the lost lease closes that server again.
            await _until(lambda: all(cluster.each("HGET", LOCK, "token")))
            await operator.break_(NAME, reason="stuck")
            await asyncio.Event().wait()
    await _entered_at(operator)
    await _until(lambda: not cluster.leftovers())  # a release returns before it has reached every server


async def test_of_at_least_and_a_lock_delay_the_longer_one_holds(new_guard):
    delay = timedelta(milliseconds=600)
    guard, other = new_guard(lock_delay=delay), new_guard()
    loop = asyncio.get_running_loop()
    with pytest.raises(LeaseLost):
        async with guard.hold(NAME, at_least=timedelta(milliseconds=100)) as lease:
            lease.end(LossReason.FENCED)
            lost_at = loop.time()
            await asyncio.Event().wait()
    assert (await _entered_at(other) - lost_at) / 0.6 >= MOST
    began = loop.time()
    assert isinstance(
        await locks_of(guard).acquire(wish(ttl_ms=300, lock_delay_ms=400, at_least_ms=100)), Won
    )
    assert (await _entered_at(other) - began) / 0.7 >= MOST


async def test_a_break_leaves_the_lock_delay_of_what_at_least_closed(new_guard):
    guard, other = new_guard(lock_delay=timedelta(milliseconds=500)), new_guard()
    with pytest.raises(LeaseLost):
        async with guard.hold(NAME, at_least=timedelta(minutes=1)):
            began = asyncio.get_running_loop().time()
            await other.break_(NAME, reason="stuck")
            await asyncio.Event().wait()
    assert MOST <= (await _entered_at(other) - began) / 0.5 < 16


async def test_an_acquire_that_was_cancelled_or_failed_uses_no_period_up(new_guard, cluster):
    guard = new_guard()
    await _hold_once(guard)
    for turn in range(0, 30, 3):
        task = asyncio.create_task(closing(guard, on_busy="raise").__aenter__())
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            await guard.inspect(NAME)  # behind every release
            assert cluster.leftovers() == [], f"cancelled at turn {turn}"
        else:
            break


async def test_at_least_inside_another_hold_of_the_same_task_is_refused(new_guard):
    guard = new_guard()
    async with guard.hold(NAME):
        with pytest.raises(ConfigurationError, match="outer hold"):
            async with closing(guard):
                pass
    await _entered_at(guard, on_busy="raise")


async def _take_away(guard, nodes: int) -> None:
    """What somebody elsewhere does to the lock, so that this process does not learn of it."""
    for node in locks_of(guard).nodes[:nodes]:
        assert isinstance(await node.break_(parse_resource(NAME), reason="elsewhere", token=Token(0)), Broken)


async def test_a_lock_that_was_gone_at_its_release_was_lost(new_guard):
    guard, elsewhere = new_guard(), new_guard()
    await elsewhere.inspect(NAME)
    nodes = len(locks_of(guard).nodes)
    with pytest.raises(LeaseLost) as caught:
        async with guard.hold(NAME) as lease:
            await _take_away(elsewhere, nodes)
            lease.ensure()
    assert caught.value.reason is LossReason.REFUSED
    if nodes > 1:
        async with guard.hold(NAME):
            await _take_away(elsewhere, nodes // 2)  # a minority decides nothing


async def test_a_lease_is_confirmed_while_it_is_held_and_not_when_the_lock_is_gone(new_guard):
    guard, elsewhere = new_guard(), new_guard()
    await elsewhere.inspect(NAME)
    with pytest.raises(LeaseLost):
        async with guard.hold(NAME) as lease:
            before = lease.deadline
            await lease.confirm(within=timedelta(seconds=5))
            assert lease.deadline > before
            await _take_away(elsewhere, len(locks_of(guard).nodes))
            await lease.confirm(within=timedelta(seconds=5))
            raise AssertionError("confirmed")


async def test_a_lock_delay_outlasts_the_release_of_a_lease_that_was_lost(new_guard):
    """The holder sees the loss before the server does, and what it sends then must not open the resource."""
    delay = timedelta(milliseconds=600)
    guard = new_guard(lock_delay=delay, max_hold=timedelta(milliseconds=200))
    other = new_guard()
    loop = asyncio.get_running_loop()

    async def next_one():
        async with other.hold(NAME):
            return loop.time()

    for queued in (False, True):
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                if queued:
                    waiting = asyncio.create_task(next_one(), context=contextvars.Context())
                    await _until_async(lambda: _waiters(guard, 1))
                try:
                    await asyncio.Event().wait()
                finally:
                    lost_at = loop.time()
        entered_at = await (waiting if queued else next_one())
        assert entered_at - lost_at >= delay.total_seconds() - 0.01


async def test_observers_are_told_and_one_that_fails_is_told_on_and_told_the_next_event(new_guard):
    seen, calls = [], []

    class Failing:
        def on(self, event):
            calls.append(type(event).__name__)
            raise RuntimeError("a broken observer")

    class Watching:
        def on(self, event):
            seen.append(type(event).__name__)

    guard, other = new_guard(observers=[Failing(), Watching()]), new_guard()
    async with guard.hold(NAME):
        pass
    async with other.hold(NAME):
        with pytest.raises(ResourceBusy):
            async with guard.hold(NAME, on_busy="raise"):
                pass
    assert calls == ["Acquired", "Released", "Waited", "NotAcquired"]
    assert seen == [name for call in calls for name in ("ObserverFailed", call)]


async def test_cancelled_at_any_turn_of_the_loop_it_leaves_nothing(new_guard, cluster):
    guard, holder = new_guard(), new_guard()
    await _hold_once(guard)
    await _hold_once(holder)
    for turn in range(40):
        task = asyncio.create_task(_hold_once(guard))
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await guard.inspect(NAME)  # behind every release
        assert cluster.leftovers() == [], f"cancelled at turn {turn}"
    for turn in range(0, 40, 4):
        async with holder.hold(NAME):
            task = asyncio.create_task(_hold_once(guard))
            for _ in range(turn):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await guard.inspect(NAME)
            assert not _queued(cluster), f"cancelled at turn {turn} of a wait"
        await holder.inspect(NAME)
        assert cluster.leftovers() == []
    assert len(guard._core.keeper) == len(guard._core.queue) == 0
