"""The ways to write: each documented one, with what bots do around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from lockguard.errors import FenceUnavailable, LeaseNotHeld, LockguardError, OutcomeUnknown, StaleToken
from lockguard_asyncpg import fenced_execute, fenced_fetchval, fenced_transaction, resolve
from lockguard_asyncpg._errors import DATABASE_ERRORS, CommitUnknown, NotCommitted, leaves_in_doubt

if TYPE_CHECKING:
    from random import Random

    import asyncpg

    from lockguard_lab.sim.fenced.judge import Body, FenceJudge, Op

__all__ = ["WAYS", "Writer", "in_an_earlier_transaction", "last", "write"]

_READ = "select version from account where resource = $1::text"
_BUMP = (
    "update account set version = version + 1, token = $2::bigint, op = $3::text where resource = $1::text"
)
_SET = "update account set version = $4::bigint, token = $2::bigint, op = $3::text where resource = $1::text"
_NOTE = "insert into entry (resource, token, op) values ($1::text, $2::bigint, $3::text)"
_ISOLATIONS = (None, None, "read_committed", "repeatable_read")


class Writer(Protocol):
    """Who writes: the bot of a process."""

    dice: Random
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


class _OfTheBot(Exception):
    """An error of the bot's own, which it handles itself."""


async def write(bot: Writer, body: Body) -> None:
    """Write in some way; what became of it is held against what the database has."""
    way = bot.dice.choice(WAYS)
    ops: list[Op] = []
    judge = bot.judge
    try:
        await way(bot, body, ops)
    except asyncio.CancelledError:
        raise  # nothing is said of its outcome
    except _InDoubt:
        bot.tell("an outcome in doubt")
    except CommitUnknown as unknown:
        await _find_out(bot, ops, unknown)
    except (LockguardError, *DATABASE_ERRORS, _OfTheBot, ExceptionGroup) as error:
        if not isinstance(error, OutcomeUnknown):
            judge.failed(ops, error)
        if isinstance(error, StaleToken):
            judge.stale(body, error)
        bot.tell(f"{way.__name__}: {type(error).__name__}")
        # What many bots do: log it, and go on to the next thing.
        if bot.dice.random() < 0.5:
            raise
    else:
        judge.done([op for op in ops if not op.never])


async def _find_out(bot: Writer, ops: list[Op], unknown: CommitUnknown) -> None:
    bot.tell("an unknown outcome")
    with contextlib.suppress(FenceUnavailable, OutcomeUnknown, *DATABASE_ERRORS):
        committed = await resolve(bot.pool, unknown)
        for op in ops:
            if not op.never:
                bot.judge.resolved(op, committed=committed)


def _begun(bot: Writer, body: Body, ops: list[Op]) -> tuple[str, int, str]:
    op = bot.judge.begin(body)
    ops.append(op)
    return str(body.lease.resource), int(body.lease.token), op.name


class _InDoubt(Exception):
    """A transaction of the bot's own, whose outcome nobody tells it."""


async def _pause(bot: Writer) -> None:
    await asyncio.sleep(bot.dice.choice((0.0, 0.0, 0.002, 0.03, 0.3)))


async def in_a_transaction(bot: Writer, body: Body, ops: list[Op]) -> None:
    """Read, decide, write."""
    isolation: Any = bot.dice.choice(_ISOLATIONS)
    async with fenced_transaction(bot.pool, isolation=isolation) as conn:
        version = await conn.fetchval(_READ, str(body.lease.resource))
        await _pause(bot)
        if bot.dice.random() < 0.3:
            statement = await conn.prepare(_SET)
            await _pause(bot)
            await statement.fetch(*_begun(bot, body, ops), version + 1)
        else:
            await conn.execute(_SET, *_begun(bot, body, ops), version + 1)
        await _pause(bot)
        loss = body.lease.loss
    bot.judge.committed_under(body, loss)


async def read_before(bot: Writer, body: Body, ops: list[Op]) -> None:
    """Read under the lease, and write what follows in a statement of its own."""
    version = await bot.fenced.fetchval(_READ, str(body.lease.resource))
    await _pause(bot)
    if bot.dice.random() < 0.5:
        await fenced_execute(bot.pool, _SET, *_begun(bot, body, ops), version + 1)
    else:
        await bot.fenced.execute(_SET, *_begun(bot, body, ops), version + 1)


async def in_a_savepoint(bot: Writer, body: Body, ops: list[Op]) -> None:
    """A part that may fail, in a savepoint whose error is handled; then another write."""
    async with fenced_transaction(bot.pool) as conn:
        if bot.dice.random() < 0.5:
            await conn.execute(_NOTE, *_begun(bot, body, ops))
        await _undone(bot, body, conn, ops)
        await _pause(bot)
        await conn.execute(_BUMP, *_begun(bot, body, ops))


