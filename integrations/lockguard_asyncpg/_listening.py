"""Ends the lease of a superseded grant at once, before its next write or renewal.

A seal or a break that supersedes an open grant sends a NOTIFY, with the grant in the payload. A connection of
its own listens, because one from a pool would be one less for its users and would keep the pool from closing.
Nothing relies on it: if a notification is missed while the connection is down, the next renewal finds out,
and Postgres refuses the write.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from lockguard._lease import GrantId
from lockguard._renewal import end_here
from lockguard.errors import LossReason
from lockguard_asyncpg._errors import CONNECT_ERRORS, DATABASE_ERRORS
from lockguard_postgres._calling import CancelWatch

__all__ = ["Listener"]

_LOG = logging.getLogger("lockguard")
CHANNEL = "lockguard_superseded"
_PAUSE_FIRST_S = 0.1
_PAUSE_MAX_S = 5.0
# How often, and for how long at most, to ask the server: a NAT may have dropped the connection silently.
_ALIVE_S = 5.0


class Listener:
    """Listens until it is closed, and connects again when the connection is lost.

    Args:
        connect: makes a connection, direct or through a pooler in session mode.
        at: the server, for log texts.
    """

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection[Any]]], *, at: str) -> None:
        self._connect = connect
        self._at = at
        self._told = False
        self._task: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()

    def start(self) -> None:
        """Begin to listen, unless that has begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="lockguard-fence-listener")

    async def listening(self) -> None:
        """Wait until LISTEN is in effect on the server."""
        await self._heard.wait()

    async def aclose(self) -> None:
        """Stop listening and drop the connection."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        pause_s = _PAUSE_FIRST_S
        cancels = CancelWatch()
        while True:
            try:
                async with asyncio.timeout(_ALIVE_S):
                    conn = await self._connect()
            except CONNECT_ERRORS as exc:
                self._tell(exc)
            else:
                try:
                    if await self._listen(conn):
                        return
                except DATABASE_ERRORS as exc:
                    self._tell(exc)
                    pause_s = _PAUSE_FIRST_S
                finally:
                    self._heard.clear()
                    conn.terminate()
            cancels.raise_if_cancelled()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    def _tell(self, exc: BaseException) -> None:
        """Log once that it does not listen, and not again until it has listened."""
        if not self._told:
            self._told = True
            # Not the error's own text, which may quote a piece of the URL.
            _LOG.warning(
                "lockguard: not listening for superseded leases (%s at %s); it goes on trying, and who is"
                " superseded learns of it with the next renewal or write",
                type(exc).__name__,
                self._at,
            )

    async def _listen(self, conn: asyncpg.Connection[Any]) -> bool:
        """Listen until the connection breaks; returns true if listening is impossible on it."""
        # A pooler makes up the process id that it gives at log-in. In transaction mode it would lose LISTEN.
        if await conn.fetchval("select pg_backend_pid()", timeout=_ALIVE_S) != conn.get_server_pid():
            _LOG.warning(
                "lockguard: no listening for superseded leases through a pooler;"
                " give PostgresFence(listen=) the URL of the database itself"
            )
            return True
        await conn.add_listener(CHANNEL, _superseded)
        self._heard.set()
        if self._told:
            self._told = False
            _LOG.info("lockguard: listening for superseded leases again at %s", self._at)
        while True:
            await asyncio.sleep(_ALIVE_S)
            await conn.execute("select", timeout=_ALIVE_S)


def _superseded(_con: object, _pid: int, _channel: str, payload: object) -> None:
    try:
        grant = json.loads(str(payload))["grant"]
    except (ValueError, KeyError, TypeError):  # any role may send a NOTIFY
        return
    if isinstance(grant, str):
        end_here(GrantId(grant), LossReason.FENCED)
