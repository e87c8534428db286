"""``lockguard positions fit``: prints what makes an existing table fit, and does it after a yes.

What is printed is a script of SQL: everything that is not a statement is a comment. Exit codes: 0 the table
fits the level; 1 something is to be done or decided, a statement was refused, or the exchange differs from
the rows (level look); 2 the call is wrong, or the table can never fit; 3 the exchange could not be read.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import asyncpg
import click

from lockguard import _interrupt as interrupt
from lockguard._private_files import is_of_the_output
from lockguard.errors import ConfigurationError
from lockguard.text import first_line
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_positions._connecting import Urls, connect_any_database, connect_exchange
from lockguard_positions._fit._applying import apply_steps
from lockguard_positions._fit._looking import beside_the_exchange
from lockguard_positions._fit._mapping import read_pairs
from lockguard_positions._fit._plan import HOME, Fit, Wishes, look_at
from lockguard_positions._fit._script import levels_of, script
from lockguard_positions._fit._steps import Finding, Kind, Level, Phase, Step
from lockguard_positions._options import older_than_option, with_urls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

from contextlib import asynccontextmanager

__all__ = ["fit"]

_TO_DO = 1
_NEVER = 2
_UNREADABLE = 3


@click.command()
@click.argument("table", default=HOME, required=False)
@with_urls
@click.option(
    "--level",
    type=click.Choice([level.value for level in Level]),
    default=Level.FLOW.value,
    show_default=True,
    help="How much of lockguard the bot is to use: reports only; its own code under leases and the fence; or"
    " lockguard_positions opens and closes.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    help="The table's name of a column, such as symbol=ticker; may be repeated.",
)
@click.option(
    "--map",
    "statuses",
    multiple=True,
    metavar="OLD=STAGE",
    help="The stage that a status of the table stands for, such as open=active; may be repeated.",
)
@click.option(
    "--exchange-name", metavar="NAME", help="The exchange of all rows, where the table has no column for it."
)
@older_than_option
@click.option("--apply", is_flag=True, help="Run the statements that the living bot does not notice.")
@click.option(
    "--switch",
    is_flag=True,
    help="With --apply: run the others too. The old code is stopped, or does nothing that is then refused.",
)
@click.option("--yes", is_flag=True, help="With --apply: do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fit(
    *,
    table: str,
    urls: Urls,
    level: str,
    columns: tuple[str, ...],
    statuses: tuple[str, ...],
    exchange_name: str | None,
    older_than_s: float,
    apply: bool,
    switch: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Print the SQL that makes an existing table fit for lockguard; with --apply, run it.

    TABLE is monitoring.positions unless named. Without --apply nothing is changed.
    """
    wishes = Wishes(
        table,
        read_pairs(columns, option="--column", example="symbol=ticker"),
        read_pairs(statuses, option="--map", example="open=active"),
        exchange_name,
        older_than_s,
    )
    if (switch or yes) and not apply:
        raise ConfigurationError(f"--{'switch' if switch else 'yes'} goes with --apply")
    if apply and Level(level) is not Level.FLOW:
        raise ConfigurationError(f"--apply is for --level flow; level {level} changes nothing in the table")
    work = _apply(urls, wishes, switch=switch, yes=yes, as_json=as_json) if apply else _look(urls, wishes)
    found, seen, readable = _run(work)
    if as_json:
        click.echo(json.dumps(_as_json(found, seen, Level(level)), indent=2, default=str))
    elif apply:
        _tell_rest(found)
    else:
        click.echo(script(found, seen, Level(level)))
    if not readable:
        raise SystemExit(_UNREADABLE)
    if Level(level) is Level.FLOW and found.never:
        raise SystemExit(_NEVER)
    differs = Level(level) is Level.LOOK and any(finding.kind is Kind.EXCHANGE for finding in seen)
    if differs or not found.fits(Level(level)):
        raise SystemExit(_TO_DO)


async def _look(urls: Urls, wishes: Wishes) -> tuple[Fit, list[Finding], bool]:
    async with _connected(urls) as conn:
        found = await look_at(conn, wishes)
    if not urls.exchange.name:
        return found, [], True
    async with connect_exchange(urls.exchange) as exchange:
        seen, readable = await beside_the_exchange(
            exchange, found.content.open, older_than_s=wishes.older_than_s
        )
    return found, seen, readable


async def _apply(
    urls: Urls, wishes: Wishes, *, switch: bool, yes: bool, as_json: bool
) -> tuple[Fit, list[Finding], bool]:
    async with _connected(urls) as conn:
        found = await look_at(conn, wishes)
        if found.never:
            return found, [], True
        waiting = [step for step in found.steps if switch or step.phase is Phase.BESIDE]
        if waiting and not found.table.owned:
            told = next(finding for finding in found.blocking if "does not own" in finding.told)
            raise ConfigurationError(f"{told.told}; {told.remedy}")
        if waiting and not yes:
            what = (
                f"{len(waiting)} statement(s) on {found.table.sql} of database {found.table.around.database}"
            )
            if sys.stdin is None or not sys.stdin.isatty():
                raise ConfigurationError(f"--apply would run {what}; add --yes where nobody can be asked")
            click.confirm(f"Run {what}?", abort=True, err=True)

        def told_of(step: Step) -> None:
            click.echo(f"done: {step.title}", err=as_json)

        if await apply_steps(conn, waiting, switch=switch, told=told_of):
            moved = any(f"create view {found.table.sql} " in step.sql for step in waiting)
            after = replace(wishes, table=HOME) if moved else wishes
            found = await look_at(conn, after)
    return found, [], True


@asynccontextmanager
async def _connected(urls: Urls) -> AsyncIterator[asyncpg.Connection[Any]]:
    async with connect_any_database(urls.database) as pool, pool.acquire() as lent:
        conn: Any = lent
        yield conn


def _tell_rest(found: Fit) -> None:
    if found.flows:
        click.echo(f"{found.table.sql} fits.")
        return
    for finding in found.blocking:
        click.echo(f"to decide: {finding.told}; {finding.remedy}")
    if found.steps:
        switch = "--apply --switch" if found.steps[0].phase is Phase.SWITCH else "--apply"
        click.echo(f"{len(found.steps)} statements are left: {switch} runs them")


def _as_json(found: Fit, seen: list[Finding], level: Level) -> dict[str, Any]:
    return {
        "table": found.table.sql,
        "level": level.value,
        "fits": found.fits(level),
        "levels": {each.value: told for each, told in levels_of(found).items()},
        "statuses": {"" if s is None else s: n for s, n in found.content.statuses.items()},
        "findings": [asdict(finding) for finding in (*found.findings, *seen)],
        "statements": [{**asdict(step), "phase": step.phase.name.lower()} for step in found.steps],
    }


def _run(work: Any) -> Any:
    try:
        return interrupt.run(work)
    except asyncpg.InsufficientPrivilegeError as exc:
        raise ConfigurationError(f"{first_line(exc)}; the owner of that grants it to this role") from exc
    except DATABASE_ERRORS as exc:
        if is_of_the_output(exc):
            raise
        raise click.ClickException(f"the database: {first_line(exc)}") from exc
