"""A test that gives the bot's own guard another one."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest

from lockguard import ConfigurationError, LockGuard, ResourceBusy, sync
from lockguard.testing import MemoryStore, replaced

UNREACHABLE = "redis://127.0.0.1:1/0"
"""No server: whatever reaches the guard's own node fails."""

guard = LockGuard.from_url(UNREACHABLE, resource_key=str.upper)
blocking = sync.LockGuard.from_url(UNREACHABLE, resource_key=str.upper)
runs: list[str] = []


@guard.exclusive("binance:{symbol}", on_busy="raise")
async def opened(symbol: str) -> None:
    runs.append(symbol)


@blocking.exclusive("binance:{symbol}", on_busy="raise")
def opened_blocking(symbol: str) -> None:
    runs.append(symbol)


@pytest.fixture(autouse=True)
def no_runs():
    runs.clear()


async def test_decorated_functions_work_with_the_replacement_and_names_stay_those_of_the_bot():
    store = MemoryStore()
    with replaced(guard, LockGuard.in_memory(store)) as given:
        await opened("aptusdt")
        async with LockGuard.in_memory(store).hold("BINANCE:APTUSDT"):
            with pytest.raises(ResourceBusy):
                await opened("aptusdt")
        assert given.resource("a") == "a"
        assert guard.resource("binance:aptusdt") == "BINANCE:APTUSDT"
    assert runs == ["aptusdt"]


async def test_every_method_works_on_the_replacement():
    with replaced(guard, LockGuard.in_memory()) as given:
        async with guard, guard.hold_many(["a", "b"]), guard.hold("c") as lease:
            assert (await given.inspect("C")).grant == lease.grant.id
            assert {seen.resource async for seen in guard.list()} == {"A", "B", "C"}
            assert await guard.request_handover("c", reason="a test")
            assert (await guard.history("c"))[0].grant == lease.grant.id
            assert (await guard.break_("d", reason="a test")).grant == ""
    assert not guard._core.connected
    assert not guard._core.in_own_loop


async def test_it_is_restored_also_after_an_error_and_replacements_nest():
    outer, inner = LockGuard.in_memory(), LockGuard.in_memory()
    with pytest.raises(ZeroDivisionError), replaced(guard, outer):
        async with outer.hold("BINANCE:A"):
            with replaced(guard, inner):
                await opened("a")
            with pytest.raises(ResourceBusy):
                await asyncio.create_task(opened("a"))
        raise ZeroDivisionError
    assert guard._stand_in is None


async def test_blocks_that_overlap_end_in_any_order():
    one, two = LockGuard.in_memory(), LockGuard.in_memory()
    first, second = replaced(guard, one), replaced(guard, two)
    first.__enter__()
    with second:
        first.__exit__(None, None, None)
        await opened("a")  # not on the bot's own servers
        assert await two.history("BINANCE:A")
    assert guard._stand_in is None, "the replacement of a block that has ended is gone"


async def test_threads_that_replace_one_guard_leave_it_as_it_was():
    def test_of_its_own() -> None:
        for _ in range(50):
            with replaced(blocking, sync.LockGuard.in_memory()) as given, given:
                opened_blocking("a")

    await asyncio.gather(*(asyncio.to_thread(test_of_its_own) for _ in range(4)), return_exceptions=True)
    assert blocking._stand_in is None


def test_it_decorates_nothing():
    # As a decorator of a coroutine function it would end before the body begins: on the bot's own servers.
    assert not callable(replaced(guard, LockGuard.in_memory()))


async def test_tasks_and_threads_see_it_and_what_is_held_goes_on_under_its_lease():
    first, second = LockGuard.in_memory(), LockGuard.in_memory()
    held, go_on = asyncio.Event(), asyncio.Event()

    @guard.exclusive("{name}")
    async def body(name: str) -> bool:
        held.set()
        await go_on.wait()
        return (await first.inspect("X")).held

    with replaced(guard, first):
        running = asyncio.create_task(body("x"))
        await held.wait()
    with replaced(guard, second):
        assert not (await guard.inspect("x")).held
        assert await asyncio.to_thread(lambda: asyncio.run(_free(guard)))
        go_on.set()
        assert await running
    assert not (await first.inspect("X")).held


async def _free(guard: LockGuard) -> bool:
    with replaced(guard, LockGuard.in_memory()):
        async with guard.hold("x", wait=timedelta(0)):
            return True


def test_a_synchronous_guard_is_replaced_in_all_threads():
    store = MemoryStore()
    with sync.LockGuard.in_memory(store) as given, sync.LockGuard.in_memory(store) as other:
        with replaced(blocking, given):
            worker = threading.Thread(target=opened_blocking, args=("aptusdt",))
            worker.start()
            worker.join()
            assert runs == ["aptusdt"]
            with other.hold("BINANCE:APTUSDT"), pytest.raises(ResourceBusy):
                opened_blocking("aptusdt")
            lease = blocking.acquire("binance:b")
            assert given.inspect("BINANCE:B").held
            lease.release()
            with blocking, blocking.hold_many(["a", "b"]):
                assert {seen.resource for seen in blocking.list()} == {"A", "B"}
        assert blocking._background is None


@pytest.mark.parametrize(
    ("bots", "by", "told"),
    [
        (guard, guard, "replaced by itself"),
        (guard, blocking, "LockGuard.in_memory"),
        (blocking, guard, "a guard of lockguard.sync cannot be replaced"),
        (guard, None, "cannot be replaced"),
        ("guard", guard, "is no guard of lockguard"),
    ],
)
def test_what_cannot_stand_in_is_refused(bots, by, told):
    with pytest.raises(ConfigurationError, match=told):
        replaced(bots, by)


def test_two_guards_cannot_stand_in_for_each_other():
    one, two = LockGuard.in_memory(), LockGuard.in_memory()
    early = replaced(two, one)
    with replaced(one, two), pytest.raises(ConfigurationError, match="by itself"):
        replaced(two, one)
    with replaced(one, two), pytest.raises(ConfigurationError, match="by itself"), early:
        pass
    with (
        replaced(one, two),
        replaced(one, LockGuard.in_memory()),
        pytest.raises(ConfigurationError, match="by itself"),
    ):
        replaced(two, one)  # it leads back once the inner block has ended
