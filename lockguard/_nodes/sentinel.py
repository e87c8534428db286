"""A lock node that is whatever server the Sentinels call the master.

The Sentinels are asked before each attempt to connect, and all the time meanwhile. The second matters: a
master that was cut off from its Sentinels still takes writes from us and would go on granting locks beside
its successor. What an old master granted last may be lost, and then its holder is refused at the next
renewal; two holders may overlap until then, and the fence accepts the writes of one of them.

Sentinels may disagree. The one with the highest configuration epoch knows of the latest failover; one that
leads a failover knows the next master before it is called so.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from lockguard._nodes.address import Address, split_url
from lockguard._nodes.connection import AS_WITHOUT_CERTIFICATE
from lockguard._nodes.dial import Resolver
from lockguard._nodes.releases import Place, Releases
from lockguard._nodes.scripted import NAMESPACE
from lockguard._nodes.standalone import Call, StandaloneNode
from lockguard._nodes.wire import Reply
from lockguard._scripts import RELEASE
from lockguard.errors import ConfigurationError, NodeRefused

__all__ = ["SentinelNode", "SentinelUrl"]

_WATCH_S = 0.25
_ANSWER_S = 0.5
_GIVE_UP_S = 5.0
_SENTINEL_PORT = 26_379
_NO_SENTINEL = "is no Sentinel"
_PORT = re.compile(r":\d+$")
_CREDENTIALS = ("username", "password")


@dataclass(frozen=True, slots=True)
class SentinelPlace:
    """One Sentinel.

    Attributes:
        name: host and port, for people.
        host: name or IP address.
        port: TCP port.
        url: for redis-py.
    """

    name: str
    host: str
    port: int
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """What ``redis+sentinel://user:password@host:port,host:port/service/db?options`` says.

    Attributes:
        sentinels: how to reach each of them.
        service: the name that they know the master by.
        master: how to log in to the master; its host and port are found out.
    """

    sentinels: tuple[SentinelPlace, ...]
    service: str
    master: Address

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Read ``redis+sentinel://`` or, with TLS to all of them, ``rediss+sentinel://``.

        User, password and options are the master's. The Sentinels' own are the options ``sentinel_username``
        and ``sentinel_password``.

        Raises:
            ConfigurationError: a part of it is missing or makes no sense.
        """
        parts = split_url(url)
        path = [unquote(part) for part in parts.path.split("/") if part]
        if not 1 <= len(path) <= 2 or not parts.netloc:
            raise ConfigurationError(
                "the Redis URL does not say whom the Sentinels watch;"
                " write redis+sentinel://host:port,host:port/service[/db]"
            )
        scheme = parts.scheme.removesuffix("+sentinel")
        credentials, at, places = parts.netloc.rpartition("@")
        options = dict(parse_qsl(parts.query))
        user, password = (quote(options.pop(f"sentinel_{key}", ""), safe="") for key in _CREDENTIALS)
        query = urlencode(options)
        own = f"{user}:{password}@" if user or password else ""
        sentinels = []
        for place in places.split(","):
            placed = place if _PORT.search(place) else f"{place}:{_SENTINEL_PORT}"
            where = f"{scheme}://{own}{placed}?{query}"
            sentinel = Address.parse(where)
            sentinels.append(SentinelPlace(sentinel.name, sentinel.host, sentinel.port, where))
        db = path[1] if len(path) == 2 else "0"
        master = Address.parse(f"{scheme}://{credentials}{at}{quote(path[0], safe='')}/{db}?{query}")
        return cls(tuple(sentinels), path[0], master)


