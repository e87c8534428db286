"""``lockguard fence bench``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import asyncpg
import click

from lockguard._cli.numbers import WholeNumber
from lockguard._cli.tables import Table, console
from lockguard_asyncpg._connecting import connected
from lockguard_asyncpg._dsn import shown
from lockguard_lab.bench.protection_costs import Cost, measure
from lockguard_lab.own_server import own_server

__all__ = ["bench_command"]


@click.command(name="bench")
@click.option("--rows", default=20_000, show_default=True, type=WholeNumber(100), help="Of each table.")
@click.option("--rounds", default=5, show_default=True, type=WholeNumber(1), help="How often each change.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--url", help="A database with the schema to measure on; no environment variable names it.")
def bench_command(url: str | None, rows: int, rounds: int, *, as_json: bool) -> None:
    """Measure what a protected and a watched table cost.

    Starts a server of its own unless --url names a database; what the bot's own variables name is left alone.
    There it makes and drops a schema lockguard_bench, and refuses one that it did not make.
    """
    options = {"rows": rows, "rounds": rounds, "as_json": as_json}
    if url is None:
        with own_server("measuring") as server:
            connected(server.url, _bench, **options)
        return
    click.echo(f"measuring on {shown(url)}", err=True)
    connected(url, _bench, **options)


async def _bench(conn: asyncpg.Connection[Any], rows: int, rounds: int, *, as_json: bool) -> None:
    costs = await measure(conn, rows=rows, rounds=rounds)
    if as_json:
        click.echo(json.dumps([_facts(c) for c in costs], indent=2))
        return
    figures_table = Table(
        "table", "change", "for each", "unprotected", "protected", "ratio", "watched", "ratio"
    )
    for c in costs:
        protected = f"{c.protected_us:.2f} us", f"{c.ratio:.1f}"
        watched = f"{c.watched_us:.2f} us", f"{c.watched_ratio:.1f}"
        figures_table.add_row(c.table, c.change, c.unit, f"{c.plain_us:.2f} us", *protected, *watched)
    console().print(figures_table)


def _facts(cost: Cost) -> dict[str, Any]:
    return {**asdict(cost), "ratio": cost.ratio, "watched_ratio": cost.watched_ratio}
