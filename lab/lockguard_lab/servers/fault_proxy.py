"""A TCP proxy on the loopback address that misbehaves on request.

It stands between a client and a server (Redis, Postgres, HTTP) and treats each direction separately, since
the worst faults are one-sided: a command arrives and its reply does not. Settings apply at once, also to open
connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING, Self, assert_never

from lockguard.errors import ConfigurationError
from lockguard_lab.servers.ports import LOOPBACK, url_at

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["DROP", "HOLD", "PASS", "Direction", "FaultProxy", "Flow", "Mode"]

_CHUNK_BYTES_MAX = 65_536
_QUEUED_CHUNKS_MAX = 64
_END = b""
_NO_NEWS = None


class Mode(Enum):
    """What happens to the bytes of one direction."""

    PASS = auto()
    """They are delivered."""
    HOLD = auto()
    """They wait, in order, until the mode changes: a link that is down for a while, or a long stall."""
    DROP = auto()
    """They are lost, and so is a close. Later bytes would follow a gap: reset the connections first."""


@dataclass(frozen=True, slots=True)
class Flow:
    """The behaviour of one direction.

    Attributes:
        mode: deliver, hold or drop.
        latency: added to each delivery.
        fragment_bytes_max: deliver in pieces of at most this many bytes; 0 delivers them as they come.
        cut_after_bytes: deliver this many more bytes on each connection, then close it; ``None`` for never.

    Raises:
        ConfigurationError: a value is out of range.
    """

    mode: Mode = Mode.PASS
    latency: timedelta = timedelta(0)
    fragment_bytes_max: int = 0
    cut_after_bytes: int | None = None

    def __post_init__(self) -> None:
        # Refused here: later it would make the proxy's tasks fail, and end the connection as if by a fault.
        if not isinstance(self.mode, Mode):
            raise ConfigurationError(f"mode={self.mode!r} is none; write Mode.PASS, Mode.HOLD or Mode.DROP")
        if not isinstance(self.latency, timedelta):
            raise ConfigurationError(
                f"latency={self.latency!r} has no unit; write a timedelta such as timedelta(milliseconds=100)"
            )
        if self.latency < timedelta(0):
            raise ConfigurationError(f"latency={self.latency} is negative; give 0 or more")
        for name, value in (
            ("fragment_bytes_max", self.fragment_bytes_max),
            ("cut_after_bytes", 0 if self.cut_after_bytes is None else self.cut_after_bytes),
        ):
            if type(value) is not int or value < 0:
                raise ConfigurationError(f"{name}={value!r} cannot work; give a number of bytes, 0 or more")


PASS = Flow()
"""Passes everything on at once."""
HOLD = Flow(Mode.HOLD)
"""Keeps everything until the flow changes."""
DROP = Flow(Mode.DROP)
"""Throws everything away."""


class _Closed(Exception):
    """The connection must end."""


class Direction:
    """One direction of all connections of a proxy."""

    def __init__(self) -> None:
        self._flow = PASS
        self._changed = asyncio.Event()
        self._received_bytes = 0

    @property
    def flow(self) -> Flow:
        """The present behaviour."""
        return self._flow

    @property
    def received_bytes(self) -> int:
        """How many bytes have come from the sender, on all connections, delivered or not."""
        return self._received_bytes

    def set(self, flow: Flow) -> None:
        """Change the behaviour from now on.

        Raises:
            ConfigurationError: ``flow`` is not a :class:`Flow`.
        """
        if not isinstance(flow, Flow):
            raise ConfigurationError(
                f"a direction is set to a Flow, such as HOLD or Flow(latency=...); got {flow!r}"
            )
        self._flow = flow
        self._tell()

    async def wait_received(self, total_bytes: int) -> None:
        """Wait until this many bytes have come from the sender since the proxy began."""
        while self._received_bytes < total_bytes:
            await self._change()

    def _count(self, received_bytes: int) -> None:
        self._received_bytes += received_bytes
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()


@dataclass(slots=True, eq=False)
class _Link:
    """The state that both directions of one connection share."""

    forgotten: bool = False


@dataclass(slots=True)
class _Pump:
    """Carries one direction of one connection."""

    link: _Link
    direction: Direction
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    _queue: asyncio.Queue[tuple[float, bytes | None]] = field(
        default_factory=lambda: asyncio.Queue(_QUEUED_CHUNKS_MAX)
    )
    _obeyed: Flow = PASS
    _delivered_bytes: int = 0

    async def run(self) -> None:
        """Run until the sender has closed and all is delivered; raises when the connection must end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive())
            tasks.create_task(self._deliver())

    async def _receive(self) -> None:
        clock = asyncio.get_running_loop()
        while True:
            chunk = await self.reader.read(_CHUNK_BYTES_MAX)
            self.direction._count(len(chunk))
            # Decided on receipt: a test that waits for the bytes, then heals the link, expects them lost.
            lost = self.link.forgotten or self.direction.flow.mode is Mode.DROP
            due = clock.time() + self.direction.flow.latency.total_seconds()
            if not chunk:
                await self._queue.put((due, _NO_NEWS if lost else _END))
                return
            if not lost:
                await self._queue.put((due, chunk))

    async def _deliver(self) -> None:
        clock = asyncio.get_running_loop()
        while True:
            due, chunk = await self._queue.get()
            await asyncio.sleep(max(0.0, due - clock.time()))
            passes = await self._passes()
            if chunk is None:  # _NO_NEWS
                return
            if chunk == _END:
                if passes:
                    self.writer.write_eof()
                return
            if passes:
                await self._write(chunk)

    async def _passes(self) -> bool:
        while True:
            if self.link.forgotten:
                return False
            match self.direction.flow.mode:
                case Mode.PASS:
                    return True
                case Mode.DROP:
                    return False
                case Mode.HOLD:
                    await self.direction._change()
                case never:
                    assert_never(never)

    async def _write(self, chunk: bytes) -> None:
        flow = self.direction.flow
        if flow is not self._obeyed:
            self._obeyed, self._delivered_bytes = flow, 0
        rest = None if flow.cut_after_bytes is None else max(0, flow.cut_after_bytes - self._delivered_bytes)
        allowed = chunk[:rest]
        piece_bytes = flow.fragment_bytes_max or len(chunk)
        for start in range(0, len(allowed), piece_bytes):
            self.writer.write(allowed[start : start + piece_bytes])
            await self.writer.drain()
            await asyncio.sleep(0)  # otherwise the pieces would leave in one packet
        self._delivered_bytes += len(allowed)
        if rest is not None and rest <= len(chunk):
            raise _Closed


