"""``lockguard servers``: a real Redis and a real Postgres from wheels, until they are not needed any more."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import shlex
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import click
except ImportError as missing:
    raise ImportError("the commands need click; pip install 'lockguard[cli]'") from missing

from lockguard import _interrupt as interrupt
from lockguard._cli.command import Command
from lockguard._cli.mistake import Mistake
from lockguard._cli.numbers import WholeNumber
from lockguard._private_files import new_private, require_writable
from lockguard.errors import ConfigurationError
from lockguard.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard_lab.servers.topologies import Topology

__all__ = ["servers"]

_LOST = 125
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127

_STOP_WITHIN_S = 10.0
"""How long a command that is ended has between TERM and KILL."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to start; each port is 0 for a free one."""

    topology: str
    redis_port: int
    postgres_port: int
    exchange_port: int | None
    fence: bool


@click.command(
    context_settings={"allow_interspersed_args": False},
    short_help="Start a Redis and a Postgres from wheels, and print their URLs, until Ctrl-C.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND [ARGUMENT]...]")
@click.option("--exchange", is_flag=True, help="Start the local exchange too.")
@click.option("--fence", is_flag=True, help="Install the fence in the database, as lockguard fence install.")
@click.option(
    "--topology",
    default="single",
    show_default=True,
    help="Which Redis servers: single, redlock:N, sentinel or cluster.",
)
@click.option("--redis-port", type=WholeNumber(0, 65535), default=0, help="Of Redis.  [default: a free one]")
@click.option(
    "--postgres-port", type=WholeNumber(0, 65535), default=0, help="Of Postgres.  [default: a free one]"
)
@click.option(
    "--exchange-port",
    type=WholeNumber(0, 65535),
    help="Of the local exchange, which this starts too.  [default: a free one]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the variables as one line of JSON.")
@click.option(
    "--env-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the variables to this new file, for this user alone; it is deleted in the end.",
)
def servers(
    *,
    command: tuple[str, ...],
    exchange: bool,
    fence: bool,
    topology: str,
    redis_port: int,
    postgres_port: int,
    exchange_port: int | None,
    as_json: bool,
    env_file: Path | None,
) -> int:
    """Start a Redis and a Postgres from wheels, and print their URLs, until Ctrl-C.

    The URLs are printed as variables to copy into another terminal. Each server asks for a password, listens
    on 127.0.0.1 alone, and ends with this process, however that ends; its data are deleted. With COMMAND, the
    variables are in its environment instead, and everything ends with it.

    Exit code: 0 after Ctrl-C, TERM or HUP; with COMMAND that of the command, 128 + N if signal N killed it,
    127 if it was not found, 126 if it cannot be executed; 2 for a mistake in the call, such as a port in use.
    """
    if command and as_json:
        raise ConfigurationError(
            "--json prints the URLs, and COMMAND has them in its environment; leave one out"
        )
    if command and not command[0]:
        raise ConfigurationError("no command is given behind --; write one, or leave -- out")
    if topology != "single" and redis_port:
        raise ConfigurationError(f"--redis-port is for --topology single, and not for {printable(topology)}")
    if exchange and exchange_port is None:
        exchange_port = 0
    _require_new(env_file)
    wanted = _Wanted(topology, redis_port, postgres_port, exchange_port, fence)
    return interrupt.run(_serve(wanted, command, as_json=as_json, env_file=env_file))


def _require_new(path: Path | None) -> None:
    if path is not None and os.path.lexists(path):
        raise ConfigurationError(f"{path} exists already; name a new file, or delete it")
    require_writable(path)


async def _serve(wanted: _Wanted, command: Sequence[str], *, as_json: bool, env_file: Path | None) -> int:
    async with AsyncExitStack() as stack:
        told, variables = await _start(wanted, stack)
        if env_file is not None:
            text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
            stack.enter_context(new_private(env_file, text))
        if command:
            return await _run(command, variables)
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as by nohup
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        if as_json:
            click.echo(json.dumps(variables))
        else:
            for name, value in variables.items():
                click.echo(f"export {name}={shlex.quote(value)}")
        click.echo(f"{told}: until Ctrl-C, which ends them and deletes their data", err=True)
        await stop.wait()
    return 0


async def _start(wanted: _Wanted, stack: AsyncExitStack) -> tuple[str, dict[str, str]]:
    """Start what is wanted; returns what that is, and the variables that name it."""
    from lockguard_lab.servers import PostgresServer, RedisServer, TopologyName, ports  # noqa: PLC0415 - --help needs none

    topology = TopologyName.parse(wanted.topology)
    for port in filter(None, (wanted.redis_port, wanted.postgres_port, wanted.exchange_port)):
        ports.check_free(port)
    if topology.kind == "single":
        redis = await stack.enter_async_context(RedisServer(port=wanted.redis_port))
        urls: tuple[str, ...] = (redis.url,)
        told = [f"{redis.binary.product} {redis.version} on port {redis.port}"]
    else:
        several: Topology = await stack.enter_async_context(topology.servers())
        urls = TopologyName.urls(several)
        told = [f"{several.servers[0].binary.product} {several.servers[0].version} ({topology})"]
    postgres = await stack.enter_async_context(PostgresServer(port=wanted.postgres_port))
    told.append(f"{postgres.binary.product} {postgres.version} on port {postgres.port}")
    if wanted.fence:
        await _install_fence(postgres.url)
    variables = {"LOCKGUARD_REDIS_URL": " ".join(urls), "LOCKGUARD_DATABASE_URL": postgres.url}
    if wanted.exchange_port is not None:
        from lockguard_lab.exchange import LOCAL_API_KEY, LOCAL_SECRET, LocalExchange  # noqa: PLC0415 - the same

        exchange = await stack.enter_async_context(LocalExchange(port=wanted.exchange_port))
        told.append(f"the local exchange on {exchange.url}")
        variables |= {
            "LOCKGUARD_EXCHANGE_URL": exchange.url,
            "LOCKGUARD_EXCHANGE_API_KEY": LOCAL_API_KEY,
            "LOCKGUARD_EXCHANGE_SECRET": LOCAL_SECRET,
        }
    return ", ".join(told), variables


async def _install_fence(url: str) -> None:
    try:
        import asyncpg  # noqa: PLC0415 - only this needs it

        from lockguard_asyncpg import install  # noqa: PLC0415
    except ImportError as exc:
        raise Mistake(
            "--fence needs asyncpg, which is not installed; pip install 'lockguard[postgres]'"
        ) from exc
    connection = await asyncpg.connect(url)
    try:
        await install(connection)
    finally:
        await connection.close()


async def _run(words: Sequence[str], variables: dict[str, str]) -> int:
    with Command(words) as command:
        outcome = await command.run(
            variables, deadline=math.inf, stop_within_s=_STOP_WITHIN_S, short_s=_STOP_WITHIN_S
        )
    name = printable(Path(words[0]).name)
    if outcome.errno == errno.ENOENT:
        click.echo(f"lockguard: {name} was not found", err=True)
        return _NOT_FOUND
    if outcome.errno:
        click.echo(f"lockguard: {name} cannot be executed: {os.strerror(outcome.errno)}", err=True)
        return _NOT_EXECUTABLE
    if not outcome.watched or outcome.status is None:
        click.echo(f"lockguard: the watchdog of {name} was killed, so it was killed too", err=True)
        return _LOST
    return outcome.status if outcome.status >= 0 else 128 - outcome.status
