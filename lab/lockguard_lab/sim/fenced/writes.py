"""The ways to write: each documented one, with what bots do around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from lockguard.errors import LockguardError, StaleToken
from lockguard_asyncpg import fenced_execute, fenced_fetchval, fenced_transaction
from lockguard_asyncpg._errors import DATABASE_ERRORS, CommitUnknown, NotCommitted, leaves_in_doubt
from lockguard_lab.sim.fenced.outcomes import judged
from lockguard_lab.sim.fenced.statements import (
    by_a_child,
    by_a_cursor,
    by_a_prepared_statement,
    by_fetching,
    by_its_own_text,
    in_a_nested_transaction,
    of_many_rows,
)
from lockguard_lab.sim.fenced.writer import (
    BUMP,
    NOTE,
    READ,
    SET,
    InDoubt,
    OfTheBot,
    Writer,
    begun,
    pause,
    undone,
)

if TYPE_CHECKING:
    from lockguard_lab.sim.fenced.judge import Body, Op

__all__ = ["WAYS", "in_an_earlier_transaction", "last", "write"]

_ISOLATIONS = (None, None, "read_committed", "repeatable_read")
_AS_PLANNED = 0.8


async def write(bot: Writer, body: Body) -> None:
    """Write in some way; what became of it is held against what the database has."""
    way = bot.dice.choice(WAYS)
    if bot.plan.way and bot.dice.random() < _AS_PLANNED:
        way = _BY_NAME[bot.plan.way]
    ops: list[Op] = []
    await judged(bot, body, ops, way(bot, body, ops), name=way.__name__)


async def in_a_transaction(bot: Writer, body: Body, ops: list[Op]) -> None:
    """Read, decide, write."""
    isolation: Any = bot.dice.choice(_ISOLATIONS)
    async with fenced_transaction(bot.pool, isolation=isolation) as conn:
        version = await conn.fetchval(READ, str(body.lease.resource))
        await pause(bot)
        if bot.dice.random() < 0.3:
            statement = await conn.prepare(SET)
            await pause(bot)
            await statement.fetch(*begun(bot, body, ops), version + 1)
        else:
            await conn.execute(SET, *begun(bot, body, ops), version + 1)
        await pause(bot)
        state = body.lease.state
    bot.judge.committed_under(body, state)


async def read_before(bot: Writer, body: Body, ops: list[Op]) -> None:
    """Read under the lease, and write what follows in a statement of its own."""
    version = await bot.fenced.fetchval(READ, str(body.lease.resource))
    await pause(bot)
    if bot.dice.random() < 0.5:
        await fenced_execute(bot.pool, SET, *begun(bot, body, ops), version + 1)
    else:
        await bot.fenced.execute(SET, *begun(bot, body, ops), version + 1)


async def in_a_savepoint(bot: Writer, body: Body, ops: list[Op]) -> None:
    """A part that may fail, in a savepoint whose error is handled; then another write."""
    async with fenced_transaction(bot.pool) as conn:
        if bot.dice.random() < 0.5:
            await conn.execute(NOTE, *begun(bot, body, ops))
        await undone(bot, body, conn, ops)
        await pause(bot)
        await conn.execute(BUMP, *begun(bot, body, ops))


async def in_a_transaction_of_the_bots_own(bot: Writer, body: Body, ops: list[Op]) -> None:
    """The bot's own transaction on a connection that it keeps, with a fenced part in it."""
    conn = await bot.kept_connection()
    try:
        async with conn.transaction():
            async with fenced_transaction(conn):
                await conn.execute(BUMP, *begun(bot, body, ops))
            await pause(bot)
    except DATABASE_ERRORS as error:
        writing = asyncio.current_task()
        if writing is not None and writing.cancelling():
            # The server has ended the session: asyncpg then ends the bot's own transaction with an error in
            # place of the cancellation, without asking lockguard. A bot that goes on has swallowed it.
            raise asyncio.CancelledError from error
        if leaves_in_doubt(error):
            raise InDoubt from error
        raise
    except asyncio.CancelledError:
        conn.terminate()  # what became of its transaction is not known
        raise


async def on_a_connection_of_its_own(bot: Writer, body: Body, ops: list[Op]) -> None:
    """A fenced transaction on the bot's own connection, which the next body uses again."""
    try:
        async with bot.own_connection() as conn, fenced_transaction(conn):
            await conn.execute(BUMP, *begun(bot, body, ops))
            await pause(bot)
            if bot.dice.random() < 0.3:
                raise OfTheBot
    except OfTheBot as error:
        bot.judge.failed(ops, error)


async def by_one_statement(bot: Writer, body: Body, ops: list[Op]) -> None:
    """One statement."""
    if bot.dice.random() < 0.5:
        await fenced_execute(bot.pool, BUMP, *begun(bot, body, ops))
    else:
        await fenced_fetchval(bot.pool, f"{BUMP} returning version", *begun(bot, body, ops))


