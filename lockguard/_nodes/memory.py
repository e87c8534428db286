"""A lock node without a server, for unit tests of code that takes leases.

It runs the same scripts in fakeredis, in this process and one at a time. It gives the lock's guarantees as
far as one process can. No command is lost, late or unanswered unless a test says so: ``store.fail()``,
``store.hang()`` and ``store.lose_answers()``.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from redis.exceptions import RedisError

from lockguard._clock import Clock
from lockguard._lease import GrantId, Resource
from lockguard._namespace import NAMESPACE, Namespace
from lockguard._nodes.scanning import scan
from lockguard._nodes.scripted import ScriptedNode, reason_of
from lockguard._scripts import Script
from lockguard.errors import ConfigurationError, NodeRefused, NodeUnknown
from lockguard.ports import MaybeExecuted, NotExecuted

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["MemoryNode", "MemoryStore"]

T = TypeVar("T")

Operation: TypeAlias = Literal["acquire", "settle", "extend", "release", "break", "inspect", "history"]
"""What a guard asks of a store; ``extend`` is a renewal."""

_OPERATIONS = ("acquire", "settle", "extend", "release", "break", "inspect", "history")
_UNREACHABLE = "memory cannot be reached: a test said store.fail()"
_by_one_clock = threading.RLock()
"""Held while fakeredis has the clock of one store."""


class _TimeOf:
    """The module ``time`` as fakeredis sees it, by a clock of tests."""

    def __init__(self, clock: Clock) -> None:
        self.time = clock.wall

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules["time"], name)


class MemoryStore:
    """The store shared by in-memory guards: pass one store to all guards that are to compete for locks.

    Args:
        clock: by which locks expire and tokens are numbered; the machine's by default. Give a
            ``lockguard.testing.FakeClock`` to the store and to its guards, and the test moves their time.

    Raises:
        ConfigurationError: fakeredis is not installed.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        try:
            from fakeredis import FakeRedis  # noqa: PLC0415 - only tests need it
        except ImportError as exc:
            raise ConfigurationError(
                "a guard in memory needs fakeredis with Lua, which is not installed:"
                " pip install 'lockguard[memory]'"
            ) from exc
        self.client: Redis = FakeRedis()
        """A client of the store, for tests that look at its keys."""
        self._time = None if clock is None else _TimeOf(clock)
        self._inboxes: dict[str, tuple[Any, Callable[[GrantId | None], None]]] = {}
        self._failing = False
        self._hanging = False
        self._hung: list[Callable[[], None]] = []
        self._lost: set[str] = set()

    def fail(self) -> None:
        """Refuse every request from now on, as a Redis that cannot be reached, until :meth:`recover`."""
        self._failing = True

    def hang(self) -> None:
        """Answer nothing from now on, as a Redis that is stopped, until :meth:`recover`.

        What is asked meanwhile is done then, in order, as by a server that is continued.
        """
        self._hanging = True

    def lose_answers(self, *, of: Operation) -> None:
        """Do what is asked and lose the answer, as where a connection is cut, until :meth:`recover`.

        Args:
            of: which requests: ``"acquire"``, ``"extend"`` (a renewal), ``"release"``, ``"settle"``,
                ``"break"``, ``"inspect"`` or ``"history"``.

        Raises:
            ConfigurationError: there is no such request.
        """
        if of not in _OPERATIONS:
            raise ConfigurationError(f"of={of!r} is not known; write one of {', '.join(_OPERATIONS)}")
        self._lost.add(of)

    def recover(self) -> None:
        """End :meth:`fail`, :meth:`hang` and :meth:`lose_answers`; guards renew and ask again at once."""
        was_away = self._failing or self._hanging
        self._failing = self._hanging = False
        self._lost.clear()
        hung, self._hung = self._hung, []
        for run in hung:
            run()
        if was_away:
            for _, wake in list(self._inboxes.values()):
                wake(None)

    @property
    def reachable(self) -> bool:
        """Whether a connection would be accepted now."""
        return not self._failing

    def unless_hung(self, run: Callable[[], None]) -> None:
        """Call ``run`` now; while the store hangs, when it recovers."""
        if self._hanging:
            self._hung.append(run)
        else:
            run()

    def loses_answer(self, script: Script) -> bool:
        """Whether the answer of this script is to be lost."""
        return script.name in self._lost

    def listen(self, inbox: str, wake: Callable[[GrantId | None], None]) -> None:
        """Call ``wake`` with the grant in each message on the channel ``inbox``; ``None``: all are to ask."""
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
        with self._by_its_clock():
            reply = self.client.eval(script.source, len(keys), *keys, *args)
        for messages, wake in list(self._inboxes.values()):
            while message := messages.get_message():
                wake(GrantId(message["data"].decode()))
        return reply

    def execute(self, *command: str | int) -> Any:
        """Run one command.

        Raises:
            RedisError: it failed.
        """
        with self._by_its_clock():
            return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def _by_its_clock(self) -> Iterator[None]:
        """Have fakeredis read the clock of this store; other users of fakeredis get theirs back."""
        if self._time is None:
            yield
            return
        with _by_one_clock:
            real = sys.modules["time"]
            reading: list[Any] = [
                module
                for name, module in list(sys.modules.items())
                if name.startswith("fakeredis") and getattr(module, "time", None) is real
            ]
            for module in reading:
                module.time = self._time
            try:
                yield
            finally:
                for module in reading:
                    module.time = real


