"""A Postgres with the fence's schema, for a command that measures or races and was given no database."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import click

from lockguard._cli.mistake import Mistake
from lockguard.errors import ConfigurationError
from lockguard_asyncpg._connecting import connected
from lockguard_asyncpg._schema import install
from lockguard_lab.servers import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["own_server"]


@contextmanager
def own_server(doing: str, **options: Any) -> Iterator[PostgresServer]:
    """A Postgres with the fence's schema, which ends with the command.

    Args:
        doing: its purpose, for the line that says where it runs.
        **options: the arguments of :class:`~lockguard_lab.servers.PostgresServer`.

    Raises:
        Mistake: this machine has no Postgres; the text names the package.
    """
    try:
        server = PostgresServer(**options).start()
    except ConfigurationError as exc:
        raise Mistake(str(exc)) from exc
    with server:
        click.echo(f"{doing} on a server of its own: {server!r}", err=True)
        connected(server.url, _install)
        yield server


async def _install(conn: asyncpg.Connection[Any]) -> None:
    await install(conn)
