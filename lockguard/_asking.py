"""Asking a node about a lease, so that a mistake of the node ends no more than its own vote.

A node may be the user's own, and one timer renews all leases of a guard. If what a node raises came through,
the timer would end with it: no lease would be renewed any more, and no body cut when its lease is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from lockguard.errors import NodeUnknown
from lockguard.ports import (
    CheckableNode,
    Done,
    Extended,
    Inspection,
    LockNode,
    MaybeExecuted,
    NotExecuted,
    NoVote,
    QuorumNode,
)

if TYPE_CHECKING:
    from asyncio import Future

    from lockguard._lease import Grant, Resource

__all__ = ["Asked", "AskedOfSeveral"]

T = TypeVar("T")

_LOG = logging.getLogger("lockguard")


class Asked:
    """One node, as a holder asks it. What it raises, and what is no vote, is no answer, and is logged once.

    Args:
        node: the node.
    """

    def __init__(self, node: LockNode) -> None:
        self._node = node
        # A node of the user's own may have been written before there was a check.
        self._checkable = node if isinstance(node, CheckableNode) else None
        self._told: set[str] = set()

    def extend(self, grant: Grant) -> Future[Extended | NoVote]:
        """Renew."""
        ask = partial(self._node.extend, grant.resource, grant.id, grant.ttl_ms, seal=grant.seal)
        return self._vote("extend", Extended, ask)

    def check(self, grant: Grant) -> Future[Extended | NoVote]:
        """Whether the grant holds its lock there."""
        if self._checkable is None:
            return self.extend(grant)
        ask = partial(self._checkable.still_holds, grant.resource, grant.id)
        return self._vote("still_holds", Extended, ask)

    def inspect(self, resource: Resource) -> Future[Inspection | NoVote]:
        """All that it knows of the resource."""
        return self._vote("inspect", Inspection, partial(self._node.inspect, resource))

    def _vote(self, method: str, kind: type[T], ask: Callable[[], Future[T | NoVote]]) -> Future[T | NoVote]:
        try:
            asked: Any = ask()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:  # noqa: BLE001 - also a CancelledError: nothing here was cancelled
            return self._no_vote(method, exc)
        if not asyncio.isfuture(asked):
            if inspect.iscoroutine(asked):
                asked.close()
            return self._no_vote(method, TypeError(f"it gave {type(asked).__name__} in place of a future"))
        asked.add_done_callback(partial(self._look_at, method, kind))
        return asked

    def _look_at(self, method: str, kind: type[object], asked: Future[Any]) -> None:
        if asked.cancelled():
            return
        if (failure := asked.exception()) is not None:
            self._tell(method, failure)
        elif not isinstance(vote := asked.result(), (kind, NotExecuted, MaybeExecuted)):
            self._tell(method, TypeError(f"it gave {type(vote).__name__} in place of a vote"))

    def _no_vote(self, method: str, failure: BaseException) -> Future[Any]:
        self._tell(method, failure)
        text = f"{self._node.name}: {method}() failed: {type(failure).__name__}: {failure}"
        answer: Future[Any] = asyncio.get_running_loop().create_future()
        answer.set_result(MaybeExecuted(NodeUnknown(text, node=self._node.name)))
        return answer

    def _tell(self, method: str, failure: BaseException) -> None:
        if method in self._told:
            return
        self._told.add(method)
        with contextlib.suppress(Exception):  # a logging filter may be what failed
            _LOG.error(
                "%s() of the node %s failed; it counts as a node that did not answer (told once)",
                method,
                self._node.name,
                exc_info=failure,
            )


class AskedOfSeveral(Asked):
    """One node of several that decide together.

    Args:
        node: the node.
    """

    def __init__(self, node: QuorumNode) -> None:
        super().__init__(node)
        self._member = node

    def rejoin(self, grant: Grant, *, age_ms: int) -> Future[Done | NoVote]:
        """Give the lock to a grant that holds it on other nodes."""
        return self._vote("rejoin", Done, partial(self._member.rejoin, grant, age_ms=age_ms))
