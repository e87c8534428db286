"""Shows the race that a step of the guide stops: with the step before it, and with it.

    python race.py --step 2

It starts a Redis, a Postgres and an exchange of its own, on this machine. The figures are the exchange's own
record and what is in the table.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import asyncpg
from stage import HERE, Link, Stage, stage, until

from lockguard.testing import PostgresServer, RedisServer
from lockguard_lab.exchange import Execution, Fault, FaultKind, Operation

OPEN_APT, OPEN_SUI, CLOSE_APT = "long APTUSDT 10", "long SUIUSDT 10", "close APTUSDT"
STOP_ORDER = b"POST /fapi/v1/algoOrder"  # a bot that sends it has its entry, and no stop yet

Figures = dict[str, str]
WORDS = "Postgres"  # the figure with this name is the text of a refusal


async def signals_and_sync(on: Stage, bot: str) -> Figures:
    """Two processes get the same signal, and a sync pass runs while a position is being opened."""
    async with Link(on.exchange.url, hold_at=STOP_ORDER) as link:
        first, second = await on.bot(bot, exchange=link.url), await on.bot(bot)
        await on.ready(first, second)
        first.tell(OPEN_APT)
        first.tell(OPEN_SUI)
        await until(lambda: link.waiting == 2)
        second.tell(OPEN_APT)
        await until(lambda: second.said("APTUSDT") or on.queued("binance:APTUSDT"))
        await on.sync(bot)
        link.release()
        await first.ended()
        await second.ended()
    violations = sum("idx_unique_active_position" in line for line in first.lines)
    entries = (str(len(on.record.entries(symbol))) for symbol in ("APTUSDT", "SUIUSDT"))
    return {
        "entries of APTUSDT, of SUIUSDT": ", ".join(entries),
        "UniqueViolationError": str(violations),
        "rows that say active": str((await on.rows("APTUSDT") + await on.rows("SUIUSDT")).count("active")),
        "positions on the exchange": str(sum(1 for p in on.record.positions if p.qty)),
        "stops on the exchange": str(on.stops("APTUSDT") + on.stops("SUIUSDT")),
    }


async def stopped_holder(on: Stage, bot: str) -> Figures:
    """A process is stopped for longer than its lease; its last write arrives after its successor."""
    async with Link(on.exchange.url, hold_at=STOP_ORDER) as orders, Link(on.database_url) as writes:
        first, second = await on.bot(bot, exchange=orders.url, database=writes.url), await on.bot(bot)
        await on.ready(first, second)
        first.tell(OPEN_APT)
        await until(lambda: orders.waiting == 1)
        writes.hold()
        orders.release()
        await until(lambda: writes.waiting == 1)  # the stop is placed; "active" is on its way to the table
        await first.stop()
        second.tell(CLOSE_APT)  # waits until the lease of the first has ended
        await until(lambda: second.said("APTUSDT"))
        writes.release()
        await until(lambda: writes.answered > 0)
        first.go_on()
        await first.ended()
        await second.ended()
    return {
        "the second process": second.lines[-1],
        "the first one's late write": "refused" if writes.refusals else "committed",
        "the row says": ", ".join(await on.rows("APTUSDT")),
        "position on the exchange": str(on.record.position("APTUSDT")),
        WORDS: "".join(writes.refusals),
    }


async def tidy_up(on: Stage, bot: str) -> Figures:
    """An old script deletes rows that look stuck, while a position is being opened."""
    async with Link(on.exchange.url, hold_at=STOP_ORDER) as link:
        first = await on.bot(bot, exchange=link.url)
        await on.ready(first)
        first.tell(OPEN_APT)
        await until(lambda: link.waiting == 1)
        words = ""
        try:
            said = await on.database.execute((HERE / "tidy_up.sql").read_text())
        except asyncpg.PostgresError as error:
            said, words = "refused", f"{error.sqlstate} {error}".partition("\n")[0]
        link.release()
        await first.ended()
    rows = await on.rows("APTUSDT")
    await on.sync(bot)
    priced = await on.database.fetchval("select count(current_price) from monitoring.positions")
    return {
        "tidy_up.sql": said,
        "the bot": first.lines[-1],
        "rows": str(len(rows)),
        "position on the exchange": str(on.record.position("APTUSDT")),
        "stops after the next sync pass": str(on.stops("APTUSDT")),
        "prices written without a lease": str(priced),
        WORDS: words,
    }


async def lost_answer(on: Stage, bot: str) -> Figures:
    """The exchange executes the entry, and the connection breaks before the answer."""
    first = await on.bot(bot)
    await on.ready(first)
    on.exchange.inject(Fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, Execution.FIRST))
    first.tell(OPEN_APT)
    await first.ended()
    return await _on_the_exchange(on, await on.rows("APTUSDT"), first.lines[-1])


async def killed(on: Stage, bot: str) -> Figures:
    """kill -9 while the entry's answer is on its way; another process then gets the same signal."""
    first, second = await on.bot(bot), await on.bot(bot)
    await on.ready(first, second)
    on.exchange.inject(Fault(FaultKind.HANG, Operation.CREATE_ORDER, Execution.FIRST, hold_ms=60_000))
    first.tell(OPEN_APT)
    await until(lambda: bool(on.record.entries("APTUSDT")))
    await first.kill()
    second.tell(OPEN_APT)
    await second.ended()
    return await _on_the_exchange(on, await on.rows("APTUSDT"), second.lines[-1])


