"""The ways to lock that are compared: what each is, which server keeps its lock, how it writes.

Each is used as its documentation shows, with a ttl where it has one. A body gets a function that writes to
the bot's table, and nothing else looks at the lock before that write: so does code that was stopped between
looking and writing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import asyncpg

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["MANY", "SET_UP", "Place", "Server", "Way", "Write", "plain_write"]

MANY = 110
"""How many connections to Postgres a way may open: those of a hundred waiters, and some."""

SET_UP = """
create table bot (id int primary key, status text not null, token bigint not null default 0)
"""

Server = Literal["Redis", "Postgres", "etcd"]
Write = Callable[[str], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the servers are.

    Attributes:
        redis: the URL of Redis.
        postgres: the URL of the database.
        etcd: the URL of etcd; empty if there is none.
        quorum: the URLs of several Redis servers that decide together, where a way has them.
    """

    redis: str
    postgres: str
    etcd: str = ""
    quorum: tuple[str, ...] = ()

    @classmethod
    def told(cls, line: Sequence[Any]) -> Place:
        """What :meth:`line` wrote."""
        redis, postgres, etcd, quorum = line
        return cls(redis, postgres, etcd, tuple(quorum))

    def line(self) -> list[Any]:
        """As a child process is told it."""
        return [self.redis, self.postgres, self.etcd, list(self.quorum)]

    def url(self, server: Server) -> str:
        """The URL of one of them."""
        return {"Redis": self.redis, "Postgres": self.postgres, "etcd": self.etcd}[server]

    def at(self, server: Server, url: str) -> Place:
        """The same servers, one of them at another URL."""
        match server:
            case "Redis":
                return replace(self, redis=url)
            case "Postgres":
                return replace(self, postgres=url)
            case "etcd":
                return replace(self, etcd=url)


class Way(ABC):
    """One way to lock, connected within ``async with``.

    Args:
        place: the servers.
        ttl_s: how long its lock outlives a holder that says nothing, in whole seconds; not all have that.
    """

    name: ClassVar[str]
    """On the command line and in the JSON."""
    label: ClassVar[str]
    """In tables."""
    server: ClassVar[Server]
    """Which server keeps the lock."""

    def __init__(self, place: Place, ttl_s: int) -> None:
        self.place = place
        self.ttl_s = ttl_s
        # Each its own: those who waited for another one's, and were killed, may still stand in its line.
        self.resource = f"{self.name}:APTUSDT"
        self.stack = AsyncExitStack()
        self.pool: asyncpg.Pool[Any]

    async def __aenter__(self) -> Self:
        self.pool = await asyncpg.create_pool(self.place.postgres, min_size=1, max_size=MANY)
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not closed in order: the server may be out of reach.
        self.pool.terminate()
        await self.stack.aclose()

    async def open(self) -> None:  # noqa: B027 - not all have more to open
        """Open what else it needs, on ``self.stack``."""

    @abstractmethod
    def held(self) -> AbstractAsyncContextManager[Write]:
        """Hold the lock in the body, after waiting for as long as it takes."""


def plain_write(pool: asyncpg.Pool[Any] | asyncpg.Connection[Any]) -> Write:
    """The write of code that trusts its lock."""
    return lambda status: pool.execute("update bot set status = $1 where id = 1", status)