class FaultProxy:
    """Forwards connections to a server on this machine, with the faults that a test sets.

    ::

        async with FaultProxy(server.port) as proxy:
            client = connect(proxy.url_for(server.url))
            proxy.to_client.set(DROP)      # the next command arrives, its reply does not

    Args:
        target_port: the server's port on 127.0.0.1.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._links: set[_Link] = set()
        self._accepted = 0
        self.to_server = Direction()
        """What clients send; :meth:`Direction.set` changes its flow."""
        self.to_client = Direction()
        """What the server answers; :meth:`Direction.set` changes its flow."""

    @property
    def port(self) -> int:
        """The proxy's port on 127.0.0.1; it stays the same."""
        return self._port

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def accepted(self) -> int:
        """How many connections there have been, those that are open included."""
        return self._accepted

    def url_for(self, url: str) -> str:
        """The same URL, through the proxy."""
        return url_at(self._port, url)

    async def start(self) -> Self:
        """Start to listen.

        Raises:
            ConfigurationError: the port that it had before :meth:`refuse` has been taken meanwhile.
        """
        if self._listener is not None:
            return self
        try:
            listener = await asyncio.start_server(self._accept, LOOPBACK, self._port, start_serving=False)
        except OSError as error:
            raise ConfigurationError(f"port {self._port} on {LOOPBACK} cannot be used: {error}") from error
        self._listener = listener
        try:
            # asyncio listens and then waits for a turn: cancelled there, it would go on listening for nobody.
            await listener.start_serving()
        except BaseException:
            self.refuse()
            raise
        self._port = listener.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Refuse new connections and close the open ones."""
        self.refuse()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def refuse(self) -> None:
        """Refuse new connections until :meth:`start`; open ones stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def forget(self) -> None:
        """Drop, for good, all that comes on the connections that are open now, without telling either side.

        New ones work. A NAT or a firewall that has forgotten an idle connection behaves this way.
        """
        for link in self._links:
            link.forgotten = True

    def redirect(self, target_port: int) -> None:
        """Send new connections to another server; open ones stay, as with a service whose server changed."""
        self._target_port = target_port

    def heal(self) -> None:
        """Deliver in both directions again."""
        self.to_server.set(PASS)
        self.to_client.set(PASS)

    def partition(self) -> None:
        """Hold both directions: nothing arrives and neither side is told."""
        self.to_server.set(HOLD)
        self.to_client.set(HOLD)

    def reset(self) -> None:
        """End every open connection with a reset (RST) on both sides."""
        for writer in self._writers:
            _reset(writer)
        for task in self._connections:
            task.cancel()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._accepted += 1
        try:
            await self._carry(reader, writer)
        except asyncio.CancelledError:
            pass  # by stop() or reset(), which end this connection and this task
        finally:
            self._connections.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        self._writers.add(writer)
        link = _Link()
        self._links.add(link)
        try:
            upstream_reader, upstream = await asyncio.open_connection(LOOPBACK, self._target_port)
            writers.append(upstream)
            self._writers.add(upstream)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_Pump(link, self.to_server, reader, upstream).run())
                tasks.create_task(_Pump(link, self.to_client, upstream_reader, writer).run())
        except* _Closed:
            pass
        except* OSError:
            # One side was reset, or the server is down: the other side learns it by a reset too.
            for one in writers:
                _reset(one)
        finally:
            self._links.discard(link)
            for one in writers:
                self._writers.discard(one)
                one.close()
            for one in writers:
                with contextlib.suppress(OSError):
                    await one.wait_closed()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):  # the connection has ended, and its socket is gone
        # Lingering for zero seconds makes the kernel send RST instead of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
