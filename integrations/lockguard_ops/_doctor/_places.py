"""The Redis servers that the URLs lead to: each with its part in the installation, and a connection."""

from __future__ import annotations

import asyncio
import shlex
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from lockguard._nodes.address import Address, split_url
from lockguard._nodes.address_map import AddressMap
from lockguard._nodes.cluster import seeds_of
from lockguard._nodes.link import Link, pairs, text_of
from lockguard._nodes.sentinel import SentinelUrl
from lockguard.errors import ConfigurationError, NodeError
from lockguard.text import first_line
from lockguard_ops._doctor._findings import Report, Severity, advice

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Part", "Place", "Seen", "open_all", "redis_cli"]

_NAMES = (
    *("maxmemory", "maxmemory-policy", "save", "appendonly", "appendfsync", "timeout", "maxclients"),
    *("min-replicas-to-write", "cluster-require-full-coverage"),
)


class Part(StrEnum):
    """What a server is in the installation."""

    ALONE = "alone"
    MEMBER = "member"
    """One of several independent servers that decide together."""
    MASTER = "master"
    """Behind Sentinels."""
    SHARD = "shard"
    """A cluster's master."""
    REPLICA = "replica"
    SENTINEL = "Sentinel"

    @property
    def keeps_locks(self) -> bool:
        """Whether a bot's commands go there."""
        return self not in {Part.REPLICA, Part.SENTINEL}


@dataclass(frozen=True, slots=True)
class Place:
    """One server.

    Attributes:
        address: where it is, and how to log in.
        part: what it is in the installation.
        mode: the mode that INFO must name.
    """

    address: Address = field(repr=False)
    part: Part
    mode: str = "standalone"

    @property
    def name(self) -> str:
        """For display; without credentials."""
        if self.part is Part.SENTINEL:
            return f"Sentinel {self.address.name}"
        part = "" if self.part in {Part.ALONE, Part.MEMBER} else f" ({self.part})"
        return f"Redis {self.address.name}{part}"


