"""Which column of the old table is which of lockguard's, and which status is which stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError
from lockguard.text import printable
from lockguard_positions._fit._table import Table, literal
from lockguard_positions._status import PositionStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CORE", "TYPES", "Names", "known_status", "read_mapping", "read_pairs", "suggestion"]

TYPES = {
    "id": "bigint",
    "exchange": "text",
    "symbol": "text",
    "side": "text",
    "quantity": "numeric",
    "status": "text",
    "signal_id": "text",
    "entry_price": "numeric",
    "entry_order_id": "text",
    "entry_client_id": "text",
    "stop_loss_percent": "numeric",
    "stop_price": "numeric",
    "stop_order_id": "text",
    "stop_client_id": "text",
    "exit_price": "numeric",
    "exit_order_id": "text",
    "exit_client_id": "text",
    "exit_reason": "text",
    "error_details": "text",
    "current_price": "numeric",
    "unrealized_pnl": "numeric",
    "opened_at": "timestamp with time zone",
    "closed_at": "timestamp with time zone",
    "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone",
    "token": "bigint",
    "intent": "bigint",
    "market": "text",
}
"""The columns of ``monitoring.positions`` and their types; a test compares them with the migrations."""

CORE = ("id", "exchange", "symbol", "side", "quantity", "status")
"""Columns that both programs must see the same value in: under another name they are renamed, not copied."""

_SYNONYMS = {
    "id": ("position_id", "pos_id"),
    "exchange": ("exchange_name", "venue", "exchange_id"),
    "symbol": ("ticker", "pair", "instrument", "trading_pair"),
    "side": ("direction", "position_side"),
    "quantity": ("qty", "amount", "size", "position_size"),
    "status": ("state",),
    "entry_price": ("avg_entry_price", "average_price", "avg_price", "open_price"),
    "stop_price": ("stop_loss_price", "sl_price"),
    "stop_order_id": ("sl_order_id", "stop_loss_order_id", "stoploss_order_id", "stop_id", "sl_id"),
    "stop_client_id": ("sl_client_order_id", "stop_client_order_id", "sl_client_id"),
    "entry_order_id": ("open_order_id",),
    "exit_price": ("close_price",),
    "exit_reason": ("close_reason",),
    "error_details": ("error_message", "last_error"),
    "opened_at": ("open_time", "entry_time"),
    "closed_at": ("close_time", "exit_time"),
}

_STAGES = {
    PositionStatus.PENDING_ENTRY: ("new", "pending", "opening", "created", "submitted", "entering"),
    PositionStatus.ENTRY_PLACED: ("filled", "entered", "placed"),
    PositionStatus.PENDING_SL: ("pending_stop", "placing_stop", "waiting_sl"),
    PositionStatus.ACTIVE: ("open", "opened", "live", "running", "in_position", "closing"),
    PositionStatus.CLOSED: (
        "close",
        "done",
        "exited",
        "stopped",
        "stopped_out",
        "sl_hit",
        "tp_hit",
        "finished",
    ),
    PositionStatus.FAILED: ("error", "rejected", "errored"),
    PositionStatus.ROLLED_BACK: ("rollback", "rolledback", "reverted"),
    PositionStatus.CANCELED: ("cancelled", "expired"),
}


@dataclass(frozen=True, slots=True)
class Names:
    """What is called how in the old table.

    Attributes:
        columns: lockguard's name of a column, and the table's. They differ in :data:`CORE` only, which is
            renamed.
        sources: columns whose values are copied for the open rows: lockguard's name, and the table's.
        exchange: the exchange of all rows, where the table has no column for it.
        statuses: the table's statuses, and the stages that they stand for, as given by ``--map``.
    """

    columns: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)
    exchange: str | None = None
    statuses: dict[str, PositionStatus] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether the table has a column for it, under any name."""
        return name in self.columns

    @property
    def renamed(self) -> dict[str, str]:
        """The columns that are called otherwise and are renamed for the flow."""
        return {ours: theirs for ours, theirs in self.columns.items() if ours != theirs}

    @property
    def resource(self) -> str:
        """The template of a row's lock, in the table's own names."""
        exchange = f"{{{self.columns['exchange']}}}" if self.has("exchange") else self.exchange or "EXCHANGE"
        return f"{exchange}:{{{self.columns['symbol']}}}"


def read_pairs(given: Sequence[str], *, option: str, example: str) -> dict[str, str]:
    """Parse ``KEY=VALUE`` options.

    Raises:
        ConfigurationError: one has no ``=``, an empty part, or its key was given twice.
    """
    pairs: dict[str, str] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not (equals and key and value):
            raise ConfigurationError(f"{option} {printable(one)!r} cannot be read; write {option} {example}")
        if pairs.setdefault(key, value) != value:
            raise ConfigurationError(f"{option} {printable(key)} was given twice, with different values")
    return pairs


