"""Which kind of node a URL asks for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from lockguard.errors import ConfigurationError
from lockguard.nodes.address import Address, split_url
from lockguard.nodes.cluster import ClusterNode, seeds_of
from lockguard.nodes.member import MemberNode
from lockguard.nodes.sentinel import SentinelNode, SentinelUrl
from lockguard.nodes.standalone import StandaloneNode
from lockguard.ports import LockNode

__all__ = ["node_for_url", "nodes_for_urls"]

_INDEPENDENT = ("redis", "rediss", "unix")


def node_for_url(url: str, *, inbox: str, min_replicas: int = 0) -> LockNode:
    """One node.

    Raises:
        ConfigurationError: the URL cannot work.
    """
    if min_replicas < 0:
        raise ConfigurationError(f"min_replicas={min_replicas} cannot work; use 0 or more")
    match split_url(url).scheme:
        case "redis+sentinel" | "rediss+sentinel":
            return SentinelNode(SentinelUrl.parse(url), inbox=inbox, min_replicas=min_replicas)
        case "redis+cluster" | "rediss+cluster":
            if min_replicas:
                raise ConfigurationError(
                    f"min_replicas={min_replicas} cannot be had from a cluster; leave it out"
                )
            return ClusterNode(seeds_of(url), inbox=inbox)
        case _:
            return StandaloneNode(Address.parse(url), inbox=inbox, min_replicas=min_replicas)


def nodes_for_urls(urls: Sequence[str], *, inbox: str) -> list[LockNode]:
    """Several independent nodes; one if there is one URL.

    Raises:
        ConfigurationError: the URLs cannot work together.
    """
    if isinstance(urls, str) or not urls:
        raise ConfigurationError(f"from_urls needs a list of Redis URLs; got {urls!r}")
    if len(urls) == 1:
        return [node_for_url(urls[0], inbox=inbox)]
    for url in urls:
        if (scheme := split_url(url).scheme) not in _INDEPENDENT:
            raise ConfigurationError(
                f"a majority is formed of independent servers; {scheme}:// is not one: use redis:// URLs,"
                " or from_url() for a set-up that is one"
            )
    addresses = [Address.parse(url) for url in urls]
    places = [(address.host.lower().rstrip("."), address.port, address.path) for address in addresses]
    for address, place in zip(addresses, places, strict=True):
        if places.count(place) > 1:
            raise ConfigurationError(
                f"{address.name} is given twice; a server has one vote: give each server once"
            )
    if len(urls) % 2 == 0:
        warnings.warn(
            f"{len(urls)} nodes survive the loss of no more than {len(urls) - 1} would: use an odd number",
            stacklevel=4,
        )
    return [MemberNode(address, inbox=inbox) for address in addresses]