@dataclass(slots=True)
class Seen:
    """A server that answered.

    Attributes:
        place: which one.
        link: a connection to it.
        info: the reply to INFO; empty if it was refused.
        config: the settings of ``CONFIG GET``; empty if it was refused.
    """

    place: Place
    link: Link
    info: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For display."""
        return self.place.name

    def number(self, name: str) -> int | None:
        """A figure of INFO; ``None`` if it does not tell."""
        value = self.info.get(name, "")
        return int(value) if value.lstrip("-").isdigit() else None

    async def read(self) -> None:
        """Ask for what INFO and CONFIG GET say.

        Raises:
            ConnectionError: the connection ended.
        """
        info, *settings = await self.link.ask_all(("INFO",), *(("CONFIG", "GET", name) for name in _NAMES))
        if isinstance(info, bytes):
            lines = info.decode(errors="replace").split("\r\n")
            self.info = dict(line.split(":", 1) for line in lines if ":" in line)
        for reply in settings:
            self.config |= {name: text_of(value) for name, value in pairs(reply).items()}


async def open_all(
    urls: Sequence[str], address_map: AddressMap, report: Report, stack: AsyncExitStack
) -> list[Seen]:
    """Connect to every server that the URLs lead to; those that do not answer are findings.

    Args:
        urls: as for the bot; several are independent servers.
        address_map: where to reach the servers that Sentinels and clusters announce.
        report: gets the findings.
        stack: closes the connections.

    Raises:
        ConfigurationError: a URL is malformed.
    """
    scheme = split_url(urls[0]).scheme
    if len(urls) == 1 and scheme.endswith("+sentinel"):
        places = await _behind_sentinels(SentinelUrl.parse(urls[0]), address_map, report, stack)
    elif len(urls) == 1 and scheme.endswith("+cluster"):
        places = await _of_cluster(seeds_of(urls[0]), address_map, report)
    else:
        part = Part.ALONE if len(urls) == 1 else Part.MEMBER
        places = [Place(_independent(url), part) for url in urls]
    return await _open(places, report, stack)


def redis_cli(address: Address) -> str:
    """How to call redis-cli for a server; the password comes from REDISCLI_AUTH."""
    if address.path:
        words = ["redis-cli", "-s", address.path]
    else:
        words = ["redis-cli", "-h", address.host, "-p", str(address.port)]
    words += ["--tls"] if address.tls is not None else []
    words += ["-n", str(address.db)] if address.db else []
    return shlex.join(words)


def _independent(url: str) -> Address:
    scheme = split_url(url).scheme
    if "+" in scheme:
        raise ConfigurationError(
            f"a majority is formed of independent servers; {scheme}:// is not one: give it alone"
        )
    return Address.parse(url)


async def _open(places: Iterable[Place], report: Report, stack: AsyncExitStack) -> list[Seen]:
    found = await asyncio.gather(*(_open_one(place, report) for place in places))
    seen = [one for one in found if one is not None]
    for one in seen:
        stack.push_async_callback(one.link.aclose)
    return seen


async def _open_one(place: Place, report: Report) -> Seen | None:
    code = "sentinel.unreachable" if place.part is Part.SENTINEL else "redis.unreachable"
    link = None
    try:
        link = await Link.open(place.address)
        one = Seen(place, link)
        await one.read()
        return one
    except ConfigurationError as exc:
        remedy = advice("set the right user and password in the URL; lockguard doctor never shows them")
        report.add("redis.login", Severity.ERROR, place.name, str(exc), remedy)
    except (NodeError, OSError) as exc:
        if link is not None:
            await link.aclose()
        remedy = f"{redis_cli(place.address)} PING"
        if isinstance(exc.__cause__, ssl.SSLCertVerificationError):
            remedy = advice("name the authority that signed its certificate: ?ssl_ca_certs=FILE")
        report.add(code, Severity.ERROR, place.name, str(exc), remedy, unread=True)
    return None


async def _behind_sentinels(
    url: SentinelUrl, address_map: AddressMap, report: Report, stack: AsyncExitStack
) -> list[Place]:
    sentinels = [Place(Address.parse(one.url), Part.SENTINEL, "sentinel") for one in url.sentinels]
    places: dict[tuple[str, int], Place] = {}
    seen = await _open(sentinels, report, stack)
    for one in seen:
        try:
            facts, replicas = await one.link.ask_all(
                ("SENTINEL", "MASTER", url.service), ("SENTINEL", "REPLICAS", url.service)
            )
        except ConnectionError:
            continue  # a finding when it is opened again below
        if isinstance(facts, Exception):
            remedy = advice(f"name the service as they do: {redis_cli(one.place.address)} SENTINEL MASTERS")
            report.add("redis.kind", Severity.ERROR, one.name, f"of {url.service!r} it says: {facts}", remedy)
            continue
        known = pairs(facts)
        _put(places, url.master, known, Part.MASTER, address_map)
        if isinstance(replicas, Exception):
            user = shlex.quote(one.place.address.username or "default")
            remedy = f"{redis_cli(one.place.address)} ACL SETUSER {user} '+sentinel|replicas'"
            told = first_line(replicas)
            report.add("replicas.unread", Severity.WARNING, one.name, told, remedy, unread=True)
            continue
        for replica in replicas:
            _put(places, url.master, pairs(replica), Part.REPLICA, address_map)
    masters = [place.address.name for place in places.values() if place.part is Part.MASTER]
    if len(masters) > 1:
        found = f"of {url.service!r} they name {' and '.join(masters)}"
        remedy = advice("if it lasts longer than a failover: SENTINEL REMOVE and MONITOR where it is wrong")
        report.add("sentinel.master", Severity.ERROR, f"Sentinels of {url.service}", found, remedy)
    return [*places.values(), *(one.place for one in seen)]


def _put(
    places: dict[tuple[str, int], Place],
    like: Address,
    facts: dict[str, Any],
    part: Part,
    address_map: AddressMap,
) -> None:
    host, port = text_of(facts.get("ip", b"")), text_of(facts.get("port", b""))
    if not (host and port.isdigit()):
        return
    where = address_map(host, int(port))
    if where not in places:
        places[where] = Place(replace(like, host=where[0], port=where[1]), part)


async def _of_cluster(seeds: Sequence[Address], address_map: AddressMap, report: Report) -> list[Place]:
    for seed in seeds:
        try:
            link = await Link.open(seed)
        except (NodeError, ConfigurationError):
            continue  # it is a finding below if no other seed names it
        try:
            slots = await link.ask("CLUSTER", "SLOTS")
        except ConnectionError:
            continue
        finally:
            await link.aclose()
        if isinstance(slots, list) and slots:
            _tell_coverage(slots, f"Redis {seed.name}", report)
            return _shards(slots, seed, address_map)
    return [Place(seed, Part.SHARD, "cluster") for seed in seeds]


def _tell_coverage(slots: list[Any], server: str, report: Report) -> None:
    served = sum(int(last) - int(first) + 1 for first, last, *_ in slots)
    if served < 16_384:
        remedy = advice(f"redis-cli --cluster fix {server.removeprefix('Redis ')}")
        report.add("cluster.coverage", Severity.ERROR, server, f"{served} of 16384 slots are served", remedy)


def _shards(slots: list[Any], seed: Address, address_map: AddressMap) -> list[Place]:
    places: dict[tuple[str, int], Place] = {}
    for _, _, *servers in slots:
        for number, (host, port, *_) in enumerate(servers):
            known = text_of(host) if host not in (None, b"", b"?") else seed.host
            where = address_map(known, int(port))
            part = Part.REPLICA if number else Part.SHARD
            places.setdefault(where, Place(replace(seed, host=where[0], port=where[1]), part, "cluster"))
    return list(places.values())
