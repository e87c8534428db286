"""What a record of refused writes must not do when its pool closes, or its event loop ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lockguard_asyncpg._database import AsyncpgDatabase
from lockguard_postgres._recording import Recorder
from lockguard_postgres._refusals import Refused

REFUSED = Refused("binance:APTUSDT", 7, 8, "LG001", "superseded", "vm:1/Task-1", "open long")


class Connection:
    def __init__(self) -> None:
        self.ended = False

    def terminate(self) -> None:
        self.ended = True


class Pool:
    """A pool that begins to close while it makes a connection."""

    def __init__(self) -> None:
        self.closing = False
        self.made = Connection()

    def is_closing(self) -> bool:
        return self.closing

    def get_idle_size(self) -> int:
        return 1

    async def acquire(self) -> Connection:
        self.closing = True
        return self.made


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> tuple[Recorder, Pool, list[Any]]:
    """A recorder in the running loop, its pool, and the connections that it used."""
    used: list[Any] = []

    async def once(_database: Any, conn: Any, _query: str, *, rows: bool) -> None:
        used.append(conn)

    monkeypatch.setattr(AsyncpgDatabase, "once", once)
    pool = Pool()
    return Recorder(AsyncpgDatabase(pool)), pool, used  # type: ignore[arg-type]


async def test_a_connection_that_a_closing_pool_still_made_is_ended_and_not_used(
    begun: tuple[Recorder, Pool, list[Any]],
) -> None:
    """The pool does not wait for it, so it would be left open, and the end of the loop would hang on it."""
    recorder, pool, used = begun
    recorder.begin("a fence")
    recorder.note(REFUSED)
    assert recorder._task is not None
    await recorder._task
    assert (pool.made.ended, used) == (True, [])


async def test_a_record_that_is_cancelled_ends_though_a_clean_up_swallows_the_cancel(
    begun: tuple[Recorder, Pool, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio.run cancels what is left once, and waits for it."""
    recorder, _, _ = begun
    sending, attempts = asyncio.Event(), []

    async def sent(noted: Any) -> bool:
        attempts.append(noted)
        sending.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # as asyncpg raises an error of the connection in its place
            return False
        return True

    monkeypatch.setattr(recorder, "_sent", sent)
    recorder.begin("a fence")
    recorder.note(REFUSED)
    await sending.wait()
    task = recorder._task
    assert task is not None
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()
    assert len(attempts) == 1
