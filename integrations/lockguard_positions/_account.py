"""Whether an account is the one that a row's orders were sent on.

With the API key of another account under the same label, no row's position is there, and all of them live on,
unwatched. So an account that holds nothing is no proof that a position has ended, and one that holds the
same symbol holds somebody else's position, which no order for the row may reduce. Before a row ends and
before such an order is sent, the account has to know one of the row's orders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._own_rows import has_our_stop

if TYPE_CHECKING:
    from lockguard_ccxt import Market
    from lockguard_positions._model import Position
    from lockguard_positions._scope import SymbolScope
    from lockguard_positions._venue import Venue

__all__ = ["NEVER_HAD", "check_account", "foreign", "never_had"]

NEVER_HAD = (
    "the account has never had the orders of the row, so its API key may be that of another account;"
    " check the key before anything else"
)

_HOUR_MS = 3_600_000
_UNFILLED_KEPT_MS = 20 * _HOUR_MS
"""For how long exchanges know an order that was cancelled without a fill: Bybit for 24 hours."""
_FILLED_KEPT_MS = {"binance": 80 * 24 * _HOUR_MS}
"""For how long an exchange knows an order that was filled: Binance for 90 days."""
_FILLED_KEPT_ELSEWHERE_MS = 6 * 24 * _HOUR_MS
"""The same elsewhere: Bybit lists the orders of the last 7 days."""


async def never_had(venue: Venue, market: Market, position: Position) -> bool:
    """Whether an account does not know the orders of a row, though it must if it has ever had them.

    An old row's orders may be forgotten, so nothing can be said of it, nor of one that has only a person's.

    Raises:
        ExchangeUnreadable: the exchange did not answer.
    """
    if position in venue.own_rows or not position.status.open:
        return False
    kept_ms = _FILLED_KEPT_MS.get(venue.name.partition("@")[0], _FILLED_KEPT_ELSEWHERE_MS)
    entered = position.opened_here and position.entry_client_id is not None and position.age_ms < kept_ms
    placed = position.stop_order_id is not None and has_our_stop(position)
    ours = placed and position.age_ms < _UNFILLED_KEPT_MS
    if not (entered or ours):
        return False
    young = position.age_ms < venue.in_doubt_ms  # its orders may not be listed yet
    known = await venue.knows(market, position, patiently=young)
    if known:
        venue.own_rows.shown(position)
    return not known


def foreign(venue: Venue, position: Position) -> ExchangeUnreadable:
    """The error to raise about a row whose orders an account has never had."""
    return ExchangeUnreadable(f"{venue.name}:{position.symbol} position {position.id}: {NEVER_HAD}")


async def check_account(scope: SymbolScope, position: Position) -> None:
    """Raise, and raise an alert, if the account has never had a row's orders: see :func:`never_had`.

    No request is sent where the account has shown one of them since this process has been running.

    Raises:
        ExchangeUnreadable: so it is, or the exchange did not answer; nothing may be decided about the row.
    """
    if await never_had(scope.venue, scope.market, position):
        scope.alert(position, f"nothing is decided about it: {NEVER_HAD}")
        raise foreign(scope.venue, position)
