"""Which server a cluster's slot is asked of, and what becomes of servers that serve none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.crc import key_slot

from lockguard._nodes.address import Address
from lockguard._nodes.address_map import AddressMap
from lockguard._nodes.channels import CHANNELS_MAX, Channels
from lockguard._nodes.cluster_map import ClusterMap
from lockguard.errors import NodeRefused

SLOTS = 16_384
KEY = "lockguard:{binance:APTUSDT}:lock"
SLOT = key_slot(KEY.encode())
A, B, C = ("a", 7000), ("b", 7000), ("c", 7000)


class Shard:
    """One server, which tells the map that a test gives it; without one it cannot be reached."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.name = address.name
        self.ready = False
        self.told: Any = None
        self.asked = 0
        self.is_asked = False
        self.answers = asyncio.Event()
        self.answers.set()
        self.closed = False

    async def connect(self) -> None:
        if self.told is None:
            raise NodeRefused("nobody there", node=self.name)
        self.ready = True

    async def ask(self, *_: Any) -> Any:
        self.asked += 1
        self.is_asked, told = True, self.told
        await self.answers.wait()
        self.is_asked = False
        return told

    async def aclose(self) -> None:
        self.closed = True


def entry(first: int, last: int, server: tuple[str, int]) -> list[Any]:
    return [first, last, [server[0].encode(), server[1], b"id"]]


WHOLE = [entry(0, SLOT, A), entry(SLOT + 1, SLOTS - 1, B)]


def a_map(first: str = "a", /, **told: Any) -> tuple[ClusterMap, dict[str, Any]]:
    """A map over servers, of which some tell one."""
    shards: dict[str, Any] = {}

    def new_shard(address: Address) -> Any:
        made = shards[address.host] = Shard(address)
        made.told = told.get(address.host)
        return made

    seeds = [Address.parse(f"redis://{first}:7000")]
    return ClusterMap("cluster", seeds, new_shard, AddressMap()), shards


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_each_slot_is_asked_of_its_owner_the_last_of_a_range_too() -> None:
    known, _ = a_map(a=WHOLE, b=WHOLE)
    await known.connect()
    assert known.endpoint_of(KEY) == A
    assert await known.owners() == {A, B}
    assert {known._slots[0], known._slots[SLOT]} == {A}
    assert {known._slots[SLOT + 1], known._slots[SLOTS - 1]} == {B}
    await known.aclose()


async def test_a_redirection_names_a_server_or_the_one_that_was_asked_or_none() -> None:
    known, shards = a_map(a=WHOLE, b=WHOLE)
    await known.connect()
    by = shards["b"]
    assert known.endpoint_in("c:7001", by=by) == ("c", 7001)
    assert known.endpoint_in(":7001", by=by) == ("b", 7001)
    assert known.endpoint_in("?:7001", by=by) is None
    await known.aclose()


async def test_a_slot_that_moved_is_asked_of_its_new_owner_and_the_map_is_read_again() -> None:
    known, shards = a_map(a=WHOLE, b=WHOLE)
    read: list[int] = []
    known.on_refresh(lambda: read.append(1))
    await known.connect()
    asked = sum(shard.asked for shard in shards.values())
    known.moved(SLOT, C)
    assert known.endpoint_of(KEY) == C
    assert known.shard_for(KEY).address.host == "c"
    await until(lambda: bool(read))
    assert sum(shard.asked for shard in shards.values()) > asked
    await known.aclose()


async def test_what_is_heard_while_the_map_is_read_or_rests_has_it_read_once_more() -> None:
    """Also if nobody asks for anything afterwards: a release that a failover lost waits for it."""
    known, shards = a_map(a=WHOLE, b=WHOLE)
    read: list[set[Any]] = []
    known.on_refresh(lambda: read.append(set(known._slots)))
    await known.connect()
    known.refresh_soon()
    await until(lambda: len(read) == 1)
    shards["a"].told = shards["b"].told = [entry(0, SLOTS - 1, C)]
    known.moved(SLOT, C)  # while the map rests
    await until(lambda: len(read) == 2)
    assert read == [{A, B}, {C}]

    answered = asyncio.Event()
    for shard in shards.values():
        shard.answers = answered
    known.moved(SLOT, C)
    await until(lambda: any(shard.is_asked for shard in shards.values()))
    known.refresh_soon(heard=True)  # while it is read: the answer may be of before
    answered.set()
    await until(lambda: len(read) == 4)
    await known.aclose()


