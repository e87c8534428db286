"""A break: the end of a lease by force, in the fence first and then on every node.

Were the lock freed first, its holder could still write beside its successor.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from lockguard._lease import Grant, GrantId, Resource, Token, new_grant_id
from lockguard._looking import unasked
from lockguard._quorum import below_next, majority, may_be_most, thrown_out, vote_of
from lockguard._renewal import end_here
from lockguard.errors import ChangedHands, ConfigurationError, LossReason, QuorumUnavailable
from lockguard.ports import Broken, ComparingFence, Inspection, NotExecuted, NoVote, Outrun
from lockguard.text import printable

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Iterable, Sequence

    from lockguard._core import Core
    from lockguard.ports import LockNode

__all__ = ["break_lock", "changed_hands", "checked_grant", "token_of"]

_GRANT = re.compile(r"[0-9a-f]{32}")


def checked_grant(grant: object) -> str | None:
    """The grant that a caller expects, as text: an id, empty for a free lock, ``None`` for any.

    Raises:
        ConfigurationError: it is none of these.
    """
    if grant is None or (isinstance(grant, str) and (not grant or _GRANT.fullmatch(grant))):
        return grant
    raise ConfigurationError(
        "grant= is no grant's id, which has 32 hexadecimal digits: `lockguard show` and inspect() tell it"
    )


def token_of(found: Inspection, grant: str) -> Token:
    """The token of ``grant``; 0 where the lock is free.

    Raises:
        ChangedHands: another grant holds the lock.
    """
    if not found.held:
        return Token(0)
    if found.grant != grant:
        raise changed_hands(found.resource, found.grant, found.holder)
    return Token(found.token)


async def break_lock(core: Core, resource: Resource, reason: str, grant: str | None, token: Token) -> Broken:
    """Break a lock; with ``grant`` only if that grant, or none if it is empty, holds it.

    Args:
        core: the guard's.
        resource: what to free.
        reason: why.
        grant: what is expected; ``None`` for anything.
        token: the token of ``grant``; 0 if it is not known.

    Raises:
        ChangedHands: another grant holds it.
        FenceUnavailable: the fence could not be raised.
        QuorumUnavailable: too few nodes could be asked.
        ConfigurationError: the fence cannot compare grants.
    """
    # Before anything is freed: a successor must not be cut.
    held_here = [each for each in core.keeper.grants_on(resource) if grant is None or each == grant]
    outrun = False
    if core.fence is None:
        token = Token(0)
    elif grant is None:
        token = await core.fence.break_(resource, reason=reason, within=core.fence_within)
        _end_all(held_here)
    else:
        answer = await _break_grant(core, resource, reason, grant, token)
        outrun, token = isinstance(answer, Outrun), answer.current if isinstance(answer, Outrun) else answer
        _end_all(held_here)  # in any case the fence accepts nothing of it any more
    expected = {} if grant is None else {"grant": grant}  # a node of the user's own may not know it
    # A holder that meanwhile found the fence ahead may have sealed the next token: above that too.
    floor = token if core.fence is None else Token(token + 2)

    def ask(node: LockNode) -> Future[Broken | NoVote]:
        asked = node.break_(resource, reason=reason, token=floor, **expected)
        # On each answer, however late and whatever the others say: it may name a lease of this process.
        asked.add_done_callback(_end_broken)
        return asked

    votes = await core.locks.ask_all(ask)
    done = [vote for vote in votes if isinstance(vote, Broken)]
    if not all(isinstance(vote, Broken | NotExecuted) for vote in votes):
        _end_all(held_here)  # the command may have arrived
    gone = [vote for vote in done if not vote.kept]
    if core.fence is not None and gone:
        token = await _break_late(core, resource, reason, grant, gone, nodes=len(votes))
    if len(done) < majority(len(votes)):
        raise _too_few(core, resource, votes, done, token, outrun=outrun)
    _require_gone(resource, done, nodes=len(votes))
    return thrown_out(gone)


async def _break_grant(
    core: Core, resource: Resource, reason: str, grant: str, token: Token
) -> Token | Outrun:
    if not isinstance(core.fence, ComparingFence):
        raise ConfigurationError(
            f"{type(core.fence).__name__} cannot compare grants (break_grant); leave out grant= to end"
            " whatever grant it knows"
        )
    # No grant was seen: any that the fence knows may be a new one.
    seen = Grant(resource, GrantId(grant) if grant else new_grant_id(), token, "", "", 0)
    return await core.fence.break_grant(seen, reason=reason, within=core.fence_within)


async def _break_late(
    core: Core, resource: Resource, reason: str, grant: str | None, gone: Sequence[Broken], *, nodes: int
) -> Token:
    """Break in the fence too what got in between the fence and the nodes, and no newer grant.

    Redis's clock may be ahead of the fence's: then a grant that has not sealed yet still could. Or the holder
    was about to seal, found the fence ahead and got a higher token while the lock was still its own; it may
    have sealed by now, and its lock may have run out before it was to be broken. What the nodes know of the
    lock tells neither, as they may have lost their data; their time does.

    Returns:
        The token up to which nothing is accepted.
    """
    assert core.fence is not None
    broken = thrown_out(gone)
    # What a minority shows may be a newer grant, which has the lock on the others.
    seen = broken.grant if sum(vote.grant == broken.grant for vote in gone) >= majority(nodes) else ""
    ended = GrantId(grant or seen or new_grant_id())
    late = Grant(resource, ended, broken.token, broken.holder, reason, 0)
    # Up to the highest floor of any node, which nobody has for a token: a newer grant that has sealed is left
    # alone, and one that has not has a higher token, or settles one where a node's clock is ahead.
    await core.fence.close(late, within=core.fence_within)
    bound = below_next(gone, nodes=nodes)
    if grant is not None or not isinstance(core.fence, ComparingFence) or bound == 0:
        return late.token
    # Who has sealed is thrown out only below what a newer grant can have: where the nodes' clocks are apart,
    # its token may be lower than that of a node which it did not need.
    upto = Grant(resource, new_grant_id(), bound, "", reason, 0)
    answer = await core.fence.break_grant(upto, reason=reason, within=core.fence_within)
    if isinstance(answer, Outrun):
        return bound
    # Or the next grant's token would be lower. A lock that somebody has by now is left as it is.
    await core.locks.ask_all(lambda node: node.break_(resource, reason=reason, token=answer, grant=""))
    return answer


def _require_gone(resource: Resource, done: Sequence[Broken], *, nodes: int) -> None:
    """Raise if another grant holds the lock: surely, or for all that the nodes say where none was broken."""
    kept = [vote for vote in done if vote.kept]
    for other, count in Counter(vote.grant for vote in kept).most_common(1):
        broken = any(vote.grant for vote in done if not vote.kept)
        if count >= majority(nodes) or (not broken and may_be_most(count, answers=len(done), nodes=nodes)):
            raise changed_hands(resource, other, next(v.holder for v in kept if v.grant == other))


def changed_hands(resource: Resource, grant: str, holder: str, *, what: str = "broken") -> ChangedHands:
    """The error for a lock that another grant holds by now; ``what`` was not done to it."""
    return ChangedHands(
        f"{resource} has changed hands and was not {what}: {printable(holder)} holds it now, with grant"
        f" {grant}",
        resource=resource,
        grant=grant,
        holder=holder,
    )


def _too_few(
    core: Core,
    resource: Resource,
    votes: Sequence[Any],
    done: Sequence[Broken],
    token: Token,
    *,
    outrun: bool,
) -> QuorumUnavailable:
    why = unasked(core.locks, resource, votes)
    if core.fence is None:
        told = (
            f"{resource} may still be held: {len(done)} of {len(votes)} servers did what a"
            f" majority has to do ({why}); break it again when that is mended"
        )
    elif outrun:
        told = (
            f"{resource} was not broken: the fence knows another grant by now, with token {token}, which"
            f" was left as it is, and what Redis knows could not be asked ({why})"
        )
    else:
        told = (
            f"{resource} was broken in the fence only: Postgres accepts nothing below token {token} for"
            f" it, and its lock stays until its lease ends ({why}); break it again when that is mended"
        )
    return QuorumUnavailable(told, resource=resource, votes=why.votes)


def _end_all(grants: Iterable[GrantId]) -> None:
    for grant in grants:
        end_here(grant, LossReason.BROKEN)


def _end_broken(asked: Future[Broken | NoVote]) -> None:
    if isinstance(vote := vote_of(asked), Broken) and not vote.kept:
        end_here(GrantId(vote.grant), LossReason.BROKEN)
