"""The command ``lockguard web``."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from datetime import timedelta
from typing import Any

import click
from aiohttp import web as http
from aiohttp.http_exceptions import HttpProcessingError

from lockguard import _interrupt as interrupt
from lockguard._cli.durations import Duration
from lockguard._cli.numbers import WholeNumber
from lockguard._cli.servers import Servers, with_servers
from lockguard._namespace import NAMESPACE
from lockguard._nodes.address import split_url
from lockguard.errors import ConfigurationError
from lockguard.text import printable
from lockguard_ops._installation import Installation
from lockguard_ops._web._access import Access, is_loopback
from lockguard_ops._web._app import application

__all__ = ["web"]

_PORT = 8765
_INTERVAL = Duration("interval", "sm", "write it as 1s, or longer", least=timedelta(seconds=1))
_VARIABLE = "LOCKGUARD_WEB_TOKEN"
_CLOSING_S = 2.0


@click.command()
@with_servers
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    default=_PORT,
    show_default=True,
    type=WholeNumber(0, 65535),
    help="The port to listen on; 0: any free one.",
)
@click.option(
    "--interval",
    type=_INTERVAL,
    default="1s",
    show_default=True,
    help="The pause between two readings of the servers, such as 5s.",
)
@click.option(
    "--allow-break", is_flag=True, help="Let the page request hand-overs and break locks; else it only shows."
)
@click.option(
    "--allow-remote",
    is_flag=True,
    help="Accept a --host that other machines can reach. The page is not encrypted; an ssh tunnel is safer.",
)
def web(
    servers: Servers, *, host: str, port: int, interval: timedelta, allow_break: bool, allow_remote: bool
) -> None:
    """Show all locks, who waits, and what happens, on a live page in a browser.

    The URL, with a token, is printed on the standard output. It works once: the browser that opens it may see
    the page for a week, and a URL for another one is printed. LOCKGUARD_WEB_TOKEN in the environment sets a
    token that stays valid, over restarts too, and is not printed.

    The page of a server is reached from elsewhere with: ssh -L 8765:127.0.0.1:8765 SERVER
    """
    if not is_loopback(host) and not allow_remote:
        raise ConfigurationError(
            f"--host {printable(host)} can be reached from other machines, and the page is not encrypted:"
            " leave it out and use an ssh tunnel, or add --allow-remote if that is meant"
        )
    access = Access(host=host, token=os.environ.get(_VARIABLE, ""))
    interrupt.run(_serve(servers, access, host=host, port=port, interval=interval, allow_break=allow_break))


async def _serve(
    servers: Servers, access: Access, *, host: str, port: int, interval: timedelta, allow_break: bool
) -> None:
    async with Installation(servers) as installation:
        address = ""

        def tell() -> None:
            if access.lasts:
                click.echo(f"{address}?token=(that of {_VARIABLE})")
            else:
                click.echo(f"{address}?token={access.token}")

        def entered() -> None:
            if not access.lasts:
                click.echo("lockguard: the page was opened; the URL for another browser:", err=True)
                tell()

        app = application(
            installation,
            access,
            about={
                "servers": _places(servers),
                "database": installation.has_database,
                "interval": interval // timedelta(milliseconds=1),
            },
            interval_s=interval.total_seconds(),
            actions=installation if allow_break else None,
            entered=entered,
        )
        runner = http.AppRunner(
            app, handle_signals=False, access_log=None, logger=_logger(), shutdown_timeout=_CLOSING_S
        )
        await runner.setup()
        try:
            address = await _listen(runner, host, port)
            tell()
            await asyncio.get_running_loop().create_future()  # until it is interrupted
        finally:
            await runner.cleanup()


def _logger() -> logging.Logger:
    """The server's log without what is no HTTP: all who reach the port could fill the terminal with it."""
    logger = logging.getLogger("lockguard.web")
    logger.addFilter(_is_no_fault_of_a_client)
    return logger


def _is_no_fault_of_a_client(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


async def _listen(runner: http.AppRunner, host: str, port: int) -> str:
    """Begin to listen; returns the page's address."""
    try:
        await http.TCPSite(runner, host.strip("[]"), port).start()
    except OSError as exc:
        where = f"{printable(host)}:{port}"
        if exc.errno == errno.EADDRINUSE:
            raise click.ClickException(
                f"{where} is in use; is another page open already? --port 0 takes any free port"
            ) from exc
        raise ConfigurationError(
            f"--host {printable(host)}, --port {port} cannot be listened on: {exc.strerror or exc}"
        ) from exc
    bound: Any = runner.addresses[0]
    name = bound[0] if is_loopback(host) else host.strip("[]")  # a browser may take ::1 for localhost
    return f"http://{f'[{name}]' if ':' in name else name}:{bound[1]}/"


def _places(servers: Servers) -> list[str]:
    """The servers for display, without users, passwords and options, and a namespace that was named."""
    found = []
    for url in servers.redis:
        parts = split_url(url)
        found.append(printable(parts.netloc.rpartition("@")[2] + parts.path))
    if servers.database is not None:
        from lockguard_asyncpg._dsn import shown  # noqa: PLC0415 - needs the extra postgres, and there is one

        found.append(printable(shown(servers.database)))
    if servers.namespace != NAMESPACE:
        found.append(f"namespace {servers.namespace}")
    return found
