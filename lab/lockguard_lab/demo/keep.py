"""``--keep``: keeps the servers running with a lock to inspect."""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg

from lockguard import LockGuard
from lockguard.errors import LockguardError
from lockguard_asyncpg import PostgresFence
from lockguard_lab.demo.history import lock_key
from lockguard_lab.servers.postgres_files import SUPERUSER

if TYPE_CHECKING:
    from lockguard_lab.demo.console import Screen
    from lockguard_lab.demo.stage import Stage

__all__ = ["keep"]

_HELD = "binance:BTCUSDT"
_SEEN = "binance:APTUSDT"
_QUERIES = (
    "select id, symbol, status, token, entry_price, stop_price from monitoring.positions",
    "select * from lockguard.status()",
    "select * from demo.writes order by number",
)


async def keep(stage: Stage, screen: Screen) -> None:
    """Hold a lock, print how to inspect it, and wait for Enter or Ctrl-C."""
    async with asyncpg.create_pool(stage.database_url, min_size=1, max_size=2) as pool:
        guard = LockGuard.from_url(stage.redis.url, fence=PostgresFence(pool), observers=[])
        async with guard:
            held = asyncio.Event()
            # In a task of its own: a user may break the lock while inspecting it, which must not end this.
            holding = asyncio.create_task(_hold(guard, held, screen), name="lockguard demo --keep")
            try:
                await held.wait()
                screen.say(f"\nThe servers stay up, and {_HELD} is held and renewed. Look around:")
                for line in lines(stage):
                    screen.verbatim(f"  {line}")
                await _until_told(screen)
            finally:
                holding.cancel()
                await asyncio.gather(holding, return_exceptions=True)


async def _hold(guard: LockGuard, held: asyncio.Event, screen: Screen) -> None:
    try:
        async with guard.hold(_HELD, operation="lockguard demo --keep"):
            held.set()
            await asyncio.Event().wait()
    except LockguardError as exc:
        screen.say(f"{type(exc).__name__}: {exc}")
    finally:
        held.set()


def lines(stage: Stage) -> list[str]:
    """The commands to copy; they take passwords from files that only this user can read."""
    redis = stage.redis_cli
    url = f"redis://:$(cat {stage.redis.password_file})@127.0.0.1:{stage.redis.port}/0"
    program = shutil.which("psql") or str(stage.postgres.binary.path.parent / "psql")
    place = f"postgresql://{SUPERUSER}@127.0.0.1:{stage.postgres.port}{urlsplit(stage.database_url).path}"
    psql = f"PGPASSFILE={stage.postgres.passfile} {program} {place}"
    return [
        f"{redis} HGETALL '{lock_key(_HELD)}'",
        f"{redis} LRANGE '{lock_key(_SEEN)}:history' 0 -1",
        f"LOCKGUARD_REDIS_URL={url} lockguard inspect {_HELD}",
        *(f"{psql} -c '{query}'" for query in _QUERIES),
    ]


async def _until_told(screen: Screen) -> None:
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    at_terminal = sys.stdin.isatty()
    screen.say("\nEnter or Ctrl-C ends them." if at_terminal else "\nCtrl-C or SIGTERM ends them.", "bold")
    if at_terminal:
        loop.add_reader(sys.stdin, told.set)
    try:
        await told.wait()
    except asyncio.CancelledError:
        # Ctrl-C is how this ends, not a failure.
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
    finally:
        if at_terminal:
            loop.remove_reader(sys.stdin)
            if told.is_set():
                sys.stdin.readline()
