"""The statements of ``sql/*.sql``, and functions that execute one of them in the caller's transaction.

Decisions are taken in :mod:`~lockguard_positions._flow`, and transactions are in
:mod:`~lockguard_positions._store`.
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
    "COPIED",
    "NEXT_INTENT",
    "PART",
    "UNSENT",
    "WITHDRAWN",
    "Connection",
    "add_part",
    "changed",
    "decided_on",
    "details_of",
    "entry_intent",
    "intend",
    "intent_of",
    "intent_to_enter",
    "is_asked",
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
"""A column of some rows beside the position: a number for the next intent, which saves a round trip."""

ASKED = "asked for by a person"
"""The details of an intent in doubt that a person asked for, not the flow itself."""

_ASKED_AND_REFUSED = "asked for by a person, and refused for now"
_VOID = "not sent again, as less is held than it was to close"
_ENDED = "not sent again, as the position has ended"
UNSENT = "never sent, as the position has ended"
"""The details of an intent to close that only records that its position has ended otherwise."""

_AND = "; "

COPIED = "another copy of it may still arrive"
"""The details of a stop, settled or not, of which a copy was sent that got no answer.

They outlast its settlement, as the position must not end before that copy can no longer arrive."""

PART = "a part that the entry was filled in"
"""The details of an intent that records a part of an entry, of which the rest could still be filled then.

Together they are what the entry has filled; the intent to enter stays in doubt until nothing more can be."""

WITHDRAWN = "what is held is not what it was: "
"""Starts the details of an exit that was asked for and then not made; the reason to close follows."""

STATEMENT_S = 5.0
"""Seconds that a statement may take, as long as a fenced transaction waits for a row.

A forgotten session of a person may hold that row. A statement without an answer by then has lost it."""

Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COLUMNS = ("columns", "intent_columns")
_OPEN = ", ".join(f"'{status}'" for status in PositionStatus if status in OPEN)


@cache
def statements(file: str, package: str = "lockguard_positions") -> dict[str, str]:
    """All statements of a package's SQL file, by name.

    ``{columns}`` and ``{intent_columns}`` are blocks of the same file, ``{open}`` is the open statuses,
    ``{copied}`` is :data:`COPIED`, ``{part}`` is :data:`PART`.
    """
    text = (files(package) / "sql" / file).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    blocks = {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}
    for name, body in blocks.items():
        for columns in _COLUMNS:
            if columns in blocks:
                body = body.replace(f"{{{columns}}}", blocks[columns])  # noqa: PLW2901
        body = body.replace("{open}", f"({_OPEN})").replace("{copied}", f"'{COPIED}'")  # noqa: PLW2901
        blocks[name] = body.replace("{part}", f"'{PART}'")
    return blocks


def statement(name: str, file: str = "positions.sql") -> str:
    """The statement of that name."""
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
    """The statement of a new row, its arguments, and the statement of its intent if there is one.

    Args:
        lease: the lease that the row is written under.
        new: the position.
        status: one of the statuses in which a row may begin.
        error: what went wrong, as a text for display.
        number: the number of the intent to enter; ``None`` without an intent.
        attached: the price of the stop that the entry carries.
        has_market: whether the table has the column ``market`` (schema version 10).
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
    """A number that no intent of a symbol ever had; valid while the lease that it is asked under is held."""
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
    """Write an intent with a new number and client order id; returns it with the row that refers to it.

    Args:
        conn: a connection in a fenced transaction.
        lease: the lease of that transaction.
        position: the position whose amount is ordered.
        step: a stop or a close; the entry's intent is written with its row (:func:`new_row`).
        extra: a stop's trigger; or the reason to close, and :data:`ASKED` where a person asked for it.
        number: what :func:`next_intent` returned in this transaction; asked for if it is ``None``.
        statement_name: the name of the statement; by default the one of this step.
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
    """The intent to enter that was written with a row."""
    assert position.entry_client_id is not None
    return Intent(
        *(number, position.id, Step.ENTRY, position.entry_client_id, position.side.entry),
        *(position.quantity, attached),
    )


def intent_to_enter(lease: Lease, new: NewPosition, number: int, attached: Decimal | None) -> Intent:
    """What :func:`entry_intent` will return for a row not yet written, if the table keeps all digits."""
    client_id = client_order_id(lease.resource, number, Step.ENTRY)
    return Intent(number, 0, Step.ENTRY, client_id, new.side.entry, new.quantity, attached)


def stop_intent(lease: Lease, position: Position, number: int, trigger: Decimal) -> Intent:
    """The intent of a stop that is written in one statement with the change before it."""
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
    """Record what became of an intent; a settled intent does not change again."""
    key = (position.exchange, position.symbol, intent.number)
    await conn.fetchval(
        statement("settle_intent"), *key, outcome.value, order_id, details, timeout=STATEMENT_S
    )


def decided_on(position: Position) -> tuple[int, str]:
    """The row's id and the status that a change was decided on, as arguments of its statement."""
    return position.id, position.status.value


