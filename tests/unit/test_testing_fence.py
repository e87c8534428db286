"""The fence in memory, beyond the laws that tests/contract/test_fence.py asks of each driver."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from lockguard import ConfigurationError, FenceUnavailable, LeaseLost, LockGuard, LossReason, StaleToken, sync
from lockguard._lease import Grant, Resource, Token, new_grant_id
from lockguard.ports import Outrun, Sealed
from lockguard.testing import MemoryFence, NotCommitted, unfenced

pytest_plugins = ["lockguard.testing.pytest_plugin"]

S = timedelta(seconds=1)
APT = Resource("binance:APTUSDT")


@dataclass(slots=True)
class Position:
    exchange: str
    symbol: str
    status: str


def grant_of(token: int, grant: str | None = None) -> Grant:
    return Grant(APT, new_grant_id() if grant is None else grant, Token(token), "host/1", "open", 10_000)


@pytest.fixture
def fenced(new_lockguard, lockguard_fence):
    """Makes guards whose leases are sealed in the test's fence."""
    return lambda **options: new_lockguard(fence=lockguard_fence, **options)


async def test_a_refusal_is_recorded_and_ends_the_body_that_swallows_it(lockguard_fence, fenced):
    rows = lockguard_fence.table()
    with pytest.raises(LeaseLost) as lost:
        async with fenced().hold(APT, operation="open") as lease:
            rows["APTUSDT"] = "opening"
            current = await lockguard_fence.break_(APT, reason="a test", within=S)
            with pytest.raises(StaleToken) as stale:
                rows["APTUSDT"] = "active"
            assert (stale.value.presented, stale.value.current) == (lease.token, current)
            await asyncio.Event().wait()
    assert lost.value.reason is LossReason.FENCED
    assert dict(rows) == {"APTUSDT": "opening"}
    (refused,) = lockguard_fence.refusals
    assert (refused.resource, refused.reason, refused.sqlstate) == (APT, "superseded", "LG001")
    assert (refused.presented, refused.current, refused.operation) == (lease.token, current, "open")


async def test_a_transaction_is_kept_or_undone_as_a_whole(lockguard_fence, fenced):
    rows, orders = lockguard_fence.table(), lockguard_fence.table()
    async with fenced().hold(APT):
        rows["old"] = 1
        with pytest.raises(ZeroDivisionError):
            async with lockguard_fence.transaction():
                rows.update(old=2, new=3)
                del rows["old"]
                orders["entry"] = "sent"
                raise ZeroDivisionError
        assert (dict(rows), dict(orders)) == ({"old": 1}, {})
        async with lockguard_fence.transaction():
            rows["old"] = 2
            with pytest.raises(KeyError), lockguard_fence.transaction():
                rows["new"] = 3
                del rows["absent"]
        assert dict(rows) == {"old": 2}


async def test_a_refusal_that_is_swallowed_in_a_transaction_is_told_at_its_end(lockguard_fence, fenced):
    rows = lockguard_fence.table(protect="binance:{key}")
    async with fenced().hold(APT):
        with pytest.raises(NotCommitted, match="swallowed"):
            async with lockguard_fence.transaction():
                rows["APTUSDT"] = "active"
                with pytest.raises(StaleToken):
                    rows["SUIUSDT"] = "active"
    assert dict(rows) == {}


@pytest.mark.parametrize(
    "write",
    [
        lambda rows: rows.pop("absent", None),
        lambda rows: rows.pop("absent"),
        lambda rows: rows.__delitem__("absent"),
        lambda rows: rows.setdefault("there", 2),
        lambda rows: rows.update({}),
    ],
)
async def test_a_write_that_changes_no_row_is_refused_as_its_statement_would_be(
    lockguard_fence, fenced, write
):
    rows = lockguard_fence.table()
    rows["there"] = 1
    with pytest.raises(StaleToken):
        async with fenced().hold(APT):
            await lockguard_fence.break_(APT, reason="a test", within=S)
            write(rows)
    assert dict(rows) == {"there": 1}


async def test_what_a_dictionary_answers_is_answered_under_a_lease(lockguard_fence, fenced):
    rows = lockguard_fence.table(protect="binance:{key}")
    async with fenced().hold(APT):
        assert rows.setdefault("APTUSDT", 1) == rows.setdefault("APTUSDT", 2) == 1
        assert (rows.pop("absent", 3), rows.pop("absent", None)) == (3, None)
        for absent in (rows.pop, rows.__delitem__):
            with pytest.raises(KeyError, match="absent"):
                absent("absent")
        assert (rows.pop("APTUSDT"), dict(rows)) == (1, {})


async def test_a_row_is_protected_by_its_old_and_its_new_version(lockguard_fence, fenced):
    rows = lockguard_fence.table(protect="{exchange}:{symbol}")
    async with fenced().hold(APT):
        rows[1] = Position("binance", "APTUSDT", "opening")
        rows[1] = replace(rows[1], status="active")
        rows[2] = SimpleNamespace(exchange="binance", symbol="APTUSDT")
        with pytest.raises(StaleToken):
            rows[1] = replace(rows[1], symbol="SUIUSDT")
    async with fenced().hold("binance:SUIUSDT"):
        with pytest.raises(StaleToken):
            rows[1] = replace(rows[1], symbol="SUIUSDT")
        with unfenced(), pytest.raises(StaleToken):
            del rows[1]
    assert rows[1].status == "active"


