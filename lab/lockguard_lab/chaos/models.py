"""What a resource's lock and its fence do when calls come one after the other.

The models say what lockguard promises and nothing of how it keeps it; they are read by
:func:`lockguard_lab.chaos.linearizability.check`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from lockguard_lab.chaos.linearizability import Action, State

__all__ = ["Fence", "FencedMutex"]


@dataclass(frozen=True, slots=True)
class FencedMutex:
    """The lock of one resource: a mutex that knows its owner, and whose tokens only grow.

    Its actions:

    ``("acquire", grant, token)``  the lock was free, and ``token`` is above every one before
    ``("confirm", grant)``         ``grant`` holds it: a renewal or a confirmation was answered with yes
    ``("release", grant)``         ``grant`` held it and gave it back
    ``("lapse", grant, token)``    the lease of ``grant`` ended without a release: it expired, was lost, or
                                   its release was not answered; it may happen whenever its holder has
                                   ceased to believe in it
    ``("free",)``                  whoever held it holds it no more: a break, or data that are lost

    Its state is ``(grant or None, last token)``.
    """

    @property
    def initial(self) -> State:
        """Free, without a token."""
        return None, 0

    def step(self, state: State, action: Action) -> State | None:
        """See :class:`~lockguard_lab.chaos.linearizability.Model`."""
        holder, last = cast("tuple[str | None, int]", state)
        match action:
            case ("acquire", grant, int(token)):
                return (grant, token) if holder is None and token > last else None
            case ("confirm", grant):
                return state if holder == grant else None
            case ("release", grant) | ("lapse", grant, _):
                return (None, last) if holder == grant else None
            case ("free",):
                return None, last
        raise ValueError(f"{action!r} is no action of a lock")

    def reads(self, action: Action) -> bool:
        """A confirmation only reads."""
        return action[0] == "confirm"

    def spent(self, state: State, action: Action) -> bool:
        """A lease that has ended does not end again, and none is granted with a token of before."""
        holder, last = cast("tuple[str | None, int]", state)
        match action:
            case ("lapse", grant, int(token)):
                return holder != grant and token <= last
            case ("acquire", _, int(token)):
                return token <= last
        return False


@dataclass(frozen=True, slots=True)
class Fence:
    """The fence of one resource in Postgres: at any time the writes of at most one token are accepted.

    Its actions:

    ``("seal", token)``   ``token`` is above every one before, and is in force from now on
    ``("write", token)``  a write that carries ``token`` committed: it is in force and was not closed
    ``("close", token)``  its writes are accepted no more; nothing if another is in force
    ``("break",)``        whichever is in force is so no more

    Its state is ``(token, whether it is open)``.
    """

    @property
    def initial(self) -> State:
        """Nothing is in force."""
        return 0, False

    def step(self, state: State, action: Action) -> State | None:
        """See :class:`~lockguard_lab.chaos.linearizability.Model`."""
        current, is_open = cast("tuple[int, bool]", state)
        match action:
            case ("seal", int(token)):
                return (token, True) if token > current else None
            case ("write", int(token)):
                return state if is_open and token == current else None
            case ("close", int(token)):
                return (current, False) if token == current else state
            case ("break",):
                return current, False
        raise ValueError(f"{action!r} is no action of a fence")

    def reads(self, action: Action) -> bool:
        """A write changes rows, and nothing of the fence."""
        return action[0] == "write"

    def spent(self, state: State, action: Action) -> bool:
        """A token below the one in force is never in force again, nor is one that was closed."""
        current, is_open = cast("tuple[int, bool]", state)
        match action:
            case ("seal", int(token)):
                return token <= current
            case ("write" | "close", int(token)):
                return token < current or (token == current and not is_open)
        return False
