"""Rows as the flow writes them, as SQL, on which the table's own conditions are tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockguard_positions._fit._columns import without_enum
from lockguard_positions._fit._mapping import CORE, TYPES, Names
from lockguard_positions._fit._table import Column, Table, ident, literal
from lockguard_positions._status import OPEN, PositionStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ours_of", "sample_rows", "textual"]

_ENDED = frozenset(status.value for status in PositionStatus if status not in OPEN)


def sample_rows(table: Table, names: Names, *, ended: bool = False) -> str:
    """A query of such rows, with the table's names.

    Args:
        table: the old table.
        names: what is called how.
        ended: only rows of positions that have ended.
    """
    rows = (values for values in _samples() if not ended or values["status"].strip("'") in _ENDED)
    return " union all ".join(f"select {_sample(table, names, values)}" for values in rows)


def ours_of(column: Column, names: Names) -> str | None:
    """The flow's name of a column that it writes; ``None`` for one that it leaves alone."""
    ours = next((o for o, theirs in names.columns.items() if theirs == column.name), None)
    return ours if ours is not None and (ours in CORE or ours == column.name) else None


def textual(table: Table, expression: str) -> str:
    """An expression of the table's as it reads once its enums are text."""
    for column in table.columns.values():
        expression = without_enum(expression, column)
    return expression


def _samples() -> Iterator[dict[str, str]]:
    """Rows as the flow writes them, a column's value as SQL; what is left out is NULL."""
    entry = {
        "exchange": "'binance'",
        "symbol": "'APTUSDT'",
        "market": "'APT/USDT:USDT'",
        "quantity": "1",
        "signal_id": "'x'",
        "token": "1",
        "intent": "1",
    }
    known = {"entry_price": "1", "stop_loss_percent": "2", "entry_client_id": "'x'"}
    filled = {**entry, "entry_order_id": "'x'", "opened_at": "now()"}
    ended = {**filled, "closed_at": "now()", "exit_reason": "'x'"}
    of_status = {
        "pending_entry": {**entry, **known},
        "entry_placed": filled,
        "pending_sl": {**filled, "stop_price": "1", "stop_client_id": "'x'"},
        "active": {**filled, "stop_price": "1", "stop_client_id": "'x'", "stop_order_id": "'x'"},
        "closed": ended,
        "rolled_back": ended,
        "failed": {**entry, "error_details": "'x'", "closed_at": "now()"},
        "canceled": {**entry, "closed_at": "now()"},
    }
    for status, values in of_status.items():
        for side in ("'long'", "'short'"):
            yield {**values, "status": literal(status), "side": side}


def _sample(table: Table, names: Names, values: dict[str, str]) -> str:
    columns = []
    for column in table.columns.values():
        ours = ours_of(column, names)
        kind = "text" if column.kind == "e" else column.type
        if ours is not None:
            kind = "text" if TYPES[ours] == "text" else kind
            value = values.get(ours, "null")
        else:
            value = (
                column.default if column.default is not None and "nextval" not in column.default else "null"
            )
            value = "null" if column.generated else without_enum(value, column)
        columns.append(f"({value})::{kind} as {ident(column.name)}")
    return ", ".join(columns)
