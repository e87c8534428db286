"""A lock node without a server, for unit tests of code that takes leases.

It runs the same scripts in fakeredis, in this process and one at a time. It gives the lock's guarantees as
far as one process can. No command is ever lost, late or unanswered, so it shows nothing about failures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError

from lockguard._lease import GrantId
from lockguard._nodes.scripted import NAMESPACE, ScriptedNode, reason_of
from lockguard._scripts import Script
from lockguard.errors import ConfigurationError, NodeRefused
from lockguard.ports import NotExecuted

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["MemoryNode", "MemoryStore"]

T = TypeVar("T")


class MemoryStore:
    """The store shared by in-memory guards: pass one store to all guards that are to compete for locks.

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
        """Call ``wake`` with the grant in each message on the channel ``inbox``."""
        messages = self.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        messages.subscribe(inbox)
        self._inboxes[inbox] = (messages, wake)

    def forget(self, inbox: str) -> None:
        """Unsubscribe from the channel ``inbox``."""
        if (listening := self._inboxes.pop(inbox, None)) is not None:
            listening[0].close()

    def run(self, script: Script, keys: tuple[str, ...], args: tuple[str | int, ...]) -> Any:
        """Run a script, then deliver the wake-ups that it published.

        Raises:
            RedisError: the script failed.
        """
        reply = self.client.eval(script.source, len(keys), *keys, *args)
        for messages, wake in list(self._inboxes.values()):
            while message := messages.get_message():
                wake(GrantId(message["data"].decode()))
        return reply


class MemoryNode(ScriptedNode):
    """Keeps locks in this process.

    Args:
        store: holds the locks.
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
        """The node's name for messages: always ``memory``."""
        return "memory"

    @property
    def ready(self) -> bool:
        """Whether the node is connected and not closed."""
        return self._listening and not self._closed

    async def connect(self) -> None:
        """Subscribe to wake-ups."""
        if not self._listening:
            self._listening = True
            self._store.listen(self._inbox, self._woken)

    async def aclose(self) -> None:
        """Unsubscribe from wake-ups."""
        self._closed = True
        self._store.forget(self._inbox)
        await asyncio.sleep(0)  # lets replies already made reach their futures

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
            vote = NotExecuted(NodeRefused(f"{self.name}: {reason_of(script, keys, exc)}", node=self.name))
        # In the next loop iteration, as from a server: a body that locks in a loop must let others run.
        loop.call_soon(lambda: None if future.done() else future.set_result(vote))
        return future
