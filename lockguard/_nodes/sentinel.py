"""A lock node that is the server which the Sentinels report as the master.

The Sentinels are asked before each attempt to connect and also polled while connected. Polling matters: a
master that is cut off from its Sentinels still accepts our writes and would go on granting locks beside its
successor. The last grants of an old master may be lost; the holder of a lost grant is refused at its next
renewal. Two holders may overlap until then, and the fence accepts the writes of only one of them.

Sentinels may disagree. The one with the highest configuration epoch knows of the latest failover, and one
that leads a failover knows the next master before it is promoted.
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
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from lockguard._clock import SYSTEM_CLOCK
from lockguard._namespace import NAMESPACE, Namespace
from lockguard._nodes.address import Address, split_url
from lockguard._nodes.address_map import AddressMap
from lockguard._nodes.connection import AS_WITHOUT_CERTIFICATE
from lockguard._nodes.dial import Resolver, close_abandoned
from lockguard._nodes.reach import Reach
from lockguard._nodes.releases import Endpoint, Releases
from lockguard._nodes.standalone import Call, StandaloneNode
from lockguard._nodes.wire import Reply
from lockguard._scripts import RELEASE
from lockguard.errors import ConfigurationError, NodeRefused
from lockguard.text import hidden

__all__ = ["SentinelNode", "SentinelUrl"]

_WATCH_S = 0.25
_DOUBT_S = 0.25
_ANSWER_S = 0.5
_GIVE_UP_S = 5.0
_SENTINEL_PORT = 26_379
_NO_SENTINEL = "is no Sentinel"
_NO_SERVICE = re.compile("No such (master|primary)")
_LOG_IN = (
    "give the Sentinels' own user and password as ?sentinel_username= and &sentinel_password= of the URL,"
    " or none if they have none"
)
_RIGHTS = "give their user +sentinel|master and +sentinel|get-master-addr-by-name"
_PORT = re.compile(r":\d+$")
_CREDENTIALS = ("username", "password")


@dataclass(frozen=True, slots=True)
class SentinelEndpoint:
    """One Sentinel.

    Attributes:
        name: host and port for messages.
        host: name or IP address.
        port: TCP port.
        url: the URL passed to redis-py.
    """

    name: str
    host: str
    port: int
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """The parts of ``redis+sentinel://user:password@host:port,host:port/service/db?options``.

    Attributes:
        sentinels: how to reach each Sentinel.
        service: the name by which the Sentinels know the master.
        master: how to log in to the master; its host and port are discovered.
        address_map: where to reach the masters that the Sentinels announce.
    """

    sentinels: tuple[SentinelEndpoint, ...]
    service: str
    master: Address
    address_map: AddressMap = field(default_factory=AddressMap)

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Parse ``redis+sentinel://`` or, with TLS to all servers, ``rediss+sentinel://``.

        User, password and options are for the master. The options ``sentinel_username`` and
        ``sentinel_password`` are for the Sentinels.

        Raises:
            ConfigurationError: a part of the URL is missing or invalid.
        """
        parts = split_url(url)
        path = [unquote(part) for part in parts.path.split("/") if part]
        if not 1 <= len(path) <= 2 or not parts.netloc:
            raise ConfigurationError(
                "the Redis URL does not say whom the Sentinels watch;"
                " write redis+sentinel://host:port,host:port/service[/db]"
            )
        scheme = parts.scheme.removesuffix("+sentinel")
        credentials, at, endpoints = parts.netloc.rpartition("@")
        options = dict(parse_qsl(parts.query))
        user, password = (quote(options.pop(f"sentinel_{key}", ""), safe="") for key in _CREDENTIALS)
        query = urlencode(options)
        own = f"{user}:{password}@" if user or password else ""
        sentinels = []
        for endpoint in endpoints.split(","):
            placed = endpoint if _PORT.search(endpoint) else f"{endpoint}:{_SENTINEL_PORT}"
            where = f"{scheme}://{own}{placed}?{query}"
            sentinel = Address.parse(where)
            sentinels.append(SentinelEndpoint(sentinel.name, sentinel.host, sentinel.port, where))
        db = path[1] if len(path) == 2 else "0"
        master = Address.parse(f"{scheme}://{credentials}{at}{quote(path[0], safe='')}/{db}?{query}")
        return cls(tuple(sentinels), path[0], master)

    def over(self, reach: Reach) -> SentinelUrl:
        """The same, with credentials for the master that are fetched anew, and its addresses mapped.

        Raises:
            ConfigurationError: the URL has a password and credentials are fetched.
        """
        return replace(self, master=reach.to(self.master), address_map=reach.address_map)


