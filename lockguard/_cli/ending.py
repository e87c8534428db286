"""``lockguard ask`` and ``lockguard break``: how an operator gets a lock from its holder."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from lockguard import _interrupt as interrupt
from lockguard._breaking import checked_grant, token_of
from lockguard._cli.durations import Duration, span
from lockguard._cli.servers import Servers, with_servers
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import parse_resource
from lockguard.errors import ConfigurationError, LockguardError, QuorumUnavailable
from lockguard.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockguard._guard import LockGuard
    from lockguard._records import FenceState
    from lockguard.ports import Broken, Inspection

__all__ = ["ask", "break_", "signed"]

_POLL_S = 0.1
_TOLD_MS = 1_000
"""A holder asks so often at least what became of its lock."""
_LEFT_OPEN = "it was left open, or is of a lock in another namespace or on other servers"
_ENDS = 20
"""How many lines of the history are searched for the end of a grant that has just ended."""


def _reason_option(kept: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--reason", required=True, help=f"Why; kept with your name in {kept}.")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the operator was shown.

    Attributes:
        lock: the lock in Redis; ``None`` if Redis does not answer.
        unanswered: why, in that case.
        fence: the fence; ``None`` if there is none, or it has never heard of the resource.
    """

    lock: Inspection | None
    unanswered: QuorumUnavailable | None
    fence: FenceState | None

    @property
    def grant(self) -> str:
        """The grant that a break ends: the holder's, or else the one that the fence knows, or none."""
        if self.lock is not None and self.lock.held:
            return self.lock.grant
        return "" if self.fence is None else self.fence.grant

    @property
    def open_to(self) -> str:
        """Whose writes the fence accepts; empty for nobody's."""
        fence = self.fence
        return "" if fence is None or not fence.is_open else _named(fence.holder, fence.operation)


@click.command()
@click.argument("resource")
@_reason_option("the lock's history")
@with_servers
@click.option(
    "--wait",
    "patience",
    type=Duration("length of time", "smh", "write a whole number and its unit, such as 10s or 2m"),
    metavar="TIME",
    help="Wait so long until the holder has ended, such as 10s.",
)
def ask(resource: str, reason: str, servers: Servers, patience: timedelta | None) -> None:
    """Ask the holder of a lock to end when it can.

    The holder's lease.wanted turns true within a second, if the servers answer; whether it heeds that is the
    holder's affair. Asking again changes at most the reason.

    Exit code 1: with --wait, it has not ended in that time. 0: it has, in whichever way the output tells.
    """
    _require_reason(reason)
    interrupt.run(_ask(resource, reason, servers, patience))


