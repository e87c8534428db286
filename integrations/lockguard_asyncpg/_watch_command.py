"""``lockguard fence watch``: what was seen of watched tables, and whether they can be protected."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from lockguard._cli.durations import Duration
from lockguard._cli.tables import Table, console
from lockguard.text import printable
from lockguard_asyncpg._protection import watch_anew
from lockguard_asyncpg._watching import watched
from lockguard_postgres._watching import Readiness, WatchedTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import asyncpg

__all__ = ["WITHIN", "watch_body"]

WITHIN = Duration(
    "age", "smhdw", "give a number and s, m, h, d or w, such as 24h", least=timedelta(seconds=1)
)
_DAY = timedelta(days=1)
_WORST = (Readiness.UNSAFE, Readiness.UNKNOWN, Readiness.SAFE)
_EXIT = {Readiness.SAFE: 0, Readiness.UNSAFE: 1, Readiness.UNKNOWN: 3}
_BECAUSE = {
    "leased": "",
    "excused": "maintenance",
    "unguarded": "no lease",
    "truncate": "no maintenance",
    "superseded": "stale token",
    "closed": "stale token (lease over)",
    "unsealed": "token never sealed here",
}


async def watch_body(
    conn: asyncpg.Connection[Any],
    tables: Sequence[str],
    *,
    since: timedelta | None,
    clear: bool,
    as_json: bool,
) -> None:
    """What the command does with its connection; leaves with the exit code of the worst table.

    Raises:
        ConfigurationError: as of :func:`watched`, and of :func:`watch_anew`.
        click.exceptions.Exit: a table cannot be protected yet.
    """
    seen = await watched(conn, tables, since=since)
    if clear:
        for table in seen:
            await watch_anew(conn, table.table)
            kinds = f"{len(table.writes)} kind{'s' * (len(table.writes) != 1)} of write"
            told = f"{kinds} {'are' if len(table.writes) != 1 else 'is'} forgotten"
            click.echo(printable(f"{table.table} is watched anew; {told}"))
        return
    if as_json:
        click.echo(json.dumps({"tables": [_facts(t) for t in seen]}, indent=2, default=str))
    else:
        for table in seen:
            _print(table)
    worst = next(r for r in _WORST if any(t.readiness is r for t in seen))
    if _EXIT[worst]:
        raise click.exceptions.Exit(_EXIT[worst])


def _facts(table: WatchedTable) -> dict[str, Any]:
    return {
        **asdict(table),
        "watched_for_s": table.watched_for.total_seconds(),
        "refused": table.refused,
        "leased": table.leased,
        "readiness": table.readiness.value,
        "proposed": table.proposed,
        "enforce": table.command(),
    }


def _print(table: WatchedTable) -> None:
    free = f", exempt: {', '.join(table.exempt)}" if table.exempt else ""
    click.echo(printable(f"{table.table} as {table.resource}{free}; watched for {_shown(table.watched_for)}"))
    if table.writes:
        console().print(_table(table))
    for line in (*_warnings(table), *_judgement(table)):
        click.echo(printable(line))


def _table(table: WatchedTable) -> Table:
    shown = Table(
        "would be", "operation", "columns", "role", "application", "from", "times", "last", "statement"
    )
    for w in table.writes:
        outcome = "passed" if w.passes else "REFUSED"
        because = _BECAUSE.get(w.verdict, w.verdict)
        shown.add_row(
            f"{outcome}: {because}" if because else outcome,
            w.operation,
            ", ".join(w.columns or ()),
            w.role,
            w.application,
            w.address or "local",
            f"{w.times:,}",
            f"{_shown(table.until - w.at)} ago",
            w.statement,
        )
    return shown


def _warnings(table: WatchedTable) -> Iterator[str]:
    for trigger in table.triggers:
        unseen = sorted({*trigger.columns} - {*table.exempt})
        if unseen:
            yield (
                f"trigger {trigger.name} sets {', '.join(unseen)} before each UPDATE, so every UPDATE changes"
                " that and needs a lease, whatever else is exempt: exempt it too"
            )
        elif not trigger.columns:
            yield (
                f"trigger {trigger.name} runs {trigger.function}() before each UPDATE; columns that it sets"
                " count as changed, and its text does not tell which"
            )
    if table.generated and any({*(w.columns or ())} & {*table.generated} for w in table.writes):
        yield (
            f"{', '.join(table.generated)}: generated, follows the columns that it is made of, and needs no"
            " exemption where those are exempt"
        )
    if table.proposed:
        exempt = sorted({*table.exempt, *table.proposed})
        yield (
            f"only writers without a lease change {', '.join(table.proposed)}; were that exempt,"
            f" {table.freed:,} of {_many(table.refused)} would pass that are refused. To watch on like that:"
        )
        yield f"    {table.command(exempt=exempt, watch=True)}"


def _judgement(table: WatchedTable) -> Iterator[str]:
    over = f"in the last {_shown(table.seen_for)}"
    under = f"{_many(table.leased)} presented the lease of the rows"
    if table.readiness is Readiness.UNSAFE:
        last = max(w.at for w in table.writes if not w.passes)
        yield (
            f"NOT SAFE to protect: {_many(table.refused)} would have been refused, the last one"
            f" {_shown(table.until - last)} ago; {under}"
        )
        return
    if table.readiness is Readiness.UNKNOWN:
        yield (
            f"UNKNOWN: no write would have been refused {over}, and none presented a lease: does the bot"
            " write through fenced(pool), and was it running?"
        )
        return
    yield f"SAFE to protect: no write would have been refused {over}, and {under}"
    if table.seen_for < _DAY:
        yield "that is less than a day: jobs that run once a day or a week may not have been seen"
    yield f"    {table.command()}"


def _many(writes: int) -> str:
    return f"{writes:,} write{'s' * (writes != 1)}"


def _shown(length: timedelta) -> str:
    return str(timedelta(seconds=max(int(length.total_seconds()), 0)))