By: TypeAlias = "tuple[Intent, str | None] | None"
"""The intent of an order that is not settled yet, and the id that the exchange gave the order."""


async def reduce(
    conn: Connection,
    lease: Lease,
    position: Position,
    filled: Decimal,
    by: By,
    *,
    by_its_stop: bool = False,
) -> Position:
    """Leave a row with what an order of it has not filled, and settle the order's intent.

    Args:
        conn: in a transaction.
        lease: on the symbol.
        position: the row.
        filled: how much was filled; less than the row's quantity.
        by: the intent of the order, if that is not settled yet, and the order's id.
        by_its_stop: whether the order was the row's own stop, which is cleared.
    """
    text = statement("reduce_by_stop" if by_its_stop else "reduce")
    args: tuple[object, ...] = (*decided_on(position), position.quantity - filled, lease.token)
    if by_its_stop:
        args = (*args, await next_intent(conn, position.exchange, position.symbol))
    row = await conn.fetchrow(text, *args, timeout=STATEMENT_S)
    if by is not None:
        intent, order_id = by
        told = f"filled {filled} of {intent.amount}"
        await settle(conn, position, intent, IntentOutcome.EXECUTED, order_id, told)
    return changed(position, row)


async def add_part(
    conn: Connection, lease: Lease, position: Position, filled: Decimal, order_id: str | None
) -> Decimal:
    """Record a part that a row's entry was filled in; returns what the row did not have yet of it.

    Args:
        conn: in a transaction.
        lease: on the symbol.
        position: the row.
        filled: all that the entry has filled.
        order_id: the exchange's id of the entry.
    """
    number = await next_intent(conn, position.exchange, position.symbol)
    args = (*decided_on(position), number, filled, lease.token, order_id)
    added = await conn.fetchval(statement("add_part"), *args, timeout=STATEMENT_S)
    return Decimal(0) if added is None else Decimal(added)


def changed(position: Position, row: asyncpg.Record | None) -> Position:
    """The position in the row that a write returned.

    Raises:
        PositionChanged: the write returned no row.
    """
    if row is None:
        raise PositionChanged(
            f"position {position.id} is no longer {position.status.value}, though its lease is held:"
            " somebody wrote past the fence",
            position_id=position.id,
        )
    return position_of(row)


def position_or_none(row: asyncpg.Record | None) -> Position | None:
    """The position in a row; ``None`` if there is no row."""
    return None if row is None else position_of(row)


def position_of(row: asyncpg.Record) -> Position:
    """The position in a row of ``monitoring.positions``."""
    values = {name: value for name, value in row.items() if name != NEXT_INTENT}
    return Position(
        **{**values, "side": PositionSide(values["side"]), "status": PositionStatus(values["status"])}
    )


def details_of(intent: Intent) -> str | None:
    """What is known of an intent in doubt, as :func:`intent_of` reads it from the details of its row."""
    if intent.unsent:
        return UNSENT
    asked = (_ASKED_AND_REFUSED if intent.refused else ASKED) if intent.asked else None
    gone = _ENDED if intent.ended else _VOID if intent.void else None
    return _AND.join(known for known in (asked, gone) if known is not None) or None


def is_asked(details: str | None) -> bool:
    """Whether an intent in doubt with these details is one that a person asked for."""
    return not {ASKED, _ASKED_AND_REFUSED}.isdisjoint((details or "").split(_AND))


def intent_of(row: asyncpg.Record) -> Intent:
    """The intent in a row of ``monitoring.position_intents``."""
    known = frozenset((row["details"] or "").split(_AND))
    return Intent(
        number=row["number"],
        position_id=row["position_id"],
        step=Step(row["step"]),
        client_id=row["client_id"],
        side=row["side"],
        amount=row["amount"],
        trigger=row["trigger_price"],
        age_ms=row["age_ms"],
        asked=is_asked(row["details"]),
        refused=_ASKED_AND_REFUSED in known,
        void=not known.isdisjoint({_VOID, _ENDED, UNSENT}),
        ended=not known.isdisjoint({_ENDED, UNSENT}),
        unsent=UNSENT in known,
        entered_since=row["entered_since"],
    )
