"""One session of a generated sequence, on the model and on a real Postgres."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg

from lockguard_lab.sim.fenced.database import Database, PgError, Result, Session
from lockguard_lab.sim.fenced.functions import COPY_ENTRY, copied, execute
from lockguard_lab.sim.fenced.sql import split

__all__ = ["Modelled", "Real"]

_COPY_OUT = re.compile(r"copy \((.*)\) to stdout")
_COLUMNS = ("resource", "token", "op")


class _GivenUp(Exception):
    """The client gives up a COPY that it has begun."""


class Modelled:
    """A session of the model, and what it was answered last.

    Attributes:
        is_numbering: whether its last statement writes the row of a number.
    """

    def __init__(self, database: Database) -> None:
        self.session: Session = database.connect()
        self.session.ended = lambda error: setattr(self, "answer", f"ended {error.state}")
        self.answer = ""
        self.is_pending = False
        self.is_numbering = False

    def send(self, text: str) -> None:
        """Send a text of statements."""
        self.answer, self.is_pending = "", True
        self._next(list(split(text)), "")

    def end_copy(self, rows: list[list[str]] | None) -> None:
        """End a COPY that waits for its rows; without them, give it up."""
        self.answer, self.is_pending = "", True
        self.session.run(copied(self.session, rows), self._taken([], lambda result: result.tag))

    def _next(self, statements: list[str], answer: str) -> None:
        session = self.session
        if not statements:
            if session.transaction is not None and session.transaction.implicit:
                session.commit()
            self.answer, self.is_pending = answer, False
            return
        if session.transaction is None:
            session.transaction = session.database.begin(session, session.isolation, implicit=True)
        text = statements[0]
        session.run(execute(session, text), self._taken(statements[1:], lambda result: _told(text, result)))

    def _taken(self, more: list[str], told: Callable[[Result], str]) -> Callable[[Result | PgError], None]:
        def done(result: Result | PgError) -> None:
            if isinstance(result, PgError):
                self.answer, self.is_pending = result.state, False
            elif self.session.copying:
                self.answer, self.is_pending = "copies", False
            else:
                self._next(more, told(result))

        return done


def _has_row(text: str) -> bool:
    """Whether the sequence asks for the row, and not for the command tag only."""
    return text.startswith(("select accepted", "select lockguard.break_", "select version"))


def _told(text: str, result: Result) -> str:
    if _has_row(text) or _COPY_OUT.match(text):
        return f"{result.tag} {[list(row) for row in result.rows]}"
    return result.tag


class Real:
    """A session of the real server."""

    def __init__(self, conn: asyncpg.Connection[Any]) -> None:
        self.conn = conn
        self.pid = conn.get_server_pid()
        self.answer = ""
        self.task: asyncio.Task[None] | None = None
        self.kept: list[object] = []
        self._rows: asyncio.Future[list[list[str]] | None] | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a statement is under way."""
        return self.task is not None and not self.task.done()

    def send(self, text: str) -> None:
        """Send a text of statements."""
        self.answer = ""
        self.task = asyncio.create_task(self._send(text))

    def end_copy(self, rows: list[list[str]] | None) -> None:
        """End a COPY that waits for its rows, if there is one; without them, give it up."""
        if self._is_copying:
            assert self._rows is not None
            self._rows.set_result(rows)
            self._transport.resume_reading()

    @property
    def _is_copying(self) -> bool:
        return self._rows is not None and not self._rows.done()

    @property
    def _transport(self) -> Any:
        conn: Any = self.conn
        return conn._transport

    async def _send(self, text: str) -> None:
        try:
            self.answer = await self._answer(text)
        except asyncpg.PostgresError as error:
            self.answer = str(error.sqlstate)
        except _GivenUp:  # asyncpg hides the server's own error behind it
            self.answer = "57014"
        except (asyncpg.InterfaceError, OSError):
            self.answer = "gone"

    async def _answer(self, text: str) -> str:
        if text == COPY_ENTRY:
            self._rows = asyncio.get_running_loop().create_future()
            return await self.conn.copy_to_table("entry", source=self._given(self._rows), columns=_COLUMNS)
        if found := _COPY_OUT.match(text):
            return await self._copied_out(found[1])
        if not _has_row(text):
            return str(await self.conn.execute(text))
        row = await self.conn.fetchrow(text)
        assert row is not None, text
        return f"SELECT 1 {[list(row.values())]}"

    async def _given(self, rows: asyncio.Future[list[list[str]] | None]) -> AsyncIterator[bytes]:
        # asyncpg asks for what it was answered only behind the last row. Where it had heard before that its
        # connection is gone, it would fail with an AttributeError, and leave an error that nobody looks at.
        if not rows.done():  # or nobody would resume it
            self._transport.pause_reading()
        given = await rows
        if given is None:
            raise _GivenUp
        for row in given:
            yield "\t".join(row).encode() + b"\n"

    async def _copied_out(self, query: str) -> str:
        data = bytearray()

        async def take(part: bytes) -> None:
            data.extend(part)

        tag = await self.conn.copy_from_query(query, output=take)
        return f"{tag} {[line.split(chr(9)) for line in data.decode().splitlines()]}"

    async def prepare(self) -> None:
        """Parse a statement and send no Bind: the backend waits for its client in the middle of a message."""
        try:
            self.kept.append(await self.conn.prepare("select 1 as parsed"))
        except asyncpg.PostgresError:
            return  # in a transaction that has failed

    def terminate(self) -> None:
        """Close the connection, whatever it does."""
        if self._is_copying:
            self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            self.end_copy([])
        else:
            self.conn.terminate()
