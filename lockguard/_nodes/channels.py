"""The shard channels that one connection subscribes to.

In a cluster, PUBLISH reaches every server, and each server forwards it to every connection of the waiting
process. A shard channel hashes to the slot of its resource and exists only on the server of that slot. So a
waiting process also subscribes to the shard channel, and wake-ups are sent there first (see acquire.lua).

This is only an optimisation. If the waking server has no subscriber, because the slot has moved and the
server ended the subscription, or the ACL user may not subscribe, or the server is Redis 6, the wake-up is
published to all servers, where the process always listens.
"""

from __future__ import annotations

from lockguard._nodes.wire import Reply, Wire

__all__ = ["Channels"]

CHANNELS_MAX = 256
"""The limit per connection; beyond it, the channels waited on least recently are dropped."""

_NOT_HERE = ("MOVED", "CLUSTERDOWN", "ASK", "TRYAGAIN")


class Channels:
    """The shard subscriptions of one connection; they end with it.

    Args:
        wire: the connection that subscribes.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._channels: dict[str, None] = {}
        self._refused = False

    def __len__(self) -> int:
        return len(self._channels)

    def add(self, channel: str) -> None:
        """Subscribe to a channel, or mark it as used just now."""
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
        """Note that the server ended a subscription as the slot moved; the next waiter subscribes again."""
        self._channels.pop(channel, None)

    def refused(self, fault: Reply, *channels: str) -> None:
        """Note that the server refused a subscription; no ``channels`` means that it is unknown which."""
        for channel in channels or tuple(self._channels):
            self.forget(channel)
        if not str(fault).startswith(_NOT_HERE):
            self._refused = True  # permanently: the server is too old or the ACL forbids it
