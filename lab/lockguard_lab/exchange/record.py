"""The exchange's own record: what it really did, whatever the clients were told.

Tests ask it how often each contract was entered; what the clients believe is not evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from lockguard_lab.exchange.conditions import BANNED
from lockguard_lab.exchange.faults import Execution, FaultKind, Operation
from lockguard_lab.exchange.markets import plain_id
from lockguard_lab.exchange.model import (
    ZERO,
    AlgoOrder,
    AlgoStatus,
    Fill,
    Order,
    OrderStatus,
    OrderType,
    Origin,
    Position,
    PositionSide,
    Side,
)
from lockguard_lab.exchange.render import Json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["ExchangeRecord", "Request", "decode", "decode_record", "encode", "encode_record"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One request that reached the exchange.

    Attributes:
        symbol: the contract's id, or ``None``.
        client_id: the order's client id, or ``None``.
        outcome: ``ok``, the error code, ``banned``, or the fault and its execution as ``hang/first``.
        account: the account whose key it carried; ``None`` if it carried none, or the key was not checked.
    """

    at_ms: int
    operation: Operation
    symbol: str | None
    client_id: str | None
    outcome: str
    account: str | None = None


@dataclass(frozen=True, slots=True)
class ExchangeRecord:
    """Everything that happened on the exchange since the start or the last reset, by any client or person.

    Symbols may be given as ``BTCUSDT`` or ``BTC/USDT:USDT``. :meth:`of` narrows the record to one account.
    """

    orders: tuple[Order, ...]
    algo_orders: tuple[AlgoOrder, ...]
    fills: tuple[Fill, ...]
    positions: tuple[Position, ...]
    requests: tuple[Request, ...]

    def of(self, account: str) -> ExchangeRecord:
        """The record of one account only."""
        return ExchangeRecord(
            orders=tuple(row for row in self.orders if row.account == account),
            algo_orders=tuple(row for row in self.algo_orders if row.account == account),
            fills=tuple(row for row in self.fills if row.account == account),
            positions=tuple(row for row in self.positions if row.account == account),
            requests=tuple(row for row in self.requests if row.account == account),
        )

    def entries(self, symbol: str) -> tuple[Order, ...]:
        """The orders that made the position in ``symbol`` larger or turned it round."""
        wanted = plain_id(symbol)
        opening = {fill.order_id for fill in self.fills if fill.symbol == wanted and fill.opened > ZERO}
        return tuple(order for order in self.orders if order.id in opening)

    def reductions(self, symbol: str | None = None, *, origin: Origin | None = None) -> tuple[Order, ...]:
        """The orders that made a position smaller, fired stops among them.

        Args:
            symbol: only in this contract.
            origin: only orders of this origin: a program, or a person by hand.
        """
        wanted = None if symbol is None else plain_id(symbol)
        return tuple(
            order
            for order in self.orders
            if order.reduced > ZERO and wanted in {None, order.symbol} and origin in {None, order.origin}
        )

    def by_hand(self, symbol: str | None = None) -> tuple[Order | AlgoOrder, ...]:
        """The orders of both books that a person asked for."""
        wanted = None if symbol is None else plain_id(symbol)
        rows: tuple[Order | AlgoOrder, ...] = (*self.orders, *self.algo_orders)
        return tuple(row for row in rows if row.origin is Origin.PERSON and wanted in {None, row.symbol})

    def banned_requests(self) -> tuple[Request, ...]:
        """The requests that came during a ban."""
        return tuple(request for request in self.requests if request.outcome == BANNED)

    def position(self, symbol: str) -> Decimal:
        """The net quantity in ``symbol``: above zero long, below zero short."""
        wanted = plain_id(symbol)
        return sum((position.qty for position in self.positions if position.symbol == wanted), ZERO)

    def open_stops(self, symbol: str) -> tuple[AlgoOrder, ...]:
        """The algo orders on ``symbol`` that still wait."""
        wanted = plain_id(symbol)
        return tuple(a for a in self.algo_orders if a.symbol == wanted and a.status is AlgoStatus.NEW)

    def without_stop(self) -> tuple[Position, ...]:
        """The positions that no waiting algo order of the other side guards."""
        guarded = {_guards(a) for a in self.algo_orders if a.status is AlgoStatus.NEW}
        return tuple(p for p in self.positions if p.qty and _guarded_by(p) not in guarded)

    def orphan_stops(self) -> tuple[AlgoOrder, ...]:
        """The waiting algo orders that have no position to close."""
        held = {_guarded_by(p) for p in self.positions if p.qty}
        return tuple(a for a in self.algo_orders if a.status is AlgoStatus.NEW and _guards(a) not in held)


_Guard: TypeAlias = tuple[str, str, PositionSide, Side]


def _guards(algo: AlgoOrder) -> _Guard:
    return (algo.account, algo.symbol, algo.position_side, algo.side)


def _guarded_by(position: Position) -> _Guard:
    return (position.account, position.symbol, position.side, _closing_side(position))


def _closing_side(position: Position) -> Side:
    return Side.SELL if position.qty > ZERO else Side.BUY


_READERS: Mapping[str, Callable[..., object]] = {
    "str": str,
    "int": int,
    "bool": bool,
    "Decimal": lambda value: Decimal(str(value)),  # JSON's 0.1 is 0.1, not the nearest binary number
    "Side": Side,
    "OrderType": OrderType,
    "OrderStatus": OrderStatus,
    "AlgoStatus": AlgoStatus,
    "PositionSide": PositionSide,
    "Origin": Origin,
    "date": date.fromisoformat,
    "Operation": Operation,
    "FaultKind": FaultKind,
    "Execution": Execution,
}
"""How a field of each type is read back; optional types are written ``X | None``."""


def encode(value: DataclassInstance) -> dict[str, Json]:
    """A record's row as JSON: decimals as text."""
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: object) -> Json:
    match value:
        case Decimal():
            return str(value)
        case Enum():
            return str(value.value)
        case date():
            return value.isoformat()
        case _:
            return cast("Json", value)


def decode(cls: type[T], row: Mapping[str, object]) -> T:
    """A row read back from JSON.

    Raises:
        ValueError: a field is missing where there is no default, unknown, or of the wrong type.
    """
    kinds = {field.name: str(field.type) for field in fields(cast("type[Order]", cls))}
    if unknown := sorted(row.keys() - kinds.keys()):
        raise ValueError(f"unknown field {unknown[0]!r}; {cls.__name__} has {', '.join(kinds)}")
    try:
        return cls(**{name: _read(kinds[name], value) for name, value in row.items()})
    except (TypeError, ArithmeticError) as exc:
        raise ValueError(f"not a {cls.__name__}: {exc}") from exc


def _read(kind: str, value: object) -> object:
    base, _, optional = kind.partition(" | ")
    return None if value is None and optional else _READERS[base](value)


def encode_record(record: ExchangeRecord) -> dict[str, Json]:
    """The record as JSON."""
    return {field.name: [encode(row) for row in getattr(record, field.name)] for field in fields(record)}


def decode_record(data: Mapping[str, Sequence[Mapping[str, object]]]) -> ExchangeRecord:
    """The record read back from JSON."""
    return ExchangeRecord(
        orders=tuple(decode(Order, row) for row in data["orders"]),
        algo_orders=tuple(decode(AlgoOrder, row) for row in data["algo_orders"]),
        fills=tuple(decode(Fill, row) for row in data["fills"]),
        positions=tuple(decode(Position, row) for row in data["positions"]),
        requests=tuple(decode(Request, row) for row in data["requests"]),
    )
