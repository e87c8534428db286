"""The bot process that is stopped in the middle of an open: ``python -m lockguard_lab.demo.holder``.

It runs the real flow on real servers up to the point between the filled entry and the stop: the position is
open on the exchange and has no stop yet. There it checks its lease, finds it valid, and is stopped before it
sends its next statement: the one moment that no check in a client can cover. The statement that it then sends
was made before it was stopped; it does not check the lease again. A bot does so without a library that checks
for it, and any bot does so whose machine stalls *after* the check.
"""

from __future__ import annotations

import asyncio
import os
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import LeaseLost
from lockguard_lab.child_process import begin_as_child, say
from lockguard_lab.demo.parts import EXCHANGE, LEASE_LOST, PACE, Bot, BotSettings, bot
from lockguard_positions._flow import Flow
from lockguard_positions._model import NewPosition, Position, PositionSide, Progress
from lockguard_positions._scope import SymbolScope
from lockguard_positions._store import PositionStore
from lockguard_positions._venue import Venue
from lockguard_postgres._claims import Claim

if TYPE_CHECKING:
    from lockguard._lease import Lease

__all__ = ["APPLICATION", "main"]

APPLICATION = "lockguard demo: the stopped holder"
"""The application name of the late write's connection, which identifies it in the server's log."""

_WORTH = Decimal(85)
_STOP_PERCENT = Decimal(2)


class _Stopped(PositionStore):
    """The position store of a writer that is stopped between its lease check and its statement."""

    def __init__(self, pool: asyncpg.Pool[Any], raw: asyncpg.Connection[Any]) -> None:
        super().__init__(pool)
        self._raw = raw

    async def record_entry(self, *args: Any, **values: Any) -> Progress:
        """Record the entry alone, so that the stop's intent is a write of its own."""
        return await super().record_entry(*args, **{**values, "stop": None})

    async def expect_stop(self, lease: Lease, position: Position, trigger: Decimal) -> Progress:
        """Would record that the stop is about to be placed; the process is stopped before it can."""
        lease.ensure()
        statement = late_write(lease, position, trigger)
        say({"stopped_at": {"token": lease.token, "position": position.id, "statement": statement}})
        if not sys.stdin.readline():  # blocks the whole process, as SIGSTOP does meanwhile
            os._exit(1)
        # A task of its own: the loss of the lease, raised at the next await, must not prevent the write.
        writing = asyncio.create_task(self._send(statement), name="late write")
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            raise
        lease.ensure()
        raise AssertionError("the lease outlived its holder's stop; stop it for longer than its ttl")

    async def _send(self, statement: str) -> None:
        try:
            await self._raw.execute(statement)
        except asyncpg.PostgresError as exc:
            say({"wrote": {"sqlstate": exc.sqlstate, "message": str(exc)}})
        else:
            say({"wrote": {"sqlstate": None, "message": "committed"}})


def late_write(lease: Lease, position: Position, trigger: Decimal) -> str:
    """One transaction in one message: check, then write. Only the check prevents the write."""
    check = Claim(lease.resource, lease.token, lease.grant.id).check_sql()
    return f"begin; {check} {unfenced(position.id, trigger, lease.token)}; commit"


def unfenced(position_id: int, trigger: Decimal | str, token: int) -> str:
    """The write without its check: to this holder the position has no stop yet, and it would order one."""
    return (
        f"update monitoring.positions set status = 'pending_sl', stop_price = {trigger},"  # noqa: S608 - numbers
        f" stop_order_id = null, token = {token:d} where id = {position_id:d}"
    )


async def _open(made: Bot, part: BotSettings, symbol: str) -> None:
    """Open a position as the manager does, with the store that is stopped."""
    raw = await asyncpg.connect(
        part.database_url, server_settings={"application_name": APPLICATION, "log_statement": "all"}
    )
    try:
        venue = Venue(made.exchange, PACE)
        market = venue.market(symbol)
        ticker = await made.exchange.exchange.fetch_ticker(market.symbol)
        price = Decimal(str(ticker["last"]))
        store = _Stopped(made.pool, raw)
        new = NewPosition(
            exchange=EXCHANGE,
            symbol=market.name,
            side=PositionSide.LONG,
            quantity=market.rules.amount(_WORTH / price),
            entry_price=price,
            stop_loss_percent=_STOP_PERCENT,
            signal_id="demo",
        )
        async with made.guard.hold(market.resource, operation="open long") as lease:
            scope = SymbolScope(store, venue, market, lease, PACE, SYSTEM_CLOCK, emit=lambda _: None)
            await Flow(scope).drive(await store.begin(lease, new))
    finally:
        raw.terminate()


async def _run(part: BotSettings) -> None:
    async with bot(part) as made:
        say({"ready": True})
        symbol = sys.stdin.readline().strip()
        if symbol:
            await _open(made, part, symbol)


def main() -> None:
    """Open one position, be stopped, and end with the outcome."""
    begin_as_child()
    part = BotSettings.decode(sys.stdin.readline())
    try:
        asyncio.run(_run(part))  # noqa: TID251 - its parent ends it
    except LeaseLost as lost:
        sys.stderr.write(f"LeaseLost: {lost}\n")
        sys.exit(LEASE_LOST)


if __name__ == "__main__":
    main()
