"""``lockguard exporter``."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from pathlib import Path

import click
from prometheus_client import CollectorRegistry

from lockguard import _interrupt as interrupt
from lockguard._cli.durations import Duration
from lockguard._cli.servers import Servers, with_servers
from lockguard.errors import ConfigurationError
from lockguard_metrics._serving import parse_address, serving
from lockguard_ops._collector import InstallationCollector
from lockguard_ops._figures import Figures
from lockguard_ops._installation import Installation

__all__ = ["exporter"]

_FILES = Path(__file__).parent / "monitoring"
_WITHIN = timedelta(seconds=8)
"""A scrape is answered within this time; Prometheus gives up after 10 s unless it is told otherwise."""


def _print_file(name: str) -> None:
    click.echo((_FILES / name).read_text(encoding="utf-8"), nl=False)


@click.command()
@with_servers
@click.option(
    "--listen",
    default="9465",
    show_default=True,
    metavar="[HOST:]PORT",
    help="Where it is scraped; on this machine only unless a host is named. It shows no resource's name.",
)
@click.option(
    "--every",
    type=Duration("interval", "sm", "write seconds, such as 5s", least=timedelta(seconds=1)),
    default="5s",
    show_default=True,
    help="How long a reading is shown before the servers are read again, however often it is scraped.",
)
@click.option("--print-rules", is_flag=True, help="Print alert rules for Prometheus, and end.")
@click.option("--print-dashboard", is_flag=True, help="Print a dashboard for Grafana, and end.")
def exporter(
    servers: Servers,
    listen: str,
    every: timedelta,
    *,
    print_rules: bool,
    print_dashboard: bool,
) -> None:
    """Show the whole installation to Prometheus, read from Redis and Postgres.

    It needs no bot: what it shows is what the servers know. Without a database it shows the locks only. It
    changes nothing; its rights are those of a viewer.
    """
    if print_rules and print_dashboard:
        raise ConfigurationError("--print-rules and --print-dashboard print a file each; give one of them")
    if print_rules or print_dashboard:
        _print_file("rules.yml" if print_rules else "dashboard.json")
        return
    host, port = parse_address(listen, "--listen")
    interrupt.run(_serve(servers, host, port, every))


async def _serve(servers: Servers, host: str, port: int, every: timedelta) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Installation(servers) as installation:
        registry = CollectorRegistry()
        collector = InstallationCollector(Figures(installation), every=every, within=_WITHIN, tell=_tell)
        registry.register(collector)
        async with serving(registry, host, port, name="--listen") as url:
            click.echo(f"lockguard exporter: {url}")
            await stop.wait()
        await collector.aclose()


def _tell(line: str) -> None:
    click.echo(f"lockguard exporter: {line}", err=True)
