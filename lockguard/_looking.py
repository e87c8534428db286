"""What an operator asks of the locks: the state of one resource, of all in use, and the history of one.

It reads and changes nothing. With several nodes a majority decides what is held, as for a single resource:
all of them are asked about a name that one shows.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from lockguard._history import HistoryEntry, merged, read_lines
from lockguard._quorum import described, majority, prevailing
from lockguard.errors import ConfigurationError, NodeError, QuorumUnavailable
from lockguard.ports import Inspection, NoVote, ReadableNode
from lockguard.text import kind_of

if TYPE_CHECKING:
    from lockguard._lease import Resource
    from lockguard._locks import Locks
    from lockguard.ports import LockNode

__all__ = [
    "PartlyRead",
    "checked_limit",
    "checked_pattern",
    "history_of",
    "inspect",
    "readable",
    "unasked",
    "used",
]

_TOGETHER = 100
"""Resources that are asked about at a time: one write to each node."""

_LINES_MAX = 22_000
"""As many as the longest history has."""

_WILD = re.compile(r"[*?\[]")


class PartlyRead(QuorumUnavailable):
    """Some resources could not be read. All others were told before."""


def checked_pattern(pattern: object) -> str:
    """A pattern of resource names.

    Raises:
        ConfigurationError: it is not text, or empty.
    """
    if not isinstance(pattern, str):
        raise ConfigurationError(f"the pattern is {kind_of(pattern)}; write text, such as 'binance:*'")
    if not pattern:
        raise ConfigurationError("the pattern is empty and matches nothing; write '*' for every resource")
    return pattern


def checked_limit(limit: object) -> int:
    """How many lines of a history to read.

    Raises:
        ConfigurationError: it is no whole number from 1 to 22,000.
    """
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise ConfigurationError(f"limit= is {kind_of(limit)}; give a number of entries")
    if not 1 <= limit <= _LINES_MAX:
        raise ConfigurationError(f"limit={limit} cannot work; give 1 to {_LINES_MAX} entries")
    return limit


def readable(nodes: Sequence[LockNode]) -> list[ReadableNode]:
    """The nodes, if all can be read as a whole.

    Raises:
        ConfigurationError: one cannot.
    """
    found: list[ReadableNode] = []
    for node in nodes:
        if not isinstance(node, ReadableNode):
            raise ConfigurationError(
                f"the node {node.name} cannot be read as a whole: {type(node).__name__} lacks names() or"
                " history(), see lockguard.ports.ReadableNode"
            )
        found.append(node)
    return found


async def inspect(locks: Locks, resource: Resource) -> Inspection:
    """The state of one resource, see :meth:`LockGuard.inspect`.

    Raises:
        QuorumUnavailable: too few nodes answered to say.
    """
    votes = await locks.ask_all(lambda node: node.inspect(resource))
    seen = [vote for vote in votes if isinstance(vote, Inspection)]
    found = prevailing(seen, nodes=len(votes)) if seen else None
    if found is None or (len(seen) < majority(len(votes)) and not found.held):
        raise unasked(locks, resource, votes)  # those that did not answer may hold it
    return found


async def used(locks: Locks, pattern: str) -> AsyncIterator[Inspection]:
    """The resources in use whose name matches ``pattern``, see :meth:`LockGuard.list`.

    Raises:
        PartlyRead: one could not be read, such as a key that something else wrote. It hides no other one.
        QuorumUnavailable: too few nodes answered to say.
    """
    matches = re.compile(fnmatch.translate(pattern)).match
    wild = _WILD.search(pattern)
    known: set[Resource] = set()
    unread: list[QuorumUnavailable] = []
    async for names in _names(locks, pattern[: wild.start()] if wild else pattern):
        new = [name for name in dict.fromkeys(names) if name not in known and matches(name)]
        known.update(new)
        for at in range(0, len(new), _TOGETHER):
            asked = [inspect(locks, name) for name in new[at : at + _TOGETHER]]
            for found in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(found, QuorumUnavailable):
                    unread.append(found)
                elif isinstance(found, BaseException):
                    raise found
                elif found.held or found.waiters or found.closed_ms:
                    yield found
    if unread:
        first = unread[0]
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        error = PartlyRead if len(unread) < len(known) else QuorumUnavailable
        raise error(f"{first.resource}{more}: {first}", resource=str(first.resource), votes=first.votes)


async def _names(locks: Locks, prefix: str) -> AsyncIterator[list[Resource]]:
    """What any node shows, in steps that all take together; a majority has to show all that it has.

    Whatever a majority holds is on at least one node of any majority.
    """
    nodes = readable(locks.nodes)
    scans = {node.name: node.names(prefix) for node in nodes}
    failed: dict[str, str] = {}
    while scans:
        steps = await asyncio.gather(*(anext(scan) for scan in scans.values()), return_exceptions=True)
        found: list[Resource] = []
        for name, step in zip(list(scans), steps, strict=True):
            if isinstance(step, StopAsyncIteration):
                del scans[name]
            elif isinstance(step, NodeError):
                failed[name] = str(step)
                del scans[name]
            elif isinstance(step, BaseException):
                raise step
            else:
                found += step
        if len(nodes) - len(failed) < majority(len(nodes)):
            raise QuorumUnavailable("; ".join(failed.values()), resource=f"{prefix}*", votes=failed)
        if found:
            yield found


async def history_of(locks: Locks, resource: Resource, limit: int) -> tuple[HistoryEntry, ...]:
    """The newest entries of a resource's history, newest first, see :meth:`LockGuard.history`.

    Raises:
        QuorumUnavailable: too few nodes answered.
    """
    readable(locks.nodes)
    votes: list[Any] = await locks.ask_all(lambda node: node.history(resource, limit))  # type: ignore[attr-defined]
    told = [read_lines(vote) for vote in votes if isinstance(vote, tuple)]
    if len(told) < majority(len(votes)):
        raise unasked(locks, resource, votes)
    return tuple((merged(told) if len(votes) > 1 else told[0])[:limit])


def unasked(locks: Locks, resource: str, votes: Sequence[Any]) -> QuorumUnavailable:
    """The error that says why too few nodes answered."""
    names = [node.name for node in locks.nodes]
    told = {name: described(vote) for name, vote in zip(names, votes, strict=True)}
    # The answers of a few decide nothing, and "broken" or "inspection" would read as if they did.
    unanswered = (described(vote) for vote in votes if isinstance(vote, NoVote))
    return QuorumUnavailable("; ".join(unanswered), resource=resource, votes=told)
