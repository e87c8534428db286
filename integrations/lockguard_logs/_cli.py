"""``lockguard logs analyze``: finds duplicates, races and the timeline of a symbol in a bot's log.

Exit codes: 0 no findings, 1 findings, 2 an error in the command line, 3 no findings in a log that was not
understood.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import click
    from rich import box
    from rich.text import Text

    from lockguard._cli.tables import Table, console, shown
except ImportError as missing:
    raise ImportError("the commands need click and rich; pip install 'lockguard[cli]'") from missing

from lockguard._cli.numbers import DecimalNumber
from lockguard._private_files import replacing, require_writable
from lockguard.errors import ConfigurationError
from lockguard_logs._analysis import Analysis, Told, analyze
from lockguard_logs._picture import draw
from lockguard_logs._records import Record, read_logs
from lockguard_logs._sightings import Sighting, SightingKind
from lockguard_logs._stamps import read_typed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["logs"]

_FOUND = 1
_NOT_UNDERSTOOD = 3
_NOT_UNDERSTOOD_TEXT = (
    "no message of a new position was recognised, so that positions made or entered twice would not be seen;"
    r" give the bot's own words, such as --created 'NEW (?P<symbol>\S+) #(?P<id>\d+)'"
)
_ROWS_MAX = 200
_WHOLE = 3
_TIME = "%H:%M:%S.%f"
_WITH_DATE = "%Y-%m-%d %H:%M:%S.%f"


@click.group()
def logs() -> None:
    """Find duplicates and races in a bot's log."""


@logs.command(name="analyze")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--from", "start", metavar="TIME", help="As '2026-11-21 05:09'; '05:09' is on the log's first day."
)
@click.option("--to", "end", metavar="TIME", help="The same.")
@click.option("--symbol", help="Only this one, in any spelling; tells its story.")
@click.option(
    "--window",
    "window_s",
    type=DecimalNumber(0, 1e9, above=True),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="A second row of a symbol within so long of the first is a duplicate.",
)
@click.option(
    "--created",
    metavar="REGEX",
    help="The bot's own words for a new position, with the groups (?P<symbol>), (?P<id>) if it has them.",
)
@click.option(
    "--export",
    "export_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write JSON there; - prints it.",
)
@click.option(
    "--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="Draw a picture there."
)
def analyze_(
    *,
    files: tuple[str, ...],
    start: str | None,
    end: str | None,
    symbol: str | None,
    window_s: float,
    created: str | None,
    export_file: Path | None,
    html_file: Path | None,
) -> None:
    """Find duplicates and races in logs, and tell the story of a symbol.

    FILE is a log, a .gz, or - for the standard input; those of several processes are taken together. Looks
    for violated unique indexes (in tracebacks too), positions that were made twice, refused writes and lost
    leases. Ends with 0 when there were none, with 1 when there were, and with 3 when no message of a new
    position was recognised, so that nothing can be said; --created then gives the bot's own words.
    """
    pattern = _pattern(created)
    for option, written in (("--export", export_file), ("--html", html_file)):
        _spare(files, option, written)
    require_writable(html_file, None if str(export_file) == "-" else export_file)
    records = read_logs(files, lambda note: click.echo(f"Note: {note}", err=True))
    first = next(records)
    since, until = _instant(start, "--from", first.at), _instant(end, "--to", first.at)
    if since is not None and until is not None and since > until:
        raise ConfigurationError(f"--from {start} is after --to {end}; exchange them")
    span = _Span()
    found = analyze(
        span.watch(chain([first], records)),
        symbol=symbol,
        start=since,
        end=until,
        window=timedelta(seconds=window_s),
        created=pattern,
    )
    if not found.records:
        raise ConfigurationError(
            f"nothing was logged between --from and --to; the log goes from {span.first:%Y-%m-%d %H:%M:%S}"
            f" to {span.last:%Y-%m-%d %H:%M:%S}"
        )
    # Write files first: a reader such as head may close the output in the middle of the tables.
    if html_file is not None:
        _write(html_file, [draw(found, files=files, symbol=symbol)])
    if str(export_file) == "-":
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        if export_file is not None:
            # In pieces: the JSON text of a long log's findings takes several times their memory.
            _write(export_file, chain(json.JSONEncoder(indent=2).iterencode(found.as_json()), ["\n"]))
        _show(found, symbol)
    for file in found.not_understood if found.understood else ["the log"]:
        click.echo(f"Note: {file}: {_NOT_UNDERSTOOD_TEXT}", err=True)
    if found.findings:
        raise SystemExit(_FOUND)
    if not found.understood:
        raise SystemExit(_NOT_UNDERSTOOD)