class Named(NamedTuple):
    exchange: str
    symbol: str


@dataclass(slots=True)
class Inherited(Position):
    stop: str = ""


class OneSlot:
    __slots__ = "symbol"  # noqa: PLC0205 - a string is one slot
    exchange = "binance"

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol


class Computed:
    exchange = "binance"

    @property
    def symbol(self) -> str:
        return "APTUSDT"


@pytest.mark.parametrize(
    "row",
    [
        Named("binance", "APTUSDT"),
        Inherited("binance", "APTUSDT", "active"),
        OneSlot("APTUSDT"),
        Computed(),
        {"exchange": "binance", "symbol": "APTUSDT"},
    ],
    ids=lambda row: type(row).__name__,
)
async def test_a_row_of_any_kind_names_its_resource(lockguard_fence, fenced, row):
    rows = lockguard_fence.table(protect="{exchange}:{symbol}")
    with pytest.raises(StaleToken, match=APT):
        rows[1] = row
    async with fenced().hold(APT):
        rows[1] = row
    assert dict(rows) == {1: row}


async def test_a_row_whose_resource_is_null_is_refused_under_any_lease(lockguard_fence, fenced):
    rows = lockguard_fence.table(protect="{exchange}:{symbol}")
    async with fenced().hold("binance:None"):
        with pytest.raises(StaleToken, match="whose resource is null"):
            rows[1] = {"exchange": "binance", "symbol": None}


def test_a_template_that_does_not_fit_the_rows_is_told():
    fence = MemoryFence()
    with pytest.raises(ConfigurationError, match="names 'symbol', which the row of 1 does not have"):
        fence.table(protect="binance:{symbol}")[1] = {"exchange": "binance"}
    with pytest.raises(ConfigurationError, match="a template"):
        fence.table(protect=1)


async def test_a_seal_that_waits_too_long_is_unavailable_by_the_clock_of_the_test(
    lockguard_clock, lockguard_fence, fenced
):
    rows = lockguard_fence.table()
    async with fenced().hold(APT) as lease:
        async with lockguard_fence.transaction():
            rows[1] = "x"
            sealing = asyncio.create_task(lockguard_fence.seal(grant_of(lease.token + 1), within=3 * S))
            await lockguard_clock.run_for(timedelta(seconds=2.9))
            assert not sealing.done()
            await lockguard_clock.run_for(timedelta(seconds=0.2))
            with pytest.raises(FenceUnavailable, match="open for longer than 3 s"):
                sealing.result()


async def test_the_fence_knows_the_grants_as_postgres_does():
    fence, first, second = MemoryFence(), grant_of(7), grant_of(8)
    assert await fence.seal(first, within=S) == Sealed(Token(7))
    assert await fence.confirm(first, within=S)
    assert await fence.seal(second, within=S) == Sealed(Token(8))
    assert not await fence.confirm(first, within=S)
    await fence.close(first, within=S)
    assert await fence.confirm(second, within=S), "the close of an older grant has closed a newer one"
    assert await fence.break_grant(first, reason="x", within=S) == Outrun(Token(8))
    broken = await fence.break_grant(second, reason="x", within=S)
    assert isinstance(broken, int)
    assert await fence.break_grant(second, reason="again", within=S) == broken
    assert await fence.seal(second, within=S) == Outrun(broken)


async def test_a_seal_that_comes_after_its_close_is_refused():
    fence, grant = MemoryFence(), grant_of(7)
    await fence.close(grant, within=S)
    assert await fence.seal(grant, within=S) == Outrun(Token(7))


async def test_a_lease_of_a_guard_without_this_fence_is_refused(new_lockguard, lockguard_fence):
    with pytest.raises(StaleToken, match="never sealed by this fence"):
        async with new_lockguard().hold(APT):
            lockguard_fence.check()


async def test_code_without_a_lease_writes_what_is_not_protected(lockguard_fence):
    rows = lockguard_fence.table()
    rows["price"] = 1
    lockguard_fence.check()
    assert dict(rows) == {"price": 1}
    assert lockguard_fence.refusals == []


async def test_a_transaction_is_for_one_use(lockguard_fence):
    transaction = lockguard_fence.transaction()
    async with transaction:
        pass
    with pytest.raises(ConfigurationError, match="entered before"):
        async with transaction:
            pass


def test_synchronous_code_writes_under_its_lease_in_its_own_thread():
    fence = MemoryFence()
    rows = fence.table(protect="binance:{key}")
    with sync.LockGuard.in_memory(fence=fence) as guard:
        with guard.hold(APT), fence.transaction():
            rows["APTUSDT"] = "active"
        with pytest.raises(StaleToken):
            rows["APTUSDT"] = "closed"
        with pytest.raises((StaleToken, LeaseLost)):
            with guard.hold(APT):
                guard.break_(APT, reason="a test")
                rows["APTUSDT"] = "closed"
    assert dict(rows) == {"APTUSDT": "active"}


async def test_a_fence_serves_guards_with_time_of_the_machine_too():
    fence = MemoryFence()
    async with LockGuard.in_memory(fence=fence).hold(APT) as lease:
        await lease.confirm(within=S)
