"""The demo's output. Plain ASCII except the frames, which rich replaces where they cannot be shown."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from lockguard_lab.demo.paused import PausedResult, Round, Watch
    from lockguard_lab.demo.report import Claim, Servers
    from lockguard_lab.race.settings import RaceResult

__all__ = ["Screen"]

_GOOD = "green"
_BAD = "bold red"


class Screen:
    """The demo's output on a console.

    Args:
        console: the console to print to, a terminal or not.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str, style: str = "") -> None:
        """Print one paragraph."""
        self._console.print(Text(text, style=style))

    def verbatim(self, text: str) -> None:
        """Print one line that a reader may copy: never wrapped."""
        self._console.print(Text(text), soft_wrap=True)

    def servers(self, servers: Servers) -> None:
        """Print which server binaries run."""
        table = _table("server", "version", "binary")
        for binary in (servers.redis, servers.postgres):
            table.add_row(binary.product, binary.version, f"{binary.source}: {binary.path}")
        table.add_row("exchange", "local", f"ccxt {servers.ccxt} talks to it over HTTP")
        self._console.print(table)

    def act(self, number: int, title: str, text: str) -> None:
        """Announce an act."""
        self._console.print()
        self._console.print(Text(f"Act {number}: {title}", style="bold"))
        self.say(text)

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[float, float, str], None]]:
        """Show a bar while the body runs; gives a function of (done, total, current activity)."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            expand=True,
            disable=not self._console.is_terminal,
        )
        if not self._console.is_terminal:
            self.say(f"  {what} ...", style="dim")
        with bar:
            task = bar.add_task(what, total=None)

            def update(done: float, total: float, now: str = "") -> None:
                bar.update(task, completed=done, total=total, description=now or what)

            yield update

    def race(self, result: RaceResult, against: RaceResult | None = None) -> None:
        """Print the table of a race, with the numbers of another race beside it if given."""
        columns = (against, result) if against is not None else (result,)
        table = _table("", *("with" if one.settings.guard else "without" for one in columns), right=True)
        for name, read in _RACE_ROWS:
            table.add_row(name, *(_cell(read(one), result=one) for one in columns))
        table.add_row(
            "time to open, median",
            *("-" if one.open_ms_median is None else f"{one.open_ms_median:.0f} ms" for one in columns),
        )
        self._console.print(table)
        for error in result.errors[:3]:
            self.say(f"  {error}", style=_BAD)

    def watch(self, watch: Watch, redis_cli: str) -> None:
        """Print a lock as it is in Redis now."""
        table = _table("field", "value")
        for name, value in watch.fields.items():
            table.add_row(name, value)
        self.verbatim(f"$ {redis_cli} HGETALL '{watch.key}'")
        self._console.print(table)
        self.say(
            f"  (and PTTL: {watch.remaining_ms} ms are left; its holder is stopped and renews nothing)", "dim"
        )

    def paused(self, result: PausedResult) -> None:
        """Print the table of the third act, with one column for each round."""
        refused = {refusal.presented: refusal for refusal in result.refusals}

        def write(one: Round) -> Text:
            if one.first_token in refused:
                return Text(f"refused ({refused[one.first_token].sqlstate})", style=_GOOD)
            return Text("committed" if one.sqlstate is None else one.sqlstate, style=_BAD)

        rows: list[tuple[str, Callable[[Round], Text | str]]] = [
            ("holder's token", lambda one: str(one.first_token)),
            ("stopped for", lambda one: f"{(one.resumed_at_ms - one.stopped_at_ms) / 1000:.2f} s"),
            ("successor", lambda one: one.action),
            ("late write", write),
            ("without the check", lambda one: "overwrites" if one.would_overwrite else "does nothing"),
            ("row afterwards", lambda one: one.row_status),
            ("row's token", lambda one: str(one.row_token)),
            ("holder ended", lambda one: f"{one.last_line.partition(':')[0]}, {one.exit_code}"),
            ("on the exchange", lambda one: f"{one.entries} entry, {one.stops} stop"),
        ]
        table = _table("", *(one.symbol for one in result.rounds))
        for name, read in rows:
            table.add_row(name, *(read(one) for one in result.rounds))
        self._console.print(table)
        if result.refusals:
            self.say("Postgres's own words, from its log:", "dim")
            self.say(f"  {result.refusals[0].sqlstate} {result.refusals[0].text}")

    def verdict(self, found: list[Claim], seconds: float) -> None:
        """Print each claim, and whether it held."""
        self._console.print()
        table = _table("claim", "held", "seen")
        for claim in found:
            held = Text("yes", style=_GOOD) if claim.held else Text("NO", style=_BAD)
            table.add_row(claim.text, held, claim.seen)
        self._console.print(table)
        self.say(f"  {seconds:.1f} s in all", "dim")


_RACE_ROWS: tuple[tuple[str, Callable[[RaceResult], tuple[int, bool]]], ...] = (
    ("positions to open", lambda one: (one.opens, False)),
    ("duplicates", lambda one: (one.duplicates, True)),
    ("  two rows open at once", lambda one: (one.overlapping_rows, True)),
    ("  unique index violated", lambda one: (one.unique_violations, True)),
    ("  entered twice on the exchange", lambda one: (one.double_entries, True)),
    ("positions without a stop", lambda one: (one.without_stop, True)),
    ("stops without a position", lambda one: (one.orphan_stops, True)),
    ("opens rolled back", lambda one: (one.rolled_back, True)),
    ("sync passes", lambda one: (one.passes, False)),
    ("symbols they left to their holder", lambda one: (one.skipped, False)),
    ("errors", lambda one: (len(one.errors), True)),
)


def _cell(value: tuple[int, bool], *, result: RaceResult) -> Text:
    count, bad = value
    if not bad:
        return Text(str(count))
    if count:
        return Text(str(count), style=_BAD)
    return Text("0", style=_GOOD if result.settings.guard else "")


def _table(*columns: str, right: bool = False) -> Table:
    options: dict[str, Any] = {"overflow": "fold"}
    table = Table(box=SIMPLE_HEAD, pad_edge=True, show_edge=False)
    for number, column in enumerate(columns):
        justify: Any = "right" if right and number else "left"
        table.add_column(column, justify=justify, **options)
    return table
