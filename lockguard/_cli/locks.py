"""``lockguard inspect`` and ``lockguard break``."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING

import click

from lockguard import _interrupt as interrupt
from lockguard._cli.plugins import COMMANDS, contributed, load
from lockguard._cli.tables import Table, console
from lockguard._guard import LockGuard
from lockguard._lease import parse_resource
from lockguard._nodes.address import Address, split_url
from lockguard._nodes.member import MemberNode
from lockguard.errors import ConfigurationError, LockguardError, QuorumUnavailable
from lockguard.ports import Membership
from lockguard.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from lockguard.ports import Broken, Fence, Inspection

__all__ = ["break_", "inspect"]

_REDIS = "redis://localhost:6379/0"
_WAITERS_SHOWN = 20
_INDEPENDENT = ("redis", "rediss", "unix")

_redis_option = click.option(
    "--redis",
    "redis_urls",
    envvar="LOCKGUARD_REDIS_URL",
    multiple=True,
    metavar="URL",
    help="The server; several times where several independent ones decide together. In the environment they"
    f" stand apart by blanks, and a password is safer there.  [env: LOCKGUARD_REDIS_URL; default: {_REDIS}]",
)


@click.command()
@click.argument("resource")
@_redis_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(resource: str, redis_urls: tuple[str, ...], *, as_json: bool) -> None:
    """Show who holds a lock, since when, with which token, and who waits.

    RESOURCE is the name as in the code, such as binance:APTUSDT.
    """
    found = interrupt.run(_look(resource, redis_urls))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        _show(found)


@click.command(name="break")
@click.argument("resource")
@click.option("--reason", required=True, help="Why; kept in the lock's history and in the fence's audit.")
@_redis_option
@click.option(
    "--database",
    "database_url",
    envvar="LOCKGUARD_DATABASE_URL",
    metavar="URL",
    help="Where the fence is.  [env: LOCKGUARD_DATABASE_URL]",
)
@click.option("--no-fence", is_flag=True, help="There is no fence: break the lock in Redis only.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def break_(
    resource: str,
    reason: str,
    redis_urls: tuple[str, ...],
    database_url: str | None,
    *,
    no_fence: bool,
    yes: bool,
) -> None:
    """Take a lock from its holder by force, on all its servers and in the fence.

    The fence first: from then on Postgres refuses what the holder writes. Its body learns of the break with
    its next renewal, at most a third of its ttl later, and ends. Where the fence has a holder and Redis has
    none, as after a loss of its data, the fence is broken all the same.

    Exit code 1: it could not be done everywhere; the message says where. Where Redis does not answer, the
    fence is broken all the same.
    """
    if not reason.strip():
        raise ConfigurationError("--reason is empty; say why, for whoever reads the history")
    if database_url and no_fence:
        raise ConfigurationError(
            "--no-fence says that there is no fence, and --database or LOCKGUARD_DATABASE_URL names one;"
            " leave one out"
        )
    if not database_url and not no_fence:
        raise ConfigurationError(
            "the fence has to be broken too, or the holder could go on writing: name its database with"
            " --database or LOCKGUARD_DATABASE_URL, or say --no-fence if there is none"
        )
    found = unanswered = None
    try:
        found = interrupt.run(_look(resource, redis_urls))
    except QuorumUnavailable as exc:
        if database_url is None:
            raise
        unanswered = exc  # the fence can be broken all the same, and that stops the holder's writes
    if not yes:
        _confirm(resource, found, unanswered)
    broken = interrupt.run(_break(resource, reason, redis_urls, database_url))
    now = interrupt.run(_inspect_again(resource, redis_urls))
    if now is not None and now.held and now.grant == broken.grant:
        raise click.ClickException(f"{resource} is still held by {printable(now.holder)}: break it again")
    click.echo(f"{resource} was broken; {printable(broken.holder) or 'nobody'} held it in Redis")
    if now is None:
        click.echo("Who holds it now is not known: Redis does not answer any more")
    else:
        click.echo(
            f"It is held by {printable(now.holder)} now, with token {now.token}"
            if now.held
            else "Nobody holds it now"
        )
    who = "the" if broken.holder else "an earlier"
    click.echo(
        f"There is no fence: {who} holder can go on writing until its next renewal"
        if database_url is None
        else f"Postgres accepts nothing below token {broken.token} for it"
    )


def _confirm(resource: str, found: Inspection | None, unanswered: QuorumUnavailable | None) -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is here to be asked whether to break it; give --yes")
    if found is None:
        question = (
            f"Who holds {printable(resource)} is not known ({unanswered}). It can be broken in the fence, so"
            " that what its holder writes is refused; its lock stays."
        )
    elif found.held:
        what = printable(found.operation) or "no operation"
        question = (
            f"{found.resource} is held by {printable(found.holder)} ({what}) for {_span(found.age_ms)}."
        )
    else:
        question = f"{found.resource} is free in Redis; what an earlier holder still writes would be refused."
    click.confirm(f"{question} Break it?", abort=True)


async def _inspect(resource: str, redis_urls: Sequence[str]) -> Inspection:
    parse_resource(resource)  # an invalid name is refused before any connection
    async with _guard(redis_urls) as guard:
        return await guard.inspect(resource)


async def _inspect_again(resource: str, redis_urls: Sequence[str]) -> Inspection | None:
    with suppress(QuorumUnavailable):
        return await _inspect(resource, redis_urls)
    return None


async def _look(resource: str, redis_urls: Sequence[str]) -> Inspection:
    """Like :func:`_inspect`, with a check that all servers were named.

    Raises:
        ConfigurationError: they decide together with others that were not named.
    """
    found = await _inspect(resource, redis_urls)
    urls = list(redis_urls) or [_REDIS]
    told = await asyncio.gather(*(_membership(url, nodes=len(urls)) for url in urls))
    known = [membership for membership in told if membership is not None and membership.known]
    # A server that has not been asked for a lock since the library began to record the number has none.
    decide = max((max(membership.nodes, 2) for membership in known), default=1)
    if len(urls) < decide:
        raise ConfigurationError(
            f"{len(urls)} of the {max(m.nodes for m in known) or 'several'} servers that decide together"
            f" {'is' if len(urls) == 1 else 'are'} named, and what some of them say or do decides nothing:"
            " name all, with --redis several times or apart by blanks in LOCKGUARD_REDIS_URL"
            " (a server that decides alone by now: DEL lockguard:member on it)"
        )
    return found


async def _membership(url: str, *, nodes: int) -> Membership | None:
    """A server's membership; ``None`` if it cannot decide together with others, or does not answer."""
    if split_url(url).scheme not in _INDEPENDENT:
        return None
    inbox = f"lockguard:inbox:break:{os.getpid()}"  # fits the ACL's pattern
    node = MemberNode(Address.parse(url), inbox=inbox, nodes=nodes)
    with suppress(LockguardError):
        async with LockGuard([node], observers=[]):
            told = await node.membership()
            return told if isinstance(told, Membership) else None
    return None


