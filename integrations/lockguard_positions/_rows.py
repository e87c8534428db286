"""The statements of ``sql/*.sql``, and what one of them does on a row, in whatever transaction it is given.

The decisions are elsewhere (:mod:`~lockguard_positions._flow`), and so are the transactions
(:mod:`~lockguard_positions._store`).
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from lockguard_ccxt import Step, client_order_id
from lockguard_positions._errors import PositionChanged
from lockguard_positions._model import Intent, IntentOutcome, NewPosition, Position, PositionSide, Progress
from lockguard_positions._status import OPEN, PositionStatus, check_transition

if TYPE_CHECKING:
    from lockguard._lease import Lease

__all__ = [
    "ASKED",
    "NEXT_INTENT",
    "WITHDRAWN",
    "Connection",
    "changed",
    "decided_on",
    "entry_intent",
    "intend",
    "intent_of",
    "intent_to_enter",
    "new_row",
    "next_intent",
    "position_of",
    "position_or_none",
    "settle",
    "statement",
    "statements",
    "stop_intent",
]

NEXT_INTENT = "next_intent"
"""What some rows say beside their position: a number for the next intent, which spares a round trip."""

ASKED = "asked for by a person"
"""What the details of an intent say while it is in doubt, where it was not the flow's own idea."""

WITHDRAWN = "what is held is not what it was: "
"""What the details of an exit say that was asked for and then not made, before the reason to close."""

STATEMENT_S = 5.0
"""As long as a fenced transaction waits for a row: whoever has it may be a person's forgotten session.

What is not answered by then has lost its answer."""

Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COLUMNS = ("columns", "intent_columns")
_OPEN = ", ".join(f"'{status}'" for status in PositionStatus if status in OPEN)


@cache
def statements(file: str, package: str = "lockguard_positions") -> dict[str, str]:
    """All statements of a package's file.

    ``{columns}`` and ``{intent_columns}`` are blocks of the same file, ``{open}`` the open statuses.
    """
    text = (files(package) / "sql" / file).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    blocks = {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}
    for name, body in blocks.items():
        for columns in _COLUMNS:
            if columns in blocks:
                body = body.replace(f"{{{columns}}}", blocks[columns])  # noqa: PLW2901
        blocks[name] = body.replace("{open}", f"({_OPEN})")
    return blocks


def statement(name: str, file: str = "positions.sql") -> str:
    """One statement."""
    return statements(file)[name]


def new_row(
    lease: Lease,
    new: NewPosition,
    status: PositionStatus,
    *,
    error: str | None = None,
    number: int | None = None,
    attached: Decimal | None = None,
    has_market: bool,
) -> tuple[str, tuple[object, ...], tuple[str, ...]]:
    """The statement of a new row, its arguments, and the statement of its intent if one goes with it.

    Args:
        lease: what it is written under.
        new: what the row is about.
        status: one of those that a row may begin as.
        error: what went wrong, for people.
        number: of the intent to enter, if that is intended.
        attached: the price of the stop that the entry brings along.
        has_market: whether the table has the column of version 10.
    """
    check_transition(None, status)
    args: tuple[object, ...] = (
        *(new.exchange, new.symbol, new.side.value, new.quantity, status.value, new.signal_id),
        *(new.entry_price, new.stop_loss_percent, error, lease.token, number),
        None if number is None else client_order_id(lease.resource, number, Step.ENTRY),
    )
    text = statement("insert_position" if has_market else "insert_position_before_10")
    if has_market:
        args = (*args, new.market)
    if number is None:
        return text, args, ()
    return text, (*args, attached), (statement("intend_entry").format(last=f"${len(args) + 1}"),)


async def next_intent(conn: Connection, exchange: str, symbol: str) -> int:
    """A number that no intent of a symbol ever had; good while the lease is held that it is asked under."""
    return int(await conn.fetchval(statement("next_intent"), exchange, symbol, timeout=STATEMENT_S))


