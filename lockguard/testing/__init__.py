"""Real servers, faults and clocks for tests and demonstrations: ``pip install 'lockguard[testing]'``."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("psutil") is None:
    raise ImportError(
        "lockguard.testing needs psutil, which is not installed: pip install 'lockguard[testing]'"
    )

from lockguard.nodes.memory import MemoryStore
from lockguard.testing.binaries import (
    ServerBinary,
    find_postgres,
    find_redis,
    find_system_redis,
    find_valkey,
)
from lockguard.testing.clock import FakeClock
from lockguard.testing.clock_jump import ClockJumpRedis
from lockguard.testing.fault_proxy import DROP, HOLD, PASS, FaultProxy, Flow, Mode
from lockguard.testing.postgres_server import PostgresServer
from lockguard.testing.redis_server import RedisServer, TlsFiles
from lockguard.testing.topologies import ClusterRedis, IndependentRedis, ReplicatedRedis, SentinelRedis
from lockguard.testing.topology_names import TopologyName

__all__ = [
    "DROP",
    "HOLD",
    "PASS",
    "ClockJumpRedis",
    "ClusterRedis",
    "FakeClock",
    "FaultProxy",
    "Flow",
    "IndependentRedis",
    "MemoryStore",
    "Mode",
    "PostgresServer",
    "RedisServer",
    "ReplicatedRedis",
    "SentinelRedis",
    "ServerBinary",
    "TlsFiles",
    "TopologyName",
    "find_postgres",
    "find_redis",
    "find_system_redis",
    "find_valkey",
]
