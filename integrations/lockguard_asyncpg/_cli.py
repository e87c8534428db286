"""``lockguard fence``: the fence's schema and protected tables, from a shell or a deployment script."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

try:
    import click

    from lockguard._cli.plugins import OpenGroup
    from lockguard._cli.tables import Table, console
except ImportError as missing:
    raise ImportError("the commands need click and rich; pip install 'lockguard[cli]'") from missing

import asyncpg

from lockguard._cli.durations import Duration
from lockguard._cli.numbers import WholeNumber
from lockguard._settings import Settings
from lockguard.errors import ConfigurationError
from lockguard.text import printable
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._connecting import CONNECT_S, connected, in_one_line, reason_of
from lockguard_asyncpg._connection import whole
from lockguard_asyncpg._dsn import arguments, shown
from lockguard_asyncpg._errors import CONNECT_ERRORS, unreachable
from lockguard_asyncpg._maintenance import count_prunable, prune_resources, shut_out_all
from lockguard_asyncpg._protection import (
    Finding,
    Protection,
    by_pgpool,
    findings,
    protect,
    protections,
    unprotect,
)
from lockguard_asyncpg._records import open_records
from lockguard_asyncpg._schema import (
    SCHEMA_VERSION,
    install,
    require_current,
    require_owner,
    schema_sql,
    schema_version,
    uninstall,
)
from lockguard_asyncpg._watch_command import WITHIN, watch_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["fence", "open_fence", "open_records"]

P = ParamSpec("P")
# More rows do not help a reader, and laying out 100,000 of them takes a minute.
_ROWS_MAX = 1000
# The first version of the schema that says which server this is.
_TELLS_SERVER = 10
_AS_PROTECTED = (
    "select p.relation from lockguard.protections() p where to_regclass(p.relation) = to_regclass($1)"
)


@dataclass(frozen=True, slots=True)
class _Row:
    resource: str
    token: int
    grant: str
    holder: str
    operation: str
    is_open: bool
    sealed_at: datetime
    released_at: datetime | None


_FACTS = tuple(field.name for field in fields(_Row))


@click.group(cls=OpenGroup, contributed_by="lockguard.fence_commands")
def fence() -> None:
    """The fence in Postgres: its schema, its state and the tables that it protects."""


def _connected(body: Callable[P, Awaitable[None]]) -> Callable[..., None]:
    """A command with ``--database`` whose body gets the connection as its first argument."""

    @click.option(
        "--database",
        "--url",
        "url",
        envvar="LOCKGUARD_DATABASE_URL",
        metavar="URL",
        help="Such as postgresql://user@host/name.  [env: LOCKGUARD_DATABASE_URL, then lockguard.toml, then"
        " PGHOST and so on]",
    )
    @wraps(body)
    def command(url: str | None, **options: Any) -> None:
        connected(Settings.read(database=url).database, body, **options)

    return command


@asynccontextmanager
async def open_fence(url: str) -> AsyncIterator[PostgresFence]:
    """The fence of the database at ``url``, for ``lockguard break``, which knows nothing of Postgres.

    Raises:
        ConfigurationError: the URL, or something that it names, cannot work.
        click.ClickException: no server answers there, there is no schema, or the role may not use it.
    """
    given = arguments(url)
    try:
        pool = await asyncpg.create_pool(**given, min_size=1, max_size=2, timeout=CONNECT_S)
    except CONNECT_ERRORS as exc:
        told = f"cannot connect to {shown(url)}: {reason_of(exc)}"
        raise click.ClickException(told) if unreachable(exc) else ConfigurationError(told) from exc
    async with pool:
        with in_one_line(url):
            async with pool.acquire() as conn:
                await require_current(conn)
        yield PostgresFence(pool)


@fence.command()
@click.option(
    "--after",
    default=0,
    type=WholeNumber(0, SCHEMA_VERSION),
    help="Only the steps newer than this version, for a database that has it.",
)
def sql(after: int) -> None:
    """Print the schema as one statement, for a migration tool: whole or not at all, and again is harmless."""
    click.echo(schema_sql(after=after), nl=False)


@fence.command(name="install")
@click.option("--grant-to", metavar="ROLE", help="A role that the bot logs in as; it may then take part.")
@click.option("--viewer", metavar="ROLE", help="A role that may see the fence, its audit and its refusals.")
@click.option("--operator", metavar="ROLE", help="A role that may see them, and break a lock.")
@_connected
async def install_(
    conn: asyncpg.Connection[Any], grant_to: str | None, viewer: str | None, operator: str | None
) -> None:
    """Create or upgrade the schema, in one transaction."""
    done = await install(conn, allow=_one(grant_to), viewers=_one(viewer), operators=_one(operator))
    click.echo(_told(done.before))
    for role, may in (
        (grant_to, "take part in fencing"),
        (viewer, "see the fence, its audit and its refusals"),
        (operator, "see the fence, and break a lock"),
    ):
        if role is not None:
            click.echo(printable(f"{role} may {may}"))


def _one(role: str | None) -> tuple[str, ...]:
    return () if role is None else (role,)


@fence.command()
@_connected
async def upgrade(conn: asyncpg.Connection[Any]) -> None:
    """Bring an installed schema to this library's version."""
    if await schema_version(conn) == 0:
        raise ConfigurationError(
            "there is no lockguard schema in this database: run `lockguard fence install`"
        )
    done = await install(conn)
    click.echo(_told(done.before))


