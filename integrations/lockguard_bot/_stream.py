"""Signals from a Redis stream, shared by all bots of a consumer group.

Redis hands each entry to one bot, and keeps it until that bot acknowledges it, which is when its signal is
decided. What a killed bot had taken is claimed by another one once it has been idle for ``claim_after``. An
entry that ends bot after bot while it is read is counted in a set beside the stream, before it is read. An
entry may thus be carried out by two bots at once, when one is merely slow: the second finds the decision of
the first. The bots take one entry at a time, as they have a hand free; the rest is there for the others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from lockguard._clock import SYSTEM_CLOCK, Clock
from lockguard.errors import ConfigurationError, NodeRefused
from lockguard_bot._signals import BadSignal, Signal, Unread, read_fields
from lockguard_bot._sources import Delivery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import timedelta

__all__ = ["StreamSource"]

_Entry: TypeAlias = "tuple[bytes, Mapping[bytes, bytes] | None]"

_LOG = logging.getLogger("lockguard.bot")
_BLOCK_MS = 500
_REPLY_S = 5.0
_PAUSE_S = 1.0
_NOT_NOW = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, OSError)
_FORGET_AFTER_MS = 600_000
"""One that lives asks twice a second while it has a hand free, and has entries pending while it has not."""
_FORGET_READERS_S = 7 * 24 * 3600
_FOR_A_PERSON = ("WRONGTYPE", "NOPERM")
_SINGLE = ("redis://", "rediss://", "unix://")


class StreamSource:
    """The entries of a stream, as one consumer of a group; made by :meth:`connect`.

    Args:
        client: of the server that has the stream.
        key: the stream.
        group: the consumer group that the bots form.
        claim_after: an entry that nobody has acknowledged for so long is another bot's to take.
        follow: wait for entries that come later.
        ends_max: how many bots may end while they read an entry before it is set aside unread.
        clock: measures when to look for what others have left.
    """

    def __init__(
        self,
        client: Redis,
        key: str,
        group: str,
        *,
        claim_after: timedelta,
        follow: bool,
        ends_max: int = 2,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._client = client
        self._key = key
        self._group = group
        self._consumer = f"{socket.gethostname()}:{os.getpid()}"
        self._claim_after_ms = round(claim_after.total_seconds() * 1000)
        self._follow = follow
        self._ends_max = ends_max
        # Not the consumer's name alone: a container's first process has the same one each time.
        self._reader = f"{self._consumer}:{secrets.token_hex(4)}"
        self._clock = clock
        self._look_for_left_at = 0.0
        self._cursor: bytes | str = "0-0"
        self._in_hand: set[bytes] = set()
        self._reachable = True

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str, key: str, group: str, *, claim_after: timedelta, follow: bool, ends_max: int = 2
    ) -> AsyncIterator[StreamSource]:
        """A source whose stream and group are there.

        Raises:
            ConfigurationError: the URL, the key or the rights of the user cannot work.
            NodeRefused: the server does not answer now.
        """
        client = _client(url)
        source = cls(client, key, group, claim_after=claim_after, follow=follow, ends_max=ends_max)
        try:
            await source._make_group()
            await source._forget_the_dead()
            yield source
            await source._leave()
        finally:
            await client.aclose()

    async def next(self, stopping: asyncio.Event) -> Delivery | None:
        """The next entry that nobody has in hand."""
        while not stopping.is_set():
            try:
                entry = await self._left_by_others() or await self._new()
                readers = 0 if entry is None else await self._begin_reading(entry[0])
            except (RedisError, OSError) as exc:
                await self._mend(exc, stopping)
                continue
            self._reachable = True
            if entry is not None:
                return self._delivery(entry, readers)
            if not self._follow:
                return None
        return None

    # --- inside ---

    async def _mend(self, exc: RedisError | OSError, stopping: asyncio.Event) -> None:
        """Go on after an error, at once or after a pause, unless a person has to change something."""
        if str(exc).startswith(_FOR_A_PERSON):
            raise ConfigurationError(f"stream {self._key!r} cannot be read: {exc}; check --stream") from exc
        if str(exc).startswith("NOGROUP"):
            # The server has lost its data.
            try:
                await self._make_group()
            except NodeRefused as refused:
                await self._wait(refused, stopping)
            return
        await self._wait(exc, stopping)

    async def _new(self) -> _Entry | None:
        found: Any = await self._client.xreadgroup(
            self._group,
            self._consumer,
            {self._key: ">"},
            count=1,
            block=_BLOCK_MS if self._follow else None,
        )
        return _first(found[0][1]) if found else None

    async def _left_by_others(self) -> _Entry | None:
        """Claim one entry that has been idle for too long, if it is time to look."""
        now = self._clock.now()
        while now >= self._look_for_left_at:
            self._cursor, entries, *_ = await self._client.xautoclaim(
                self._key,
                self._group,
                self._consumer,
                min_idle_time=self._claim_after_ms,
                start_id=self._cursor,
                count=1,
            )
            if self._cursor in (b"0-0", "0-0"):
                self._look_for_left_at = now + self._claim_after_ms / 4000
            # Our own, which is slow: claiming it again has told the others that it is being worked on.
            if entries and entries[0][0] not in self._in_hand:
                return _first(entries)
        return None

    async def _begin_reading(self, entry_id: bytes) -> int:
        """How many bots have begun to read an entry and never said that they had ended it, and this one."""
        key = self._readers(entry_id)
        try:
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.sadd(key, self._reader)
                pipe.expire(key, _FORGET_READERS_S)
                pipe.scard(key)
                *_, readers = await pipe.execute()
        except NoPermissionError as exc:
            _LOG.warning("bots that end while they read an entry are not counted: %s; allow %s", exc, key)
            return 1
        return int(readers)

    async def _end_reading(self, entry_id: bytes) -> None:
        """It is read, or given up in good order."""
        try:
            await self._client.srem(self._readers(entry_id), self._reader)
        except (RedisError, OSError) as exc:
            _LOG.warning("%s entry %s is still counted as being read: %s", self._key, entry_id.decode(), exc)

    def _readers(self, entry_id: bytes) -> str:
        return f"{self._key}:{self._group}:readers:{entry_id.decode()}"

    def _delivery(self, entry: _Entry, readers: int) -> Delivery:
        entry_id, fields = entry
        name = entry_id.decode()
        where = f"{self._key} entry {name}"
        self._in_hand.add(entry_id)

        async def understood() -> None:
            await self._end_reading(entry_id)

        async def settle(decided: bool) -> None:  # noqa: FBT001 - as Delivery has it
            try:
                if decided:
                    await self._client.xack(self._key, self._group, entry_id)
                    await self._client.delete(self._readers(entry_id))
                else:
                    await understood()
            except (RedisError, OSError) as exc:
                # It will be delivered again, and its decision is known.
                _LOG.warning("%s was not acknowledged: %s", where, exc)
            finally:
                self._in_hand.discard(entry_id)

        signal: Signal | BadSignal
        if readers > self._ends_max:
            told = (
                f"{where}: set aside unread, as {readers - 1} bots ended while they read it, by it or killed"
                f" from outside; look at it with XRANGE {self._key} {name} {name}, and send it again"
            )
            return Delivery(where, Unread(told), settle, returns=True)
        try:
            signal = read_fields(fields or {}, where=where, at_ms=int(name.partition("-")[0]))
        except BadSignal as exc:
            signal = exc
        except Exception as exc:  # noqa: BLE001 - an entry that ends its reader would end bot after bot
            signal = BadSignal(f"{where}: cannot be read ({type(exc).__name__}); write plain fields")
        return Delivery(where, signal, settle, returns=True, understood=understood)

    async def _make_group(self) -> None:
        try:
            await self._client.xgroup_create(self._key, self._group, id="0", mkstream=True)
        except AuthenticationError as exc:
            raise ConfigurationError(f"the stream's Redis refused the log-in: {exc}") from exc
        except _NOT_NOW as exc:
            raise NodeRefused(f"the stream's Redis does not answer: {exc}", node=self._key) from exc
        except ResponseError as exc:
            if not str(exc).startswith("BUSYGROUP"):
                raise ConfigurationError(
                    f"stream {self._key!r} cannot be used: {exc}; check --stream, and the rights of the user"
                ) from exc

    async def _forget_the_dead(self) -> None:
        """Take killed bots off the group's list, which would grow for ever; not while entries are theirs."""
        script = (files("lockguard_bot") / "forget_consumers.lua").read_text(encoding="utf-8")
        try:
            # Harmless to one that lives after all: its next read puts it back on the list.
            await self._client.eval(script, 1, self._key, self._group, str(_FORGET_AFTER_MS))
        except RedisError as exc:
            _LOG.warning("consumers of killed bots were left in group %s: %s", self._group, exc)

    async def _leave(self) -> None:
        """Take this consumer off the group's list, unless entries of its are for others to claim."""
        try:
            mine = await self._client.xpending_range(
                self._key, self._group, "-", "+", 1, consumername=self._consumer
            )
            if not mine:
                await self._client.xgroup_delconsumer(self._key, self._group, self._consumer)
        except RedisError as exc:
            _LOG.warning("consumer %s was left in group %s: %s", self._consumer, self._group, exc)

    async def _wait(self, exc: Exception, stopping: asyncio.Event) -> None:
        if self._reachable:
            _LOG.warning("stream %s cannot be read, trying again: %s", self._key, exc)
        self._reachable = False
        try:
            async with asyncio.timeout(_PAUSE_S):
                await stopping.wait()
        except TimeoutError:
            pass


def _first(entries: list[tuple[bytes, Mapping[bytes, bytes] | None]]) -> _Entry:
    return entries[0]


def _client(url: str) -> Redis:
    if not url.startswith(_SINGLE):
        raise ConfigurationError(
            "the stream needs the URL of one server, as redis://host:port; give it with --stream-redis"
        )
    try:
        # It sends nothing twice by itself: what it had not heard of might have been executed.
        pool: Any = ConnectionPool.from_url(
            url, socket_timeout=_REPLY_S, socket_connect_timeout=_REPLY_S, retry=Retry(NoBackoff(), 0)
        )
    except ValueError as exc:
        raise ConfigurationError(f"the stream's Redis URL cannot be read: {exc}") from exc
    pool.connection_kwargs["protocol"] = 2  # replies as lists, whatever the URL says
    return Redis.from_pool(pool)
