"""``lockguard ls``: every lock that is held, waited for or kept closed."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
from rich.cells import cell_len
from rich.live import Live
from rich.text import Text

from lockguard import _interrupt as interrupt
from lockguard._cli.durations import Duration, span
from lockguard._cli.seen import UNREAD, Seen, split_holder, with_fence
from lockguard._cli.servers import Servers, with_servers
from lockguard._cli.tables import aligned, console
from lockguard._looking import PartlyRead, checked_pattern
from lockguard.errors import LockguardError
from lockguard.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from lockguard._guard import LockGuard
    from lockguard._records import Records

__all__ = ["ls"]

_NAMES = (
    *("resource", "host", "pid", "task", "operation", "token"),
    *("age", "left", "late", "waiters", "wanted"),
)
_EVERY = timedelta(seconds=2)
_AGE = Duration("age", "smhd", "write a whole number and a unit, such as 30s, 5m or 2h")
_PAUSE = Duration("pause", "smh", "write a whole number and a unit, such as 2s", least=timedelta(seconds=1))


@dataclass(frozen=True, slots=True)
class _Wish:
    """What to list.

    Attributes:
        pattern: what the names match.
        older_than_ms: held for longer; ``None``: all.
        waiting: only what is waited for.
        as_json: whether for a program.
        fenced: whether a database with the fence was named.
    """

    pattern: str
    older_than_ms: float | None
    waiting: bool
    as_json: bool
    fenced: bool

    def wants(self, seen: Seen) -> bool:
        """Whether it is to be listed."""
        found = seen.found
        if self.waiting and not found.waiters:
            return False
        return self.older_than_ms is None or (found.held and found.age_ms > self.older_than_ms)


@click.command()
@click.argument("pattern", default="*")
@with_servers
@click.option("--older-than", type=_AGE, metavar="AGE", help="Only what is held for longer, such as 30s.")
@click.option("--waiting", is_flag=True, help="Only what is waited for.")
@click.option("--watch", is_flag=True, help="List again and again until interrupted.")
@click.option(
    "--every", type=_PAUSE, default=_EVERY, metavar="PAUSE", help="The pause of --watch.  [default: 2s]"
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each on a line of its own.")
def ls(
    pattern: str,
    servers: Servers,
    *,
    older_than: timedelta | None,
    waiting: bool,
    watch: bool,
    every: timedelta,
    as_json: bool,
) -> None:
    """List who holds which lock, since when, and who waits; the oldest first.

    PATTERN is what the names match, as in a shell: 'binance:*', '*:APT*', 'okx:[AB]*'. Quote it.

    With --database or LOCKGUARD_DATABASE_URL it also tells whether the fence is open or closed, or ahead of
    the lock: then the holder cannot write any more.

    Exit code 0: listed, also where there is nothing. 3: listed, but the fence, or one of the locks, could not
    be read.
    """
    older_than_ms = None if older_than is None else older_than / timedelta(milliseconds=1)
    wish = _Wish(checked_pattern(pattern), older_than_ms, waiting, as_json, servers.database is not None)
    unread = interrupt.run(_watch(servers, wish, every) if watch else _list(servers, wish))
    if unread:
        click.echo(f"lockguard: {unread}", err=True)
        raise SystemExit(UNREAD)


async def _list(servers: Servers, wish: _Wish) -> str:
    async with AsyncExitStack() as stack:
        guard, records = await _opened(stack, servers)
        await servers.require_all()
        seen, unread = await _look(guard, records, wish)
    _print(seen, wish)
    return unread


async def _watch(servers: Servers, wish: _Wish, every: timedelta) -> None:
    """List until interrupted. Servers that fail meanwhile are told of, and asked again."""
    async with AsyncExitStack() as stack:
        guard, records = await _opened(stack, servers)
        await servers.require_all()
        out = console()
        live = None
        if out.is_terminal and not wish.as_json:
            live = stack.enter_context(Live(console=out, auto_refresh=False, screen=True))
        seen, unread = await _look(guard, records, wish)  # the first failure ends the command
        while True:
            now = datetime.now(UTC).astimezone().strftime("%H:%M:%S")
            if live is not None:
                lines = [f"{now}  {printable(wish.pattern)}", *_lines(seen, wish, out.width)]
                if unread:
                    lines.insert(1, unread)
                live.update(_cropped(lines, out), refresh=True)
            else:
                if unread:
                    click.echo(f"lockguard: {unread}", err=True)
                if not wish.as_json:
                    click.echo(now)
                _print(seen, wish)
                sys.stdout.flush()
            await asyncio.sleep(every.total_seconds())
            try:
                seen, unread = await _look(guard, records, wish)
            except LockguardError as exc:
                seen, unread = [], printable(str(exc))


def _cropped(lines: list[str], out: Console) -> Text:
    room = out.height - 1
    if len(lines) > room:
        lines = [*lines[: room - 1], f"and {len(lines) - room + 1} lines more"]
    return Text("\n".join(lines), overflow="ellipsis", no_wrap=True)


async def _opened(stack: AsyncExitStack, servers: Servers) -> tuple[LockGuard, Records | None]:
    records = None
    if servers.database is not None:
        records = await stack.enter_async_context(servers.records())
    return await stack.enter_async_context(servers.guard()), records


async def _look(guard: LockGuard, records: Records | None, wish: _Wish) -> tuple[list[Seen], str]:
    """The locks, and what could not be read; empty if all was."""
    found, unread = [], []
    try:
        async for each in guard.list(wish.pattern):
            found.append(each)  # noqa: PERF401 - a comprehension would lose what was found before an error
    except PartlyRead as exc:
        unread.append(f"not listed is {exc}")
    seen, no_fence = await with_fence(found, records)
    if no_fence is not None:
        unread.append(f"the fence could not be read: {no_fence}")
    wanted = [each for each in seen if wish.wants(each)]
    wanted.sort(key=lambda each: (-each.found.age_ms, -each.waiting_ms, each.found.resource))
    return wanted, printable("; ".join(unread))


def _print(seen: Iterable[Seen], wish: _Wish) -> None:
    if wish.as_json:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        lines = [json.dumps({"at": at, **each.facts(fenced=wish.fenced)}) for each in seen]
    else:
        out = console()
        lines = _lines(list(seen), wish, out.width)
    if lines:
        click.echo("\n".join(lines))


def _lines(seen: list[Seen], wish: _Wish, width: int) -> list[str]:
    if not seen:
        return [f"no lock that matches {printable(wish.pattern)!r} is held, waited for or kept closed"]
    table = aligned([*_NAMES, *(["fence"] if wish.fenced else [])], [_cells(each, wish) for each in seen])
    if max(map(cell_len, table)) <= width:
        return table
    return [line for each in seen for line in _record(each, wish)]


def _cells(seen: Seen, wish: _Wish) -> list[str]:
    found = seen.found
    fence = ["?" if seen.unread else seen.fence or "-"] if wish.fenced else []
    waiters, wanted = str(len(found.waiters) or "-"), found.wanted or "-"
    if not found.held:
        closed = ["(closed)", "-", "-", "-", "-", "-", span(found.closed_ms), "-"]
        free = ["(free)", "-", "-", "-", "-", "-", "-", "-"]
        return [found.resource, *(closed if found.closed_ms else free), waiters, wanted, *fence]
    host, pid, task = split_holder(found.holder)
    return [
        found.resource,
        host or "-",
        "-" if pid is None else str(pid),
        task or "-",
        found.operation or "-",
        str(found.token),
        span(found.age_ms),
        span(found.remaining_ms),
        span(found.renewal_late_ms) if found.renewal_late_ms else "-",
        waiters,
        wanted,
        *fence,
    ]


def _record(seen: Seen, wish: _Wish) -> list[str]:
    """Two lines, for a terminal that is too narrow for the table."""
    found = seen.found
    told = []
    if found.held:
        told += [f"held for {span(found.age_ms)}", f"{span(found.remaining_ms)} left"]
    elif found.closed_ms:
        told.append(f"closed for {span(found.closed_ms)}")
    else:
        told.append("free")
    if found.renewal_late_ms:
        told.append(f"renewal {span(found.renewal_late_ms)} late")
    if found.waiters:
        told.append(f"{len(found.waiters)} waiting")
    if found.wanted:
        told.append(f"wanted: {found.wanted}")
    if wish.fenced:
        told.append(f"fence {'not read' if seen.unread else seen.fence or 'never sealed'}")
    lines = [printable(f"{found.resource}: {', '.join(told)}")]
    if found.held:
        lines.append(printable(f"  {found.holder}  {found.operation or '-'}  token {found.token}"))
    return lines
