"""``lockguard bench --fence``: measures the cost of the fence on servers of its own."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from rich.console import Console
from rich.table import Table

from lockguard._interrupt import run
from lockguard._private_files import require_writable, write_private
from lockguard_lab.bench.fence_speed import Speed, measure_history, measure_speed
from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer
from lockguard_lab.servers import PostgresServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["bench_fence", "drawn"]

# A fast local disk hides the cost of a commit elsewhere, so Postgres itself waits 2 ms before each flush, as
# a network disk would make it wait (commit_siblings of 0: even when no other transaction is active).
_DISKS = {
    "fsync off": {"fsync": "off"},
    "fsync on": {"fsync": "on"},
    "fsync on, 2 ms more a commit": {"fsync": "on", "commit_delay": "2000", "commit_siblings": "0"},
}
_CALLS = 40
_WIDTH, _LABEL, _BAR, _LINE = 820, 300, 380, 22


def bench_fence(*, rounds: int, history: int, json_file: Path | None, plot_file: Path | None) -> None:
    """Measure on each kind of disk, and through PgBouncer if installed; show and write the figures."""
    require_writable(json_file, plot_file)
    console = Console()
    found: list[Speed] = []
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        for disk, settings in _DISKS.items():
            server = stack.enter_context(PostgresServer(settings={"synchronous_commit": "on"} | settings))
            ways: list[tuple[str, PgBouncer | None]] = [("directly", None)]
            if find_pgbouncer() is not None:
                ways.append(("through PgBouncer", stack.enter_context(PgBouncer(server))))
            for number, (way, pooler) in enumerate(ways):
                where = f"{disk}, {way}"
                database = server.create_database(f"bench_{number}")
                with console.status(f"measuring with {where} ..."):
                    speed = run(
                        measure_speed(
                            database,
                            redis.url,
                            where=where,
                            rounds=rounds,
                            calls=_CALLS,
                            pooled=None if pooler is None else pooler.url_for(database),
                            durable=disk != "fsync off",
                        )
                    )
                found.append(speed)
                _show(speed, console)
            if history:
                where = f"{disk}, after earlier writes"
                counts = dict.fromkeys((0, history // 10, history))
                urls = {count: server.create_database(f"history_{count}") for count in counts}
                with console.status(f"measuring with {where} ..."):
                    speed = run(measure_history(urls, redis.url, where=where, rounds=rounds, calls=_CALLS))
                found.append(speed)
                _show(speed, console)
    if json_file is not None:
        write_private(json_file, json.dumps([asdict(speed) for speed in found], indent=2) + "\n")
    if plot_file is not None:
        write_private(plot_file, drawn(found))


def _show(speed: Speed, console: Console) -> None:
    table = Table("", "us", "bare writes", title=speed.where, title_justify="left")
    bare = speed.us.get("bare write")
    for name, us in speed.us.items():
        table.add_row(name, f"{us:,.0f}", "" if bare is None else f"{us / bare:.1f}")
    for name, rate in speed.hot_per_s.items():
        table.add_row(f"one hot lock, {name}", f"{rate:,.0f}/s", "")
    console.print(table)
    aims = Table("ratio", "is", "aimed at", "")
    for name, ratio in speed.ratios.items():
        aim = "" if ratio.aim is None else f"at most {ratio.aim:.1f}"
        aims.add_row(name, f"{ratio.value:.2f}", aim, ratio.verdict)
    console.print(aims)


def drawn(found: Sequence[Speed]) -> str:
    """The figures as one self-contained SVG file."""
    parts, top = [], 10
    for speed in found:
        most = max(speed.us.values())
        parts.append(
            f'<text x="10" y="{top + 14}" font-weight="bold">{escape(speed.where)}: microseconds</text>'
        )
        top += _LINE
        for name, us in speed.us.items():
            length = max(1, round(_BAR * us / most))
            parts.append(
                f'<text x="10" y="{top + 14}">{escape(name)}</text>'
                f'<rect x="{_LABEL}" y="{top + 3}" width="{length}" height="14" fill="#1f6feb"/>'
                f'<text x="{_LABEL + length + 6}" y="{top + 14}">{us:,.0f}</text>'
            )
            top += _LINE
        top += _LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}"'
        f' font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}</svg>\n"
    )