async def _break(resource: str, reason: str, redis_urls: Sequence[str], database_url: str | None) -> Broken:
    async with AsyncExitStack() as stack:
        fence = None
        if database_url is not None:
            fence = await stack.enter_async_context(_fence_of(database_url))
        guard = await stack.enter_async_context(_guard(redis_urls, fence))
        return await guard.break_(resource, reason=reason)


def _guard(redis_urls: Sequence[str], fence: Fence | None = None) -> LockGuard:
    urls = list(redis_urls) or [_REDIS]
    if len(urls) == 1:
        return LockGuard.from_url(urls[0], fence=fence, observers=[])
    with warnings.catch_warnings(action="ignore"):  # an even number of servers is for the bot to fix
        return LockGuard.from_urls(urls, fence=fence, observers=[])


def _fence_of(database_url: str) -> AbstractAsyncContextManager[Fence]:
    """The fence, from the package that contributes the command ``fence``: this one knows no Postgres."""
    point = contributed(COMMANDS).get("fence")
    if point is None:
        raise ConfigurationError(
            "no fence is installed; pip install 'lockguard[postgres]', or say --no-fence"
        )
    load(point)
    opened: AbstractAsyncContextManager[Fence] = import_module(point.module).open_fence(database_url)
    return opened


def _show(found: Inspection) -> None:
    rows: dict[str, str] = {"resource": found.resource}
    if found.held:
        rows |= {
            "holder": found.holder,
            "operation": found.operation or "-",
            "token": str(found.token),
            "grant": found.grant,
            "held for": _span(found.age_ms),
            "ends in": f"{_span(found.remaining_ms)} unless it is renewed",
            "ttl": _span(found.ttl_ms),
            "renewals": str(found.renewals),
        }
    else:
        rows |= {"state": "free", "last token": str(found.token) if found.token else "unknown"}
    rows["waiters"] = str(len(found.waiters))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    for place, waiter in enumerate(found.waiters[:_WAITERS_SHOWN], start=1):
        table.add_row(f"  {place}.", f"{waiter.inbox}, heard of {_span(waiter.silent_ms)} ago")
    if len(found.waiters) > _WAITERS_SHOWN:
        table.add_row("", f"and {len(found.waiters) - _WAITERS_SHOWN} more; --json lists all")
    console().print(table)


def _span(ms: int) -> str:
    """A length of time for display."""
    if ms < 60_000:
        return f"{ms / 1000:.3g} s"
    return str(timedelta(seconds=ms // 1000))
