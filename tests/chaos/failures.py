"""What the tests about real failures do to servers, and how long they wait for what comes of it."""

from __future__ import annotations

import asyncio
import contextlib

import redis

from lockguard._clock import SYSTEM_CLOCK

__all__ = ["ask", "at_most", "cut_off", "until"]


def ask(server, *command):
    """Say one command to a server."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.execute_command(*command)


async def until(condition, within_s=15.0):
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def at_most(seconds):
    began = SYSTEM_CLOCK.now()
    yield
    assert SYSTEM_CLOCK.now() - began < seconds


@contextlib.contextmanager
def cut_off(server):
    """Partition a server from its replicas and Sentinels, while clients that are connected do not notice.

    Their connections are killed and no new ones are taken. The bus of a cluster goes on.
    """
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        most = client.config_get("maxclients")["maxclients"]
        client.config_set("maxclients", 1)
        for one in client.client_list():
            if "S" in one["flags"] or one["name"].startswith("sentinel-"):
                client.client_kill_filter(_id=one["id"])
        try:
            yield
        finally:
            with contextlib.suppress(redis.ConnectionError):  # it was killed meanwhile
                client.config_set("maxclients", most)
