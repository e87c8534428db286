"""``lockguard race``: the race kit as a command."""

from __future__ import annotations

import json
import re
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import click
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from lockguard._cli.tables import Table
    from lockguard._cli.tables import console as plain_console
except ImportError as missing:
    raise ImportError("the commands need click and rich; pip install 'lockguard[cli]'") from missing

from lockguard import _interrupt as interrupt
from lockguard._cli.mistake import Mistake
from lockguard._cli.numbers import DecimalNumber, WholeNumber
from lockguard._private_files import require_writable, write_private
from lockguard.errors import ConfigurationError, LockguardError
from lockguard_lab.race.settings import PHASES, SCENARIOS, RaceResult, RaceSettings
from lockguard_lab.servers import TopologyName
from lockguard_lab.servers.topology_names import warnings_told
from lockguard_positions._errors import ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lockguard_lab.race.pace import PaceResult
    from lockguard_lab.servers.topologies import Topology

__all__ = ["race", "result_table"]

_UNCLEAN = 1


def _listed(title: str, names: Iterable[tuple[str, str]]) -> str:
    lines = [f"  {name}: {text}" for name, text in names]
    return "\n".join(["\b", f"{title}:", *lines])


@click.command(epilog=f"{_listed('Scenarios', SCENARIOS.items())}\n\n{_listed('Phases', PHASES.items())}")
@click.option(
    "--scenario",
    type=click.Choice(list(SCENARIOS), case_sensitive=False),
    default="B",
    show_default=True,
    help="Which race.",
)
@click.option(
    "--phase",
    type=click.Choice(list(PHASES), case_sensitive=False),
    default="all",
    show_default=True,
    help="Where in their way the opens of scenario B meet a pass.",
)
@click.option("--guard/--no-guard", default=True, help="With lockguard, or the flow without it.")
@click.option(
    "--processes",
    type=WholeNumber(None),
    default=2,
    show_default=True,
    help="Operating system processes; 1 races with itself.",
)
@click.option(
    "--threads",
    type=WholeNumber(None),
    default=1,
    show_default=True,
    help="Openers in each process. In A, C and stress each opens every symbol; in B and D they share them.",
)
@click.option(
    "--duration",
    "duration_s",
    type=DecimalNumber(None),
    metavar="SECONDS",
    help="Go on with further rounds for so long, instead of --opens.",
)
@click.option(
    "--expire-leases", is_flag=True, help="Take leases away in mid-flow; their holders are not told in time."
)
@click.option(
    "--faults",
    type=DecimalNumber(None),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="For so many of the opens (0 to 1) the exchange has a fault in the entry or the stop.",
)
@click.option(
    "--compare",
    "comparing",
    is_flag=True,
    help="Do not race: measure the time to open, with the guard and without, in turns in one process.",
)
@click.option("--opens", type=WholeNumber(None), default=25, show_default=True, help="Positions to open.")
@click.option(
    "--symbols", type=WholeNumber(None), help="At most so many at once.  [default: all of the exchange]"
)
@click.option(
    "--time-scale",
    type=DecimalNumber(None),
    default=0.05,
    show_default=True,
    help="What the flow's own fixed waits (3 s for the settlement) are multiplied by.",
)
@click.option(
    "--latency-ms", type=WholeNumber(None), default=50, show_default=True, help="Of each exchange request."
)
@click.option(
    "--stagger-ms", type=WholeNumber(None), default=120, show_default=True, help="Between a process's opens."
)
@click.option(
    "--ttl-ms", type=WholeNumber(None), default=5_000, show_default=True, help="Life of each lease."
)
@click.option("--seed", type=WholeNumber(None), default=1, show_default=True, help="Of everything random.")
@click.option(
    "--topology",
    metavar="NAME",
    help="Which embedded servers to lock in: single, redlock:N, sentinel or cluster.  [default: single]",
)
@click.option(
    "--redis",
    "redis_urls",
    multiple=True,
    envvar="LOCKGUARD_RACE_REDIS_URL",
    help="A Redis for tests, without locks of others; several times: independent ones.  [env:"
    " LOCKGUARD_RACE_REDIS_URL; default: embedded]",
)
@click.option(
    "--database",
    "database_url",
    default="",
    envvar="LOCKGUARD_RACE_DATABASE_URL",
    help="A Postgres where a scratch database may be made.  [env: LOCKGUARD_RACE_DATABASE_URL; default: an"
    " embedded one]",
)
@click.option(
    "--exchange",
    "exchange_url",
    default="",
    envvar="LOCKGUARD_RACE_EXCHANGE_URL",
    help="A local exchange; it is reset.  [env: LOCKGUARD_RACE_EXCHANGE_URL; default: an embedded one]",
)
@click.option(
    "--logs",
    "log_folder",
    type=click.Path(file_okay=False, writable=True),
    default="",
    metavar="FOLDER",
    help="Have each process write its log there, a file for each round; read by lockguard logs analyze.",
)
@click.option("--keep-database", is_flag=True, help="Leave the scratch database there.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the result there too.",
)
def race(
    *,
    comparing: bool,
    topology: str | None,
    redis_urls: tuple[str, ...],
    json_file: Path | None,
    **options: Any,
) -> None:
    """Race the open of positions against itself in real processes, and count what went wrong.

    It races on servers of its own unless an option or a variable of its own names others; those that the
    bot's variables name are left alone, and a Redis with locks that no race has made is refused.

    Ends with 0 when nothing did, 1 when something did, with the guard or without.
    """
    console = plain_console()
    try:
        # Checked first, so that a mistake starts nothing.
        settings = RaceSettings(
            redis_url=redis_urls[0] if redis_urls else "", more_redis_urls=redis_urls[1:], **options
        )
        if comparing:
            _check_comparing(settings)
        _check_urls(settings)
        require_writable(json_file)
        servers = _servers(topology, redis_urls)
        _make_folder(settings.log_folder)
        title = "comparing" if comparing else f"scenario {settings.scenario}"
        with warnings_told(console.print), _bar(console) as bar:
            task = bar.add_task(title, total=None if settings.duration_s else settings.opens)

            def show(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            result = interrupt.run(_run(settings, servers, console, show, comparing=comparing))
    except ServerUnreachable as exc:
        raise click.ClickException(str(exc)) from exc
    except (LockguardError, ImportError) as exc:
        raise Mistake(str(exc)) from exc
    console.print(result_table(result) if isinstance(result, RaceResult) else _pace_table(result))
    if json_file is not None:
        _write(json_file, json.dumps(result.as_json(), indent=2) + "\n")
    if isinstance(result, RaceResult) and not result.clean:
        raise SystemExit(_UNCLEAN)


def _write(path: Path, text: str) -> None:
    try:
        write_private(path, text)
    except ConfigurationError as exc:
        raise Mistake(str(exc)) from exc


def _check_comparing(settings: RaceSettings) -> None:
    """Refuse options that only a race uses, rather than ignore them silently."""
    given = {
        "--no-guard": not settings.guard,
        "--phase": settings.phase != "all",
        "--expire-leases": settings.expire_leases,
        "--faults": bool(settings.faults),
        "--duration": settings.duration_s is not None,
        "--logs": bool(settings.log_folder),
    }
    if names := [name for name, is_given in given.items() if is_given]:
        raise ConfigurationError(
            f"--compare opens undisturbed with the guard and without; leave {names[0]} out"
        )


def _check_urls(settings: RaceSettings) -> None:
    """Check the URLs before anything is started; a malformed one is not shown: it may hold a password."""
    from lockguard._nodes.address import split_url  # noqa: PLC0415 - `--help` needs none of it
    from lockguard_asyncpg._dsn import checked  # noqa: PLC0415 - its extras may be missing

    for given in filter(None, settings.redis_urls):
        split_url(given)
    if settings.database_url:
        checked(settings.database_url)
    url = settings.exchange_url
    if url and not re.fullmatch(r"https?://[\w.\-\[\]:]+(/[\w.\-/]*)?", url):
        raise ConfigurationError("--exchange cannot be read; write http://host:port of a local exchange")


def _make_folder(name: str) -> None:
    if not name:
        return
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"--logs {name} cannot be made: {exc.strerror or exc}") from exc
    require_writable(Path(name, "log"))


