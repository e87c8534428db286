"""Who refuses ends nobody's wait where another server could still prove the configuration right."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from lockguard._membership import Members
from lockguard._namespace import NAMESPACE
from lockguard._nodes.address import Address
from lockguard._nodes.address_map import AddressMap
from lockguard._nodes.cluster_map import ClusterMap
from lockguard._nodes.remedies import or_check
from lockguard._nodes.sentinel import SentinelNode, SentinelUrl, _Refusal, _State
from lockguard.errors import ConfigurationError, NodeRefused
from tests.unit.nodes_in_memory import granted
from tests.unit.test_nodes_asking import Node

REFUSED = ConfigurationError("a refused the log-in: WRONGPASS; check the password")
AWAY = NodeRefused("nobody there", node="b")


class Door(Node):
    """One of several nodes, which answers a log-in with an error, or ``None`` for a welcome."""

    def __init__(self, name: str, says: Exception | None) -> None:
        super().__init__(name, granted())
        self.ready = False
        self.says = says
        self.knocked = 0
        self.answers_after: asyncio.Event | None = None

    async def connect(self) -> None:
        await asyncio.sleep(0)
        self.knocked += 1
        if self.answers_after is not None:
            await self.answers_after.wait()
        if self.says is not None:
            raise type(self.says)(*self.says.args, **({"node": self.name} if self.says is AWAY else {}))
        self.ready = True

    def goes(self, says: Exception) -> None:
        """Lose the connection; the next log-in is answered like this."""
        self.ready, self.says = False, says


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def reach(members: Members) -> None:
    async with asyncio.timeout(5):
        await members.connect(enough=2, grace_s=0.05)


def several(*doors: Door) -> Members:
    anything: Any = doors
    return Members(anything)


async def test_a_node_that_refuses_does_not_end_the_wait_for_one_that_restarts() -> None:
    a, b, c = Door("a", None), Door("b", None), Door("c", REFUSED)
    members = several(a, b, c)
    await reach(members)
    await until(lambda: c.knocked > 0)
    a.goes(AWAY)
    await reach(members)  # as often as a caller asks again
    await until(lambda: a.knocked > 1)
    await reach(members)
    a.says = None
    await until(lambda: a.ready)
    await members.aclose()


async def test_at_the_first_attempt_too_one_refusal_does_not_decide_for_those_that_are_away() -> None:
    members = several(Door("a", REFUSED), Door("b", AWAY), Door("c", AWAY))
    await reach(members)
    await members.aclose()


async def test_nodes_that_refuse_and_leave_too_few_end_the_wait_though_another_is_away() -> None:
    members = several(Door("a", REFUSED), Door("b", REFUSED), Door("c", AWAY))
    for _ in range(2):  # also once they are known to refuse: it is heard anew
        with pytest.raises(ConfigurationError, match="refused the log-in"):
            await reach(members)
    await members.aclose()


async def test_a_refusal_of_before_ends_no_wait_where_the_node_has_been_repaired() -> None:
    a, b, c = Door("a", None), Door("b", REFUSED), Door("c", REFUSED)
    members = several(a, b, c)
    with pytest.raises(ConfigurationError):
        await reach(members)
    b.says = None
    await reach(members)
    assert b.ready
    await members.aclose()


async def test_a_node_that_was_repaired_comes_back_though_nobody_waits_for_it() -> None:
    a, b, c = Door("a", None), Door("b", None), Door("c", REFUSED)
    members = several(a, b, c)
    await reach(members)
    await until(lambda: c.knocked > 0)
    c.says = None
    await until(lambda: c.ready)
    await members.aclose()


async def test_a_refusal_is_forgotten_when_the_node_is_silent_afterwards() -> None:
    a, b, c = Door("a", None), Door("b", REFUSED), Door("c", REFUSED)
    members = several(a, b, c)
    with pytest.raises(ConfigurationError):
        await reach(members)
    b.says = AWAY  # it is restarted, perhaps with another password
    await reach(members)
    await members.aclose()


async def test_a_node_that_refuses_is_asked_once_for_each_caller_however_long_the_others_take() -> None:
    """A near node was asked again with each of its answers, by a loop that has leases to renew."""
    a, b, c = Door("a", REFUSED), Door("b", REFUSED), Door("c", REFUSED)
    members = several(a, b, c)
    with pytest.raises(ConfigurationError):
        await reach(members)
    knocked, answered = a.knocked, asyncio.Event()
    for far in (b, c):
        far.answers_after = answered
    waits = asyncio.create_task(reach(members))
    await until(lambda: a.knocked > knocked)
    for _ in range(200):
        await asyncio.sleep(0)
    assert a.knocked == knocked + 1
    answered.set()
    with pytest.raises(ConfigurationError):
        await waits
    await members.aclose()


async def test_a_node_that_restarts_after_it_refused_is_used_within_a_second_or_two() -> None:
    a, b, c = Door("a", None), Door("b", REFUSED), Door("c", REFUSED)
    members = several(a, b, c)
    for _ in range(8):  # for a while, so that its rests have become as long as they get
        with pytest.raises(ConfigurationError):
            await reach(members)
    b.says = AWAY
    knocked = b.knocked
    await until(lambda: b.knocked > knocked)
    b.says = None
    async with asyncio.timeout(4):
        while not b.ready:
            await asyncio.sleep(0.01)
    await members.aclose()


async def test_a_node_that_reconnected_by_itself_and_goes_again_leaves_no_caller_waiting() -> None:
    """Nobody brought it up any more, and its refusal of before counted on."""
    a, b, c = Door("a", REFUSED), Door("b", REFUSED), Door("c", REFUSED)
    members = several(a, b, c)
    with pytest.raises(ConfigurationError):
        await reach(members)
    a.ready = True  # by its own connection, while its bring-up rests
    await until(members._bringing_up[a].done)
    answered = asyncio.Event()
    b.answers_after = c.answers_after = answered
    waits = asyncio.create_task(reach(members))
    await asyncio.sleep(0)
    a.goes(AWAY)
    b.says = None
    answered.set()
    with contextlib.suppress(ConfigurationError):
        await waits  # the sooner of both, as reach() bounds it
    await members.aclose()


class Seed:
    """One server of a cluster that a URL names."""

    ready = False

    def __init__(self, address: Address, says: Exception) -> None:
        self.address, self.name, self.says = address, address.name, says

    async def connect(self) -> None:
        raise self.says


def seeds(**says: Exception) -> ClusterMap:
    named = [Address.parse(f"redis://{host}:7000") for host in says]
    new: Any = lambda address: Seed(address, says[address.host])  # noqa: E731
    return ClusterMap("cluster", named, new, AddressMap())


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
async def test_a_seed_that_refuses_does_not_decide_for_one_that_is_away(order: tuple[str, str]) -> None:
    says = {"a": REFUSED, "b": AWAY}
    known = seeds(**{host: says[host] for host in order})
    with pytest.raises(NodeRefused):
        await known.connect()
    assert str(AWAY) in known.unreached  # both are told: either may be what has to be mended
    assert str(REFUSED) in known.unreached


async def test_seeds_that_all_refuse_are_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigurationError):
        await seeds(a=REFUSED, b=ConfigurationError("b is a single server")).connect()


LOG_IN = _Refusal("WRONGPASS", "give the Sentinels' own password")
UNKNOWN = "No such master with that name"


async def located(monkeypatch: pytest.MonkeyPatch, *states: Any) -> Any:
    node = SentinelNode(
        SentinelUrl.parse("redis+sentinel://a,b,c/main"), inbox="lockguard:inbox:1", namespace=NAMESPACE
    )

    async def told() -> Any:
        return list(states)

    monkeypatch.setattr(node, "_states", told)
    return await node._locate()


@pytest.mark.parametrize("away", ["Connect call failed", "no answer within 0.5 s", UNKNOWN])
async def test_a_sentinel_that_refuses_does_not_decide_for_one_that_may_tell_later(
    monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    with pytest.raises(NodeRefused) as told:
        await located(monkeypatch, LOG_IN, LOG_IN, away)
    assert LOG_IN.remedy in str(told.value)
    assert or_check(str(told.value)) == str(told.value)


async def test_sentinels_that_all_refuse_are_a_mistake_in_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigurationError, match=LOG_IN.remedy):
        await located(monkeypatch, LOG_IN, LOG_IN, LOG_IN)
    assert (await located(monkeypatch, LOG_IN, LOG_IN, _State(1, False, "m", 6379))).host == "m"


async def test_a_service_that_no_sentinel_knows_is_the_thing_to_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(NodeRefused, match=r"; check the name of the service in the URL, 'main'$"):
        await located(monkeypatch, UNKNOWN, UNKNOWN, UNKNOWN)
