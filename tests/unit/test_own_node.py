"""A node of the user's own, written against the protocol as it was before it grew arguments with defaults."""

from __future__ import annotations

import pytest

from lockguard import LeaseLost, LockGuard
from lockguard._nodes.memory import MemoryNode, MemoryStore

NAME = "binance:APTUSDT"


class OwnNode(MemoryNode):
    """Knows neither ``at_least_ms`` nor ``grant``."""

    def release(self, resource, grant, *, lost=False, seal=""):
        return super().release(resource, grant, lost=lost, seal=seal)

    def break_(self, resource, *, reason, token):
        return super().break_(resource, reason=reason, token=token)

    def request_handover(self, resource, *, reason):
        return super().request_handover(resource, reason=reason)


def new_guard(store: MemoryStore, inbox: str) -> LockGuard:
    return LockGuard([OwnNode(store, inbox=inbox)], observers=[])


async def test_a_node_without_the_later_arguments_locks_releases_and_hands_over():
    store = MemoryStore()
    async with new_guard(store, "a") as guard, new_guard(store, "b") as other:
        async with guard.hold(NAME) as lease:
            assert await other.request_handover(NAME, reason="a test")
        async with other.hold(NAME) as later:
            assert later.token > lease.token


async def test_a_node_without_the_later_arguments_is_broken():
    store = MemoryStore()
    async with new_guard(store, "a") as guard, new_guard(store, "b") as other:
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                await other.break_(NAME, reason="a test")
