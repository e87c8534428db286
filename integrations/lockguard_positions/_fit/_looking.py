"""The open rows of an old table beside what the exchange holds: which stops stand, and what does not agree.

Only reads: nothing is ordered or cancelled, and no row is written.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lockguard.text import printable
from lockguard_ccxt import UnknownMarket
from lockguard_positions._diagnosis import Comparison, compare
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._fit._rows import Row, read_side
from lockguard_positions._fit._steps import Finding, Kind, Level
from lockguard_positions._model import Position, PositionSide
from lockguard_positions._stops import is_own

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lockguard_ccxt import GuardedExchange

__all__ = ["beside_the_exchange"]


async def beside_the_exchange(
    exchange: GuardedExchange, rows: Iterable[Row], *, older_than_s: float
) -> tuple[list[Finding], bool]:
    """Compare; returns what was found, and whether the exchange could be read."""
    by_symbol: defaultdict[str, tuple[Position, ...]] = defaultdict(tuple)
    findings = []
    for row in rows:
        if row.venue != exchange.name:
            continue
        position, why = _position(exchange, row)
        if position is None:
            findings.append(_of(f"row {row.id} was not compared: {why}", row.id))
        else:
            by_symbol[position.symbol] += (position,)
    try:
        seen = await compare(exchange, dict(by_symbol), older_than=timedelta(seconds=older_than_s))
    except ExchangeUnreadable as exc:
        return [
            *findings,
            Finding(Kind.EXCHANGE, f"{exchange.name} could not be read: {exc}", level=Level.LOOK),
        ], False
    findings += [_stop_of(position, seen) for some in by_symbol.values() for position in some]
    for one in seen.findings:
        ids = tuple(map(str, one.position_ids))
        told = f"{one.kind.value} {one.exchange}:{printable(one.symbol)}: {one.details}"
        findings.append(Finding(Kind.EXCHANGE, told, one.kind.remedy, level=Level.LOOK, rows=ids))
    return findings, True


def _stop_of(position: Position, seen: Comparison) -> Finding:
    stop = next((one for one in seen.stops.get(position.symbol, ()) if is_own(position, one)), None)
    if stop is not None:
        told = (
            f"row {position.id} {position.symbol}: its stop {stop.id} stands, {stop.side} {stop.amount} at"
            f" {stop.trigger}"
        )
    elif position.stop_order_id or position.stop_client_id:
        told = (
            f"row {position.id} {position.symbol}: its stop"
            f" {position.stop_order_id or position.stop_client_id} is not there"
        )
    else:
        told = f"row {position.id} {position.symbol}: it names no stop"
    return Finding(Kind.STOP, told, level=Level.LOOK, rows=(str(position.id),))


def _of(told: str, row_id: str) -> Finding:
    return Finding(Kind.EXCHANGE, told, level=Level.LOOK, rows=(row_id,))


def _position(exchange: GuardedExchange, row: Row) -> tuple[Position | None, str]:
    side = read_side(row.side)
    if row.symbol is None or side is None or row.quantity is None:
        return None, "its symbol, side or quantity cannot be read"
    try:
        market = exchange.market(row.symbol)
    except UnknownMarket:
        return None, f"{exchange.name} lists no market {printable(row.symbol)}"
    number: Any = int(row.id) if row.id.isdigit() else row.id
    return (
        Position(
            **dict.fromkeys(_UNREAD),
            id=number,
            exchange=exchange.name,
            symbol=market.name,
            side=PositionSide(side),
            quantity=abs(Decimal(row.quantity)),
            status=row.stage,
            entry_price=row.entry_price,
            stop_price=row.stop_price,
            stop_order_id=row.stop_order_id,
            stop_client_id=row.stop_client_id,
            age_ms=int((row.age_s or 0) * 1000),
            market=market.symbol,
        ),
        "",
    )


_UNREAD = (
    *("signal_id", "entry_order_id", "entry_client_id", "stop_loss_percent", "exit_price", "exit_order_id"),
    *("exit_reason", "error_details", "opened_at", "closed_at", "token"),
)
