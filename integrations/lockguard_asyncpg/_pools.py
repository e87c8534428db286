"""Whether a pool can be used here and now: asyncpg's own errors for a pool that cannot do not say why."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lockguard.errors import ConfigurationError
from lockguard.text import kind_of

if TYPE_CHECKING:
    import asyncpg

__all__ = ["require_own_loop", "require_pool", "require_usable"]

_GIVE = "give the pool of the running event loop, or, to a fence, a function that returns it"


def require_pool(pool: object) -> None:
    """Check that it is a pool, before the first lease needs it.

    Raises:
        ConfigurationError: it is none.
    """
    if isinstance(pool, type) or not (hasattr(pool, "acquire") and hasattr(pool, "release")):
        raise ConfigurationError(
            f"PostgresFence takes a pool, or a function that returns one, and this is {kind_of(pool)}; write"
            " PostgresFence(pool) with pool = await asyncpg.create_pool(url), or"
            " PostgresFence(lambda: app.state.pool)"
        )


def require_usable(pool: asyncpg.Pool[Any]) -> None:
    """Check that the pool can be used in the running event loop.

    Raises:
        ConfigurationError: it is closed, not connected yet, or of another event loop.
    """
    require_own_loop(pool)
    if getattr(pool, "_closed", False):
        raise ConfigurationError(f"this pool of asyncpg is closed; {_GIVE}")
    if not getattr(pool, "_initialized", True):
        raise ConfigurationError(
            "this pool of asyncpg is not connected; write pool = await asyncpg.create_pool(url), or"
            " `async with`"
        )


def require_own_loop(pool: asyncpg.Pool[Any]) -> None:
    """Check that the pool belongs to the running event loop: in another one, it fails in ever new ways.

    Raises:
        ConfigurationError: it does not.
    """
    # Private, but there is no other way to know; a pool of another kind without the name passes.
    of: Any = getattr(pool, "_loop", None)
    if of is not None and of is not asyncio.get_running_loop():
        raise ConfigurationError(f"this pool of asyncpg belongs to another event loop; {_GIVE}")