async def by_plain_code(bot: Writer, body: Body, ops: list[Op]) -> None:
    """Code that was written without the fence, over a fenced pool."""
    if bot.dice.random() < 0.5:
        await bot.fenced.execute(BUMP, *begun(bot, body, ops))
        return
    isolation: Any = bot.dice.choice(_ISOLATIONS)
    async with bot.fenced.acquire() as conn, conn.transaction(isolation=isolation):
        if bot.dice.random() < 0.5:
            await undone(bot, body, conn, ops)
        await pause(bot)
        await conn.execute(BUMP, *begun(bot, body, ops))
        await pause(bot)
        state = body.lease.state
    bot.judge.committed_under(body, state)


async def with_an_error_swallowed(bot: Writer, body: Body, ops: list[Op]) -> None:
    """A statement fails inside of a transaction, and nobody lets the error through."""
    try:
        async with fenced_transaction(bot.pool) as conn:
            await conn.execute(BUMP, *begun(bot, body, ops))
            with contextlib.suppress(*DATABASE_ERRORS):
                await conn.execute("select 1/0")
    except NotCommitted as error:
        bot.judge.failed(ops, error)


async def in_parallel(bot: Writer, body: Body, ops: list[Op]) -> None:
    """Several tasks of a body write at the same time."""

    async def one() -> None:
        mine: list[Op] = []
        try:
            await fenced_execute(bot.pool, NOTE, *begun(bot, body, mine))
        except (CommitUnknown, asyncio.CancelledError):
            raise
        except LockguardError as error:
            bot.judge.failed(mine, error)
            if isinstance(error, StaleToken):
                bot.judge.stale(body, error)
            raise
        bot.judge.done(mine)

    del ops
    await asyncio.gather(*(one() for _ in range(bot.dice.choice((2, 3)))), return_exceptions=True)


async def left_to_a_task(bot: Writer, body: Body, ops: list[Op]) -> None:
    """A task that is still writing when its body is left."""

    async def later() -> None:
        await asyncio.sleep(bot.dice.uniform(0, 0.2))
        mine: list[Op] = []
        try:
            if bot.dice.random() < 0.5:
                await fenced_execute(bot.pool, NOTE, *begun(bot, body, mine))
                return
            async with fenced_transaction(bot.pool) as conn:
                await conn.execute(NOTE, *begun(bot, body, mine))
                await pause(bot)
                state = body.lease.state
            bot.judge.committed_under(body, state)
        except (CommitUnknown, asyncio.CancelledError):
            return
        except (LockguardError, *DATABASE_ERRORS) as error:
            bot.judge.failed(mine, error)

    del ops
    bot.begin(later())


async def in_an_earlier_transaction(
    bot: Writer, body: Body, conn: Any, transaction: Any, ops: list[Op]
) -> None:
    """Writes in a transaction that was begun before the lease, and its COMMIT."""
    if bot.dice.random() < 0.6:
        await undone(bot, body, conn, ops)
    await pause(bot)
    swallowed = False
    try:
        async with conn.transaction() if bot.dice.random() < 0.3 else contextlib.nullcontext():
            if bot.dice.random() < 0.3:
                await (await conn.cursor(f"{BUMP} returning version", *begun(bot, body, ops))).fetchrow()
            else:
                await conn.execute(NOTE, *begun(bot, body, ops))
    except StaleToken:
        if bot.dice.random() < 0.5:
            raise
        swallowed = True
    await pause(bot)
    if bot.dice.random() < 0.3:
        await undone(bot, body, conn, ops)
    try:
        await transaction.commit()
    except NotCommitted as error:
        if swallowed and not isinstance(error.__cause__, StaleToken):
            bot.judge.accuse("S10: why nothing was committed is told", repr(error.__cause__))
        raise


async def last(bot: Writer, body: Body) -> None:
    """The last write of a body, which closes its lease."""
    ops: list[Op] = []
    await judged(bot, body, ops, _last(bot, body, ops), name="last")


async def _last(bot: Writer, body: Body, ops: list[Op]) -> None:
    if bot.dice.random() < 0.3:
        await fenced_execute(bot.pool, BUMP, *begun(bot, body, ops), closes=True)
        return
    async with fenced_transaction(bot.pool, closes=True) as conn:
        await conn.execute(BUMP, *begun(bot, body, ops))
        await pause(bot)
        if bot.dice.random() < 0.2:
            with contextlib.suppress(*DATABASE_ERRORS):
                await conn.execute("select 1/0")


WAYS: tuple[Callable[[Writer, Body, list[Op]], Awaitable[None]], ...] = (
    in_a_transaction,
    read_before,
    in_a_savepoint,
    in_a_transaction_of_the_bots_own,
    in_a_transaction_of_the_bots_own,
    on_a_connection_of_its_own,
    by_one_statement,
    by_plain_code,
    by_plain_code,
    with_an_error_swallowed,
    in_parallel,
    left_to_a_task,
    of_many_rows,
    by_fetching,
    by_a_prepared_statement,
    by_a_cursor,
    in_a_nested_transaction,
    by_its_own_text,
    by_a_child,
)
_BY_NAME = {way.__name__: way for way in WAYS}