async def test_a_connection_that_is_tried_while_the_map_rests_does_not_have_it_read_for_ever() -> None:
    """Each reading tries to reach what serves slots, and each try asks for a reading."""
    known, _ = a_map(a=WHOLE, b=WHOLE)
    read: list[int] = []

    def again() -> None:
        read.append(1)
        known.refresh_soon()

    known.on_refresh(again)
    await known.connect()
    known.refresh_soon()
    async with asyncio.timeout(5):
        assert known._refreshing is not None
        await known._refreshing
    assert read == [1]
    await known.aclose()


async def test_releases_are_sent_on_whoever_read_the_map() -> None:
    known, shards = a_map(a=WHOLE, b=WHOLE)
    read: list[Any] = []
    known.on_refresh(lambda: read.append(known.endpoint_of(KEY)))
    await known.connect()
    shards["a"].told = shards["b"].told = [entry(0, SLOTS - 1, C)]
    assert await known.owners() == {C}
    assert read == [C]
    await known.aclose()


async def test_a_server_without_slots_is_let_go_only_if_it_cannot_be_reached() -> None:
    known, shards = a_map(a=WHOLE, b=WHOLE, c=WHOLE)
    await known.connect()
    gone, there = known.shard_at(("d", 7000)), known.shard_at(C)
    await there.connect()
    known.refresh_soon()
    await until(lambda: shards["d"].closed)
    assert ("d", 7000) not in known.shards
    assert known.shards[C] is there
    assert not shards["c"].closed
    assert gone is shards["d"]
    await known.aclose()


async def test_where_no_known_server_is_left_the_seeds_are_asked_again() -> None:
    known, shards = a_map("seed", seed=WHOLE, a=WHOLE, b=WHOLE)
    read: list[int] = []
    known.on_refresh(lambda: read.append(1))
    await known.connect()
    for name in "ab":
        shards[name].told, shards[name].ready = None, False
    shards["seed"].ready, shards["seed"].told = False, [entry(0, SLOTS - 1, C)]
    known.refresh_soon()
    await until(lambda: bool(read))
    assert known.endpoint_of(KEY) == C
    await known.aclose()


class Wire:
    """Keeps what is sent, and how its answer is taken."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.answers: dict[str, Callable[[Any], None]] = {}

    def send_listening(self, take: Callable[[Any], None], command: str, channel: str) -> None:
        self.sent.append((command, channel))
        self.answers[channel] = take


def channels() -> tuple[Channels, Wire]:
    wire = Wire()
    anything: Any = wire
    return Channels(anything), wire


def test_a_channel_is_subscribed_to_once_until_the_server_ends_that() -> None:
    made, wire = channels()
    for _ in range(2):
        made.add("one")
    made.forget("one")
    made.add("one")
    assert wire.sent == [("SSUBSCRIBE", "one")] * 2


def test_of_too_many_channels_the_one_that_was_not_waited_on_for_longest_is_dropped() -> None:
    made, wire = channels()
    for number in range(CHANNELS_MAX):
        made.add(f"c{number}")
    made.add("c0")
    made.add("one more")
    assert wire.sent[-1] == ("SUNSUBSCRIBE", "c1")
    assert len(made) == CHANNELS_MAX


def test_a_slot_that_moved_refuses_one_channel_for_now_and_an_old_server_all_for_good() -> None:
    made, wire = channels()
    made.add("one")
    wire.answers["one"](Exception("MOVED 1 b:7000"))
    made.add("one")
    assert wire.sent == [("SSUBSCRIBE", "one")] * 2
    wire.answers["one"](Exception("ERR unknown command 'SSUBSCRIBE'"))
    made.add("two")
    assert len(wire.sent) == 2