class MemoryNode(ScriptedNode):
    """Keeps locks in this process.

    Args:
        store: holds the locks.
        inbox: this guard's wake-up channel.
        namespace: the first part of every key.
    """

    def __init__(self, store: MemoryStore, *, inbox: str, namespace: Namespace = NAMESPACE) -> None:
        super().__init__(inbox=inbox, namespace=namespace)
        self._store = store
        self._listening = False
        self._closed = False
        self._home: asyncio.AbstractEventLoop | None = None

    @property
    def name(self) -> str:
        """The node's name for messages: always ``memory``."""
        return "memory"

    @property
    def ready(self) -> bool:
        """Whether the node is connected and not closed."""
        return self._listening and not self._closed and self._store.reachable

    async def connect(self) -> None:
        """Subscribe to wake-ups.

        Raises:
            NodeRefused: a test made the store fail.
        """
        if not self._listening:
            self._listening = True
            self._home = asyncio.get_running_loop()
            self._store.listen(self._inbox, self._woken)
        if not self._store.reachable:
            raise NodeRefused(_UNREACHABLE, node=self.name)

    async def aclose(self) -> None:
        """Unsubscribe from wake-ups."""
        self.abandon()
        await asyncio.sleep(0)  # lets replies already made reach their futures

    def abandon(self) -> None:
        """Unsubscribe from wake-ups, without waiting for anything."""
        self._closed = True
        self._store.forget(self._inbox)

    def names(self, prefix: str) -> AsyncIterator[list[Resource]]:
        """The resources in use in the store, see :meth:`lockguard.ports.ReadableNode.names`."""

        async def ask(*command: str | int) -> Any:
            await asyncio.sleep(0)  # others run between two steps, as with a server
            if not self._store.reachable:
                raise NodeRefused(_UNREACHABLE, node=self.name)
            return self._store.execute(*command)

        return scan(ask, name=self.name, namespace=self._namespace, prefix=prefix)

    def _woken(self, grant: GrantId | None) -> None:
        if self._home is None or asyncio._get_running_loop() is self._home:
            self._wake(grant)
        else:  # released by a guard of another thread, or a test without a loop made the store recover
            with contextlib.suppress(RuntimeError):  # that loop has ended
                self._home.call_soon_threadsafe(self._wake, grant)

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

        def run() -> None:
            vote = self._vote(script, decode, keys, args)
            # In the next loop iteration, as from a server: a body that locks in a loop must let others run.
            soon = loop.call_soon if asyncio._get_running_loop() is loop else loop.call_soon_threadsafe
            with contextlib.suppress(RuntimeError):  # it hung until that loop had ended
                soon(lambda: None if future.done() else future.set_result(vote))

        self._store.unless_hung(run)
        return future

    def _vote(
        self, script: Script, decode: Callable[[Any], T], keys: tuple[str, ...], args: tuple[str | int, ...]
    ) -> T | NotExecuted | MaybeExecuted:
        if not self._store.reachable:
            return NotExecuted(NodeRefused(_UNREACHABLE, node=self.name))
        try:
            if self._closed:
                raise RedisError("the guard is closed")
            vote = decode(self._store.run(script, keys, args))
        except RedisError as exc:
            told = f"{self.name}: {reason_of(script, keys, args, exc)}"
            return NotExecuted(NodeRefused(told, node=self.name))
        if self._store.loses_answer(script):
            told = f"{self.name}: {script.name}: the answer was lost: a test said store.lose_answers()"
            return MaybeExecuted(NodeUnknown(told, node=self.name))
        return vote
