"""Which ways to lock there are, and which of them can run here."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from lockguard_lab.bench.holders.ways import Way
from lockguard_lab.bench.holders.ways_etcd import EtcdRevision, EtcdWay
from lockguard_lab.bench.holders.ways_postgres import (
    AdvisorySession,
    AdvisorySessionPool,
    AdvisoryTransaction,
    ForUpdate,
    ForUpdateBounded,
)
from lockguard_lab.bench.holders.ways_redis import (
    AioredlockWay,
    CoredisWay,
    LockguardPool,
    LockguardQuorum,
    LockguardToken,
    LockguardUnfenced,
    PotteryWay,
    PythonRedisLockWay,
    RedisPyWay,
)

__all__ = ["EVERY", "WAYS", "absent"]

WAYS: Mapping[str, type[Way]] = {
    way.name: way
    for way in (
        LockguardPool,
        LockguardToken,
        LockguardUnfenced,
        RedisPyWay,
        PythonRedisLockWay,
        PotteryWay,
        CoredisWay,
        AioredlockWay,
        AdvisorySession,
        AdvisorySessionPool,
        AdvisoryTransaction,
        ForUpdate,
        ForUpdateBounded,
        EtcdWay,
        EtcdRevision,
    )
}
"""Those of the tables of stopped holders, by name, in their order."""

EVERY: Mapping[str, type[Way]] = {**WAYS, LockguardQuorum.name: LockguardQuorum}
"""These, and those that need more servers than one of each."""

_NOT_INSTALLED = "not installed: pip install 'lockguard[bench]'"


def absent(names: Sequence[str]) -> dict[str, str]:
    """Those of ``names`` that cannot run here, each with the reason."""
    why = {
        way.name: _NOT_INSTALLED
        for way, package in (
            (CoredisWay, "coredis"),
            (PotteryWay, "pottery"),
            (PythonRedisLockWay, "redis_lock"),
        )
        if find_spec(package) is None
    }
    if find_spec("aioredlock") is None:
        why[AioredlockWay.name] = "not installed: pip install aioredlock"
    elif find_spec("distutils") is None:
        why[AioredlockWay.name] = "it needs distutils, which Python 3.12 removed"
    if shutil.which("etcd") is None:
        why |= dict.fromkeys((EtcdWay.name, EtcdRevision.name), "no etcd on PATH: apt install etcd-server")
    return {name: why[name] for name in names if name in why}
