"""Connects the commands to the database, and gives their errors in one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

try:
    import click
except ImportError as missing:
    raise ImportError("the commands need click and rich; pip install 'lockguard[cli]'") from missing

import asyncpg

from lockguard import _interrupt as interrupt
from lockguard._cli.mistake import Mistake
from lockguard._private_files import is_of_the_output
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import _dsn as dsn
from lockguard_asyncpg._dsn import shown
from lockguard_asyncpg._errors import (
    CONNECT_ERRORS,
    DATABASE_ERRORS,
    Meaning,
    meaning_of,
    set_up_error,
    unreachable,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

__all__ = ["CONNECT_S", "connected", "in_one_line", "reason_of", "shown"]

CONNECT_S = 10.0


def connected(url: str | None, body: Callable[..., Awaitable[None]], **options: Any) -> None:
    """Run ``body(connection, **options)`` with a connection to ``url``.

    Raises:
        Mistake: an error that the user can correct, in one line.
        click.ClickException: no server answers there, or any other error of the database.
    """
    interrupt.run(_with_connection(url, body, options))


async def _with_connection(
    url: str | None, body: Callable[..., Awaitable[None]], options: dict[str, Any]
) -> None:
    try:
        conn = await asyncpg.connect(**dsn.arguments(url), timeout=CONNECT_S)
    except ConfigurationError as exc:
        raise Mistake(str(exc)) from None
    except CONNECT_ERRORS as exc:
        told = f"cannot connect to {shown(url)}: {reason_of(exc)}"
        raise click.ClickException(told) if unreachable(exc) else Mistake(told) from exc
    try:
        with in_one_line(url):
            await body(conn, **options)
    finally:
        await conn.close(timeout=CONNECT_S)


@contextmanager
def in_one_line(url: str | None) -> Iterator[None]:
    """Turn an error of the database at ``url`` in the body into the one with which a command ends.

    Raises:
        Mistake: an error that the user can correct.
        click.ClickException: any other error of the database.
    """
    try:
        yield
    except ConfigurationError as exc:
        raise Mistake(str(exc)) from exc
    except DATABASE_ERRORS as exc:
        if is_of_the_output(exc):
            raise
        if meaning_of(exc) is Meaning.CONFIGURATION:
            raise Mistake(str(set_up_error(exc))) from exc
        raise click.ClickException(f"{shown(url)}: {reason_of(exc)}") from exc


def reason_of(exc: BaseException) -> str:
    """Why the database could not be used, in one line."""
    return dsn.reason_of(exc, within_s=CONNECT_S)
