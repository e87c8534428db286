"""The open positions of the table, read without the packages of the flow: an operator may lack ccxt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncpg

__all__ = ["OpenPosition", "open_positions"]

_LIMIT = 10_000

_WITHOUT_STOP = frozenset({"pending_entry", "entry_placed", "pending_sl"})

_KNOWN = """
select to_regclass('monitoring.positions') is not null, to_regclass('monitoring.position_intents') is not null
"""

# The time without a stop begins with the entry, or where a stop stood before, with the next one's intent. A
# row's updated_at does not tell: it moves with every price.
_SINCE_INTENTS = """
(select min(i.recorded_at) from monitoring.position_intents i
  where i.position_id = p.id and i.step = 'stop' and i.number > (
    select max(s.number) from monitoring.position_intents s
     where s.position_id = p.id and s.step = 'stop' and s.outcome = 'executed'))
"""

_ROWS = """
select p.id, p.exchange, p.symbol, p.side, p.quantity, p.status,
       coalesce({since}, p.opened_at, p.created_at) as since
  from monitoring.positions p
 where p.status in ('pending_entry', 'entry_placed', 'pending_sl', 'active')
 order by p.status = 'active', p.id
 limit $1
"""


@dataclass(frozen=True, slots=True)
class OpenPosition:
    """A row of the table that is open.

    Attributes:
        id: the row.
        exchange: the exchange, with the account's label where there is one.
        symbol: as in the name of the lock.
        side: ``long`` or ``short``.
        quantity: in the base currency.
        status: as in ``lockguard_positions.PositionStatus``.
        since: since when it is open, or without a stop, on the database's clock.
    """

    id: int
    exchange: str
    symbol: str
    side: str
    quantity: Decimal
    status: str
    since: datetime

    @property
    def resource(self) -> str:
        """The resource of its lock."""
        return f"{self.exchange}:{self.symbol}"

    @property
    def without_stop(self) -> bool:
        """Whether the exchange may hold it and no stop is known to stand."""
        return self.status in _WITHOUT_STOP


async def open_positions(conn: asyncpg.Connection[Any] | Any) -> tuple[OpenPosition, ...] | None:
    """The open rows, those without a stop first, at most 10,000; ``None`` if there is no such table.

    Raises:
        asyncpg.PostgresError: the role may not read them, or the database did not answer.
    """
    known: Any = await conn.fetchrow(_KNOWN)
    there, with_intents = known
    if not there:
        return None
    since = f"case when p.status = 'pending_sl' then {_SINCE_INTENTS} end" if with_intents else "null"
    rows = await conn.fetch(_ROWS.format(since=since), _LIMIT)
    return tuple(OpenPosition(**row) for row in rows)