async def intend(
    conn: Connection,
    lease: Lease,
    position: Position,
    step: Step,
    *extra: Decimal | str | None,
    number: int | None = None,
    statement_name: str | None = None,
) -> Progress:
    """A new intent, with a number and a client order id that were never used, and the row that names it.

    Args:
        conn: in a fenced transaction.
        lease: the same.
        position: whose amount is ordered.
        step: what for; the entry is intended with its row (:func:`new_row`).
        extra: a stop's trigger; or the reason to close, and :data:`ASKED` where a person asked for it.
        number: what :func:`next_intent` said in this transaction; asked for if it is not given.
        statement_name: the one for this step by default.
    """
    if number is None:
        number = await next_intent(conn, position.exchange, position.symbol)
    client_id = client_order_id(lease.resource, number, step)
    args = (number, client_id, position.side.exit, lease.token, *extra)
    name = statement_name or f"expect_{step.value}"
    row = await conn.fetchrow(statement(name), *decided_on(position), *args, timeout=STATEMENT_S)
    trigger = next((value for value in extra if isinstance(value, Decimal)), None)
    asked = step is Step.CLOSE and ASKED in extra
    side = position.side.exit
    intent = Intent(number, position.id, step, client_id, side, position.quantity, trigger, asked=asked)
    return Progress(changed(position, row), intent)


def entry_intent(position: Position, number: int, attached: Decimal | None) -> Intent:
    """The intent that was written with a row."""
    assert position.entry_client_id is not None
    return Intent(
        *(number, position.id, Step.ENTRY, position.entry_client_id, position.side.entry),
        *(position.quantity, attached),
    )


def intent_to_enter(lease: Lease, new: NewPosition, number: int, attached: Decimal | None) -> Intent:
    """What :func:`entry_intent` will say of a row that is yet to be written, if that keeps all digits."""
    client_id = client_order_id(lease.resource, number, Step.ENTRY)
    return Intent(number, 0, Step.ENTRY, client_id, new.side.entry, new.quantity, attached)


def stop_intent(lease: Lease, position: Position, number: int, trigger: Decimal) -> Intent:
    """The intent of a stop that is written with what goes before it."""
    client_id = client_order_id(lease.resource, number, Step.STOP)
    side = position.side.exit
    return Intent(number, position.id, Step.STOP, client_id, side, position.quantity, trigger)


async def settle(
    conn: Connection,
    position: Position,
    intent: Intent,
    outcome: IntentOutcome,
    order_id: str | None,
    details: str | None = None,
) -> None:
    """What became of an intent; once settled it stays so."""
    key = (position.exchange, position.symbol, intent.number)
    await conn.fetchval(
        statement("settle_intent"), *key, outcome.value, order_id, details, timeout=STATEMENT_S
    )


def decided_on(position: Position) -> tuple[int, str]:
    """The row and the status that a change was decided on."""
    return position.id, position.status.value


def changed(position: Position, row: asyncpg.Record | None) -> Position:
    """The row that a write returned.

    Raises:
        PositionChanged: it returned none.
    """
    if row is None:
        raise PositionChanged(
            f"position {position.id} is no longer {position.status.value}, though its lease is held:"
            " somebody wrote past the fence",
            position_id=position.id,
        )
    return position_of(row)


def position_or_none(row: asyncpg.Record | None) -> Position | None:
    """A row, if there is one."""
    return None if row is None else position_of(row)


def position_of(row: asyncpg.Record) -> Position:
    """A row of ``monitoring.positions``."""
    values = {name: value for name, value in row.items() if name != NEXT_INTENT}
    return Position(
        **{**values, "side": PositionSide(values["side"]), "status": PositionStatus(values["status"])}
    )


def intent_of(row: asyncpg.Record) -> Intent:
    """A row of ``monitoring.position_intents``."""
    return Intent(
        number=row["number"],
        position_id=row["position_id"],
        step=Step(row["step"]),
        client_id=row["client_id"],
        side=row["side"],
        amount=row["amount"],
        trigger=row["trigger_price"],
        age_ms=row["age_ms"],
        asked=row["details"] == ASKED,
    )