class SentinelNode(StandaloneNode):
    """Keeps locks in the master of one service.

    Args:
        url: the Sentinels and the service.
        inbox: this process's wake-up channel.
        namespace: the first part of every key.
        connect_timeout_s: for connecting and logging in.
        reply_timeout_s: how long the server may owe a reply.
        min_replicas: how many replicas must have the lock before it counts as granted.
    """

    def __init__(
        self,
        url: SentinelUrl,
        *,
        inbox: str,
        namespace: str = NAMESPACE,
        connect_timeout_s: float = 1.0,
        reply_timeout_s: float = 2.0,
        min_replicas: int = 0,
    ) -> None:
        super().__init__(
            url.master,
            inbox=inbox,
            namespace=namespace,
            connect_timeout_s=connect_timeout_s,
            reply_timeout_s=reply_timeout_s,
            min_replicas=min_replicas,
            locate=self._locate,
            backoff_max_s=0.25,
        )
        self._url = url
        self._releases = Releases()
        self._said_to = self._place()
        self._sentinels: list[_Sentinel] = []
        self._watcher: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The service and where its master was last; no credentials."""
        address = self._connection.address
        where = "not found yet" if address is self._url.master else address.name
        return f"{self._url.service} ({where})"

    async def connect(self) -> None:
        """Find the master and be ready to send.

        Raises:
            NodeRefused: no master was found or it cannot be reached.
            ConfigurationError: it refuses the log-in.
        """
        if self._watcher is None:
            self._sentinels = [_Sentinel(place, self._url.service) for place in self._url.sentinels]
            self._watcher = asyncio.create_task(self._watch(), name=f"lockguard-connect-{self._url.service}")
        await super().connect()

    async def aclose(self) -> None:
        """Send what is queued, then close everything."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await super().aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()

    def answered(self, call: Call, reply: Reply) -> None:
        """Make a vote of a call's reply; a release is remembered until no failover can have lost it."""
        if call.script is RELEASE:
            # Not where the address leads by now: the next connection may be on its way to another master.
            self._releases.note(self._said_to, call.keys, call.args)
        super().answered(call, reply)

    def _place(self) -> Place:
        address = self._connection.address
        return address.host, address.port

    def _connected(self, *, again: bool) -> None:
        here = self._said_to = self._place()
        for release in self._releases.moved(lambda _: here):
            self._owed_releases.append((RELEASE.sha, len(release.keys), *release.keys, *release.args))
        super()._connected(again=again)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if not self._connection.connected_before:
                continue
            with contextlib.suppress(NodeRefused, ConfigurationError):
                found = await self._locate()
                if found != self._connection.address:
                    self.drop(f"the master of {self._url.service} is now {found.name}")

    async def _locate(self) -> Address:
        """Where the master is, as the best-informed Sentinel says.

        Raises:
            NodeRefused: no Sentinel knows.
            ConfigurationError: none of them is a Sentinel.
        """
        states = await self._states()
        known = [state for state in states if isinstance(state, _State)]
        if all(state == _NO_SENTINEL for state in states):
            places = ", ".join(place.name for place in self._url.sentinels)
            raise ConfigurationError(
                f"{places} {_NO_SENTINEL}: give Sentinels (port {_SENTINEL_PORT} by default), or write redis://"
                " or redis+cluster:// for what it is"
            )
        if not known:
            told = "; ".join(
                f"{place.name}: {state}" for place, state in zip(self._url.sentinels, states, strict=True)
            )
            raise NodeRefused(f"no Sentinel knows {self._url.service!r}: {told}", node=self._url.service)
        latest = max(known, key=lambda state: (state.epoch, state.promoting))
        return replace(self._url.master, host=latest.host, port=latest.port)

    async def _states(self) -> list[_State | str]:
        """What each Sentinel says within half a second; one that takes longer is left to finish.

        Otherwise one whose connection takes longer, far away or over TLS on a busy machine, never had one.
        """
        asked = [sentinel.ask() for sentinel in self._sentinels]
        await asyncio.wait(asked, timeout=_ANSWER_S)
        return [task.result() if task.done() else f"no answer within {_ANSWER_S:g} s" for task in asked]


@dataclass(frozen=True, slots=True)
class _State:
    """What one Sentinel says of the master.

    Attributes:
        epoch: of the failover that made it the master.
        promoting: the Sentinel is about to make it the master.
        host: where it is.
        port: where it is.
    """

    epoch: int
    promoting: bool
    host: str
    port: int


class _Sentinel:
    """One Sentinel, which is asked again and again."""

    def __init__(self, place: SentinelPlace, service: str) -> None:
        self._place = place
        self._service = service
        # Not retried by the client: the others are asked at the same time, and all of them again soon.
        self._client = Redis.from_url(place.url, decode_responses=True, retry=Retry(NoBackoff(), 0))
        self._resolver = Resolver()
        self._found = False
        self._asking: asyncio.Task[_State | str] | None = None

    def ask(self) -> asyncio.Task[_State | str]:
        """What it says, or why it says nothing; a question that has no answer yet is not asked again."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return self._asking

    async def aclose(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._client.aclose()

    async def _ask(self) -> _State | str:
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                if not self._found:
                    # The client looks the name up too, in a thread of the pool that everybody shares. With a
                    # resolver that hangs it would take one more each time: so it gets no further than here.
                    await self._resolver.addresses(self._place.host, self._place.port)
                self._found, state = False, await self._state()
                self._found = True
                return state
        except ResponseError as exc:
            return _NO_SENTINEL if str(exc).startswith("unknown command") else str(exc)
        except TimeoutError:
            return f"no answer within {_GIVE_UP_S:g} s"
        except (RedisError, OSError, KeyError, ValueError) as exc:
            ended = self._place.url.startswith("rediss") and ("reset" in str(exc) or "closed" in str(exc))
            return f"{exc}, {AS_WITHOUT_CERTIFICATE}" if ended else str(exc)

    async def _state(self) -> _State:
        facts: dict[str, Any] = dict(await self._client.sentinel_master(self._service))  # type: ignore[arg-type]
        host, port, promoting = str(facts["ip"]), int(facts["port"]), False
        if "failover_in_progress" in str(facts["flags"]):
            found = await self._client.sentinel_get_master_addr_by_name(self._service)
            if isinstance(found, tuple) and (str(found[0]), int(found[1])) != (host, port):
                host, port, promoting = str(found[0]), int(found[1]), True
        return _State(int(facts.get("config-epoch", 0)), promoting, host, port)
