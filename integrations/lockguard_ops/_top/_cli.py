"""``lockguard top``."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

import click

from lockguard import _interrupt as interrupt
from lockguard._cli.durations import Duration
from lockguard._cli.mistake import Mistake
from lockguard._cli.servers import Servers, with_servers
from lockguard_ops._installation import Installation
from lockguard_ops._top._app import Top
from lockguard_ops._top._columns import SORTS
from lockguard_ops._top._writing import Writing

__all__ = ["top"]

_INSTEAD = "use 'lockguard ls --watch'"

_INTERVAL = Duration(
    "interval", "smh", "write a whole number and its unit, such as 1s or 5s", least=timedelta(seconds=1)
)


@click.command()
@with_servers
@click.option(
    "--interval",
    type=_INTERVAL,
    default="1s",
    show_default=True,
    metavar="TIME",
    help="How often the servers are read; less often where reading takes long.",
)
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    default="age",
    show_default=True,
    help="The column by which the locks are sorted at first.",
)
@click.option(
    "--filter",
    "pattern",
    default="",
    metavar="PATTERN",
    help="Show only locks with this in their resource, holder or operation; with * or ? it is a pattern.",
)
@click.option("--no-fence", is_flag=True, help="There is no fence: break locks in Redis only.")
@click.option("--read-only", is_flag=True, help="Neither ask for locks nor break them.")
def top(
    servers: Servers, interval: timedelta, sort: str, pattern: str, *, no_fence: bool, read_only: bool
) -> None:
    """Watch all locks live; open one, ask its holder for it, or break it.

    The keys are shown on the last line, and ? explains them. It needs a terminal of any size and works with
    NO_COLOR. While a server does not answer, it says so and keeps what it saw last.
    """
    if servers.database is not None and no_fence:
        raise Mistake(
            "--no-fence says that there is no fence, and --database or LOCKGUARD_DATABASE_URL names one;"
            " leave one out"
        )
    _require_terminal()
    no_break = (
        ""
        if servers.database is not None or no_fence
        else "the fence has to be broken too, and none is named: start top with --database, or, if there is"
        " none, with --no-fence"
    )
    no_ask = "this top was started with --read-only" if read_only else ""
    interrupt.run(
        _watch(
            servers,
            interval_s=interval.total_seconds(),
            sort=sort,
            pattern=pattern,
            no_break=no_ask or no_break,
            no_ask=no_ask,
        )
    )


def _require_terminal() -> None:
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise Mistake(f"top needs a terminal; {_INSTEAD}")
    kind = os.environ.get("TERM", "")
    if kind in ("", "dumb", "unknown"):
        told = "TERM is not set" if not kind else f"TERM is {kind!r}"
        raise Mistake(f"top needs a terminal that can move its cursor, and {told}; {_INSTEAD}")


async def _watch(servers: Servers, **options: object) -> None:
    writing = Writing(sys.stderr.encoding or "ascii")  # Textual draws there
    named = len(servers.redis) + (servers.database is not None)
    async with Installation(servers) as installation:
        app = Top(installation, servers=named, writing=writing, **options)  # type: ignore[arg-type]
        running = asyncio.create_task(app.run_async(mouse=False))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:  # a signal: leave the terminal as it was
            app.exit()
            await running
            raise
    if app.bug is not None:
        raise app.bug
    if app.interrupted:
        raise KeyboardInterrupt
    if app.return_code:  # a bug that Textual has printed
        raise click.exceptions.Exit(app.return_code)