class _Span:
    """The times that a log covers, for the error when none of its records lies in the interval."""

    def __init__(self) -> None:
        self.first = self.last = datetime.min.replace(tzinfo=UTC)

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        begun = False
        for record in records:
            self.first = min(self.first, record.at) if begun else record.at
            self.last = max(self.last, record.at) if begun else record.at
            begun = True
            yield record


def _pattern(created: str | None) -> re.Pattern[str] | None:
    if created is None:
        return None
    try:
        return re.compile(created)
    except re.error as exc:
        raise ConfigurationError(f"--created {created!r} is no regular expression: {exc}") from exc


def _spare(files: tuple[str, ...], option: str, written: Path | None) -> None:
    """Refuse to overwrite one of the logs.

    Raises:
        ConfigurationError: ``written`` is one of ``files``.
    """
    if written is not None and written.is_file():
        for file in files:
            if Path(file).is_file() and written.samefile(file):
                raise ConfigurationError(
                    f"{option} {written} is the log {file}; give the report another name"
                )


def _instant(text: str | None, option: str, default: datetime) -> datetime | None:
    if text is None:
        return None
    try:
        return read_typed(text, default)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{option} {text!r} is no time; write it as '2026-11-21 05:09:54' or '05:09'"
        ) from None


def _write(file: Path, pieces: Iterable[str]) -> None:
    with replacing(file) as written:
        written.writelines(pieces)


# --- tables ---


def _show(found: Analysis, symbol: str | None) -> None:
    out = console()
    records = f"{found.records} record{'' if found.records == 1 else 's'}"
    out.print(f"{records} from {_told(found.first)} to {_told(found.last)}")
    if found.cut_off:
        out.print(f"There is more: {found.cut_off}. Narrow it with --from, --to or --symbol.")
    if symbol is not None:
        out.print(_timeline(found, symbol) if found.timeline else shown(f"{symbol} is not mentioned."))
    if found.busy:
        most = ", ".join(f"{name} {count}" for name, count in list(found.busy.items())[:5])
        out.print(shown(f"Found busy {found.counts[SightingKind.BUSY]} times: {most}"))
    if not found.findings:
        out.print("No duplicates, no races." if found.understood else "Nothing was found.")
        return
    out.print(_findings(found))
    duplicates = sum(finding.kind.duplicate for finding in found.findings)
    out.print(f"{duplicates} duplicates, {len(found.findings) - duplicates} races that were stopped")


def _findings(found: Analysis) -> Table:
    table = _table("What went wrong", "when", "what", "symbol", "details", "where")
    one_day = len({finding.at.date() for finding in found.findings}) == 1
    for finding in found.findings[:_ROWS_MAX]:
        style = "red" if finding.kind.duplicate else "yellow"
        where = Text("\n").join(shown(p) for p in dict.fromkeys(map(_place, finding.sightings[:4])))
        when = _told(finding.at, with_date=not one_day)
        table.add_row(when, finding.kind.value, finding.resource, finding.details, where, style=style)
    if len(found.findings) > _ROWS_MAX:
        table.caption = f"{len(found.findings) - _ROWS_MAX} more; --export has all of them"
    return table


def _timeline(found: Analysis, symbol: str) -> Table:
    table = _table(f"The story of {symbol}", "when", "after", "what", "told", "where")
    begin = found.timeline[0].at
    one_day = begin.date() == found.timeline[-1].at.date()
    for told in found.timeline[:_ROWS_MAX]:
        after = f"+{(told.at - begin).total_seconds():.3f} s"
        what = ", ".join(kind.value for kind in told.what)
        when = _told(told.at, with_date=not one_day)
        table.add_row(when, after, what, told.text, _place(told))
    if len(found.timeline) > _ROWS_MAX:
        table.caption = f"{len(found.timeline) - _ROWS_MAX} more; --export has all of them"
    return table


def _table(title: str, *columns: str) -> Table:
    """A table whose first three columns never wrap: they fit in a terminal of 80 characters."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number < _WHOLE)
    return table


def _place(told: Sighting | Told) -> str:
    """The file's name and the line; the directory is left out to save room, and is in ``--export``."""
    return f"{Path(told.file).name}:{told.line}"


def _told(at: datetime | None, *, with_date: bool = True) -> str:
    return "-" if at is None else at.strftime(_WITH_DATE if with_date else _TIME)[:-3]
