"""``lockguard show``, which was ``inspect``: one lock, its waiters and what happened last."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from lockguard import _interrupt as interrupt
from lockguard._cli.durations import span
from lockguard._cli.numbers import WholeNumber
from lockguard._cli.seen import UNREAD, Seen, split_holder, with_fence
from lockguard._cli.servers import Servers, with_servers
from lockguard._cli.tables import Table, console
from lockguard._lease import parse_resource
from lockguard.errors import QuorumUnavailable
from lockguard.text import printable

if TYPE_CHECKING:
    from lockguard._history import HistoryEntry
    from lockguard.ports import Waiter

__all__ = ["inspect", "show"]

_FREE = 4
"""The exit code of ``show`` where the resource is not held."""

_WAITERS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class _Story:
    """What is shown.

    Attributes:
        seen: the lock and its fence.
        history: its last entries, newest first.
        unread: what could not be read, and why.
    """

    seen: Seen
    history: tuple[HistoryEntry, ...]
    unread: tuple[str, ...]


_lines_option = click.option(
    "--lines",
    type=WholeNumber(0, 22_000),
    default=5,
    metavar="N",
    help="How many entries of its history to show.  [default: 5]",
)


@click.command()
@click.argument("resource")
@with_servers
@_lines_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(resource: str, servers: Servers, *, lines: int, as_json: bool) -> None:
    """Show who holds a lock, since when, with which token, and who waits.

    RESOURCE is the name as in the code, such as binance:APTUSDT. With --database or LOCKGUARD_DATABASE_URL it
    also tells how the fence stands.

    Exit code 0: it is held. 4: it is free. 3: it is shown, but its fence or its history could not be read.
    """
    story = _show(resource, servers, lines, as_json=as_json)
    if story.unread or not story.seen.found.held:
        raise SystemExit(UNREAD if story.unread else _FREE)


@click.command()
@click.argument("resource")
@with_servers
@_lines_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(resource: str, servers: Servers, *, lines: int, as_json: bool) -> None:
    """Show who holds a lock, and who waits, like show; ends with 0 also where it is free.

    RESOURCE is the name as in the code, such as binance:APTUSDT.
    """
    _show(resource, servers, lines, as_json=as_json)


def _show(resource: str, servers: Servers, lines: int, *, as_json: bool) -> _Story:
    story = interrupt.run(_read(resource, servers, lines))
    fenced = servers.database is not None
    if as_json:
        click.echo(json.dumps(_facts(story, fenced=fenced), indent=2))
    else:
        console().print(_table(story, fenced=fenced))
    for told in story.unread:
        click.echo(f"lockguard: {told}", err=True)
    return story


async def _read(resource: str, servers: Servers, lines: int) -> _Story:
    name = parse_resource(resource)  # an invalid name is refused before any connection
    unread: list[str] = []
    history: tuple[HistoryEntry, ...] = ()
    async with AsyncExitStack() as stack:
        records = None
        if servers.database is not None:
            records = await stack.enter_async_context(servers.records())
        async with servers.guard() as guard:
            found = await guard.inspect(name)
            await servers.require_all()
            if lines:
                try:
                    history = await guard.history(name, limit=lines)
                except QuorumUnavailable as exc:  # as for a user without the right to LRANGE
                    unread.append(f"the history could not be read: {exc}")
        (seen,), fault = await with_fence([found], records)
    if fault is not None:
        unread.append(f"the fence could not be read: {fault}")
    return _Story(seen, history, tuple(unread))


def _facts(story: _Story, *, fenced: bool) -> dict[str, Any]:
    facts = story.seen.facts(fenced=fenced)
    if fenced:
        facts["fence_token"] = None if story.seen.state is None else story.seen.state.token
    facts["history"] = [{**asdict(entry), "at": entry.at.isoformat()} for entry in story.history]
    return facts


def _table(story: _Story, *, fenced: bool) -> Table:
    found = story.seen.found
    rows = [("resource", found.resource), *_lock_rows(story.seen)]
    if fenced:
        rows.append(("fence", _fence(story.seen)))
    rows.append(("waiters", str(len(found.waiters))))
    rows += [
        (f"  {place}.", _waiter(waiter))
        for place, waiter in enumerate(found.waiters[:_WAITERS_SHOWN], start=1)
    ]
    if len(found.waiters) > _WAITERS_SHOWN:
        rows.append(("", f"and {len(found.waiters) - _WAITERS_SHOWN} more; --json lists all"))
    for place, entry in enumerate(story.history):
        rows.append(("" if place else "history", _entry(entry)))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def _lock_rows(seen: Seen) -> list[tuple[str, str]]:
    found = seen.found
    if not found.held:
        state = f"closed for another {span(found.closed_ms)}, by at_least or a lock delay"
        return [
            ("state", state if found.closed_ms else "free"),
            ("last token", str(found.token) if found.token else "unknown"),
        ]
    rows = [("holder", found.holder)]
    host, pid, task = split_holder(found.holder)
    if pid is not None:
        rows += [("  host", host), ("  pid", str(pid)), ("  task", task)]
    rows += [
        ("operation", found.operation or "-"),
        ("token", str(found.token)),
        ("grant", found.grant),
        ("held for", span(found.age_ms)),
        ("ends in", f"{span(found.remaining_ms)} unless it is renewed"),
        ("ttl", span(found.ttl_ms)),
        ("renewals", str(found.renewals)),
    ]
    if found.renewal_late_ms:
        rows.append(("late", f"its renewal has been due for {span(found.renewal_late_ms)}"))
    if found.wanted:
        rows.append(("wanted", found.wanted))
    if found.closed_ms:
        rows.append(("stays closed", f"for {span(found.closed_ms)} even if it is released"))
    return rows


def _fence(seen: Seen) -> str:
    if seen.unread:
        return "could not be read"
    if seen.state is None:
        return "never sealed"
    told = f"{seen.fence}, token {seen.state.token}"
    if seen.found.held or not seen.state.is_open:
        return told
    # Left open by a holder that is gone, or that of a lock in another namespace or on other servers.
    return f"{told}, to {printable(seen.state.holder)}"


def _waiter(waiter: Waiter) -> str:
    who = waiter.holder or waiter.inbox
    what = f" ({waiter.operation})" if waiter.operation else ""
    return f"{who}{what}, for {span(waiter.waiting_ms)}, heard of {span(waiter.silent_ms)} ago"


def _entry(entry: HistoryEntry) -> str:
    told = [entry.at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3], entry.event]
    if entry.holder:
        told.append(f"to {entry.holder}")
    if entry.token is not None:
        told.append(f"token {entry.token}")
    elif entry.grant:
        told.append(f"grant {entry.grant}")
    if text := entry.operation or entry.reason:
        told.append(f"({text})")
    return " ".join(told)
