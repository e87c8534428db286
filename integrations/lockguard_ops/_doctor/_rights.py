"""What the ACL lets the bot's user do: each command on a scratch key, then each script on a scratch resource.

A script that fails names neither the command nor the rule. So each command is sent by itself too: the server
checks the rights before all else, also on a replica and in a cluster, where it then refuses the write. The
scratch key holds a text for some seconds, so that commands for other types change nothing.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lockguard._lease import GrantId, Resource, Token, new_grant_id, parse_resource
from lockguard._namespace import NAMESPACE, Namespace
from lockguard._nodes.member import MemberNode
from lockguard._nodes.scripted import keys_of
from lockguard._nodes.standalone import StandaloneNode
from lockguard._scripts import INSPECT, REJOIN
from lockguard.errors import ConfigurationError, NodeError
from lockguard.ports import AcquireRequest, Busy, Done, Granted, MaybeExecuted, NotExecuted
from lockguard_ops._doctor._findings import Report, Severity, advice
from lockguard_ops._doctor._places import Part, Place, Seen, redis_cli

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lockguard._nodes.wire import Reply

__all__ = ["REQUIRED", "TRIED", "check_rights", "check_scripts"]

_KEY, _INBOX = "{key}", "{inbox}"
_SCRATCH_MS = 5_000
_TTL_MS = 10_000
_LOCK_DELAY_MS = 1_000
_PATIENCE_S = 10.0
"""A slow link is a finding of its own."""
_NO_SCRIPT = "0" * 40
_NO_CLIENT = "9223372036854775807"
_RESP3 = 3

TRIED: dict[str, tuple[str, ...]] = {
    "SET": (_KEY, "doctor", "PX", str(_SCRATCH_MS)),
    "GET": (_KEY,),
    "EXISTS": (_KEY,),
    "PEXPIRE": (_KEY, str(_SCRATCH_MS)),
    "PTTL": (_KEY,),
    "HSET": (_KEY, "field", "value"),
    "HGET": (_KEY, "field"),
    "HMGET": (_KEY, "field"),
    "HDEL": (_KEY, "field"),
    "HLEN": (_KEY,),
    "HINCRBY": (_KEY, "field", "1"),
    "ZADD": (_KEY, "1", "member"),
    "ZREM": (_KEY, "member"),
    "ZSCORE": (_KEY, "member"),
    "ZRANK": (_KEY, "member"),
    "ZRANGE": (_KEY, "0", "0"),
    "ZREVRANGE": (_KEY, "0", "0"),
    "ZPOPMIN": (_KEY,),
    "ZCARD": (_KEY,),
    "LPUSH": (_KEY, "line"),
    "LPUSHX": (_KEY, "line"),
    "LTRIM": (_KEY, "0", "0"),
    "DEL": (_KEY,),
    "TIME": (),
    "PUBLISH": (_INBOX, "doctor"),
    "SPUBLISH": (_INBOX, "doctor"),
    "EVAL": ("return 1", "0"),
    "EVALSHA": (_NO_SCRIPT, "0"),
}
"""Each command that the scripts call, and those that call the scripts, with harmless arguments."""

_DISPENSABLE = frozenset({"ZRANK", "HDEL", "HLEN", "HINCRBY", "LPUSH", "LPUSHX", "LTRIM", "SPUBLISH"})
"""Commands whose failure the scripts tolerate: the lock is kept all the same."""

REQUIRED = frozenset(TRIED) - _DISPENSABLE
"""Commands without which a script fails."""

_OF_ALL = {
    "script|load": ("SCRIPT", "LOAD", INSPECT.source),
    "client|kill": ("CLIENT", "KILL", "ID", _NO_CLIENT),
}
_OF_CLUSTER = {"cluster|slots": ("CLUSTER", "SLOTS"), "asking": ("ASKING",)}


async def check_rights(
    seen: Seen, report: Report, *, namespace: Namespace = NAMESPACE, waits: bool = False
) -> None:
    """Try each command that a bot needs, and name the rules that are missing.

    Args:
        seen: the server.
        report: gets the findings.
        namespace: the first part of every key.
        waits: whether the bot waits for replicas.

    Raises:
        ConnectionError: the connection ended.
    """
    name = secrets.token_hex(6)
    lock = keys_of(namespace, _scratch(name)).inspect[0]
    inbox = f"{namespace}:inbox:doctor:{name}"
    words = {_KEY: lock, _INBOX: inbox}
    commands = {
        command.lower(): (command, *(words.get(word, word) for word in rest))
        for command, rest in TRIED.items()
    }
    cluster = _OF_CLUSTER if seen.place.mode == "cluster" else {}
    if waits:
        commands["wait"] = ("WAIT", "0", "1")
    replies = await seen.link.ask_all(*commands.values(), *_OF_ALL.values(), *cluster.values())
    needed, spare = set[str](), set[str]()
    for command, reply in zip([*commands, *_OF_ALL, *cluster], replies, strict=True):
        if (rule := _rule(command, reply, namespace)) is None or (command == "spublish" and not cluster):
            continue
        required = (
            command.upper() in {*REQUIRED, "WAIT"} or command in _OF_CLUSTER or not rule.startswith("+")
        )
        (needed if required else spare).add(rule)
    if seen.link.protocol == _RESP3:
        rule = _rule("subscribe", await seen.link.refusal("SUBSCRIBE", inbox), namespace)
        needed |= {rule} if rule is not None else set()
        if cluster:
            refusal = await seen.link.refusal("SSUBSCRIBE", f"{inbox}:{{{name}}}")
            rule = _rule("ssubscribe", refusal, namespace)
            spare |= {rule, "+sunsubscribe"} if rule is not None else set()
    _tell(seen, needed, spare - needed, report)


def _tell(seen: Seen, needed: set[str], spare: set[str], report: Report) -> None:
    user = seen.place.address.username or "default"
    to_user = f"{redis_cli(seen.place.address)} ACL SETUSER {shlex.quote(user)}"
    if needed:
        found = f"user {user} lacks {', '.join(sorted(needed))}"
        report.add("redis.rights", Severity.ERROR, seen.name, found, f"{to_user} {_quoted(needed)}")
    if spare:
        grave = Severity.WARNING if {rule[1:].upper() for rule in spare} & _DISPENSABLE else Severity.NOTE
        found = f"user {user} lacks {', '.join(sorted(spare))}"
        report.add("redis.options", grave, seen.name, found, f"{to_user} {_quoted(spare)}")
    if not needed and not spare:
        report.add("redis.rights", Severity.OK, seen.name, f"user {user} may call every command")


def _quoted(rules: Iterable[str]) -> str:
    return " ".join(shlex.quote(rule) for rule in sorted(rules))


def _rule(command: str, reply: Reply, namespace: Namespace = NAMESPACE) -> str | None:
    """The rule that a refusal asks for; ``None`` if the reply is no refusal of the ACL."""
    if not isinstance(reply, Exception) or not str(reply).startswith("NOPERM"):
        return None
    text = str(reply).lower()
    if "channel" in text:
        return f"&{namespace}:inbox:*"
    if "command" in text and "key" not in text:
        return f"+{command}"
    return f"~{namespace}:*" if re.search(r"\bkeys?\b", text) else f"+{command}"


async def check_scripts(seen: Seen, report: Report, *, namespace: Namespace = NAMESPACE) -> None:
    """Run the scripts on a scratch resource, as a bot would: acquire, wait, renew, ask, release, break.

    The membership of the server is only read, so that a doctor who is told of too few changes nothing.
    """
    place, name = seen.place, secrets.token_hex(6)
    inbox = f"{namespace}:inbox:doctor:{name}"
    node = _node_of(place, inbox, namespace)
    try:
        resource = await _served(seen, name, namespace)
        await node.connect()
        try:
            amiss = await _try_all(node, resource, namespace)
        finally:
            keys = keys_of(namespace, resource)
            await node.ask("DEL", *{*keys.acquire, *keys.break_}, _scratch_member(namespace, resource))
    except (ConfigurationError, NodeError) as exc:
        amiss = [str(exc)]
    finally:
        await node.aclose()
    if amiss and not report.has("redis.rights", seen.name):
        remedy = advice("see the rights that docs/howto/least-privilege.md lists, and the server's log")
        report.add("redis.scripts", Severity.ERROR, seen.name, "; ".join(amiss), remedy)
    elif not amiss:
        report.add(
            "redis.scripts",
            Severity.OK,
            seen.name,
            "acquire, wait, renew, ask, release and break work on a scratch resource",
        )


def _node_of(place: Place, inbox: str, namespace: Namespace) -> StandaloneNode:
    if place.part is Part.MEMBER:
        return MemberNode(
            place.address,
            inbox=inbox,
            namespace=namespace,
            nodes=1,
            connect_timeout_s=_PATIENCE_S,
            reply_timeout_s=_PATIENCE_S,
        )
    return StandaloneNode(
        place.address,
        inbox=inbox,
        namespace=namespace,
        mode=place.mode,
        connect_timeout_s=_PATIENCE_S,
        reply_timeout_s=_PATIENCE_S,
    )


def _scratch(name: str) -> Resource:
    return parse_resource(f"lockguard-doctor:{name}")


async def _served(seen: Seen, name: str, namespace: Namespace) -> Resource:
    """A resource that this server serves: in a cluster, one in a slot of its own."""
    if seen.place.mode != "cluster":
        return _scratch(name)
    for number in range(1_000):
        resource = _scratch(f"{name}-{number}")
        answer = await seen.link.ask("EXISTS", keys_of(namespace, resource).inspect[0])
        if not isinstance(answer, Exception) or not str(answer).startswith("MOVED"):
            return resource
    raise ConfigurationError("it serves no slots")


def _scratch_member(namespace: Namespace, resource: Resource) -> str:
    return f"{keys_of(namespace, resource).inspect[0]}:member"


async def _try_all(node: StandaloneNode, resource: Resource, namespace: Namespace) -> list[str]:
    """Run the scripts; what went wrong, one line each."""
    first, second = new_grant_id(), new_grant_id()
    request = AcquireRequest(resource, first, "lockguard doctor", "doctor", _TTL_MS, history=1)
    amiss: list[str] = []

    async def expect(what: str, vote: asyncio.Future[Any], right: type, **facts: object) -> Any:
        answer = await vote
        if isinstance(answer, NotExecuted | MaybeExecuted):
            amiss.append(str(answer.error))
        elif not isinstance(answer, right) or any(getattr(answer, k) != v for k, v in facts.items()):
            amiss.append(f"{what}: {answer!r:.200}")
        return answer

    granted = await expect("acquire", StandaloneNode.acquire(node, request), Granted)
    if not isinstance(granted, Granted):
        return amiss
    await expect("wait", _wait(node, request, second), Busy)
    await expect("inspect", node.inspect(resource), object, grant=first)
    await expect("settle", node.settle(resource, first, Token(granted.token + 1)), object, found=True)
    await expect("ask", node.request_handover(resource, reason="doctor"), object, found=True)
    await expect("renew", node.extend(resource, first, _TTL_MS), object, held=True, wanted=True)
    await expect("release", node.release(resource, first), object, found=True)
    await expect("acquire", _wait(node, request, second), Granted)
    await expect("break", node.break_(resource, reason="doctor", token=Token(0)), object, grant=second)
    if isinstance(node, MemberNode):
        await expect("membership", node.membership(), object)
        # Not through MemberNode: a new server that has noted a ttl would have to wait before its first vote.
        keys = (*keys_of(namespace, resource).rejoin, _scratch_member(namespace, resource))
        args = (first, granted.token, request.holder, request.operation, _TTL_MS, "", _LOCK_DELAY_MS, 0)
        await expect("rejoin", node.run(REJOIN, _given_back, keys, *args), Done, found=True)
        await expect("release", node.release(resource, first), object, found=True)
    return amiss


def _wait(node: StandaloneNode, request: AcquireRequest, grant: GrantId) -> asyncio.Future[Any]:
    # Not through MemberNode, which would record how many servers decide together.
    return StandaloneNode.acquire(node, replace(request, grant=grant, queue=True))


def _given_back(reply: int) -> Done:
    return Done(found=reply != 0)