async def _on_the_exchange(on: Stage, rows: list[str], last_line: str) -> Figures:
    return {
        "the bot": last_line,
        "entries": str(len(on.record.entries("APTUSDT"))),
        "position on the exchange": str(on.record.position("APTUSDT")),
        "of it guarded by stops": str(sum(stop.qty for stop in on.record.open_stops("APTUSDT"))),
        "rows": ", ".join(rows),
    }


@dataclass(frozen=True)
class Step:
    """A step: the race that it stops, and what ran before."""

    race: Callable[[Stage, str], Awaitable[Figures]]
    bot: str
    protected: bool
    before: int


STEPS = (
    Step(signals_and_sync, "bot0.py", protected=False, before=0),
    Step(signals_and_sync, "bot1.py", protected=False, before=0),
    Step(stopped_holder, "bot2.py", protected=False, before=1),
    Step(tidy_up, "bot2.py", protected=True, before=2),
    Step(lost_answer, "bot4.py", protected=True, before=3),
    Step(killed, "bot5.py", protected=True, before=4),
)


async def play(race: Step, made: Step, redis_url: str, database_url: str) -> Figures:
    """Run a step's race with the bot and the protection of the step ``made``."""
    async with stage(redis_url, database_url) as on:
        if made.protected:
            await on.protect()
        return await race.race(on, made.bot)


def told(number: int) -> str:
    """What happens in a step's race."""
    return f"Step {number}. {(STEPS[number].race.__doc__ or '').strip()}"


async def results(number: int, redis_url: str, database_url: str) -> dict[int, Figures]:
    """Run a step's race without the step and with it."""
    step = STEPS[number]
    return {n: await play(step, STEPS[n], redis_url, database_url) for n in sorted({step.before, number})}


def shown(found: dict[int, Figures]) -> str:
    """The figures side by side."""
    with_it = found[max(found)]
    table = [["", *(f"step {n}" for n in found)]]
    table += [[name, *(each[name] for each in found.values())] for name in with_it if name != WORDS]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    if words := with_it.get(WORDS):
        lines.append(f"{WORDS}: {words}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the races asked for."""
    parser = argparse.ArgumentParser(description="Shows the race that a step of the guide stops.")
    parser.add_argument("--step", type=int, choices=range(len(STEPS)), help="which step; all by default")
    step = parser.parse_args().step
    with RedisServer() as redis, PostgresServer() as postgres:
        for number in range(len(STEPS)) if step is None else [step]:
            database_url = postgres.create_database(f"step{number}")
            found = asyncio.run(results(number, redis.url, database_url))
            sys.stdout.write(f"{told(number)}\n\n{shown(found)}\n")


if __name__ == "__main__":
    main()
