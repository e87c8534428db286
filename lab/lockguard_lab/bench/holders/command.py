"""``lockguard bench --stopped-holder``: measures, shows and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lockguard._cli import tables
from lockguard._interrupt import run
from lockguard._private_files import require_writable, write_private
from lockguard.errors import ConfigurationError
from lockguard_lab.bench.holders.choose import WAYS
from lockguard_lab.bench.holders.measure import Sizes, measure
from lockguard_lab.bench.holders.results import Found
from lockguard_lab.bench.holders.wording import TABLES, rows

__all__ = ["bench_holders"]

_TITLES = {
    "stopped": "The holder is stopped beyond its ttl, and writes when it goes on",
    "killed": "The holder is killed, or its connection is cut off without a word",
    "freed": "Postgres ends the session of the stopped holder, as an operator does to free the lock",
    "price": "What it costs",
    "horizon": "What VACUUM keeps while the lock is held",
}


def bench_holders(*, peers: Sequence[str] | None, rounds: int, json_file: Path | None) -> None:
    """Measure the ways named, or all of them.

    Raises:
        ConfigurationError: a name is not known, or the file cannot be written.
    """
    for name in peers or ():
        if name not in WAYS:
            raise ConfigurationError(f"peer {name!r} is not known; give some of {', '.join(WAYS)}")
    require_writable(json_file)
    console = Console()
    with console.status("starting servers") as status:
        found = run(
            measure(
                list(WAYS) if peers is None else peers,
                replace(Sizes(), rounds=rounds),
                progress=lambda what: status.update(f"{what} ..."),
            )
        )
    if json_file is not None:
        write_private(json_file, json.dumps(found.to_json(), indent=2) + "\n")
    _show(found)


def _show(found: Found) -> None:
    console = tables.console()
    for name, head in TABLES.items():
        table = tables.Table(*head, title=_TITLES[name], title_justify="left")
        for row in rows(found, name):
            table.add_row(*(cell.replace("`", "") for cell in row))
        console.print(table)
    if (pooler := found.pooler) is not None:
        answers = {
            "session lock": pooler.session_given_twice,
            "transaction lock": pooler.transaction_given_twice,
            "lockguard": pooler.lockguard_given_twice,
        }
        given = ", ".join(f"{name} {'to both' if twice else 'to one'}" for name, twice in answers.items())
        left = "stayed locked" if pooler.session_leaked else "was free"
        console.print(f"PgBouncer, two clients: {given}; a session lock {left} after its clients had gone.")
    for name, why in found.about.left_out.items():
        console.print(f"left out: {name}: {why}")