class SentinelNode(StandaloneNode):
    """Keeps locks in the master of one service.

    Args:
        url: the Sentinels and the service.
        inbox: this process's wake-up channel.
        namespace: the first part of every key.
        connect_timeout_s: the time limit for finding the master, connecting and logging in.
        reply_timeout_s: how long the server may leave a reply outstanding.
        min_replicas: how many replicas must have the lock before it counts as granted.
    """

    def __init__(
        self,
        url: SentinelUrl,
        *,
        inbox: str,
        namespace: Namespace = NAMESPACE,
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
        self._said_to = self._endpoint()
        self._sentinels: list[_Sentinel] = []
        self._watcher: asyncio.Task[None] | None = None

    def _name_at(self, address: Address) -> str:
        # The service, and its last known master.
        where = "not found yet" if address is self._url.master else address.name
        return f"{self._url.service} ({where})"

    async def connect(self) -> None:
        """Find the master and connect to it.

        Raises:
            NodeRefused: no master was found, or it cannot be reached.
            ConfigurationError: the master or all Sentinels refused the log-in, or the URL names no Sentinels.
        """
        if self._watcher is None:
            self._sentinels = [_Sentinel(endpoint, self._url.service) for endpoint in self._url.sentinels]
            self._watcher = asyncio.create_task(self._watch(), name=f"lockguard-connect-{self._url.service}")
        await super().connect()

    async def aclose(self) -> None:
        """Send what is queued, then close all connections."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await super().aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()

    def abandon(self) -> None:
        """Close the sockets after the event loop was closed around them; send nothing."""
        super().abandon()
        for sentinel in self._sentinels:
            sentinel.abandon()

    def answered(self, call: Call, reply: Reply) -> None:
        """Turn the reply to a call into its vote; remember a release until no failover can have lost it."""
        if call.script is RELEASE and not call.owed_until:
            # Not the current address: the next connection may already be on its way to another master.
            self._releases.note(self._said_to, call.keys, call.args)
        super().answered(call, reply)

    def _endpoint(self) -> Endpoint:
        address = self._connection.address
        return address.host, address.port

    def _connected(self, *, again: bool) -> None:
        here = self._said_to = self._endpoint()
        for release in self._releases.moved(lambda _: here):
            future = self._loop.create_future()
            self._owe(Call(self, RELEASE, bool, release.keys, release.args, future))
        super()._connected(again=again)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if not self._connection.connected_before:
                continue
            with contextlib.suppress(NodeRefused, ConfigurationError):
                found = await self._locate()
                cause = f"the master of {self._url.service} is now {found.name}"
                self._connection.drop(cause, unless_to=found)

    async def _locate(self) -> Address:
        """The master's address, as reported by the best-informed Sentinel.

        Raises:
            NodeRefused: no Sentinel knows the master.
            ConfigurationError: none of the servers is a Sentinel, or each of them refused to tell.
        """
        states = await self._states()
        known = [state for state in states if isinstance(state, _State)]
        if all(state == _NO_SENTINEL for state in states):
            endpoints = ", ".join(endpoint.name for endpoint in self._url.sentinels)
            raise ConfigurationError(
                f"{endpoints} {_NO_SENTINEL}: give Sentinels (port {_SENTINEL_PORT} by default), or write redis://"
                " or redis+cluster:// for what it is"
            )
        if not known:
            told = ", ".join(
                f"{endpoint.name}: {state}"
                for endpoint, state in zip(self._url.sentinels, states, strict=True)
            )
            remedies = dict.fromkeys(filter(None, map(self._remedy_for, states)))
            told = "; ".join([told, ", ".join(remedies)]) if remedies else told
            # One that is away, or only slow, agrees to nothing, such as that the log-in is a mistake.
            if all(isinstance(state, _Refusal) for state in states):
                raise ConfigurationError(f"no Sentinel of {self._url.service!r} lets lockguard ask: {told}")
            raise NodeRefused(f"no Sentinel knows {self._url.service!r}: {told}", node=self._url.service)
        latest = max(known, key=lambda state: (state.epoch, state.promoting))
        host, port = self._url.address_map(latest.host, latest.port)
        return replace(self._url.master, host=host, port=port)

    def _remedy_for(self, state: _State | _Refusal | str) -> str:
        if isinstance(state, _Refusal):
            return state.remedy
        if isinstance(state, str) and _NO_SERVICE.match(state):
            return f"check the name of the service in the URL, {self._url.service!r}"
        return ""

    async def _states(self) -> list[_State | _Refusal | str]:
        """Each Sentinel's state, or why there is none within half a second.

        A slower question is not cancelled. Otherwise a Sentinel whose connection takes longer, because it is
        far away or uses TLS on a busy machine, would never be connected.
        """
        asked = [sentinel.ask() for sentinel in self._sentinels]
        await asyncio.wait(asked, timeout=_ANSWER_S)
        return [task.result() if task.done() else f"no answer within {_ANSWER_S:g} s" for task in asked]


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A Sentinel's answer that it tells this user nothing."""

    said: str
    remedy: str

    def __str__(self) -> str:
        return self.said


@dataclass(frozen=True, slots=True)
class _State:
    """One Sentinel's report on the master.

    Attributes:
        epoch: the epoch of the failover that promoted the master.
        promoting: whether the Sentinel is about to promote it.
        host: the master's host.
        port: the master's port.
    """

    epoch: int
    promoting: bool
    host: str
    port: int


class _Sentinel:
    """One Sentinel, which is polled."""

    def __init__(self, endpoint: SentinelEndpoint, service: str) -> None:
        self._endpoint = endpoint
        self._service = service
        # No retries by the client: all Sentinels are asked concurrently, and again soon.
        self._client = Redis.from_url(endpoint.url, decode_responses=True, retry=Retry(NoBackoff(), 0))
        self._resolver = Resolver()
        self._found = False
        self._patience_s = _DOUBT_S  # longer for one that is far away, which is not dead
        self._asking: asyncio.Task[_State | _Refusal | str] | None = None

    def ask(self) -> asyncio.Task[_State | _Refusal | str]:
        """A task for the Sentinel's state, or why there is none; an unanswered question is not repeated."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="lockguard-connect-ask")
        return self._asking

    async def aclose(self) -> None:
        """Stop asking and close the connection."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._client.aclose()

    def abandon(self) -> None:
        """Close the connection's socket after the event loop was closed around it."""
        pool: Any = self._client.connection_pool
        for connection in (*pool._available_connections, *pool._in_use_connections):
            if (writer := connection._writer) is not None:
                close_abandoned(writer.transport)
            connection._writer = connection._reader = None  # or it would warn that it was not closed

    async def _ask(self) -> _State | _Refusal | str:
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                if not self._found:
                    # The client resolves the name too, in a thread of the process's shared pool. If the
                    # resolver hung, each question would block one more thread: so wait for the name first.
                    await self._resolver.addresses(self._endpoint.host, self._endpoint.port)
                self._found, asked_at = False, SYSTEM_CLOCK.now()
                try:
                    async with asyncio.timeout(self._patience_s):
                        state = await self._state()
                except TimeoutError:
                    # The connection may have died silently. redis-py has closed it, and makes another.
                    self._patience_s, asked_at = min(2 * self._patience_s, _GIVE_UP_S), SYSTEM_CLOCK.now()
                    state = await self._state()
                self._patience_s = max(_DOUBT_S, 2 * (SYSTEM_CLOCK.now() - asked_at))
                self._found = True
                return state
        except AuthenticationError as exc:  # a ConnectionError to redis-py
            return _Refusal(self._said(exc), _LOG_IN)
        except NoPermissionError as exc:
            return _Refusal(self._said(exc), _RIGHTS)
        except ResponseError as exc:
            return _NO_SENTINEL if str(exc).startswith("unknown command") else self._said(exc)
        except TimeoutError:
            return f"no answer within {_GIVE_UP_S:g} s"
        except (RedisError, OSError, LookupError, ValueError, AttributeError, TypeError) as exc:
            # The last two are redis-py's about an answer that is none of a Sentinel.
            ended = self._endpoint.url.startswith("rediss") and ("reset" in str(exc) or "closed" in str(exc))
            said = self._said(exc)
            return f"{said}, {AS_WITHOUT_CERTIFICATE}" if ended else said

    def _said(self, exc: Exception) -> str:
        """What a Sentinel said, without the password, which one that refuses its log-in may quote."""
        return hidden(str(exc), self._client.connection_pool.connection_kwargs.get("password"))

    async def _state(self) -> _State:
        facts: dict[str, Any] = dict(await self._client.sentinel_master(self._service))  # type: ignore[arg-type]
        host, port, promoting = str(facts["ip"]), int(facts["port"]), False
        if "failover_in_progress" in str(facts["flags"]):
            found = await self._client.sentinel_get_master_addr_by_name(self._service)
            if isinstance(found, tuple) and (str(found[0]), int(found[1])) != (host, port):
                host, port, promoting = str(found[0]), int(found[1]), True
        return _State(int(facts.get("config-epoch", 0)), promoting, host, port)
