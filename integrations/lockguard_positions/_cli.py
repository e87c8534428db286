"""``lockguard positions``: look at the positions, clean them up, recover them, fit and migrate their table.

Positions are only changed with ``--confirm``. Exit codes: 0 nothing is wrong, or it was repaired; 1 something
is wrong or unfinished; 2 the call is wrong; 3 the exchange could not be read, so that half of the answer is
missing.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

try:
    import click

    from lockguard._cli.servers import namespace_option, redis_option
    from lockguard._cli.tables import Table, console, shown
except ImportError as missing:
    raise ImportError("the commands need click and rich; pip install 'lockguard[cli]'") from missing

from lockguard import _interrupt as interrupt
from lockguard._cli.numbers import WholeNumber
from lockguard._private_files import is_of_the_output
from lockguard.errors import ConfigurationError
from lockguard.text import first_line
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_ccxt import UnknownMarket
from lockguard_ccxt._markets import short_name
from lockguard_positions._account import foreign, never_had
from lockguard_positions._backup import RowBackup
from lockguard_positions._connecting import (
    Urls,
    connect_any_database,
    connect_database,
    connect_exchange,
    connect_manager,
)
from lockguard_positions._diagnosis import Diagnosis, FindingKind, diagnose
from lockguard_positions._fit._command import fit
from lockguard_positions._model import Adopt, SyncAction, SyncOutcome, worded
from lockguard_positions._options import exchange_options, older_than_option, with_urls
from lockguard_positions._pace import Pace
from lockguard_positions._schema import migrate, protect_positions, version
from lockguard_positions._venue import Venue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["adopt_option", "exchange_options", "positions"]

_WRONG = 1
_UNREADABLE = 3
_LEFT = frozenset(action for action in SyncAction if not action.settled)


@click.group()
def positions() -> None:
    """Look at the positions of a bot, clean them up, recover them."""


positions.add_command(fit)


adopt_option = click.option(
    "--adopt",
    envvar="LOCKGUARD_ADOPT",
    default=Adopt.STOP.value,
    show_default=True,
    metavar="|".join(one.value for one in Adopt),
    callback=lambda ctx, param, value: Adopt.read(value),  # noqa: ARG005 - click's signature
    help="What to do about a position that has no row: nothing, tell, or give it a row and a stop."
    "  [env: LOCKGUARD_ADOPT]",
)


def _that_writes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that changes something: Redis, and the confirmation."""
    command = with_urls(command)
    for option in (
        namespace_option,
        redis_option,
        click.option("--confirm", is_flag=True, help="Do it."),
        click.option("--dry-run", is_flag=True, help="Only say what would be done; the default."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ):
        command = option(command)
    return command


# --- diagnose ---


@positions.command(name="diagnose")
@with_urls
@older_than_option
@click.option("--no-exchange", is_flag=True, help="Look at the table only.")
@click.option(
    "--mode",
    type=click.Choice(["report", "check"]),
    default="report",
    show_default=True,
    help="All of it, or a line for each finding.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diagnose_(
    *, urls: Urls, older_than_s: float, no_exchange: bool, mode: Literal["report", "check"], as_json: bool
) -> None:
    """Say what is wrong; change nothing.

    Incomplete and duplicate rows, positions without a stop on the exchange, and table against exchange.
    """
    found = _run(_diagnose(urls, timedelta(seconds=older_than_s), with_exchange=not no_exchange))
    if as_json:
        click.echo(json.dumps(_diagnosis_json(found), indent=2))
    elif mode == "check":
        for finding in found.findings:
            ids = ",".join(map(str, finding.position_ids)) or "-"
            click.echo(f"{finding.kind.value} {finding.exchange}:{finding.symbol} {ids}: {finding.details}")
    else:
        _show_diagnosis(found)
    _leave(found)


async def _diagnose(
    urls: Urls, older_than: timedelta, *, with_exchange: bool, adopt: Adopt = Adopt.STOP
) -> Diagnosis:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connect_database(urls.database))
        exchanges = (
            [await stack.enter_async_context(connect_exchange(urls.exchange))] if with_exchange else []
        )
        return await diagnose(pool, exchanges, older_than=older_than, adopt=adopt)


