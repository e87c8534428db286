"""Finds that a quorum is named in part."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from lockguard._namespace import Namespace
from lockguard._nodes.address import Address, split_url
from lockguard._nodes.member import MemberNode
from lockguard.errors import ConfigurationError, LockguardError
from lockguard.ports import Membership

__all__ = ["require_all_named"]

_INDEPENDENT = ("redis", "rediss", "unix")


async def require_all_named(urls: Sequence[str], *, namespace: Namespace) -> None:
    """Check that the servers do not decide together with others that are not named.

    Each server of a quorum knows how many decide together. What some of them say or do decides nothing: a
    lock that one of them has lost may be held, and a break on one of them frees nothing. The membership is
    that of a namespace: another one on the same servers may be decided by others.

    Raises:
        ConfigurationError: they decide together with others.
    """
    told = await asyncio.gather(*(_membership(url, namespace, nodes=len(urls)) for url in urls))
    known = [membership for membership in told if membership is not None and membership.known]
    # A server that has not been asked for a lock since the library began to record the number has none.
    decide = max((max(membership.nodes, 2) for membership in known), default=1)
    if len(urls) < decide:
        raise ConfigurationError(
            f"{len(urls)} of the {max(m.nodes for m in known) or 'several'} servers that decide together"
            f" {'is' if len(urls) == 1 else 'are'} named, and what some of them say or do decides nothing:"
            " name all, with --redis several times or apart by blanks in LOCKGUARD_REDIS_URL"
            f" (where they decide without the others by now: DEL {namespace}:member on each)"
        )


async def _membership(url: str, namespace: Namespace, *, nodes: int) -> Membership | None:
    """A server's membership; ``None`` if it cannot decide together with others, or does not answer."""
    if split_url(url).scheme not in _INDEPENDENT:
        return None
    inbox = f"{namespace}:inbox:look:{os.getpid()}"  # fits the ACL's pattern
    node = MemberNode(Address.parse(url), inbox=inbox, nodes=nodes, namespace=namespace)
    try:
        await node.connect()
        told = await node.membership()
    except LockguardError:
        return None
    finally:
        await node.aclose()
    return told if isinstance(told, Membership) else None
