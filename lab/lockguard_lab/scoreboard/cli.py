"""``lockguard scoreboard``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lockguard._cli import tables
from lockguard._cli.numbers import WholeNumber
from lockguard._cli.tables import console
from lockguard._interrupt import interrupted, run
from lockguard._private_files import require_writable, write_private
from lockguard_lab.scoreboard.cases import CASES
from lockguard_lab.scoreboard.measure import WAYS, Board, measure

__all__ = ["scoreboard"]


@click.command(name="scoreboard")
@click.option(
    "--way", "ways", type=click.Choice(WAYS), multiple=True, help="Only this way to lock; may be repeated."
)
@click.option(
    "--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="Only this case; may be repeated."
)
@click.option(
    "--rounds",
    type=WholeNumber(1, 100),
    default=5,
    show_default=True,
    help="How often a holder is killed.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write what was found."
)
def scoreboard(*, ways: tuple[str, ...], cases: tuple[str, ...], rounds: int, json_file: Path | None) -> None:
    """Do the same faults to lockguard and to other ways to lock, on real servers, and tell what came of each.

    All ways and cases take some twenty minutes. What is not installed is left out and named. Ctrl-C ends it
    with what was found so far. The exit code is 1 if lockguard itself breaks what it promises.
    """
    require_writable(json_file)
    with console().status("starting servers") as status:
        board = run(
            measure(
                ways or WAYS,
                cases or list(CASES),
                rounds=rounds,
                progress=lambda what: status.update(f"{what} ..."),
            )
        )
    if json_file is not None:
        write_private(json_file, json.dumps(board.to_json(), indent=2) + "\n")
    _show(board)
    if board.interrupted_at:
        click.echo(f"interrupted at {board.interrupted_at}: all that follows was not tried", err=True)
        raise SystemExit(interrupted())
    raise SystemExit(1 if board.to_json()["violations"] else 0)


def _show(board: Board) -> None:
    for name, case in CASES.items():
        cells = [one for one in board.cells if one.case == name]
        if cells:
            table = tables.Table("", "", "", title=f"{case.asks} ({name})", title_justify="left")
            for one in cells:
                table.add_row(one.way, one.verdict, one.told)
            console().print(table)
    for name, why in board.left_out.items():
        click.echo(f"left out: {name}: {why}")
