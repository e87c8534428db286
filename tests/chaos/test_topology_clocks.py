"""Servers whose clocks jump by an hour: what is left of the lock, and what the fence still refuses."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
from datetime import timedelta

import pytest

from lockguard import (
    LeaseLost,
    LeaseState,
    LockGuard,
    LossReason,
    QuorumUnavailable,
    ResourceBusy,
    StaleToken,
)
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import new_grant_id, parse_resource
from lockguard._locks import Won
from lockguard.ports import AcquireRequest
from lockguard_asyncpg import fenced_transaction
from lockguard_lab.servers import ClockJumpRedis

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
HOUR = timedelta(hours=1)
MISSING = ClockJumpRedis.missing()

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture
def servers(request):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(ClockJumpRedis()) for _ in range(request.param)]


def over(servers, **options):
    options = {"ttl": timedelta(seconds=3), "node_timeout": timedelta(seconds=1)} | options
    return LockGuard.from_urls([server.url for server in servers], **options)


async def held_everywhere(servers, lease, ask, until):
    """A majority is enough to hold it; the others take it with their own answer, or with the next renewal."""
    await until(lambda: all(ask(server, "HGET", LOCK, "grant") == lease.grant.id for server in servers))


async def token_of(guard):
    with contextlib.suppress(LeaseLost):  # a clock that was set forward ended it within its short body
        async with guard.hold(NAME) as lease:
            pass
    return lease.token


async def abandoned(guard, ttl_ms):
    """A lease of a holder that died: it is neither renewed nor released."""
    request = AcquireRequest(parse_resource(NAME), new_grant_id(), "a dead process", "", ttl_ms)
    won = await guard._core.locks.acquire(request)
    assert isinstance(won, Won)
    return won.token


@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["forward", "back"])
@pytest.mark.parametrize("servers", [3, 5], indirect=True)
async def test_one_clock_of_several_that_jumps_gives_nobody_a_second_lease(servers, by, ask, until):
    async with over(servers) as guard, over(servers) as rival:
        before = await token_of(guard)
        await token_of(rival)
        async with guard.hold(NAME) as lease:
            assert lease.token > before
            # On a bare majority the node whose clock jumps would be one that it needs.
            await held_everywhere(servers, lease, ask, until)
            servers[0].jump(by)
            tries, until = 0, SYSTEM_CLOCK.now() + 4.5  # more than the ttl: it is renewed meanwhile
            while SYSTEM_CLOCK.now() < until:
                with pytest.raises((ResourceBusy, QuorumUnavailable)):
                    async with rival.hold(NAME, on_busy="raise"):
                        raise AssertionError("a second majority")
                tries += 1
                assert lease.state is not LeaseState.LOST
                assert lease.remaining <= timedelta(milliseconds=lease.grant.ttl_ms)
                await asyncio.sleep(0.005)
            assert tries > 50
            held = lease.token
        after = await token_of(rival)
        servers[0].jump(timedelta(0))
        assert held < after < await token_of(guard) < await token_of(rival)


@pytest.mark.parametrize("jumping", ["one", "all"])
@pytest.mark.parametrize("servers", [1, 3, 5], indirect=True)
async def test_tokens_rise_wherever_the_clocks_jump(servers, jumping):
    async with over(servers) as guard, over(servers) as other:
        tokens = [await token_of(guard)]
        for hours in (1, 0, -1, 0, 2, -2, 0):
            for server in servers if jumping == "all" else servers[:1]:
                server.jump(hours * HOUR)
            tokens += [await token_of(guard), await token_of(other)]
        assert all(earlier < later for earlier, later in itertools.pairwise(tokens))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("servers", [1, 5], indirect=True, ids=["one server", "three of five"])
async def test_a_lease_that_a_clock_ended_early_is_refused_by_the_fence(servers, ledger, ask, until):
    """The server drops the key an hour early: two believe in their lease, and one can write."""
    options = {"ttl": timedelta(seconds=30), "fence": ledger.fence}
    async with over(servers, **options) as guard, over(servers, **options) as rival:
        await token_of(guard)
        await token_of(rival)
        with pytest.raises(LeaseLost) as caught:
            async with guard.hold(NAME) as old:
                async with fenced_transaction(ledger.pool) as connection:
                    await connection.execute("update ledger set number = 1")
                await held_everywhere(servers, old, ask, until)
                for server in servers[:3]:
                    server.jump(HOUR)
                # Of its own, as in another process: a child of the body would write under the old lease too.
                own = contextvars.Context()
                new = await asyncio.create_task(_writes(rival, ledger), context=own)
                assert new > old.token
                assert old.state is LeaseState.HELD  # it cannot know before its next renewal
                with pytest.raises(StaleToken):
                    async with fenced_transaction(ledger.pool) as connection:
                        await connection.execute("update ledger set number = 3")
        assert caught.value.reason is LossReason.FENCED
        assert await ledger.number() == 2


async def _writes(guard, ledger):
    async with guard.hold(NAME, wait=timedelta(seconds=5)) as lease:
        async with fenced_transaction(ledger.pool) as connection:
            await connection.execute("update ledger set number = 2")
        return lease.token


@pytest.mark.parametrize("servers", [1, 5], indirect=True, ids=["one server", "three of five"])
async def test_a_holder_learns_with_its_next_renewal_that_a_clock_ended_its_lease(servers, ask, until):
    async with over(servers) as guard:
        await token_of(guard)
        with pytest.raises(LeaseLost) as caught:
            async with asyncio.timeout(30), guard.hold(NAME) as lease:
                await held_everywhere(servers, lease, ask, until)
                for server in servers[:3]:
                    server.jump(HOUR)
                jumped_at = SYSTEM_CLOCK.now()
                await asyncio.Event().wait()
        assert caught.value.reason is LossReason.REFUSED
        assert SYSTEM_CLOCK.now() - jumped_at < 1 + 1.5  # a third of the ttl, and a busy machine


@pytest.mark.parametrize("servers", [1, 5], indirect=True, ids=["one server", "three of five"])
async def test_a_dead_holders_lease_ends_within_two_ttls_of_a_clock_that_was_set_back(servers):
    """Redis itself would keep the key for an hour longer."""
    async with over(servers) as guard:
        await token_of(guard)
        old = await abandoned(guard, 1_000)
        for server in servers[:3]:
            server.jump(-HOUR)
        began = SYSTEM_CLOCK.now()
        async with guard.hold(NAME, wait=timedelta(seconds=30)) as lease:
            assert lease.token > old
        assert SYSTEM_CLOCK.now() - began < 2 * 1.0 + 2  # and a busy machine; Redis alone would take an hour


@pytest.mark.parametrize("servers", [3], indirect=True)
async def test_a_node_that_forgot_votes_again_although_its_clock_was_set_back(servers, until, ask):
    async with over(servers, ttl=timedelta(seconds=1)) as guard:
        await token_of(guard)
        await asyncio.to_thread(servers[0].restart, keep_data=False)
        servers[0].jump(HOUR)
        await until(lambda: guard._core.locks.nodes[0].ready)
        await token_of(guard)  # admits it
        await until(lambda: ask(servers[0], "HEXISTS", "lockguard:member", "run"))
        servers[0].jump(timedelta(0))
        servers[1].kill()
        began = SYSTEM_CLOCK.now()
        async with guard.hold(NAME, wait=timedelta(seconds=30)):
            pass
        assert SYSTEM_CLOCK.now() - began < 1 + 3  # the longest ttl, and the rests between asking


@pytest.mark.parametrize(
    ("key", "value"),
    [(":next", "f" * 32 + " 1 inbox"), (":tenure", "100")],
    ids=["reservation", "lock delay"],
)
@pytest.mark.parametrize("servers", [1], indirect=True)
async def test_what_keeps_a_free_lock_closed_ends_when_a_clock_is_set_back(servers, ask, key, value):
    async with over(servers) as guard:
        await token_of(guard)
        ask(servers[0], "SET", LOCK + key, value, "PX", value if key == ":tenure" else 500)
        servers[0].jump(-HOUR)
        began = SYSTEM_CLOCK.now()
        async with guard.hold(NAME, wait=timedelta(seconds=30)):
            pass
        assert SYSTEM_CLOCK.now() - began < 2 * 0.5 + 2
