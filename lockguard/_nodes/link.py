"""One plain connection, to ask a server about itself: no scripts, no subscription, no reconnect.

A node refuses a server that cannot keep locks; this asks any: a replica, a Sentinel, one of another version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lockguard._nodes.address import Address
from lockguard._nodes.dial import Resolver, first_of
from lockguard._nodes.login import LogIn, ask_all
from lockguard._nodes.wire import Reply, Wire
from lockguard.errors import NodeRefused

__all__ = ["Link", "pairs", "text_of"]


class Link:
    """A connection that is logged in; :meth:`open` makes one.

    Attributes:
        address: the server.
        protocol: the RESP version in use, 3 or 2.
    """

    def __init__(self, address: Address, wire: Wire, protocol: int) -> None:
        self.address = address
        self.protocol = protocol
        self._wire = wire

    @classmethod
    async def open(cls, address: Address, *, within_s: float = 2.0) -> Link:
        """Connect and log in.

        Args:
            address: the server and the credentials.
            within_s: the time limit for all of it, and later for each reply, in seconds.

        Raises:
            NodeRefused: the server cannot be reached, or is not ready.
            ConfigurationError: the server refused the credentials or the database.
        """
        wires: list[Wire] = []
        try:
            async with asyncio.timeout(within_s):
                wire = await _dial(address, wires, within_s)
                protocol = await LogIn(address, "").authenticate(wire)
        except (OSError, TimeoutError) as exc:
            _end(wires)
            told = str(exc) or f"no answer within {within_s:g} s"
            raise NodeRefused(
                f"cannot connect to Redis at {address.name}: {told}", node=address.name
            ) from exc
        except BaseException:
            _end(wires)
            raise
        _end([other for other in wires if other is not wire])
        return cls(address, wire, protocol)

    async def ask(self, *command: str | bytes | int) -> Reply:
        """Send a command; an error reply is returned as an exception object.

        Raises:
            ConnectionError: the connection ended, or the server did not answer in time.
        """
        return (await ask_all(self._wire, command))[0]

    async def ask_all(self, *commands: Sequence[str | bytes | int]) -> list[Reply]:
        """Send commands in one write; their replies, as of :meth:`ask`.

        Raises:
            ConnectionError: the connection ended, or the server did not answer in time.
        """
        return await ask_all(self._wire, *commands)

    async def refusal(self, command: str, channel: str) -> Reply:
        """Try a command that is confirmed by a message, such as SSUBSCRIBE; needs RESP3.

        Returns:
            The refusal as an exception object, or ``None`` if the server accepted it.

        Raises:
            ConnectionError: the connection ended.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Reply] = loop.create_future()
        self._wire.send_listening(answer.set_result, command, channel)
        # The answer to this comes behind a refusal, and behind the confirmation too.
        await self.ask("PING")
        return answer.result() if answer.done() else None

    async def aclose(self) -> None:
        """Close; the socket is closed when this returns."""
        self._wire.end("closed")
        await self._wire.gone.wait()


def text_of(reply: Reply) -> str:
    """A reply as text."""
    return reply.decode(errors="backslashreplace") if isinstance(reply, bytes) else str(reply)


def pairs(reply: Reply) -> dict[str, Reply]:
    """A map, which is a flat list in RESP2; empty for anything else."""
    if isinstance(reply, dict):
        return {text_of(key): value for key, value in reply.items()}
    if isinstance(reply, list) and len(reply) % 2 == 0:
        return {text_of(key): value for key, value in zip(reply[::2], reply[1::2], strict=True)}
    return {}


def _end(wires: list[Wire]) -> None:
    for wire in wires:
        wire.end("not used")


async def _dial(address: Address, wires: list[Wire], reply_timeout_s: float) -> Wire:
    loop = asyncio.get_running_loop()

    def new_wire() -> Wire:
        wire = Wire(on_push=lambda _: None, on_end=lambda *_: None, reply_timeout_s=max(reply_timeout_s, 2.0))
        wires.append(wire)
        return wire

    if address.path:
        _, wire = await loop.create_unix_connection(new_wire, address.path)
        return wire

    async def connect(place: str) -> Wire:
        name = None if address.tls is None else address.host
        _, made = await loop.create_connection(
            new_wire, place, address.port, ssl=address.tls, server_hostname=name
        )
        return made

    return await first_of(await Resolver().addresses(address.host, address.port), connect)
