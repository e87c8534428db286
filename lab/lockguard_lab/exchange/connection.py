"""One websocket that listens: what it is subscribed to, and what waits to be sent.

It has a queue of its own, and a task that writes it. The exchange only puts events into the queue: it waits
for nobody. A reader that lets its queue fill up is disconnected, as Binance does.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import WSMsgType, web

from lockguard_lab.exchange.faults import Execution, FaultKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lockguard_lab.exchange.faults import Fault
    from lockguard_lab.exchange.feeds import Feed
    from lockguard_lab.exchange.render import Json

__all__ = ["Connection"]

_QUEUE_MAX = 1_000
"""Events that may wait for one reader."""
_STREAMS_MAX = 1_024
"""Streams of one connection; Binance's limit."""
_REQUEST_MAX = 256 * 1024
_PING_EVERY_S = 180.0


@dataclass(slots=True)
class _Waiting:
    due_s: float
    text: str | None
    """``None``: the connection is cut."""


class Connection:
    """One websocket: its streams, its queue, and the task that writes it.

    Args:
        request: by which it is opened.
        combined: whether each event is sent with its stream's name.
        feed: gives the feed of a stream's name, ``None`` for an account's stream; raises ``ValueError`` for a
            name that means nothing.
        fate: gives how many seconds late an event of a contract is sent, and the fault that hits it.

    Attributes:
        names: its streams, each with its feed.
        kinds: the events of accounts that it gets; all, if there are none.
    """

    def __init__(
        self,
        request: web.Request,
        *,
        combined: bool,
        feed: Callable[[str], Feed | None],
        fate: Callable[[str | None], tuple[float, Fault | None]],
    ) -> None:
        self.names: dict[str, Feed | None] = {}
        self.kinds: frozenset[str] = frozenset()
        self._request = request
        self._combined = combined
        self._feed = feed
        self._fate = fate
        self._timers: dict[str, asyncio.Handle] = {}
        self._queue: deque[_Waiting] = deque()
        self._filled = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    # --- life ---

    async def run(self) -> web.StreamResponse:
        """Serve the connection until it ends."""
        socket = web.WebSocketResponse(heartbeat=_PING_EVERY_S, max_msg_size=_REQUEST_MAX, compress=False)
        try:
            try:
                await socket.prepare(self._request)
            except ConnectionError:
                return web.Response()  # the client is gone, and nothing is sent
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write(socket), name="stream writer")
                async for message in socket:
                    if message.type is WSMsgType.TEXT:
                        self._answer(message.data)
                writer.cancel()
        finally:
            self._stop()
        return socket

    async def _write(self, socket: web.WebSocketResponse) -> None:
        while True:
            while not self._queue:
                self._filled.clear()
                await self._filled.wait()
            wait_s = self._queue[0].due_s - self._loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
                continue  # the connection may have been cut meanwhile
            text = self._queue.popleft().text
            if text is None:
                self.cut()
                return
            with suppress(ConnectionError):  # the reading side notices too, and ends the connection
                await socket.send_str(text)

    def cut(self) -> None:
        """End the connection at once, without a word."""
        self._stop()
        if self._request.transport is not None:
            self._request.transport.abort()

    def _stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._queue.clear()
        self.names.clear()

    # --- what is sent ---

    def send(self, name: str, body: Json, *, late_s: float = 0.0, fault: Fault | None = None) -> None:
        """Put an event of a stream into the queue, or do to it what the fault says."""
        kind = None if fault is None else fault.kind
        if kind is FaultKind.LOST:
            return
        if fault is not None and kind is FaultKind.DELAY:
            late_s += fault.hold_ms / 1000
        text = json.dumps({"stream": name, "data": body} if self._combined else body, separators=(",", ":"))
        if fault is None or kind is not FaultKind.DISCONNECT or fault.execution is Execution.FIRST:
            self._put(text, late_s)
        if kind is FaultKind.TWICE:
            self._put(text, late_s)
        if kind is FaultKind.DISCONNECT:
            self._put(None, late_s)

    def _put(self, text: str | None, late_s: float = 0.0) -> None:
        if len(self._queue) >= _QUEUE_MAX:
            self.cut()
            return
        self._queue.append(_Waiting(self._loop.time() + late_s, text))
        self._filled.set()

    def pull(self, name: str) -> None:
        """Send the events of a market stream that are due."""
        feed = self.names.get(name)
        if feed is not None:
            for body in feed.events():
                late_s, fault = self._fate(feed.symbol)
                self.send(name, body, late_s=late_s, fault=fault)

    # --- what is subscribed ---

    def subscribe(self, names: Sequence[str]) -> None:
        """Add streams.

        Raises:
            ValueError: one is none of this exchange's, or they are too many.
        """
        new = {name: self._feed(name) for name in names if name not in self.names}
        if len(self.names) + len(new) > _STREAMS_MAX:
            raise ValueError(f"Invalid request: more than {_STREAMS_MAX} streams")
        self.names |= new
        for name, feed in new.items():
            if feed is not None:
                self._timers[name] = self._loop.call_soon(self._tick, name)

    def _tick(self, name: str) -> None:
        feed = self.names.get(name)
        if feed is not None:
            self._timers[name] = self._loop.call_later(feed.every_s, self._tick, name)
            self.pull(name)

    def _unsubscribe(self, names: Sequence[str]) -> None:
        for name in names:
            self.names.pop(name, None)
            if (timer := self._timers.pop(name, None)) is not None:
                timer.cancel()

    def _answer(self, text: str) -> None:
        number: Json = None
        try:
            asked = json.loads(text)
            if not isinstance(asked, dict):
                raise TypeError("Invalid request: not an object")
            number = asked.get("id")
            result = self._do(str(asked.get("method")), asked.get("params"))
        except (json.JSONDecodeError, RecursionError):
            self._say({"error": {"code": 3, "msg": "Invalid JSON"}, "id": None})
        except (TypeError, ValueError) as exc:
            self._say({"error": {"code": 2, "msg": str(exc)}, "id": number})
        else:
            self._say({"result": result, "id": number})

    def _do(self, method: str, params: object) -> Json:
        if method == "LIST_SUBSCRIPTIONS":
            return list(self.names)
        if method not in {"SUBSCRIBE", "UNSUBSCRIBE"}:
            raise ValueError("Invalid request: unknown method")
        if not isinstance(params, list) or not all(isinstance(name, str) for name in params):
            raise TypeError("Invalid request: params must be a list of streams")
        if method == "SUBSCRIBE":
            self.subscribe(params)
        else:
            self._unsubscribe(params)
        return None

    def _say(self, body: Json) -> None:
        self._put(json.dumps(body, separators=(",", ":")))
