"""What all ways to write have in common: who writes, the statements, and a part that is undone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from random import Random

    import asyncpg

    from lockguard_lab.sim.fenced.judge import Body, FenceJudge, Op
    from lockguard_lab.sim.fenced.plan import FencedPlan

__all__ = ["BUMP", "NOTE", "READ", "SET", "InDoubt", "OfTheBot", "Writer", "begun", "pause", "undone"]

READ = "select version from account where resource = $1::text"
BUMP = "update account set version = version + 1, token = $2::bigint, op = $3::text where resource = $1::text"
SET = "update account set version = $4::bigint, token = $2::bigint, op = $3::text where resource = $1::text"
NOTE = "insert into entry (resource, token, op) values ($1::text, $2::bigint, $3::text)"


class Writer(Protocol):
    """Who writes: the bot of a process."""

    dice: Random
    plan: FencedPlan
    judge: FenceJudge
    pool: asyncpg.Pool[Any]
    fenced: asyncpg.Pool[Any]

    def tell(self, line: str) -> None:
        """Record what happened."""
        ...

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin a task beside the body."""
        ...

    async def kept_connection(self) -> Any:
        """A connection that is kept between transactions."""
        ...

    def own_connection(self) -> AbstractAsyncContextManager[Any]:
        """A connection that one task at a time has, and that is in no transaction when it is given back."""
        ...


class OfTheBot(Exception):
    """An error of the bot's own, which it handles itself."""


class InDoubt(Exception):
    """A transaction of the bot's own, whose outcome nobody tells it."""


def begun(bot: Writer, body: Body, ops: list[Op]) -> tuple[str, int, str]:
    """Begin a write; returns the parameters of its statement, and adds it to ``ops``."""
    op = bot.judge.begin(body)
    ops.append(op)
    return str(body.lease.resource), int(body.lease.token), op.name


async def pause(bot: Writer) -> None:
    """What a bot does between two statements."""
    await asyncio.sleep(bot.dice.choice((0.0, 0.0, 0.002, 0.03, 0.3)))


async def undone(bot: Writer, body: Body, conn: Any, ops: list[Op]) -> None:
    """Write in a savepoint and roll back to it, by asyncpg's transaction or by the bot's own text."""
    mine: list[Op] = []
    if bot.dice.random() < 0.3:
        await conn.execute("savepoint part")
        await conn.execute(NOTE, *begun(bot, body, mine))
        await pause(bot)
        await conn.execute("rollback to savepoint part")
        bot.judge.undone(body, mine[0])
        ops += mine
        return
    try:
        async with conn.transaction():
            await conn.execute(NOTE, *begun(bot, body, mine))
            await pause(bot)
            raise OfTheBot
    except OfTheBot:
        bot.judge.undone(body, mine[0])
    ops += mine