def _leave(found: Diagnosis) -> None:
    if not found.complete:
        raise SystemExit(_UNREADABLE)
    if found.findings:
        raise SystemExit(_WRONG)


def _diagnosis_json(found: Diagnosis) -> dict[str, Any]:
    return {
        "findings": [asdict(finding) for finding in found.findings],
        "statistics": [asdict(figures) for figures in found.statistics],
        "exchanges": list(found.exchanges),
        "changing": list(found.changing),
        "complete": found.complete,
    }


def _show_diagnosis(found: Diagnosis) -> None:
    out = console()
    figures = _table("Positions by status", "status", "rows", "average", "longest")
    for row in found.statistics:
        longest = _span(row.duration_ms_max)
        figures.add_row(row.status, str(row.count), _span(row.duration_ms_average), longest)
    out.print(figures)
    if not found.exchanges:
        out.print("The exchange was not looked at.")
    if found.changing:
        out.print(shown(f"Being worked on, look again: {', '.join(found.changing)}"))
    if not found.findings:
        out.print("Nothing is wrong.")
        return
    out.print(_findings_table(found))


def _findings_table(found: Diagnosis, remedy: bool = False) -> Table:  # noqa: FBT001, FBT002 - one column more
    table = _table(
        "What is wrong", "what", "symbol", "rows", "for", "details", *(["remedy"] if remedy else [])
    )
    for finding in found.findings:
        cells = [
            finding.kind.value,
            f"{finding.exchange}:{finding.symbol}",
            ", ".join(map(str, finding.position_ids)) or "-",
            "-" if finding.age_ms is None else _span(finding.age_ms),
            finding.details,
        ]
        told = "; ".join((finding.kind.remedy, *(f"would send: {order}" for order in finding.orders)))
        table.add_row(*cells, *([told] if remedy else []))
    return table


# --- clean up ---


