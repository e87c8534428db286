"""Connections that delay, hold back and lose bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from lockguard_lab.sim.world import Process, World

__all__ = ["Link", "Network", "Peer"]


class _Socket:
    """What a driver sets options on."""

    family = 0

    def setsockopt(self, *_: object) -> None:
        """Nothing depends on it here."""


_SOCKET = _Socket()


class Peer(Protocol):
    """The server's end of a connection."""

    def received(self, data: bytes) -> None:
        """Take bytes."""
        ...

    def heard(self, data: bytes) -> None:
        """Note which of its bytes have reached the process."""
        ...

    def lost(self) -> None:
        """The connection has ended."""
        ...


class Served(Protocol):
    """A server that can be connected to."""

    @property
    def up(self) -> bool:
        """Whether something listens."""
        ...

    def accept(self, answer: Callable[[bytes], None], hang_up: Callable[[], None], address: str) -> Peer:
        """Take a connection."""
        ...


@dataclass
class Link:
    """What lies between one process and one server.

    Attributes:
        delay_s: the least and the most that bytes take, each way.
        held: whether bytes are held back, each way: towards the server, towards the process.
    """

    delay_s: tuple[float, float] = (0.0002, 0.002)
    held: tuple[bool, bool] = (False, False)


class Network:
    """All links; a link that is not named is a good one."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.servers: dict[str, Served] = {}
        self.links: dict[tuple[str, str], Link] = {}
        self.open: list[Transport] = []
        self._ports = 40_000

    def link(self, process: str, server: str) -> Link:
        """What lies between two."""
        return self.links.setdefault((process, server), Link())

    async def connect(self, process: Process, factory: Callable[[], Any], host: str, port: int) -> Any:
        """As ``loop.create_connection``."""
        name = f"{host}:{port}"
        link, world = self.link(process.name, name), self.world
        made: asyncio.Future[None] = process.create_future()

        def arrive() -> None:
            if any(link.held):
                world.after(0.05, arrive)  # the handshake is repeated
            else:
                world.after(self._delay(link), answered)

        def answered() -> None:
            process.arrived.append((lambda: None if made.done() else made.set_result(None), ()))

        world.after(self._delay(link), arrive)
        await made
        server = self.servers.get(name)
        if server is None or not server.up:
            raise ConnectionRefusedError(111, f"Connect call failed {name}")
        protocol = factory()
        transport = Transport(self, process, link, protocol, server, self._address(process))
        protocol.connection_made(transport)
        return transport, protocol

    def _address(self, process: Process) -> str:
        self._ports += 1
        return f"10.0.0.{1 + self.world.processes.index(process)}:{self._ports}"

    def _delay(self, link: Link) -> float:
        return self.world.dice.uniform(*link.delay_s)

    def between(self, process: str, server: str) -> list[Transport]:
        """The open connections of a process to a server."""
        return [one for one in self.open if (one.process.name, one.server_name) == (process, server)]

    def cut(self, *, server: str | None = None, process: str | None = None) -> None:
        """Reset the open connections of a server, a process or both; what is on its way may be lost."""
        for transport in list(self.open):
            if server in (None, transport.server_name) and process in (None, transport.process.name):
                transport.reset()


class Transport(asyncio.Transport):
    """One connection, of which a protocol holds the one end and a server the other."""

    def __init__(
        self, network: Network, process: Process, link: Link, protocol: Any, server: Served, address: str
    ) -> None:
        super().__init__()
        self.network, self.process, self.link = network, process, link
        self.server_name = next(name for name, one in network.servers.items() if one is server)
        self._world = network.world
        self._protocol = protocol
        self._closed = False
        self._queues: tuple[list[bytes], list[bytes]] = ([], [])
        self._delivers = (partial(self._deliver, 0), partial(self._deliver, 1))
        self._last = [0.0, 0.0]
        self._gone = [False, False]  # the server's end, the process's end
        self._stalled_until = 0.0
        self.peer = server.accept(lambda data: self._send(1, data), self.reset, address)
        network.open.append(self)
        process.transports.append(self)

    # Transport, as a protocol uses it.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes to the server."""
        if not self._closed and not self.process.dead:
            self._send(0, bytes(data))

    def abort(self) -> None:
        """Close; what was written may still arrive."""
        self.close()

    def close(self) -> None:
        """Close; what was written may still arrive."""
        if not self._closed:
            self._closed = True
            self._gone[1] = True
            self.process.call_soon(self._protocol.connection_lost, None)
            # The end of the stream comes behind what was written, and now and then late.
            late = self._world.dice.choice((0.0, 0.0, 0.0, 0.3))
            self._at(0, self._server_lost, extra=late)
            self._forget()

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Nothing is known of it, but that it has a socket."""
        return _SOCKET if name == "socket" else default

    # The network.

    def reset(self) -> None:
        """Both ends learn that the connection has ended; what is on its way arrives or not."""
        if self._closed:
            return
        self._closed = True
        for way in (0, 1):
            if self._world.dice.random() < 0.5:
                self._gone[way] = True  # what is on its way there is lost
        self._world.after(self._world.dice.uniform(0, 0.01), self._server_lost)
        if not self.process.dead:
            self._world.after(self._world.dice.uniform(0, 0.01), self._tell_process)
        self._forget()

    def stall_for(self, seconds: float) -> None:
        """Hold all its bytes back for a while, as a NAT does that forgot it; other connections go on."""
        self._stalled_until = self._world.now + seconds

    def die(self) -> None:
        """The process has been killed: its kernel ends the connection behind what was written."""
        if not self._closed:
            self._closed = True
            self._gone[1] = True
            self._at(0, self._server_lost)
            self._forget()

    def _forget(self) -> None:
        for known in (self.network.open, self.process.transports):
            if self in known:
                known.remove(self)

    def _tell_process(self) -> None:
        self._gone[1] = True
        error = ConnectionResetError(104, "Connection reset by peer")
        self.process.arrived.append((self._protocol.connection_lost, (error,)))

    def _server_lost(self) -> None:
        self._gone[0] = True
        self.peer.lost()

    def _send(self, way: int, data: bytes) -> None:
        if self._gone[way]:
            return
        self._queues[way].append(data)
        self._at(way, self._delivers[way])

    def _at(self, way: int, action: Callable[[], None], *, extra: float = 0.0) -> None:
        world, (least_s, most_s) = self._world, self.link.delay_s
        arrives = world.now + (least_s + (most_s - least_s) * world.dice.random() + extra)
        self._last[way] = arrives = max(self._last[way], arrives)  # bytes never overtake
        world.at(arrives, partial(self._pass, way, action))

    def _pass(self, way: int, action: Callable[[], None]) -> None:
        if self.link.held[way] or self._world.now < self._stalled_until:
            self._last[way] = max(self._last[way], self._world.now + 0.02)
            self._world.at(self._last[way], partial(self._pass, way, action))
        else:
            action()

    def _deliver(self, way: int) -> None:
        if not self._queues[way]:
            return
        data = self._queues[way].pop(0)
        if self._gone[way]:
            return
        if way == 0:
            self.peer.received(data)
        else:
            self.process.arrived.append((self._received, (data,)))

    def _received(self, data: bytes) -> None:
        if not self._gone[1]:
            self.peer.heard(data)
            self._protocol.data_received(data)
