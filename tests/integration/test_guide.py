"""The guide's races happen before the step that stops them and not after it; its page shows what is so."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest

from lockguard_ccxt import Step, client_order_id
from lockguard_lab.exchange import connect

GUIDE = Path(__file__).parents[2] / "docs/tutorial/guard-the-bot-you-have"
sys.path.insert(0, str(GUIDE))

from page import PAGE, PIECE, due, form, written  # noqa: E402
from race import STEPS, results, shown, told  # noqa: E402
from stage import stage  # noqa: E402

pytestmark = pytest.mark.timeout(300)  # some fifteen processes in a race, on whatever machine

PIECES = {(kind, words): body for kind, words, body in PIECE.findall(PAGE.read_text(encoding="utf-8"))}

HAPPENS = {
    1: {
        "entries of APTUSDT, of SUIUSDT": ("2, 1", "1, 1"),
        "UniqueViolationError": ("2", "0"),
        "positions on the exchange": ("1", "2"),
        "stops on the exchange": ("4", "2"),
    },
    2: {
        "the first one's late write": ("committed", "refused"),
        "the row says": ("active", "closed"),
        "position on the exchange": ("0", "0"),
    },
    3: {
        "tidy_up.sql": ("DELETE 1", "refused"),
        "rows": ("0", "1"),
        "position on the exchange": ("10", "10"),
        "stops after the next sync pass": ("2", "1"),
        "prices written without a lease": ("1", "1"),
    },
    4: {
        "entries": ("2", "1"),
        "position on the exchange": ("20", "10"),
        "of it guarded by stops": ("10", "10"),
    },
    5: {
        "entries": ("2", "1"),
        "position on the exchange": ("20", "10"),
        "of it guarded by stops": ("10", "10"),
        "rows": ("pending_entry, active", "active"),
    },
}


@pytest.mark.parametrize("number", HAPPENS)
async def test_a_race_happens_without_the_step_and_not_with_it(number, redis_url, database_url):
    found = await results(number, redis_url, database_url)
    without, with_it = found[STEPS[number].before], found[number]
    assert {name: (without[name], with_it[name]) for name in HAPPENS[number]} == HAPPENS[number]
    assert form(shown(found)) == form(PIECES["run", str(number)])


def test_one_command_shows_the_race_of_the_bot_as_it_was():
    done = subprocess.run(
        [sys.executable, GUIDE / "race.py", "--step", "0"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{told(0)}\n\n{PIECES['run', '0']}\n"


def test_the_page_shows_the_differences_between_the_files():
    text = PAGE.read_text(encoding="utf-8")
    assert written(text, lambda kind, words, was: was if kind == "run" else due(kind, words)) == text
    bots = sorted(path.name for path in GUIDE.glob("bot*.py"))
    diffs = [words for kind, words in PIECES if kind == "diff"]
    assert diffs == [f"{old} {new}" for old, new in pairwise(bots)]
    assert [words for kind, words in PIECES if kind == "run"] == [str(n) for n in range(len(STEPS))]


async def test_the_last_bots_sync_pass_settles_what_the_dead_left(redis_url, database_url):
    """An entry without a stop, an order that never arrived, and one of which nobody can know yet."""
    async with stage(redis_url, database_url) as on, connect(on.exchange.url) as client:
        await on.protect()
        async with on.database.transaction():
            await on.database.execute("select lockguard.maintenance('rows of dead processes')")
            ids = {
                symbol: await on.database.fetchval(
                    "insert into monitoring.positions"
                    " (exchange, symbol, side, quantity, entry_price, status, created_at) values"
                    " ('binance', $1, 'long', 10, $2, 'pending_entry', now() - make_interval(secs => $3))"
                    " returning id",
                    *(symbol, on.exchange.price(symbol), age),
                )
                for symbol, age in (("APTUSDT", 0), ("SUIUSDT", 60), ("ARBUSDT", 0))
            }
        name = client_order_id("binance:APTUSDT", ids["APTUSDT"], Step.ENTRY)
        await client.create_order("APT/USDT:USDT", "market", "buy", 10, None, {"clientOrderId": name})

        passed = await asyncio.wait_for(on.sync("bot5.py"), 60)

        assert [await on.rows(symbol) for symbol in ids] == [["active"], ["canceled"], ["pending_entry"]]
        assert passed.said("ARBUSDT not synced: ARBUSDT: the order of row 3 is still in doubt")
        assert sum(stop.qty for stop in on.record.open_stops("APTUSDT")) == Decimal(10)
        assert len(on.record.entries("APTUSDT")) == 1
        assert not on.record.orphan_stops()
