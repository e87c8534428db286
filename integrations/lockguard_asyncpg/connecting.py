"""How the commands reach the database, and the one line that they say when they cannot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

try:
    import click
except ImportError as missing:
    raise ImportError("the commands need click and rich; pip install 'lockguard[cli]'") from missing

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard_asyncpg.errors import DATABASE_ERRORS, Meaning, meaning_of, set_up_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Mistake", "connected", "reason_of", "shown"]

_CONNECT_S = 10.0


class Mistake(click.ClickException):
    """Something that the user can put right."""

    exit_code = 2


def connected(url: str | None, body: Callable[..., Awaitable[None]], **options: Any) -> None:
    """Run ``body(connection, **options)``.

    Raises:
        Mistake: what the user can put right, in one line.
        click.ClickException: what the database said otherwise.
    """
    asyncio.run(_with_connection(url, body, options))


async def _with_connection(
    url: str | None, body: Callable[..., Awaitable[None]], options: dict[str, Any]
) -> None:
    try:
        conn = await asyncpg.connect(url, timeout=_CONNECT_S)
    except (*DATABASE_ERRORS, ValueError) as exc:
        raise Mistake(f"cannot connect to {shown(url)}: {reason_of(exc)}") from exc
    try:
        await body(conn, **options)
    except ConfigurationError as exc:
        raise Mistake(str(exc)) from exc
    except DATABASE_ERRORS as exc:
        if meaning_of(exc) is Meaning.CONFIGURATION:
            raise Mistake(str(set_up_error(exc))) from exc
        raise click.ClickException(f"{shown(url)}: {reason_of(exc)}") from exc
    finally:
        await conn.close(timeout=_CONNECT_S)


def shown(url: str | None) -> str:
    """The database for people, without the password."""
    if url is None:
        return "the database of the PG* environment variables (or give --url)"
    try:
        parts = urlsplit(url)
        return f"{parts.hostname or 'the local server'}:{parts.port or 5432}{parts.path}"
    except ValueError:
        return "the database of --url"


def reason_of(exc: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(exc, TimeoutError):
        return f"no answer within {_CONNECT_S:g} s; check host and port"
    if isinstance(exc, OSError):
        return f"{exc.strerror or exc}; check that the server runs there"
    return str(exc).partition("\n")[0] or type(exc).__name__