async def _ask(resource: str, reason: str, servers: Servers, patience: timedelta | None) -> None:
    parse_resource(resource)  # an invalid name is refused before any connection
    async with servers.guard() as guard:
        found = await guard.inspect(resource)
        await servers.require_all()
        # Compared on the server: what is told below is of the holder that was asked.
        if not found.held or not await guard.request_handover(
            resource, reason=signed(reason), grant=found.grant
        ):
            click.echo(f"{resource} is free: there is no holder to ask")
            return
        told = _named(found.holder, found.operation)
        within = span(min(found.ttl_ms // 3, _TOLD_MS))
        click.echo(f"{told} was asked to hand {resource} over; it learns of it within {within}")
        if patience is not None:
            await _wait(guard, found, patience)


async def _wait(guard: LockGuard, asked: Inspection, patience: timedelta) -> None:
    began = SYSTEM_CLOCK.now()
    while (now := await guard.inspect(asked.resource)).grant == asked.grant:
        if SYSTEM_CLOCK.now() - began >= patience.total_seconds():
            raise click.ClickException(
                f"{asked.resource} is still held by {printable(now.holder)} after {_span(patience)}"
            )
        await asyncio.sleep(_POLL_S)
    after = _span(timedelta(seconds=SYSTEM_CLOCK.now() - began))
    left = f"{printable(now.holder)} holds it now" if now.held else "it is free now"
    if (how := await _ended(guard, asked)) is not None:
        click.echo(f"{how} after {after}: {left}")
    elif now.held:
        click.echo(f"{asked.resource} was handed over after {after}: {left}")
    else:
        click.echo(f"{asked.resource} was freed after {after}")


async def _ended(guard: LockGuard, asked: Inspection) -> str | None:
    """How the lease ended, if the history tells that its holder did not release it.

    A holder that died may have left half of its work: that is no hand-over.
    """
    try:
        entries = await guard.history(asked.resource, limit=_ENDS)
    except LockguardError:  # such as a user that may not read it
        return None
    events = {entry.event for entry in entries if entry.grant == asked.grant}
    if "broken" in events:
        return f"{asked.resource} was broken"
    if events and "released" not in events:
        return f"{asked.resource} was not released: the lease expired, or its key was deleted,"
    return None


def _span(length: timedelta) -> str:
    return span(length // timedelta(milliseconds=1))


@click.command(name="break")
@click.argument("resource")
@_reason_option("the lock's history and in the fence's audit")
@with_servers
@click.option(
    "--grant", metavar="ID", help="End this grant and no other, and do not ask; `lockguard show` tells it."
)
@click.option("--no-fence", is_flag=True, help="There is no fence: break the lock in Redis only.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def break_(
    resource: str, reason: str, servers: Servers, grant: str | None, *, no_fence: bool, yes: bool
) -> None:
    """Take a lock from its holder by force, in the fence and on all its servers.

    The fence first: from then on Postgres refuses what the holder writes. Its body learns of the break
    within a second, or ends at its deadline if it cannot reach Redis. Where the fence has a holder and Redis
    has none, as after a loss of its data, the fence is broken all the same.

    What was shown is what is broken: a lock that has changed hands since is left as it is.

    Exit code 1: another holder has it by now, or it could not be done everywhere; the message says where.
    Where Redis does not answer, the fence is broken all the same.
    """
    _require_reason(reason)
    _require_fence(servers, no_fence=no_fence)
    if checked_grant(grant) == "":
        raise ConfigurationError("--grant is empty; `lockguard show` tells the holder's")
    seen = interrupt.run(_look(resource, servers))
    if grant is not None and seen.lock is not None:
        token_of(seen.lock, grant)
    if not yes and grant is None:
        _confirm(resource, seen)
    broken, now = interrupt.run(_break(resource, signed(reason), servers, grant or seen.grant))
    _tell(resource, broken, now, seen, has_fence=servers.database is not None)


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise ConfigurationError("--reason is empty; say why, for the lock's history")


def _require_fence(servers: Servers, *, no_fence: bool) -> None:
    if servers.database and no_fence:
        raise ConfigurationError(
            "--no-fence says that there is no fence, and --database or LOCKGUARD_DATABASE_URL names one;"
            " leave one out"
        )
    if not servers.database and not no_fence:
        raise ConfigurationError(
            "the fence has to be broken too, or the holder could go on writing: name its database with"
            " --database or LOCKGUARD_DATABASE_URL, or say --no-fence if there is none"
        )


def signed(reason: str) -> str:
    """The reason with the name of the person who gives it; the end of a long one is cut."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}: {reason}"


async def _look(resource: str, servers: Servers) -> _Seen:
    """What is known of the lock, with a check that all servers were named.

    Raises:
        ConfigurationError: they decide together with others that were not named.
        QuorumUnavailable: Redis does not answer, and there is no fence that could be broken.
        FenceUnavailable: the fence does not answer; without it nothing is broken.
    """
    parse_resource(resource)
    found = unanswered = None
    try:
        async with servers.guard() as guard:
            found = await guard.inspect(resource)
        await servers.require_all()
    except QuorumUnavailable as exc:
        if servers.database is None:
            raise
        unanswered = exc  # the fence can be broken all the same, and that stops the holder's writes
    return _Seen(found, unanswered, await _in_the_fence(resource, servers))


async def _in_the_fence(resource: str, servers: Servers) -> FenceState | None:
    if servers.database is None:
        return None
    async with servers.records() as records:
        states = await records.states([resource])
    return states[0] if states else None


def _confirm(resource: str, seen: _Seen) -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError("there is no terminal to ask whether to break it; give --yes or --grant")
    name, lock, open_to = printable(resource), seen.lock, seen.open_to
    if lock is None:
        question = (
            f"Who holds {name} in Redis is not known ({seen.unanswered})."
            + (f" The fence accepts what {open_to} writes." if open_to else "")
            + " It can be broken in the fence, so that what its holder writes is refused; its lock stays."
        )
    elif lock.held:
        question = f"{name} is held by {_named(lock.holder, lock.operation)} for {span(lock.age_ms)}."
    elif open_to:
        question = f"{name} is free in Redis, and the fence accepts what {open_to} writes: {_LEFT_OPEN}."
    else:
        question = f"{name} is free in Redis; what an earlier holder still writes would be refused."
    click.confirm(f"{question} Break it?", abort=True)


def _named(holder: str, operation: str) -> str:
    return f"{printable(holder)} ({printable(operation) or 'no operation'})"


async def _break(
    resource: str, reason: str, servers: Servers, grant: str
) -> tuple[Broken, Inspection | None]:
    """Break the grant; returns also what Redis shows afterwards, if it still answers."""
    async with AsyncExitStack() as stack:
        fence = None if servers.database is None else await stack.enter_async_context(servers.fence())
        guard = await stack.enter_async_context(servers.guard(fence=fence))
        broken = await guard.break_(resource, reason=reason, grant=grant)
        with suppress(QuorumUnavailable):
            return broken, await guard.inspect(resource)
    return broken, None


def _tell(resource: str, broken: Broken, now: Inspection | None, seen: _Seen, *, has_fence: bool) -> None:
    if now is not None and now.held and now.grant == broken.grant:
        raise click.ClickException(f"{resource} is still held by {printable(now.holder)}: break it again")
    if broken.grant:
        click.echo(f"{resource} was broken; {printable(broken.holder)} held it in Redis")
    else:
        click.echo(f"{resource} was free in Redis: there was no lock to break")
        if seen.open_to:
            click.echo(f"The fence accepted what {seen.open_to} wrote: {_LEFT_OPEN}")
    if now is None:
        click.echo("Who holds it now is not known: Redis does not answer any more")
    elif now.held:
        click.echo(f"It is held by {printable(now.holder)} now, with token {now.token}")
    else:
        click.echo("It is free now")
    who = "the" if broken.grant else "an earlier"
    click.echo(
        f"Postgres accepts nothing below token {broken.token} for it"
        if has_fence
        else f"There is no fence: {who} holder can go on writing for up to a second"
    )
