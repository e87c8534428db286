"""Loads the read-only functions for redis-cli into servers that have functions: Redis 7.0 and Valkey."""

from __future__ import annotations

from importlib.resources import files

from lockguard._nodes.cluster import ClusterNode
from lockguard._nodes.standalone import StandaloneNode
from lockguard.errors import NodeRefused
from lockguard.ports import LockNode

__all__ = ["install_functions", "source"]


def source() -> str:
    """The library as Lua, as ``FUNCTION LOAD`` takes it."""
    folder = files("lockguard") / "lua" / "functions"
    return (folder / "lockguard.lua").read_text(encoding="utf-8")


async def install_functions(node: LockNode) -> list[str]:
    """Load the library, in place of an older one, on the server or on each master; returns their names.

    Replicas get it from their master. In a cluster a master that is added later has to be given it.

    Raises:
        NodeRefused: a server has no functions, or refused them.
        NodeError: a server cannot be reached.
        ConfigurationError: a server refused the log-in.
    """
    await node.connect()
    servers = await node.masters() if isinstance(node, ClusterNode) else [node]
    loaded = []
    for server in servers:
        assert isinstance(server, StandaloneNode)  # whatever a URL names is one, or a cluster of them
        await server.connect()
        reply = await server.ask("FUNCTION", "LOAD", "REPLACE", source())
        if isinstance(reply, Exception):
            told = str(reply)
            if "unknown command" in told.lower():
                told = "it has none before Redis 7.0; `lockguard ls` and `lockguard show` do without"
            raise NodeRefused(f"{server.name}: FUNCTION LOAD: {told}", node=server.name)
        loaded.append(server.name)
    return loaded
