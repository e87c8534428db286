"""The pages on moving from other lock libraries: both sides of each pair, the traps, both locks at once."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import threading
import types
from pathlib import Path

import coredis
import pytest
import redis
import redis.asyncio
import redis_lock
from pottery import AIORedlock, Redlock, ReleaseUnlockedLock, TooManyExtensions
from redis.exceptions import LockError, LockNotOwnedError, ResponseError

from lockguard import LeaseLost, LockGuard, ResourceBusy
from lockguard_lab.servers.ports import free_port

EXAMPLES = Path(__file__).parents[2] / "docs/examples/migrate"
RUNS = importlib.util.find_spec("distutils") is not None  # what aioredlock needs of Python
PAIRS = {
    "redis_py": ("redis_py_before", "redis_py_after"),
    "python_redis_lock": ("python_redis_lock_before", "python_redis_lock_after"),
    "pottery": ("pottery_before", "pottery_after"),
    "aioredlock": ("aioredlock_before", "aioredlock_after"),
}
PEERS = [peer for peer in PAIRS if RUNS or peer != "aioredlock"]
RESOURCE = "binance:APTUSDT"
S = 1000

# aioredlock and its client are old, and say so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:aioredis"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:aioredlock"),
]


def load(name, *replaced):
    """An example as a new module: its clients belong to the event loop of the test that imports it."""
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    if replaced:
        assert replaced[0] in text
        text = text.replace(*replaced)
    module = types.ModuleType(f"migrate_{name}")
    exec(compile(text, f"{name}.py", "exec"), vars(module))
    return module


class Side:
    """One side of a pair, asynchronous or not, called from coroutines."""

    def __init__(self, name):
        self.module = load(name)
        self.asynchronous = inspect.iscoroutinefunction(self.module.close)

    async def enter(self, symbol, order):
        if self.asynchronous:
            return await self.module.enter(symbol, order)
        loop = asyncio.get_running_loop()
        return await asyncio.to_thread(
            self.module.enter, symbol, lambda: asyncio.run_coroutine_threadsafe(order(), loop).result()
        )

    async def busy(self, symbol):
        if self.asynchronous:
            return await self.module.busy(symbol)
        return await asyncio.to_thread(self.module.busy, symbol)

    async def close(self):
        if self.asynchronous:
            await self.module.close()
        else:
            await asyncio.to_thread(self.module.close)


@pytest.fixture
async def side(redis_url, monkeypatch):
    monkeypatch.setenv("LOCKGUARD_REDIS_URL", redis_url)
    opened = []

    def open_side(name):
        opened.append(Side(name))
        return opened[-1]

    yield open_side
    for each in opened:
        await each.close()


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as made:
        yield made


@pytest.fixture
async def aio(redis_url):
    async with redis.asyncio.Redis.from_url(redis_url) as made:
        yield made


class Inside:
    """Counts who is inside at the same time."""

    def __init__(self):
        self.now = self.most = self.times = 0

    async def order(self):
        self.now += 1
        self.most = max(self.most, self.now)
        self.times += 1
        await asyncio.sleep(0.02)  # long enough for another one to come in
        self.now -= 1


# --- both sides of each pair ---


@pytest.mark.parametrize("name", [name for peer in PEERS for name in PAIRS[peer]])
async def test_each_side_lets_one_in_at_a_time_and_tells_who_gave_up(side, name):
    bot, inside = side(name), Inside()
    assert await asyncio.gather(*(bot.enter("APTUSDT", inside.order) for _ in range(2))) == [True, True]
    assert (inside.most, inside.times) == (1, 2)

    entered, leave = asyncio.Event(), asyncio.Event()

    async def stay():
        entered.set()
        await leave.wait()

    holding = asyncio.create_task(bot.enter("APTUSDT", stay))
    await entered.wait()
    assert await bot.enter("APTUSDT", inside.order) is False
    assert await bot.enter("SUIUSDT", inside.order) is True
    if hasattr(bot.module, "busy"):
        assert await bot.busy("APTUSDT")
        assert not await bot.busy("SUIUSDT")
    leave.set()
    assert await holding is True
    assert inside.times == 3


@pytest.mark.parametrize("peer", PEERS)
async def test_the_keys_of_no_library_are_those_of_another(redis_url, client, side, peer):
    async def look():
        keys.update(client.keys())

    keys = set()
    async with LockGuard.from_url(redis_url) as guard, guard.hold(RESOURCE):
        before = set(client.keys())
        assert await side(PAIRS[peer][0]).enter(RESOURCE, look) is True
    assert len(keys) > len(before) > 0  # both were held at once
    assert all(key.startswith(b"lockguard:") for key in before)
    assert not any(key.startswith(b"lockguard:") for key in keys - before)


# --- both locks at once ---


@pytest.mark.parametrize("peer", PEERS)
async def test_old_and_new_processes_exclude_each_other_while_the_new_ones_take_both(redis_url, side, peer):
    inside, old, new = Inside(), side(PAIRS[peer][0]), side(PAIRS[peer][0])

    async with LockGuard.from_url(redis_url) as guard:

        async def enter_with_both():
            async with guard.hold(RESOURCE):
                return await new.enter("APTUSDT", inside.order)

        entered = await asyncio.gather(
            *(old.enter("APTUSDT", inside.order) for _ in range(2)), *(enter_with_both() for _ in range(2))
        )
    assert inside.most == 1
    assert inside.times == sum(entered) > 0


async def test_the_recipe_excludes_old_processes_and_those_that_take_the_lease_alone(redis_url, side):
    inside, old, both, last = Inside(), side("redis_py_before"), load("both_locks"), side("redis_py_after")

    async def enter_with_both():
        async with both.hold("APTUSDT"):
            await inside.order()

    try:
        # First beside processes of before, then beside those that have dropped the old lock.
        for others in (old, last):
            await asyncio.gather(
                enter_with_both(),
                *(others.enter("APTUSDT", inside.order) for _ in range(3)),
                enter_with_both(),
            )
            assert inside.most == 1
        assert inside.times >= 4
    finally:
        await both.close()


async def test_without_both_locks_an_old_and_a_new_process_are_in_at_once(side):
    inside = Inside()
    old, last = side("redis_py_before"), side("redis_py_after")
    barrier = asyncio.Barrier(2)

    async def order():
        await barrier.wait()  # comes only if both are in
        await inside.order()

    async with asyncio.timeout(30):
        assert await asyncio.gather(*(bot.enter("APTUSDT", order) for bot in (old, last))) == [True, True]
    assert inside.most == 2


async def test_the_recipe_says_that_an_old_process_is_busy_and_keeps_nothing(
    redis_url, client, side, monkeypatch
):
    both = load("both_locks")
    client.set("lock:APTUSDT", "an old process", px=60_000)
    took = both.client.lock
    monkeypatch.setattr(both.client, "lock", lambda *a, **o: took(*a, **{**o, "blocking_timeout": 0.2}))
    try:
        with pytest.raises(LockError, match="within the time"):
            async with both.hold("APTUSDT"):
                pytest.fail("it is held by an old process")
        assert not (await both.guard.inspect(RESOURCE)).held
        assert client.get("lock:APTUSDT") == b"an old process"
    finally:
        await both.close()


async def test_the_recipes_lease_ends_while_the_old_lock_is_still_there(side):
    both = load("both_locks", "OLD_TIMEOUT = timedelta(seconds=30)", "OLD_TIMEOUT = timedelta(seconds=6)")
    left_ms = []
    try:
        with pytest.raises(LeaseLost):
            async with both.hold("APTUSDT"):
                try:
                    await asyncio.sleep(60)  # until the lease ends
                finally:
                    left_ms.append(await both.client.pttl("lock:APTUSDT"))
        assert left_ms[0] > 0
    finally:
        await both.close()


# --- redis-py ---


async def test_redis_py_without_a_timeout_never_expires(aio):
    async with aio.lock("x"):
        assert await aio.pttl("x") == -1


async def test_redis_py_extend_adds_to_what_is_left(aio):
    async with aio.lock("x", timeout=30) as lock:
        await lock.extend(30)
        assert await aio.pttl("x") > 55 * S
        await lock.extend(30, replace_ttl=True)
        assert await aio.pttl("x") <= 30 * S


async def test_redis_py_any_task_releases_a_lock_object_that_tasks_share(aio):
    shared = aio.lock("x", timeout=30)
    assert await shared.acquire()
    await asyncio.create_task(shared.release())
    assert not await shared.locked()


async def test_redis_py_puts_its_own_error_in_the_place_of_the_bodys(aio):
    with pytest.raises(LockNotOwnedError) as told:
        async with aio.lock("x", timeout=30):
            await aio.delete("x")
            raise ValueError("what the body says")
    assert isinstance(told.value.__context__, ValueError)


async def test_redis_py_lets_the_bodys_error_through_where_it_is_told_to(aio):
    with pytest.raises(ValueError, match="what the body says"):
        async with aio.lock("x", timeout=30, raise_on_release_error=False):
            await aio.delete("x")
            raise ValueError("what the body says")


async def test_redis_py_that_waits_for_itself_is_in_twice_when_its_timeout_has_passed(aio):
    first, second = aio.lock("x", timeout=1), aio.lock("x", timeout=30)
    assert await first.acquire()
    assert await second.acquire()
    assert not await first.owned()


async def test_a_hold_is_begun_and_ended_by_two_methods_of_one_object(redis_url):
    async with LockGuard.from_url(redis_url) as guard:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(guard.hold("x"))
            assert (await guard.inspect("x")).held
            await stack.aclose()
            assert not (await guard.inspect("x")).held


async def test_lockguard_leaves_the_bodys_error_and_notes_its_own(redis_url, aio):
    async with LockGuard.from_url(redis_url) as guard:
        with pytest.raises(ValueError, match="what the body says") as told:
            async with guard.hold("x"):
                await aio.flushall()
                raise ValueError("what the body says")
    assert told.value.__notes__


async def test_redis_py_waits_for_itself_and_lockguard_enters_again(redis_url, aio):
    async with aio.lock("x", timeout=30):
        assert not await aio.lock("x", timeout=30).acquire(blocking=False)
    async with LockGuard.from_url(redis_url) as guard, guard.hold("x") as outer, guard.hold("x") as inner:
        assert inner.token == outer.token


# --- python-redis-lock ---


def test_python_redis_lock_without_expire_never_expires(client):
    with redis_lock.Lock(client, "x"):
        assert client.pttl("lock:x") == -1


def test_python_redis_lock_counts_whole_seconds(client):
    with redis_lock.Lock(client, "x", expire=2.9):
        assert client.pttl("lock:x") <= 2 * S
    with pytest.raises(ResponseError, match="invalid expire"):
        redis_lock.Lock(client, "x", expire=0.9).acquire()


def test_python_redis_lock_refuses_a_timeout_above_expire_unless_it_renews(client):
    with pytest.raises(redis_lock.TimeoutTooLarge):
        redis_lock.Lock(client, "x", expire=5).acquire(timeout=6)
    with redis_lock.Lock(client, "x", expire=5, auto_renewal=True) as lock:
        assert lock.locked()


def test_python_redis_lock_tells_a_thread_of_its_own_that_the_lock_is_lost(client, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda failed: ended.set())
    lock = redis_lock.Lock(client, "x", expire=1, auto_renewal=True)
    assert lock.acquire()
    client.delete("lock:x")
    assert ended.wait(30)  # the body has heard nothing, and goes on
    with pytest.raises(redis_lock.NotAcquired):
        lock.release()


def test_python_redis_lock_with_a_timeout_below_a_second_waits_on(redis_url, client):
    with redis.Redis.from_url(redis_url) as other:
        holder = redis_lock.Lock(client, "x", expire=30)
        assert holder.acquire()
        waits = threading.Thread(
            target=redis_lock.Lock(other, "x", expire=2).acquire, args=(True, 0.2), daemon=True
        )
        waits.start()
        waits.join(1.5)
        assert waits.is_alive()
        holder.release()
        waits.join(30)
        assert not waits.is_alive()


def test_python_redis_lock_can_be_asked_who_holds_it(client):
    with redis_lock.Lock(client, "x", id="bot-1", expire=30):
        assert redis_lock.Lock(client, "x").get_owner_id() == "bot-1"


async def test_python_redis_lock_reset_all_deletes_other_libraries_locks_too(client, aio, redis_url):
    async with LockGuard.from_url(redis_url) as guard, guard.hold("x"):
        async with aio.lock("lock:x", timeout=30, raise_on_release_error=False):
            redis_lock.reset_all(client)
            assert client.get("lock:x") is None
        assert (await guard.inspect("x")).held


# --- aioredlock ---


@pytest.fixture
async def manager(redis_url):
    aioredlock = pytest.importorskip("aioredlock", exc_type=ImportError)
    made = aioredlock.Aioredlock([redis_url], internal_lock_timeout=1)
    yield made
    await made.destroy()


async def test_aioredlock_gives_up_after_three_attempts(manager, redis_url):
    from aioredlock import LockError as GivesUp

    async with LockGuard.from_url(redis_url):
        async with await manager.lock("x", lock_timeout=60):
            with pytest.raises(GivesUp):
                await manager.lock("x", lock_timeout=60)


async def test_aioredlock_renews_only_without_a_lock_timeout(manager, client):
    async with await manager.lock("renewed"), await manager.lock("given", lock_timeout=1):
        async with asyncio.timeout(30):
            while client.exists("given"):
                await asyncio.sleep(0.01)
        assert client.exists("renewed")


async def test_aioredlock_extends_a_lock_that_had_expired(manager, client):
    lock = await manager.lock("x", lock_timeout=60)
    client.delete("x")
    await lock.extend()
    assert client.exists("x")


async def test_aioredlock_says_nothing_of_a_lock_that_was_lost(manager, client):
    lock = await manager.lock("x", lock_timeout=60)
    client.set("x", "somebody else")
    assert lock.valid
    client.delete("x")
    await lock.release()


async def test_aioredlock_notices_at_the_next_renewal_that_another_process_has_the_lock(manager, client):
    from aioredlock import LockError as Lost

    lock = await manager.lock("x")
    client.set("x", "somebody else")
    async with asyncio.timeout(30):
        while lock.valid:
            await asyncio.sleep(0.01)
    with pytest.raises(Lost):
        await lock.release()
    assert client.get("x") == b"somebody else"


async def test_aioredlock_logs_the_password_of_a_redis_that_is_down(caplog):
    aioredlock = pytest.importorskip("aioredlock", exc_type=ImportError)
    made = aioredlock.Aioredlock([f"redis://default:s3cret@127.0.0.1:{free_port()}"], retry_count=1)
    with pytest.raises(aioredlock.LockError):
        await made.lock("x")
    await made.destroy()
    assert "s3cret" in caplog.text


# --- pottery ---


def test_pottery_locked_is_about_this_object_only(client):
    held, other = [Redlock(key="x", masters={client}, auto_release_time=30) for _ in range(2)]
    with held:
        assert held.locked()
        assert not other.locked()


def test_pottery_extends_three_times(client):
    with Redlock(key="x", masters={client}, auto_release_time=30) as lock:
        for _ in range(3):
            lock.extend()
        with pytest.raises(TooManyExtensions):
            lock.extend()


async def test_pottery_puts_its_own_error_in_the_place_of_the_bodys(aio):
    with pytest.raises(ReleaseUnlockedLock):
        async with AIORedlock(key="x", masters={aio}, auto_release_time=30):
            await aio.delete("redlock:x")
            raise ValueError("what the body says")


def test_pottery_calls_a_redis_that_is_down_busy():
    with redis.Redis(port=free_port()) as nobody:
        lock = Redlock(key="x", masters={nobody}, auto_release_time=30)
        assert lock.acquire(timeout=0.2) is False


async def test_coredis_and_redis_py_of_one_name_are_one_lock(redis_url, aio):
    from coredis.patterns.lock import Lock

    async with coredis.Redis.from_url(redis_url) as other, aio.lock("x", timeout=30):
        assert not await Lock(other, "x", timeout=30, blocking=False).acquire()


async def test_lockguard_says_busy_and_who_holds_it(redis_url):
    async with LockGuard.from_url(redis_url, name="bot-1") as first, LockGuard.from_url(redis_url) as second:
        async with first.hold("x", operation="entry"):

            async def come():
                async with second.hold("x", on_busy="raise"):
                    pytest.fail("it is held")

            with pytest.raises(ResourceBusy, match="bot-1"):
                await asyncio.create_task(come())