@positions.command()
@_that_writes
@adopt_option
@older_than_option
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([kind.value for kind in FindingKind if kind is not FindingKind.UNREADABLE]),
    help="Only symbols with this finding; may be repeated.",
)
@click.option(
    "--backup",
    "backup_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A new file for the rows before they are touched.  [default: positions-backup-TIME.jsonl here]",
)
def cleanup(
    *,
    urls: Urls,
    adopt: Adopt,
    older_than_s: float,
    only: tuple[str, ...],
    backup_file: Path | None,
    confirm: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put right what diagnose finds: without --confirm, only say how.

    Each symbol is looked at again under its lease; a symbol that somebody holds is left alone. Its rows go to
    the backup first, every step to the log, and every order is reduce-only.
    """
    _not_both(confirm=confirm, dry_run=dry_run)
    older_than = timedelta(seconds=older_than_s)
    if not confirm:
        found = _picked(_run(_diagnose(urls, older_than, with_exchange=True, adopt=adopt)), only)
        if as_json:
            plan = [{**asdict(f), "remedy": f.kind.remedy} for f in found.findings]
            click.echo(json.dumps({"confirmed": False, "plan": plan}, indent=2))
        elif found.findings:
            console().print(_findings_table(found, remedy=True))
            click.echo("Nothing was changed; --confirm does it.")
        else:
            click.echo("There is nothing to clean up.")
        _leave(found)
        return
    name = f"positions-backup-{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl"
    with _logged():
        done, saved = _run(_clean_up(urls, adopt, older_than, only, backup_file or Path(name)))
    _show_done(done, as_json=as_json, backup=saved)


async def _clean_up(
    urls: Urls, adopt: Adopt, older_than: timedelta, only: tuple[str, ...], file: Path
) -> tuple[list[SyncOutcome], str | None]:
    async with connect_manager(urls, adopt=adopt) as (manager, exchange, pool):
        found = _picked(await diagnose(pool, [exchange], older_than=older_than), only)
        if not found.complete:
            return [SyncOutcome(exchange.name, SyncAction.UNREADABLE, None, found.findings[0].details)], None
        if not found.symbols:
            return [], None
        backup = RowBackup(pool, file)
        done: list[SyncOutcome] = []
        for venue, symbol in found.symbols:
            done += await manager.clean_up(symbol, venue, backup=backup.take)
        return done, str(backup.path)


def _picked(found: Diagnosis, only: tuple[str, ...]) -> Diagnosis:
    if not only:
        return found
    wanted = {FindingKind.UNREADABLE.value, *only}
    findings = tuple(finding for finding in found.findings if finding.kind.value in wanted)
    return Diagnosis(findings, found.statistics, found.exchanges, found.changing)


# --- recover ---


@positions.command()
@_that_writes
def recover(*, urls: Urls, confirm: bool, dry_run: bool, as_json: bool) -> None:
    """Finish what dead processes left half done; without --confirm, only say which symbols.

    From the exchange's truth, each symbol under its own lease, as a bot does at its start.
    """
    _not_both(confirm=confirm, dry_run=dry_run)
    with _logged():
        plan, done = _run(_recover(urls, confirm=confirm))
        symbols = tuple(plan)
    if confirm:
        _show_done(done, as_json=as_json)
    elif as_json:
        click.echo(json.dumps({"confirmed": False, "symbols": list(symbols), "orders": plan}, indent=2))
    elif symbols:
        for symbol, orders in plan.items():
            click.echo(f"{symbol}: would send: {'; '.join(orders) or 'no order'}")
        click.echo(f"Half done: {', '.join(symbols)}. Nothing was changed; --confirm finishes them.")
    else:
        click.echo("Nothing is half done.")
    if symbols and not confirm:
        raise SystemExit(_WRONG)


async def _recover(urls: Urls, *, confirm: bool) -> tuple[dict[str, list[str]], list[SyncOutcome]]:
    async with connect_manager(urls) as (manager, exchange, pool):
        if confirm:
            return {}, list((await manager.recover(exchange.name)).outcomes)
        plan: dict[str, list[str]] = {symbol: [] for symbol in await manager.half_done(exchange.name)}
        for finding in (await diagnose(pool, [exchange], older_than=timedelta(0))).findings:
            if finding.symbol in plan:
                plan[finding.symbol] = list(finding.orders)
        return plan, []


# --- close ---


@positions.command()
@click.argument("symbol")
@_that_writes
def close(*, symbol: str, urls: Urls, confirm: bool, dry_run: bool, as_json: bool) -> None:
    """Close the open position of SYMBOL: a reduce-only order closes all of it, then its stop is taken back.

    Without --confirm, only say what would be ordered. A row whose market is gone from the exchange just ends.
    """
    _not_both(confirm=confirm, dry_run=dry_run)
    with _logged():
        told, left = _run(_close(urls, symbol, confirm=confirm))
    click.echo(json.dumps(told, indent=2, default=str) if as_json else told["told"])
    if left:
        raise SystemExit(_WRONG)


async def _close(urls: Urls, symbol: str, *, confirm: bool) -> tuple[dict[str, Any], bool]:
    async with connect_manager(urls) as (manager, exchange, _):
        unknown: UnknownMarket | None = None
        try:
            name = exchange.market(worded(symbol, name="symbol")).name
            what = "closes it with a reduce-only market order and takes its stop back"
        except UnknownMarket as exc:
            name, unknown = short_name(symbol), exc
            what = "ends the row without an order, as the exchange lists no such market"
        row = await manager.store.open_of(exchange.name, name)
        if row is None and unknown is not None and not await manager.store.loose_stops(exchange.name, name):
            raise unknown  # as the manager does: a mistyped name must not look like a position that is closed
        resource = f"{exchange.name}:{name}"
        if confirm:
            row = await manager.close_position(name, exchange.name, reason="closed by hand")
        elif row is not None and unknown is None:
            venue = Venue(exchange, Pace())
            if await never_had(venue, exchange.market(row.traded_as), row):
                raise foreign(venue, row)
        others = await manager.store.open_under_other_labels(exchange.name, name) if row is None else ()
        if row is None:
            told = f"{resource} has no open position."
            if others:  # a mistyped label must not look like a position that is closed
                rows = ", ".join(f"position {other.id} of {other.exchange}" for other in others)
                told = f"{resource} has no open position, but other labels have: {rows}."
        elif confirm:
            why = (row.error_details if row.status.open else None) or row.exit_reason
            told = f"{resource} position {row.id}: {row.status.value} ({why})."
        else:
            told = (
                f"{resource} position {row.id}: {row.side.value} {row.quantity}, {row.status.value};"
                f" --confirm {what}."
            )
        left = bool(others) if row is None else row.status.open
        status = None if row is None else row.status.value
        return {"confirmed": confirm, "resource": resource, "status": status, "told": told}, left


# --- migrate ---


@positions.command(name="migrate")
@click.option(
    "--database", envvar="LOCKGUARD_DATABASE_URL", metavar="URL", help="[env: LOCKGUARD_DATABASE_URL]"
)
@click.option("--to", type=WholeNumber(), help="The version.  [default: the latest]")
@click.option("--confirm", is_flag=True, help="Also go down, which removes what later versions keep.")
@click.option(
    "--protect",
    is_flag=True,
    help="Also have the fence refuse every write of state that presents no lease; price ticks are exempt.",
)
def migrate_(*, database: str | None, to: int | None, confirm: bool, protect: bool) -> None:
    """Bring the tables of the positions to a version, up or down."""
    _run(_migrate(database, to, confirm=confirm, protect=protect))


async def _migrate(database: str | None, to: int | None, *, confirm: bool, protect: bool) -> None:
    async with connect_any_database(database) as pool, pool.acquire() as conn:
        if to is not None and not confirm and to < (now := await version(conn)):
            lost = "the tables, with all their rows" if to == 0 else "what the versions after it keep"
            raise ConfigurationError(
                f"--to {to} goes down from version {now}, and removes {lost}; add --confirm if that is meant"
            )
        done = await migrate(conn, to=to)
        click.echo(f"version {done.after}" + (f", was {done.before}" if done.before != done.after else ""))
        if protect:
            for table in await protect_positions(conn):
                click.echo(f"{table} is protected")


# --- common ---


def _run(work: Any) -> Any:
    try:
        return interrupt.run(work)
    except DATABASE_ERRORS as exc:
        if is_of_the_output(exc):
            raise
        raise click.ClickException(f"the database: {first_line(exc)}") from exc


def _not_both(*, confirm: bool, dry_run: bool) -> None:
    if confirm and dry_run:
        raise ConfigurationError("--confirm and --dry-run exclude each other; give one of them")


def _show_done(done: Iterable[SyncOutcome], *, as_json: bool, backup: str | None = None) -> None:
    outcomes = list(done)
    if as_json:
        told = [{**asdict(o), "action": o.action.value} for o in outcomes]
        click.echo(json.dumps({"confirmed": True, "outcomes": told, "backup": backup}, indent=2))
    elif not outcomes:
        click.echo("There was nothing to do.")
    else:
        table = _table("What was done", "symbol", "action", "row", "details")
        for o in outcomes:
            row = "-" if o.position_id is None else str(o.position_id)
            table.add_row(o.symbol, o.action.value, row, o.details)
        console().print(table)
        if backup is not None:
            click.echo(f"The rows as they were: {backup}")
    if any(outcome.action is SyncAction.UNREADABLE for outcome in outcomes):
        raise SystemExit(_UNREADABLE)
    if any(outcome.action in _LEFT for outcome in outcomes):
        raise SystemExit(_WRONG)


@contextmanager
def _logged() -> Iterator[None]:
    """Log every step to standard error while the body changes something."""
    logger, handler = logging.getLogger("lockguard.positions"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title)


def _span(ms: int) -> str:
    return f"{ms / 1000:.3g} s" if ms < 60_000 else str(timedelta(seconds=ms // 1000))
