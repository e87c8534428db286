"""The model of the flow's tables does what the shipped statements do on a real Postgres."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from lockguard_asyncpg import install
from lockguard_lab.sim.flow.records import Row
from lockguard_lab.sim.flow.tables import Tables
from lockguard_positions import migrate
from lockguard_positions._rows import ASKED, statements
from lockguard_positions._status import PositionStatus

pytestmark = pytest.mark.no_cover

STATEMENTS = statements("positions.sql")
FIRST_NUMBER = 10**17
"""Above the clock in microseconds, so that the next number follows from the last one."""
TIMES = {"opened_at", "closed_at", "created_at", "recorded_at", "settled_at", "updated_at"}
MODELLED = {name.removeprefix("_") for name in vars(Tables) if name.removeprefix("_") in STATEMENTS}
ALSO = {name.removeprefix("_also_") for name in vars(Tables) if name.startswith("_also_")}
NOT_IN_THE_FLOW = {
    *("columns", "intent_columns", "insert_position_before_10", "tick"),
    *("opened_by_signal", "closed_for_reason", "withdrawn_for_reason"),  # asked by the bot, not by the flow
}


def test_every_statement_of_the_flow_is_modelled() -> None:
    assert set(STATEMENTS) == MODELLED | ALSO | NOT_IN_THE_FLOW
    assert set(ARGUMENTS) == MODELLED


@dataclass
class Drawn:
    """What the arguments of one statement are drawn from."""

    dice: random.Random
    exchange: str
    symbol: str
    on: tuple[int, str]
    new: int
    number: int
    taken: str | None
    token: int
    price: Decimal
    amount: Decimal

    def or_none(self, value: Any) -> Any:
        return self.dice.choice((None, value))

    @property
    def of_symbol(self) -> tuple[str, str]:
        return self.exchange, self.symbol

    @property
    def client_id(self) -> str:
        return f"lgs-{self.new}"

    @property
    def side(self) -> str:
        return self.dice.choice(("buy", "sell"))

    def new_row(self) -> tuple[Any, ...]:
        begins = self.dice.choice(("pending_entry", "pending_entry", "entry_placed", "failed", "active"))
        intent = (self.new, f"lge-{self.new}") if begins == "pending_entry" else (None, None)
        said = (self.or_none("s"), self.price, Decimal(2), self.or_none("e"), self.token)
        row = (*self.of_symbol, self.dice.choice(("long", "short")), self.amount, begins)
        args = (*row, *said, *intent, f"{self.symbol[:3]}/USDT:USDT")
        return (*args, self.or_none(self.price)) if intent[0] else args

    def end(self) -> tuple[Any, ...]:
        status = self.dice.choice(("closed", "failed", "canceled", "rolled_back", "active"))
        said = (self.or_none("why"), self.or_none(self.price), self.or_none("17"), self.or_none("e"))
        return (*self.on, status, *said, self.token)


STEPS = (["stop"], ["entry"], ["close", "stop"])
OUTCOMES = ("executed", "refused", "absent", "canceled")
ARGUMENTS: dict[str, Callable[[Drawn], tuple[Any, ...]]] = {
    "activate": lambda d: (*d.on, "17", d.token, d.number),
    "add_part": lambda d: (*d.on, d.new, d.amount, d.token, d.or_none("17")),
    "all_open_of_symbol": lambda d: d.of_symbol,
    "attached_stop": lambda d: d.on[:1],
    "by_id": lambda d: d.on[:1],
    "enlarge": lambda d: (*d.on, d.amount, d.or_none(d.price), d.token, d.dice.choice((True, False))),
    "expect_close": lambda d: (*d.on, d.new, d.client_id, d.side, d.token, "why", d.or_none(ASKED)),
    "expect_move": lambda d: (*d.on, d.new, d.client_id, d.side, d.token, d.price),
    "expect_stop": lambda d: (*d.on, d.new, d.client_id, d.side, d.token, d.price),
    "fills_with_stop": lambda _: (),
    "finish": Drawn.end,
    "has_market": lambda _: (),
    "insert_position": Drawn.new_row,
    "intent_in_doubt": lambda d: (d.on[0], d.dice.choice(STEPS)),
    "last_ended": lambda d: d.of_symbol,
    "last_under": lambda d: (*d.of_symbol, d.dice.randrange(1, d.token + 1)),
    "loose_stops": lambda d: d.of_symbol,
    "move_stop": lambda d: (*d.on, "19", d.client_id, d.price, d.token, d.number),
    "next_intent": lambda d: d.of_symbol,
    "note_gone": lambda d: (*d.of_symbol, d.number, d.or_none(ASKED)),
    "note_error": lambda d: (*d.on, "e", d.token),
    "on_the_way_to_a_stop": lambda d: (*d.on, d.token),
    "open_of_exchange": lambda d: (d.exchange,),
    "open_of_symbol": lambda d: d.of_symbol,
    "open_under_other_labels": lambda d: d.of_symbol,
    "record_entry": lambda d: (
        *(*d.on, d.or_none("17"), d.or_none(d.price), d.amount, d.token),
        d.or_none(d.number),
    ),
    "record_entry_with_stop": lambda d: (
        *(*d.on, d.or_none("17"), d.or_none(d.price), d.amount, d.token, d.number),
        *(d.price, d.new, d.client_id),
    ),
    "reduce": lambda d: (*d.on, d.dice.choice((d.amount, d.amount, Decimal(0))), d.token),
    "reduce_by_stop": lambda d: (*d.on, d.dice.choice((d.amount, d.amount, Decimal(0))), d.token, d.new),
    "renew_intent": lambda d: (*d.of_symbol, d.number, d.or_none(ASKED)),
    "settle_intent": lambda d: (
        *(*d.of_symbol, d.number, d.dice.choice(OUTCOMES)),
        *(d.or_none("17"), d.or_none("d")),
    ),
    "stops_of": lambda d: d.on[:1],
    "symbols_with_loose_orders": lambda d: (d.exchange,),
    "take_over_stop": lambda d: (*d.on, "18", d.dice.choice((None, d.taken, "web_1")), d.price, d.token),
    "withdraw_close": lambda d: (*d.on, d.token),
}
FOLLOW = {
    "activate": ("settle_placed_stop",),
    "record_entry_with_stop": ("settle_entry", "intend_first_stop"),
}


class Sequence:
    """Draws statements and arguments that a flow could send, and many that it should not.

    Args:
        seed: decides them.
    """

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.model = Tables(lambda: 1)
        self.number = FIRST_NUMBER
        self.token = 1

    def drawn(self) -> tuple[str, tuple[Any, ...], tuple[str, ...]]:
        """A statement, its arguments, and what is executed with it."""
        dice = self.dice
        name = dice.choice(sorted(ARGUMENTS) + ["insert_position"] * 5)
        known = list(self.model.positions.values())
        row = dice.choice(known) if known else {"id": 7, "status": "active"}
        status = row["status"] if dice.random() < 0.8 else dice.choice(list(PositionStatus)).value
        self.number += dice.choice((1, 1, 1, 0))
        self.token += 1
        intents = [one for one in self.model.intents.values() if one["position_id"] == row["id"]]
        intent = dice.choice(intents) if intents and dice.random() < 0.8 else None
        args = ARGUMENTS[name](
            Drawn(
                dice,
                dice.choice(("binance", "binance", "binance@b")),
                dice.choice(("AAAUSDT", "BBBUSDT")),
                (row["id"], status),
                self.number,
                self.number if intent is None else intent["number"],
                None if intent is None else intent["client_id"],
                self.token,
                Decimal(dice.randrange(1, 900)) / 7,
                Decimal(dice.randrange(1, 90)) / 10,
            )
        )
        begins = name == "insert_position" and len(args) == 14
        return name, args, ("intend_entry",) if begins else FOLLOW.get(name, ())

    def run(self, name: str, args: tuple[Any, ...], also: tuple[str, ...]) -> list[Any]:
        """What the model answers, or the code of its refusal; a refusal changes nothing."""
        changed = self.model.begin()
        try:
            rows = changed.run(name, args)
            for further in also if rows else ():
                changed.also(further, rows[0], args)
        except asyncpg.PostgresError as refused:
            return [refused.sqlstate]
        self.model.commit(changed)
        return [plain(row) for row in rows]


def plain(row: Any) -> dict[str, Any]:
    """A row without its times, of which only the presence is compared, as a flow decides by that."""
    return {
        name: _value(name, value)
        for name, value in row.items()
        if name not in {"age_ms", "updated_at", "current_price", "unrealized_pnl"}
    }


def _value(name: str, value: Any) -> Any:
    if name in TIMES:
        return value is None
    if name in {"greatest", "next_intent"} and value < FIRST_NUMBER:
        return "by the clock"
    return value


async def asked(conn: Any, name: str, args: tuple[Any, ...], also: tuple[str, ...]) -> list[Any]:
    """What Postgres answers, or the code of its refusal."""
    text = STATEMENTS[name]
    if also:
        parts = [
            STATEMENTS[one].format(last=f"${len(args)}") if one == "intend_entry" else STATEMENTS[one]
            for one in also
        ]
        further = "".join(f", also_{number} as ({part})" for number, part in enumerate(parts))
        text = f"with lockguard_write as ({text}){further} select * from lockguard_write"
    try:
        return [plain(row) for row in await conn.fetch(text, *args)]
    except asyncpg.PostgresError as refused:
        return [refused.sqlstate]


def valued(rows: list[Any]) -> list[list[Any]]:
    """Rows by their values: a column that has no name of its own has another one in the model."""
    return [list(row.values()) if isinstance(row, dict) else [row] for row in rows]


async def test_the_model_answers_as_postgres_does(database_url: str) -> None:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await migrate(conn)
    told = 0
    try:
        for seed in range(40):
            await conn.execute("truncate monitoring.positions restart identity cascade")
            sequence = Sequence(seed)
            for step in range(50):
                drawn = sequence.drawn()
                ours, theirs = sequence.run(*drawn), await asked(conn, *drawn)
                assert valued(ours) == valued(theirs), f"seed {seed}, step {step}: {drawn}"
                told += bool(ours)
            await compare_tables(conn, sequence.model, seed)
    finally:
        await conn.close()
    assert told > 500


async def compare_tables(conn: Any, model: Tables, seed: int) -> None:
    order = {"positions": "id", "position_intents": "exchange, symbol, number"}
    for table, rows in (("positions", model.positions), ("position_intents", model.intents)):
        theirs = [
            plain(row)
            for row in await conn.fetch(f"select * from monitoring.{table} order by {order[table]}")
        ]
        ours = [plain(Row(rows[key])) for key in sorted(rows)]
        assert ours == theirs, f"seed {seed}: {table}"