def _servers(topology: str | None, urls: Sequence[str]) -> Topology | None:
    """The servers to start for the locks, if any."""
    if topology is not None and urls:
        raise ConfigurationError(
            "--topology starts servers, and --redis or LOCKGUARD_RACE_REDIS_URL names others; leave one out"
        )
    if urls:
        return None
    return TopologyName.parse(topology or "single").servers()


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


async def _run(
    settings: RaceSettings,
    servers: Topology | None,
    console: Console,
    on_progress: Callable[[int, int], None],
    *,
    comparing: bool,
) -> RaceResult | PaceResult:
    """Run the race, on embedded servers where no others are given."""
    try:
        from lockguard_asyncpg._dsn import shown  # noqa: PLC0415 - its extras may be missing
        from lockguard_lab.race.pace import compare  # noqa: PLC0415 - the same
        from lockguard_lab.race.run import run_race  # noqa: PLC0415 - the same
        from lockguard_lab.race.servers import redis_place  # noqa: PLC0415 - the same
    except ImportError as exc:
        raise ConfigurationError(str(exc)) from exc
    async with AsyncExitStack() as stack:
        if servers is not None and settings.guard:
            await stack.enter_async_context(servers)
            first, *more = TopologyName.urls(servers)
            settings = replace(settings, redis_url=first, more_redis_urls=tuple(more))
            console.print(f"Redis:    {settings.topology}, {servers.servers[0].binary}", highlight=False)
        elif settings.guard:
            console.print(f"Redis:    {', '.join(map(redis_place, settings.redis_urls))}", highlight=False)
        if settings.database_url:
            console.print(f"Postgres: {shown(settings.database_url)}", highlight=False)
        else:
            from lockguard_lab.servers import PostgresServer  # noqa: PLC0415 - the same

            postgres = await stack.enter_async_context(PostgresServer(max_connections=400))
            console.print(f"Postgres: {postgres.binary}", highlight=False)
            settings = replace(settings, database_url=postgres.url)
        if not settings.exchange_url:
            from lockguard_lab.race.exchange import exchange_apart  # noqa: PLC0415 - the same

            exchange_url = await stack.enter_async_context(exchange_apart())
            console.print(f"exchange: local, {exchange_url}", highlight=False)
            settings = replace(settings, exchange_url=exchange_url)
        return await (compare if comparing else run_race)(settings, on_progress=on_progress)


