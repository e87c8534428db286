"""Which requests change something, by their method and path."""

from __future__ import annotations

import re

__all__ = ["ORDERS_BY_GET", "changes"]

ORDERS_BY_GET = (
    r"(?:withdraw|(?:buy|sell|edit|cancel|close_position|mass_quote|move_positions|submit_transfer|set_leverage"
    r"|broadcast_tx)(?:_\w+)?)"
)
"""The last part of such a path, as a regular expression."""
_BY_GET = re.compile(ORDERS_BY_GET)


def changes(method: str, path: str) -> bool:
    """Whether a request changes something on an exchange.

    Some exchanges take orders by GET: ccxt buys on Deribit by ``GET .../private/buy?...``, and on dYdX by
    ``GET .../broadcast_tx_sync?...``.

    Args:
        method: of HTTP.
        path: a path or a URL, with or without its query.
    """
    last = path.partition("?")[0].rstrip("/").rpartition("/")[2]
    return method.upper() != "GET" or bool(_BY_GET.fullmatch(last))
