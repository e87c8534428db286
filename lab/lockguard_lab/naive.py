"""The same flow without a guard, as bots often have it: it loses money.

**For the races, the demo and the guide only.**

Its faults are intentional and come from a bot that was in use:

* the check for an existing position reads ``active`` rows only, and so misses the row of an open in progress;
* each step is a transaction of its own, and nothing is locked between the steps;
* it waits a fixed time for the entry to settle (3 s);
* the sync pass, too, reads ``active`` rows only, and takes every other position on the exchange for unknown;
* orders carry no client id, and an emergency close is sent without ``reduceOnly``;
* ``except Exception`` turns every error into a rollback.

On the schema of version 1 (unique over active rows) the two rows collide in ``idx_unique_active_position``
only at the end, when orders for both have been sent.

It logs its steps as such bots do, under ``lockguard_lab.naive``; ``lockguard logs analyze`` finds the faults
in that log.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard_ccxt import decimal_of, resource_key
from lockguard_lab.statements import statement
from lockguard_positions._model import PositionSide, stop_price_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["SETTLEMENT", "NaiveManager", "NaiveOpen"]

SETTLEMENT = timedelta(seconds=3)
"""How long the flow waits for an entry to settle, whatever the exchange reports."""

_FILE = "naive.sql"

_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # otherwise logging's last resort prints a traceback for each failure


@dataclass(frozen=True, slots=True)
class NaiveOpen:
    """The result of an unguarded open.

    Attributes:
        position_id: the row's id; the row is another open's if ``existing``.
        existing: the open found an active row and returned that.
        error: the error that made it roll back.
        unique_violation: whether that error was a violation of the unique index.
    """

    position_id: int
    existing: bool = False
    error: str | None = None
    unique_violation: bool = False


class NaiveManager:
    """Opens and syncs positions without a guard.

    Args:
        pool: a database with the schema of version 1.
        exchange: a plain ccxt exchange with its markets loaded.
        time_scale: the factor for its fixed waits.
        at: called with the name of each step that it reaches, for demonstrations that synchronize processes.
    """

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        exchange: Any,
        *,
        time_scale: float = 1.0,
        at: Callable[[str, str], Awaitable[None]] | None = None,
    ) -> None:
        self._pool = pool
        self._exchange = exchange
        self._settlement_s = SETTLEMENT.total_seconds() * time_scale
        self._at = at

    async def open_position_atomic(
        self,
        signal: str,
        symbol: str,
        side: str,
        quantity: Decimal,
        entry_price: Decimal,
        stop_loss_percent: Decimal,
    ) -> NaiveOpen:
        """Open a position: row, entry, row, wait, stop, row, with nothing that makes these steps atomic."""
        venue, short = self._name(symbol)
        existing = await self._pool.fetchval(statement("active", _FILE), short, venue)
        if existing is not None:
            _LOG.info("%s on %s: position %d exists", short, venue, existing)
            return NaiveOpen(int(existing), existing=True)
        way = PositionSide.read(side)
        position_id = await self._pool.fetchval(
            statement("insert", _FILE),
            venue,
            short,
            way.value,
            quantity,
            "pending_entry",
            signal,
            entry_price,
        )
        _LOG.info(
            "position %d created for %s on %s: %s %s", position_id, short, venue, way.value, f"{quantity:f}"
        )
        try:
            entry = await self._exchange.create_order(symbol, "market", way.entry, float(quantity))
            await self._set(position_id, "entry_placed", entry_order_id=str(entry["id"]))
            _LOG.info(
                "entry order %s placed for %s on %s, position %d", entry["id"], short, venue, position_id
            )
            await self._reached("entry_placed", symbol)
            await asyncio.sleep(self._settlement_s)
            stop_price = stop_price_of(way, entry_price, stop_loss_percent)
            stop = await self._place_stop(symbol, way, quantity, stop_price)
            await self._set(position_id, "active", stop_order_id=stop, stop_price=stop_price)
        except Exception as exc:  # noqa: BLE001 - the fault that is shown here
            _LOG.exception("position %d of %s on %s failed, rolling back", position_id, short, venue)
            await self._roll_back(position_id, symbol, way, quantity, str(exc))
            return NaiveOpen(
                position_id, error=str(exc), unique_violation=isinstance(exc, asyncpg.UniqueViolationError)
            )
        _LOG.info("position %d opened for %s on %s, stop order %s", position_id, short, venue, stop)
        return NaiveOpen(position_id)

    async def sync_exchange_positions(self, *, stop_loss_percent: Decimal = Decimal(2)) -> int:
        """Create rows and stops for positions on the exchange that no active row has.

        Returns:
            How many rows it created.
        """
        positions = [p for p in await self._exchange.fetch_positions() if p.get("contracts")]
        venue = resource_key(self._exchange, "BTC/USDT:USDT").partition(":")[0]
        active = {row[0] for row in await self._pool.fetch(statement("active_symbols", _FILE), venue)}
        held = {self._name(str(p["symbol"]))[1]: p for p in positions}
        for short in active - held.keys():
            closed = await self._pool.fetchval(statement("close_phantom", _FILE), venue, short)
            _LOG.warning("position %s closed for %s on %s: the exchange has none", closed, short, venue)
        made = await asyncio.gather(
            *(self._adopt(held[short], short, stop_loss_percent) for short in sorted(held.keys() - active))
        )
        return sum(made)

    async def clean_up(self, older_than: timedelta) -> int:
        """Close whatever looks incomplete: it cannot tell an open in progress from one that died.

        Returns:
            How many rows it cleaned up.
        """
        venue = resource_key(self._exchange, "BTC/USDT:USDT").partition(":")[0]
        rows = await self._pool.fetch(statement("incomplete", _FILE), venue, older_than)
        for row in rows:
            symbol = self._exchange.market(row["symbol"])["symbol"]
            way = PositionSide(row["side"])
            await self._roll_back(row["id"], symbol, way, row["quantity"], "cleaned up as incomplete")
        return len(rows)

    # --- inside ---

    async def _adopt(self, position: dict[str, Any], short: str, stop_loss_percent: Decimal) -> int:
        way = PositionSide.SHORT if position["side"] == "short" else PositionSide.LONG
        quantity, price = decimal_of(position["contracts"]), decimal_of(position["entryPrice"])
        assert quantity is not None
        assert price is not None
        venue, _ = self._name(str(position["symbol"]))
        try:
            position_id = await self._pool.fetchval(
                statement("insert", _FILE), venue, short, way.value, quantity, "active", None, price
            )
            _LOG.info(
                "position %d adopted for %s on %s: %s %s",
                position_id,
                short,
                venue,
                way.value,
                f"{quantity:f}",
            )
            stop_price = stop_price_of(way, price, stop_loss_percent)
            stop = await self._place_stop(str(position["symbol"]), way, quantity, stop_price)
            await self._set(position_id, "active", stop_order_id=stop, stop_price=stop_price)
        except Exception:  # noqa: BLE001 - the fault that is shown here
            _LOG.exception("%s on %s was not adopted", short, venue)
            return 0
        return 1

    async def _place_stop(
        self, symbol: str, way: PositionSide, quantity: Decimal, stop_price: Decimal
    ) -> str:
        params = {
            "stopLossPrice": self._exchange.price_to_precision(symbol, float(stop_price)),
            "reduceOnly": True,
        }
        order = await self._exchange.create_order(symbol, "market", way.exit, float(quantity), None, params)
        return str(order["id"])

    async def _roll_back(
        self, position_id: int, symbol: str, way: PositionSide, quantity: Decimal, error: str
    ) -> None:
        await self._reached("rolling_back", symbol)
        try:
            await self._exchange.create_order(symbol, "market", way.exit, float(quantity))
        except Exception as exc:  # noqa: BLE001 - the fault that is shown here
            _LOG.exception("position %d of %s could not be closed", position_id, symbol)
            error = f"{error}; and closing it: {exc}"
        await self._set(position_id, "rolled_back", error=error)
        venue, short = self._name(symbol)
        _LOG.warning("position %d rolled back for %s on %s", position_id, short, venue)

    async def _set(
        self,
        position_id: int,
        status: str,
        *,
        entry_order_id: str | None = None,
        stop_order_id: str | None = None,
        stop_price: Decimal | None = None,
        error: str | None = None,
    ) -> None:
        await self._pool.execute(
            statement("set_status", _FILE),
            position_id,
            status,
            entry_order_id,
            stop_order_id,
            stop_price,
            error,
        )

    async def _reached(self, step: str, symbol: str) -> None:
        if self._at is not None:
            await self._at(step, symbol)

    def _name(self, symbol: str) -> tuple[str, str]:
        """The venue and the symbol as in the table."""
        venue, _, short = resource_key(self._exchange, symbol).partition(":")
        return venue, short
