"""``lockguard bench``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lockguard._cli import tables
from lockguard._cli.numbers import WholeNumber
from lockguard._private_files import require_writable, write_private
from lockguard.errors import ConfigurationError
from lockguard_lab.bench.contenders import PEERS
from lockguard_lab.bench.figures import Figures, Sizes
from lockguard_lab.bench.loops import LOOPS, loop_factory, run_on
from lockguard_lab.bench.plot import svg
from lockguard_lab.bench.run import measure
from lockguard_lab.bench.synchronous import measure_synchronous
from lockguard_lab.bench.table import show
from lockguard_lab.servers.topology_names import TopologyName, warnings_told

__all__ = ["bench"]

_ROUNDS_MAX = 100
_HISTORY_MAX = 1_000_000
_USES = {
    "fence": {"rounds", "history", "json_file", "plot_file"},
    "observers": {"loop", "rounds", "json_file"},
    "synchronous": {"loop", "rounds", "json_file"},
    "holders": {"peers", "rounds", "json_file"},
}
"""What each other measurement takes of the options."""
_USUAL = {"peers", "rounds", "topology", "loop", "json_file", "plot_file"}
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
    type=WholeNumber(1, _ROUNDS_MAX),
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
    type=WholeNumber(0, _HISTORY_MAX),
    default=100_000,
    show_default=True,
    help="With --fence: up to how many earlier writes.",
)
@click.option(
    "--observers",
    is_flag=True,
    help="What observers cost instead: the log, Prometheus and OpenTelemetry.",
)
@click.option(
    "--sync",
    "synchronous",
    is_flag=True,
    help="What the guard for synchronous code costs instead, beside the asynchronous one and redis-py.",
)
@click.option(
    "--stopped-holder",
    "holders",
    is_flag=True,
    help="What becomes of the lock, its successor and a late write when the holder is stopped, killed or cut"
    " off, instead: also with advisory locks, FOR UPDATE and etcd. --peers names some of them.",
)
@click.pass_context
def bench(
    context: click.Context,
    peers: str,
    json_file: Path | None,
    plot_file: Path | None,
    rounds: int,
    topology: str,
    loop: str,
    history: int,
    *,
    fence: bool,
    observers: bool,
    synchronous: bool,
    holders: bool,
) -> None:
    """Measure lockguard, its limits and its peers in one run on servers of its own.

    The limits are the same two script calls without lockguard around them. Trust the ratios within one run
    more than the figures, and run it while the machine has nothing else to do.
    """
    _refuse_what_has_no_use(context)
    if fence:
        _bench_fence(rounds=rounds, history=history, json_file=json_file, plot_file=plot_file)
        return
    if observers:
        _bench_observers(loop=loop, rounds=rounds, json_file=json_file)
        return
    if synchronous:
        _bench_synchronous(loop=loop, rounds=rounds, json_file=json_file)
        return
    if holders:
        given = context.get_parameter_source("peers") is not click.core.ParameterSource.DEFAULT
        _bench_holders(peers=_named(peers) if given else None, rounds=rounds, json_file=json_file)
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


def _refuse_what_has_no_use(context: click.Context) -> None:
    """A measurement that silently left out what was asked for would be taken for the one that was asked for.

    Raises:
        ConfigurationError: two measurements are asked for, or an option that this one does not take.
    """
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params if parameter.name}
    given = [
        name for name in flags if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    ]
    modes = [name for name in given if name in _USES and context.params[name]]
    if len(modes) > 1:
        raise ConfigurationError(
            f"{' and '.join(flags[name] for name in modes)} measure different things; give one of them"
        )
    uses = _USES[modes[0]] if modes else _USUAL
    for name in given:
        if name not in uses and name not in _USES:
            where = f"with {flags[modes[0]]}" if modes else "without --fence"
            raise ConfigurationError(f"{flags[name]} has no use {where}; leave it out")


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


def _bench_holders(**options: Any) -> None:
    try:
        measured = import_module("lockguard_lab.bench.holders.command")
    except ImportError as missing:
        raise ConfigurationError(
            f"--stopped-holder needs a package that is missing: {missing}; install 'lockguard[bench]'"
        ) from missing
    with _quiet():
        measured.bench_holders(**options)


def _bench_observers(*, loop: str, rounds: int, json_file: Path | None) -> None:
    try:
        measured = import_module("lockguard_lab.bench.observers")
    except ImportError as missing:
        raise ConfigurationError(
            f"--observers needs a package that is missing: {missing}; install 'lockguard[metrics]'"
        ) from missing
    require_writable(json_file)
    loop_factory(loop)
    with _quiet():
        costs = run_on(loop, measured.measure_observers(rounds))
    if json_file is not None:
        write_private(json_file, json.dumps([asdict(cost) for cost in costs], indent=2))
    table = tables.Table("observer", "its own work a lock", "a hold", "ratio")
    for cost in costs:
        table.add_row(cost.observer, f"{cost.own_us:.2f} us", f"{cost.hold_us:.1f} us", f"{cost.ratio:.3f}")
    tables.console().print(table)


def _bench_synchronous(*, loop: str, rounds: int, json_file: Path | None) -> None:
    require_writable(json_file)
    loop_factory(loop)
    with _quiet():
        speeds = measure_synchronous(rounds, loop)
    if json_file is not None:
        write_private(json_file, json.dumps([asdict(speed) for speed in speeds], indent=2))
    table = tables.Table("lock and unlock by one thread", "the fastest twentieth", "median", "ratio")
    for speed in speeds:
        table.add_row(
            speed.contender, f"{speed.fast_us:.0f} us", f"{speed.median_us:.0f} us", f"{speed.ratio:.2f}"
        )
    tables.console().print(table)


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
    names = _named(peers)
    for name in names:
        if name not in PEERS:
            raise ConfigurationError(f"peer {name!r} is not known; give some of {', '.join(PEERS)}")
    return names


def _named(peers: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in peers.split(",") if name.strip()))


def _write(figures: Figures, json_file: Path | None, plot_file: Path | None) -> None:
    if json_file is not None:
        write_private(json_file, json.dumps(figures.to_json(), indent=2) + "\n")
    if plot_file is not None:
        write_private(plot_file, svg(figures))
