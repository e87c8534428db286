"""What a server reports about itself at log-in, and whether it can keep locks."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lockguard.errors import ConfigurationError, NodeRefused

__all__ = ["ServerFacts", "require"]

_LOG = logging.getLogger("lockguard")

VERSION_MIN = (6, 2)
"""The first version with CLIENT INFO; the scripts need only 5.0."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The facts about one server process; empty if the ACL user may not ask for them.

    Attributes:
        run_id: identifies the process; changes with each start.
        replication_id: shared by a master and its replicas.
        version: the Redis version that the server is compatible with.
        mode: ``standalone``, ``cluster`` or ``sentinel``.
        role: ``master`` or ``slave``.
        master: a replica's master as ``host:port``; empty for a master.
        loading: whether the server is still loading its data.
        evicts: the policy by which a full server drops keys; empty if it drops none.
    """

    run_id: str = ""
    replication_id: str = ""
    version: str = ""
    mode: str = ""
    role: str = ""
    master: str = ""
    loading: bool = False
    evicts: str = ""

    @classmethod
    def parse(cls, info: object) -> ServerFacts:
        """Parse the reply to INFO; anything but ``bytes`` gives empty facts."""
        if not isinstance(info, bytes):
            return cls()
        found = dict(
            line.split(":", 1) for line in info.decode(errors="replace").split("\r\n") if ":" in line
        )
        policy = found.get("maxmemory_policy", "noeviction")
        bounded = found.get("maxmemory", "0") != "0"
        master = f"{found['master_host']}:{found.get('master_port', '')}" if "master_host" in found else ""
        return cls(
            run_id=found.get("run_id", ""),
            replication_id=found.get("master_replid", ""),
            version=found.get("redis_version", ""),
            mode=found.get("redis_mode", found.get("server_mode", "")),
            role=found.get("role", ""),
            master=master,
            loading=found.get("loading", "0") != "0",
            evicts=policy if bounded and policy != "noeviction" else "",
        )


def require(facts: ServerFacts, *, name: str, mode: str) -> None:
    """Refuse a server that cannot keep locks, and log a warning about one that may drop them.

    Args:
        facts: what the server reported; unreported facts are not checked.
        name: the server's name for messages.
        mode: the required mode, ``standalone`` or ``cluster``.

    Raises:
        NodeRefused: the server cannot keep locks now, but may later.
        ConfigurationError: the server can never keep locks.
    """
    if facts.mode and facts.mode != mode:
        raise ConfigurationError(f"Redis at {name} is {_OTHER_MODE[facts.mode]}")
    if facts.version and _number(facts.version) < VERSION_MIN:
        raise ConfigurationError(
            f"Redis at {name} is {facts.version}; lockguard needs {'.'.join(map(str, VERSION_MIN))} or newer"
        )
    if facts.role == "slave" and mode != "cluster":  # a cluster's replica tells the map and its master
        raise NodeRefused(f"Redis at {name} is a replica of {facts.master}; give its master", node=name)
    if facts.loading:
        raise NodeRefused(f"Redis at {name} is still loading its data", node=name)
    if facts.evicts:
        _LOG.warning(
            "Redis at %s drops keys when it is full (maxmemory-policy %s), so leases may end early:"
            " set noeviction, or give locks a server of their own",
            name,
            facts.evicts,
        )


_OTHER_MODE = {
    "standalone": "a single server; write redis:// for it",
    "cluster": "part of a cluster; write redis+cluster:// for it",
    "sentinel": "a Sentinel; write redis+sentinel://host:port/service for what it watches",
}


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