def read_mapping(
    table: Table, columns: Mapping[str, str], statuses: Mapping[str, str], exchange: str | None
) -> Names:
    """Find each column of lockguard's in the table: as given, by its own name, or by a usual other name.

    Raises:
        ConfigurationError: an option names no column or no stage, or the table has no symbols.
    """
    for ours, theirs in columns.items():
        if ours not in TYPES:
            raise ConfigurationError(
                f"--column {printable(ours)}=...: lockguard has no such column; it has {', '.join(TYPES)}"
            )
        fitted = ours in table.columns and "token" in table.columns  # a fit with the same option renamed it
        if theirs not in table.columns and not fitted:
            raise ConfigurationError(
                f"--column {ours}={printable(theirs)}: {table.sql} has no such column; it has"
                f" {_listed(table)}"
            )
    there = {ours: theirs for ours, theirs in columns.items() if theirs in table.columns}
    found, sources = _found(table, there)
    if "symbol" not in found:
        raise ConfigurationError(
            f"{table.sql} has no column for the symbol; name it with --column symbol=NAME; it has"
            f" {_listed(table)}"
        )
    own = table.columns.get("exchange")
    if exchange is not None and own is not None and own.default == f"{literal(exchange)}::text":
        exchange = None  # a fit with the same option has added the column
    if exchange is not None and "exchange" in found:
        raise ConfigurationError(
            f"--exchange-name is for a table without a column for the exchange; {table.sql} has"
            f" {found['exchange']}"
        )
    if exchange is not None and (printable(exchange) != exchange or set(exchange) & set("{}: ")):
        raise ConfigurationError(f"--exchange-name {printable(exchange)!r} cannot be a part of a lock's name")
    return Names(found, sources, exchange, {old: _stage(old, new) for old, new in statuses.items()})


def _found(table: Table, given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The columns by lockguard's names, and those to copy from.

    Raises:
        ConfigurationError: a column that was given cannot be copied to lockguard's type.
    """
    found: dict[str, str] = {}
    sources: dict[str, str] = {}
    taken = set(given.values())
    for ours, kind in TYPES.items():
        own = ours in table.columns and (ours not in taken or given.get(ours) == ours)
        others = [given[ours]] if ours in given else [n for n in _SYNONYMS.get(ours, ()) if n not in taken]
        other = next((n for n in others if n in table.columns and n != ours), None)
        if ours in CORE:
            name = given.get(ours, other) if ours in given or not own else ours
            if name is not None:
                found[ours] = name
                taken.add(name)
            continue
        if own:
            found[ours] = ours
        if other is None:
            continue
        if _copies(table, ours, other):
            sources[ours] = other
            taken.add(other)
        elif ours in given:
            raise ConfigurationError(
                f"--column {ours}={printable(other)}: {kind} cannot be copied to {TYPES[ours]}"
            )
    return found, sources


def _copies(table: Table, ours: str, theirs: str) -> bool:
    column = table.columns[theirs]
    match TYPES[ours]:
        case "text":
            return column.textual or column.kind == "e" or column.base in {"int4", "int8", "uuid", "numeric"}
        case "numeric":
            return column.base in {"numeric", "float4", "float8", "int2", "int4", "int8", "money"}
        case "bigint":
            return column.base in {"int2", "int4", "int8"}
        case _:
            return column.base in {"timestamp", "timestamptz"}


def known_status(text: str, given: Mapping[str, PositionStatus]) -> PositionStatus | None:
    """The stage of a status; ``None`` if a person has to say it."""
    if text in given:
        return given[text]
    try:
        return PositionStatus(text.strip().lower())
    except ValueError:
        return PositionStatus.CANCELED if text.strip().lower() == "cancelled" else None


def suggestion(text: str) -> str:
    """The stage that a status probably means, or a placeholder."""
    plain = text.strip().lower().replace(" ", "_").replace("-", "_")
    return next((stage.value for stage, words in _STAGES.items() if plain in words), "STAGE")


def _stage(old: str, new: str) -> PositionStatus:
    try:
        return PositionStatus(new)
    except ValueError:
        raise ConfigurationError(
            f"--map {printable(old)}={printable(new)}: there is no such stage; write one of"
            f" {', '.join(stage.value for stage in PositionStatus)}"
        ) from None


def _listed(table: Table) -> str:
    return ", ".join(printable(name) for name in table.columns) or "none"
