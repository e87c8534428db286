"""Signals from a Redis stream, shared by all bots of a consumer group.

Redis delivers each entry to one bot and keeps it until that bot acknowledges it, once its signal is decided.
Another bot claims the entry of a killed bot after it has been idle for ``claim_after``. So two bots may work
on the same entry when the first is merely slow: the second finds the first one's decision. Before an entry is
read, its reader is added to a set beside the stream, so that an entry that kills bot after bot is noticed. A
bot takes one entry at a time, when one of its workers is free, and leaves the rest to the other bots.
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
from lockguard._nodes.address import Address
from lockguard.errors import ConfigurationError, NodeRefused
from lockguard.text import hidden, printable
from lockguard_bot._signals import BadSignal, Signal, Unread, each_once, read_fields
from lockguard_bot._sources import Delivery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import timedelta

__all__ = ["StreamSource"]

_Entry: TypeAlias = "tuple[bytes, Sequence[bytes] | None]"
"""The id, and names and values in turn: a dict would hide a field that is there twice."""

_LOG = logging.getLogger("lockguard.bot")
_BLOCK_MS = 500
_REPLY_S = 5.0
_PAUSE_S = 1.0
_NOT_NOW = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, OSError)
_FORGET_AFTER_MS = 600_000
"""A live bot reads twice a second while it has a free worker, and otherwise has entries pending."""
_FORGET_READERS_S = 7 * 24 * 3600
_SINGLE = ("redis://", "rediss://", "unix://")


class StreamSource:
    """Reads a stream as one consumer of a group; created by :meth:`connect`.

    Args:
        client: the connection to the stream's server.
        key: the stream's key.
        group: the consumer group that the bots form.
        claim_after: another bot may claim an entry that has been idle this long without an acknowledgement.
        follow: whether to wait for new entries at the end of the stream.
        ends_max: how many bots may die while reading an entry before it is set aside unread.
        clock: times the search for entries that other bots left.
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
        parse: Any = client.set_response_callback
        parse("XREADGROUP", _read)
        parse("XAUTOCLAIM", _claimed)
        self._key = key
        self._group = group
        self._consumer = f"{socket.gethostname()}:{os.getpid()}"
        self._claim_after_ms = round(claim_after.total_seconds() * 1000)
        self._follow = follow
        self._ends_max = ends_max
        # The consumer's name is not unique: it repeats each time a container restarts.
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
        """Connect, and create the stream and the group if they are missing.

        Raises:
            ConfigurationError: the URL or the key is wrong, or the user's rights do not suffice.
            NodeRefused: the server does not answer at present.
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
        """The next new or abandoned entry; ``None`` at the end of the stream or when stopping begins."""
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

    # --- internals ---

    async def _mend(self, exc: RedisError | OSError, stopping: asyncio.Event) -> None:
        """Recover from an error, after a pause if need be.

        Raises:
            ConfigurationError: only an operator can remove the cause.
        """
        if isinstance(exc, NoPermissionError):  # whose text redis-py gives without its NOPERM
            raise ConfigurationError(
                f"stream {self._key!r} cannot be read: {self._said(exc)}; give the user of its URL the rights"
                " of a bot that reads signals, see docs/howto/least-privilege.md"
            ) from None
        if str(exc).startswith("WRONGTYPE"):
            raise ConfigurationError(
                f"stream {self._key!r} cannot be read: {self._said(exc)}; check --stream"
            ) from None
        if str(exc).startswith("NOGROUP"):
            # The server lost its data.
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
        """Claim one entry that has been idle for ``claim_after``, if the next search is due."""
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
            # Our own slow entry is skipped: the claim has reset its idle time, so no other bot takes it.
            if entries and entries[0][0] not in self._in_hand:
                return _first(entries)
        return None

    async def _begin_reading(self, entry_id: bytes) -> int:
        """Count this bot among an entry's readers.

        Returns:
            How many bots, including this one, began to read the entry and did not record that they finished.
        """
        key = self._readers(entry_id)
        try:
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.sadd(key, self._reader)
                pipe.expire(key, _FORGET_READERS_S)
                pipe.scard(key)
                *_, readers = await pipe.execute()
        except NoPermissionError as exc:
            said = self._said(exc)
            _LOG.warning("bots that end while they read an entry are not counted: %s; allow %s", said, key)
            return 1
        return int(readers)

    async def _end_reading(self, entry_id: bytes) -> None:
        """Take this bot off an entry's readers: it has read the entry or given it up in good order."""
        try:
            await self._client.srem(self._readers(entry_id), self._reader)
        except (RedisError, OSError) as exc:
            told = f"{self._key} entry {entry_id.decode()} is still counted as being read"
            _LOG.warning("%s: %s", told, self._said(exc))

    def _readers(self, entry_id: bytes) -> str:
        return f"{self._key}:{self._group}:readers:{entry_id.decode()}"

    def _delivery(self, entry: _Entry, readers: int) -> Delivery:
        entry_id, fields = entry
        name = entry_id.decode()
        where = f"{self._key} entry {name}"
        self._in_hand.add(entry_id)

        async def understood() -> None:
            await self._end_reading(entry_id)

        async def settle(decided: bool) -> None:  # noqa: FBT001 - Delivery's signature
            try:
                if decided:
                    await self._client.xack(self._key, self._group, entry_id)
                    await self._client.delete(self._readers(entry_id))
                else:
                    await understood()
            except (RedisError, OSError) as exc:
                # The entry is delivered again, and its decision is found in the book.
                _LOG.warning("%s was not acknowledged: %s", where, self._said(exc))
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
            at_ms, _, number = name.partition("-")
            found = each_once(fields or (), where=where)
            signal = read_fields(found, where=where, at_ms=int(at_ms), number=int(number))
        except BadSignal as exc:
            signal = exc
        except Exception as exc:  # noqa: BLE001 - an entry that kills its reader would kill bot after bot
            signal = BadSignal(f"{where}: cannot be read ({type(exc).__name__}); write plain fields")
        return Delivery(where, signal, settle, returns=True, understood=understood)

    async def _make_group(self) -> None:
        try:
            await self._client.xgroup_create(self._key, self._group, id="0", mkstream=True)
        except AuthenticationError as exc:
            raise ConfigurationError(f"the stream's Redis refused the log-in: {self._said(exc)}") from None
        except _NOT_NOW as exc:
            said = self._said(exc)
            raise NodeRefused(f"the stream's Redis does not answer: {said}", node=self._key) from None
        except ResponseError as exc:
            if not str(exc).startswith("BUSYGROUP"):
                raise ConfigurationError(
                    f"stream {self._key!r} cannot be used: {self._said(exc)}; check --stream, and the user's"
                    " rights"
                ) from None

    async def _forget_the_dead(self) -> None:
        """Remove killed bots without pending entries from the group, whose list would grow for ever."""
        script = (files("lockguard_bot") / "forget_consumers.lua").read_text(encoding="utf-8")
        try:
            # Harmless to a live bot: its next read adds it to the group again.
            await self._client.eval(script, 1, self._key, self._group, str(_FORGET_AFTER_MS))
        except RedisError as exc:
            said = self._said(exc)
            _LOG.warning("consumers of killed bots were left in group %s: %s", self._group, said)

    async def _leave(self) -> None:
        """Remove this consumer from the group, unless it has pending entries for other bots to claim."""
        try:
            mine = await self._client.xpending_range(
                self._key, self._group, "-", "+", 1, consumername=self._consumer
            )
            if not mine:
                await self._client.xgroup_delconsumer(self._key, self._group, self._consumer)
        except RedisError as exc:
            said = self._said(exc)
            _LOG.warning("consumer %s was left in group %s: %s", self._consumer, self._group, said)

    def _said(self, exc: Exception) -> str:
        """An error's text without the password, which a server that does not know AUTH quotes."""
        return printable(hidden(str(exc), self._client.connection_pool.connection_kwargs.get("password")))

    async def _wait(self, exc: Exception, stopping: asyncio.Event) -> None:
        if self._reachable:
            _LOG.warning("stream %s cannot be read, trying again: %s", self._key, self._said(exc))
        self._reachable = False
        try:
            async with asyncio.timeout(_PAUSE_S):
                await stopping.wait()
        except TimeoutError:
            pass


