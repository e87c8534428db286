"""``lockguard bench``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lockguard._private_files import require_writable, write_private
from lockguard.errors import ConfigurationError
from lockguard_lab.bench.contenders import PEERS
from lockguard_lab.bench.figures import Figures, Sizes
from lockguard_lab.bench.loops import LOOPS, loop_factory, run_on
from lockguard_lab.bench.plot import svg
from lockguard_lab.bench.run import measure
from lockguard_lab.bench.table import show
from lockguard_lab.servers.topology_names import TopologyName, warnings_told

__all__ = ["bench"]

_ROUNDS_MAX = 100
_HISTORY_MAX = 1_000_000
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--peers",
    default=",".join(PEERS),
    show_default=True,
    metavar="NAMES",
    help="Whom to compare with, separated by commas; empty: nobody.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures."
)
@click.option("--plot", "plot_file", type=click.Path(dir_okay=False, path_type=Path), help="Write an SVG.")
@click.option(
    "--rounds",
    type=click.IntRange(1, _ROUNDS_MAX),
    default=Sizes().rounds,
    show_default=True,
    help="Turns of each contender; the figures are medians over them.",
)
@click.option(
    "--topology",
    default="single",
    show_default=True,
    metavar="NAME",
    help="Which servers to lock in: single, redlock:N, sentinel or cluster.",
)
@click.option(
    "--loop",
    type=click.Choice(LOOPS),
    default=LOOPS[0],
    show_default=True,
    help="The event loop of everybody that is measured.",
)
@click.option(
    "--fence",
    is_flag=True,
    help="What the fence in Postgres costs instead: without fsync, with it, on a slow disk, and pooled.",
)
@click.option(
    "--history",
    type=click.IntRange(0, _HISTORY_MAX),
    default=100_000,
    show_default=True,
    help="With --fence: up to how many earlier writes.",
)
def bench(
    peers: str,
    json_file: Path | None,
    plot_file: Path | None,
    rounds: int,
    topology: str,
    loop: str,
    history: int,
    *,
    fence: bool,
) -> None:
    """Measure lockguard, its limits and its peers in one run on servers of its own.

    The limits are the same two script calls without lockguard around them. Trust the ratios within one run
    more than the figures, and run it while the machine has nothing else to do.
    """
    if fence:
        _bench_fence(rounds=rounds, history=history, json_file=json_file, plot_file=plot_file)
        return
    names, where = _known(peers), TopologyName.parse(topology)
    require_writable(json_file, plot_file)
    loop_factory(loop)  # reports a missing loop before servers are started
    console = Console()
    with _quiet(), warnings_told(console.print), console.status("starting servers") as status:
        figures = run_on(
            loop,
            measure(
                names,
                replace(Sizes(), rounds=rounds),
                progress=lambda what: status.update(f"{what} ..."),
                topology=where,
            ),
        )
    _write(figures, json_file, plot_file)
    show(figures, console)


def _bench_fence(**options: Any) -> None:
    """Import by name: the core knows nothing of Postgres, and works without the packages for it."""
    try:
        measured = import_module("lockguard_lab.bench.fence_speed_command")
    except ImportError as missing:
        raise ConfigurationError(
            f"--fence needs a package that is missing: {missing}; install 'lockguard[postgres,demo]'"
        ) from missing
    with _quiet():
        measured.bench_fence(**options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the logs: python-redis-lock logs each lock, and late renewals are measured here, not logged."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


def _known(peers: str) -> list[str]:
    names = [name.strip() for name in peers.split(",") if name.strip()]
    for name in names:
        if name not in PEERS:
            raise ConfigurationError(f"peer {name!r} is not known; give some of {', '.join(PEERS)}")
    return list(dict.fromkeys(names))


def _write(figures: Figures, json_file: Path | None, plot_file: Path | None) -> None:
    if json_file is not None:
        write_private(json_file, json.dumps(figures.to_json(), indent=2) + "\n")
    if plot_file is not None:
        write_private(plot_file, svg(figures))
