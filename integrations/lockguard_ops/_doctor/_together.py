"""Servers that belong together: a quorum, a master with its replicas and Sentinels, a cluster."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from lockguard._nodes.link import pairs, text_of
from lockguard._quorum import majority
from lockguard_ops._doctor._findings import Report, Severity, advice
from lockguard_ops._doctor._places import Part, Seen, redis_cli

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from lockguard._namespace import Namespace
    from lockguard._nodes.sentinel import SentinelUrl

__all__ = ["check_members", "check_membership", "check_replicas", "check_sentinel"]

_SENTINELS_MIN = 3
_PROMOTION_MS = 1_000
"""About how long the Sentinels take from their verdict to the new master."""
_HELD_SHARE = 2 / 3
"""A lease that was renewed as late as it may be has this share of its ttl left."""


# --- several independent servers ---


def check_members(members: Sequence[Seen], named: int, report: Report) -> None:
    """Check that enough independent servers answer, and that none counts twice.

    Args:
        members: those that answered.
        named: how many were named.
        report: gets the findings.
    """
    if named > 1 and (members or report.unread):
        _check_identity(members, report)
        _check_number(members, named, report)


async def check_membership(one: Seen, named: int, namespace: Namespace, report: Report) -> None:
    """Check that as many servers are named as decide together, and that this one may vote.

    Raises:
        ConnectionError: the connection ended.
    """
    fields = ("run", "quiet_until_ms", "ttl_max_ms", "nodes")
    known, time = await one.link.ask_all(("HMGET", f"{namespace}:member", *fields), ("TIME",))
    if isinstance(known, list) and isinstance(time, list) and known[0] is not None:
        told = [text_of(value or b"0") for value in known]
        _tell_number(one, int(told[3]), named, namespace, report)
        if named > 1:
            _tell_quarantine(one, told, float(text_of(time[0])) * 1000, report)


def _check_number(members: Sequence[Seen], named: int, report: Report) -> None:
    server = f"Quorum of {named}"
    found = f"{len(members)} of {named} answer, {majority(named)} decide"
    if len(members) < majority(named):
        remedy = advice("start the servers that do not answer")
        report.add("quorum.majority", Severity.ERROR, server, found, remedy)
    else:
        report.add("quorum.majority", Severity.OK, server, found)
    if named % 2 == 0:
        remedy = advice(f"give {named - 1} or {named + 1} servers, the same in every bot")
        report.add("quorum.number", Severity.WARNING, server, f"{named} servers", remedy)


def _check_identity(members: Sequence[Seen], report: Report) -> None:
    by_id: defaultdict[str, list[Seen]] = defaultdict(list)
    for one in members:
        for identity in {one.info.get("run_id", ""), one.info.get("master_replid", "")} - {""}:
            by_id[identity].append(one)
    told = set[tuple[str, ...]]()
    for same in by_id.values():
        names = tuple(one.place.address.name for one in same)
        if len(names) > 1 and names not in told:
            told.add(names)
            found = f"{' and '.join(names)} are one server, or one replicates the other"
            remedy = advice("give each independent server once: a majority needs independent ones")
            report.add("quorum.same_server", Severity.ERROR, same[0].name, found, remedy)


def _tell_number(one: Seen, decide: int, named: int, namespace: Namespace, report: Report) -> None:
    if decide == named > 1:
        report.add("quorum.named", Severity.OK, one.name, f"{decide} servers decide together")
    elif decide > 1 or named == 1:
        told = f"{decide} servers" if decide > 1 else "several servers"
        found = f"{told} decide together here, and {named} {'is' if named == 1 else 'are'} named"
        remedy = advice("name the same servers here and in every bot, with --redis several times")
        if named == 1:
            alone = f"{redis_cli(one.place.address)} DEL {namespace}:member"
            remedy = advice(f"name all of them; if it decides alone by now: {alone}")
        report.add("quorum.named", Severity.ERROR, one.name, found, remedy)


def _tell_quarantine(one: Seen, known: Sequence[str], now_ms: float, report: Report) -> None:
    run, quiet_until, longest, _ = known
    left_ms = min(float(quiet_until) - now_ms, float(longest))
    if one.info.get("run_id", run) != run:
        found = "it was restarted, and is no member again until a bot asks for the next lock"
        remedy = advice("let a bot take a lock, then look again")
    elif left_ms > 0:
        found = f"it gives no vote for another {left_ms / 1000:.1f} s"
        remedy = f"sleep {int(left_ms / 1000) + 1}"
    else:
        return
    report.add("quorum.quarantine", Severity.WARNING, one.name, found, remedy)


# --- replication ---


def check_replicas(all_seen: Sequence[Seen], wanted: int, report: Report) -> None:
    """Check that each replica follows its master, and that masters have the replicas that they need.

    Args:
        all_seen: all servers that answered.
        wanted: how many replicas must have a lock before it counts as granted.
        report: gets the findings.
    """
    for one in all_seen:
        info, part = one.info, one.place.part
        if info.get("role") == "slave" and info.get("master_link_status", "up") != "up":
            master = f"{info.get('master_host')}:{info.get('master_port')}"
            found = f"its link to {master} is {info['master_link_status']}"
            remedy = f"{redis_cli(one.place.address)} INFO replication"
            report.add("replicas.link", Severity.WARNING, one.name, found, remedy)
        connected = one.number("connected_slaves")
        if part in {Part.ALONE, Part.MASTER} and connected is not None and connected < wanted:
            remedy = advice(f"start {wanted} replicas, or leave min_replicas out")
            found = f"{wanted} are wanted, {connected} connected"
            report.add("replicas.wanted", Severity.ERROR, one.name, found, remedy)
        if part in {Part.MASTER, Part.SHARD} and info.get("connected_slaves") == "0":
            host, port = one.place.address.host, one.place.address.port
            how = f"redis-server --replicaof {host} {port}, with masterauth and requirepass"
            if part is Part.SHARD:
                how = f"redis-cli --cluster add-node NEW {host}:{port} --cluster-slave"
            report.add("replicas.none", Severity.WARNING, one.name, "none", advice(how))
    if any(one.place.part is Part.SENTINEL for one in all_seen):
        for one in all_seen:
            if one.place.part is not Part.SENTINEL:
                _check_required(one, report)  # a replica may be the next master


def _check_required(master: Seen, report: Report) -> None:
    needed = master.config.get("min-replicas-to-write")
    if needed is None:
        return
    if needed == "0":
        remedy = f"{redis_cli(master.place.address)} CONFIG SET min-replicas-to-write 1"
        report.add("replicas.required", Severity.WARNING, master.name, "0", remedy)
    else:
        report.add("replicas.required", Severity.OK, master.name, needed)


async def check_sentinel(one: Seen, url: SentinelUrl, ttl: timedelta, report: Report) -> None:
    """Check that the Sentinels can promote a replica, and before the leases end.

    Raises:
        ConnectionError: the connection ended.
    """
    told = pairs(await one.link.ask("SENTINEL", "MASTER", url.service))
    if told:
        _check_sentinel(one, {name: text_of(value) for name, value in told.items()}, url, ttl, report)


def _check_sentinel(
    one: Seen, facts: dict[str, str], url: SentinelUrl, ttl: timedelta, report: Report
) -> None:
    cli, service = redis_cli(one.place.address), url.service
    number, quorum = int(facts.get("num-other-sentinels", "0")) + 1, int(facts.get("quorum", "0"))
    found, severity, remedy = f"{number}, quorum {quorum}", Severity.OK, ""
    if quorum > number:
        severity, remedy = Severity.ERROR, f"{cli} SENTINEL SET {service} quorum {majority(number)}"
        if number == 1:  # with a quorum of 1 it would fail over whenever it alone is cut off
            remedy = advice(f"see that it reaches the others: {cli} SENTINEL CKQUORUM {service}")
    elif number < _SENTINELS_MIN:
        severity = Severity.WARNING
        remedy = advice(f"run {_SENTINELS_MIN} Sentinels, on machines of their own")
    elif quorum < majority(number):
        remedy = f"{cli} SENTINEL SET {service} quorum {majority(number)}"
        severity = Severity.NOTE
    report.add("sentinel.number", severity, one.name, found, remedy)
    if len(url.sentinels) < number:
        remedy = advice("name all of them in the URL: redis+sentinel://host:port,host:port/service")
        report.add(
            "sentinel.named", Severity.NOTE, one.name, f"{len(url.sentinels)} of {number} are named", remedy
        )
    down_ms = int(facts.get("down-after-milliseconds", "0"))
    left_ms = ttl.total_seconds() * 1000 * _HELD_SHARE
    found, severity, remedy = f"{down_ms} ms, ttl {ttl.total_seconds():g} s", Severity.OK, ""
    if down_ms + _PROMOTION_MS > left_ms:
        severity = Severity.WARNING
        better = max(500, int(left_ms) - _PROMOTION_MS)
        remedy = f"{cli} SENTINEL SET {service} down-after-milliseconds {better}"
    report.add("sentinel.down_after", severity, one.name, found, remedy)
