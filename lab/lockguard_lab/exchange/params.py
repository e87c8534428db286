"""A request's parameters, refused in the exchange's own words when they cannot be read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lockguard_lab.exchange.filters import number
from lockguard_lab.exchange.model import OrderType, PositionSide, Side
from lockguard_lab.exchange.rejections import Rejection, illegal, malformed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

__all__ = ["Params"]


class Params:
    """The query and body parameters of one request, merged."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def optional(self, name: str) -> str | None:
        """A parameter's text, or ``None`` when it is absent or empty."""
        return self._values.get(name) or None

    def text(self, name: str) -> str:
        """The text of a required parameter."""
        value = self.optional(name)
        if value is None:
            raise malformed(name)
        return value

    def number(self, name: str) -> Decimal:
        """The value of a required number."""
        return number(name, self.text(name))

    def whole(self, name: str) -> int | None:
        """A whole number, or ``None`` when it is absent."""
        value = self.optional(name)
        if value is None:
            return None
        if not value.isdecimal():
            raise illegal(name, "^[0-9]{1,20}$")
        return int(value)

    def flag(self, name: str) -> bool:
        """``true`` or ``false`` in any case; absent is false."""
        return (self.optional(name) or "").lower() == "true"

    def rows(self, name: str) -> list[Params]:
        """A JSON list of objects, each with parameters of its own."""
        found = _json(name, self.text(name))
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise malformed(name)
        return [
            Params({key: _text(value) for key, value in row.items() if value is not None}) for row in found
        ]

    def values(self, name: str) -> list[str]:
        """The items of a list, ``[1,2]`` or ``["a","b"]``, as text; no items when it is absent.

        ccxt's spelling is accepted too: the name in lower case, and no quotes.
        """
        text = (self.optional(name) or self.optional(name.lower()) or "").strip()
        if not text:
            return []
        if not (text.startswith("[") and text.endswith("]")):
            raise malformed(name)
        return [item.strip().strip('"') for item in text[1:-1].split(",") if item.strip()]

    def side(self) -> Side:
        """``BUY`` or ``SELL``."""
        try:
            return Side(self.text("side"))
        except ValueError:
            raise Rejection(-1117, "Invalid side.") from None

    def order_type(self) -> OrderType:
        """One of the order types."""
        try:
            return OrderType(self.text("type"))
        except ValueError:
            raise Rejection(-1116, "Invalid orderType.") from None

    def position_side(self) -> PositionSide:
        """``BOTH``, ``LONG`` or ``SHORT``; absent is ``BOTH``."""
        try:
            return PositionSide(self.optional("positionSide") or "BOTH")
        except ValueError:
            raise Rejection(-4060, "Invalid position side.") from None

    def order_key(self, id_name: str, client_name: str) -> tuple[int | None, str | None]:
        """The id by which a request names an order: the exchange's id wins over the client's."""
        order_id = self.whole(id_name)
        client_id = self.optional(client_name)
        if order_id is None and client_id is None:
            raise Rejection(
                -1102, f"Param '{client_name}' or '{id_name}' must be sent, but both were empty/null!"
            )
        return order_id, client_id


def _json(name: str, value: str) -> object:
    try:
        return json.loads(value, parse_float=str)
    except ValueError:
        raise malformed(name) from None


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