def _told(before: int) -> str:
    if before == SCHEMA_VERSION:
        return f"the schema is at version {SCHEMA_VERSION} already"
    return f"the schema is at version {SCHEMA_VERSION} now (before: {before or 'none'})"


@fence.command(name="uninstall")
@click.option("--confirm", is_flag=True, help="Really do it: all tokens are forgotten.")
@_connected
async def uninstall_(conn: asyncpg.Connection[Any], *, confirm: bool) -> None:
    """Remove the schema with all its tokens."""
    await require_owner(conn)
    if await schema_version(conn) == 0:
        click.echo("there is no lockguard schema")
        return
    if not confirm:
        count = await conn.fetchval("select count(*) from lockguard.status()")
        raise ConfigurationError(f"the tokens of {count} resources would be forgotten; repeat with --confirm")
    await uninstall(conn)
    click.echo("removed")


@fence.command()
@click.argument("resource", required=False)
@click.option("--open", "only_open", is_flag=True, help="Only what is held.")
@click.option(
    "--limit",
    type=WholeNumber(0),
    help="At most so many resources, 0: all.  [default: 1000; all in JSON]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_connected
async def status(
    conn: asyncpg.Connection[Any], resource: str | None, limit: int | None, *, only_open: bool, as_json: bool
) -> None:
    """Show the version, who holds what with which token, and the protected tables."""
    version = await schema_version(conn)
    if version == 0:
        raise ConfigurationError(
            "there is no lockguard schema in this database: run `lockguard fence install`"
        )
    # An older schema has no protection yet; its status is still worth seeing.
    tables = await protections(conn) if version >= 2 else ()
    server = await conn.fetchval("select lockguard.server()") if version >= _TELLS_SERVER else None
    if as_json:
        rows_ = _rows(conn, resource, limit or 0, only_open=only_open)
        await _print_json(version, server, rows_, tables)
        return
    newer = (
        ""
        if version == SCHEMA_VERSION
        else f" (this library has {SCHEMA_VERSION}: run `lockguard fence upgrade`)"
    )
    click.echo(f"schema version {version}{newer}")
    if server is not None:
        click.echo(server)
    most = _ROWS_MAX if limit is None else limit
    # One row more than is shown tells whether there are more.
    rows = [r async for r in _rows(conn, resource, most and most + 1, only_open=only_open)]
    more = 0 < most < len(rows)
    _print(rows[:most] if more else rows, tables, only_open=only_open)
    if more:
        click.echo(f"there are more than these {most}: name one, or use --open, --limit or --json")


async def _rows(
    conn: asyncpg.Connection[Any], resource: str | None, limit: int, *, only_open: bool
) -> AsyncIterator[_Row]:
    query = "select * from lockguard.status($1) s where not $2 or s.is_open limit $3"
    async with whole(conn):
        async for record in conn.cursor(query, resource, only_open, limit or None, prefetch=1000):
            yield _row(record)


async def _print_json(
    version: int, server: str | None, rows: AsyncIterator[_Row], tables: tuple[Protection, ...]
) -> None:
    """Print part by part, because there may be very many resources."""
    about = f'"version": {version},\n"library": {SCHEMA_VERSION},\n"server": {json.dumps(server)}'
    click.echo(f'{{\n{about},\n"resources": [', nl=False)
    part: list[str] = []
    between = "\n"
    async for row in rows:
        facts = {name: getattr(row, name) for name in _FACTS}
        part.append(between + json.dumps(facts, default=str))
        between = ",\n"
        if len(part) == _ROWS_MAX:
            click.echo("".join(part), nl=False)
            part.clear()
    click.echo("".join(part), nl=False)
    click.echo(f'\n],\n"protected": {json.dumps([asdict(t) for t in tables])}\n}}')


def _row(record: asyncpg.Record) -> _Row:
    return _Row(
        resource=record["resource"],
        token=record["token"],
        grant=record["grant_id"].hex,
        holder=record["holder"],
        operation=record["operation"],
        is_open=record["is_open"],
        sealed_at=record["sealed_at"],
        released_at=record["released_at"],
    )


def _print(rows: list[_Row], tables: tuple[Protection, ...], *, only_open: bool) -> None:
    out = console()
    now = datetime.now(UTC)
    status = Table("resource", "token", "state", "holder", "operation", "sealed")
    for r in rows:
        age = str(now - r.sealed_at).partition(".")[0]
        state = "open" if r.is_open else "closed"
        status.add_row(r.resource, str(r.token), state, r.holder, r.operation, f"{age} ago")
    nobody = "nothing is held" if only_open else "no resource was ever sealed"
    out.print(status if rows else nobody)
    guarded = Table("protected table", "resource", "exempt columns", "fed by", "enabled")
    for t in tables:
        fed = "a subscription" if t.subscriber else ""
        state = "watched only" if t.watched else "yes" if t.enabled else "NO"
        guarded.add_row(t.table, t.resource, ", ".join(t.exempt), fed, state)
    out.print(guarded if tables else "no table is protected")


@fence.command()
@click.option("--reason", required=True, help="Why; kept in lockguard.audit.")
@click.option("--confirm", is_flag=True, help="Really do it: whoever holds a lease is refused from now on.")
@_connected
async def recover(conn: asyncpg.Connection[Any], reason: str, *, confirm: bool) -> None:
    """After a failover that may have lost commits, or a restore: accept no write of any lease of before."""
    await require_current(conn)
    if not confirm:
        count = await conn.fetchval("select count(*) from lockguard.status() s where s.is_open")
        raise ConfigurationError(f"{count} holders would be refused from now on; repeat with --confirm")
    done = await shut_out_all(conn, reason=reason)
    click.echo(f"{done.raised} resources were raised, {done.were_open} of them were open")


_AGE = Duration("age", "dw", "give days or weeks, such as 30d or 12w")


@fence.command()
@click.option("--older-than", required=True, type=_AGE, metavar="AGE", help="Such as 30d or 12w.")
@click.option("--confirm", is_flag=True, help="Really do it; without it nothing is changed.")
@_connected
async def prune(conn: asyncpg.Connection[Any], older_than: timedelta, *, confirm: bool) -> None:
    """Remove the resources that have been closed for longer than AGE; their tokens are never accepted again.

    What is held stays, whatever its age. Nobody waits for it, and it may be run beside bots at work.
    """
    await require_current(conn)
    found = await count_prunable(conn, older_than=older_than)
    if not confirm:
        click.echo(
            f"{found.gone} of {found.resources} resources have been closed for more than {older_than.days}"
            " days; repeat with --confirm to remove them"
        )
        return
    pruned = await prune_resources(conn, older_than=older_than)
    click.echo(f"{pruned} of {found.resources} resources were removed")


@fence.command()
@click.argument("tables", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_connected
async def check(conn: asyncpg.Connection[Any], tables: tuple[str, ...], *, as_json: bool) -> None:
    """Look whether all protections hold, and the fence's own; ends with 1 if one does not.

    TABLES are further ones that ought to be protected; those that once were are known.
    """
    await require_current(conn)
    found = (*await findings(conn, tables=tables), *await by_pgpool(conn))
    grave = [f for f in found if f.grave]
    if as_json:
        click.echo(json.dumps({"sound": not grave, "findings": [asdict(f) for f in found]}, indent=2))
    else:
        _print_findings(found)
        if not grave:
            held = [p for p in await protections(conn) if not p.watched]
            click.echo(f"all {len(held)} protected tables hold")
    if grave:
        raise click.exceptions.Exit(1)


def _print_findings(found: tuple[Finding, ...]) -> None:
    for f in found:
        click.echo(
            printable(
                f"{f.table}: {f.finding}" if f.grave else f"{f.table}, for your information: {f.finding}"
            )
        )
        click.echo(printable(f"    {f.remedy}"))


@fence.command(name="protect")
@click.argument("table")
@click.option(
    "--resource",
    help="A row's resource of its columns, such as '{exchange}:{symbol}'.  [default: as it is watched]",
)
@click.option(
    "--exempt", help="Comma-separated columns that change without a lease.  [default: as it is watched]"
)
@click.option(
    "--subscriber", is_flag=True, help="A subscription fills it: its workers write without a lease."
)
@click.option("--watch", is_flag=True, help="Refuse nothing, and record what would be refused.")
@_connected
async def protect_(
    conn: asyncpg.Connection[Any],
    table: str,
    resource: str | None,
    exempt: str | None,
    *,
    subscriber: bool,
    watch: bool,
) -> None:
    """Have Postgres refuse changes of TABLE's rows that present no lease.

    With --watch it refuses nothing and records what would be refused, which `lockguard fence watch` shows.
    """
    columns = None if exempt is None else [c.strip() for c in exempt.split(",") if c.strip()]
    await protect(conn, table, resource=resource, exempt=columns, subscriber=subscriber, watch=watch)
    name = await conn.fetchval(_AS_PROTECTED, table)
    (made,) = (p for p in await protections(conn) if p.table == name)
    free = f"; {', '.join(made.exempt)} may change without a lease" if made.exempt else ""
    fed = "; the workers of a subscription write it" if made.subscriber else ""
    done = "watched, and nothing is refused," if watch else "protected"
    click.echo(f"{table} is {done} as {made.resource}{free}{fed}")
    if watch:
        click.echo(f"what would be refused: lockguard fence watch {table}")


@fence.command(name="unprotect")
@click.argument("table")
@_connected
async def unprotect_(conn: asyncpg.Connection[Any], table: str) -> None:
    """Remove the protection of TABLE, or the watch with what it has recorded."""
    click.echo(
        f"{table} is no longer protected" if await unprotect(conn, table) else f"{table} was not protected"
    )


@fence.command(name="watch")
@click.argument("tables", nargs=-1)
@click.option(
    "--since", type=WITHIN, metavar="AGE", help="Only kinds of writes that were seen within it, such as 24h."
)
@click.option("--clear", is_flag=True, help="Forget what was recorded, and go on watching.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_connected
async def watch(
    conn: asyncpg.Connection[Any],
    tables: tuple[str, ...],
    since: timedelta | None,
    *,
    clear: bool,
    as_json: bool,
) -> None:
    """Show who writes the watched TABLES without a lease, and whether they can be protected.

    Ends with 0 if nothing would have been refused and writes under a lease were seen, with 1 if something
    would have been refused, and with 3 if no write under a lease was seen, so that nobody can tell.
    """
    await watch_body(conn, tables, since=since, clear=clear, as_json=as_json)
