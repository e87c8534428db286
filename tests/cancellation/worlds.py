"""What is cancelled at every step runs in a world: real servers, and what must not be left on them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Lease

__all__ = ["PATIENCE_S", "Row", "Servers", "World", "for_a_day", "until_empty"]

PATIENCE_S = 5.0
"""How long what is under way when a call ends may take to go, in seconds."""


@dataclass(frozen=True)
class Servers:
    """Where the servers of a test are.

    Attributes:
        redis_url: of an empty server.
        database_url: of an empty database; empty for a world that needs none.
        redis_urls: of several empty servers, for a quorum.
    """

    redis_url: str
    database_url: str = ""
    redis_urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One public coroutine, and how it is called.

    Attributes:
        covers: its names in docs/reference/api.txt.
        call: calls it, in its world.
        before: makes what the call needs, before each attempt.
        judge: tells what the call has left behind, beyond what its world looks for.
        beside: something else that goes on meanwhile, which must end well whatever becomes of the call.
        thorough: whether an attempt takes so long that a sample has only a few of its points.
        finishes: why it may end without the cancel: what it does is done whole, and a cancel of it is the
            next await's; empty if it may not.
    """

    covers: tuple[str, ...]
    call: Callable[[Any], Awaitable[Any]]
    before: Callable[[Any], Awaitable[Any]] | None = None
    judge: Callable[[Any], Awaitable[list[str]]] | None = None
    beside: Callable[[Any], Awaitable[Any]] | None = None
    thorough: bool = False
    finishes: str = ""
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.covers[0]


class World(ABC):
    """Servers and clients in which rows are run, one after the other."""

    rows: ClassVar[tuple[Row, ...]] = ()
    needs: ClassVar[frozenset[str]] = frozenset()
    """Which servers, by the names of the fields of :class:`Servers`."""
    background: ClassVar[tuple[str, ...]] = ("lockguard-connect", "lockguard-renewal")
    """Names with which tasks begin that belong to the world and end with it."""
    noise: ClassVar[tuple[str, ...]] = ()
    """What a driver itself says when it is cancelled, with or without anything of ours."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.state: Any = None
        """What a row's ``before`` made for its ``call`` and its ``judge``."""

    @abstractmethod
    async def begin(self, stack: AsyncExitStack) -> None:
        """Make the clients, to be closed with ``stack``."""

    async def left(self) -> list[str]:
        """What has been left behind."""
        return []

    @abstractmethod
    async def works(self) -> None:
        """Use what a cancelled call has used."""

    def strange_tasks(self) -> list[str]:
        """Tasks that do not belong to the world."""
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current and not task.done()]
        return [
            f"task {task.get_name()} {task.get_coro()!r}"
            for task in tasks
            if not task.get_name().startswith(self.background)
        ]


def for_a_day(grant: Grant) -> Lease:
    """A lease that no run outlasts."""
    return Lease(grant, deadline=SYSTEM_CLOCK.now() + 86_400, clock=SYSTEM_CLOCK)


async def until_empty(look: Callable[[], Awaitable[list[str]]]) -> list[str]:
    """What is left once nothing of it goes by itself any more."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_S
    while found := await look():
        if loop.time() > until:
            return found
        await asyncio.sleep(0.002)
    return []
