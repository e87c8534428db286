"""One guard in one event loop after the other, over every kind of node."""

from __future__ import annotations

import logging
from datetime import timedelta

from tests.contract.test_lock import NAME
from tests.loops import ENDINGS, open_sockets, run


def test_one_guard_serves_loops_in_turn_and_leaves_nothing_in_them(cluster, caplog):
    guard = cluster.guard(node_timeout=timedelta(seconds=1))

    async def once():
        async with guard.hold(NAME, wait=timedelta(seconds=20)) as lease:
            await lease.confirm(within=timedelta(seconds=20))
            return lease.token

    before = open_sockets()
    tokens = [end(once()) for end in (*ENDINGS, run)]
    assert tokens == sorted(set(tokens))
    assert open_sockets() == before
    told = [record for record in caplog.records if record.name == "asyncio"]
    assert not [record for record in told if record.levelno >= logging.ERROR]  # a slow machine is no error
    assert not cluster.leftovers()
