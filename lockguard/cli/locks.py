"""``lockguard inspect`` and ``lockguard break``."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from lockguard.cli.plugins import contributed
from lockguard.errors import ConfigurationError
from lockguard.guard import LockGuard
from lockguard.lease import parse_resource

if TYPE_CHECKING:
    from lockguard.ports import Broken, Inspection

__all__ = ["break_", "inspect"]

_REDIS = "redis://localhost:6379/0"
_WAITERS_SHOWN = 20

_redis_option = click.option(
    "--redis",
    "redis_url",
    envvar="LOCKGUARD_REDIS_URL",
    default=_REDIS,
    metavar="URL",
    help=f"The server, also by LOCKGUARD_REDIS_URL (a password is safer there).  [default: {_REDIS}]",
)


@click.command()
@click.argument("resource")
@_redis_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(resource: str, redis_url: str, *, as_json: bool) -> None:
    """Show who holds a lock, since when, with which token, and who waits.

    RESOURCE is the name as in the code, such as binance:APTUSDT.
    """
    found = asyncio.run(_inspect(resource, redis_url))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        _show(found)


@click.command(name="break")
@click.argument("resource")
@click.option("--reason", required=True, help="Why; kept in the lock's history.")
@_redis_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def break_(resource: str, reason: str, redis_url: str, *, yes: bool) -> None:
    """Take a lock from its holder by force.

    The holder learns of it with its next renewal, at most a third of its ttl later, and ends. This is done in
    Redis only: where there is a fence, what the holder writes until then is refused as soon as a successor
    has taken the lock, or when the fence is broken as well.
    """
    if not reason.strip():
        raise ConfigurationError("--reason is empty; say why, for whoever reads the history")
    found = asyncio.run(_inspect(resource, redis_url))
    if not found.held:
        click.echo(f"{resource} is free; there is nothing to break")
        return
    if not yes:
        _confirm(found)
    broken = asyncio.run(_break(resource, reason, redis_url))
    if not broken.grant:
        click.echo(f"{resource} was released meanwhile; there was nothing to break")
        return
    click.echo(f"{resource} is free; {broken.holder} held it")
    click.echo(_about_the_fence(resource, reason))


def _confirm(found: Inspection) -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is here to be asked whether to break it; give --yes")
    age = _span(found.age_ms)
    question = f"{found.resource} is held by {found.holder} ({found.operation or 'no operation'}) for {age}."
    click.confirm(f"{question} Break it?", abort=True)


def _about_the_fence(resource: str, reason: str) -> str:
    """What remains to be done in Postgres, which this package knows nothing of."""
    text = reason.replace("'", "''")
    name = resource.replace("'", "''")
    also = "" if "fence" not in contributed() else " ('lockguard fence status' shows it)"
    return (
        f"In Redis only. If a fence guards it{also}, end the holder's writes at once in psql:\n"
        f"  select lockguard.break_('{name}', '{text}', 5000);"
    )


async def _inspect(resource: str, redis_url: str) -> Inspection:
    parse_resource(resource)  # a name that cannot be is told before any connection
    async with LockGuard.from_url(redis_url, observers=[]) as guard:
        return await guard.inspect(resource)


async def _break(resource: str, reason: str, redis_url: str) -> Broken:
    async with LockGuard.from_url(redis_url, observers=[]) as guard:
        return await guard.break_(resource, reason=reason)


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
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    for place, waiter in enumerate(found.waiters[:_WAITERS_SHOWN], start=1):
        table.add_row(f"  {place}.", f"{waiter.inbox}, heard of {_span(waiter.silent_ms)} ago")
    if len(found.waiters) > _WAITERS_SHOWN:
        table.add_row("", f"and {len(found.waiters) - _WAITERS_SHOWN} more; --json lists all")
    Console(highlight=False, markup=False).print(table)


def _span(ms: int) -> str:
    """A length of time for people."""
    if ms < 60_000:
        return f"{ms / 1000:.3g} s"
    return str(timedelta(seconds=ms // 1000))