def _first(entries: list[_Entry]) -> _Entry:
    return entries[0]


def _read(reply: Any, **_: Any) -> Any:
    return [[key, _entries(found)] for key, found in reply or ()]


def _claimed(reply: Any, **_: Any) -> Any:
    return [reply[0], _entries(reply[1]), *reply[2:]]


def _entries(found: Any) -> list[Any]:
    # Redis 6.2 gives none for an entry that was trimmed away while a bot had it.
    return [(one[0], one[1]) for one in found if one is not None]


def _client(url: str) -> Redis:
    if not url.startswith(_SINGLE):
        raise ConfigurationError(
            "the stream needs the URL of one server, as redis://host:port; give it with --stream-redis"
        )
    try:
        # redis-py would quote what it cannot read, such as a piece of a password behind a raw '/'.
        Address.parse(url)
    except ConfigurationError as exc:
        raise ConfigurationError(f"the stream: {exc}") from None
    # No retries: a command whose reply was lost may already have been executed.
    pool: Any = ConnectionPool.from_url(
        url, socket_timeout=_REPLY_S, socket_connect_timeout=_REPLY_S, retry=Retry(NoBackoff(), 0)
    )
    pool.connection_kwargs["protocol"] = 2  # replies as lists, whatever the URL says
    return Redis.from_pool(pool)
