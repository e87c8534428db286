"""``lockguard history``: the story of one resource."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from lockguard import _interrupt as interrupt
from lockguard._cli.durations import Duration
from lockguard._cli.numbers import WholeNumber
from lockguard._cli.servers import Servers, with_servers
from lockguard._cli.tables import Table, console
from lockguard._cli.told import Told, read
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import parse_resource
from lockguard.text import printable

if TYPE_CHECKING:
    from lockguard._story import Line

__all__ = ["history"]

_LIMIT = 100
_LIMIT_MAX = 10_000
_PARTLY = 3
_TELL_OFFSET = timedelta(seconds=1)


@click.command()
@click.argument("resource")
@with_servers
@click.option(
    "--since",
    type=Duration("length of time", "smhdw", "write a whole number and its unit, such as 90s, 2h or 1d"),
    metavar="TIME",
    help="Only what happened in this time, such as 2h.",
)
@click.option(
    "--limit",
    type=WholeNumber(1, _LIMIT_MAX),
    default=_LIMIT,
    help=f"At most so many lines, the newest.  [default: {_LIMIT}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def history(resource: str, servers: Servers, since: timedelta | None, limit: int, *, as_json: bool) -> None:
    """Tell what happened to a lock, oldest first: grants, ends, breaks, and the writes that were refused.

    Redis keeps the last grants of each resource for seven days; the fence in Postgres keeps breaks,
    recoveries and the last refused writes. An expiry writes no line: it is told where it follows from the
    others.

    Exit code 3: one of the servers did not answer, or not to this user, and what it knows is missing.
    """
    told = interrupt.run(_ask(resource, servers, limit))
    if len(told.silent) == (1 if servers.database is None else 2):
        raise next(iter(told.silent.values()))
    lines = told.lines
    if since is not None:
        first = datetime.fromtimestamp(SYSTEM_CLOCK.wall(), UTC) + (told.redis_ahead or timedelta(0)) - since
        lines = [line for line in lines if (line.until or line.at) >= first]
    if as_json:
        _print_json(resource, lines[-limit:], told)
    else:
        _print(resource, lines[-limit:], told, has_fence=servers.database is not None)
    for server, why in told.silent.items():
        click.echo(f"lockguard: what {server} knows is missing: {printable(str(why))}", err=True)
    if told.silent:
        raise click.exceptions.Exit(_PARTLY)


async def _ask(resource: str, servers: Servers, limit: int) -> Told:
    parse_resource(resource)  # an invalid name is refused before any connection
    async with AsyncExitStack() as stack:
        guard = servers.guard()
        stack.push_async_callback(guard.aclose)
        records = None
        if servers.database is not None:
            records = await stack.enter_async_context(servers.records())
        told = await read(resource, guard, records, limit=limit)
        if told.lock is not None:
            await servers.require_all()
        return told


def _print(resource: str, lines: list[Line], told: Told, *, has_fence: bool) -> None:
    offset = told.offset
    if offset is not None and abs(offset) > _TELL_OFFSET:
        which = "ahead of" if offset > timedelta(0) else "behind"
        click.echo(
            f"Postgres's clock is {abs(offset).total_seconds():.1f} s {which} Redis's; times are on Redis's"
        )
    if not lines:
        click.echo(f"nothing is known of {resource}" + ("" if has_fence else " in Redis"))
        return
    table = Table("time (UTC)", "by", "what")
    table.columns[0].no_wrap = True
    for line in lines:
        at = line.at.astimezone(UTC)
        table.add_row(f"{'by ' if line.inferred else ''}{at:%Y-%m-%d %H:%M:%S}", line.source, line.text)
    console().print(table)
    click.echo(_now(resource, told))


def _now(resource: str, told: Told) -> str:
    """Where the story stands."""
    lock, state = told.lock, told.state
    known = []
    if lock is not None:
        known.append(
            f"{printable(lock.holder)} holds {resource}, token {lock.token}"
            if lock.held
            else f"{resource} is free"
        )
    if state is not None:
        accepts = f"accepts token {state.token}" if state.is_open else f"is closed at token {state.token}"
        known.append(f"the fence {accepts}")
    return f"now: {'; '.join(known)}" if known else ""


def _print_json(resource: str, lines: list[Line], told: Told) -> None:
    facts: dict[str, Any] = {
        "resource": resource,
        "postgres_ahead_s": None if told.offset is None else round(told.offset.total_seconds(), 3),
        "missing": sorted(told.silent),
        "lines": [asdict(line) | {"text": line.text} for line in lines],
    }
    click.echo(json.dumps(facts, indent=2, default=lambda at: at.astimezone(UTC).isoformat()))
