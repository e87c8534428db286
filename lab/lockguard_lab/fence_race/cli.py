"""``lockguard fence race``: every way to write, at every isolation level, directly and through a pooler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import click

from lockguard import _interrupt as interrupt
from lockguard._cli.mistake import Mistake
from lockguard._cli.numbers import WholeNumber
from lockguard.errors import ConfigurationError
from lockguard_asyncpg._connecting import reason_of
from lockguard_asyncpg._dsn import checked, shown
from lockguard_asyncpg._errors import DATABASE_ERRORS, unreachable
from lockguard_lab.fence_race import RacePlan, Way, present_ways
from lockguard_lab.fence_race.series import Route, run_series
from lockguard_lab.own_server import own_server

__all__ = ["race_command"]


@click.command(name="race")
@click.option("--writes", type=WholeNumber(1), help="Operations for each run.  [default: 2000]")
@click.option("--total", type=WholeNumber(1), help="Operations for all runs together, instead of --writes.")
@click.option(
    "--way",
    "ways",
    multiple=True,
    metavar="NAME",
    help="Race one way to write only, by the name that its line has; may be repeated.  [default: all]",
)
@click.option(
    "--holders",
    default=12,
    show_default=True,
    type=WholeNumber(2, 200),
    help="How many write at a time.",
)
@click.option(
    "--seed", type=WholeNumber(), default=1, show_default=True, help="Of the holders' random choices."
)
@click.option(
    "--embedded",
    is_flag=True,
    help="Race on a Postgres of its own, and PgBouncer where it is installed.  [default without --url]",
)
@click.option("--pooler", is_flag=True, help="The URL is a pooler in transaction mode.")
@click.option(
    "--planted", is_flag=True, help="Also run checks that look sound and are not: all must be seen."
)
@click.option("--url", help="A database with the schema to race on; no environment variable names it.")
def race_command(
    url: str | None,
    writes: int | None,
    total: int | None,
    ways: tuple[str, ...],
    holders: int,
    seed: int,
    *,
    embedded: bool,
    pooler: bool,
    planted: bool,
) -> None:
    """Race against the fence: pauses, killed backends, lost replies.

    Starts servers of its own unless --url names a database; what the bot's own variables name is left alone.
    There it makes and drops a schema lockguard_race, and refuses one that it did not make.

    Prints a line of JSON for each run, one for each way to write, also for one that is absent, and one for
    all. Exit code 1 if a stale write got in, an operation was done twice or lost, a body failed that has
    nothing to do with others, or a planted check was not seen.

    Whole bots, on servers that fail, are tried by `lockguard chaos`.
    """
    if writes is not None and total is not None:
        raise click.UsageError("give --writes or --total, not both")
    if embedded and url is not None:
        raise click.UsageError("give --url or --embedded, not both")
    if pooler and url is None:
        raise click.UsageError("a server of its own comes with its own pooler: leave --pooler out")
    racers = _racers(ways)
    plan = RacePlan(writes=writes or 2_000, holders=holders, seed=seed)
    checked(url)
    with _routes(url, pooler=pooler) as routes:
        try:
            sound = interrupt.run(run_series(routes, racers, plan, total=total, planted=planted))
        except ConfigurationError as exc:
            raise Mistake(str(exc)) from exc
        except (*DATABASE_ERRORS, ValueError) as exc:
            told = f"cannot race on {shown(url)}: {reason_of(exc)}"
            raise click.ClickException(told) if unreachable(exc) else Mistake(told) from exc
    raise SystemExit(0 if sound else 1)


@contextmanager
def _routes(url: str | None, *, pooler: bool) -> Iterator[tuple[Route, ...]]:
    if url is not None:
        click.echo(f"racing on {shown(url)}", err=True)
        yield (Route("pooler" if pooler else "direct", url, pooler),)
        return
    with ExitStack() as stack:
        server = stack.enter_context(own_server("racing", max_connections=200))
        from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer  # noqa: PLC0415 - an extra

        routes = [Route("direct", server.url, pooler=False, direct=server.url)]
        if find_pgbouncer() is None:
            click.echo("PgBouncer is not installed (apt install pgbouncer): directly only", err=True)
        else:
            try:
                bouncer = stack.enter_context(PgBouncer(server))
            except ConfigurationError as exc:
                raise Mistake(str(exc)) from exc
            routes.append(Route("pooler", bouncer.url, pooler=True, direct=server.url))
        yield tuple(routes)


def _racers(names: tuple[str, ...]) -> tuple[Way, ...]:
    ways = {way.name: way for way in present_ways()}
    for name in names:
        if name not in ways:
            known = ", ".join(repr(one) for one in ways)
            raise click.BadParameter(f"{name!r} is none of {known}", param_hint="--way")
    return tuple(ways[name] for name in dict.fromkeys(names or ways))