def result_table(result: RaceResult) -> Table:
    """The result of a race as a table for the terminal."""
    settings = result.settings
    guard = "with the guard" if settings.guard else "without the guard"
    where = "" if settings.phase == "all" else f", {settings.phase}"
    table = Table(title=f"Scenario {settings.scenario}{where}, {settings.processes} processes, {guard}")
    table.add_column("what")
    table.add_column("count", justify="right")
    rows: list[tuple[str, int, bool]] = [
        ("opens", result.opens, False),
        ("duplicates", result.duplicates, True),
        ("  two rows open at once", result.overlapping_rows, True),
        ("  unique index violated", result.unique_violations, True),
        ("  entered twice on the exchange", result.double_entries, True),
        ("positions turned round", result.reversed_positions, True),
        ("positions without a stop", result.without_stop, True),
        ("stops without a position", result.orphan_stops, True),
        ("leases taken away in mid-flow", result.leases_expired, False),
        ("stale writes refused", result.stale_writes.refused, False),
        ("stale writes committed", result.stale_writes.committed, True),
        ("opens without a position", result.not_opened, False),
        ("opens rolled back", result.rolled_back, False),
        ("passes, sync or clean-up", result.passes, False),
        ("symbols that passes left to their holder", result.skipped, False),
        ("errors", len(result.errors), True),
    ]
    for name, count, bad in rows:
        style = None if not bad else "green" if not count else "red"
        table.add_row(name, str(count), style=style)
    median = "-" if result.open_ms_median is None else f"{result.open_ms_median:.0f} ms"
    table.add_row("time to open, median", median)
    table.add_row("time in all", f"{result.seconds:.1f} s")
    for error in result.errors[:3]:
        table.add_row("", error, style="red")
    if result.database is not None:
        table.add_row("scratch database", result.database)
    return table


def _pace_table(result: PaceResult) -> Table:
    table = Table(
        title=f"Time to open, {result.settings.latency_ms} ms a request, {result.settings.opens} each"
    )
    for name in ("", "median", "p90", "requests to the exchange"):
        table.add_column(name, justify="left" if name in {"", "requests to the exchange"} else "right")
    for name, pace in (("with the guard", result.guarded), ("without, the same steps", result.unguarded)):
        table.add_row(name, f"{pace.median_ms:.1f} ms", f"{pace.p90_ms:.1f} ms", ", ".join(pace.requests))
    table.add_row("the guard's share", f"{result.ratio - 1:+.1%}", "", "")
    return table
