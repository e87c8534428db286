"""Mistakes in what several servers decide: a quorum, Sentinels, a cluster."""

from __future__ import annotations

from lockguard_lab.sim.planted.mistake import Planted

__all__ = ["SERVERS"]

SERVERS = (
    Planted(
        "a quorum of half",
        "Redlock ports",
        "lockguard/_quorum.py",
        "return nodes // 2 + 1",
        "return max(1, nodes // 2)",
        law="S1",
        topology="quorum-3",
        quick=True,
    ),
    Planted(
        "a node that lost its data votes at once",
        "Redlock without delayed restarts",
        "lockguard/lua/acquire.lua",
        "  if quarantine_ms > 0 then\n    return {3, quarantine_ms}",
        "  if false then\n    return {3, quarantine_ms}",
        law="S1",
        topology="quorum-3",
    ),
    Planted(
        "votes from before and after an admission count together",
        "our own past",
        "lockguard/redlock.py",
        "            won = round_.won and together(last, known)",
        "            won = round_.won",
        law="S1",
        topology="quorum-3",
    ),
    Planted(
        "a minority's grants are not undone",
        "Redlock ports",
        "lockguard/redlock.py",
        "                node.release(request.resource, request.grant)",
        "                pass",
        topology="quorum-3",
    ),
    Planted(
        "nodes that lost the lease do not get it back",
        "Redlock ports",
        "lockguard/redlock.py",
        "                    rejoins.add(asked_again := node.rejoin(grant, age_ms=age_ms))\n"
        "                    asked_again.add_done_callback(rejoins.discard)",
        "                    pass",
        topology="quorum-3",
    ),
    Planted(
        "a renewal that any node grants renews the lease",
        "pottery and other ports of Redlock",
        "lockguard/_quorum.py",
        "    if len(held) >= quorum:",
        "    if len(held) >= 1:",
        law="S",
        topology="quorum-3",
    ),
    Planted(
        "one node that lost the key ends the lease",
        "ports of Redlock that stop at the first refusal",
        "lockguard/_quorum.py",
        "    if len(asked) - (len(extended) - len(held)) < quorum:",
        "    if len(held) < len(extended):",
        law="L7",
        topology="quorum-3",
    ),
    Planted(
        "the deadline of a majority counted from its last answer",
        "aioredlock",
        "lockguard/redlock.py",
        "            deadline = sent_at + trusted_s(request.ttl_ms)",
        "            deadline = self._clock.now() + trusted_s(request.ttl_ms)",
        law="S9",
        topology="quorum-3",
    ),
    Planted(
        "a lease is given back to a node after its release",
        "our own past",
        "lockguard/redlock.py",
        "            current = self._renewing.get(grant.id) is asked and self._clock.now() < proven_until",
        "            current = True",
        topology="quorum-3",
    ),
    Planted(
        "a lease is given back over another one's",
        "recipes that renew by SET",
        "lockguard/lua/rejoin.lua",
        "  return grant == ARGV[1] and 1 or 0\nend",
        "  redis.call('DEL', KEYS[1])\nend",
        law="S6",
        topology="quorum-3",
    ),
    Planted(
        "a lease is given back without what keeps the resource closed after it",
        "our own past",
        "lockguard/lua/rejoin.lua",
        "if closed_ms > 0 then",
        "if false then",
        law="S5",
        topology="quorum-3",
    ),
    Planted(
        "the first Sentinel that answers is believed",
        "redis-py's Sentinel client",
        "lockguard/_nodes/sentinel.py",
        "        latest = max(known, key=lambda state: (state.epoch, state.promoting))",
        "        latest = known[0]",
        topology="sentinel",
    ),
    Planted(
        "an old primary is served for as long as it answers",
        "clients that ask the Sentinels only when they connect",
        "lockguard/_nodes/sentinel.py",
        "                self._connection.drop(cause, unless_to=found)",
        "                del cause",
        topology="sentinel",
    ),
    Planted(
        "a release that a failover lost is not sent again",
        "our own past",
        "lockguard/_nodes/sentinel.py",
        "        for release in self._releases.moved(lambda _: here):",
        "        for release in ():",
        law="S8",
        topology="sentinel",
    ),
    Planted(
        "a release is not sent on to the slot's next shard",
        "our own past",
        "lockguard/_nodes/cluster.py",
        "        for release in self._releases.moved(self._map.endpoint_of):",
        "        for release in ():",
        law="S8",
        topology="cluster",
    ),
    Planted(
        "a release is not redirected",
        "clients that follow MOVED only for whom they answer",
        "lockguard/_nodes/cluster.py",
        "    def _redirected(self, fault: Exception, call: Call) -> bool:\n"
        '        """Send a failed call again where it belongs; '
        'returns whether that was done or is not needed."""\n'
        "        if self._closed:",
        "    def _redirected(self, fault: Exception, call: Call) -> bool:\n"
        '        """Send a failed call again where it belongs; '
        'returns whether that was done or is not needed."""\n'
        "        if self._closed or call.script is RELEASE:",
        law="S8",
        topology="cluster",
    ),
)