async def in_a_transaction_of_the_bots_own(bot: Writer, body: Body, ops: list[Op]) -> None:
    """The bot's own transaction on a connection that it keeps, with a fenced part in it."""
    conn = await bot.kept_connection()
    try:
        async with conn.transaction():
            async with fenced_transaction(conn):
                await conn.execute(_BUMP, *_begun(bot, body, ops))
            await _pause(bot)
    except DATABASE_ERRORS as error:
        if leaves_in_doubt(error):
            raise _InDoubt from error
        raise
    except asyncio.CancelledError:
        conn.terminate()  # what became of its transaction is not known
        raise


async def by_one_statement(bot: Writer, body: Body, ops: list[Op]) -> None:
    """One statement."""
    if bot.dice.random() < 0.5:
        await fenced_execute(bot.pool, _BUMP, *_begun(bot, body, ops))
    else:
        await fenced_fetchval(bot.pool, f"{_BUMP} returning version", *_begun(bot, body, ops))


async def by_plain_code(bot: Writer, body: Body, ops: list[Op]) -> None:
    """Code that was written without the fence, over a fenced pool."""
    if bot.dice.random() < 0.5:
        await bot.fenced.execute(_BUMP, *_begun(bot, body, ops))
        return
    isolation: Any = bot.dice.choice(_ISOLATIONS)
    async with bot.fenced.acquire() as conn, conn.transaction(isolation=isolation):
        if bot.dice.random() < 0.5:
            await _undone(bot, body, conn, ops)
        await _pause(bot)
        await conn.execute(_BUMP, *_begun(bot, body, ops))
        await _pause(bot)
        loss = body.lease.loss
    bot.judge.committed_under(body, loss)


async def with_an_error_swallowed(bot: Writer, body: Body, ops: list[Op]) -> None:
    """A statement fails inside of a transaction, and nobody lets the error through."""
    try:
        async with fenced_transaction(bot.pool) as conn:
            await conn.execute(_BUMP, *_begun(bot, body, ops))
            with contextlib.suppress(*DATABASE_ERRORS):
                await conn.execute("select 1/0")
    except NotCommitted as error:
        bot.judge.failed(ops, error)


async def in_parallel(bot: Writer, body: Body, ops: list[Op]) -> None:
    """Several tasks of a body write at the same time."""

    async def one() -> None:
        mine: list[Op] = []
        try:
            await fenced_execute(bot.pool, _NOTE, *_begun(bot, body, mine))
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
            await fenced_execute(bot.pool, _NOTE, *_begun(bot, body, mine))
        except (CommitUnknown, asyncio.CancelledError):
            return
        except (LockguardError, *DATABASE_ERRORS) as error:
            bot.judge.failed(mine, error)

    del ops
    bot.begin(later())


async def _undone(bot: Writer, body: Body, conn: Any, ops: list[Op]) -> None:
    mine: list[Op] = []
    try:
        async with conn.transaction():
            await conn.execute(_NOTE, *_begun(bot, body, mine))
            await _pause(bot)
            raise _OfTheBot
    except _OfTheBot:
        bot.judge.undone(mine[0])
    ops += mine


async def in_an_earlier_transaction(bot: Writer, body: Body, conn: Any) -> None:
    """Writes in a transaction that was begun before the lease; the caller commits it."""
    ops: list[Op] = []
    if bot.dice.random() < 0.7:
        await _undone(bot, body, conn, ops)
    await _pause(bot)
    await conn.execute(_NOTE, *_begun(bot, body, ops))
    await _pause(bot)


async def last(bot: Writer, body: Body) -> None:
    """The last write of a body, which closes its lease."""
    ops: list[Op] = []
    try:
        async with fenced_transaction(bot.pool, closes=True) as conn:
            await conn.execute(_BUMP, *_begun(bot, body, ops))
    except CommitUnknown:
        return
    except (LeaseNotHeld, StaleToken, *DATABASE_ERRORS, LockguardError) as error:
        bot.judge.failed(ops, error)
        return
    bot.judge.done(ops)


WAYS: tuple[Callable[[Writer, Body, list[Op]], Awaitable[None]], ...] = (
    in_a_transaction,
    read_before,
    in_a_savepoint,
    in_a_transaction_of_the_bots_own,
    in_a_transaction_of_the_bots_own,
    by_one_statement,
    by_plain_code,
    by_plain_code,
    with_an_error_swallowed,
    in_parallel,
    left_to_a_task,
)
