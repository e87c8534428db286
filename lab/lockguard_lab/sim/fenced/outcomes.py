"""What a bot makes of the outcome of its writes, held against what the database has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from lockguard.errors import FenceUnavailable, LockguardError, OutcomeUnknown, StaleToken
from lockguard_asyncpg import fenced_execute, resolve
from lockguard_asyncpg._errors import DATABASE_ERRORS, CommitUnknown
from lockguard_lab.sim.fenced.writer import NOTE, InDoubt, OfTheBot, Writer, begun, pause

if TYPE_CHECKING:
    from lockguard_lab.sim.fenced.judge import Body, Op

__all__ = ["judged"]


async def judged(bot: Writer, body: Body, ops: list[Op], work: Awaitable[None], *, name: str) -> None:
    """Await some writes, and judge what they say of their outcome; raises half of their errors."""
    judge = bot.judge
    try:
        await work
    except asyncio.CancelledError:
        raise  # nothing is said of its outcome
    except InDoubt:
        bot.tell("an outcome in doubt")
    except CommitUnknown as unknown:
        await _find_out(bot, body, ops, unknown)
    except (LockguardError, *DATABASE_ERRORS, OfTheBot, ExceptionGroup) as error:
        if not isinstance(error, OutcomeUnknown):
            judge.failed(ops, error)
        if isinstance(error, StaleToken):
            judge.stale(body, error)
        bot.tell(f"{name}: {type(error).__name__}")
        # What many bots do: log it, and go on to the next thing.
        if bot.dice.random() < 0.5:
            raise
    else:
        judge.done([op for op in ops if not op.never])


async def _find_out(bot: Writer, body: Body, ops: list[Op], unknown: CommitUnknown) -> None:
    """Ask what became of a write: at once, later, or when the same lease has written something else."""
    bot.tell("an unknown outcome")
    while bot.dice.random() < 0.5:
        more: list[Op] = []
        with contextlib.suppress(CommitUnknown):
            try:
                await fenced_execute(bot.pool, NOTE, *begun(bot, body, more))
            except (LockguardError, *DATABASE_ERRORS) as error:
                if isinstance(error, OutcomeUnknown):
                    raise
                bot.judge.failed(more, error)
            else:
                bot.judge.done(more)
        await pause(bot)
    with contextlib.suppress(FenceUnavailable, *DATABASE_ERRORS):
        try:
            committed = await resolve(bot.pool, unknown)
        except OutcomeUnknown as error:
            bot.judge.accuse("S15: the outcome of a lost answer can be found out", str(error))
            return
        for op in ops:
            if not op.never:
                bot.judge.resolved(op, committed=committed)
