"""Servers that belong together: a quorum, a master with its replicas and Sentinels, a cluster."""

from __future__ import annotations

from collections import defaultdict
from enum import Enum
from typing import TYPE_CHECKING

from lockguard._nodes.link import pairs, text_of
from lockguard._quorum import majority
from lockguard_ops._doctor._findings import Report, Severity, advice
from lockguard_ops._doctor._places import Part, Seen, redis_cli

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from lockguard._namespace import Namespace
    from lockguard._nodes.sentinel import SentinelUrl

__all__ = [
    "Standing",
    "check_identity",
    "check_membership",
    "check_replicas",
    "check_sentinel",
    "check_votes",
]

_SENTINELS_MIN = 3
_PROMOTION_MS = 1_000
"""About how long the Sentinels take from their verdict to the new master."""
_HELD_SHARE = 2 / 3
"""A lease that was renewed as late as it may be has this share of its ttl left."""


# --- several independent servers ---


class Standing(Enum):
    """What one of several independent servers says of its vote."""

    VOTES = "it votes, or does not tell"
    WAITS = "it has to be admitted again, or is in its quarantine"
    LOST = "it was never admitted, as far as it knows, and knows of leases"
    NEW = "it was never admitted, and knows nothing"


async def check_membership(one: Seen, named: int, namespace: Namespace, report: Report) -> Standing:
    """Check that as many servers are named as decide together, and ask whether this one may vote.

    Raises:
        ConnectionError: the connection ended.
    """
    fields = ("run", "quiet_until_ms", "ttl_max_ms", "nodes")
    known, time = await one.link.ask_all(("HMGET", f"{namespace}:member", *fields), ("TIME",))
    if not isinstance(known, list) or not isinstance(time, list):
        return Standing.VOTES  # its rights are told by themselves
    told = [text_of(value or b"0") for value in known[1:]]
    if known[0] is None:
        return Standing.LOST if float(told[1]) else Standing.NEW
    _tell_number(one, int(told[2]), named, namespace, report)
    if named > 1 and _tell_quarantine(one, text_of(known[0]), told, float(text_of(time[0])) * 1000, report):
        return Standing.WAITS
    return Standing.VOTES


def check_votes(
    members: Sequence[Seen], standings: Mapping[str, Standing], named: int, report: Report
) -> None:
    """Check that so many independent servers give a vote that a lock can be acquired.

    Several servers that are all new are admitted at once by the first bot. One that has lost what it knew
    looks like a new one, but beside servers that know something, or that do not answer, it has to wait.

    Args:
        members: those that answered.
        standings: by name, what they said of their votes.
        named: how many were named.
        report: gets the findings.
    """
    if named == 1 or not (members or report.unread):
        return
    if len(standings) == named and all(one is Standing.NEW for one in standings.values()):
        standings = dict.fromkeys(standings, Standing.VOTES)
    for name, standing in standings.items():
        if standing in {Standing.LOST, Standing.NEW}:
            found = "it was never admitted, or has lost what it knew, and gives no vote"
            remedy = advice(
                "let a bot ask for a lock: the server is admitted, and votes as soon as no lease can be left"
                " that it has forgotten"
            )
            report.add("quorum.quarantine", Severity.WARNING, name, found, remedy)
    _check_number(len(members), list(standings.values()).count(Standing.VOTES), named, report)


def _check_number(answer: int, vote: int, named: int, report: Report) -> None:
    server, decide = f"Quorum of {named}", majority(named)
    votes = "" if vote == answer else f"{vote} {'gives' if vote == 1 else 'give'} a vote, "
    found = f"{answer} of {named} answer, {votes}{decide} decide"
    if vote >= decide:
        report.add("quorum.majority", Severity.OK, server, found)
    else:
        remedy = advice("let a bot ask for a lock, wait until the servers vote again, and look again")
        if answer < decide:
            remedy = advice("start the servers that do not answer")
        report.add("quorum.majority", Severity.ERROR, server, found, remedy)
    if named % 2 == 0:
        remedy = advice(f"give {named - 1} or {named + 1} servers, the same in every bot")
        report.add("quorum.number", Severity.WARNING, server, f"{named} servers", remedy)


def check_identity(members: Sequence[Seen], report: Report) -> None:
    """Check that no server counts twice."""
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


def _tell_quarantine(one: Seen, run: str, known: Sequence[str], now_ms: float, report: Report) -> bool:
    """Tell why the server gives no vote, if so; an empty ``run`` was recorded without INFO."""
    quiet_until, longest, _ = known
    left_ms = min(float(quiet_until) - now_ms, float(longest))
    if not run and one.info.get("run_id"):
        found = (
            "it was admitted by a client without INFO, and once gives those that have it no vote for a while"
        )
        remedy = advice("give +info to the users of all clients, and let a bot ask for a lock")
        report.add("quorum.quarantine", Severity.WARNING, one.name, found, remedy)
    if run and one.info.get("run_id", run) != run:
        found = "it was restarted, and is no member again until a bot asks for the next lock"
        remedy = advice("let a bot take a lock, then look again")
    elif left_ms > 0:
        found = f"it gives no vote for another {left_ms / 1000:.1f} s"
        remedy = f"sleep {int(left_ms / 1000) + 1}"
    else:
        return False
    report.add("quorum.quarantine", Severity.WARNING, one.name, found, remedy)
    return True


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
