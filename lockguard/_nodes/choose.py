"""Creates the kind of node that a URL asks for."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from lockguard._nodes.address import Address, split_url
from lockguard._nodes.cluster import ClusterNode, seeds_of
from lockguard._nodes.member import MemberNode
from lockguard._nodes.reach import REACH, Reach
from lockguard._nodes.sentinel import SentinelNode, SentinelUrl
from lockguard._nodes.standalone import StandaloneNode
from lockguard.errors import ConfigurationError
from lockguard.ports import LockNode
from lockguard.text import kind_of

__all__ = ["listed_urls", "node_for_url", "nodes_for_urls"]

_INDEPENDENT = ("redis", "rediss", "unix")


def node_for_url(url: str, *, inbox: str, reach: Reach = REACH, min_replicas: int = 0) -> LockNode:
    """The node for one URL: a single server, the master behind Sentinels, or a cluster.

    Raises:
        ConfigurationError: the URL is invalid, or ``min_replicas`` cannot work with it.
    """
    _require_count("min_replicas", min_replicas)
    _require_one(url)
    match split_url(url).scheme:
        case "redis+sentinel" | "rediss+sentinel":
            return SentinelNode(
                SentinelUrl.parse(url).over(reach),
                inbox=inbox,
                namespace=reach.namespace,
                min_replicas=min_replicas,
            )
        case "redis+cluster" | "rediss+cluster":
            if min_replicas:
                raise ConfigurationError(
                    f"min_replicas={min_replicas} cannot be had from a cluster; leave it out"
                )
            return ClusterNode(
                [reach.to(seed) for seed in seeds_of(url)],
                inbox=inbox,
                namespace=reach.namespace,
                address_map=reach.address_map,
            )
        case _:
            return StandaloneNode(
                reach.to(Address.parse(url)),
                inbox=inbox,
                namespace=reach.namespace,
                min_replicas=min_replicas,
            )


def _require_count(name: str, count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        shown = count if isinstance(count, int | float) else f"<{type(count).__name__}>"
        raise ConfigurationError(f"{name}={shown} cannot work; write a whole number, 0 or more")


def _require_one(url: object) -> None:
    if isinstance(url, list | tuple | set):
        raise ConfigurationError("from_url takes one URL; for several write LockGuard.from_urls(urls)")


def nodes_for_urls(urls: Iterable[str], *, inbox: str, reach: Reach = REACH) -> list[LockNode]:
    """The independent nodes for several URLs, or the one node for a single URL.

    Raises:
        ConfigurationError: a URL is invalid, not of an independent server, or given twice.
    """
    listed = listed_urls(urls)
    if len(listed) == 1:
        return [node_for_url(listed[0], inbox=inbox, reach=reach)]
    addresses = [_independent(url, f"URL {number} of {len(listed)}") for number, url in enumerate(listed, 1)]
    places = [(address.host.rstrip("."), address.port, address.path) for address in addresses]
    for address, place in zip(addresses, places, strict=True):
        if places.count(place) > 1:
            raise ConfigurationError(
                f"{address.name} is given twice; a server has one vote: give each server once"
            )
    return [
        MemberNode(reach.to(address), inbox=inbox, nodes=len(addresses), namespace=reach.namespace)
        for address in addresses
    ]


def listed_urls(urls: object, *, warn: bool = False) -> list[str]:
    """The URLs of several servers as a list.

    Args:
        urls: any iterable.
        warn: whether to warn the caller's caller if their number is even.

    Raises:
        ConfigurationError: it is something else, or empty, or one of several has no scheme.
    """
    # The value is not shown: it is a URL and may contain a password.
    if isinstance(urls, str | bytes):
        raise ConfigurationError("from_urls takes a list; for one URL write LockGuard.from_url(url)")
    if not isinstance(urls, Iterable):
        raise ConfigurationError(f"from_urls takes a list of Redis URLs; got {kind_of(urls)}")
    listed = list(urls)
    if not listed:
        raise ConfigurationError("from_urls takes a list of Redis URLs; got an empty one")
    _require_schemes(listed)
    if warn and len(listed) > 1 and len(listed) % 2 == 0:
        warnings.warn(
            f"{len(listed)} nodes survive the loss of no more than {len(listed) - 1} would:"
            " use an odd number",
            stacklevel=3,
        )
    return listed


def _require_schemes(listed: Sequence[object]) -> None:
    """Refuse what a blank in a password makes of a URL, before its first half is judged as one."""
    for number, url in enumerate(listed, 1):
        if len(listed) > 1 and isinstance(url, str) and url.strip() and "://" not in url:
            raise ConfigurationError(
                f"URL {number} of {len(listed)} has no scheme; write redis://host:port. Blanks stand between"
                " URLs: one in a user or password is written %20"
            )


def _independent(url: str, which: str) -> Address:
    try:
        if (scheme := split_url(url).scheme) not in _INDEPENDENT:
            raise ConfigurationError(
                f"a majority is formed of independent servers; {scheme}:// is not one: use redis:// URLs,"
                " or from_url() for a set-up that is one"
            )
        return Address.parse(url)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{which}: {exc}") from None
