"""The shard channels that one connection listens to.

In a cluster, PUBLISH goes to every server, and each of them hands it to every connection of the process that
waits. A shard channel stays where it is: it hashes to the slot of its resource, and only the server of that
slot knows of it. So a process that waits listens there too, and a wake-up goes that way (see acquire.lua).

Nothing rests on it. If nobody listens on the server that wakes, because the slot has moved and the server
ended the subscription, or the ACL user may not subscribe, or it is Redis 6, then the wake-up is published
to all servers, where the process listens in any case.
"""

from __future__ import annotations

from lockguard._nodes.wire import Reply, Wire

__all__ = ["Channels"]

CHANNELS_MAX = 256
"""For each connection; those that were waited on longest ago are given up."""

_NOT_HERE = ("MOVED", "CLUSTERDOWN", "ASK", "TRYAGAIN")


class Channels:
    """Kept as long as the wire.

    Args:
        wire: the connection that listens.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._channels: dict[str, None] = {}
        self._refused = False

    def __len__(self) -> int:
        return len(self._channels)

    def add(self, channel: str) -> None:
        """Listen to one more."""
        if self._refused:
            return
        if channel in self._channels:
            del self._channels[channel]
        else:
            self._wire.send_listening(lambda fault: self.refused(fault, channel), "SSUBSCRIBE", channel)
        self._channels[channel] = None
        if len(self._channels) > CHANNELS_MAX:
            oldest = next(iter(self._channels))
            del self._channels[oldest]
            self._wire.send_listening(lambda _: None, "SUNSUBSCRIBE", oldest)

    def forget(self, channel: str) -> None:
        """The server ended it, because the slot moved; it is asked for again by whoever has to wait again."""
        self._channels.pop(channel, None)

    def refused(self, fault: Reply, *channels: str) -> None:
        """The server did not do it; without ``channels`` it is not known for which."""
        for channel in channels or tuple(self._channels):
            self.forget(channel)
        if not str(fault).startswith(_NOT_HERE):
            self._refused = True  # and will not: an older server, or not allowed
