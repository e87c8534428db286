"""``lockguard exchange``: the local exchange as a command."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import click
except ImportError as missing:
    raise ImportError("the commands need click; pip install 'lockguard[cli]'") from missing

from lockguard import _interrupt as interrupt
from lockguard._cli.mistake import Mistake
from lockguard._cli.numbers import WholeNumber
from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from lockguard_lab.exchange import LocalExchange

__all__ = ["exchange"]


@click.group()
def exchange() -> None:
    """A local futures exchange, for tests and demonstrations."""


@exchange.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", default=8080, show_default=True, type=WholeNumber(0, 65535), help="0 takes a free one."
)
@click.option(
    "--latency-ms",
    default=0,
    show_default=True,
    type=WholeNumber(0, 60_000),
    help="How long each request takes.",
)
@click.option(
    "--symbols",
    default="",
    help="Comma-separated, as BTCUSDT or BTC/USDT:USDT.  [default: thirty common perpetuals]",
)
@click.option(
    "--api-key",
    envvar="LOCKGUARD_EXCHANGE_API_KEY",
    help="The account's key.  [env: LOCKGUARD_EXCHANGE_API_KEY; default: local-key]",
)
@click.option(
    "--secret",
    envvar="LOCKGUARD_EXCHANGE_SECRET",
    help="The account's secret.  [env: LOCKGUARD_EXCHANGE_SECRET; default: local-secret]",
)
@click.option(
    "--tls",
    nargs=2,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="CERTIFICATE KEY",
    help="Speak HTTPS, with these files in PEM format.",
)
def serve(
    *,
    host: str,
    port: int,
    latency_ms: int,
    symbols: str,
    api_key: str | None,
    secret: str | None,
    tls: tuple[Path, Path] | None,
) -> None:
    """Run the exchange until it is interrupted.

    The first line of the output ends in its URL.
    """
    try:
        from lockguard_lab.exchange import LOCAL_API_KEY, LOCAL_SECRET, LocalExchange, parse_markets  # noqa: PLC0415
    except ImportError as exc:
        raise Mistake(str(exc)) from exc
    try:
        server = LocalExchange(
            symbols=parse_markets(symbols),
            host=host,
            port=port,
            latency=timedelta(milliseconds=latency_ms),
            api_key=api_key or LOCAL_API_KEY,
            secret=secret or LOCAL_SECRET,
            tls=tls,
        )
        interrupt.run(_serve(server))
    except ConfigurationError as exc:
        raise Mistake(str(exc)) from exc


@exchange.command(name="settings")
@click.argument("url")
def settings_(url: str) -> None:
    """Print, as JSON, the settings with which an unmodified ccxt talks to a local exchange at URL.

    Such as for ccxt_config of freqtrade. The URL is of HTTPS: start the exchange with --tls.
    """
    try:
        from lockguard_lab.exchange import ccxt_settings  # noqa: PLC0415
    except ImportError as exc:
        raise Mistake(str(exc)) from exc
    try:
        click.echo(json.dumps(ccxt_settings(url), indent=2))
    except ConfigurationError as exc:
        raise Mistake(str(exc)) from exc


async def _serve(server: LocalExchange) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with server:
        click.echo(f"local exchange listening on {server.url}")
        click.echo(f"contracts: {', '.join(server.symbols)}")
        await stop.wait()
