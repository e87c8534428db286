"""Simulated Sentinels, and a primary with a replica that lags behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hiredis

from lockguard_lab.sim.redis_server import RedisServer, encoded
from lockguard_lab.sim.store import ReplyError, Status
from lockguard_lab.sim.world import World

__all__ = ["Sentinel", "fail_over"]

_NO_MORE = object()


class Sentinel:
    """One Sentinel: it tells who the primary is, as far as it has heard.

    Args:
        master: the primary at the beginning.
    """

    def __init__(self, master: RedisServer) -> None:
        self.up = True
        self.master, self.epoch = master, 0

    def hears(self, master: RedisServer, epoch: int) -> None:
        """It hears of a new primary."""
        if epoch > self.epoch:
            self.master, self.epoch = master, epoch

    def accept(self, answer: Callable[[bytes], None], hang_up: Callable[[], None], address: str) -> _Session:
        """Take a connection."""
        del hang_up, address
        return _Session(self, answer)


class _Session:
    def __init__(self, sentinel: Sentinel, answer: Callable[[bytes], None]) -> None:
        self._sentinel, self._answer, self._resp3 = sentinel, answer, False
        self._reader = hiredis.Reader(notEnoughData=_NO_MORE)

    def received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (words := self._reader.gets()) is not _NO_MORE:
            self._answer(encoded(self._reply(words[0].upper(), words), self._resp3))

    def heard(self, data: bytes) -> None:
        pass

    def lost(self) -> None:
        """Nothing is kept of it."""

    def _reply(self, name: bytes, words: list[bytes]) -> Any:
        sentinel = self._sentinel
        host, _, port = sentinel.master.name.encode().rpartition(b":")
        match name, words[1].upper() if len(words) > 1 else b"":
            case b"HELLO", _:
                self._resp3 = True
                return {b"server": b"redis", b"proto": 3}
            case b"SENTINEL", b"MASTER":
                facts = {b"name": words[2], b"ip": host, b"port": port, b"flags": b"master"}
                return facts | {b"config-epoch": b"%d" % sentinel.epoch}
            case b"SENTINEL", _:
                return [host, port]
            case ((b"CLIENT" | b"PING" | b"SELECT"), _):
                return Status(b"OK")
            case _:
                return ReplyError(f"ERR unknown command '{name.decode()}'")


def fail_over(
    world: World, master: RedisServer, *, goes_on_s: float, tell: Callable[[RedisServer], None]
) -> None:
    """Promote the replica with what it has; the old primary serves for a while, and then follows the new one.

    Args:
        world: the schedule.
        master: the primary; without a replica nothing happens.
        goes_on_s: how long the old primary serves whoever is connected to it.
        tell: called with the new primary once it is one.
    """
    replica = master.replica
    if replica is None or not master.up or not replica.up:
        return
    world.tell(f"{replica.name} takes over from {master.name}, which goes on for {goes_on_s:.3f} s")
    master.replica, replica.master = None, None
    tell(replica)
    world.after(goes_on_s, lambda: master.becomes_replica_of(replica))
