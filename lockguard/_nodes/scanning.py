"""Finds the resources that are in use among all keys of a server, in steps that are short for it.

Three of a resource's keys say that it is in use: the lock, ``:queue`` and ``:tenure``. One pattern finds them
and none of those that stay for days; see docs/reference/redis-keys.md.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from lockguard._lease import Resource, parse_resource
from lockguard._namespace import Namespace
from lockguard._nodes.remedies import with_rights
from lockguard._nodes.scripted import not_connected
from lockguard._nodes.wire import Cut, NotSent
from lockguard.errors import ConfigurationError, NodeRefused, NodeUnknown

__all__ = ["match_for", "scan"]

_STEP = 500
"""Keys that the server looks at in one step, some tenths of a millisecond."""

_SPECIAL = re.compile(r"[\\*?\[\]^]")


def match_for(namespace: Namespace, prefix: str) -> str:
    """The pattern, as Redis reads it, of the keys that say that a resource is in use."""
    return f"{_escaped(namespace)}:{{{_escaped(prefix)}*[}}e]"


async def scan(
    ask: Callable[..., Awaitable[Any]], *, name: str, namespace: Namespace, prefix: str
) -> AsyncIterator[list[Resource]]:
    """The resources in use on one server whose name begins with ``prefix``, step by step.

    Args:
        ask: sends a command to the server; its answer may be an exception.
        name: the server's name for errors.
        namespace: the first part of every key.
        prefix: what the resources' names begin with.

    Raises:
        NodeUnknown: the connection was lost.
        NodeRefused: the server refused a step, for example to a user without the right to SCAN.
    """
    named = re.compile(rb"%b:\{([^{}]+)\}(?::queue|:tenure)?" % re.escape(namespace.encode()))
    match, cursor = match_for(namespace, prefix), 0
    while True:
        reply = await ask("SCAN", cursor, "MATCH", match, "COUNT", _STEP)
        if isinstance(reply, Exception):
            if isinstance(reply, Cut):
                raise NodeUnknown(f"{name}: SCAN: {reply}", node=name)
            if isinstance(reply, NotSent):
                raise NodeRefused(not_connected(name, reply), node=name)
            raise NodeRefused(f"{name}: {with_rights('SCAN', str(reply), 'a viewer')}", node=name)
        cursor = int(reply[0])
        found = []
        for key in reply[1]:
            if (parts := named.fullmatch(key)) is not None:
                with suppress(UnicodeDecodeError, ConfigurationError):  # such a name is none of lockguard's
                    found.append(parse_resource(parts[1].decode()))
        if found:
            yield found
        if not cursor:
            return


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", text)
