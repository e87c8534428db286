"""One Redis server, whatever its part: version, memory, persistence, limits and keys."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from lockguard._nodes.link import text_of
from lockguard._nodes.login import VERSION_MIN
from lockguard.text import printable
from lockguard_ops._doctor._findings import Report, Severity, advice
from lockguard_ops._doctor._places import Part, Seen, redis_cli

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from lockguard._namespace import Namespace

__all__ = ["check_keys", "check_server"]

_FULL_SHARE = 0.9
_CLIENTS_SHARE = 0.8
_TIMEOUT_S = 60
_RESP3 = 3
_KEYS_MAX = 100_000
_PAGE = 500
_SHOWN = 5
_LASTING = "never expires"
_LASTING_MS = 600_000
"""Longer than any holder leaves between two renewals."""

_TYPES = {
    "": "hash",
    "token": "string",
    "seal": "string",
    "queue": "zset",
    "inboxes": "zset",
    "waiting": "hash",
    "next": "string",
    "tenure": "string",
    "history": "list",
}
"""The type of each key of a resource, by its ending; see docs/reference/redis-keys.md."""


def check_server(seen: Seen, ttl: timedelta, report: Report) -> None:
    """Judge what INFO and CONFIG GET said."""
    _tell_unread(seen, report)
    if not _fits(seen, report) or seen.place.part is Part.SENTINEL:
        return
    _check_memory(seen, report)
    _check_persistence(seen, report)
    _check_writes(seen, report)
    _check_clients(seen, ttl, report)
    _check_line(seen, report)


def _tell_unread(seen: Seen, report: Report) -> None:
    if seen.place.part is Part.SENTINEL:
        return
    user = seen.place.address.username or "default"
    if not seen.info:
        grave = Severity.WARNING if seen.place.part is Part.MEMBER else Severity.NOTE
        found = "refused: version, role, memory and persistence are not known"
        remedy = f"{redis_cli(seen.place.address)} ACL SETUSER {shlex.quote(user)} +info"
        report.add("redis.info", grave, seen.name, found, remedy)
    if not seen.config:
        found = "refused: save, min-replicas-to-write and timeout are not known"
        remedy = advice("ask with the URL of an administrator, or look at the provider's page of settings")
        report.add("redis.config", Severity.NOTE, seen.name, found, remedy)


def _fits(seen: Seen, report: Report) -> bool:
    """Whether it is the kind of server that its part asks for."""
    place, info = seen.place, seen.info
    mode = info.get("redis_mode", info.get("server_mode", ""))
    where = f"{place.address.host}:{place.address.port}"
    if mode and mode != place.mode:
        scheme = {"cluster": f"redis+cluster://{where}", "sentinel": f"redis+sentinel://{where}/SERVICE"}
        remedy = advice(f"write {scheme.get(mode, f'redis://{where}')} for it, with its user and password")
        report.add("redis.kind", Severity.ERROR, seen.name, f"it runs in mode {mode}", remedy)
        return False
    version = info.get("redis_version", "")
    if version:
        number = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        own = info.get("valkey_version")
        told = f"Valkey {own} (as Redis {version})" if own else f"Redis {version}"
        old = number < VERSION_MIN
        severity, remedy = (Severity.ERROR, advice("upgrade the server")) if old else (Severity.OK, "")
        report.add("redis.version", severity, seen.name, told, remedy)
    if place.part.keeps_locks and info.get("role") == "slave":
        master = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        remedy = advice(f"give its master: redis://{master}, with its user and password")
        report.add("redis.replica", Severity.ERROR, seen.name, f"it is a replica of {master}", remedy)
        return False
    return True


def _check_memory(seen: Seen, report: Report) -> None:
    policy = seen.info.get("maxmemory_policy") or seen.config.get("maxmemory-policy", "")
    limit, used = seen.number("maxmemory") or 0, seen.number("used_memory") or 0
    if policy:
        severity, remedy = Severity.OK, ""
        found = f"{policy}, maxmemory {_size(limit) if limit else 'not set'}"
        if policy != "noeviction":
            severity = Severity.ERROR if limit else Severity.NOTE
            remedy = f"{redis_cli(seen.place.address)} CONFIG SET maxmemory-policy noeviction"
        report.add("redis.eviction", severity, seen.name, found, remedy)
    if limit and used > _FULL_SHARE * limit:
        found = f"{_size(used)} of {_size(limit)} are used"
        remedy = f"{redis_cli(seen.place.address)} CONFIG SET maxmemory {max(2 * limit, 2 * used)}"
        report.add("redis.memory", Severity.WARNING, seen.name, found, remedy)


def _check_persistence(seen: Seen, report: Report) -> None:
    if "aof_enabled" not in seen.info:
        return
    part, cli = seen.place.part, redis_cli(seen.place.address)
    fsync = seen.config.get("appendfsync", "")
    if seen.info["aof_enabled"] != "0":
        found = f"appendonly yes{', appendfsync ' + fsync if fsync else ''}"
        if fsync == "no":
            remedy = f"{cli} CONFIG SET appendfsync everysec"
            report.add(
                "redis.persistence",
                Severity.WARNING,
                seen.name,
                f"{found}: locks of half a minute may be lost",
                remedy,
            )
        else:
            lost = "" if fsync == "always" else ": a crash of the machine forgets the last second"
            report.add("redis.persistence", Severity.OK, seen.name, found + lost)
        return
    save = seen.config.get("save")
    kept = "snapshots only" if save else "nothing is written to disk" if save == "" else "appendonly no"
    what = {
        Part.MEMBER: "after a restart it gives no vote for the longest ttl, and if all restart at once,"
        " every lock is forgotten",
        Part.REPLICA: "promoted after a restart, it has forgotten every lock",
    }.get(part, "a restart forgets every lock, and held ones are granted again")
    remedy = f"{cli} CONFIG SET appendonly yes"
    report.add("redis.persistence", Severity.WARNING, seen.name, f"{kept}: {what}", remedy)


def _check_writes(seen: Seen, report: Report) -> None:
    info, cli = seen.info, redis_cli(seen.place.address)
    if info.get("aof_last_write_status", "ok") != "ok":
        remedy = advice("make room on the disk of the append-only file, then look at the server's log")
        report.add(
            "redis.writes", Severity.ERROR, seen.name, "the last write of its append-only file failed", remedy
        )
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        found = "its last snapshot failed, and stop-writes-on-bgsave-error may refuse writes"
        report.add("redis.writes", Severity.ERROR, seen.name, found, f"{cli} BGSAVE")
    if info.get("loading", "0") != "0":
        report.add("redis.writes", Severity.ERROR, seen.name, "it is loading its data", f"{cli} PING")
    needed = seen.config.get("min-replicas-to-write", "0")
    good = seen.number("min_slaves_good_slaves")
    if seen.place.part.keeps_locks and good is not None and needed.isdigit() and good < int(needed):
        found = f"min-replicas-to-write {needed}, and {good} replicas are good enough"
        remedy = advice(f"bring the replicas back: {cli} INFO replication")
        report.add("redis.writes", Severity.ERROR, seen.name, found, remedy)


def _check_clients(seen: Seen, ttl: timedelta, report: Report) -> None:
    cli = redis_cli(seen.place.address)
    timeout = seen.config.get("timeout", "0")
    if timeout.isdigit() and 0 < int(timeout) < max(_TIMEOUT_S, ttl.total_seconds()):
        report.add(
            "redis.timeout", Severity.WARNING, seen.name, f"{timeout} s", f"{cli} CONFIG SET timeout 0"
        )
    told = seen.info.get("maxclients") or seen.config.get("maxclients", "")
    now = seen.number("connected_clients")
    if told.isdigit() and now is not None and now > _CLIENTS_SHARE * int(told):
        found = f"{now} of at most {told} are connected"
        remedy = f"{cli} CONFIG SET maxclients {2 * int(told)}"
        report.add("redis.clients", Severity.WARNING, seen.name, found, remedy)


def _check_line(seen: Seen, report: Report) -> None:
    address = seen.place.address
    if seen.link.protocol < _RESP3:
        remedy = advice("leave ?protocol=2 out of the URL; a server or proxy without HELLO cannot do better")
        report.add("redis.protocol", Severity.NOTE, seen.name, f"RESP{seen.link.protocol}", remedy)
    local = address.path or address.host in {"localhost", "::1"} or address.host.startswith("127.")
    if address.tls is None and not local:
        remedy = advice(f"write rediss:// for {address.name}, where it listens with TLS")
        report.add("redis.tls", Severity.NOTE, seen.name, "no TLS to another machine", remedy)


async def check_keys(seen: Seen, namespace: Namespace, report: Report) -> None:
    """Look at the type and the expiry of every lock key, in steps that keep no other client waiting.

    Raises:
        ConnectionError: the connection ended.
    """
    cursor, looked, wrong = b"0", 0, dict[str, str]()
    while True:
        page = await seen.link.ask("SCAN", cursor, "MATCH", f"{namespace}:{{*}}*", "COUNT", _PAGE)
        if isinstance(page, Exception):
            what = "SCAN is refused: other types, and locks that never expire, were not looked for"
            remedy = advice("ask with the URL of an administrator")
            report.add("redis.keys", Severity.NOTE, seen.name, what, remedy)
            return
        cursor, keys = page
        wrong |= await _wrong_ones(seen, keys)
        looked += len(keys)
        if int(cursor) == 0 or looked >= _KEYS_MAX:
            break
    more = "" if int(cursor) == 0 else f"; only the first {looked} were looked at"
    if not wrong:
        report.add("redis.keys", Severity.OK, seen.name, f"{looked} of lockguard's{more}")
        return
    cli = redis_cli(seen.place.address)
    told = ", ".join(f"{name} {what}" for name, what in list(wrong.items())[:_SHOWN])
    rest = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    shown = all(name == printable(name) for name in list(wrong)[:_SHOWN])
    remedy = _to_mend(cli, dict(list(wrong.items())[:_SHOWN]))
    remedy = remedy if shown else advice(f"{cli}: mend these keys by their bytes")
    report.add("redis.keys", Severity.ERROR, seen.name, f"{told}{rest}{more}", remedy)


def _to_mend(cli: str, wrong: Mapping[str, str]) -> str:
    # Not DEL for a lock: it may have a holder, whose next renewal sets the expiry again.
    lasting = [
        f"{cli} PEXPIRE {shlex.quote(name)} {_LASTING_MS}" for name, what in wrong.items() if what == _LASTING
    ]
    others = [shlex.quote(name) for name, what in wrong.items() if what != _LASTING]
    return " && ".join([*([f"{cli} DEL {' '.join(others)}"] if others else []), *lasting])


async def _wrong_ones(seen: Seen, keys: list[bytes]) -> Mapping[str, str]:
    if not keys:
        return {}
    asked = [word for key in keys for word in (("TYPE", key), ("PTTL", key))]
    told = await seen.link.ask_all(*asked)
    wrong = {}
    for key, kind, left in zip(keys, told[::2], told[1::2], strict=True):
        name = text_of(key)
        due = _TYPES.get(name.rpartition("}")[2].removeprefix(":"))
        found = text_of(kind)
        if due is not None and not isinstance(kind, Exception) and found not in {due, "none"}:
            wrong[name] = f"is a {found} and not a {due}"
        elif due is not None and left == -1:
            wrong[name] = _LASTING
    return wrong


def _size(octets: int) -> str:
    return f"{octets / 1_048_576:,.1f} MB"
