"""The websockets: who listens to which streams, and what is sent to them.

An event is made when its cause happens, and says what was true then, even if it is sent late.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from lockguard_lab.exchange.connection import Connection
from lockguard_lab.exchange.events import account_events, listen_key_expired
from lockguard_lab.exchange.faults import Operation
from lockguard_lab.exchange.feeds import feed_for
from lockguard_lab.exchange.http import json_response
from lockguard_lab.exchange.listenkeys import Owner
from lockguard_lab.exchange.rejections import Rejection

if TYPE_CHECKING:
    from lockguard_lab.exchange.desk import Desk
    from lockguard_lab.exchange.faults import Fault
    from lockguard_lab.exchange.feeds import Feed
    from lockguard_lab.exchange.model import Change
    from lockguard_lab.exchange.render import Json

__all__ = ["Listener", "Streams"]

_HOUSEKEEPING_S = 0.25
_LISTEN_KEY = re.compile(r"[0-9A-Za-z]{60,}")
_PREFIXES = ("", "/public", "/market", "/private")


@dataclass(frozen=True, slots=True)
class Listener:
    """One open websocket.

    Attributes:
        account: the account to which it listens; ``None`` if it listens to market streams only.
        streams: the names of its streams; a listen key stands for an account's.
    """

    account: str | None
    streams: tuple[str, ...]


class Streams:
    """All websockets of one desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._connections: set[Connection] = set()
        desk.on_change = self._changed
        desk.on_price = self._moved
        self._housekeeping = asyncio.create_task(self._keep_house(), name="streams of the local exchange")

    async def close(self) -> None:
        """Cut every connection."""
        self._housekeeping.cancel()
        await asyncio.gather(self._housekeeping, return_exceptions=True)
        self.cut(None)

    async def _keep_house(self) -> None:
        """Carry out what falls due while no request arrives: the listeners would not hear of it."""
        while True:
            self._desk.pass_time()
            for owner in self._desk.listen_keys.due(self._desk.now_ms):
                self.expire(owner)
            await asyncio.sleep(_HOUSEKEEPING_S)

    def routes(self) -> list[web.RouteDef]:
        """The websockets' paths: of USD-M at the root, as at fstream, and of COIN-M below ``/dstream``."""
        return [
            web.get(f"{start}/{mode}{rest}", self._connect)
            for start in (*_PREFIXES, "/dstream")
            for mode, rest in (("ws", ""), ("ws", "/{name:.*}"), ("stream", ""))
        ]

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        try:
            self._desk.conditions.check_address(self._desk.now_ms)
        except Rejection as no:
            return json_response({"code": no.code, "msg": no.message}, no.status, no.headers)
        connection = Connection(
            request,
            combined=request.path.endswith("/stream"),
            feed=partial(self._feed, inverse=request.path.startswith("/dstream/")),
            fate=partial(self._fate, Operation.STREAM_MARKET),
        )
        asked = [request.match_info.get("name", ""), request.query.get("streams", "")]
        names = [name for name in "/".join(asked).split("/") if name and not name.isdecimal()]
        # A number is no stream: ccxt tells its connections apart by it.
        if key := request.query.get("listenKey"):
            names.append(key)
            connection.kinds = frozenset(re.split("[/,]", request.query.get("events", ""))) - {""}
        try:
            connection.subscribe(names)
        except ValueError as no:
            return json_response({"code": -1, "msg": str(no)}, 400)
        self._connections.add(connection)
        try:
            return await connection.run()
        finally:
            self._connections.discard(connection)

    def _feed(self, name: str, *, inverse: bool) -> Feed | None:
        feed = feed_for(name, self._desk, inverse=inverse)
        if feed is None and _LISTEN_KEY.fullmatch(name) is None:
            raise ValueError(f"Invalid request: the local exchange has no stream {name[:64]!r}")
        return feed

    def _fate(
        self, operation: Operation, symbol: str | None, account: str | None = None
    ) -> tuple[float, Fault | None]:
        return self._desk.latency_ms(operation) / 1000, self._desk.faults.take(operation, symbol, account)

    # --- what happened ---

    def _moved(self, symbol: str) -> None:
        for connection in list(self._connections):
            for name, feed in list(connection.names.items()):
                if feed is not None and feed.at_once and feed.symbol in {None, symbol}:
                    connection.pull(name)

    def _changed(self, name: str, change: Change) -> None:
        symbol = change.symbol
        owner = Owner(name, self._desk.venue.markets[symbol].inverse)
        if not self._listening(owner):
            return  # a fault waits for an event that somebody would hear
        account = self._desk.engine(name).account
        fates: dict[Operation, tuple[float, Fault | None]] = {}
        for operation, body in account_events(change, account, self._desk.now_ms):
            if operation not in fates:  # a fill has two events, which are lost or late together
                fates[operation] = self._fate(operation, symbol, name)
            self._tell(owner, body, *fates[operation])

    def _listening(self, owner: Owner) -> list[Connection]:
        key = self._desk.listen_keys.key(owner)
        return [connection for connection in self._connections if key in connection.names]

    def _tell(
        self, owner: Owner, body: dict[str, Json], late_s: float = 0.0, fault: Fault | None = None
    ) -> None:
        name = str(self._desk.listen_keys.key(owner))
        for connection in self._listening(owner):
            if not connection.kinds or body["e"] in connection.kinds:
                connection.send(name, body, late_s=late_s, fault=fault)

    # --- control ---

    def expire(self, owner: Owner) -> None:
        """Make an owner's listen key invalid; its listeners are told, and hear no more."""
        key = self._desk.listen_keys.key(owner)
        if key is not None:
            self._tell(owner, listen_key_expired(key, self._desk.now_ms))
            self._desk.listen_keys.end(owner)

    def cut(self, account: str | None) -> None:
        """Cut the connections that listen to an account, or all."""
        for connection in list(self._connections):
            if account is None or account == self._account_of(connection):
                connection.cut()

    def listeners(self) -> tuple[Listener, ...]:
        """The open connections."""
        return tuple(Listener(self._account_of(one), tuple(one.names)) for one in self._connections)

    def _account_of(self, connection: Connection) -> str | None:
        owners = map(self._desk.listen_keys.owner, connection.names)
        return next((owner.account for owner in owners if owner is not None), None)
