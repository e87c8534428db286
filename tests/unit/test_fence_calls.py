"""How often a call of the fence is made, for how long, and what its failure is told as."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from lockguard.errors import ConfigurationError, FenceUnavailable
from lockguard_asyncpg._errors import DATABASE_ERRORS, ERRORS
from lockguard_postgres._calling import Call, make

CALL = Call("", "")  # so that its text is the time bound that the server gets
SECOND = timedelta(seconds=1)


class Database:
    """Gives the answers of a list, the last one for good."""

    failures = DATABASE_ERRORS
    errors = ERRORS

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.bounds_ms: list[int] = []

    def require_usable(self) -> None: ...

    async def acquire(self) -> object:
        return self

    def has_room(self) -> bool:
        return True

    def why_not(self, failure: object) -> str:
        return ""

    async def once(self, conn: object, query: str, *, rows: bool, alone: bool) -> Any:
        self.bounds_ms.append(int(query))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = await answer()
        if isinstance(answer, BaseException):
            raise answer
        return answer


def made(database: Database, *, within: timedelta = SECOND) -> Any:
    anything: Any = database
    return make(anything, CALL, resource="r", within=within)


@pytest.mark.parametrize(
    "passing",
    [
        asyncpg.SerializationError("overtaken"),
        asyncpg.DeadlockDetectedError("x"),
        asyncpg.ConnectionDoesNotExistError("dropped"),
        asyncpg.CannotConnectNowError("starting"),
        ConnectionResetError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_passes_is_tried_again(passing: Exception) -> None:
    database = Database(passing, "SELECT 1")
    assert await made(database) == "SELECT 1"
    assert len(database.bounds_ms) == 2


async def test_a_wrong_set_up_is_told_as_one_at_once() -> None:
    database = Database(asyncpg.UndefinedFunctionError("function lockguard.seal does not exist"))
    with pytest.raises(ConfigurationError, match="fence upgrade"):
        await made(database)
    assert len(database.bounds_ms) == 1


async def test_what_the_server_has_decided_is_not_asked_again() -> None:
    database = Database(asyncpg.NotNullViolationError("no"))
    with pytest.raises(FenceUnavailable):
        await made(database)
    assert len(database.bounds_ms) == 1


async def test_the_server_gives_up_before_its_caller_and_so_says_why() -> None:
    database = Database("SELECT 1")
    await made(database)
    assert 500 < database.bounds_ms[0] < 1_000


async def test_a_cancel_that_a_clean_up_has_swallowed_is_followed_by_no_further_attempt() -> None:
    asked = asyncio.Event()

    async def cleans_up() -> Exception:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return ConnectionResetError()
        raise AssertionError("unreachable: only the cancel ends the wait")

    database = Database(cleans_up, "SELECT 1")
    calling = asyncio.create_task(made(database, within=timedelta(seconds=5)))
    await asked.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert len(database.bounds_ms) == 1
