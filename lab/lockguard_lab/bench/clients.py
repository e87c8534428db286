"""The peers' own clients for each topology; each connects as its documentation shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from inspect import signature
from typing import Any, cast
from urllib.parse import urlsplit

import redis.asyncio.cluster

from lockguard_lab.servers.topology_names import TopologyKind

__all__ = ["CANNOT", "aio", "blocking", "coredis_client", "kind_of"]

_ONE = "its lock is kept by one server"
CANNOT: Mapping[TopologyKind, Mapping[str, str]] = {
    "single": {},
    "redlock": {"redis-py": _ONE, "coredis": _ONE, "python-redis-lock": _ONE},
    "sentinel": {},
    "cluster": {
        "pottery": "its masters are single servers",
        "python-redis-lock": "the two keys of its lock are in different slots",
    },
}
"""Which peers cannot lock in which topology, and why."""


def kind_of(urls: Sequence[str]) -> TopologyKind:
    """The kind of topology behind these URLs."""
    if len(urls) > 1:
        return "redlock"
    return cast("TopologyKind", urlsplit(urls[0]).scheme.partition("+")[2] or "single")


def aio(url: str) -> Any:
    """redis-py's asyncio client for a server, for the master that Sentinels name, or for a cluster."""
    match kind_of([url]):
        case "sentinel":
            kind = import_module("redis.asyncio.sentinel").Sentinel
            return kind(_places(url), **_sentinel_login(url)).master_for(_service(url))
        case "cluster":
            host, port = _places(url)[0]
            return redis.asyncio.cluster.RedisCluster(host=host, port=port, password=_password(url))
        case _:
            return redis.asyncio.Redis.from_url(url, retry=_retry_of(redis.asyncio.Redis))


def blocking(url: str) -> Any:
    """redis-py's blocking client for a server, or for the master that Sentinels name."""
    if kind_of([url]) == "sentinel":
        kind = import_module("redis.sentinel").Sentinel
        return kind(_places(url), **_sentinel_login(url)).master_for(_service(url))
    return redis.Redis.from_url(url, retry=_retry_of(redis.Redis))


def _retry_of(client: type[Any]) -> Any:
    """The retries that the client's own constructor gives it; ``from_url`` leaves them out."""
    return deepcopy(signature(client.__init__).parameters["retry"].default)


def coredis_client(url: str) -> tuple[Any, Any]:
    """The client of coredis, and the object that must be opened before it, if any."""
    coredis = import_module("coredis")
    match kind_of([url]):
        case "sentinel":
            location = import_module("coredis.connection").TCPLocation
            places = [location(*place) for place in _places(url)]
            sentinel = coredis.Sentinel(places, **_sentinel_login(url))
            return sentinel.primary_for(_service(url)), sentinel
        case "cluster":
            host, port = _places(url)[0]
            return coredis.RedisCluster(host, port, password=_password(url)), None
        case _:
            return coredis.Redis.from_url(url), None


def _places(url: str) -> list[tuple[str, int]]:
    """The hosts and ports of a URL."""
    pairs = (place.rpartition(":") for place in urlsplit(url).netloc.rpartition("@")[2].split(","))
    return [(host, int(port)) for host, _, port in pairs]


def _password(url: str) -> str | None:
    """The password of the embedded servers, the same for all servers of a topology."""
    return urlsplit(url).netloc.rpartition("@")[0].partition(":")[2] or None


def _sentinel_login(url: str) -> dict[str, Any]:
    """The login options for the master and the Sentinels."""
    password = _password(url)
    return {"password": password, "sentinel_kwargs": {"password": password}}


def _service(url: str) -> str:
    return urlsplit(url).path.split("/")[1]
