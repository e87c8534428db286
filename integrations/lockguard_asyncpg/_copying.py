"""Tells a COPY whose connection is gone as that.

asyncpg (0.32) reads and writes between two rows without looking whether its connection is still there. Where
it was closed on this side meanwhile, as by ``pool.terminate()``, that fails with an AttributeError, and on
uvloop, however it was lost, with a RuntimeError. Either stands in the place of the connection's loss, of a
cancel, or of an error of the caller's own rows.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["copied"]

T = TypeVar("T")
_CLOSED_HERE = (
    "'NoneType' object has no attribute 'write'",
    "'NoneType' object has no attribute 'resume_reading'",
)
_CLOSED_ON_UVLOOP = "the handler is closed"


async def copied(con: asyncpg.Connection[Any], copy: Callable[[], Awaitable[T]]) -> T:
    """Run a COPY as asyncpg does.

    Raises:
        ConnectionDoesNotExistError: the connection was lost before the end of the rows was sent or read; none
            is written.
    """
    handled = sys.exception()
    try:
        return await copy()
    except (AttributeError, RuntimeError) as exc:
        if not (con.is_closed() and _is_of_closed(exc)):
            raise
        failed, hidden = exc, exc.__context__
    if hidden is None or hidden is handled or _is_of_closed(hidden):
        raise asyncpg.ConnectionDoesNotExistError(
            "connection was closed in the middle of operation"
        ) from failed
    raise hidden


def _is_of_closed(exc: BaseException) -> bool:
    if isinstance(exc, AttributeError):
        return str(exc) in _CLOSED_HERE
    return isinstance(exc, RuntimeError) and _CLOSED_ON_UVLOOP in str(exc)
