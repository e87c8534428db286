"""The ways to write by calls of asyncpg that are more than one statement, or less than one transaction."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from lockguard.errors import LockguardError
from lockguard_asyncpg import fenced_fetch, fenced_fetchrow, fenced_transaction
from lockguard_asyncpg._errors import DATABASE_ERRORS, CommitUnknown
from lockguard_lab.sim.fenced.writer import BUMP, NOTE, OfTheBot, Writer, begun, pause, undone

if TYPE_CHECKING:
    from lockguard_lab.sim.fenced.judge import Body, Op

__all__ = [
    "by_a_child",
    "by_a_cursor",
    "by_a_prepared_statement",
    "by_fetching",
    "by_its_own_text",
    "in_a_nested_transaction",
    "of_many_rows",
]

_RETURNING = f"{BUMP} returning version"
_COLUMNS = ("resource", "token", "op")


async def of_many_rows(bot: Writer, body: Body, ops: list[Op]) -> None:
    """Several rows by one call: all of them are written, or none."""
    rows = [begun(bot, body, ops) for _ in range(bot.dice.choice((1, 2, 3)))]
    match bot.dice.randrange(4):
        case 0:
            await bot.fenced.copy_records_to_table("entry", records=rows, columns=_COLUMNS)
        case 1:
            async with fenced_transaction(bot.pool) as conn:
                await pause(bot)
                await conn.executemany(NOTE, rows)
        case 2:
            async with bot.fenced.acquire() as conn:
                statement = await conn.prepare(NOTE)
                await pause(bot)
                await statement.executemany(rows)
        case _:
            await bot.fenced.executemany(NOTE, rows)


async def by_fetching(bot: Writer, body: Body, ops: list[Op]) -> None:
    """One statement whose rows are wanted."""
    match bot.dice.randrange(5):
        case 0:
            await bot.fenced.fetch(_RETURNING, *begun(bot, body, ops))
        case 1:
            await bot.fenced.fetchrow(_RETURNING, *begun(bot, body, ops))
        case 2:
            await bot.fenced.fetchval(_RETURNING, *begun(bot, body, ops))
        case 3:
            await fenced_fetch(bot.pool, _RETURNING, *begun(bot, body, ops))
        case _:
            await fenced_fetchrow(bot.fenced, _RETURNING, *begun(bot, body, ops))


async def by_a_prepared_statement(bot: Writer, body: Body, ops: list[Op]) -> None:
    """A statement that is prepared some time before it is run, in no transaction."""
    async with bot.fenced.acquire() as conn:
        statement = await conn.prepare(_RETURNING)
        await pause(bot)
        match bot.dice.randrange(3):
            case 0:
                await statement.fetch(*begun(bot, body, ops))
            case 1:
                await statement.fetchrow(*begun(bot, body, ops))
            case _:
                await statement.fetchval(*begun(bot, body, ops))


async def by_a_cursor(bot: Writer, body: Body, ops: list[Op]) -> None:
    """A statement whose rows are fetched by and by."""
    async with bot.fenced.acquire() as conn, conn.transaction():
        if bot.dice.random() < 0.5:
            await undone(bot, body, conn, ops)
        await pause(bot)
        if bot.dice.random() < 0.5:
            async for _ in conn.cursor(_RETURNING, *begun(bot, body, ops)):
                await pause(bot)
        else:
            cursor = await conn.cursor(_RETURNING, *begun(bot, body, ops))
            await cursor.fetchrow()
        await pause(bot)


async def in_a_nested_transaction(bot: Writer, body: Body, ops: list[Op]) -> None:
    """A function that has a fenced transaction of its own, called in another one."""
    async with fenced_transaction(bot.pool if bot.dice.random() < 0.5 else bot.fenced) as conn:
        if bot.dice.random() < 0.5:
            await conn.execute(NOTE, *begun(bot, body, ops))
        mine: list[Op] = []
        with contextlib.suppress(OfTheBot):
            async with fenced_transaction(conn):
                await conn.execute(NOTE, *begun(bot, body, mine))
                await pause(bot)
                if bot.dice.random() < 0.5:
                    raise OfTheBot
        if bot.dice.random() < 0.3:
            await undone(bot, body, conn, mine)
        await pause(bot)
        await conn.execute(BUMP, *begun(bot, body, ops))
    del mine


async def by_its_own_text(bot: Writer, body: Body, ops: list[Op]) -> None:
    """BEGIN and COMMIT as texts; some forget the COMMIT, and give the connection back as it is."""
    is_over = False
    try:
        async with bot.fenced.acquire() as conn:
            await conn.execute("begin")
            if bot.dice.random() < 0.5:
                await undone(bot, body, conn, ops)
            await pause(bot)
            await conn.execute(NOTE, *begun(bot, body, ops))
            await pause(bot)
            if bot.dice.random() < 0.3:
                await undone(bot, body, conn, ops)
            if bot.dice.random() < 0.2:
                bot.judge.failed(ops, OfTheBot("COMMIT was forgotten"))
            else:
                await conn.execute("commit")
                is_over = True
    finally:
        if not is_over:
            bot.judge.left_open(body.process)


async def by_a_child(bot: Writer, body: Body, ops: list[Op]) -> None:
    """A task begun in the body, which the loss of its lease does not cut, goes on in its transaction."""

    async def goes_on() -> None:
        mine: list[Op] = []
        try:
            async with bot.fenced.acquire() as conn, conn.transaction():
                for _ in range(bot.dice.choice((2, 3, 5))):
                    state = body.lease.state
                    await conn.execute(NOTE, *begun(bot, body, mine))
                    bot.judge.sent_under(body, state)
                    await asyncio.sleep(bot.dice.choice((0.0, 0.1, 0.4)))
        except CommitUnknown:
            return
        except (LockguardError, *DATABASE_ERRORS) as error:
            bot.judge.failed(mine, error)
        else:
            bot.judge.done(mine)

    del ops
    bot.begin(goes_on())
