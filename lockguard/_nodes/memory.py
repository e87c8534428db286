"""A lock node without a server, for unit tests of code that locks.

The same scripts run in fakeredis, in this process, one after the other. It keeps the laws of the lock as far
as one process can: nothing is ever lost, late or unanswered, so it shows nothing about failures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError

from lockguard._lease import GrantId
from lockguard._nodes.scripted import NAMESPACE, ScriptedNode
from lockguard._scripts import Script
from lockguard.errors import ConfigurationError, NodeRefused
from lockguard.ports import NotExecuted

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["MemoryNode", "MemoryStore"]

T = TypeVar("T")


class MemoryStore:
    """What guards in memory share: make one, and give it to each guard that shall meet the others.

    Raises:
        ConfigurationError: fakeredis is not installed.
    """

    def __init__(self) -> None:
        try:
            from fakeredis import FakeRedis  # noqa: PLC0415 - only tests need it
        except ImportError as exc:
            raise ConfigurationError(
                "a guard in memory needs fakeredis with Lua, which is not installed:"
                " pip install 'lockguard[testing]'"
            ) from exc
        self.client: Redis = FakeRedis()
        self._inboxes: dict[str, tuple[Any, Callable[[GrantId], None]]] = {}

    def listen(self, inbox: str, wake: Callable[[GrantId], None]) -> None:
        """Have ``wake`` called for each message on the channel."""
        messages = self.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        messages.subscribe(inbox)
        self._inboxes[inbox] = (messages, wake)

    def forget(self, inbox: str) -> None:
        """Listen no more."""
        if (listening := self._inboxes.pop(inbox, None)) is not None:
            listening[0].close()

    def run(self, script: Script, keys: tuple[str, ...], args: tuple[str | int, ...]) -> Any:
        """Run a script now, and wake whom it wakes.

        Raises:
            RedisError: it failed.
        """
        reply = self.client.eval(script.source, len(keys), *keys, *args)
        for messages, wake in list(self._inboxes.values()):
            while message := messages.get_message():
                wake(GrantId(message["data"].decode()))
        return reply


class MemoryNode(ScriptedNode):
    """Keeps locks in this process.

    Args:
        store: where.
        inbox: this guard's wake-up channel.
        namespace: the first part of every key.
    """

    def __init__(self, store: MemoryStore, *, inbox: str, namespace: str = NAMESPACE) -> None:
        super().__init__(inbox=inbox, namespace=namespace)
        self._store = store
        self._listening = False
        self._closed = False

    @property
    def name(self) -> str:
        """For people."""
        return "memory"

    @property
    def ready(self) -> bool:
        """Whether it was connected."""
        return self._listening and not self._closed

    async def connect(self) -> None:
        """Begin to listen for wake-ups."""
        if not self._listening:
            self._listening = True
            self._store.listen(self._inbox, self._woken)

    async def aclose(self) -> None:
        """Listen no more."""
        self._closed = True
        self._store.forget(self._inbox)
        await asyncio.sleep(0)  # what was answered is delivered

    def _woken(self, grant: GrantId) -> None:
        self._wake(grant)

    def _run(
        self,
        script: Script,
        decode: Callable[[Any], T],
        keys: tuple[str, ...],
        *args: str | int,
        lone: bool = False,  # noqa: ARG002 - there is no wire
    ) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        vote: T | NotExecuted
        try:
            if self._closed:
                raise RedisError("the guard is closed")
            vote = decode(self._store.run(script, keys, args))
        except RedisError as exc:
            vote = NotExecuted(NodeRefused(f"{self.name}: {script.name}: {exc}", node=self.name))
        # In the next turn of the loop, as from a server: a body that locks in a loop must let others run.
        loop.call_soon(lambda: None if future.done() else future.set_result(vote))
        return future
